package mirror

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts what the room does. A nil *Metrics counts nothing.
type Metrics struct {
	writes   *prometheus.CounterVec
	problems *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them with reg. Writes of every kind
// are counted from zero.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_mirror_writes_total", Help: "Writes of mirrors and their slices to the API server, by operation.",
		}, []string{"op"}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_mirror_problems", Help: "Mirrors that do not stand as the peer's catalog says, by Link and reason.",
		}, []string{"link", "reason"}),
	}
	for _, op := range []Op{Create, Update, Delete} {
		m.writes.WithLabelValues(op.String())
	}
	reg.MustRegister(m.writes, m.problems)
	return m
}

func (m *Metrics) wrote(op Op) {
	if m != nil {
		m.writes.WithLabelValues(op.String()).Inc()
	}
}

func (m *Metrics) show(link string, problems []Problem) {
	if m == nil {
		return
	}
	count := make(map[string]int)
	for _, p := range problems {
		count[p.Reason]++
	}
	for _, reason := range Reasons {
		m.problems.WithLabelValues(link, reason).Set(float64(count[reason]))
	}
}

func (m *Metrics) forget(link string) {
	if m != nil {
		m.problems.DeletePartialMatch(prometheus.Labels{"link": link})
	}
}
