package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// afterExpiry is how long an open exchange may outlast a certificate that was not
	// renewed.
	afterExpiry = time.Hour
	// recheckInterval is the time between two checks of everything open, because
	// certificates expire without any change of state.
	recheckInterval = 2 * time.Second
	// afterFIN is how long an exchange may outlast its pod if the pod's FIN has arrived,
	// so that the pod's last bytes are still delivered. Without FIN it is awaitFIN,
	// because the FIN may still wait behind other bytes in the pod's kernel. The first
	// check after that time ends the exchange.
	afterFIN = 20 * time.Second
	awaitFIN = 2 * time.Second
)

// A parting is the end of a pod while its exchange is open. The zero value is ready. Only
// a lease's check calls permits.
type parting struct {
	pod   atomic.Pointer[net.TCPConn] // its connection
	since time.Time                   // when it was first missed
}

// permits reports whether the exchange may go on for now without its pod.
func (p *parting) permits(now time.Time) bool {
	if p.since.IsZero() {
		p.since = now
	}
	c, late := p.pod.Load(), now.Sub(p.since)
	return c != nil && (late < awaitFIN || late < afterFIN && transport.Finished(c))
}

// leases are the open tunnels, from the moment both ends are proven, each with the
// decision that admits it. The zero value is ready.
//
// What always holds:
//   - A tunnel is checked against the newest state: hold inserts it before it reads the
//     state, and recheck reads the tunnels after the state was stored.
//   - mu is held to insert, to remove and to copy the set, and never while a check runs.
//     So hold does not wait for recheck.
//   - A lease's check never runs twice at a time, and not after release has returned.
type leases struct {
	checking sync.Mutex // held during recheck
	checked  []*lease   // the copy of open that recheck uses; guarded by checking

	mu   sync.Mutex // guards open and the position of each lease in it
	open []*lease   // a slice, because it is copied at each recheck
}

// A lease is one tunnel.
type lease struct {
	check func(*state) error
	end   context.CancelCauseFunc

	position int // in leases.open; -1 once it is removed

	mu    sync.Mutex // held while check runs; guards ended
	ended bool
}

// hold inserts a tunnel. The context that it returns ends with life, with a refusal when
// check fails, and with release, which the caller must call. check is called with
// current's state now, if there is one, and with every later state. It must be quick,
// must verify no signature, and must not call leases.
func (l *leases) hold(
	life context.Context, current func() *state, check func(*state) error,
) (ctx context.Context, release func()) {
	ctx, end := context.WithCancelCause(life)
	t := &lease{check: check, end: end}
	l.insert(t)
	l.checkOne(t, current)
	return ctx, func() {
		t.mu.Lock()
		t.ended = true
		t.mu.Unlock()
		l.remove(t)
		end(nil)
	}
}

// recheck decides on every tunnel again, ends those that would now be refused, and
// returns how many these are. s must be the newest state, and stored where hold finds it.
func (l *leases) recheck(s *state) int { return l.recheckAll(func() *state { return s }) }

func (l *leases) recheckAll(current func() *state) int {
	l.checking.Lock()
	defer l.checking.Unlock()
	l.copyOpen()
	defer clear(l.checked)
	ended := 0
	for _, t := range l.checked {
		if !l.checkOne(t, current) {
			ended++
		}
	}
	return ended
}

// checkOne decides on one tunnel again, and reports whether it may stay. A tunnel that
// has ended already may. current is called while no other check of the tunnel can start,
// so a check by an older state never follows one by a newer state.
func (l *leases) checkOne(t *lease, current func() *state) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := current()
	if t.ended || s == nil {
		return true
	}
	err := t.check(s)
	if err == nil {
		return true
	}
	t.ended = true
	l.remove(t)
	t.end(refuse(reasonRevoked, fmt.Errorf("no longer admitted: %w", err)))
	return false
}

func (l *leases) insert(t *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.position = len(l.open)
	l.open = append(l.open, t)
}

// remove removes t if it is there.
func (l *leases) remove(t *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.position < 0 {
		return
	}
	last := len(l.open) - 1
	l.open[t.position] = l.open[last]
	l.open[t.position].position = t.position
	l.open[last] = nil
	l.open = l.open[:last]
	t.position = -1
}

// copyOpen allocates rarely, because hold waits for it. l.checking is held.
func (l *leases) copyOpen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checked = append(l.checked[:0], l.open...)
}

// watch rechecks every recheckInterval too, until ctx ends.
func (l *leases) watch(ctx context.Context, current func() *state) {
	tick := time.NewTicker(recheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.recheckAll(current)
		}
	}
}

// A vouching is what a tunnel's peer has proven. It never changes.
type vouching struct {
	name  identity.Name
	proof *identity.Proof
}

// newVouching returns what a finished handshake has proven by anchors.
func newVouching(cs tls.ConnectionState, anchors *identity.Anchors) (*vouching, error) {
	proof, err := anchors.Proof(cs, time.Now())
	if err != nil {
		return nil, err
	}
	return &vouching{name: proof.Name(), proof: proof}, nil
}

// again returns the name that the peer still proves by s. Its issuer must be listed. An
// expired certificate counts as of its last moment for up to afterExpiry. After that the
// error wraps transport.ErrNotRenewed.
func (v *vouching) again(s *state, now time.Time) (identity.Name, error) {
	until := v.proof.NotAfter()
	if now.After(until) && now.Before(until.Add(afterExpiry)) {
		now = until
	}
	if err := v.proof.Check(s.anchors, now); err != nil {
		if identity.Reason(err) == identity.ReasonExpired && now.After(until) {
			err = fmt.Errorf("%w: %w", transport.ErrNotRenewed, err)
		}
		return identity.Name{}, err
	}
	return v.name, nil
}
