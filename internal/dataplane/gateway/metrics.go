package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// Reasons of this package's own for refusing a connection. Those of a bad hello
// are transport's, those of a bad label route's.
const (
	reasonNotReady    = "not_ready"
	reasonTooMany     = "too_many_connections"
	reasonLinkShare   = "link_share" // it has its share of this gateway's connections
	reasonTooManyFrom = "too_many_hellos_from_source"
	reasonNoEndpoint  = "no_ready_endpoint"
	reasonBackend     = "backend_unreachable"
	reasonEvicted     = "unproven_evicted"
	reasonUnproven    = "unproven_timeout"
	// Of those who come by an invite.
	reasonTooManyJoins = "too_many_joins"
	reasonJoinTime     = "join_timeout"
)

// ownReasons are those above.
var ownReasons = []string{reasonNotReady, reasonTooMany, reasonLinkShare, reasonTooManyFrom, reasonNoEndpoint, reasonBackend, reasonEvicted, reasonUnproven, reasonTooManyJoins, reasonJoinTime}

type metrics struct {
	refused     *prometheus.CounterVec
	accepted    prometheus.Counter
	spliced     *prometheus.CounterVec
	open        prometheus.Gauge
	bytes       *prometheus.CounterVec
	ended       *prometheus.CounterVec
	backendFail prometheus.Counter
}

// newMetrics registers what is counted. unproven says how many connections are not proven.
func newMetrics(r prometheus.Registerer, unproven func() int) *metrics {
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_gateway_accepted_total", Help: "Connections accepted."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_refused_total", Help: "Connections refused, by reason: before any byte reached a backend, but for unproven_*, whose far side did not answer beyond the handshake, and join_timeout."}, []string{"reason"}),
		spliced: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_spliced_total", Help: "Connections handed to a backend, by link."}, []string{"link"}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "causeway_gateway_open_connections", Help: "Connections being spliced now."}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_bytes_total", Help: "Bytes spliced, counted when a connection ends, by link and direction."}, []string{"link", "direction"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_ended_total", Help: "Spliced connections that ended, by how."}, []string{"how"}),
		backendFail: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_gateway_backend_failures_total", Help: "Backends that refused or did not answer; another endpoint was then tried."}),
	}
	reasons := append(route.Reasons(), transport.HelloReasons()...)
	for _, reason := range append(reasons, ownReasons...) {
		m.refused.WithLabelValues(reason)
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "causeway_gateway_unproven_connections", Help: "Connections handed to a backend whose far side has not answered beyond the handshake."},
		func() float64 { return float64(unproven()) })
	r.MustRegister(waiting, m.accepted, m.refused, m.spliced, m.open, m.bytes, m.ended, m.backendFail)
	return m
}
