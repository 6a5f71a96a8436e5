// Package trace makes OpenTelemetry spans of requests and exports them by OTLP.
//
//	head ─▶ Tracer.Sample ─▶ Request.Start ─▶ the head names the span as parent ─▶ Request.End
//	             │ not sampled: nothing                                               │
//	             ▼                                                                    ▼
//	        the head stays as it came            collector ◀─ OTLP by gRPC ◀─ batches ◀─ queue
//
// What always holds:
//   - Spans are made for requests whose caller has sampled them, and for the configured
//     part of those that come without a trace.
//   - Other clusters make a process make at most peerSpans spans per second.
//   - A request without spans is forwarded with the fields that it came with.
//   - A request never waits for a collector. What does not fit into the queue is counted
//     and dropped.
//   - A nil Tracer and a nil Request do nothing and allocate nothing.
//
// docs/design/0028-traces.md has the reasons.
package trace

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

const (
	parentField = "traceparent"
	stateField  = "tracestate"
	// maxState is the most bytes of tracestate that are kept in a request with a span.
	// W3C Trace Context, section 3.3.1.5, asks for at least 512.
	maxState = 512
	// flagsEnd is the least length of traceparent. The sampled flag is the lowest bit of
	// the last of these characters.
	flagsEnd = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
)

// Kind is the role of the agent in a request.
type Kind bool

const (
	// Client is the agent at the caller's node.
	Client Kind = false
	// Server is the agent at the application's node.
	Server Kind = true
)

// Request makes the spans of one request. nil makes none. It is not safe for concurrent
// use.
type Request struct {
	tracer *Tracer
	parent context.Context
	span   oteltrace.Span // nil: none is open
	last   oteltrace.SpanContext
	spans  int // that were started
	// name and about are what Describe has found; empty: it was not called.
	name  string
	about []attribute.KeyValue
	kind  Kind
	grpc  bool
}

// Sample decides whether a request is traced, and returns nil if it is not. It reads the
// fields of W3C Trace Context and does not change the head.
func (t *Tracer) Sample(h *message.Head) *Request { return t.sample(h, false) }

// SamplePeer is Sample for a request from another cluster. It traces at most peerSpans
// requests per second that were sampled there, and counts the others.
func (t *Tracer) SamplePeer(h *message.Head) *Request { return t.sample(h, true) }

func (t *Tracer) sample(h *message.Head, fromPeer bool) *Request {
	if t == nil {
		return nil
	}
	if value, ok := h.Get(parentField); ok && hasSampledFlag(value) {
		parent := propagation.TraceContext{}.Extract(context.Background(), carrier{h})
		if oteltrace.SpanContextFromContext(parent).IsSampled() {
			if fromPeer && !t.peers.Allow() {
				t.limited.Inc()
				return nil
			}
			return &Request{tracer: t, parent: parent}
		}
	}
	if t.ratio == 0 || rand.Float64() >= t.ratio {
		return nil
	}
	parent := propagation.TraceContext{}.Extract(context.Background(), carrier{h})
	if oteltrace.SpanContextFromContext(parent).IsValid() {
		return nil // its caller has decided
	}
	return &Request{tracer: t, parent: parent}
}

// hasSampledFlag reports whether the value of traceparent may have the sampled flag. It
// checks nothing else.
func hasSampledFlag(parent string) bool {
	if len(parent) < flagsEnd {
		return false
	}
	switch parent[flagsEnd-1] {
	case '1', '3', '5', '7', '9', 'b', 'd', 'f':
		return true
	}
	return false
}

// Sampled reports whether the request is traced.
func (r *Request) Sampled() bool { return r != nil }

// Spans returns the number of spans that were started.
func (r *Request) Spans() int {
	if r == nil {
		return 0
	}
	return r.spans
}

// TraceID returns the identifier of the trace in hexadecimal, or "" if the request is not
// traced or has had no span.
func (r *Request) TraceID() string {
	if r == nil || r.spans == 0 {
		return ""
	}
	return r.last.TraceID().String()
}

// Describe makes the spans of the request tell what h says now. Without Describe, a span
// tells what the head says that Start gets.
func (r *Request) Describe(h *message.Head, grpc bool) {
	if r != nil {
		r.name, r.about = describe(h, grpc)
	}
}

// Start starts a span that began at a time, and ends the one that is open. It names the
// span in the head, so that it becomes the parent of the next one. grpc says which
// conventions apply.
func (r *Request) Start(
	kind Kind, h *message.Head, grpc bool, at time.Time, about ...attribute.KeyValue,
) {
	if r == nil {
		return
	}
	if r.span != nil {
		r.span.End()
	}
	r.kind, r.grpc = kind, grpc
	name, attributes := r.name, slices.Clip(r.about)
	if attributes == nil {
		name, attributes = describe(h, grpc)
	}
	if kind == Client && r.spans > 0 {
		attributes = append(attributes, semconv.HTTPRequestResendCount(r.spans))
	}
	var ctx context.Context
	ctx, r.span = r.tracer.tracer.Start(r.parent, name,
		oteltrace.WithSpanKind(spanKinds[kind]),
		oteltrace.WithTimestamp(at),
		oteltrace.WithAttributes(append(attributes, about...)...))
	r.spans, r.last = r.spans+1, r.span.SpanContext()
	h.Del(stateField) // a tracestate that cannot be read is not passed on
	propagation.TraceContext{}.Inject(ctx, carrier{h})
}

var spanKinds = map[Kind]oteltrace.SpanKind{
	Client: oteltrace.SpanKindClient,
	Server: oteltrace.SpanKindServer,
}

// Add adds attributes to the open span.
func (r *Request) Add(attributes ...attribute.KeyValue) {
	if r != nil && r.span != nil {
		r.span.SetAttributes(attributes...)
	}
}

// Result is how a span ends.
type Result struct {
	// Status is the status of HTTP; 0: there was no response.
	Status int
	// GRPCStatus is the name of a gRPC status, such as UNAVAILABLE, or "".
	GRPCStatus string
	// Reason is why Causeway ended the request or answered it; "": it did not.
	Reason string
}

// End ends the open span, if there is one.
func (r *Request) End(at time.Time, res Result) {
	if r == nil || r.span == nil {
		return
	}
	if res.Status > 0 {
		r.span.SetAttributes(semconv.HTTPResponseStatusCode(res.Status))
	}
	if r.grpc && res.GRPCStatus != "" {
		r.span.SetAttributes(semconv.RPCResponseStatusCode(res.GRPCStatus))
	}
	if kind := errorType(r.kind, r.grpc, res); kind != "" {
		r.span.SetAttributes(semconv.ErrorTypeKey.String(kind))
		r.span.SetStatus(codes.Error, res.Reason)
	}
	r.span.End(oteltrace.WithTimestamp(at))
	r.span = nil
}

// errorType returns the value of error.type, or "" for a request that did not fail. The
// conventions count fewer statuses as errors of the server than as errors of the client.
func errorType(kind Kind, grpc bool, res Result) string {
	switch {
	case res.Reason != "":
		return res.Reason
	case grpc && res.GRPCStatus != "":
		if isGRPCError(kind, res.GRPCStatus) {
			return res.GRPCStatus
		}
		return ""
	case res.Status >= 500, kind == Client && res.Status >= 400:
		return strconv.Itoa(res.Status)
	}
	return ""
}

func isGRPCError(kind Kind, status string) bool {
	if kind == Client {
		return status != "OK"
	}
	switch status {
	case "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS":
		return true
	}
	return false
}

// describe returns the name of a span, and what the head of a request tells about it. A
// query may hold secrets and is left out.
func describe(h *message.Head, grpc bool) (name string, attributes []attribute.KeyValue) {
	attributes = append(make([]attribute.KeyValue, 0, 24), // with the agent's own
		semconv.NetworkProtocolName("http"),
		semconv.NetworkProtocolVersion(strings.TrimPrefix(h.Version.String(), "HTTP/")))
	if host, port := authority(h); host != "" {
		attributes = append(attributes, semconv.ServerAddress(host))
		if port > 0 {
			attributes = append(attributes, semconv.ServerPort(port))
		}
	}
	path := pathOf(h)
	if grpc {
		name = valid(strings.TrimPrefix(path, "/"))
		return name, append(attributes, semconv.RPCSystemNameGRPC, semconv.RPCMethod(name))
	}
	switch h.Method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY":
		name = h.Method
		attributes = append(attributes, semconv.HTTPRequestMethodKey.String(h.Method))
	default:
		name = "HTTP"
		attributes = append(attributes, semconv.HTTPRequestMethodOther,
			semconv.HTTPRequestMethodOriginal(valid(h.Method)))
	}
	return name, append(attributes, semconv.URLScheme("http"), semconv.URLPath(valid(path)))
}

// pathOf returns the path without the query. It has the bytes that were sent, except in a
// request of a proxy's form, whose target may hold a password.
func pathOf(h *message.Head) string {
	if !strings.HasPrefix(h.Target, "/") {
		path, _, _ := h.NormalPath() // "" if it has no normal form
		return path
	}
	path, _, _ := strings.Cut(h.Target, "?")
	return path
}

// authority returns the host and the port that the caller named. port is 0 if it named
// none.
func authority(h *message.Head) (host string, port int) {
	value := h.Authority
	if value == "" {
		value, _ = h.Get("Host")
	}
	host, number, err := net.SplitHostPort(value)
	if err != nil {
		return valid(strings.Trim(value, "[]")), 0
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		n = 0
	}
	return valid(host), int(n)
}

// valid returns text of a caller as an attribute can hold it. A span that is not valid
// UTF-8 would fail its whole batch.
func valid(s string) string {
	return strings.Clone(strings.ToValidUTF8(s[:min(len(s), maxAttribute)], "?"))
}

// carrier is a propagation.TextMapCarrier.
type carrier struct{ head *message.Head }

// Get returns "" for a traceparent that is there twice, and for a tracestate that is too
// long.
func (c carrier) Get(name string) string {
	values := c.head.Values(name)
	if name == stateField {
		value := strings.Join(values, ",")
		if len(value) > maxState {
			return ""
		}
		return strings.Clone(value)
	}
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

// Set is of propagation.TextMapCarrier.
func (c carrier) Set(name, value string) { c.head.Set(name, value) }

// Keys is of propagation.TextMapCarrier. The propagator does not need it.
func (c carrier) Keys() []string { return nil }
