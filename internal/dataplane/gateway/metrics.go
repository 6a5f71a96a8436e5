package gateway

import (
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// This package's own reasons for refusing a connection. Those of a bad hello are
// transport's, and those of a bad label route's.
const (
	reasonNotReady = "not_ready"
	// Before the hello.
	reasonAcceptRate        = "accept_rate"
	reasonTooManyHellos     = "too_many_hellos"
	reasonTooManyHellosFrom = "too_many_hellos_from_source"
	// After the label has opened.
	reasonLinkShare    = "link_share"
	reasonSourceShare  = "source_share" // of its link's share
	reasonUnprovenRate = "unproven_rate"
	reasonNoEndpoint   = "no_ready_endpoint"
	reasonBackend      = "backend_unreachable"
	reasonNoAgent      = "no_agent" // for a probe
	// After the hello was handed over.
	reasonEvicted  = "unproven_evicted"
	reasonUnproven = "unproven_timeout"
	// Of invites.
	reasonTooManyJoins = "too_many_joins"
	reasonJoinTime     = "join_timeout"
)

// evictionReasons are the reasons for eviction before the hello.
var evictionReasons = map[budget.EvictedBy]string{
	budget.BySource: reasonTooManyHellosFrom,
	budget.ByTotal:  reasonTooManyHellos,
}

// ownReasons are those above.
var ownReasons = []string{
	reasonNotReady,
	reasonAcceptRate, reasonTooManyHellos, reasonTooManyHellosFrom,
	reasonLinkShare, reasonSourceShare, reasonUnprovenRate, reasonNoEndpoint, reasonBackend, reasonNoAgent,
	reasonEvicted, reasonUnproven,
	reasonTooManyJoins, reasonJoinTime,
}

type metrics struct {
	refused     *prometheus.CounterVec
	accepted    prometheus.Counter
	spliced     *prometheus.CounterVec
	open        prometheus.Gauge
	bytes       *prometheus.CounterVec
	ended       *prometheus.CounterVec
	backendFail prometheus.Counter
	drained     atomic.Int64 // connections that ended because the drain period was over
}

// newMetrics registers the metrics. pending and unproven return how many connections are
// in those stages.
func newMetrics(r prometheus.Registerer, pending, unproven func() int) *metrics {
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_gateway_accepted_total",
			Help: "Connections accepted."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_refused_total",
			Help: "Connections refused, by reason. No byte of them reached a backend, except of those with " +
				"the reasons unproven_evicted, unproven_timeout and join_timeout."}, []string{"reason"}),
		spliced: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_spliced_total",
			Help: "Connections handed to a backend, by link."}, []string{"link"}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "causeway_gateway_open_connections",
			Help: "Connections being spliced now."}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_bytes_total",
			Help: "Bytes spliced, counted when a connection ends, by link and direction."},
			[]string{"link", "direction"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_gateway_ended_total",
			Help: "Spliced connections that ended, by reason."}, []string{"reason"}),
		backendFail: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_gateway_backend_failures_total",
			Help: "Backends that refused or did not answer; another endpoint was then tried."}),
	}
	for _, reason := range slices.Concat(route.Reasons(), transport.HelloReasons(), ownReasons) {
		m.refused.WithLabelValues(reason)
	}
	r.MustRegister(
		gaugeOf(pending, "causeway_gateway_pending_connections",
			"Connections that have not sent a whole ClientHello."),
		gaugeOf(unproven, "causeway_gateway_unproven_connections",
			"Connections handed to a backend whose far side has not answered beyond the handshake."),
		m.accepted, m.refused, m.spliced, m.open, m.bytes, m.ended, m.backendFail)
	return m
}

func gaugeOf(count func() int, name, help string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
		func() float64 { return float64(count()) })
}
