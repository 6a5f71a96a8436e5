package trace

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// maxQueue is how many ended spans wait for the collector, with those under way.
	maxQueue = 4096
	// maxAttribute is the most bytes of an attribute.
	maxAttribute = 256
	// batchDelay is how long an ended span waits for others.
	batchDelay = time.Second
	// peerSpans is how many spans a process makes per second for requests that were
	// sampled in other clusters, and in one burst.
	peerSpans = 1000
	// logInterval is the time between two log messages about exports that failed.
	logInterval = 30 * time.Second
)

// Options configure a Tracer.
type Options struct {
	// Endpoint is the URL of an OTLP collector that speaks gRPC, such as
	// http://collector.observability:4317. The scheme https means TLS.
	Endpoint string
	// Ratio is the part, from 0 to 1, of requests without a trace for which the agent
	// begins one.
	Ratio float64
	// CAFile has the certificates that sign the collector's. If it is "" or does not
	// exist, those of the system are used.
	CAFile string
	// Service and Version are attributes of the resource. Others come from the
	// environment variable OTEL_RESOURCE_ATTRIBUTES.
	Service, Version string

	Log *slog.Logger
	// Counter is that of NewCounter.
	Counter *prometheus.CounterVec
}

// The outcomes of spans, as a metric label.
const (
	exported  = "exported"
	failed    = "export_failed"
	queueFull = "queue_full"
	// rateLimited is of spans that were not made because of peerSpans.
	rateLimited = "rate_limited"
)

// NewCounter returns the metric of what becomes of spans.
func NewCounter() *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_agent_spans_total",
		Help: "Spans of traced requests, by outcome: exported, export_failed, " +
			"queue_full for those that were dropped, or rate_limited for those that were not " +
			"made because other clusters sampled too many requests.",
	}, []string{"outcome"})
	for _, outcome := range []string{exported, failed, queueFull, rateLimited} {
		c.WithLabelValues(outcome)
	}
	return c
}

// Tracer makes and exports the spans of a process. nil makes none. Make it with New. It
// is safe for concurrent use.
type Tracer struct {
	ratio    float64
	tracer   oteltrace.Tracer
	provider *sdk.TracerProvider
	peers    *rate.Limiter      // of SamplePeer
	limited  prometheus.Counter // requests beyond it
}

// New returns a Tracer, which runs until Shutdown. It does not wait for the collector.
// The environment variable OTEL_EXPORTER_OTLP_HEADERS may have metadata for the exports.
func New(o Options) (*Tracer, error) {
	secured, err := credentialsFor(o.Endpoint, o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("trace to %q: %w", o.Endpoint, err)
	}
	if !(o.Ratio >= 0 && o.Ratio <= 1) {
		return nil, fmt.Errorf("trace a ratio of %v requests: not between 0 and 1", o.Ratio)
	}
	out, err := otlptracegrpc.New(context.Background(), otlptracegrpc.WithEndpointURL(o.Endpoint),
		otlptracegrpc.WithTLSCredentials(secured))
	if err != nil {
		return nil, fmt.Errorf("trace to %q: %w", o.Endpoint, err)
	}
	return newTracer(o, out)
}

// newTracer returns a Tracer that exports to out.
func newTracer(o Options, out sdk.SpanExporter) (*Tracer, error) {
	about, err := resource.New(context.Background(), resource.WithTelemetrySDK(), resource.WithAttributes(
		semconv.ServiceName(o.Service), semconv.ServiceVersion(o.Version)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("trace as %s: %w", o.Service, err)
	}
	logger := &logger{log: o.Log, limiter: rate.NewLimiter(rate.Every(logInterval), 1)}
	otel.SetLogger(logr.FromSlogHandler(o.Log.Handler()))
	otel.SetErrorHandler(logger)
	e := &exporter{SpanExporter: out, counter: o.Counter, errors: logger}
	limits := sdk.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxAttribute
	batches := sdk.NewBatchSpanProcessor(e, sdk.WithMaxQueueSize(maxQueue), sdk.WithBatchTimeout(batchDelay))
	provider := sdk.NewTracerProvider(
		sdk.WithSampler(sdk.AlwaysSample()),
		sdk.WithResource(about),
		sdk.WithRawSpanLimits(limits),
		sdk.WithSpanProcessor(&queue{SpanProcessor: batches, exporter: e}))
	return &Tracer{
		ratio:    o.Ratio,
		tracer:   provider.Tracer("causeway"),
		provider: provider,
		peers:    rate.NewLimiter(peerSpans, peerSpans),
		limited:  o.Counter.WithLabelValues(rateLimited),
	}, nil
}

// credentialsFor returns what protects the connection to a collector.
func credentialsFor(endpoint, caFile string) (credentials.TransportCredentials, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("the endpoint is not a URL of the form http://host:port or https://host:port")
	}
	if u.Scheme == "http" {
		return insecure.NewCredentials(), nil
	}
	if caFile == "" {
		return credentials.NewClientTLSFromCert(nil, ""), nil // the system's
	}
	pem, err := os.ReadFile(caFile)
	if errors.Is(err, fs.ErrNotExist) {
		return credentials.NewClientTLSFromCert(nil, ""), nil
	}
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", caFile)
	}
	return credentials.NewClientTLSFromCert(roots, ""), nil
}

// Shutdown exports the spans that have ended, and releases the connection to the
// collector. It blocks until ctx ends at the latest.
func (t *Tracer) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// A queue bounds the spans that wait, and counts those that it drops. The processor below
// it has room for all that the queue lets pass, so it drops none.
type queue struct {
	sdk.SpanProcessor
	exporter *exporter
}

// OnEnd is of sdk.SpanProcessor. It does not block.
func (q *queue) OnEnd(s sdk.ReadOnlySpan) {
	if q.exporter.waiting.Add(1) > maxQueue {
		q.exporter.waiting.Add(-1)
		q.exporter.counter.WithLabelValues(queueFull).Inc()
		return
	}
	q.SpanProcessor.OnEnd(s)
}

// An exporter counts what becomes of spans.
type exporter struct {
	sdk.SpanExporter
	waiting atomic.Int64 // in the queue and under way
	counter *prometheus.CounterVec
	errors  *logger
}

// ExportSpans is of sdk.SpanExporter. Spans that cannot be exported are lost.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.waiting.Add(-int64(len(spans)))
	outcome := exported
	if err != nil {
		outcome = failed
		e.errors.Handle(err)
	}
	e.counter.WithLabelValues(outcome).Add(float64(len(spans)))
	return nil
}

// A logger logs errors at a limited rate.
type logger struct {
	log     *slog.Logger
	limiter *rate.Limiter
}

// Handle is of otel.ErrorHandler.
func (l *logger) Handle(err error) {
	if l.limiter.Allow() {
		l.log.Warn("export of spans failed", "error", err)
	}
}
