package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// afterExpiry is how long an open tunnel may outlive the certificates that opened it.
	afterExpiry = time.Hour
	// recheckInterval is between two looks at all tunnels, since certificates expire
	// by themselves.
	recheckInterval = 2 * time.Second
	// afterFIN is how long an exchange may outlast its pod if that has said FIN: what it has said
	// is on its way, and acknowledged. A FIN that is still behind such bytes in the pod's own
	// kernel is waited for as long as awaitFIN. Both end with the look that follows.
	afterFIN = 20 * time.Second
	awaitFIN = 2 * time.Second
)

// A parting is the end of a pod while its exchange is open. The zero value is ready; permits is
// called by a lease's check alone.
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

// leases are the tunnels, from the proof of both ends on, each with the decision
// that admits it.
type leases struct {
	mu   sync.Mutex // guards open, and is held while decisions are made again
	open map[*lease]struct{}
}

// A lease is one tunnel.
type lease struct {
	check func(*state) error
	end   context.CancelCauseFunc
}

// hold takes a tunnel in. The context that it returns ends with life, with a
// refusal when check, asked of current's state now and of every later one, fails,
// and with release, which the caller must call. check must be quick and call
// nothing of leases; it is never called twice at a time.
func (l *leases) hold(life context.Context, current func() *state, check func(*state) error) (ctx context.Context, release func()) {
	ctx, end := context.WithCancelCause(life)
	t := &lease{check, end}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[*lease]struct{})
	}
	l.open[t] = struct{}{}
	if s := current(); s != nil {
		l.look(t, s) // the state may be newer than the one that admitted it
	}
	return ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open, t)
		end(nil)
	}
}

// recheck decides on every tunnel again, ends those that would now be refused, and
// returns how many these are.
func (l *leases) recheck(s *state) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	ended := 0
	for t := range l.open {
		if !l.look(t, s) {
			ended++
		}
	}
	return ended
}

// look decides on one tunnel again. l.mu is held.
func (l *leases) look(t *lease, s *state) bool {
	err := t.check(s)
	if err != nil {
		delete(l.open, t)
		t.end(refuse(reasonRevoked, fmt.Errorf("no longer admitted: %w", err)))
	}
	return err == nil
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
			if s := current(); s != nil {
				l.recheck(s)
			}
		}
	}
}

// A vouching is the proof of a tunnel's peer, to be looked at again. Signatures do
// not decay: they are verified again only when the issuers have changed, or when
// one of the certificates has expired. States change often, and an agent holds
// many tunnels.
type vouching struct {
	chain []*x509.Certificate

	name    identity.Name
	issuers []*x509.Certificate
	until   time.Time // when the first of all these certificates expires
}

// newVouching keeps what a finished handshake has proven by anchors.
func newVouching(cs tls.ConnectionState, anchors *identity.Anchors) (*vouching, error) {
	name, err := identity.PeerName(cs)
	if err != nil {
		return nil, err
	}
	v := &vouching{chain: cs.PeerCertificates}
	v.keep(name, anchors.Issuers(name.TrustDomain()))
	return v, nil
}

func (v *vouching) keep(name identity.Name, issuers []*x509.Certificate) {
	v.name, v.issuers, v.until = name, issuers, time.Time{}
	for _, c := range slices.Concat(v.chain, issuers) {
		if v.until.IsZero() || c.NotAfter.Before(v.until) {
			v.until = c.NotAfter
		}
	}
}

// again returns the name that the chain proves in s.
func (v *vouching) again(s *state, now time.Time) (identity.Name, error) {
	issuers := s.anchors.Issuers(v.name.TrustDomain())
	if now.Before(v.until) && slices.EqualFunc(issuers, v.issuers, (*x509.Certificate).Equal) {
		return v.name, nil
	}
	name, err := s.vouched(v.chain, now)
	if err != nil {
		return identity.Name{}, err
	}
	v.keep(name, s.anchors.Issuers(name.TrustDomain()))
	return name, nil
}

// vouched verifies an open tunnel's peer again, as of the last moment at which
// its certificate was valid, but for no longer than afterExpiry after that.
func (s *state) vouched(chain []*x509.Certificate, now time.Time) (identity.Name, error) {
	if len(chain) > 0 && now.After(chain[0].NotAfter) && now.Before(chain[0].NotAfter.Add(afterExpiry)) {
		now = chain[0].NotAfter
	}
	return identity.VerifyWorkload(chain, s.anchors, now)
}
