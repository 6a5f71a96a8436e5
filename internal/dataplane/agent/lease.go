package agent

import (
	"context"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// afterExpiry is how long an open tunnel may outlive the certificates that opened it.
const afterExpiry = time.Hour

// leases are the open tunnels, each with the decision that admitted it.
type leases struct {
	mu   sync.Mutex // guards open
	open map[*lease]struct{}
}

// A lease is one open tunnel.
type lease struct {
	// check is the decision that admitted the tunnel, to be made again. It must be
	// quick and call nothing of leases.
	check func(*state) error
	end   context.CancelCauseFunc
}

// add takes a tunnel in. The caller ends it with the function returned.
func (l *leases) add(end context.CancelCauseFunc, check func(*state) error) (done func()) {
	t := &lease{check, end}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[*lease]struct{})
	}
	l.open[t] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open, t)
	}
}

// recheck decides on every open tunnel again, ends those that would now be
// refused, and returns how many these are.
func (l *leases) recheck(s *state) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	ended := 0
	for t := range l.open {
		if err := t.check(s); err != nil {
			t.end(fmt.Errorf("no longer admitted: %w", err))
			ended++
		}
	}
	return ended
}

// watch rechecks once a minute too, since certificates expire by themselves.
func (l *leases) watch(ctx context.Context, current func() *state) {
	tick := time.NewTicker(time.Minute)
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

// vouched verifies an open tunnel's peer again, as of the last moment at which
// its certificate was valid, but for no longer than afterExpiry after that.
func (s *state) vouched(chain []*x509.Certificate, now time.Time) (identity.Name, error) {
	if len(chain) > 0 && now.After(chain[0].NotAfter) && now.Before(chain[0].NotAfter.Add(afterExpiry)) {
		now = chain[0].NotAfter
	}
	return identity.VerifyWorkload(chain, s.anchors, now)
}
