package nodestream

import "github.com/prometheus/client_golang/prometheus"

// Reasons why a server refused or ended a call. The list is closed.
const (
	refusedNoToken     = "no_token"
	refusedToken       = "token"
	refusedUnchecked   = "token_not_checked"
	refusedRole        = "role"
	refusedNoState     = "no_state"
	refusedStreams     = "too_many_streams"
	refusedConnections = "too_many_connections"
	refusedSlow        = "slow_reader"
	refusedSigning     = "not_signed"
	refusedReport      = "unsolicited_report"
)

// Reasons why a client lost its stream. The list is closed.
const (
	lostEnded       = "ended"       // by the server, without an error
	lostReplaced    = "replaced"    // by the stream of a replica with fresher state
	lostUnreachable = "unreachable" // dial, handshake, or the connection broke
	lostRefused     = "refused"     // token or role
	lostSilent      = "silent"
	lostInvalid     = "invalid_update"
	lostLimit       = "limit" // an update too large, or the server's limits
	lostOther       = "other"
)

type serverMetrics struct {
	refused *prometheus.CounterVec
	streams *prometheus.GaugeVec
	resumed prometheus.Counter
}

func newServerMetrics(reg prometheus.Registerer) serverMetrics {
	m := serverMetrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_nodestream_refused_total",
			Help: "Calls and connections that the node stream's server refused or closed, by reason.",
		}, []string{"reason"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_nodestream_streams",
			Help: "Open node streams, by role of the client.",
		}, []string{"role"}),
		resumed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_nodestream_resumed_total",
			Help: "Node streams that continued an earlier one without a snapshot.",
		}),
	}
	for _, reason := range []string{
		refusedNoToken,
		refusedToken,
		refusedUnchecked,
		refusedRole,
		refusedNoState,
		refusedStreams,
		refusedConnections,
		refusedSlow,
		refusedSigning,
		refusedReport,
	} {
		m.refused.WithLabelValues(reason)
	}
	for _, role := range []Role{RoleAgent, RoleGateway} {
		m.streams.WithLabelValues(role.String())
	}
	register(reg, m.refused, m.streams, m.resumed)
	return m
}

type clientMetrics struct {
	lost      *prometheus.CounterVec
	resources prometheus.Gauge
}

func newClientMetrics(reg prometheus.Registerer) clientMetrics {
	m := clientMetrics{
		lost: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_nodestream_lost_total",
			Help: "Node streams and attempts at one that ended, by reason.",
		}, []string{"reason"}),
		resources: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "causeway_nodestream_resources",
			Help: "Resources in the current state; 0 before the first state and after it expired.",
		}),
	}
	for _, reason := range []string{lostEnded, lostReplaced, lostUnreachable, lostRefused, lostSilent,
		lostInvalid, lostLimit, lostOther} {
		m.lost.WithLabelValues(reason)
	}
	register(reg, m.lost, m.resources)
	return m
}

// register registers cs with reg; nil registers nothing.
func register(reg prometheus.Registerer, cs ...prometheus.Collector) {
	if reg != nil {
		reg.MustRegister(cs...)
	}
}
