package agent

import (
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// The parts of the series of one agent, as Prometheus counts them: a classic histogram has
// one for each bucket, its sum and its count. All parts together are maxSeries, however
// many links, Services and gateway addresses there are. What exceeds a part counts in
// series with the label value otherLinks.
const (
	maxSeries = 2000
	// closedSeries are those whose labels have a closed list of values, and those of the
	// Go runtime and the process.
	closedSeries = 260
	// maxLinkGauges is how many links have series of their own in each of two gauges.
	maxLinkGauges = 64
	// maxAddressSeries bounds the gauge by gateway address.
	maxAddressSeries = 64
	// maxLinkCounters bounds the counters by link. otherLinkCounters are those of further
	// links: 20 for the reasons why connections ended and 4 for bytes. closedSeries has
	// those for sessions.
	maxLinkCounters   = 280
	otherLinkCounters = 24
	// maxRequestSeries bounds the metrics of requests, with those of further requests.
	maxRequestSeries = maxSeries - closedSeries - 2*(maxLinkGauges+1) - (maxAddressSeries + 1) -
		maxLinkCounters - otherLinkCounters
)

// otherLinks is the label value of further links and addresses.
const otherLinks = "other"

// linkCounters bounds the series of counters with the label link. Each series counts
// when it is first used, so that links have as many as they need. A series stays until the
// agent restarts, so no counter decreases. The zero value is ready to use. It is safe for
// concurrent use.
type linkCounters struct {
	mu   sync.Mutex // guards seen
	seen map[linkCounter]bool
}

// linkCounter is one series.
type linkCounter struct {
	metric          *prometheus.CounterVec
	direction, link string
	more            string // further values, separated by zero bytes
}

// with returns the counter of a metric for a direction, a link and further label values.
// It is that of otherLinks if there are too many series.
func (l *linkCounters) with(metric *prometheus.CounterVec, direction, link string, more ...string) prometheus.Counter {
	if !l.admit(linkCounter{metric, direction, link, strings.Join(more, "\x00")}) {
		link = otherLinks
	}
	return metric.WithLabelValues(append([]string{direction, link}, more...)...)
}

// admit reports whether a series may exist, and counts it.
func (l *linkCounters) admit(c linkCounter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.seen[c]:
		return true
	case len(l.seen) >= maxLinkCounters:
		return false
	case l.seen == nil:
		l.seen = make(map[linkCounter]bool)
	}
	l.seen[c] = true
	return true
}
