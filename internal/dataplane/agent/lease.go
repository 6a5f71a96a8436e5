package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// expiryGrace is how long an open exchange may outlast a certificate that was not
	// renewed.
	expiryGrace = time.Hour
	// recheckInterval is the time between two checks of everything open, because
	// certificates expire without any change of state.
	recheckInterval = 2 * time.Second
	// finGrace is how long an exchange may outlast its pod if the pod's FIN has arrived,
	// so that the pod's last bytes are still delivered. Without FIN it is noFINGrace,
	// because the FIN may still wait behind other bytes in the pod's kernel. The first
	// check after that time ends the exchange.
	finGrace   = 30 * time.Second
	noFINGrace = 2 * time.Second
)

// A podGrace lets open connections outlive their pod for a while. The zero value is
// ready. Only a lease's check calls allows.
type podGrace struct {
	mu    sync.Mutex     // guards conns
	conns []*net.TCPConn // the pod's connections that are in use

	missingSince time.Time // when a check first missed the pod
}

// add adds a connection that is in use. The caller must call remove before it uses the
// connection for anything else.
func (p *podGrace) add(c *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

// remove removes a connection, if it is there.
func (p *podGrace) remove(c *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.conns, c); i >= 0 {
		p.conns = slices.Delete(p.conns, i, i+1)
	}
}

// allows reports whether any connection may continue for now without the pod. After
// noFINGrace, only connections on which a FIN has arrived may. allows then resets the
// others.
func (p *podGrace) allows(now time.Time) bool {
	if p.missingSince.IsZero() {
		p.missingSince = now
	}
	late := now.Sub(p.missingSince)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case len(p.conns) == 0 || late >= finGrace:
		return false
	case late < noFINGrace:
		return true
	case !slices.ContainsFunc(p.conns, transport.HasReceivedFIN):
		return false
	}
	for _, c := range p.conns {
		if !transport.HasReceivedFIN(c) {
			transport.Reset(c)
		}
	}
	return true
}

// leases holds the open tunnels, from the moment when both ends are authenticated. Each
// has the decision that admits it. The zero value is ready.
//
// What always holds:
//   - A tunnel is checked against the newest state. grant inserts it before it reads
//     the state, and recheck reads the tunnels after the state was stored.
//   - mu is held to insert, to remove and to copy the set, and never while a check
//     runs. So grant does not wait for recheck.
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

// grant inserts a tunnel. The context that it returns ends with life, with a refusal when
// check fails, and with release, which the caller must call. check is called with
// current's state now, if there is one, and with every later state. It must be quick,
// must verify no signature, and must not call leases.
func (l *leases) grant(
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
// returns how many it ended. s must be the newest state, and stored where grant finds
// it.
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

// copyOpen allocates rarely, because grant waits for it. l.checking is held.
func (l *leases) copyOpen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.checked = append(l.checked[:0], l.open...)
}

// watch calls recheckAll every recheckInterval, until ctx ends.
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

// A verifiedPeer is the verified identity of a tunnel's peer, with its proof. It is
// immutable.
type verifiedPeer struct {
	name  identity.Name
	proof *identity.Proof
}

// newVerifiedPeer returns the peer of a completed handshake, verified by anchors.
func newVerifiedPeer(cs tls.ConnectionState, anchors *identity.Anchors) (*verifiedPeer, error) {
	proof, err := anchors.Proof(cs, time.Now())
	if err != nil {
		return nil, err
	}
	return &verifiedPeer{name: proof.Name(), proof: proof}, nil
}

// recheck returns the name that the peer still proves by s. Its issuer must be listed. An
// expired certificate counts as of its last moment for up to expiryGrace. After that the
// error wraps transport.ErrNotRenewed.
func (v *verifiedPeer) recheck(s *state, now time.Time) (identity.Name, error) {
	until := v.proof.NotAfter()
	if now.After(until) && now.Before(until.Add(expiryGrace)) {
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
