package agent

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

const (
	callerTrace = "0af7651916cd43dd8448eb211c80319c"
	callerSpan  = "b7ad6b7169203331"
	callerState = "vendor=value"
)

// traceParent returns the field of a caller's span.
func traceParent(flags string) string { return "00-" + callerTrace + "-" + callerSpan + "-" + flags }

// collector is an OTLP collector that keeps what it gets.
type collector struct {
	coltrace.UnimplementedTraceServiceServer
	mu    sync.Mutex // guards spans
	spans []*tracepb.Span
}

func (c *collector) Export(_ context.Context, r *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
	return &coltrace.ExportTraceServiceResponse{}, nil
}

// newTracedHarness returns a harness whose agents export to a collector. spans stops the
// agents and returns the spans in the order of their start, those of clients and
// those of servers.
func newTracedHarness(t *testing.T, ratio float64, do http.HandlerFunc) (w *harness, spans func(*http.Client) (clients, servers []*tracepb.Span)) {
	t.Helper()
	c, server, ln := &collector{}, grpc.NewServer(), listen(t, "127.0.0.1")
	coltrace.RegisterTraceServiceServer(server, c)
	go server.Serve(ln)
	t.Cleanup(server.Stop)
	var stops []func()
	w = newHarness(t, serveHTTP(do), func(w *harness) {
		for _, a := range []*Agent{w.west, w.east} {
			stop, err := a.startTracer(Options{TraceEndpoint: "http://" + ln.Addr().String(), TraceRatio: ratio})
			if err != nil {
				t.Fatal(err)
			}
			stops = append(stops, stop)
		}
	})
	stop := sync.OnceFunc(func() {
		for _, stop := range stops {
			stop()
		}
	})
	t.Cleanup(stop)
	return w, func(client *http.Client) (clients, servers []*tracepb.Span) {
		client.CloseIdleConnections()
		// A response may overtake the end of its spans: the harness waits for them.
		w.close()
		stop()
		slices.SortFunc(c.spans, func(a, b *tracepb.Span) int { return int(a.StartTimeUnixNano) - int(b.StartTimeUnixNano) })
		for _, s := range c.spans {
			if s.GetKind() == tracepb.Span_SPAN_KIND_CLIENT {
				clients = append(clients, s)
			} else {
				servers = append(servers, s)
			}
		}
		return clients, servers
	}
}

// askTraced makes a request of alice and returns its status and body.
func (w *harness) askTraced(c *http.Client, fields http.Header) (int, string) {
	w.Helper()
	req := must(http.NewRequest("GET", "http://bar-east/items/1?token=secret", nil))(w.TB)
	req.Header = fields
	resp := must(c.Do(req))(w.TB)
	defer resp.Body.Close()
	return resp.StatusCode, string(must(io.ReadAll(resp.Body))(w.TB))
}

// TestTracesOfPeersAreLimited: beyond the limit, the application's agent makes no span, and
// the caller's agent still makes its own.
func TestTracesOfPeersAreLimited(t *testing.T) {
	parent := traceParent("01")
	w, spans := newTracedHarness(t, 0, sayTrace)
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	busy.Go(func() { // a peer that uses up the limit
		h := &message.Head{Method: "GET", Target: "/", Fields: []message.Field{{Name: "traceparent", Value: parent}}}
		for ctx.Err() == nil {
			w.east.tracer.SamplePeer(h)
		}
	})
	c := w.client(alice, false)
	const requests = 50
	for range requests {
		if status, got := w.askTraced(c, http.Header{"Traceparent": {parent}}); status != 200 || got[:35] != parent[:35] {
			t.Errorf("%d, the application has trace %q", status, got)
		}
	}
	stop()
	busy.Wait()
	// On a busy machine a try may fail, and a failed try has a span, too.
	if clients, servers := spans(c); len(clients) < requests || len(servers) >= len(clients) {
		t.Errorf("%d spans of clients and %d of servers for %d requests", len(clients), len(servers), requests)
	}
}

// sayTrace answers with the trace context that the application received.
func sayTrace(rw http.ResponseWriter, r *http.Request) {
	fmt.Fprint(rw, strings.Join(r.Header.Values("Traceparent"), ","), " ", strings.Join(r.Header.Values("Tracestate"), ","))
}

func spanAttributes(s *tracepb.Span) map[string]string {
	out := map[string]string{}
	for _, a := range s.GetAttributes() {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			out[a.GetKey()] = fmt.Sprint(v.IntValue)
		}
	}
	return out
}

// TestTrace: the two spans of a request are between those of the caller and of the
// application, in one trace.
func TestTrace(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w, spans := newTracedHarness(t, 0, sayTrace)
		client := w.client(alice, h2)
		_, got := w.askTraced(client, http.Header{"Traceparent": {traceParent("01")}, "Tracestate": {callerState}})
		clients, servers := spans(client)
		if len(clients) != 1 || len(servers) != 1 {
			t.Fatalf("%d client and %d server spans, want one each", len(clients), len(servers))
		}
		near, far := clients[0], servers[0]
		if want := "00-" + callerTrace + "-" + hex.EncodeToString(far.GetSpanId()) + "-01 " + callerState; got != want {
			t.Errorf("the application received %q, want %q", got, want)
		}
		if p := hex.EncodeToString(near.GetParentSpanId()); p != callerSpan || hex.EncodeToString(near.GetTraceId()) != callerTrace {
			t.Errorf("the client span's parent is %s of trace %x", p, near.GetTraceId())
		}
		if string(far.GetParentSpanId()) != string(near.GetSpanId()) || string(far.GetTraceId()) != string(near.GetTraceId()) {
			t.Errorf("the server span's parent is %x of trace %x", far.GetParentSpanId(), far.GetTraceId())
		}
		if near.GetName() != "GET" || far.GetName() != "GET" || near.GetTraceState() != callerState || near.GetStatus().GetCode() != 0 {
			t.Errorf("%q, %q, %q, %v", near.GetName(), far.GetName(), near.GetTraceState(), near.GetStatus())
		}
		version := map[bool]string{false: "1.1", true: "2"}[h2]
		common := map[string]string{
			"network.protocol.name": "http", "network.protocol.version": version, "server.address": "bar-east",
			"http.request.method": "GET", "url.scheme": "http", "url.path": "/items/1", "http.response.status_code": "200",
			"causeway.service": "shop/bar", "causeway.port": "80", "k8s.namespace.name": "shop",
			"causeway.caller": "spiffe://west-1/ns/shop/sa/alice", "causeway.server": "spiffe://east-12/ns/shop/sa/bar",
			"causeway.endpoint": hex.EncodeToString([]byte("endpoint")),
		}
		with := func(more map[string]string) map[string]string {
			for k, v := range common {
				more[k] = v
			}
			return more
		}
		if diff := cmp.Diff(with(map[string]string{"causeway.link": "east", "causeway.peer.cluster": "east-12",
			"causeway.mirror": "shop/bar-east", "k8s.pod.name": "alice-0", "k8s.pod.uid": "alice-0"}), spanAttributes(near)); diff != "" {
			t.Errorf("client span (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(with(map[string]string{"causeway.link": "west", "causeway.peer.cluster": "west-1",
			"k8s.pod.name": "bar-0", "k8s.pod.uid": "bar-0"}), spanAttributes(far)); diff != "" {
			t.Errorf("server span (-want +got):\n%s", diff)
		}
		for i, a := range []*Agent{w.west, w.east} {
			if n := testutil.ToFloat64(a.spans.WithLabelValues("exported")); n != 1 {
				t.Errorf("agent %d exported %v spans, want 1", i, n)
			}
		}
	})
}

// TestTraceOfUnsampled: what a caller has not sampled arrives as it was sent.
func TestTraceOfUnsampled(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w, spans := newTracedHarness(t, 0, sayTrace)
		client := w.client(alice, h2)
		for sent, fields := range map[string]http.Header{
			traceParent("00") + " " + callerState: {"Traceparent": {traceParent("00")}, "Tracestate": {callerState}},
			"malformed ":                          {"Traceparent": {"malformed"}},
			" ":                                   {},
		} {
			if _, got := w.askTraced(client, fields); got != sent {
				t.Errorf("the application received %q, want %q", got, sent)
			}
		}
		if clients, servers := spans(client); len(clients)+len(servers) > 0 {
			t.Errorf("%d client and %d server spans, want none", len(clients), len(servers))
		}
	})
}

// TestTraceRatio: the caller's agent begins a trace, and the far one continues it.
func TestTraceRatio(t *testing.T) {
	w, spans := newTracedHarness(t, 1, sayTrace)
	client := w.client(alice, false)
	_, got := w.askTraced(client, nil)
	clients, servers := spans(client)
	if len(clients) != 1 || len(servers) != 1 || len(clients[0].GetParentSpanId()) > 0 {
		t.Fatalf("client spans %v, server spans %v", clients, servers)
	}
	if !strings.Contains(got, hex.EncodeToString(clients[0].GetTraceId())) {
		t.Errorf("the application received %q", got)
	}
}

// TestTraceOfRetry: each try has a span, and the one that failed says why.
func TestTraceOfRetry(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		var requests atomic.Int64
		w, spans := newTracedHarness(t, 0, func(http.ResponseWriter, *http.Request) {
			if requests.Add(1) == 1 {
				panic(http.ErrAbortHandler)
			}
		})
		client := w.client(alice, h2)
		if status, _ := w.askTraced(client, http.Header{"Traceparent": {traceParent("01")}}); status != 200 {
			t.Errorf("status %d", status)
		}
		clients, servers := spans(client)
		if len(clients) != 2 || len(servers) != 2 {
			t.Fatalf("%d client and %d server spans, want two each", len(clients), len(servers))
		}
		for i := range clients {
			if string(servers[i].GetParentSpanId()) != string(clients[i].GetSpanId()) {
				t.Errorf("try %d: the server span is not a child of the client span", i)
			}
			failed := map[int]string{0: "application_failed"}[i]
			if got := spanAttributes(servers[i])["error.type"]; got != failed {
				t.Errorf("try %d failed with %q at the far side, want %q", i, got, failed)
			}
			if got := spanAttributes(clients[i]); got["causeway.peer.error"] != failed || got["http.request.resend_count"] != map[int]string{1: "1"}[i] {
				t.Errorf("try %d: %v", i, got)
			}
			if got := clients[i].GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR; got != (failed != "") {
				t.Errorf("try %d: status %v", i, clients[i].GetStatus())
			}
		}
	})
}

// TestTraceOfRefusal: a request that never reaches an application has a span with the
// reason, even if it was not tried.
func TestTraceOfRefusal(t *testing.T) {
	for reason, edit := range map[string]func(w *harness){
		"request_timeout": func(w *harness) {
			w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				backendOf(r).Settings = &wire.TrafficSettings{TimeoutMs: proto.Uint32(100)}
			})
		},
		"link_suspended": func(w *harness) {
			w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Suspended = true })
		},
	} {
		t.Run(reason, func(t *testing.T) {
			w, spans := newTracedHarness(t, 0, func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/items/1" {
					<-r.Context().Done()
				}
			})
			client := w.client(alice, false)
			must(client.Get("http://bar-east/"))(t).Body.Close() // the connection is admitted before the change
			edit(w)
			w.push()
			status, _ := w.askTraced(client, http.Header{"Traceparent": {traceParent("01")}})
			clients, servers := spans(client)
			if len(clients) != 1 {
				t.Fatalf("status %d, client spans %v, server spans %v", status, clients, servers)
			}
			if got := spanAttributes(clients[0]); got["error.type"] != reason || clients[0].GetStatus().GetMessage() != reason {
				t.Errorf("status %d, %v", status, got)
			}
		})
	}
}
