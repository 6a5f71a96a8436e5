// Package stat computes golden signals from two scrapes of the agents' metrics.
//
//	scrapes of each agent ─▶ differences of counters and histograms ─▶ Rows, one for each key
//
// It has no clock and makes no request.
package stat

import (
	"cmp"
	"maps"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// The metrics of agents that Rows reads.
const (
	requests      = "causeway_requests_total"
	duration      = "causeway_request_duration_seconds"
	requestBytes  = "causeway_request_bytes_total"
	responseBytes = "causeway_response_bytes_total"
	retries       = "causeway_request_retries_total"
)

// The values of labels that decide how series count.
const (
	outbound = "outbound"
	tcp      = "tcp"
)

// Snapshot is one scrape of an agent.
type Snapshot struct {
	At       time.Time
	Families []*dto.MetricFamily
}

// Key says which requests a Row counts. Its fields are the labels of the metrics.
type Key struct {
	Direction string `json:"direction"`
	Link      string `json:"link"`
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Port      string `json:"port"`
	Protocol  string `json:"protocol"`
	Workload  string `json:"workload"`
}

func (k Key) compare(other Key) int {
	return cmp.Or(
		-cmp.Compare(k.Direction, other.Direction), // outbound first
		cmp.Compare(k.Link, other.Link),
		cmp.Compare(k.Namespace, other.Namespace),
		cmp.Compare(k.Service, other.Service),
		cmp.Compare(k.Port, other.Port),
		cmp.Compare(k.Protocol, other.Protocol),
		cmp.Compare(k.Workload, other.Workload),
	)
}

// Row has the golden signals of one Key. All rates are per second. Fields may be added to
// its JSON, and none is renamed or removed.
type Row struct {
	Key
	// Requests is 0 for opaque TCP, and Connections is 0 for all else.
	Requests    float64 `json:"requestsPerSecond"`
	Connections float64 `json:"connectionsPerSecond"`
	// Success is the share of requests without an error of the server, from 0 to 1. It
	// and the latencies are nil if there was no request, and for opaque TCP.
	Success *float64 `json:"success,omitempty"`
	// P50, P95 and P99 are latencies in seconds.
	P50 *float64 `json:"p50Seconds,omitempty"`
	P95 *float64 `json:"p95Seconds,omitempty"`
	P99 *float64 `json:"p99Seconds,omitempty"`
	// BytesIn and BytesOut are bytes of bodies to and from the local workload.
	BytesIn  float64 `json:"bytesInPerSecond"`
	BytesOut float64 `json:"bytesOutPerSecond"`
	Retries  float64 `json:"retriesPerSecond"`
}

// Filter selects rows. An empty field selects all.
type Filter struct{ Direction, Link, Namespace, Service string }

func (f Filter) matches(k Key) bool {
	match := func(want, got string) bool { return want == "" || want == got }
	return match(f.Direction, k.Direction) && match(f.Link, k.Link) && match(f.Namespace, k.Namespace) &&
		match(f.Service, k.Service)
}

// Rows returns what happened between two snapshots of each agent, sorted by Key. The maps
// have the names of agents as keys. It leaves out agents that lack one of the two, and
// keys without an event. A counter that has decreased began at zero in between. So did
// one that is only in after, because agents create series with the first event.
func Rows(before, after map[string]Snapshot, f Filter) []Row {
	sums := map[Key]*sum{}
	for agent, last := range after {
		first, ok := before[agent]
		if seconds := last.At.Sub(first.At).Seconds(); ok && seconds > 0 {
			addAgent(sums, first, last, seconds, f)
		}
	}
	var out []Row
	for _, k := range slices.SortedFunc(maps.Keys(sums), Key.compare) {
		if r := sums[k].row(k); r.active() {
			out = append(out, r)
		}
	}
	return out
}

// active reports whether anything happened.
func (r Row) active() bool {
	return r.Requests+r.Connections+r.BytesIn+r.BytesOut+r.Retries > 0
}

// sum adds up the differences of one key. Its rates are per second.
type sum struct {
	requests, failures, bytesIn, bytesOut, retries float64
	latency                                        histogram
}

func addAgent(sums map[Key]*sum, first, last Snapshot, seconds float64, f Filter) {
	old := map[string]*dto.Metric{}
	for name, m := range series(first) {
		old[seriesID(name, m)] = m
	}
	for name, m := range series(last) {
		labels := labelsOf(m)
		k := keyOf(labels)
		if !f.matches(k) {
			continue
		}
		if sums[k] == nil {
			sums[k] = &sum{}
		}
		was := old[seriesID(name, m)]
		if name == duration {
			sums[k].latency.add(difference(was.GetHistogram(), m.GetHistogram()))
			continue
		}
		sums[k].count(name, labels, increase(was.GetCounter(), m.GetCounter())/seconds)
	}
}

// count adds a rate of one series.
func (s *sum) count(name string, labels map[string]string, rate float64) {
	toPeer := labels["direction"] == outbound
	switch {
	case name == requests:
		s.requests += rate
		if failed(labels["code"], labels["grpc_status"]) {
			s.failures += rate
		}
	case name == retries:
		s.retries += rate
	case (name == requestBytes) == toPeer: // a request to a peer, or a response to one
		s.bytesOut += rate
	default:
		s.bytesIn += rate
	}
}

// failed reports whether a result is an error of the server. The gRPC statuses are those
// that OpenTelemetry counts so.
func failed(code, grpcStatus string) bool {
	switch grpcStatus {
	case "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS":
		return true
	}
	return code == "5xx" || code == "none"
}

func (s *sum) row(k Key) Row {
	r := Row{Key: k, BytesIn: s.bytesIn, BytesOut: s.bytesOut, Retries: s.retries}
	if k.Protocol == tcp {
		r.Connections = s.requests
		return r
	}
	r.Requests = s.requests
	if s.requests > 0 {
		success := 1 - s.failures/s.requests
		r.Success = &success
	}
	r.P50, r.P95, r.P99 = s.latency.quantile(0.5), s.latency.quantile(0.95), s.latency.quantile(0.99)
	return r
}

// series returns the series of the metrics that Rows reads.
func series(s Snapshot) func(func(string, *dto.Metric) bool) {
	read := []string{requests, duration, requestBytes, responseBytes, retries}
	return func(yield func(string, *dto.Metric) bool) {
		for _, f := range s.Families {
			if !slices.Contains(read, f.GetName()) {
				continue
			}
			for _, m := range f.Metric {
				if !yield(f.GetName(), m) {
					return
				}
			}
		}
	}
}

func labelsOf(m *dto.Metric) map[string]string {
	out := make(map[string]string, len(m.Label))
	for _, l := range m.Label {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

func keyOf(labels map[string]string) Key {
	return Key{
		Direction: labels["direction"],
		Link:      labels["link"],
		Namespace: labels["namespace"],
		Service:   labels["service"],
		Port:      labels["port"],
		Protocol:  labels["protocol"],
		Workload:  labels["workload"],
	}
}

// seriesID identifies a series of one agent. Its labels are sorted by name.
func seriesID(name string, m *dto.Metric) string {
	id := []byte(name)
	for _, l := range m.Label {
		id = append(append(append(append(id, 0), l.GetName()...), 0), l.GetValue()...)
	}
	return string(id)
}

// increase returns how much a counter has increased. was is nil for a new series.
func increase(was, is *dto.Counter) float64 {
	if is.GetValue() < was.GetValue() { // the agent restarted
		return is.GetValue()
	}
	return is.GetValue() - was.GetValue()
}
