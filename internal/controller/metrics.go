package controller

import "github.com/prometheus/client_golang/prometheus"

// reconcilerMetrics counts passes.
type reconcilerMetrics struct {
	passes       prometheus.Histogram
	repairs      prometheus.Counter
	failingPaths prometheus.Gauge
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
	}
	reg.MustRegister(m.passes, m.repairs, m.failingPaths)
	return m
}
