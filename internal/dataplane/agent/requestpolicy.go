package agent

import (
	"github.com/causeway-mesh/causeway/internal/dataplane/balance"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// isOpaque reports whether the agent must treat the connections of a port as opaque,
// without recognizing requests.
func (p mirrorPort) isOpaque() bool { return p.protocol == trafficsettings.TCP }

// speaksHTTP reports whether a port is declared to carry requests.
func (p mirrorPort) speaksHTTP() bool {
	switch p.protocol {
	case trafficsettings.HTTP1, trafficsettings.HTTP2, trafficsettings.GRPC:
		return true
	}
	return false
}

// retryPolicy returns which requests of a port are sent again: what the exporter and the
// Link ask for, and the defaults for the rest.
func (p mirrorPort) retryPolicy() retry.Policy {
	s, policy := p.settings, retry.Default()
	policy.Timeout, policy.PerTryTimeout = max(s.Timeout, 0), max(s.PerTryTimeout, 0)
	switch {
	case s.Retries == trafficsettings.None:
		policy.MaxRetries = 0
	case s.Retries > 0:
		policy.MaxRetries = s.Retries
	}
	if s.RetryOn == 0 {
		return policy
	}
	policy.On = 0
	for on, condition := range map[trafficsettings.RetryOn]retry.Conditions{
		trafficsettings.RetryConnectFailure: retry.OnConnectionFailed,
		trafficsettings.RetryReset:          retry.OnReset | retry.OnTryTimeout,
		trafficsettings.RetryGatewayError:   retry.OnGatewayErrors,
		trafficsettings.Retry5xx:            retry.OnServerErrors,
	} {
		if s.RetryOn&on != 0 {
			policy.On |= condition
		}
	}
	if s.RetryOn&trafficsettings.RetryUnavailable != 0 {
		policy.GRPCStatuses = 1 << grpcUnavailable
	}
	if s.RetryOn&trafficsettings.RetryIdempotent != 0 {
		policy.Methods = append(policy.Methods, "PUT", "DELETE")
	}
	return policy
}

// balanceConfig returns how the requests of a call are balanced.
func (a *Agent) balanceConfig(c *outboundConn) balance.Config {
	return balance.Config{
		Seed:      a.balanceSeed,
		SlowStart: c.port.settings.SlowStart,
	}
}

// prefersSameZone reports whether the Service of a call prefers endpoints in the zone of
// the caller. It reads the current setting, so a change also affects open connections.
func (a *Agent) prefersSameZone(c *outboundConn) bool {
	if m := a.state.Load().mirrors[c.vip]; m.sameTarget(c.mirror) {
		return m.ports[c.index].settings.PreferSameZone
	}
	return c.port.settings.PreferSameZone
}
