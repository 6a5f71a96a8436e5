package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Routes in the world of harness: bar-east, bar-v1 and bar-v2 are mirrors of one Service of
// the peer. A filter of each backend tells the application the mirror.

const vipV1, vipV2 = "127.78.0.3", "127.78.0.4"

// addMirror adds a mirror of the same Service as bar-east.
func (w *harness) addMirror(name, vip string) {
	w.Helper()
	w.mu.Lock()
	r := proto.Clone(w.westView["frontend/shop/bar-east"]).(*wire.Resource)
	w.mu.Unlock()
	r.Key = ""
	f := r.GetFrontend()
	f.Name, f.Vips, f.Ports[0].Routes = name, []string{vip}, nil
	w.add(r)
}

func (w *harness) add(r *wire.Resource) {
	w.Helper()
	more := w.view(r)
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.westView
	merged := make(map[string]*wire.Resource, len(all)+1)
	for k, v := range all {
		merged[k] = v
	}
	for k, v := range more {
		merged[k] = v
	}
	w.westView = merged
}

// setRoutes gives the port of bar-east rules for callers of every namespace.
func (w *harness) setRoutes(routes ...*wire.RouteRules) {
	w.Helper()
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { r.GetFrontend().Ports[0].Routes = routes })
}

// backendTo is a backend that marks its requests with the name of its mirror.
func backendTo(name string, weight uint32, filters ...*wire.RouteFilter) *wire.RouteBackend {
	return &wire.RouteBackend{Namespace: "shop", Name: name, Weight: weight, Filters: append(filters, &wire.RouteFilter{
		Filter: &wire.RouteFilter_RequestHeaders{RequestHeaders: &wire.HeaderModifier{Set: []*wire.HeaderField{{Name: "X-Backend", Value: name}}}}})}
}

func ruleTo(backends ...*wire.RouteBackend) *wire.RouteRule {
	return &wire.RouteRule{Route: "HTTPRoute/shop/bar", Backends: backends}
}

// routesOf are rules, each of which has one match of the same index.
func routesOf(matches []*wire.RouteMatch, rules ...*wire.RouteRule) *wire.RouteRules {
	for i, m := range matches {
		m.Rule = uint32(i)
	}
	return &wire.RouteRules{Matches: matches, Rules: rules}
}

func newRoutedHarness(t testing.TB, h http.HandlerFunc) *harness {
	w := newHarness(t, serveHTTP(h))
	w.addMirror("bar-v1", vipV1)
	w.addMirror("bar-v2", vipV2)
	w.push()
	return w
}

// describe answers with what a routed request looks like at the application.
func describe(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	rw.Header().Set("X-Original", "yes")
	fmt.Fprintf(rw, "%s %s %s %s", r.Header.Get("X-Backend"), r.Host, r.RequestURI, body)
}

// groupUsers returns how many connections hold groups of an agent.
func groupUsers(a *Agent) (n int) {
	a.requests.mu.Lock()
	defer a.requests.mu.Unlock()
	for _, group := range a.requests.groups {
		n += group.users
	}
	return n
}

func doRequest(t testing.TB, c *http.Client, method, url, body string, fields ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Add(fields[i], fields[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, string(b)
}

func TestRoutes(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newRoutedHarness(t, describe)
		redirect := &wire.RouteFilter{Filter: &wire.RouteFilter_Redirect{Redirect: &wire.RequestRedirect{
			Scheme: "https", Hostname: "other.example", Status: 301, Path: &wire.PathModifier{Modifier: &wire.PathModifier_Prefix{Prefix: "/new"}}}}}
		rewrite := &wire.RouteFilter{Filter: &wire.RouteFilter_Rewrite{Rewrite: &wire.URLRewrite{
			Hostname: "rewritten", Path: &wire.PathModifier{Modifier: &wire.PathModifier_Prefix{Prefix: "/"}}}}}
		fields := &wire.RouteFilter{Filter: &wire.RouteFilter_ResponseHeaders{ResponseHeaders: &wire.HeaderModifier{
			Set: []*wire.HeaderField{{Name: "X-Set", Value: "a"}}, Remove: []string{"X-Original"}}}}
		prefix := func(path string) *wire.RouteMatch {
			return &wire.RouteMatch{Path: &wire.RouteMatch_PathPrefix{PathPrefix: path}}
		}
		version := prefix("")
		version.Headers = []*wire.ValueMatch{{Name: "version", Match: &wire.ValueMatch_Exact{Exact: "two"}}}
		redirected, rewritten := ruleTo(), ruleTo(backendTo("bar-v1", 1))
		redirected.Filters = []*wire.RouteFilter{redirect}
		rewritten.Filters = []*wire.RouteFilter{rewrite, fields}
		w.setRoutes(routesOf([]*wire.RouteMatch{prefix("/old"), prefix("/rewrite"), prefix("/invalid"), prefix("/none"), version, prefix("/plain")},
			redirected, rewritten, ruleTo(&wire.RouteBackend{Weight: 1}), ruleTo(backendTo("missing", 1)), ruleTo(backendTo("bar-v2", 1)),
			ruleTo(backendTo("bar-v1", 1))))
		c := w.client(alice, h2)
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, tc := range []struct {
			path   string
			fields []string
			status int
			body   string
			error  string // of Proxy-Status
		}{
			{path: "/plain/a%2Db?c", status: 200, body: "bar-v1 bar-east /plain/a%2Db?c hello"},
			{path: "/x", fields: []string{"Version", "two"}, status: 200, body: "bar-v2 bar-east /x hello"},
			{path: "/old/a?b", status: 301},
			{path: "/rewrite/a?b", status: 200, body: "bar-v1 rewritten /a?b hello"},
			{path: "/invalid", status: 500, error: "proxy_configuration_error"},
			{path: "/none", status: 500, error: "proxy_configuration_error"},
			{path: "/other", status: 404, error: "destination_not_found"},
		} {
			resp, body := doRequest(t, c, "POST", "http://bar-east"+tc.path, "hello", tc.fields...)
			if resp.StatusCode != tc.status || tc.body != "" && body != tc.body {
				t.Errorf("%s: status %d, %q, want %d, %q", tc.path, resp.StatusCode, body, tc.status, tc.body)
			}
			if status := resp.Header.Get("Proxy-Status"); (tc.error == "") != (status == "") || !strings.Contains(status, tc.error) {
				t.Errorf("%s: Proxy-Status %q, want the error %q", tc.path, status, tc.error)
			}
			if location := resp.Header.Get("Location"); tc.status == 301 && location != "https://other.example/new/a?b" {
				t.Errorf("Location %q", location)
			}
			if tc.path == "/rewrite/a?b" && (resp.Header.Get("X-Set") != "a" || resp.Header.Get("X-Original") != "") {
				t.Errorf("the response has %v", resp.Header)
			}
		}
		resp, _ := doRequest(t, c, "POST", "http://bar-east/other", "", "Content-Type", "application/grpc")
		if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "12" {
			t.Errorf("gRPC that no rule matches: status %d, %v", resp.StatusCode, resp.Header)
		}
		w.setRoutes() // a change applies to the next request of a connection
		if _, body := doRequest(t, c, "GET", "http://bar-east/other", ""); body != " bar-east /other " {
			t.Errorf("without routes: %q", body)
		}
	})
}

// The controller has not read the routes, and this agent knows none: no request may bypass
// a route that there may be.
func TestUnreadRoutes(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newRoutedHarness(t, describe)
		unread := func(routes ...*wire.RouteRules) {
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				p := r.GetFrontend().Ports[0]
				p.Routes, p.UnreadRouteKinds = routes, []string{"GRPCRoute"}
			})
		}
		c := w.client(alice, h2)
		expect := func(why string, status int, proxyStatus string) {
			t.Helper()
			resp, _ := doRequest(t, c, "GET", "http://bar-east/", "")
			if got := resp.Header.Get("Proxy-Status"); resp.StatusCode != status || !strings.Contains(got, proxyStatus) {
				t.Errorf("%s: status %d, Proxy-Status %q, want %d, %q", why, resp.StatusCode, got, status, proxyStatus)
			}
		}
		expect("no routes", 200, "")
		unread()
		expect("the kind is unread", 503, "routes_unread")
		resp, _ := doRequest(t, c, "POST", "http://bar-east/", "", "Content-Type", "application/grpc")
		if resp.StatusCode != 200 || resp.Header.Get("Grpc-Status") != "14" {
			t.Errorf("gRPC: status %d, %v", resp.StatusCode, resp.Header)
		}
		rules := routesOf([]*wire.RouteMatch{{}}, ruleTo(backendTo("bar-v1", 1)))
		unread(rules)
		expect("there are rules of another kind", 200, "")
		rules = proto.CloneOf(rules)
		rules.CallerNamespace = "elsewhere"
		unread(rules)
		expect("the rules of another kind are for other callers", 503, "routes_unread")
		w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
			r.GetFrontend().Ports[0].UnreadRouteKinds = []string{"ReferenceGrant"}
		})
		expect("grants are unread, but all routes are known", 200, "")
	})
}

// TestRouteWeights: the requests of one connection are divided by weight, and go to the
// sessions of their own mirror.
func TestRouteWeights(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newRoutedHarness(t, describe)
		w.setRoutes(routesOf([]*wire.RouteMatch{{}}, ruleTo(backendTo("bar-v1", 90), backendTo("bar-v2", 10), backendTo("bar-east", 0))))
		c := w.client(alice, h2)
		counts := map[string]int{}
		const n = 500
		for range n {
			_, body := doRequest(t, c, "GET", "http://bar-east/", "")
			name, _, _ := strings.Cut(body, " ")
			counts[name]++
		}
		if v2 := counts["bar-v2"]; counts["bar-v1"]+v2 != n || v2 < n/25 || v2 > n/5 {
			t.Errorf("%v of %d requests, want a tenth for bar-v2", counts, n)
		}
		keys := map[string]bool{}
		for _, s := range w.west.requests.all() {
			keys[s.outbound.vip.String()] = true
		}
		if diff := cmp.Diff(map[string]bool{vipV1: true, vipV2: true}, keys); diff != "" {
			t.Errorf("sessions of virtual IPs (-want +got):\n%s", diff)
		}
		if n := groupUsers(w.west); n != 3 {
			t.Errorf("%d groups are held by one connection, want its own and two of the route", n)
		}
		w.west.requests.forget(time.Now().Add(time.Hour))
		c.CloseIdleConnections()
		eventually(t, "the groups are released", func() bool { return groupUsers(w.west) == 0 })
	})
}

// TestRouteMovesUnderLoad: no request fails while a route moves from one mirror to another.
func TestRouteMovesUnderLoad(t *testing.T) {
	w := newRoutedHarness(t, describe)
	move := func(v1, v2 uint32) {
		w.setRoutes(routesOf([]*wire.RouteMatch{{}}, ruleTo(backendTo("bar-v1", v1), backendTo("bar-v2", v2))))
	}
	move(1, 0)
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for i := range 4 {
		c := w.client(alice, i%2 == 0)
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := c.Get("http://bar-east/")
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
				}
			}
		})
	}
	c := w.client(alice, false)
	for step := range uint32(5) {
		move(4-step, step)
		for range 20 {
			if resp, _ := doRequest(t, c, "GET", "http://bar-east/", ""); resp.StatusCode != 200 {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
	}
	close(stop)
	callers.Wait()
	if _, body := doRequest(t, c, "GET", "http://bar-east/", ""); !strings.HasPrefix(body, "bar-v2 ") {
		t.Errorf("after the move: %q", body)
	}
}

// TestRouteTimeoutAndRetry: a route's timeouts and retries replace those of the backend.
// Filters apply once, however often a request is tried.
func TestRouteTimeoutAndRetry(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		var mu sync.Mutex
		var tries [][]string
		w := newRoutedHarness(t, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				<-r.Context().Done()
				return
			}
			mu.Lock()
			defer mu.Unlock()
			tries = append(tries, r.Header["X-Add"])
			if len(tries) < 3 {
				rw.WriteHeader(http.StatusTooManyRequests)
			}
		})
		fields := &wire.HeaderModifier{Add: []*wire.HeaderField{{Name: "X-Add", Value: "1"}}}
		rule := ruleTo(backendTo("bar-v1", 1))
		slow := ruleTo(backendTo("bar-v1", 1))
		slow.TimeoutMs, slow.PerTryTimeoutMs = proto.Uint32(200), proto.Uint32(100)
		rule.Retry = &wire.RouteRetry{Attempts: proto.Uint32(2), Codes: []uint32{429}, BackoffMs: 1}
		rule.Filters = []*wire.RouteFilter{
			{Filter: &wire.RouteFilter_RequestHeaders{RequestHeaders: fields}},
			{Filter: &wire.RouteFilter_ResponseHeaders{ResponseHeaders: fields}},
		}
		w.setRoutes(routesOf([]*wire.RouteMatch{{Path: &wire.RouteMatch_PathExact{PathExact: "/slow"}}, {}}, slow, rule))
		c := w.client(alice, h2)
		resp, _ := doRequest(t, c, "POST", "http://bar-east/", "hello")
		mu.Lock()
		got := tries
		mu.Unlock()
		if diff := cmp.Diff([][]string{{"1"}, {"1"}, {"1"}}, got); diff != "" || resp.StatusCode != 200 {
			t.Errorf("status %d, tries (-want +got):\n%s", resp.StatusCode, diff)
		}
		if diff := cmp.Diff([]string{"1"}, resp.Header["X-Add"]); diff != "" {
			t.Errorf("the response (-want +got):\n%s", diff)
		}
		if resp, _ := doRequest(t, c, "POST", "http://bar-east/slow", ""); resp.StatusCode != 504 {
			t.Errorf("status %d of a request that exceeds its timeout", resp.StatusCode)
		}
	})
}

// TestRouteCopies: a copy has the whole body, and its fate does not concern the original.
func TestRouteCopies(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		copied := make(chan string, 10)
		w := newRoutedHarness(t, func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Backend") != "" {
				describe(rw, r)
				return
			}
			body, err := io.ReadAll(r.Body)
			copied <- fmt.Sprintf("%s %s %d %v", r.Method, r.RequestURI, len(body), err)
			rw.WriteHeader(http.StatusInternalServerError)
		})
		mirror := func(name string) *wire.RouteFilter {
			return &wire.RouteFilter{Filter: &wire.RouteFilter_Mirror{Mirror: &wire.RequestMirror{
				Namespace: "shop", Name: name, Numerator: 1, Denominator: 1}}}
		}
		rule := ruleTo(&wire.RouteBackend{Namespace: "shop", Name: "bar-v1", Weight: 1})
		rule.Filters = []*wire.RouteFilter{mirror("bar-v2"), mirror("missing")}
		w.setRoutes(routesOf([]*wire.RouteMatch{{}}, rule))
		c := w.client(alice, h2)
		for _, size := range []int{0, 5, maxCopiedBody} {
			resp, _ := doRequest(t, c, "POST", "http://bar-east/a", strings.Repeat("x", size))
			want := fmt.Sprintf("POST /a %d <nil>", size)
			for range 2 { // the original and its copy look alike
				select {
				case got := <-copied:
					if got != want {
						t.Errorf("the application received %q, want %q", got, want)
					}
				case <-time.After(testTimeout):
					t.Fatalf("no copy of a request of %d bytes", size)
				}
			}
			if resp.StatusCode != 500 {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		doRequest(t, c, "POST", "http://bar-east/a", strings.Repeat("x", maxCopiedBody+1))
		<-copied
		outcomes := func(outcome string) float64 {
			return testutil.ToFloat64(w.west.metrics.mirrored.WithLabelValues(outcome))
		}
		eventually(t, "copies are counted", func() bool {
			return outcomes(copyAnswered) == 3 && outcomes(copyTooLarge) == 1 && outcomes(copyFailed) == 4
		})
		eventually(t, "memory is released", func() bool { return w.west.shares.windows.Used() == 0 && w.west.copies.Load() == 0 })
	})
}

// TestFiltersOfRouteCopies: the filters of the rule change copies, and those of the backend
// only what it gets.
func TestFiltersOfRouteCopies(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		received := make(chan string, 2)
		w := newRoutedHarness(t, func(rw http.ResponseWriter, r *http.Request) {
			received <- fmt.Sprintf("%s %s %s", r.Host, r.RequestURI, r.Header.Values("X-Filter"))
		})
		rewrite := func(w *wire.URLRewrite) *wire.RouteFilter {
			return &wire.RouteFilter{Filter: &wire.RouteFilter_Rewrite{Rewrite: w}}
		}
		add := func(value string) *wire.RouteFilter {
			return &wire.RouteFilter{Filter: &wire.RouteFilter_RequestHeaders{RequestHeaders: &wire.HeaderModifier{
				Add: []*wire.HeaderField{{Name: "X-Filter", Value: value}}}}}
		}
		rule := ruleTo(&wire.RouteBackend{Namespace: "shop", Name: "bar-v1", Weight: 1, Filters: []*wire.RouteFilter{
			add("backend"), rewrite(&wire.URLRewrite{Hostname: "backend"})}})
		rule.Filters = []*wire.RouteFilter{
			add("rule"), rewrite(&wire.URLRewrite{Path: &wire.PathModifier{Modifier: &wire.PathModifier_Full{Full: "/new"}}}),
			{Filter: &wire.RouteFilter_Mirror{Mirror: &wire.RequestMirror{Namespace: "shop", Name: "bar-v2", Numerator: 1, Denominator: 1}}},
		}
		w.setRoutes(routesOf([]*wire.RouteMatch{{}}, rule))
		doRequest(t, w.client(alice, h2), "GET", "http://bar-east/old", "")
		var got []string
		for range 2 {
			select {
			case r := <-received:
				got = append(got, r)
			case <-time.After(testTimeout):
				t.Fatalf("the application received only %q", got)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{"backend /new [rule backend]", "bar-east /new [rule]"}, got); diff != "" {
			t.Errorf("the request and its copy (-want +got):\n%s", diff)
		}
	})
}

// TestRouteCopiesOfOneRequest: the filters of a rule and of its backend ask for more copies
// than a request can have. Those that are not sent are counted.
func TestRouteCopiesOfOneRequest(t *testing.T) {
	w := newRoutedHarness(t, describe)
	filters := slices.Repeat([]*wire.RouteFilter{{Filter: &wire.RouteFilter_Mirror{Mirror: &wire.RequestMirror{
		Namespace: "shop", Name: "bar-v2", Numerator: 1, Denominator: 1}}}}, maxCopiesOfRequest)
	rule := ruleTo(&wire.RouteBackend{Namespace: "shop", Name: "bar-v1", Weight: 1, Filters: filters[:3]})
	rule.Filters = filters
	w.setRoutes(routesOf([]*wire.RouteMatch{{}}, rule))
	doRequest(t, w.client(alice, false), "GET", "http://bar-east/a", "")
	outcomes := func(outcome string) float64 {
		return testutil.ToFloat64(w.west.metrics.mirrored.WithLabelValues(outcome))
	}
	eventually(t, "copies are counted", func() bool {
		return outcomes(copyAnswered) == maxCopiesOfRequest && outcomes(copyOverBudget) == 3
	})
}

// TestConsumerRoutes: routes for a namespace are for its callers alone.
func TestConsumerRoutes(t *testing.T) {
	w := newRoutedHarness(t, describe)
	other := routesOf([]*wire.RouteMatch{{}}, ruleTo(backendTo("bar-v2", 1)))
	other.CallerNamespace = "elsewhere"
	own := routesOf([]*wire.RouteMatch{{}}, ruleTo(backendTo("bar-v1", 1)))
	own.CallerNamespace = "shop"
	c := w.client(alice, false)
	w.setRoutes(other)
	if _, body := doRequest(t, c, "GET", "http://bar-east/", ""); body != " bar-east / " {
		t.Errorf("a caller of a namespace without routes: %q", body)
	}
	w.setRoutes(other, own)
	if _, body := doRequest(t, c, "GET", "http://bar-east/", ""); body != "bar-v1 bar-east / " {
		t.Errorf("a caller of a namespace with routes: %q", body)
	}
}

// TestRouteChecks: a request is checked by the rules of the Link of its backend.
func TestRouteChecks(t *testing.T) {
	w := newRoutedHarness(t, describe)
	w.mu.Lock()
	link := proto.Clone(w.westView["link/east"]).(*wire.Resource)
	w.mu.Unlock()
	link.Key, link.GetLink().Name, link.GetLink().Suspended = "", "suspended", true
	link.GetLink().Uid, link.GetLink().TrustDomain, link.GetLink().Issuers = "link-suspended", "north-3", nil
	w.add(link)
	w.edit(&w.westView, "frontend/shop/bar-v2", func(r *wire.Resource) {
		backendOf(r).Link, backendOf(r).Identities = "suspended", []string{"spiffe://north-3/ns/shop/sa/bar"}
	})
	w.push()
	w.setRoutes(routesOf([]*wire.RouteMatch{
		{Path: &wire.RouteMatch_PathPrefix{PathPrefix: "/v1"}}, {}}, ruleTo(backendTo("bar-v1", 1)), ruleTo(backendTo("bar-v2", 1))))
	c := w.client(alice, false)
	if resp, _ := doRequest(t, c, "GET", "http://bar-east/v1", ""); resp.StatusCode != 200 {
		t.Errorf("status %d of a request to a Link that works", resp.StatusCode)
	}
	if resp, _ := doRequest(t, c, "GET", "http://bar-east/v2", ""); resp.StatusCode != 403 || !strings.Contains(resp.Header.Get("Proxy-Status"), "link_suspended") {
		t.Errorf("status %d, %v of a request to a suspended Link", resp.StatusCode, resp.Header)
	}
	// A port with routes serves callers though its own Link is suspended.
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
		backendOf(r).Link, backendOf(r).Identities = "suspended", []string{"spiffe://north-3/ns/shop/sa/bar"}
	})
	if resp, _ := doRequest(t, w.client(alice, true), "GET", "http://bar-east/v1", ""); resp.StatusCode != 200 {
		t.Errorf("status %d of a routed request of a port whose own Link is suspended", resp.StatusCode)
	}
	answer, err := w.call(alice, "\x16opaque")
	wantReset(t, "an opaque connection to a suspended Link", err)
	if answer != "" {
		t.Errorf("an opaque connection got %q", answer)
	}
}

// TestRouteOfUpgrade: a connection that is upgraded goes to the backend of its request.
func TestRouteOfUpgrade(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) {
		buf := make([]byte, 1000)
		n, _ := c.Read(buf)
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n%s", buf[:n])
	})
	w.learnClientFirst()
	w.addMirror("bar-v1", vipV1)
	w.setRoutes(routesOf([]*wire.RouteMatch{{Path: &wire.RouteMatch_PathExact{PathExact: "/chat"}}}, ruleTo(backendTo("bar-v1", 1))))
	const rest = " HTTP/1.1\r\nHost: bar-east\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	if answer, err := w.call(alice, "GET /chat"+rest); err != nil || !strings.Contains(answer, "X-Backend: bar-v1\r\n") {
		t.Errorf("%q, %v", answer, err)
	}
	if diff := cmp.Diff([]string{"shop/bar-v1"}, w.logs[0].all("connection forwarded", "mirror")); diff != "" {
		t.Errorf("the mirrors of opaque connections (-want +got):\n%s", diff)
	}
	if answer, err := w.call(alice, "GET /other"+rest); err != nil || !strings.HasPrefix(answer, "HTTP/1.1 404 ") {
		t.Errorf("%q, %v", answer, err)
	}
}

// TestRouteOfLongTarget: the first request of a connection follows the routes however long
// its target is. A request line above 32 KiB is refused.
func TestRouteOfLongTarget(t *testing.T) {
	w := newRoutedHarness(t, func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%s %d", r.Header.Get("X-Backend"), len(r.RequestURI))
	})
	w.learnClientFirst()
	w.setRoutes(routesOf([]*wire.RouteMatch{{Path: &wire.RouteMatch_PathPrefix{PathPrefix: "/a"}}}, ruleTo(backendTo("bar-v1", 1))))
	for kib, want := range map[int]string{9: "200", 31: "200", 33: "414"} {
		for _, parts := range []int{1, 5} {
			c := w.dial(alice)
			defer c.Close()
			request := "GET /a/" + strings.Repeat("b", kib<<10-3) + " HTTP/1.1\r\nHost: bar-east\r\n\r\n"
			for part := range parts {
				io.WriteString(c, request[len(request)*part/parts:len(request)*(part+1)/parts])
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("%d KiB in %d parts: %v", kib, parts, err)
				continue
			}
			body, _ := io.ReadAll(resp.Body)
			if got := strconv.Itoa(resp.StatusCode); got != want || want == "200" && string(body) != fmt.Sprintf("bar-v1 %d", kib<<10) {
				t.Errorf("%d KiB in %d parts: %s %s, want %s", kib, parts, got, body, want)
			}
		}
	}
	if n := refusals(w.west, outbound, reasonMalformed); n != 2 {
		t.Errorf("%v refusals are counted, want 2", n)
	}
}

// TestRouteOfUpgradeCounts: a connection that is upgraded counts at the backend of its
// request, whose owner may limit connections.
func TestRouteOfUpgradeCounts(t *testing.T) {
	const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	w := newHarness(t, func(c *net.TCPConn) {
		if _, err := c.Read(make([]byte, 1000)); err == nil {
			io.WriteString(c, switching)
			io.Copy(c, c)
		}
	})
	w.learnClientFirst()
	w.addMirror("bar-v1", vipV1)
	w.edit(&w.westView, "frontend/shop/bar-v1", func(r *wire.Resource) {
		backendOf(r).Ports[0].Port, backendOf(r).Settings = 81, &wire.TrafficSettings{MaxConnections: 1}
	})
	w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		e := r.GetExport()
		e.Ports = append(e.Ports, &wire.ExportPort{Port: 81})
		e.Pods[0].Targets[81] = e.Pods[0].Targets[80]
	})
	w.push()
	w.setRoutes(routesOf([]*wire.RouteMatch{{}}, ruleTo(backendTo("bar-v1", 1))))
	open := func() (c *net.TCPConn, status string) {
		c = w.dial(alice)
		fmt.Fprint(c, "GET /chat HTTP/1.1\r\nHost: bar-east\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		line := make([]byte, len("HTTP/1.1 101"))
		if _, err := io.ReadFull(c, line); err != nil {
			t.Fatal(err)
		}
		return c, string(line[len("HTTP/1.1 "):])
	}
	counts := func() map[uint32]uint32 {
		out := map[uint32]uint32{}
		circuits := &w.west.connCircuits
		circuits.mu.Lock()
		defer circuits.mu.Unlock()
		for to, n := range circuits.counts {
			out[to.port] = n
		}
		return out
	}
	first, status := open()
	if diff := cmp.Diff(map[uint32]uint32{81: 1}, counts()); diff != "" || status != "101" {
		t.Errorf("status %s, connections by port (-want +got):\n%s", status, diff)
	}
	second, status := open()
	if status != "503" {
		t.Errorf("status %s of a connection beyond the limit", status)
	}
	first.Close()
	second.Close()
	eventually(t, "no connection is counted", func() bool { return len(counts()) == 0 })
	third, status := open()
	if status != "101" {
		t.Errorf("status %s of the next connection", status)
	}
	third.Close()
}

// TestRecordsOfRedirects: a request that a route redirects is no failure in records, and in
// spans neither.
func TestRecordsOfRedirects(t *testing.T) {
	w, spans := newTracedHarness(t, 1, describe)
	rule := ruleTo()
	rule.Filters = []*wire.RouteFilter{{Filter: &wire.RouteFilter_Redirect{Redirect: &wire.RequestRedirect{Hostname: "other.example", Status: 302}}}}
	w.setRoutes(routesOf([]*wire.RouteMatch{{}}, rule))
	west, _ := w.tapBoth()
	c := w.client(alice, false)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if resp, _ := doRequest(t, c, "GET", "http://bar-east/", ""); resp.StatusCode != 302 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if r := nextRecord(t, west); r.Status != 302 || r.Reason != "" || r.Tries != 0 {
		t.Errorf("the record: %s", r)
	}
	clients, _ := spans(c)
	if len(clients) != 1 || clients[0].GetStatus().GetCode() != tracepb.Status_STATUS_CODE_UNSET || spanAttributes(clients[0])["http.response.status_code"] != "302" {
		t.Errorf("the spans: %v", clients)
	}
}

// TestRecordsOfRewrites: records and spans of the caller's node tell what the caller sent,
// those of the application's node what it received.
func TestRecordsOfRewrites(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w, spans := newTracedHarness(t, 1, describe)
		rule := ruleTo(backendTo("bar-east", 1))
		rule.Filters = []*wire.RouteFilter{{Filter: &wire.RouteFilter_Rewrite{Rewrite: &wire.URLRewrite{
			Hostname: "rewritten", Path: &wire.PathModifier{Modifier: &wire.PathModifier_Full{Full: "/new"}}}}}}
		w.setRoutes(routesOf([]*wire.RouteMatch{{}}, rule))
		west, east := w.tapBoth()
		c := w.client(alice, h2)
		if _, body := doRequest(t, c, "GET", "http://bar-east/old?a", ""); body != "bar-east rewritten /new?a " {
			t.Errorf("the application received %q", body)
		}
		if near, far := nextRecord(t, west).Path, nextRecord(t, east).Path; near != "/old" || far != "/new" {
			t.Errorf("records of %s and %s", near, far)
		}
		clients, servers := spans(c)
		if len(clients) != 1 || len(servers) != 1 {
			t.Fatalf("%d client and %d server spans", len(clients), len(servers))
		}
		near, far := spanAttributes(clients[0]), spanAttributes(servers[0])
		if near["url.path"] != "/old" || near["server.address"] != "bar-east" || far["url.path"] != "/new" || far["server.address"] != "rewritten" {
			t.Errorf("spans of %v and %v", near, far)
		}
	})
}

// TestInvalidRoutes: a frontend whose routes are not valid is served, and its requests get
// an error.
func TestInvalidRoutes(t *testing.T) {
	w := newRoutedHarness(t, describe)
	w.setRoutes(routesOf([]*wire.RouteMatch{{Path: &wire.RouteMatch_PathRegex{PathRegex: "("}}}, ruleTo(backendTo("bar-v1", 1))))
	if resp, _ := doRequest(t, w.client(alice, false), "GET", "http://bar-east/", ""); resp.StatusCode != 500 {
		t.Errorf("status %d", resp.StatusCode)
	}
}
