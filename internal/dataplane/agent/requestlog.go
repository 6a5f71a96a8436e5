package agent

import (
	"strconv"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// The records of requests and connections that have ended, for the access log and for
// taps. Each function of this file that makes one returns at once if no one wants it.

// record logs a request that has ended.
func (r *outboundRequest) record(result httprelay.Result) {
	hub := r.conn.agent.requestLog
	want := hub.Wants(isFailed(result))
	if want == 0 {
		return
	}
	rec := r.backend.out.record(reqlog.KindRequest)
	rec.Since(r.start)
	if r.session != nil {
		rec.Endpoint = r.session.endpoint.String()
	}
	setProtocol(rec, r.head, r.grpc)
	rec.SetTarget(r.head.Method, r.target, hub.WithQuery())
	setRequest(rec, r.head, result, outbound)
	hub.Publish(want, rec)
}

// recordMalformed logs a request that could not be read.
func (cc *callerConn) recordMalformed(p reqmetrics.Protocol, bad *h1.Error) {
	hub := cc.agent.requestLog
	want := hub.Wants(true)
	if want == 0 {
		return
	}
	rec := cc.out.record(reqlog.KindRequest)
	rec.Since(time.Now())
	rec.Protocol, rec.Status, rec.Reason = p.String(), bad.Status, reasonMalformed
	hub.Publish(want, rec)
}

// record logs a request that has ended.
func (r *inboundRequests) record(head *message.Head, start time.Time, result httprelay.Result) {
	hub := r.agent.requestLog
	want := hub.Wants(isFailed(result))
	if want == 0 {
		return
	}
	rec := r.agent.inboundRecord(r.in, reqlog.KindRequest)
	rec.Since(start)
	if result.Tries == 0 {
		rec.Endpoint = ""
	}
	setProtocol(rec, head, isGRPC(head))
	rec.SetTarget(head.Method, head.Target, hub.WithQuery())
	setRequest(rec, head, result, inbound)
	hub.Publish(want, rec)
}

// recordOutbound logs a connection that was carried and has ended.
func (a *Agent) recordOutbound(out *outboundConn, start time.Time, result transport.Result) {
	want := a.requestLog.Wants(!result.Clean())
	if want == 0 {
		return
	}
	rec := out.record(reqlog.KindConnection)
	rec.Since(start)
	if out.answer.Endpoint != (route.EndpointID{}) {
		rec.Endpoint = out.answer.Endpoint.String()
	}
	rec.RequestBytes, rec.ResponseBytes, rec.Tries = result.Sent, result.Received, 1
	setEnd(rec, result)
	a.requestLog.Publish(want, rec)
}

// recordRefused logs a connection that was refused, if its caller and its Service are
// known.
func (a *Agent) recordRefused(out *outboundConn, err error) {
	want := a.requestLog.Wants(true)
	if want == 0 || out.mirror == nil || out.peer == nil || out.caller == nil || out.credential == nil {
		return
	}
	rec := out.record(reqlog.KindConnection)
	rec.Since(time.Now())
	rec.Reason = reasonOf(err)
	a.requestLog.Publish(want, rec)
}

// recordInbound logs a connection that was served and has ended.
func (a *Agent) recordInbound(in *inboundConn, start time.Time, result transport.Result) {
	want := a.requestLog.Wants(!result.Clean())
	if want == 0 {
		return
	}
	rec := a.inboundRecord(in, reqlog.KindConnection)
	rec.Since(start)
	rec.RequestBytes, rec.ResponseBytes, rec.Tries = result.Received, result.Sent, 1
	setEnd(rec, result)
	a.requestLog.Publish(want, rec)
}

// recordRejected logs a session or a connection that was refused, if its caller is proven
// and names a Service. A refused peer can name any Service, so the record says whether the
// Service is one of the pod's namespace.
func (a *Agent) recordRejected(in *inboundConn, err error) {
	want := a.requestLog.Wants(true)
	if want == 0 || in.caller.IsZero() || in.server == nil || in.hello.Service == "" {
		return
	}
	rec := a.inboundRecord(in, reqlog.KindConnection)
	rec.Since(time.Now())
	rec.Endpoint, rec.Reason = "", reasonOf(err)
	rec.Claimed = !a.servesNamed(in)
	a.requestLog.Publish(want, rec)
}

// servesNamed reports whether the Service that a peer names is exported and in the
// namespace of the pod to which its gateway has led the peer.
func (a *Agent) servesNamed(in *inboundConn) bool {
	s := a.state.Load()
	if s == nil || in.hello.Namespace != in.server.Name().Namespace() {
		return false
	}
	_, exported := s.exportedPorts[exportedPortKey{in.hello.Namespace, in.hello.Service, in.hello.Port}]
	return exported
}

// isFailed reports whether a request failed, as far as it is known without a Record.
func isFailed(r httprelay.Result) bool {
	if r.Err != nil || r.Status == 0 || r.Status >= 500 {
		return true
	}
	status, ok := grpcStatusNumber(r)
	return ok && reqlog.IsServerError(status)
}

// grpcStatusNumber returns the gRPC status of a response, if it has one.
func grpcStatusNumber(r httprelay.Result) (status uint32, ok bool) {
	if !r.HasGRPC {
		return 0, false
	}
	n, err := strconv.ParseUint(r.GRPCStatus, 10, 32)
	return uint32(n), err == nil
}

// record returns a Record with what is known of a connection.
func (c *outboundConn) record(kind string) *reqlog.Record {
	return &reqlog.Record{
		Kind:      kind,
		Direction: reqlog.Outbound,
		Link:      c.peer.name,
		Peer:      c.peer.trustDomain,
		Namespace: c.mirror.namespace,
		Service:   c.mirror.service,
		Port:      c.port.number,
		Mirror:    c.mirror.name,
		Caller:    c.callerName(),
		Workload:  c.caller.namespace + "/" + c.caller.serviceAccount,
		Pod:       c.caller.namespace + "/" + c.caller.name,
		Protocol:  reqmetrics.TCP.String(),
	}
}

// inboundRecord returns a Record with what is known of a session.
func (a *Agent) inboundRecord(in *inboundConn, kind string) *reqlog.Record {
	rec := &reqlog.Record{
		Kind:      kind,
		Direction: reqlog.Inbound,
		Link:      in.decision.Link.Name,
		Peer:      in.caller.TrustDomain(),
		Namespace: in.hello.Namespace,
		Service:   in.hello.Service,
		Port:      in.hello.Port,
		Caller:    in.caller.String(),
		Workload:  in.server.Name().Namespace() + "/" + in.server.Name().ServiceAccount(),
		Protocol:  reqmetrics.TCP.String(),
	}
	if rec.Link == "" { // it was not admitted
		rec.Link = in.header.Link
	}
	if s := a.state.Load(); s != nil {
		if p := s.pods[in.header.PodUID]; p != nil {
			rec.Pod = p.namespace + "/" + p.name
		}
	}
	if len(in.addrs) > 0 {
		rec.Endpoint = in.addrs[0].String()
	}
	return rec
}

// setProtocol sets the protocol of a request.
func setProtocol(rec *reqlog.Record, head *message.Head, grpc bool) {
	protocol := reqmetrics.HTTP1
	switch {
	case grpc:
		protocol = reqmetrics.GRPC
	case head.Version == message.HTTP2:
		protocol = reqmetrics.HTTP2
	}
	rec.Protocol = protocol.String()
}

// setRequest sets the trace of a request, and how it ended.
func setRequest(rec *reqlog.Record, head *message.Head, result httprelay.Result, direction string) {
	if parent, ok := head.Get("Traceparent"); ok {
		rec.TraceID = reqlog.TraceID(parent)
	}
	rec.Status, rec.Tries = result.Status, result.Tries
	rec.RequestBytes, rec.ResponseBytes = result.Sent, result.Received
	if result.Began {
		rec.SetFirstByte(result.FirstByte)
	}
	if status, ok := grpcStatusNumber(result); ok {
		rec.GRPCStatus = &status
	}
	switch {
	case result.Err == nil:
	case isCallerGone(result):
		rec.Reason = reasonCallerGone
	default:
		rec.Reason = requestReason(result.Err, direction)
	}
}

// setEnd sets why a connection ended, unless both of its ends closed it.
func setEnd(rec *reqlog.Record, result transport.Result) {
	if !result.Clean() {
		rec.Reason = result.Reason.String()
	}
}
