package controller

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
	"github.com/causeway-mesh/causeway/internal/signer"
)

// RegisterMetrics registers each metric of a controller process with reg, as the process
// does while it starts. No process calls it: docs/metrics.md is made from it.
func RegisterMetrics(reg prometheus.Registerer) {
	newReconcilerMetrics(reg)
	wire.NewMetrics(reg)
	mirror.NewMetrics(reg)
	serviceexport.NewMetrics(reg)
	joinflow.NewResults(reg)
	signer.New(signer.NewAuthenticator("", nil, nil, reg), nil, signer.Options{Registerer: reg})
	nodestream.NewServer(nil, nil, nil, nodestream.ServerOptions{Registerer: reg})
	peering.NewHopListener(nil, route.HopKey{}, nil, reg)
	reg.MustRegister(peering.NewCollector(peering.New(peering.Config{})))
	reg.MustRegister(mirror.NewCollector(mirror.NewWriter(mirror.WriterConfig{})))
	reg.MustRegister(clusterid.NewExpiryCollector(func() []clusterid.Expiry {
		var all []clusterid.Expiry
		for _, kind := range clusterid.Certificates() {
			all = append(all, clusterid.Expiry{Kind: kind, NotAfter: time.Now()})
		}
		return all
	}))
}

// reconcilerMetrics counts passes.
type reconcilerMetrics struct {
	passes       prometheus.Histogram
	repairs      prometheus.Counter
	failingPaths prometheus.Gauge
	unread       *prometheus.GaugeVec
}

func newReconcilerMetrics(reg prometheus.Registerer) *reconcilerMetrics {
	m := &reconcilerMetrics{
		passes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "causeway_controller_pass_seconds",
			Help:    "Time that one pass of the reconciler takes, from its batch to its last hand-over.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
		}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_controller_resync_repairs_total",
			Help: "Decisions that the full pass had to repair because no event had announced them.",
		}),
		failingPaths: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "causeway_controller_failing_paths",
			Help: "Nodes whose path from a pod to its agent failed when causeway check or install last " +
				"tested it.",
		}),
		unread: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_controller_unread_kinds",
			Help: "Whether the controller has read no objects of a served Gateway API kind since it " +
				"started (1 or 0).",
		}, []string{"kind"}),
	}
	for _, kind := range gatewayKindNames {
		m.unread.WithLabelValues(kind)
	}
	reg.MustRegister(m.passes, m.repairs, m.failingPaths, m.unread)
	return m
}
