package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// Bounds of warm tunnels.
const (
	maxWarm     = 512 // of one agent
	maxWarmEach = 2   // for one caller and one port of a mirror; 1 until it has called twice within warmUse
	warmUse     = time.Minute
	// warmLife is shorter than the far side's patience, so that it is we who end it.
	warmLife = 45 * time.Second
	// warmRate and warmBurst bound how fast they are made, for one peer; warmJitter spreads them.
	warmRate   = 20 // a second
	warmBurst  = 4
	warmJitter = 200 * time.Millisecond
)

// What became of a warm tunnel, as a metric's label.
const (
	warmBegun  = "begun" // and made or failed within seconds
	warmMade   = "made"
	warmFailed = "failed" // to be made
	warmUsed   = "used"
	warmUnused = "unused" // in its time
	warmLost   = "lost"   // ended by the far side, or not admitted any more
)

// A warmPool holds tunnels on which HELLO is done and OPEN is not, for callers yet to
// come: they pay one round trip instead of three.
//
// What always holds:
//   - A tunnel is made only after a call, and used once, by a caller of the same
//     SPIFFE ID for the same port of the same mirror, while that leads where it led.
//   - It speaks by the caller's newest certificate, whatever the last one spoke by.
//   - It is a lease from its first moment.
//   - What was sent over one and may have reached an application is not sent again.
type warmPool struct {
	used    *fading[warmKey, int]          // calls, lately
	buckets *fading[string, *rate.Limiter] // by link

	mu     sync.Mutex // guards what follows
	idle   map[warmKey][]*warmTunnel
	making map[warmKey]int
	total  int // idle and being made
	closed bool
	makers sync.WaitGroup
}

type warmKey struct {
	caller string // SPIFFE ID
	vip    netip.Addr
	index  int
	// to, hostname and route are where that led: a new state may have changed it already.
	to       farPort
	hostname string
	route    uint32
}

type warmTunnel struct {
	key    warmKey
	by     string // the gateway's address
	call   call   // as whom, to whom, and what the far side answered
	tun    *tls.Conn
	expiry *time.Timer
	// forget stops the pool from hearing of the lease's end; release ends it.
	forget  func() bool
	release func()
}

func newWarmPool() *warmPool {
	return &warmPool{
		used: newFading[warmKey, int](4096, warmUse), buckets: newFading[string, *rate.Limiter](1024, time.Hour),
		idle: make(map[warmKey][]*warmTunnel), making: make(map[warmKey]int),
	}
}

func (c *call) warmKey() warmKey {
	return warmKey{c.as.Name().String(), c.vip, c.index, c.farPort(), c.to.hostname, c.port.route}
}

// attach opens a call over a warm tunnel. Without one that takes it, it returns nil, and
// nothing of the call has reached an application.
func (a *Agent) attach(life context.Context, c *net.TCPConn, call *call) (*opened, error) {
	if call.to.affinity > 0 {
		return nil, nil // its pod is to choose
	}
	for {
		w := a.warm.take(call.warmKey())
		if w == nil {
			return nil, nil
		}
		if !w.quiet() {
			a.metrics.warm.WithLabelValues(outbound, warmLost).Inc()
			w.end()
			continue
		}
		t, again, err := a.attachTo(life, c, call, w)
		if err == nil {
			a.metrics.warm.WithLabelValues(outbound, warmUsed).Inc()
			return t, nil
		}
		a.metrics.warm.WithLabelValues(outbound, warmLost).Inc()
		if !again {
			return nil, err
		}
	}
}

// attachTo opens a call over w. If that fails, again says that nothing has reached an
// application: the far side refused, or closed in good order before it read OPEN, or
// there was nothing to send.
func (a *Agent) attachTo(life context.Context, c *net.TCPConn, call *call, w *warmTunnel) (t *opened, again bool, err error) {
	if err := call.listen(c); err != nil {
		w.end()
		return nil, false, err
	}
	as, far, answer := call.as, call.far, call.answer
	call.as, call.far, call.answer = w.call.as, w.call.far, w.call.answer
	ctx, release := a.leases.hold(life, a.state.Load, call.lease())
	w.release()
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	doubted := make(chan bool, 1)
	doubt := time.AfterFunc(warmDoubt, func() { doubted <- w.doubt() })
	err = tunnel.Attach(opening, w.tun, call.first)
	if !doubt.Stop() && <-doubted {
		a.lostWay(w.by)
	}
	if err == nil {
		return &opened{w.tun, ctx, release}, false, nil
	}
	w.tun.NetConn().(*transport.Raw).Reset()
	release()
	if r := (*refusal)(nil); errors.As(err, &r) {
		return nil, false, r // the lease has ended
	}
	refused := (*tunnel.Refused)(nil)
	again = errors.As(err, &refused) || errors.Is(err, io.EOF) || len(call.first) == 0
	call.as, call.far, call.answer = as, far, answer
	return nil, again, refuse(reasonTunnel, fmt.Errorf("open %s in %s over a warm tunnel: %w", call.hello(), call.peer.name, err))
}

// warmUp makes tunnels for the next calls like this one, if there should be more.
func (a *Agent) warmUp(c *call) {
	if c.to.affinity > 0 || !a.shares.roomy(c.peer.uid) {
		return // attach would not take it, or others need it more
	}
	key := c.warmKey()
	calls := a.warm.called(key)
	for a.warm.begin(key, calls) {
		if !a.warm.bucket(c.peer.uid).Allow() {
			a.warm.done(key)
			return
		}
		a.startWarm(key, c)
	}
}

// startWarm makes a tunnel that the pool has begun.
func (a *Agent) startWarm(key warmKey, c *call) {
	next := call{vip: c.vip, index: c.index, to: c.to, port: c.port, peer: c.peer, caller: c.caller}
	a.metrics.warm.WithLabelValues(outbound, warmBegun).Inc()
	go func() { // which drain waits for
		defer a.warm.done(key)
		backoff.Sleep(a.taking, rand.N(warmJitter))
		err := context.Cause(a.taking)
		if err == nil {
			err = a.makeWarm(key, next)
		}
		if err != nil {
			a.metrics.warm.WithLabelValues(outbound, warmFailed).Inc()
			a.log.Debug("no warm tunnel", "mirror", next.to.name, "error", err)
		}
	}()
}

// freshen brings a call that was made to the state in force and its caller's newest certificate.
func (a *Agent) freshen(key warmKey, c *call) error {
	s, err := a.current()
	if err == nil {
		err = c.welcome(s)
	}
	if err != nil {
		return err
	}
	c.peer = s.links[c.peer.name]
	var ok bool
	if c.as, ok = a.svids.get(c.caller.account()); !ok || c.as.Name().String() != key.caller {
		return fmt.Errorf("no certificate for %s", key.caller)
	}
	return nil
}

// makeWarm makes a tunnel, says HELLO, and puts it into the pool.
func (a *Agent) makeWarm(key warmKey, c call) error {
	if err := a.freshen(key, &c); err != nil {
		return err
	}
	raw, by, err := a.reach(a.taking, c.peer)
	if err != nil {
		return err
	}
	tun, err := a.prove(a.taking, raw, &c)
	if err != nil {
		raw.Reset()
		return err
	}
	ctx, release := a.leases.hold(a.taking, a.state.Load, c.warmLease())
	greeting, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if c.answer, err = tunnel.Warm(greeting, tun, c.hello()); err != nil {
		raw.Reset()
		release()
		return err
	}
	a.told(&c)
	w := &warmTunnel{key: key, by: by, call: c, tun: tun, release: release}
	a.metrics.warm.WithLabelValues(outbound, warmMade).Inc()
	kept := a.warm.put(w, func() {
		w.expiry = time.AfterFunc(warmLife, func() { a.dropWarm(w, warmUnused) })
		w.forget = context.AfterFunc(ctx, func() { a.dropWarm(w, warmLost) })
	})
	if !kept {
		a.metrics.warm.WithLabelValues(outbound, warmLost).Inc()
		release()
		raw.Reset()
	}
	return nil
}

// warmLease is the decision by which a tunnel waits for a caller.
func (c call) warmLease() func(*state) error {
	lease := c.vouched()
	return func(s *state) error {
		if err := c.welcome(s); err != nil {
			return err
		}
		return lease(s)
	}
}

// welcome says why a caller like c's would not make the call any more in s.
func (c *call) welcome(s *state) error {
	if err := c.leads(s); err != nil {
		return err
	}
	if !s.callers[c.caller.account()] {
		return fmt.Errorf("no pod of %s/%s is left", c.caller.namespace, c.caller.serviceAccount)
	}
	return nil
}

// dropWarm ends a tunnel that still waits.
func (a *Agent) dropWarm(w *warmTunnel, what string) {
	if a.warm.remove(w) {
		a.metrics.warm.WithLabelValues(outbound, what).Inc()
		w.end()
	}
}

// called notes a call, and returns how many tunnels are worth it to wait for the next.
func (p *warmPool) called(key warmKey) (want int) {
	p.used.put(key, func(was int, _ time.Duration, _ bool) (int, bool) {
		want = min(was+1, maxWarmEach)
		return want, true
	})
	return want
}

// bucket bounds how fast tunnels to a peer are made.
func (p *warmPool) bucket(link string) *rate.Limiter {
	var limiter *rate.Limiter
	p.buckets.put(link, func(was *rate.Limiter, _ time.Duration, there bool) (*rate.Limiter, bool) {
		if limiter = was; !there {
			limiter = rate.NewLimiter(warmRate, warmBurst)
		}
		return limiter, true
	})
	return limiter
}

// begin counts in a tunnel that is to be made, if there is room; done counts it out.
func (p *warmPool) begin(key warmKey, want int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.total >= maxWarm || len(p.idle[key])+p.making[key] >= want {
		return false
	}
	p.total++
	p.making[key]++
	p.makers.Add(1)
	return true
}

func (p *warmPool) done(key warmKey) {
	defer p.makers.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total--
	if p.making[key]--; p.making[key] == 0 {
		delete(p.making, key)
	}
}

// put puts a tunnel in, and arms what will drop it, unless the pool is closed.
func (p *warmPool) put(w *warmTunnel, arm func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	arm()
	p.total++
	p.idle[w.key] = append(p.idle[w.key], w)
	return true
}

// take takes the oldest tunnel out, which is then the caller's: where calls are many, none
// waits by way of a gateway that was rolled until that one ends it.
func (p *warmPool) take(key warmKey) *warmTunnel {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[key]
	if len(list) == 0 {
		return nil
	}
	w := list[0]
	p.leave(w)
	w.expiry.Stop()
	w.forget()
	return w
}

// remove takes a tunnel out, if it is still there.
func (p *warmPool) remove(w *warmTunnel) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(p.idle[w.key], w) {
		return false
	}
	p.leave(w)
	return true
}

func (p *warmPool) leave(w *warmTunnel) {
	p.total--
	list := slices.DeleteFunc(p.idle[w.key], func(other *warmTunnel) bool { return other == w })
	if p.idle[w.key] = list; len(list) == 0 {
		delete(p.idle, w.key)
	}
}

// drain ends every tunnel that waits, takes no more, and waits for those being made.
// Agent.taking must have ended.
func (p *warmPool) drain() {
	p.mu.Lock()
	p.closed = true
	var all []*warmTunnel
	for _, list := range p.idle {
		all = append(all, list...)
	}
	clear(p.idle)
	p.total -= len(all)
	p.mu.Unlock()
	for _, w := range all {
		w.end()
	}
	p.makers.Wait()
}

// quiet reports whether the far side has said nothing since its answer, which would be an
// end, and its kernel answers when it is asked whether it is there.
func (w *warmTunnel) quiet() bool {
	tcp, ok := w.tun.NetConn().(*transport.Raw).Conn.(*net.TCPConn)
	return !ok || transport.Quiet(tcp) && !transport.Unanswered(tcp)
}

// end closes a tunnel in good order: the far side counts nothing.
func (w *warmTunnel) end() {
	w.expiry.Stop()
	w.forget()
	w.release()
	w.tun.Close()
}
