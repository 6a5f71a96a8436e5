package agent

import (
	"errors"
	"strconv"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// metricsKey returns the metrics' key of an outbound connection that carries a protocol.
func (c *outboundConn) metricsKey(p reqmetrics.Protocol) reqmetrics.Key {
	return reqmetrics.Key{
		Direction: reqmetrics.Outbound,
		Link:      c.peer.name,
		Namespace: c.mirror.namespace,
		Service:   c.mirror.service,
		Port:      uint16(c.port.number),
		Workload:  c.caller.namespace + "/" + c.caller.serviceAccount,
		Protocol:  p,
	}
}

// metricsKey returns the metrics' key of an inbound session.
func (in *inboundConn) metricsKey() reqmetrics.Key {
	return reqmetrics.Key{
		Direction: reqmetrics.Inbound,
		Link:      in.decision.Link.Name,
		Namespace: in.hello.Namespace,
		Service:   in.hello.Service,
		Port:      uint16(in.hello.Port),
		Workload:  in.server.Name().Namespace() + "/" + in.server.Name().ServiceAccount(),
		Protocol:  metricsProtocol(in.protocol),
	}
}

// metricsProtocol returns the label of a protocol. Requests of gRPC have one of their own.
func metricsProtocol(p tunnel.Protocol) reqmetrics.Protocol {
	switch p {
	case tunnel.Protocol_HTTP1:
		return reqmetrics.HTTP1
	case tunnel.Protocol_HTTP2:
		return reqmetrics.HTTP2
	}
	return reqmetrics.TCP
}

// requestRecorders returns the recorders of requests, and of requests of gRPC.
func (a *Agent) requestRecorders(key reqmetrics.Key) (r [2]*reqmetrics.Recorder) {
	r[0] = a.requestMetrics.Recorder(key)
	key.Protocol = reqmetrics.GRPC
	r[1] = a.requestMetrics.Recorder(key)
	return r
}

// requestResult returns the result of a request that took duration, for metrics.
func requestResult(r httprelay.Result, duration time.Duration) reqmetrics.Result {
	out := reqmetrics.Result{
		Status:        r.Status,
		Duration:      duration,
		RequestBytes:  uint64(r.Sent),
		ResponseBytes: uint64(r.Received),
	}
	if r.HasGRPC {
		if status, err := strconv.ParseUint(r.GRPCStatus, 10, 32); err == nil {
			out.GRPCStatus, out.HasGRPCStatus = uint32(status), true
		}
	}
	return out
}

// exchangeResult returns the result of an opaque connection, for metrics. The caller's
// bytes are the request.
func exchangeResult(r transport.Result, direction string, start time.Time) reqmetrics.Result {
	out := reqmetrics.Result{Duration: time.Since(start), RequestBytes: uint64(r.Sent), ResponseBytes: uint64(r.Received)}
	if direction == inbound {
		out.RequestBytes, out.ResponseBytes = out.ResponseBytes, out.RequestBytes
	}
	return out
}

// countRefused counts an outbound connection that was refused, if its target is known. A
// connection that its caller has closed does not count.
func (a *Agent) countRefused(out *outboundConn, err error) {
	reason := reasonOf(err)
	if out.mirror == nil || out.peer == nil || out.caller == nil || reason == reasonCallerGone || reason == reasonCallerSilent {
		return
	}
	a.countRejectedConn(out.metricsKey(reqmetrics.TCP), err)
}

// countRejected counts a refused OPEN of an opaque connection.
func (a *Agent) countRejected(in *inboundConn, err error) {
	if in.protocol == tunnel.Protocol_OPAQUE && in.opaque.Load() && in.decision.Link.Name != "" {
		a.countRejectedConn(in.metricsKey(), err)
	}
}

// countRejectedConn counts an opaque connection, which is one request, as rejected.
func (a *Agent) countRejectedConn(key reqmetrics.Key, err error) {
	now := time.Now()
	counted := a.requestMetrics.Recorder(key).Start(now)
	counted.Rejected(rejectionOf(err))
	counted.Finish(now, reqmetrics.Result{})
}

// rejectionOf returns why the mesh answers a request in place of an application.
func rejectionOf(err error) reqmetrics.Rejection {
	body := malformedBody{}
	malformed := (*h1.Error)(nil)
	refused := (*refusal)(nil)
	code := tunnel.Code_CODE_UNSPECIFIED
	if peer := (*tunnel.Refused)(nil); errors.As(err, &peer) {
		code = peer.Code
	} else if errors.As(err, &refused) {
		code = refused.code
	}
	switch {
	case errors.As(err, &body):
		return malformedRejection(body.cause)
	case errors.Is(err, httprelay.ErrTimeout):
		return reqmetrics.RejectedTimeout
	case errors.As(err, &malformed):
		return reqmetrics.RejectedUpstream
	case !errors.As(err, &refused):
		return reqmetrics.RejectedUpstream
	case refused.reason == reasonNoRoute || refused.reason == reasonNoRouteBackend,
		refused.reason == reasonRoutesUnread:
		return reqmetrics.RejectedNoRoute
	case refused.reason == reasonAmbiguousPath || refused.reason == reasonRegexSteps:
		return reqmetrics.RejectedMalformed
	case refused.reason == reasonCircuitOpen:
		return reqmetrics.RejectedCircuitOpen
	case overloadReasons[refused.reason] || code == tunnel.Code_OVERLOADED:
		return reqmetrics.RejectedOverloaded
	case code == tunnel.Code_DENIED || code == tunnel.Code_NOT_EXPORTED,
		refused.reason == reasonSuspended || refused.reason == reasonCallerNotAllowed || refused.reason == reasonRevoked:
		return reqmetrics.RejectedNotAllowed
	}
	return reqmetrics.RejectedNoEndpoint
}

// overloadReasons are the reasons of this package with which an agent sheds load.
var overloadReasons = map[string]bool{
	reasonTooManyRequests: true,
	reasonTooMany:         true,
	reasonAccountShare:    true,
	reasonLinkShare:       true,
	reasonSourceShare:     true,
	reasonGatewayBudget:   true,
	reasonCallRate:        true,
	reasonExchangeRate:    true,
}
