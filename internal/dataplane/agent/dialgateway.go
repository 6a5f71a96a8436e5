package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// The means of the pauses between dials of addresses that refuse, at first and at most. A
// pause is random, up to twice its mean, so that the callers of many nodes do not dial a
// gateway that has restarted at the same moments.
const (
	minRefusedPause = 10 * time.Millisecond
	maxRefusedPause = 250 * time.Millisecond
)

// dialGateway dials one of the peer's gateways and also returns the address that
// answered. It tries the healthy addresses first, in random order with faster ones more
// often in front. It tries last the addresses that failed or were slow from this node.
// So each address gets its share of all agents' connections. dialGateway fails at once if
// a gateway of the peer has just granted no further session.
//
// If the addresses refuse the connection, dialGateway dials again until
// gatewayDialTimeout, or until the link is unusable. Several gateways may share an
// address, and a gateway that was killed refuses connections until its load balancer
// knows. Each further dial goes to the addresses that the peer has then.
func (a *Agent) dialGateway(life context.Context, p *peer) (raw *transport.Raw, gateway string, err error) {
	ctx, cancel := context.WithTimeout(life, gatewayDialTimeout)
	defer cancel()
	raw, gateway, err = a.dialOnce(ctx, life, p)
	pauses := backoff.Backoff{Min: 2 * minRefusedPause, Max: 2 * maxRefusedPause}
	for errors.Is(err, syscall.ECONNREFUSED) && a.monitor.isUsable(p.uid) && pauses.Wait(ctx) {
		latest := a.latest(p)
		if latest == nil || len(latest.gateways) == 0 {
			break
		}
		p = latest
		raw, gateway, err = a.dialOnce(ctx, life, p)
	}
	return raw, gateway, err
}

// dialGatewayOnce is dialGateway without further dials of addresses that refuse. It is for
// work that no caller awaits and that is tried again later.
func (a *Agent) dialGatewayOnce(life context.Context, p *peer) (raw *transport.Raw, gateway string, err error) {
	ctx, cancel := context.WithTimeout(life, gatewayDialTimeout)
	defer cancel()
	return a.dialOnce(ctx, life, p)
}

// dialOnce makes one dial of a peer's gateways until ctx ends. If life has ended too, the
// failure says nothing about the link.
func (a *Agent) dialOnce(ctx, life context.Context, p *peer) (raw *transport.Raw, gateway string, err error) {
	if err := a.shares.checkBudget(p); err != nil {
		return nil, "", err
	}
	if len(p.gateways) == 0 {
		return nil, "", refuse(reasonNoGateway, fmt.Errorf("no gateway address of %s is known", p.name))
	}
	addresses := a.dialOrder(p)
	start := time.Now()
	conn, winner, err := a.dialer.DialFirst(ctx, addresses...)
	if err != nil {
		if life.Err() == nil && !isLocal(err) {
			a.monitor.suspect(p.uid, errors.Is(err, syscall.ECONNREFUSED))
		}
		return nil, "", refuse(reasonUnreachable, fmt.Errorf("reach the gateway of %s: %w", p.name, err))
	}
	a.penalties.recordDial(addresses, winner, time.Now())
	if winner == 0 {
		a.penalties.recordConnectTime(addresses[0], time.Since(start))
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		a.openings.measuredConnect(p.uid, transport.RTT(tcp))
	}
	a.dropVia(addresses[:winner]...)
	a.monitor.connected(p.uid, conn)
	return transport.WrapDialed(conn), addresses[winner], nil
}

// dialOrder returns the addresses of a peer's gateways in the order in which dialGateway
// tries them.
func (a *Agent) dialOrder(p *peer) []string {
	addresses := slices.Concat(weightedOrder(p.gateways[:p.healthy], a.penalties.connectTime, rand.Float64), p.gateways[p.healthy:])
	return a.penalties.order(addresses, time.Now())
}

// latest returns the peer as the current state has it, or nil if its Link has gone.
func (a *Agent) latest(p *peer) *peer {
	s := a.state.Load()
	if s == nil {
		return p
	}
	if now := s.links[p.name]; now != nil && now.uid == p.uid {
		return now
	}
	return nil
}

// weightedOrder returns addresses in the order in which one connection tries them. The
// order is random. The weight of an address falls with its connect time. An address
// that was never measured counts as fast. The slowest address has at least a tenth of
// the weight of the fastest, so that each one is measured again. random returns a
// number in [0, 1).
func weightedOrder(addresses []string, took func(string) time.Duration, random func() float64) []string {
	out := slices.Clone(addresses)
	times := make([]time.Duration, len(out))
	fastest := time.Duration(math.MaxInt64)
	for i, address := range out {
		if times[i] = took(address); times[i] > 0 {
			fastest = min(fastest, times[i])
		}
	}
	weight := func(i int) float64 {
		if times[i] == 0 {
			return 1
		}
		return max(float64(fastest)/float64(times[i]), 0.1)
	}
	for next := range out {
		all := 0.0
		for i := next; i < len(out); i++ {
			all += weight(i)
		}
		picked, at := len(out)-1, random()*all
		for i := next; i < len(out); i++ {
			if at -= weight(i); at < 0 {
				picked = i
				break
			}
		}
		out[next], out[picked] = out[picked], out[next]
		times[next], times[picked] = times[picked], times[next]
	}
	return out
}

const (
	// An address that failed, or that lost against the next one in spite of its head
	// start, comes last for this long: at first, and at most.
	minPenalty = 10 * time.Second
	maxPenalty = 5 * time.Minute
	// penaltyTrial is how long one call may take to try an address again.
	penaltyTrial = gatewayDialTimeout
	maxPenalties = 1024
)

// penalties holds the addresses that failed or were slow from this node, so that such
// an address delays only a few calls. The zero value is ready.
type penalties struct {
	mu           sync.Mutex // guards what follows
	active       map[string]penalty
	connectTimes map[string]time.Duration // a moving average
}

// connectTime returns how long an address takes to connect, or 0 if that is unknown.
func (p *penalties) connectTime(address string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connectTimes[address]
}

// recordConnectTime adds a measured connect time to the average of an address.
func (p *penalties) recordConnectTime(address string, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if was := p.connectTimes[address]; was > 0 {
		took = (7*was + took) / 8
	}
	if p.connectTimes == nil || len(p.connectTimes) >= maxPenalties {
		p.connectTimes = make(map[string]time.Duration)
	}
	p.connectTimes[address] = took
}

// A penalty puts an address last until a time. duration is its length.
type penalty struct {
	until    time.Time
	duration time.Duration
}

// order returns addresses with the penalized ones last. One whose penalty has ended
// keeps its position for this call only.
func (p *penalties) order(addresses []string, now time.Time) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.active) == 0 {
		return addresses
	}
	first, last := make([]string, 0, len(addresses)), []string(nil)
	for _, address := range addresses {
		current, penalized := p.active[address]
		switch {
		case !penalized:
			first = append(first, address)
		case now.Before(current.until):
			last = append(last, address)
		default:
			p.active[address] = penalty{now.Add(penaltyTrial), current.duration}
			first = append(first, address)
		}
	}
	return append(first, last...)
}

// isPenalized reports whether an address currently comes last.
func (p *penalties) isPenalized(address string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	current, ok := p.active[address]
	return ok && now.Before(current.until)
}

// recordDial records a dial: of the tried addresses, in their order, winner answered
// first.
func (p *penalties) recordDial(tried []string, winner int, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.active, tried[winner])
	for _, address := range tried[:winner] {
		p.penalize(address, now)
	}
}

// recordDead penalizes an address through which sent bytes were not acknowledged.
func (p *penalties) recordDead(address string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.penalize(address, now)
}

// penalize starts a penalty, unless a concurrent call has just done so. p.mu is held.
func (p *penalties) penalize(address string, now time.Time) {
	if p.active == nil || len(p.active) >= maxPenalties {
		p.active = make(map[string]penalty)
	}
	current, penalized := p.active[address]
	if penalized && now.Before(current.until) && current.until.Sub(now) > penaltyTrial {
		return
	}
	duration := min(max(2*current.duration, minPenalty), maxPenalty)
	p.active[address] = penalty{now.Add(duration), duration}
}
