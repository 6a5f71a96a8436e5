package agent

import (
	"context"
	"encoding/hex"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/trace"
)

// The spans of requests: a client span for each try here, and a server span at the
// application's node. docs/design/0028-traces.md explains them.

// The attributes of spans that are Causeway's own. Others follow OpenTelemetry's
// conventions.
const (
	attrLink        = attribute.Key("causeway.link")         // the name of the Link
	attrPeerCluster = attribute.Key("causeway.peer.cluster") // the other trust domain
	attrService     = attribute.Key("causeway.service")      // namespace/name of the exported Service
	attrPort        = attribute.Key("causeway.port")         // of that Service
	attrCaller      = attribute.Key("causeway.caller")       // the SPIFFE ID of the caller
	attrServer      = attribute.Key("causeway.server")       // the SPIFFE ID of the application
	attrEndpoint    = attribute.Key("causeway.endpoint")     // the exporter's name of the pod
	attrPeerError   = attribute.Key("causeway.peer.error")   // why the far agent answered
	attrMirror      = attribute.Key("causeway.mirror")       // namespace/name of the mirror
)

// traceFlushTimeout bounds how long a process that ends waits for the collector.
const traceFlushTimeout = 3 * time.Second

// startTracer starts to trace requests if there is an endpoint. The caller must call stop
// when no request is open, which exports the last spans.
func (a *Agent) startTracer(o Options) (stop func(), err error) {
	if o.TraceEndpoint == "" {
		return func() {}, nil
	}
	a.tracer, err = trace.New(trace.Options{
		Endpoint: o.TraceEndpoint,
		Ratio:    o.TraceRatio,
		CAFile:   o.TraceCAFile,
		Service:  "causeway-agent",
		Version:  o.Version,
		Log:      a.log,
		Counter:  a.spans,
	})
	if err != nil {
		return nil, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), traceFlushTimeout)
		defer cancel()
		if err := a.tracer.Shutdown(ctx); err != nil {
			a.log.Warn("export of the last spans failed", "error", err)
		}
	}, nil
}

// startSpan starts the span of a try.
func (r *outboundRequest) startSpan(h *message.Head, at time.Time) {
	if !r.trace.Sampled() {
		return
	}
	out := r.backend.out
	r.trace.Start(trace.Client, h, r.grpc, at,
		attrLink.String(out.peer.name),
		attrPeerCluster.String(out.peer.trustDomain),
		attrMirror.String(out.mirrorName()),
		attrService.String(out.mirror.namespace+"/"+out.mirror.service),
		attrPort.Int(int(out.port.number)),
		attrCaller.String(out.credential.Name().String()),
		semconv.K8SNamespaceName(out.caller.namespace),
		semconv.K8SPodName(out.caller.name),
		semconv.K8SPodUID(out.caller.uid))
}

// addEndpoint adds where a try is sent.
func (r *outboundRequest) addEndpoint() {
	if !r.trace.Sampled() {
		return
	}
	r.trace.Add(attrEndpoint.String(hex.EncodeToString(r.session.endpoint[:])))
	if v := r.session.outbound.verified; v != nil {
		r.trace.Add(attrServer.String(v.name.String()))
	}
}

// addPeerError adds why the far agent answered in place of the application. value is that
// of httprelay.ErrorField.
func (r *outboundRequest) addPeerError(value string) {
	if r.trace.Sampled() {
		r.trace.Add(attrPeerError.String(httprelay.ErrorReason(value)))
	}
}

// endFailedSpan ends the span of a try that is followed by another.
func (r *outboundRequest) endFailedSpan(f httprelay.Failure) {
	if !r.trace.Sampled() {
		return
	}
	var end trace.Result
	if f.Response != nil {
		end.Status = f.Response.Status
		if status, ok := grpcStatusOf(f.Response); ok {
			end.GRPCStatus = reqmetrics.GRPCStatusName(status)
		}
	} else {
		end.Reason = requestReason(f.Err, outbound)
	}
	r.trace.End(time.Now(), end)
}

// endSpan ends the span of the last try. A request that was refused before its first try
// gets a span of its own.
func (r *outboundRequest) endSpan(result httprelay.Result) {
	if !r.trace.Sampled() {
		return
	}
	if r.trace.Spans() == 0 {
		r.startSpan(r.head, r.start)
	}
	r.trace.End(time.Now(), spanResult(result, outbound))
}

// startSpan starts the span of a request for the application.
func (r *inboundRequests) startSpan(h *message.Head, at time.Time) *trace.Request {
	traced := r.agent.tracer.SamplePeer(h)
	if !traced.Sampled() {
		return traced
	}
	in := r.in
	about := []attribute.KeyValue{
		attrLink.String(in.decision.Link.Name),
		attrPeerCluster.String(in.caller.TrustDomain()),
		attrService.String(in.hello.Namespace + "/" + in.hello.Service),
		attrPort.Int(int(in.hello.Port)),
		attrCaller.String(r.caller),
		attrServer.String(in.server.Name().String()),
		attrEndpoint.String(hex.EncodeToString(in.header.Endpoint[:])),
		semconv.K8SNamespaceName(in.hello.Namespace),
		semconv.K8SPodUID(in.header.PodUID),
	}
	if s := r.agent.state.Load(); s != nil {
		if p := s.pods[in.header.PodUID]; p != nil {
			about = append(about, semconv.K8SPodName(p.name))
		}
	}
	traced.Start(trace.Server, h, isGRPC(h), at, about...)
	return traced
}

// endInboundSpan ends the span of a request for the application.
func endInboundSpan(traced *trace.Request, result httprelay.Result) {
	if traced.Sampled() {
		traced.End(time.Now(), spanResult(result, inbound))
	}
}

// spanResult returns how the span of a request ends.
func spanResult(result httprelay.Result, direction string) trace.Result {
	end := trace.Result{Status: result.Status}
	if counted := requestResult(result, 0); counted.HasGRPCStatus {
		end.GRPCStatus = reqmetrics.GRPCStatusName(counted.GRPCStatus)
	}
	switch {
	case isCallerGone(result):
		end.Reason = reasonCallerGone
	case result.Err != nil:
		end.Reason = requestReason(result.Err, direction)
	}
	return end
}
