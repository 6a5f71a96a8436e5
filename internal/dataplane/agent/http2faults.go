package agent

import (
	"log/slog"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
)

// The other end of an HTTP/2 connection is a caller, an application, or the agent of a
// peer. mux refuses what that end does wrong, and this file counts and logs each fault.

// http2Prefix is the prefix of the reasons that come from mux.
const http2Prefix = "http2_"

// recordFault counts and logs a fault. about has log attributes that identify the other
// end.
func (a *Agent) recordFault(direction string, f mux.Fault, about ...any) {
	a.metrics.refuse(direction, http2Prefix+f.Reason)
	a.logLimited(slog.LevelInfo, "invalid HTTP/2 refused", append(about, "reason", f.Reason, "error", f.Err)...)
}

// headTooLarge returns the error of a request whose head mux has refused with a status.
func headTooLarge(f mux.Fault) *h1.Error { return &h1.Error{Status: f.Status, Reason: f.Reason} }

// countMalformed counts a request that could not be read.
func countMalformed(recorder *reqmetrics.Recorder, bad *h1.Error) {
	now := time.Now()
	counted := recorder.Start(now)
	counted.Rejected(malformedRejection(bad))
	counted.Finish(now, reqmetrics.Result{Status: bad.Status})
}

// recordFault handles a fault of the caller.
func (cc *callerConn) recordFault(f mux.Fault) {
	cc.agent.recordFault(outbound, f, "mirror", cc.out.mirrorName(), "caller", cc.out.callerName())
	if f.Status != 0 {
		countMalformed(cc.recorders[0], headTooLarge(f))
		cc.recordMalformed(reqmetrics.HTTP2, headTooLarge(f))
	}
}

// recordFault handles a fault of the caller's agent.
func (r *inboundRequests) recordFault(f mux.Fault) {
	r.agent.recordFault(inbound, f, "service", r.in.service(), "caller", r.in.caller, "link", r.in.decision.Link.Name)
	if f.Status != 0 {
		countMalformed(r.recorders[0], headTooLarge(f))
	}
}

// recordAppFault handles a fault of the application.
func (r *inboundRequests) recordAppFault(f mux.Fault) {
	r.agent.recordFault(inbound, f, "service", r.in.service(), "pod", r.in.header.PodUID)
}

// recordFault handles a fault of the far agent.
func (s *requestSession) recordFault(a *Agent, f mux.Fault) {
	a.recordFault(outbound, f, "mirror", s.outbound.mirror.name, "peer", s.outbound.peer.name, "endpoint", s.endpoint)
}

// refusalFields returns the fields of the response to a request whose head is too large.
// side is as in httprelay.MeshError.
func refusalFields(side string) []message.Field {
	e := httprelay.MeshError{Side: side, Kind: "http_request_error", Reason: "head_too_large"}
	return []message.Field{e.Field(), {Name: "content-length", Value: "0"}}
}
