package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/dataplane/tapaccess"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// tapBoth opens a tap at each agent.
func (w *harness) tapBoth() (west, east *reqlog.Tap) {
	west = must(w.west.requestLog.Open(reqlog.Filter{}, reqlog.MaxRate))(w.TB)
	east = must(w.east.requestLog.Open(reqlog.Filter{}, reqlog.MaxRate))(w.TB)
	w.Cleanup(west.Close)
	w.Cleanup(east.Close)
	return west, east
}

// nextRecord waits for the next record of a tap.
func nextRecord(t testing.TB, tap *reqlog.Tap) *reqlog.Record {
	t.Helper()
	select {
	case r := <-tap.Records():
		return r
	case <-time.After(testTimeout):
		t.Fatal("no record")
		return nil
	}
}

// unstable are fields that differ from run to run.
var unstable = cmpopts.IgnoreFields(reqlog.Record{}, "Time", "Duration", "FirstByte", "Endpoint")

// A refused peer can name any Service. Its record concerns a namespace only if the Service
// is that of the pod to which the gateway has led the peer.
func TestRefusedPeerClaimsNoNamespace(t *testing.T) {
	for name, tc := range map[string]struct {
		hello   tunnel.Hello
		claimed bool
	}{
		"a Service of the pod": {barHello, false},
		"another namespace":    {tunnel.Hello{Namespace: "bank", Service: "bar", Port: 80}, true},
		"no such Service":      {tunnel.Hello{Namespace: "shop", Service: "secret", Port: 80}, true},
		"no such port":         {tunnel.Hello{Namespace: "shop", Service: "bar", Port: 81}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, nil)
			w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
				r.GetExport().Policies = []*wire.Policy{{Name: "none", Callers: []*wire.Caller{{Namespace: "elsewhere"}}}}
			})
			_, east := w.tapBoth()
			session, err := w.dialSession(w.newHopClient())
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			if _, err := session.Open(t.Context(), tc.hello, 0, nil); err == nil {
				t.Fatal("the peer was admitted")
			}
			got := nextRecord(t, east)
			named := got.Concerns(tc.hello.Namespace) || got.Concerns("shop")
			if got.Service != tc.hello.Service || got.Claimed != tc.claimed || named == tc.claimed {
				t.Errorf("claimed %v, concerns the namespace: %v, want claimed %v:\n%s", got.Claimed, named, tc.claimed, got)
			}
		})
	}
}

func TestRecordsOfRequests(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			rw.WriteHeader(http.StatusTeapot)
			io.WriteString(rw, "hello")
		}))
		west, east := w.tapBoth()
		const trace = "0af7651916cd43dd8448eb211c80319c"
		req := must(http.NewRequest("POST", "http://bar-east/a%2fb?token=secret", strings.NewReader("abc")))(t)
		req.Header.Set("Traceparent", "00-"+trace+"-b7ad6b7169203331-01")
		resp := must(w.client(alice, h2).Do(req))(t)
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		want := reqlog.Record{
			Kind:          reqlog.KindRequest,
			Direction:     reqlog.Outbound,
			Link:          "east",
			Peer:          "east-12",
			Namespace:     "shop",
			Service:       "bar",
			Port:          80,
			Mirror:        "shop/bar-east",
			Caller:        "spiffe://west-1/ns/shop/sa/alice",
			Workload:      "shop/alice",
			Pod:           "shop/alice-0",
			Protocol:      map[bool]string{false: "http1", true: "http2"}[h2],
			Method:        "POST",
			Path:          "/a%2fb",
			Status:        http.StatusTeapot,
			RequestBytes:  3,
			ResponseBytes: 5,
			Tries:         1,
			TraceID:       trace,
		}
		got := nextRecord(t, west)
		if diff := cmp.Diff(&want, got, unstable); diff != "" {
			t.Errorf("west's record (-want +got):\n%s", diff)
		}
		if got.Duration <= 0 || got.FirstByte <= 0 || got.FirstByte > got.Duration || got.Endpoint != fmt.Sprintf("%x", "endpoint") {
			t.Errorf("west's record %s", got)
		}
		want.Direction, want.Link, want.Peer, want.Mirror = reqlog.Inbound, "west", "west-1", ""
		want.Workload, want.Pod = "shop/bar", "shop/bar-0"
		got = nextRecord(t, east)
		if diff := cmp.Diff(&want, got, unstable); diff != "" {
			t.Errorf("east's record (-want +got):\n%s", diff)
		}
		if got.Duration <= 0 || got.FirstByte <= 0 || got.Endpoint != w.app.Addr().String() {
			t.Errorf("east's record %s", got)
		}
	})
}

// TestRecordsOfDenials: both ends say that a request was denied, and the end that denied
// it says why.
func TestRecordsOfDenials(t *testing.T) {
	w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) {}))
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		r.GetExport().Policies = []*wire.Policy{{Name: "reads", RequestCallers: []*wire.RequestCaller{{
			Caller: &wire.Caller{Link: "west"}, Methods: []string{"GET"}}}}}
	})
	west, east := w.tapBoth()
	resp := must(w.client(alice, false).Post("http://bar-east/", "text/plain", nil))(t)
	resp.Body.Close()
	if r := nextRecord(t, west); r.Status != 403 || r.Method != "POST" {
		t.Errorf("west's record: %s", r)
	}
	if r := nextRecord(t, east); r.Status != 403 || r.Reason != admit.RequestDenied.String() || r.Tries != 0 || r.Endpoint != "" {
		t.Errorf("east's record: %s", r)
	}
}

func TestRecordsOfMalformedRequests(t *testing.T) {
	w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) {}))
	w.learnClientFirst()
	west, _ := w.tapBoth()
	c := must(w.tryDial(alice))(t)
	defer c.Close()
	c.SetDeadline(time.Now().Add(testTimeout))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: bar\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
	if r := nextRecord(t, west); r.Status != 400 || r.Reason != reasonMalformed || r.Mirror != "shop/bar-east" {
		t.Errorf("record: %s", r)
	}
}

func TestRecordsOfConnections(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) {
		b := make([]byte, 4)
		io.ReadFull(c, b)
		io.WriteString(c, "abcde")
	})
	west, east := w.tapBoth()
	c := must(w.tryDial(alice))(t)
	defer c.Close()
	io.WriteString(c, "1234")
	if got := string(must(io.ReadAll(c))(t)); got != "abcde" {
		t.Fatalf("%q", got)
	}
	c.Close()
	for name, tap := range map[string]*reqlog.Tap{"west": west, "east": east} {
		r := nextRecord(t, tap)
		if r.Kind != reqlog.KindConnection || r.Protocol != "tcp" || r.RequestBytes != 4 || r.ResponseBytes != 5 || r.Status != 0 ||
			r.Caller != "spiffe://west-1/ns/shop/sa/alice" || r.Endpoint == "" || r.Duration <= 0 || r.Failed() {
			t.Errorf("%s: %s", name, r)
		}
	}
}

func TestRecordsOfRefusedConnections(t *testing.T) {
	w := newHarness(t, func(*net.TCPConn) { t.Error("the application was dialed") })
	w.change(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways = nil })
	west, _ := w.tapBoth()
	c := must(w.tryDial(alice))(t)
	defer c.Close()
	io.WriteString(c, "\x00\x01")
	if r := nextRecord(t, west); r.Kind != reqlog.KindConnection || r.Reason != reasonNoGateway || !r.Failed() {
		t.Errorf("record: %s", r)
	}
}

// TestIsFailed: it must agree with what the record says, because it decides what is logged
// beyond the sample.
func TestIsFailed(t *testing.T) {
	for _, r := range []httprelay.Result{
		{Status: 200}, {Status: 404}, {Status: 500}, {}, {Status: 200, Err: errCanceled, FromErr: true},
		{Status: 200, HasGRPC: true, GRPCStatus: "0"}, {Status: 200, HasGRPC: true, GRPCStatus: "5"},
		{Status: 200, HasGRPC: true, GRPCStatus: "14"}, {Status: 200, HasGRPC: true, GRPCStatus: "x"},
	} {
		rec := &reqlog.Record{Kind: reqlog.KindRequest}
		setRequest(rec, &message.Head{Method: "POST", Target: "/"}, r, outbound)
		if got := isFailed(r); got != rec.Failed() {
			t.Errorf("%+v: %v, the record says %v", r, got, rec.Failed())
		}
	}
}

// TestAccessLogHasEachRequest: the number of lines is that of the requests.
func TestAccessLogHasEachRequest(t *testing.T) {
	var logs [2]lockedBuffer
	var closers [2]*reqlog.AccessLog
	w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) {}), func(w *harness) {
		for i, a := range []*Agent{w.west, w.east} {
			closers[i] = a.requestLog.StartAccessLog(&logs[i], reqlog.Config{Sample: 1, Query: true})
		}
	})
	c := w.client(alice, false)
	const requests = 200
	for i := range requests {
		resp := must(c.Get(fmt.Sprintf("http://bar-east/%d?q=%d", i, i)))(t)
		resp.Body.Close()
	}
	w.stop() // all records are published once the connections have ended
	c.CloseIdleConnections()
	w.accepting.Wait()
	for i, name := range []string{"west", "east"} {
		seen := map[string]bool{}
		for deadline := time.Now().Add(testTimeout); len(seen) < requests && time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
			clear(seen)
			for line := range strings.Lines(logs[i].String()) {
				l, err := reqlog.ParseLine([]byte(`{"record":` + line + `}`))
				if err != nil || l.Record == nil {
					t.Fatalf("%s: %q: %v", name, line, err)
				}
				seen[l.Record.Path+l.Record.Query] = true
			}
		}
		closers[i].Close()
		if n := strings.Count(logs[i].String(), "\n"); n != requests || len(seen) != requests || !seen["/7q=7"] {
			t.Errorf("%s: %d lines about %d requests, want %d", name, n, len(seen), requests)
		}
	}
}

type lockedBuffer struct {
	mu  sync.Mutex // guards all
	all bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// fakeAccess permits a secret to read about one namespace, or all if namespace is "*".
type fakeAccess struct{ namespace, secret string }

// Verify is of tapAccess. The secret "forged" has no valid signature.
func (f fakeAccess) Verify(namespace, token string) (tapaccess.Claim, error) {
	if token == "forged" {
		return tapaccess.Claim{}, tapaccess.ErrDenied
	}
	return tapaccess.Claim{Namespace: namespace, Tap: token, Own: namespace == ""}, nil
}

// Check is of tapAccess.
func (f fakeAccess) Check(_ context.Context, c tapaccess.Claim) (time.Time, error) {
	switch {
	case c.Tap == "down":
		return time.Time{}, errors.New("the API server is down")
	case f.namespace != "*" && c.Namespace != f.namespace || c.Tap != f.secret:
		return time.Time{}, tapaccess.ErrDenied
	}
	return time.Now().Add(time.Minute), nil
}

// getTap requests a tap.
func getTap(t *testing.T, server *httptest.Server, query, secret string) *http.Response {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+TapPath+"?"+query, nil))(t)
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	resp := must(server.Client().Do(req))(t)
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestTapShowsOneNamespace(t *testing.T) {
	w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) {}))
	server := httptest.NewServer(newTapServer(w.west.requestLog, fakeAccess{"shop", "good"}, slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	for _, tc := range []struct {
		query, secret string
		status        int
	}{
		{"namespace=shop", "", http.StatusUnauthorized},
		{"namespace=shop", "bad", http.StatusForbidden},
		{"namespace=other", "good", http.StatusForbidden},
		{"", "good", http.StatusForbidden},
		{"namespace=shop", "down", http.StatusServiceUnavailable},
		{"namespace=shop&rate=0", "good", http.StatusBadRequest},
	} {
		if resp := getTap(t, server, tc.query, tc.secret); resp.StatusCode != tc.status {
			t.Errorf("%s with secret %q: %s, want %d", tc.query, tc.secret, resp.Status, tc.status)
		}
	}
	resp := getTap(t, server, "namespace=shop&path=/b", "good")
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "{}" { // the tap is open
		t.Fatalf("%s: %q, %v", resp.Status, lines.Text(), lines.Err())
	}
	for _, path := range []string{"/a", "/b"} {
		must(w.client(alice, false).Get("http://bar-east" + path))(t).Body.Close()
	}
	for lines.Scan() {
		l := must(reqlog.ParseLine(lines.Bytes()))(t)
		if l.Record == nil {
			continue
		}
		if l.Record.Path != "/b" {
			t.Errorf("record: %s", l.Record)
		}
		break
	}
	resp.Body.Close() // the tap ends with its reader
	for deadline := time.Now().Add(testTimeout); w.west.requestLog.Wants(true) != 0; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the tap stays open after its reader has gone")
		}
	}
}

func TestTapsOfAnAgentAreBounded(t *testing.T) {
	hub := reqlog.NewHub(prometheus.NewRegistry())
	server := httptest.NewServer(newTapServer(hub, fakeAccess{"", "good"}, slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	refused := 0
	for range reqlog.MaxTaps + tapsBurst {
		resp := getTap(t, server, "", "good")
		if resp.StatusCode == http.StatusTooManyRequests {
			refused++
		} else if resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	if refused != tapsBurst {
		t.Errorf("%d taps are refused, want all but %d", refused, reqlog.MaxTaps)
	}
}

// TestTapEndsWithItsTap: an API server that does not answer cannot keep a tap open.
func TestTapEndsWithItsTap(t *testing.T) {
	down := errors.New("the API server is down")
	for name, tc := range map[string]struct {
		why    string
		answer func(age time.Duration) error // of the API server
		want   time.Duration
	}{
		"expired": {"a Tap is valid for an hour", func(time.Duration) error { return nil }, tapaccess.MaxAge},
		"down": {"it is not confirmed", func(age time.Duration) error {
			if age > 10*time.Minute {
				return down
			}
			return nil
		}, 10*time.Minute + tapaccess.MaxUnconfirmed},
		"down for a while": {"it is confirmed in time", func(age time.Duration) error {
			if age > 10*time.Minute && age < 11*time.Minute {
				return down
			}
			return nil
		}, tapaccess.MaxAge},
		"down, then deleted": {"the answer counts", func(age time.Duration) error {
			switch {
			case age <= 10*time.Minute:
				return nil
			case age < 11*time.Minute:
				return down
			}
			return apierrors.NewNotFound(schema.GroupResource{Resource: "taps"}, "tap")
		}, 11 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				get := func(context.Context, string, string) (*metav1.PartialObjectMetadata, error) {
					return &metav1.PartialObjectMetadata{
						ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(start)},
					}, tc.answer(time.Since(start))
				}
				access := tapaccess.New(get, "causeway-system", "agent-1", time.Now)
				server := newTapServer(reqlog.NewHub(prometheus.NewRegistry()), access, slog.New(slog.DiscardHandler))
				ctx, cancel := context.WithTimeout(t.Context(), 2*tapaccess.MaxAge)
				defer cancel()
				req := must(http.NewRequestWithContext(ctx, http.MethodGet, TapPath+"?namespace=shop", nil))(t)
				req.Header.Set("Authorization", "Bearer "+must(tapaccess.NewKey())(t).Token("agent-1"))
				resp := httptest.NewRecorder()
				server.ServeHTTP(resp, req)
				if got := time.Since(start); got != tc.want {
					t.Errorf("the tap ends after %v, want %v: %s", got, tc.want, tc.why)
				}
				if body := resp.Body.String(); resp.Code != http.StatusOK || !strings.Contains(body, `"end":"the Tap`) {
					t.Errorf("%d %q", resp.Code, body[max(0, len(body)-200):])
				}
			})
		})
	}
}

// TestTapRequestsAreLimitedBySource: a client without a right that asks for many taps
// does not prevent the requests of other clients.
func TestTapRequestsAreLimitedBySource(t *testing.T) {
	server := newTapServer(reqlog.NewHub(prometheus.NewRegistry()), fakeAccess{"shop", "good"}, slog.New(slog.DiscardHandler))
	ask := func(source string) int {
		req := must(http.NewRequest(http.MethodGet, TapPath, nil))(t)
		req.RemoteAddr = source
		req.Header.Set("Authorization", "Bearer bad")
		resp := httptest.NewRecorder()
		server.ServeHTTP(resp, req)
		return resp.Code
	}
	limited := 0
	for range 10 * tapsBurst {
		if ask("192.0.2.1:1000") == http.StatusTooManyRequests {
			limited++
		}
	}
	if got := ask("192.0.2.2:1000"); got != http.StatusForbidden || limited == 0 {
		t.Errorf("another source got %d, after %d requests of the first were limited", got, limited)
	}
}

// TestTapsAreShared: readers with a right in one namespace cannot keep others from taps.
func TestTapsAreShared(t *testing.T) {
	own := tapaccess.Claim{Namespace: "causeway-system", Own: true}
	of := func(namespace string) tapaccess.Claim { return tapaccess.Claim{Namespace: namespace} }
	var s tapShares
	for i, step := range []struct {
		claim tapaccess.Claim
		want  bool
	}{
		{of("a"), true}, {of("a"), true}, {of("a"), true}, {of("a"), false},
		{of("b"), true}, {of("c"), true}, {of("d"), true}, {of("e"), false},
		{own, true}, {own, true}, {of("b"), false},
	} {
		if got := s.acquire(step.claim); got != step.want {
			t.Errorf("step %d, namespace %s: %v, want %v", i, step.claim.Namespace, got, step.want)
		}
	}
	s.release(own)
	if s.acquire(of("e")) {
		t.Error("a namespace gets a reserved tap")
	}
	s.release(of("b"))
	if !s.acquire(of("e")) {
		t.Error("a tap that has ended is not given to another namespace")
	}
	for _, namespace := range []string{"a", "a", "a", "c", "d", "e"} {
		s.release(of(namespace))
	}
	if s.total != 0 || len(s.open) != 0 {
		t.Errorf("%d taps in %d namespaces are left", s.total, len(s.open))
	}
}

// TestTapsOfANamespaceAreBounded: the tenant's fourth tap is refused, the operator's is not.
func TestTapsOfANamespaceAreBounded(t *testing.T) {
	hub := reqlog.NewHub(prometheus.NewRegistry())
	server := httptest.NewServer(newTapServer(hub, fakeAccess{"*", "good"}, slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	for i := range tapsPerNamespace {
		if resp := getTap(t, server, "namespace=shop", "good"); resp.StatusCode != http.StatusOK {
			t.Fatalf("tap %d: %s", i, resp.Status)
		}
	}
	if resp := getTap(t, server, "namespace=shop", "good"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("one too many: %s", resp.Status)
	}
	if resp := getTap(t, server, "", "good"); resp.StatusCode != http.StatusOK {
		t.Errorf("the operator's: %s", resp.Status)
	}
}

// TestForgedTokensCostNoQuestion: a token without a valid signature is refused before the
// limit of questions to the API server.
func TestForgedTokensCostNoQuestion(t *testing.T) {
	hub := reqlog.NewHub(prometheus.NewRegistry())
	server := httptest.NewServer(newTapServer(hub, fakeAccess{"shop", "good"}, slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	for range 4 * tapsBurst {
		if resp := getTap(t, server, "namespace=shop", "forged"); resp.StatusCode != http.StatusForbidden {
			t.Fatal(resp.Status)
		}
	}
	if resp := getTap(t, server, "namespace=shop", "good"); resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
}

// TestTapIsLogged: the log has the Tap's name, by which the audit log says who reads.
func TestTapIsLogged(t *testing.T) {
	var logs lockedBuffer
	log := slog.New(slog.NewTextHandler(&logs, nil))
	server := newTapServer(reqlog.NewHub(prometheus.NewRegistry()), fakeAccess{"shop", "tap-1"}, log)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the reader goes at once
	req := must(http.NewRequestWithContext(ctx, http.MethodGet, TapPath+"?namespace=shop", nil))(t)
	req.Header.Set("Authorization", "Bearer tap-1")
	server.ServeHTTP(httptest.NewRecorder(), req)
	for _, want := range []string{`"tap opened" tap=shop/tap-1 `, `"tap closed" tap=shop/tap-1 `} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, logs.String())
		}
	}
}

// BenchmarkRecord is what a request costs at its end if no one wants its record, if there
// is a tap whose filter does not select it, and if it is logged.
func BenchmarkRecord(b *testing.B) {
	credential := newCluster(b, "west-1").credential(b, "shop", "alice")
	head := &message.Head{Version: message.HTTP11, Method: "GET", Target: "/items/1?page=2"}
	result := httprelay.Result{Began: true, Status: 200, Tries: 1, Received: 1024, FirstByte: time.Millisecond}
	for _, tc := range []struct {
		name string
		open func(*reqlog.Hub) func()
	}{
		{"off", func(*reqlog.Hub) func() { return func() {} }},
		{"tap", func(h *reqlog.Hub) func() {
			return must(h.Open(reqlog.Filter{Link: "other"}, reqlog.DefaultRate))(b).Close
		}},
		{"log", func(h *reqlog.Hub) func() {
			return h.StartAccessLog(io.Discard, reqlog.Config{Sample: 1}).Close
		}},
		{"sample", func(h *reqlog.Hub) func() {
			return h.StartAccessLog(io.Discard, reqlog.Config{Sample: 0.01}).Close
		}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			hub := reqlog.NewHub(prometheus.NewRegistry())
			defer tc.open(hub)()
			to := &requestBackend{agent: &Agent{requestLog: hub}, out: &outboundConn{
				peer: &peer{name: "east"}, mirror: &mirror{}, caller: &pod{namespace: "shop", name: "alice-0"}, credential: credential}}
			r := &outboundRequest{start: time.Now(), head: head, conn: &callerConn{requestBackend: to}, backend: to}
			b.ReportAllocs()
			for b.Loop() {
				r.record(result)
			}
		})
	}
}
