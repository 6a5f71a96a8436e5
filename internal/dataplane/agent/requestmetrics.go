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

// requestResult returns the result of a request that began at start, for metrics.
func requestResult(r httprelay.Result, start time.Time) reqmetrics.Result {
	out := reqmetrics.Result{
		Status:        r.Status,
		Duration:      time.Since(start),
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

// rejectionOf returns why the mesh answers a request in place of an application.
func rejectionOf(err error) reqmetrics.Rejection {
	body := malformedBody{}
	malformed := (*h1.Error)(nil)
	refused := (*refusal)(nil)
	switch {
	case errors.As(err, &body):
		return malformedRejection(body.cause)
	case errors.Is(err, httprelay.ErrTimeout):
		return reqmetrics.RejectedTimeout
	case errors.As(err, &malformed):
		return reqmetrics.RejectedUpstream
	case !errors.As(err, &refused):
		return reqmetrics.RejectedUpstream
	case refused.reason == reasonNoRoute || refused.reason == reasonNoRouteBackend:
		return reqmetrics.RejectedNoRoute
	case refused.reason == reasonAmbiguousPath:
		return reqmetrics.RejectedMalformed
	case refused.reason == reasonCircuitOpen:
		return reqmetrics.RejectedCircuitOpen
	case refused.reason == reasonTooManyRequests || refused.code == tunnel.Code_OVERLOADED:
		return reqmetrics.RejectedOverloaded
	case refused.code == tunnel.Code_DENIED || refused.code == tunnel.Code_NOT_EXPORTED,
		refused.reason == reasonSuspended || refused.reason == reasonCallerNotAllowed || refused.reason == reasonRevoked:
		return reqmetrics.RejectedNotAllowed
	}
	return reqmetrics.RejectedNoEndpoint
}
