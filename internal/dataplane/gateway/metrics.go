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
	reasonTooManyFrom = "too_many_hellos_from_source"
	reasonNoEndpoint  = "no_ready_endpoint"
	reasonBackend     = "backend_unreachable"
)

type metrics struct {
	refused     *prometheus.CounterVec
	accepted    prometheus.Counter
	spliced     *prometheus.CounterVec
	open        prometheus.Gauge
	bytes       *prometheus.CounterVec
	ended       *prometheus.CounterVec
	backendFail prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_gateway_accepted_total", Help: "Connections accepted."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_refused_total", Help: "Connections refused before any byte reached a backend, by reason."}, []string{"reason"}),
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
	reasons = append(reasons, reasonNotReady, reasonTooMany, reasonTooManyFrom, reasonNoEndpoint, reasonBackend)
	for _, reason := range reasons {
		m.refused.WithLabelValues(reason)
	}
	r.MustRegister(m.accepted, m.refused, m.spliced, m.open, m.bytes, m.ended, m.backendFail)
	return m
}
