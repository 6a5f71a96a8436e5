package trace

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

const (
	traceID   = "0af7651916cd43dd8448eb211c80319c"
	sampled   = "00-" + traceID + "-b7ad6b7169203331-01"
	unsampled = "00-" + traceID + "-b7ad6b7169203331-00"
)

// newTest returns a Tracer and the spans that it exports after a flush.
func newTest(t testing.TB, ratio float64) (*Tracer, func() tracetest.SpanStubs) {
	t.Helper()
	out := tracetest.NewInMemoryExporter()
	tr, err := newTracer(Options{
		Ratio:   ratio,
		Service: "test",
		Version: "1",
		Log:     slog.New(slog.DiscardHandler),
		Counter: NewCounter(),
	}, out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Shutdown(context.WithoutCancel(t.Context())) })
	return tr, func() tracetest.SpanStubs {
		t.Helper()
		if err := tr.provider.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.GetSpans()
	}
}

func request(fields ...message.Field) *message.Head {
	return &message.Head{
		Version: message.HTTP11,
		Method:  "GET",
		Target:  "/items/1?token=secret",
		Fields:  append([]message.Field{{Name: "Host", Value: "bar-east.shop:8080"}}, fields...),
	}
}

func field(name, value string) message.Field { return message.Field{Name: name, Value: value} }

func TestSample(t *testing.T) {
	parent := func(values ...string) (out []message.Field) {
		for _, v := range values {
			out = append(out, field("traceparent", v))
		}
		return out
	}
	malformed := "zz" + sampled[2:]
	zero := "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01"
	for name, tc := range map[string]struct {
		why    string
		fields []message.Field
		ratio  float64
		want   bool
	}{
		"no trace":            {"there is no caller's decision", nil, 0, false},
		"no trace, ratio":     {"the agent begins one", nil, 1, true},
		"sampled":             {"its caller decides", parent(sampled), 0, true},
		"case of names":       {"HTTP/1 has any", []message.Field{field("TraceParent", sampled)}, 0, true},
		"not sampled":         {"its caller decides", parent(unsampled), 0, false},
		"not sampled, ratio":  {"its caller decides", parent(unsampled), 1, false},
		"twice":               {"the two may differ", parent(sampled, sampled), 0, false},
		"malformed":           {"the version is not hexadecimal", parent(malformed), 0, false},
		"malformed, ratio":    {"it is like none", parent(malformed), 1, true},
		"upper case":          {"forbidden", parent(strings.ToUpper(sampled)), 0, false},
		"zero":                {"forbidden", parent(zero), 0, false},
		"too long":            {"version 00 has no more", parent(sampled + "-x"), 0, false},
		"newer version":       {"it may have more", parent("01" + sampled[2:] + "-x"), 0, true},
		"a forbidden version": {"ff", parent("ff" + sampled[2:]), 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			tr, _ := newTest(t, tc.ratio)
			h := request(tc.fields...)
			r := tr.Sample(h)
			if r.Sampled() != tc.want {
				t.Errorf("%s: sampled %v, want %v", tc.why, r.Sampled(), tc.want)
			}
			if diff := cmp.Diff(request(tc.fields...), h); diff != "" {
				t.Errorf("Sample changed the head (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNothingIsAllocated: requests that are not traced cost nothing.
func TestNothingIsAllocated(t *testing.T) {
	on, _ := newTest(t, 0)
	for name, tc := range map[string]struct {
		tracer *Tracer
		head   *message.Head
	}{
		"off":         {nil, request(field("traceparent", sampled))},
		"no trace":    {on, request()},
		"not sampled": {on, request(field("traceparent", unsampled), field("tracestate", "a=b"))},
	} {
		n := testing.AllocsPerRun(100, func() {
			r := tc.tracer.Sample(tc.head)
			r.Start(Client, tc.head, false, time.Time{})
			r.End(time.Time{}, Result{Status: 200})
			if r.Sampled() || r.TraceID() != "" {
				t.Errorf("%s: sampled", name)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for each request", name, n)
		}
	}
	if err := (*Tracer)(nil).Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestTries: each try is a span of its own, whose identifier the far side gets.
func TestTries(t *testing.T) {
	tr, flush := newTest(t, 0)
	h := request(field("Traceparent", sampled), field("tracestate", "a=1"), field("tracestate", "b=2"),
		field("X", "y"))
	r := tr.Sample(h)
	start := time.Now()
	var parents []string
	for range 2 {
		r.Start(Client, h, false, start, attribute.String("causeway.link", "east"))
		parent, _ := h.Get("traceparent")
		parents = append(parents, parent)
		state := h.Values("tracestate")
		if len(state) != 1 || state[0] != "a=1,b=2" || len(h.Values("Traceparent")) != 1 || !h.Has("X") {
			t.Errorf("the head became %v", h.Fields)
		}
		r.Add(attribute.String("causeway.endpoint", "01"))
		r.End(start.Add(time.Second), Result{Reason: "tunnel_failed"})
	}
	if r.TraceID() != traceID || r.Spans() != 2 {
		t.Errorf("trace %q, %d spans", r.TraceID(), r.Spans())
	}
	spans := flush()
	if len(spans) != 2 {
		t.Fatalf("%d spans, want 2", len(spans))
	}
	for i, s := range spans {
		if want := "00-" + traceID + "-" + s.SpanContext.SpanID().String() + "-01"; parents[i] != want {
			t.Errorf("try %d passed on %s, want %s", i, parents[i], want)
		}
		parent := s.Parent.TraceID().String() + "-" + s.Parent.SpanID().String()
		if parent != traceID+"-b7ad6b7169203331" || s.SpanKind != oteltrace.SpanKindClient {
			t.Errorf("try %d: kind %v, parent %v", i, s.SpanKind, s.Parent)
		}
		if s.EndTime.Sub(s.StartTime) != time.Second || s.Status.Code != codes.Error {
			t.Errorf("try %d took %v, status %v", i, s.EndTime.Sub(s.StartTime), s.Status)
		}
		want := map[string]any{
			"network.protocol.name": "http", "network.protocol.version": "1.1",
			"server.address": "bar-east.shop", "server.port": int64(8080),
			"http.request.method": "GET", "url.scheme": "http", "url.path": "/items/1",
			"causeway.link": "east", "causeway.endpoint": "01", "error.type": "tunnel_failed",
		}
		if i > 0 {
			want["http.request.resend_count"] = int64(i)
		}
		if diff := cmp.Diff(want, attributes(s)); diff != "" {
			t.Errorf("try %d (-want +got):\n%s", i, diff)
		}
	}
}

func attributes(s tracetest.SpanStub) map[string]any {
	out := map[string]any{}
	for _, a := range s.Attributes {
		out[string(a.Key)] = a.Value.AsInterface()
	}
	return out
}

// TestSpanOfHead: what spans say about heads that are unusual, within bounds.
func TestSpanOfHead(t *testing.T) {
	for name, tc := range map[string]struct {
		head     message.Head
		grpc     bool
		wantName string
		want     map[string]any
	}{
		"gRPC": {
			head: message.Head{
				Version:   message.HTTP2,
				Method:    "POST",
				Target:    "/shop.Bar/Who",
				Scheme:    "http",
				Authority: "bar-east",
			},
			grpc:     true,
			wantName: "shop.Bar/Who",
			want: map[string]any{"network.protocol.version": "2", "rpc.system.name": "grpc",
				"rpc.method": "shop.Bar/Who", "server.address": "bar-east"},
		},
		"a method of its own": {
			head:     message.Head{Version: message.HTTP10, Method: "FETCH", Target: "/"},
			wantName: "HTTP",
			want: map[string]any{"network.protocol.version": "1.0", "http.request.method": "_OTHER",
				"http.request.method_original": "FETCH", "url.scheme": "http", "url.path": "/"},
		},
		"a password": {
			head: message.Head{
				Version: message.HTTP11,
				Method:  "GET",
				Target:  "http://user:password@host/a?b",
			},
			wantName: "GET",
			want: map[string]any{"network.protocol.version": "1.1", "http.request.method": "GET",
				"url.scheme": "http", "url.path": "/a"},
		},
		"too long, and not UTF-8": {
			head: message.Head{
				Version: message.HTTP11,
				Method:  "GET",
				Target:  "/\xff" + strings.Repeat("x", 1000),
			},
			wantName: "GET",
			want: map[string]any{"network.protocol.version": "1.1", "http.request.method": "GET",
				"url.scheme": "http", "url.path": "/?" + strings.Repeat("x", maxAttribute-2)},
		},
		"IPv6": {
			head: message.Head{
				Version: message.HTTP11,
				Method:  "GET",
				Target:  "/",
				Fields:  []message.Field{field("host", "[::1]:99999")},
			},
			wantName: "GET",
			want: map[string]any{"network.protocol.version": "1.1", "http.request.method": "GET",
				"url.scheme": "http", "url.path": "/", "server.address": "::1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr, flush := newTest(t, 1)
			r := tr.Sample(&tc.head)
			r.Start(Server, &tc.head, tc.grpc, time.Now())
			r.End(time.Now(), Result{})
			s := flush()[0]
			tc.want["network.protocol.name"] = "http"
			if diff := cmp.Diff(tc.want, attributes(s)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if s.Name != tc.wantName || s.SpanKind != oteltrace.SpanKindServer {
				t.Errorf("%q, %v", s.Name, s.SpanKind)
			}
		})
	}
}

func TestErrorType(t *testing.T) {
	for _, tc := range []struct {
		kind Kind
		grpc bool
		res  Result
		want string
	}{
		{Client, false, Result{Status: 200}, ""},
		{Client, false, Result{Status: 404}, "404"},
		{Server, false, Result{Status: 404}, ""},
		{Server, false, Result{Status: 503}, "503"},
		{Server, false, Result{Status: 503, Reason: "pod_refused"}, "pod_refused"},
		{Client, true, Result{Status: 200, GRPCStatus: "OK"}, ""},
		{Client, true, Result{Status: 200, GRPCStatus: "NOT_FOUND"}, "NOT_FOUND"},
		{Server, true, Result{Status: 200, GRPCStatus: "NOT_FOUND"}, ""},
		{Server, true, Result{Status: 200, GRPCStatus: "UNAVAILABLE"}, "UNAVAILABLE"},
		{Client, true, Result{Status: 502}, "502"},
	} {
		if got := errorType(tc.kind, tc.grpc, tc.res); got != tc.want {
			t.Errorf("%v %v %+v: %q, want %q", tc.kind, tc.grpc, tc.res, got, tc.want)
		}
	}
}

// brokenExporter is an sdk.SpanExporter that fails once it may.
type brokenExporter struct{ proceed chan struct{} }

func (e brokenExporter) ExportSpans(context.Context, []sdk.ReadOnlySpan) error {
	<-e.proceed
	return errors.New("no collector")
}
func (e brokenExporter) Shutdown(context.Context) error { return nil }

// TestBrokenCollector: spans for which there is no room are dropped and counted, and no
// request waits.
func TestBrokenCollector(t *testing.T) {
	log, counter := &strings.Builder{}, NewCounter()
	out := brokenExporter{make(chan struct{})}
	logger := slog.New(slog.NewTextHandler(log, nil))
	tr, err := newTracer(Options{Ratio: 1, Log: logger, Counter: counter}, out)
	if err != nil {
		t.Fatal(err)
	}
	const spans = maxQueue + 1000
	for range spans {
		h := request()
		r := tr.Sample(h)
		r.Start(Client, h, false, time.Now())
		r.End(time.Now(), Result{})
	}
	if n := testutil.ToFloat64(counter.WithLabelValues(queueFull)); n != spans-maxQueue {
		t.Errorf("%v spans were dropped, want %d", n, spans-maxQueue)
	}
	close(out.proceed)
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(counter.WithLabelValues(failed)); n != maxQueue {
		t.Errorf("%v spans failed, want %d", n, maxQueue)
	}
	if n := strings.Count(log.String(), "export of spans failed"); n != 1 {
		t.Errorf("%d log messages, want one:\n%s", n, log)
	}
}

// TestPeersAreLimited: callers in other clusters cannot make an agent make spans without
// bound. Those of the own cluster are not limited.
func TestPeersAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counter := NewCounter()
		tr, err := newTracer(Options{
			Ratio:   1,
			Log:     slog.New(slog.DiscardHandler),
			Counter: counter,
		}, tracetest.NewInMemoryExporter())
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Shutdown(t.Context())
		count := func(sample func(*message.Head) *Request, fields ...message.Field) (traced int) {
			for range 2 * peerSpans {
				h := request(fields...)
				if sample(h).Sampled() {
					traced++
				}
				if diff := cmp.Diff(request(fields...), h); diff != "" {
					t.Fatalf("the head has changed (-want +got):\n%s", diff)
				}
			}
			return traced
		}
		peer := field("traceparent", sampled)
		if n := count(tr.SamplePeer, peer); n != peerSpans {
			t.Errorf("%d requests are traced at once, want %d", n, peerSpans)
		}
		if n := count(tr.Sample, peer); n != 2*peerSpans {
			t.Errorf("%d requests of the own cluster are traced, want %d", n, 2*peerSpans)
		}
		if n := count(tr.SamplePeer); n != 2*peerSpans {
			t.Errorf("%d requests without a trace are traced, want %d", n, 2*peerSpans)
		}
		if n := testutil.ToFloat64(counter.WithLabelValues(rateLimited)); n != peerSpans {
			t.Errorf("%v requests are counted, want %d", n, peerSpans)
		}
		bubble.Pass(time.Second)
		if n := count(tr.SamplePeer, peer); n != peerSpans {
			t.Errorf("%d requests are traced in the next second, want %d", n, peerSpans)
		}
	})
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no scheme":      {Endpoint: "collector:4317"},
		"another scheme": {Endpoint: "ftp://collector"},
		"no host":        {Endpoint: "http://"},
		"ratio":          {Endpoint: "http://collector:4317", Ratio: 1.1},
		"CA":             {Endpoint: "https://collector:4317", CAFile: "trace_test.go"},
	} {
		o.Log, o.Counter = slog.New(slog.DiscardHandler), NewCounter()
		if tr, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
			tr.Shutdown(t.Context())
		}
	}
}

var parentPattern = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]$`)

// FuzzSample: for any fields of a caller, what is passed on is valid and bounded, and a
// request that is not traced stays as it came.
func FuzzSample(f *testing.F) {
	f.Add(sampled, "a=b", true)
	f.Add(unsampled, "", false)
	f.Add("ff"+sampled[2:], strings.Repeat("a=b,", 40), true)
	f.Add("01"+sampled[2:]+"-more", strings.Repeat("a", maxState+1), false)
	f.Fuzz(func(t *testing.T, parent, state string, ratio bool) {
		tr, _ := newTest(t, map[bool]float64{true: 1}[ratio])
		fields := []message.Field{field("traceparent", parent), field("tracestate", state)}
		h := request(fields...)
		r := tr.Sample(h)
		r.Start(Server, h, false, time.Now())
		r.End(time.Now(), Result{})
		if !r.Sampled() {
			if diff := cmp.Diff(request(fields...), h); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			return
		}
		got := h.Values("traceparent")
		if len(got) != 1 || !parentPattern.MatchString(got[0]) || got[0][3:35] != r.TraceID() {
			t.Errorf("%q became %q", parent, got)
		}
		if !ratio && !strings.Contains(parent, r.TraceID()) {
			t.Errorf("%q continues in trace %s", parent, r.TraceID())
		}
		if s := strings.Join(h.Values("tracestate"), ","); len(s) > maxState {
			t.Errorf("tracestate has %d bytes", len(s))
		}
	})
}
