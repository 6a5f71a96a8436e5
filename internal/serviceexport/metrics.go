package serviceexport

import "github.com/prometheus/client_golang/prometheus"

// Outcomes of a write.
const (
	written  = "written"
	conflict = "conflict" // another field manager owns the condition
	rejected = "rejected" // the API server does not accept the conditions
	failed   = "failed"   // the Writer tries again
)

// Metrics counts the writes of a Writer.
type Metrics struct{ writes *prometheus.CounterVec }

// NewMetrics creates the metrics and registers them with reg. Every outcome has a counter
// from the start.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{writes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_serviceexport_writes_total",
		Help: "Writes of conditions of ServiceExports to the API server, by outcome.",
	}, []string{"outcome"})}
	for _, outcome := range []string{written, conflict, rejected, failed} {
		m.writes.WithLabelValues(outcome)
	}
	reg.MustRegister(m.writes)
	return m
}

func (m *Metrics) count(outcome string) { m.writes.WithLabelValues(outcome).Inc() }
