package mirror

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what Writers do. A nil *Metrics counts nothing.
type Metrics struct {
	writes    *prometheus.CounterVec
	latency   prometheus.Histogram
	throttled prometheus.Counter
	repairs   prometheus.Counter
	queued    *prometheus.GaugeVec
	problems  *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them with reg. Writes of every operation are
// counted from zero.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_mirror_writes_total",
			Help: "Writes of mirrors and their slices to the API server, by operation.",
		}, []string{"operation"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "causeway_mirror_write_duration_seconds",
			Help:    "Time that one write of a mirror or its slice takes at the API server.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		throttled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_mirror_throttled_total",
			Help: "Answers 429 (Too Many Requests) of the API server, each of which lowers the rate of " +
				"writes.",
		}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_mirror_resync_repairs_total",
			Help: "Writes that only the periodic resync found to be necessary.",
		}),
		queued: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_mirror_queue_length",
			Help: "Mirrors that wait for a worker, by Link.",
		}, []string{"link"}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_mirror_problems",
			Help: "Mirrors that differ from the peer's catalog, by Link and reason.",
		}, []string{"link", "reason"}),
	}
	for _, op := range []Op{Create, Update, Delete} {
		m.writes.WithLabelValues(op.String())
	}
	reg.MustRegister(m.writes, m.latency, m.throttled, m.repairs, m.queued, m.problems)
	return m
}

var queueAgeDesc = prometheus.NewDesc("causeway_mirror_queue_age_seconds",
	"How long the mirror has waited that has waited longest for a worker, by Link; 0 if none waits.",
	[]string{"link"}, nil)

// Collector collects how long mirrors have waited. NewCollector makes it.
type Collector struct{ writer *Writer }

// NewCollector returns a collector of the queues of w. It is to be registered.
func NewCollector(w *Writer) Collector { return Collector{w} }

// Describe implements prometheus.Collector.
func (Collector) Describe(to chan<- *prometheus.Desc) { to <- queueAgeDesc }

// Collect implements prometheus.Collector.
func (c Collector) Collect(to chan<- prometheus.Metric) {
	for link, age := range c.writer.queueAges(time.Now()) {
		to <- prometheus.MustNewConstMetric(queueAgeDesc, prometheus.GaugeValue, age.Seconds(), link)
	}
}

// queueAges returns by Link how long its first mirror has waited. The resync does not
// count, because nothing has asked for it.
func (w *Writer) queueAges(now time.Time) map[string]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[string]time.Duration, len(w.links))
	for name, l := range w.links {
		var age time.Duration
		for _, in := range []lane{repairLane, createLane, deleteLane} {
			if m := l.lanes[in].head(in); m != nil {
				age = max(age, now.Sub(m.queuedAt))
			}
		}
		out[name] = age
	}
	return out
}

// Throttled counts one answer 429. It fits throttle.New.
func (m *Metrics) Throttled() {
	if m != nil {
		m.throttled.Inc()
	}
}

func (m *Metrics) wrote(op Op, took time.Duration) {
	if m != nil {
		m.writes.WithLabelValues(op.String()).Inc()
		m.latency.Observe(took.Seconds())
	}
}

func (m *Metrics) repaired(writes int) {
	if m != nil {
		m.repairs.Add(float64(writes))
	}
}

// queue returns the gauge of a Link's queue; nil: there is none.
func (m *Metrics) queue(link string) prometheus.Gauge {
	if m == nil {
		return nil
	}
	return m.queued.WithLabelValues(link)
}

// show sets how many problems of each reason a Link has.
func (m *Metrics) show(link string, reasons map[string]int) {
	if m == nil {
		return
	}
	for _, reason := range Reasons {
		m.problems.WithLabelValues(link, reason).Set(float64(reasons[reason]))
	}
}

// forget drops the series of a Link.
func (m *Metrics) forget(link string) {
	if m != nil {
		m.queued.DeleteLabelValues(link)
		m.problems.DeletePartialMatch(prometheus.Labels{"link": link})
	}
}
