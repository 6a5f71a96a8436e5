package agent

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/balance"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
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

// serveStatus returns a handler that answers with a name. Once broken is set, it answers
// with a status. A status below 100 is a gRPC status in trailers, after a message.
func serveStatus(name string, status int, broken *atomic.Bool) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		grpc := strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
		rw.Header().Set("X-Pod", name)
		code := 0
		switch {
		case broken.Load() && status >= 100:
			rw.WriteHeader(status)
			return
		case broken.Load():
			code = status
		}
		if grpc {
			rw.Header().Set("Content-Type", "application/grpc")
			rw.Header().Set(http.TrailerPrefix+"Grpc-Status", fmt.Sprint(code))
		}
		io.WriteString(rw, "a message")
	}
}

// TestErrorStatusesEject: an endpoint whose application answers with gateway errors is
// ejected. Other statuses that the Service wants to be retried eject it, too. A request
// counts even if the policy does not send it again.
func TestErrorStatusesEject(t *testing.T) {
	for name, tc := range map[string]struct {
		method  string
		grpc    bool
		status  int
		retryOn trafficsettings.RetryOn
		want    bool
	}{
		"503":                   {"GET", false, 503, 0, true},
		"502 to POST":           {"POST", false, 502, 0, true},
		"500":                   {"GET", false, 500, 0, false},
		"500 to POST, retry-on": {"POST", false, 500, trafficsettings.Retry5xx, true},
		"UNAVAILABLE":           {"POST", true, 14, 0, true},
		"INTERNAL":              {"POST", true, 13, 0, false},
		"NOT_FOUND":             {"POST", true, 5, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			var broken, works atomic.Bool
			w := newHarness(t, serveHTTP(serveStatus("bar-0", 0, &works)))
			w.addSecondEndpointThat(serveHTTP(serveStatus("bar-1", tc.status, &broken)))
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				backendOf(r).Settings = &wire.TrafficSettings{RetryOn: uint32(tc.retryOn)}
			})
			c := w.client(alice, true)
			request := func() string {
				req, _ := http.NewRequest(tc.method, "http://bar-east/", nil)
				if tc.grpc {
					req.Header.Set("Content-Type", "application/grpc")
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				io.Copy(io.Discard, resp.Body)
				return resp.Header.Get("X-Pod")
			}
			spread := func(n int) map[string]int {
				got := map[string]int{}
				for range n {
					got[request()]++
				}
				return got
			}
			eventually(t, "requests reach both", func() bool { return len(spread(10)) == 2 })
			broken.Store(true)
			if tc.want {
				eventually(t, "one is ejected", func() bool { request(); return w.west.hasEjected(route.EndpointID([]byte("the next"))) })
				return
			}
			if got := spread(60); len(got) != 2 || w.west.hasEjected(route.EndpointID([]byte("the next"))) {
				t.Errorf("got %v, want requests at both, and none ejected", got)
			}
		})
	}
}

// TestOutcomeOfCopy: an error in response to a copy neither ejects its endpoint nor makes it
// look fast nor ends its ejection.
func TestOutcomeOfCopy(t *testing.T) {
	for name, tc := range map[string]struct {
		trial  bool
		status int
		grpc   uint32
		err    error
		want   balance.Outcome
	}{
		"200":               {status: 200, want: balance.Success},
		"trial, 200":        {trial: true, status: 200, want: balance.Success},
		"404":               {status: 404, want: balance.Success},
		"503":               {status: 503, want: balance.ServerError},
		"500":               {status: 500, want: balance.ServerError},
		"trial, 503":        {trial: true, status: 503, want: balance.Neutral},
		"UNAVAILABLE":       {status: 200, grpc: 14, want: balance.ServerError},
		"NOT_FOUND":         {status: 200, grpc: 5, want: balance.Success},
		"no response":       {err: io.EOF, want: balance.Neutral},
		"a response is cut": {status: 200, err: io.EOF, want: balance.Neutral},
	} {
		if got := outcomeOfCopy(balance.Choice{Trial: tc.trial}, tc.status, tc.grpc, tc.err); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
