package agent

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxAddressSeries bounds the series by gateway address. The rest has none.
const maxAddressSeries = 256

func healthDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	readyDesc = healthDesc("causeway_agent_ready",
		"1 if the agent accepts callers: it has a state that is not too old, and is not asked to stop.")
	roundTripDesc = healthDesc("causeway_agent_link_round_trip_seconds",
		"Average round-trip time to the peer's agents through its gateways, 2 s at most. Only of links "+
			"that pods of the node use.", "link")
	avoidedDesc = healthDesc("causeway_agent_gateway_avoided",
		"1 if the agent tries this gateway address last, because a connection to it failed or was slow.",
		"link", "address")
	expiryDesc = healthDesc("causeway_agent_certificate_expiry_timestamp_seconds",
		"Unix time at which the first of the certificates ends that the agent has for the node's pods.")
	missingDesc = healthDesc("causeway_agent_certificates_missing",
		"ServiceAccounts of the node's pods for which the agent has no valid certificate.")
)

// healthCollector collects what the agent knows about its own health and that of its
// links. It does all work during the scrape.
type healthCollector struct{ a *Agent }

// Describe implements prometheus.Collector.
func (healthCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readyDesc, roundTripDesc, avoidedDesc, expiryDesc, missingDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (h healthCollector) Collect(to chan<- prometheus.Metric) {
	now := time.Now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ready := 0.0
	if h.a.isReady() {
		ready = 1
	}
	gauge(readyDesc, ready)
	first, missing := h.a.svids.expiry(now)
	if !first.IsZero() {
		gauge(expiryDesc, float64(first.Unix()))
	}
	gauge(missingDesc, float64(missing))
	for name, rtt := range h.a.monitor.roundTrips() {
		gauge(roundTripDesc, rtt.Seconds(), name)
	}
	for _, g := range gatewaysOf(h.a.state.Load()) {
		avoided := 0.0
		if h.a.penalties.isPenalized(g.address, now) {
			avoided = 1
		}
		gauge(avoidedDesc, avoided, g.link, g.address)
	}
}

// isReady reports whether the agent accepts callers.
func (a *Agent) isReady() bool {
	_, err := a.current()
	return err == nil && a.serving.Load()
}

// gatewayOf is a gateway address of a link.
type gatewayOf struct{ link, address string }

// gatewaysOf returns the gateway addresses of all links, sorted, without duplicates, and
// at most maxAddressSeries of them. A nil state has none.
func gatewaysOf(s *state) []gatewayOf {
	if s == nil {
		return nil
	}
	all := make(map[gatewayOf]bool)
	for _, p := range s.links {
		for _, address := range p.gateways {
			all[gatewayOf{p.name, address}] = true
		}
	}
	sorted := slices.SortedFunc(maps.Keys(all), func(x, y gatewayOf) int {
		return cmp.Or(cmp.Compare(x.link, y.link), cmp.Compare(x.address, y.address))
	})
	return sorted[:min(len(sorted), maxAddressSeries)]
}

// roundTrips returns the average round-trip time of each link that is in use and was
// measured, by name.
func (m *linkMonitor) roundTrips() map[string]time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]time.Duration)
	for _, l := range m.links {
		if rtt := l.health.RoundTrip(); rtt > 0 && l.health.Watched() && l.health.Usable() {
			out[l.peer.name] = rtt
		}
	}
	return out
}

// expiry returns the earliest end of the current credentials, or zero if there is none,
// and the number of accounts without a valid credential.
func (s *svids) expiry(now time.Time) (first time.Time, missing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.tasks {
		c, ok := s.current[a]
		if !ok || !now.Before(c.NotAfter()) {
			missing++
		}
		if ok && (first.IsZero() || c.NotAfter().Before(first)) {
			first = c.NotAfter()
		}
	}
	return first, missing
}
