package agent

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// reach dials one of the peer's gateways and also returns the address that answered. It
// tries the addresses that the controller reports healthy in random order, in which
// faster ones are more often first. It tries last the addresses that failed or were slow
// from this node. So each address gets its share of all agents' connections.
func (a *Agent) reach(life context.Context, p *peer) (raw *transport.Raw, by string, err error) {
	ctx, cancel := context.WithTimeout(life, reachTimeout)
	defer cancel()
	if len(p.gateways) == 0 {
		return nil, "", refuse(reasonNoGateway, fmt.Errorf("no gateway address of %s is known", p.name))
	}
	addresses := slices.Concat(inTurn(p.gateways[:p.healthy], a.detours.took, rand.Float64), p.gateways[p.healthy:])
	addresses = a.detours.order(addresses, time.Now())
	start := time.Now()
	conn, winner, err := a.dialer.First(ctx, addresses...)
	if err != nil {
		return nil, "", refuse(reasonUnreachable, fmt.Errorf("reach the gateway of %s: %w", p.name, err))
	}
	a.detours.saw(addresses, winner, time.Now())
	if winner == 0 {
		a.detours.measured(addresses[0], time.Since(start))
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		a.openings.measured(p.uid, transport.RTT(tcp))
	}
	a.forsake(addresses[:winner]...)
	return transport.Dialed(conn), addresses[winner], nil
}

// inTurn returns addresses in the order in which one connection should try them: at random, with
// a weight that falls with the time that an address takes to connect. One of which nothing is
// known counts as fast, and the slowest has a tenth of the weight of the fastest at least, so
// that each is measured again and again. random returns a number in [0, 1).
func inTurn(addresses []string, took func(string) time.Duration, random func() float64) []string {
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
	// An address that failed, or was slower than the next one in spite of its head
	// start, comes last for this long: at first, and at most.
	detourMin = 10 * time.Second
	detourMax = 5 * time.Minute
	// detourTrial is how long one call has to find out whether it is good again.
	detourTrial = reachTimeout
	maxDetours  = 1024
)

// detours remembers which addresses this node's own dials have found wanting, so
// that they slow down one call now and then and not each. The zero value is ready.
type detours struct {
	mu    sync.Mutex // guards late and times
	late  map[string]detour
	times map[string]time.Duration // of connecting, averaged
}

// took is how long an address takes to connect; 0: that is not known.
func (d *detours) took(address string) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.times[address]
}

// measured takes in how long an address took to connect.
func (d *detours) measured(address string, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if was := d.times[address]; was > 0 {
		took = (7*was + took) / 8
	}
	if d.times == nil || len(d.times) >= maxDetours {
		d.times = make(map[string]time.Duration)
	}
	d.times[address] = took
}

// A detour is around one address, until a time. rest is how long it was last given.
type detour struct {
	until time.Time
	rest  time.Duration
}

// order returns addresses with the wanting ones last, else as they were. One that
// has rested keeps its place for this call alone.
func (d *detours) order(addresses []string, now time.Time) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.late) == 0 {
		return addresses
	}
	first, last := make([]string, 0, len(addresses)), []string(nil)
	for _, address := range addresses {
		around, wanting := d.late[address]
		switch {
		case !wanting:
			first = append(first, address)
		case now.Before(around.until):
			last = append(last, address)
		default:
			d.late[address] = detour{now.Add(detourTrial), around.rest}
			first = append(first, address)
		}
	}
	return append(first, last...)
}

// avoids reports whether an address comes last now.
func (d *detours) avoids(address string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	around, ok := d.late[address]
	return ok && now.Before(around.until)
}

// saw takes in that of tried, in their order, winner was the first to answer.
func (d *detours) saw(tried []string, winner int, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.late, tried[winner])
	for _, address := range tried[:winner] {
		d.around(address, now)
	}
}

// lost takes in that what was sent by way of an address was not heard.
func (d *detours) lost(address string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.around(address, now)
}

// around begins a detour, unless others have found so at the same time. d.mu is held.
func (d *detours) around(address string, now time.Time) {
	if d.late == nil || len(d.late) >= maxDetours {
		d.late = make(map[string]detour)
	}
	around, resting := d.late[address]
	if resting && now.Before(around.until) && around.until.Sub(now) > detourTrial {
		return
	}
	rest := min(max(2*around.rest, detourMin), detourMax)
	d.late[address] = detour{now.Add(rest), rest}
}
