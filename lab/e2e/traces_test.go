//go:build e2e

package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// podWithService is a pod whose network this process uses, and a Service of it.
func podWithService(name, meta string, port int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: shop, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: %[1]s, image: causeway.dev/shop:demo, imagePullPolicy: Never, args: [client]}]
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop%[2]s}
spec:
  selector: {app: %[1]s}
  ports: [{name: port, port: %[3]d, targetPort: %[3]d}]
---
`, name, meta, port)
}

// An exportedSpan is a span with the resource that made it.
type exportedSpan struct {
	*tracepb.Span
	resource, about map[string]string // attributes
}

// An otlpCollector is an OTLP collector that keeps what it gets.
type otlpCollector struct {
	coltrace.UnimplementedTraceServiceServer
	mu    sync.Mutex // guards spans
	spans []exportedSpan
}

func attributesOf(list []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			out[a.GetKey()] = fmt.Sprint(v.IntValue)
		}
	}
	return out
}

// Export is of coltrace.TraceServiceServer.
func (c *otlpCollector) Export(_ context.Context, r *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, by := range r.GetResourceSpans() {
		resource := attributesOf(by.GetResource().GetAttributes())
		for _, scope := range by.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, exportedSpan{s, resource, attributesOf(s.GetAttributes())})
			}
		}
	}
	return &coltrace.ExportTraceServiceResponse{}, nil
}

// of returns the spans of a trace.
func (c *otlpCollector) of(id trace.TraceID) (out []exportedSpan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if trace.TraceID(s.GetTraceId()) == id {
			out = append(out, s)
		}
	}
	return out
}

// chain returns the spans of a trace from its root to the application's, each the parent of
// the next one. There must be n. Tries that failed are not among them.
func (c *otlpCollector) chain(id trace.TraceID, n int) ([]exportedSpan, error) {
	all := c.of(id)
	byID := map[string]exportedSpan{}
	var s exportedSpan
	for _, each := range all {
		byID[string(each.GetSpanId())] = each
		if each.GetName() == "server" {
			s = each
		}
	}
	var chain []exportedSpan
	for s.Span != nil && len(chain) <= n {
		chain = append([]exportedSpan{s}, chain...)
		s = byID[string(s.GetParentSpanId())]
	}
	if len(chain) != n || len(chain[0].GetParentSpanId()) > 0 {
		return nil, fmt.Errorf("the trace has %d spans, %d of them in a chain to the application's, want %d", len(all), len(chain), n)
	}
	return chain, nil
}

// TestTraces: one trace has the spans of a client, of the agent at its node, of the agent at
// the application's node and of the application, each the parent of the next one. They
// arrive at a collector that the agents find by the name of its Service. A real Prometheus
// has their IDs as exemplars of a native histogram.
func TestTraces(t *testing.T) {
	ctx := t.Context()
	collector := &otlpCollector{}
	for _, c := range []*cluster{west, east} {
		must(t, c.kubectl(ctx, podWithService("collector", "", 4317), "apply", "-f", "-"))
		t.Cleanup(func() {
			if err := c.kubectl(background(), podWithService("collector", "", 4317), "delete", "--ignore-not-found", "-f", "-"); err != nil {
				t.Error(err)
			}
		})
	}
	offer(t, podWithService("traced", ", "+recognized, 8080), "traced-east")
	for _, c := range []*cluster{west, east} {
		must(t, c.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"))
		server := grpc.NewServer()
		coltrace.RegisterTraceServiceServer(server, collector)
		ln := have(inside(netOf(t, c, "collector"), func() (net.Listener, error) { return net.Listen("tcp", ":4317") }))(t)
		go server.Serve(ln)
		t.Cleanup(server.Stop)
	}
	exporter := have(otlptracegrpc.New(ctx, otlptracegrpc.WithGRPCConn(have(grpc.NewClient("passthrough:///collector:4317",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dial(ctx, netOf(t, west, "collector"), "127.0.0.1:4317")
		}), grpc.WithTransportCredentials(insecure.NewCredentials())))(t))))(t)
	apps := sdk.NewTracerProvider(sdk.WithSyncer(exporter), sdk.WithSampler(sdk.AlwaysSample()))
	t.Cleanup(func() { apps.Shutdown(background()) })
	tracer := apps.Tracer("app")
	propagator := propagation.TraceContext{}

	serveIn(t, "traced", 8080, serveTraced(tracer))
	_, tag, _ := strings.Cut(os.Getenv("CAUSEWAY_IMAGE"), ":")
	t.Cleanup(func() { serves(t) })
	for _, c := range []*cluster{west, east} {
		t.Cleanup(func() {
			if err := c.install(background()); err != nil {
				t.Error(err)
			}
		})
		have(c.causeway(ctx, "install", "--cluster-name", c.Name(), "--set", "image.tag="+tag,
			"--set", "tracing.endpoint=http://collector.shop.svc:4317"))(t)
	}
	within(t, time.Minute, "the mirror answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://traced-east.shop:8080/")
		return err
	})

	ns, address := netOf(t, west, "client"), mirrorOf(t, "traced-east", 8080)
	dialer := func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, ns, address) }
	ask := func(http2 bool) func(context.Context) error {
		client := httpClient(t, dialer, http2, 1)
		return func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://traced-east.shop:8080/items?token=secret", nil)
			if err != nil {
				return err
			}
			propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))
			res, err := client.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("%s, Proxy-Status %q", res.Status, res.Header.Get("Proxy-Status"))
			}
			return nil
		}
	}
	cc := have(grpc.NewClient("passthrough:///traced-east.shop:8080", grpc.WithContextDialer(dialer),
		grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	t.Cleanup(func() { cc.Close() })
	askGRPC := func(ctx context.Context) error {
		fields := propagation.MapCarrier{}
		propagator.Inject(ctx, fields)
		return cc.Invoke(metadata.NewOutgoingContext(ctx, metadata.New(fields)), "/shop.Traced/Items", wrapperspb.String("a"), new(wrapperspb.StringValue))
	}
	for _, tc := range []struct {
		protocol string
		ask      func(context.Context) error
		name     string // of the agents' spans
		method   string // an attribute of them
	}{
		{"HTTP1", ask(false), "GET", "http.request.method=GET"},
		{"HTTP2", ask(true), "GET", "http.request.method=GET"},
		{"gRPC", askGRPC, "shop.Traced/Items", "rpc.method=shop.Traced/Items"},
	} {
		t.Run(tc.protocol, func(t *testing.T) {
			ctx, span := tracer.Start(t.Context(), "client", trace.WithSpanKind(trace.SpanKindClient))
			must(t, tc.ask(ctx))
			span.End()
			var chain []exportedSpan
			within(t, 20*time.Second, "the trace is complete", func() (err error) {
				chain, err = collector.chain(span.SpanContext().TraceID(), 4)
				return err
			})
			key, method, _ := strings.Cut(tc.method, "=")
			for i, want := range []struct {
				name, cluster, link, pod string
				kind                     tracepb.Span_SpanKind
			}{
				{"client", "", "", "", tracepb.Span_SPAN_KIND_CLIENT},
				{tc.name, "west", "east", "client", tracepb.Span_SPAN_KIND_CLIENT},
				{tc.name, "east", "west", "traced", tracepb.Span_SPAN_KIND_SERVER},
				{"server", "", "", "", tracepb.Span_SPAN_KIND_SERVER},
			} {
				s := chain[i]
				t.Logf("%s %-8s %-18s %5d µs %v", hex.EncodeToString(s.GetSpanId()), s.resource["k8s.cluster.name"], s.GetName(),
					(s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano())/1000, s.about)
				if s.GetName() != want.name || s.resource["k8s.cluster.name"] != want.cluster || s.GetKind() != want.kind || s.about["causeway.link"] != want.link {
					t.Errorf("span %d is %q of cluster %q, kind %v, link %q; want %+v", i, s.GetName(), s.resource["k8s.cluster.name"], s.GetKind(), s.about["causeway.link"], want)
				}
				if want.cluster != "" && (s.about["k8s.pod.name"] != want.pod || s.about[key] != method || s.about["error.type"] != "" ||
					s.resource["service.name"] != "causeway-agent" || s.resource["k8s.node.name"] == "") {
					t.Errorf("span %d: %v of %v", i, s.about, s.resource)
				}
				if strings.Contains(fmt.Sprint(s.about), "secret") {
					t.Errorf("span %d has the query: %v", i, s.about)
				}
			}
		})
	}
	t.Run("Prometheus", func(t *testing.T) {
		p := startNativePrometheus(t)
		ctx, span := tracer.Start(t.Context(), "client")
		must(t, ask(false)(ctx))
		span.End()
		const duration = `causeway_request_duration_seconds{direction="outbound",service="traced",protocol="http1"}`
		id := span.SpanContext().TraceID().String()
		within(t, 20*time.Second, "an exemplar names the trace", func() error {
			ids, err := p.exemplarsOf(t.Context(), duration)
			if err == nil && !slices.Contains(ids, id) {
				err = fmt.Errorf("there are exemplars of %v, want %s", ids, id)
			}
			return err
		})
		// A classic histogram has no value for these functions.
		requests := have(p.value(t.Context(), "histogram_count("+duration+")"))(t)
		median := have(p.value(t.Context(), "histogram_quantile(0.5, "+duration+")"))(t)
		t.Logf("the native histogram has %v requests with a median of %.2f ms", requests, median*1000)
		if requests < 2 || !(median > 0 && median < 5) {
			t.Errorf("the native histogram has %v requests with a median of %v s", requests, median)
		}
	})
	t.Run("not sampled", func(t *testing.T) {
		id := trace.TraceID{1, 2, 3}
		ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{1}}))
		must(t, ask(false)(ctx))
		last, span := tracer.Start(t.Context(), "client") // what is exported later has a later trace's spans
		must(t, ask(false)(last))
		span.End()
		within(t, 20*time.Second, "the later trace is complete", func() error {
			_, err := collector.chain(span.SpanContext().TraceID(), 4)
			return err
		})
		for _, s := range collector.of(id) {
			if s.resource["service.name"] == "causeway-agent" {
				t.Errorf("an agent made span %v", s)
			}
		}
	})
}

// serveTraced returns an application that makes a span for each request with a trace.
func serveTraced(tracer trace.Tracer) http.Handler {
	rpc := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		var in wrapperspb.StringValue
		if err := s.RecvMsg(&in); err != nil {
			return err
		}
		return s.SendMsg(&in)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		if trace.SpanContextFromContext(ctx).IsSampled() {
			_, span := tracer.Start(ctx, "server", trace.WithSpanKind(trace.SpanKindServer))
			defer span.End()
		}
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			rpc.ServeHTTP(w, r)
		}
	})
}
