package agent

import (
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// An ejected endpoint gets requests again once it answers, even if its session has ended
// in the meantime.
func TestEjectedEndpointWithoutSessionIsUsedAgain(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		var broken atomic.Bool
		w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "bar-0") }))
		w.addSecondEndpointThat(serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			if broken.Load() {
				panic(http.ErrAbortHandler)
			}
			io.WriteString(rw, "bar-1")
		}))
		c, second := w.client(alice, h2), route.EndpointID([]byte("the next"))
		sessions := func() (with []*requestSession) {
			return slices.DeleteFunc(w.west.requests.all(), func(s *requestSession) bool { return s.endpoint != second })
		}
		eventually(t, "requests reach both", func() bool { return slices.Equal(reached(t, c, 30), both) })
		broken.Store(true)
		eventually(t, "one is ejected", func() bool { reached(t, c, 5); return w.west.hasEjected(second) })
		for _, s := range sessions() {
			s.retire()
		}
		eventually(t, "its session has ended", func() bool { return len(sessions()) == 0 })
		broken.Store(false)
		eventually(t, "requests reach both again", func() bool { return slices.Equal(reached(t, c, 10), both) })
	})
}

// hasEjected reports whether a balancer that knows an endpoint has ejected it.
func (a *Agent) hasEjected(id route.EndpointID) bool {
	a.requests.mu.Lock()
	defer a.requests.mu.Unlock()
	for _, g := range a.requests.groups {
		g.mu.Lock()
		known := slices.Contains(g.known, id)
		g.mu.Unlock()
		if known && !g.balancer.TakesPart(id) {
			return true
		}
	}
	return false
}
