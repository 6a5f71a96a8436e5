package agent

import (
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestPathWatch(t *testing.T) {
	type step struct {
		after       time.Duration // since the first check
		received    uint64
		opened      uint32
		retransmits int
		ping, dead  bool
	}
	const s = time.Second
	cases := map[string]struct {
		why   string
		steps []step
	}{
		"bytes come": {"the path works", []step{{0, 1, 1, 0, false, false}, {3 * s, 2, 1, 0, false, false}, {6 * s, 3, 1, 3, false, false}}},
		"answered": {"the application is slow", []step{
			{0, 1, 1, 0, false, false}, {1 * s, 1, 1, 0, false, false}, {2 * s, 1, 1, 0, true, false}, {3 * s, 2, 1, 0, false, false},
			{6 * s, 2, 1, 0, false, false}, {7 * s, 2, 1, 0, true, false}, {8 * s, 3, 1, 0, false, false}, {15 * s, 3, 1, 0, false, false}, {16 * s, 3, 1, 0, true, false},
		}},
		"another request": {"it must not wait for as long as the one before", []step{
			{0, 1, 1, 0, false, false}, {2 * s, 1, 1, 0, true, false}, {3 * s, 2, 1, 0, false, false}, {4 * s, 2, 2, 0, false, false}, {5 * s, 2, 2, 0, true, false},
		}},
		"dead": {"nothing comes, and nothing is acknowledged", []step{
			{0, 1, 1, 0, false, false}, {2 * s, 1, 1, 0, true, false}, {4 * s, 1, 1, 3, false, false}, {5 * s, 1, 1, 4, false, true}, {6 * s, 1, 1, 5, false, false},
		}},
		"acknowledged": {"the far agent is slow, and its kernel acknowledges the PING", []step{
			{0, 1, 1, 0, false, false}, {2 * s, 1, 1, 0, true, false}, {9 * s, 1, 1, 0, false, false}, {60 * s, 1, 1, 0, false, false},
		}},
		"one loss": {"a lost packet is sent again", []step{
			{0, 1, 1, 0, false, false}, {2 * s, 1, 1, 0, true, false}, {5 * s, 1, 1, 1, false, false}, {6 * s, 2, 1, 0, false, false},
		}},
		"works again": {"and dies again", []step{
			{0, 1, 1, 0, false, false}, {2 * s, 1, 1, 0, true, false}, {5 * s, 1, 1, 4, false, true}, {9 * s, 2, 1, 0, false, false},
			{13 * s, 2, 1, 0, true, false}, {16 * s, 2, 1, 2, false, true},
		}},
	}
	start := time.Now()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var w pathWatch
			for _, st := range tc.steps {
				ping, dead := w.check(start.Add(st.after), transport.PathState{Received: st.received, Retransmits: st.retransmits}, st.opened)
				if ping != st.ping || dead != st.dead {
					t.Errorf("%s: after %v: ping %v, dead %v, want %v, %v", tc.why, st.after, ping, dead, st.ping, st.dead)
				}
			}
		})
	}
}

// TestRequestsLeaveDeadPath: a request that waits on a network path that lost its packets
// is sent again on another path if it is safe to repeat. A stream that has begun, and a
// POST, wait for the path.
func TestRequestsLeaveDeadPath(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		release := make(chan struct{})
		w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				select {
				case <-release:
				case <-r.Context().Done():
				}
				return
			}
			serveEvents(rw, r)
		}))
		path := w.newGatewayPath()
		w.setGateways(path.address)
		events := w.openEvents(alice, h2)
		c := w.client(alice, h2)
		responses := make(chan error, 2)
		for _, method := range []string{"GET", "POST"} {
			req := must(http.NewRequest(method, "http://bar-east/wait", nil))(t)
			go func() {
				resp, err := c.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				responses <- err
			}()
		}
		requests := func() int {
			n := 0
			for _, s := range w.west.requests.all() {
				open, _ := s.mux.Streams()
				n += open
			}
			return n
		}
		eventually(t, "all requests are on their way", func() bool { return requests() == 3 && w.dials.Load() >= 1 })
		old := w.busySession()
		if n := old.mux.Load(); n != 3 {
			t.Fatalf("%d of 3 requests are on one session", n)
		}
		path.blackhole(t)
		w.setGateways(path.address, w.peers.Addr().String())
		now := time.Now()
		w.west.checkPath(old, now)
		w.west.checkPath(old, now.Add(firstSilence))
		eventually(t, "the PING was sent again", func() bool {
			state, err := transport.Path(old.raw.Conn.(*net.TCPConn))
			return err == nil && state.Retransmits >= 2
		})
		w.west.checkPath(old, now.Add(firstSilence+pingTimeout))
		if !old.retired.Load() {
			t.Error("the session on the dead path takes new requests")
		}
		if n, _ := old.mux.Streams(); n != 2 {
			t.Errorf("%d requests wait on the dead path, want the stream and the POST", n)
		}
		close(release)
		if err := <-responses; err != nil {
			t.Errorf("the GET: %v", err)
		}
		old.raw.Reset()
		if line, err := events.lines.ReadString('\n'); err == nil {
			t.Errorf("the stream has %q", line)
		}
		<-responses
	})
}

// TestAffinityWaitsBriefly: a request does not wait for the endpoint that its caller has
// used before for as long as a session may take, if another endpoint has a session.
func TestAffinityWaitsBriefly(t *testing.T) {
	w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, _ *http.Request) {}))
	silent := listen(t, "127.0.0.1") // its kernel accepts, and no agent answers
	t.Cleanup(func() { silent.Close() })
	w.gatewayView = maps.Clone(w.gatewayView)
	upstream := proto.Clone(w.gatewayView["upstream/agent/node"]).(*wire.Resource)
	upstream.GetUpstream().Name, upstream.GetUpstream().Address = "agent/silent", silent.Addr().String()
	w.gatewayView["upstream/agent/silent"] = upstream
	w.setAffinity(time.Hour)
	w.learnClientFirst()
	c := w.client(alice, true)
	get := func() {
		t.Helper()
		resp, err := c.Get("http://bar-east/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
	get()
	w.change(&w.gatewayView, "route/1024", func(r *wire.Resource) {
		r.GetRoute().Endpoints = append(r.GetRoute().Endpoints, &wire.Endpoint{Id: []byte("silent 2"), PodUid: "bar-1", Upstream: "agent/silent"})
	})
	answers, quiet := route.EndpointID([]byte("endpoint")), route.EndpointID([]byte("silent 2"))
	to := remotePort{"link-to-east", "shop", "bar", 80}
	w.west.endpointCache.recordAnswer(account{"shop", "alice"}, to, tunnel.Answer{
		Endpoint: answers, Ready: []route.EndpointID{answers, quiet}, ReadyCount: 2, Generation: 9}, "")
	eventually(t, "the balancer knows both endpoints", func() bool {
		get()
		return w.west.knows(quiet)
	})
	w.west.endpointCache.recordVisit("alice-0", to, quiet)
	start := time.Now()
	get()
	if waited := time.Since(start); waited < affinityWait/2 || waited > affinityWait+2*time.Second {
		t.Errorf("the request waited for %v, want %v", waited, affinityWait)
	}
}

// knows reports whether a balancer of requests knows an endpoint.
func (a *Agent) knows(id route.EndpointID) bool {
	a.requests.mu.Lock()
	defer a.requests.mu.Unlock()
	for _, g := range a.requests.groups {
		g.mu.Lock()
		known := slices.Contains(g.known, id)
		g.mu.Unlock()
		if known {
			return true
		}
	}
	return false
}

// TestRequestsLeaveDeadPathByRoute: the policy of the route decides which requests leave a
// dead path, and not that of the backend, whose session other requests use as well.
func TestRequestsLeaveDeadPathByRoute(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		arrived, release := make(chan string, 10), make(chan struct{})
		w := newRoutedHarness(t, func(_ http.ResponseWriter, r *http.Request) {
			arrived <- r.URL.Path
			select {
			case <-release:
			case <-r.Context().Done():
			}
		})
		w.edit(&w.westView, "frontend/shop/bar-v2", func(r *wire.Resource) {
			backendOf(r).Settings = &wire.TrafficSettings{Retries: proto.Uint32(0)}
		})
		w.push()
		rule := func(backend string, attempts uint32) *wire.RouteRule {
			r := ruleTo(backendTo(backend, 1))
			r.Retry = &wire.RouteRetry{Attempts: proto.Uint32(attempts)}
			return r
		}
		again := &wire.RouteMatch{Path: &wire.RouteMatch_PathPrefix{PathPrefix: "/again"}}
		w.setRoutes(routesOf([]*wire.RouteMatch{again, {}}, rule("bar-v2", 1), rule("bar-v1", 0)))
		c := w.client(alice, h2)
		var done sync.WaitGroup
		for _, path := range []string{"/again", "/waits"} {
			done.Go(func() {
				resp, err := c.Get("http://bar-east" + path)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("%s: status %d, %v", path, resp.StatusCode, resp.Header)
				}
			})
		}
		next := func() string {
			select {
			case path := <-arrived:
				return path
			case <-time.After(testTimeout):
				return "nothing"
			}
		}
		first, second := next(), next()
		if first == second {
			t.Errorf("the application received %s twice", first)
		}
		failUnanswered := func() {
			for _, s := range w.west.requests.all() {
				s.mux.FailUnanswered(errPathDead)
			}
		}
		failUnanswered()
		if path := next(); path != "/again" {
			t.Errorf("the application received %s again", path)
		}
		failUnanswered() // no try is left
		close(release)
		done.Wait()
		if len(arrived) > 0 {
			t.Errorf("the application received %s again", <-arrived)
		}
	})
}
