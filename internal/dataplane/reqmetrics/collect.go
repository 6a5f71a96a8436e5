package reqmetrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

// keyLabels are the labels of every metric.
var keyLabels = []string{"direction", "link", "namespace", "service", "port", "workload", "protocol"}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, slices.Concat(keyLabels, labels), nil)
}

var (
	requestsDesc = desc("causeway_requests_total",
		"Requests that ended, by HTTP status class and by gRPC status. A TCP connection is one request.",
		"code", "grpc_status")
	durationDesc = desc("causeway_request_duration_seconds",
		"Time from the head of a request to the end of its response.")
	inFlightDesc = desc("causeway_requests_in_flight",
		"Requests that have begun and not ended.")
	requestBytesDesc = desc("causeway_request_bytes_total",
		"Bytes of the bodies of requests.")
	responseBytesDesc = desc("causeway_response_bytes_total",
		"Bytes of the bodies of responses.")
	retriesDesc = desc("causeway_request_retries_total",
		"Retries of requests, by the reason.", "reason")
	rejectedDesc = desc("causeway_requests_rejected_total",
		"Requests that Causeway answered instead of an application, by the reason.", "reason")
	ejectionsDesc = desc("causeway_endpoint_ejections_total",
		"Ejections of endpoints after consecutive failures or a failed trial.")
	budgetDesc = desc("causeway_retry_budget_exhausted_total",
		"Requests that were not retried because the retry budget was used up.")
)

// counterDescs has, by the index of a counter, its metric and the values of the labels
// that follow keyLabels.
var counterDescs = func() (out [counters]struct {
	desc   *prometheus.Desc
	labels []string
}) {
	set := func(i int, d *prometheus.Desc, labels ...string) { out[i].desc, out[i].labels = d, labels }
	for i, name := range codeNames {
		set(codeCounter+i, requestsDesc, name, "")
	}
	for i, name := range grpcNames {
		set(grpcCounter+i, requestsDesc, "2xx", name)
	}
	for r := range retryReasons {
		set(retryCounter+int(r), retriesDesc, retry.Reason(r).String())
	}
	for r := range rejections {
		set(rejectionCounter+int(r), rejectedDesc, r.String())
	}
	set(ejectionCounter, ejectionsDesc)
	set(budgetCounter, budgetDesc)
	return out
}()

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, durationDesc, inFlightDesc, requestBytesDesc,
		responseBytesDesc, retriesDesc, rejectedDesc, ejectionsDesc, budgetDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	for _, metric := range m.gather() {
		out <- metric
	}
}

// gather holds the lock while it reads, so that no key moves to "other" in between. It
// does not wait for a scraper.
func (m *Metrics) gather() []prometheus.Metric {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []prometheus.Metric
	for _, ref := range m.other {
		if s := ref.series; s.isUsed() {
			out = s.append(out)
		}
	}
	for _, ref := range m.keys {
		out = ref.append(out)
	}
	return out
}

// isUsed reports whether anything was counted. The series of "other" do not exist before.
func (s *series) isUsed() bool {
	if s.lastUsed.Load() != 0 {
		return true
	}
	for i := range s.own {
		if s.own[i].Load() > 0 {
			return true
		}
	}
	return false
}

// append appends the metrics of s.
func (s *series) append(out []prometheus.Metric) []prometheus.Metric {
	add := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out = append(out, prometheus.MustNewConstMetric(d, kind, v, slices.Concat(s.labels, labels)...))
	}
	for i, d := range counterDescs {
		if n := s.own[i].Load(); n > 0 {
			add(d.desc, prometheus.CounterValue, float64(n), d.labels...)
		}
	}
	add(inFlightDesc, prometheus.GaugeValue, float64(s.inFlight.Load()))
	add(requestBytesDesc, prometheus.CounterValue, float64(s.requestBytes.Load()))
	add(responseBytesDesc, prometheus.CounterValue, float64(s.responseBytes.Load()))
	duration := s.duration.snapshot(durationDesc, s.labels)
	duration.exemplars = s.exemplars.all()
	return append(out, duration)
}
