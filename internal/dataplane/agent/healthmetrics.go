package agent

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func healthDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	readyDesc = healthDesc("causeway_agent_ready",
		"1 if the agent accepts callers: it has a state that is not too old, and is not asked to stop.")
	unusableDesc = healthDesc("causeway_agent_link_unusable",
		"1 if no gateway of the link answers this node, so that new connections are refused. The link other "+
			"stands for all links beyond the first 64, and is 1 if one of them is unusable.", "link")
	roundTripDesc = healthDesc("causeway_agent_link_round_trip_seconds",
		"Average round-trip time to the peer's agents through its gateways, 2 s at most. Only of links "+
			"that pods of the node use. The link other has the longest of all links beyond the first 64.", "link")
	avoidedDesc = healthDesc("causeway_agent_gateway_avoided",
		"1 if the agent tries this gateway address last, because a connection to it failed or was slow. The "+
			"address other stands for all beyond the first 64, and is 1 if one of them is tried last.",
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
	for _, d := range []*prometheus.Desc{readyDesc, unusableDesc, roundTripDesc, avoidedDesc, expiryDesc, missingDesc} {
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
	for _, l := range h.a.monitor.gauges() {
		gauge(unusableDesc, l.unusable, l.name)
		if l.roundTrip > 0 {
			gauge(roundTripDesc, l.roundTrip.Seconds(), l.name)
		}
	}
	for _, g := range h.a.gatewayGauges(h.a.state.Load(), now) {
		gauge(avoidedDesc, g.avoided, g.link, g.address)
	}
}

// isReady reports whether the agent accepts callers.
func (a *Agent) isReady() bool {
	_, err := a.current()
	return err == nil && a.serving.Load()
}

// gatewayGauge is a gateway address of a link. avoided is 0 or 1.
type gatewayGauge struct {
	link, address string
	avoided       float64
}

// gatewayGauges returns the gateway addresses of all links, sorted and without duplicates.
// The first maxAddressSeries stand for themselves, and one entry stands for all others. A
// nil state has none.
func (a *Agent) gatewayGauges(s *state, now time.Time) []gatewayGauge {
	if s == nil {
		return nil
	}
	all := make(map[gatewayGauge]bool)
	for _, p := range s.links {
		for _, address := range p.gateways {
			g := gatewayGauge{link: p.name, address: address}
			if a.penalties.isPenalized(address, now) {
				g.avoided = 1
			}
			all[g] = true
		}
	}
	sorted := slices.SortedFunc(maps.Keys(all), func(x, y gatewayGauge) int {
		return cmp.Or(cmp.Compare(x.link, y.link), cmp.Compare(x.address, y.address))
	})
	return fold(sorted, maxAddressSeries, func(all *gatewayGauge, one gatewayGauge) {
		all.link, all.address, all.avoided = otherLinks, otherLinks, max(all.avoided, one.avoided)
	})
}

// linkGauge is what gauges show of a link. unusable is 0 or 1.
type linkGauge struct {
	name      string
	unusable  float64
	roundTrip time.Duration // of a link that is in use and was measured; or 0
}

// gauges returns the gauges of all links, sorted by name. The first maxLinkGauges stand for
// themselves, and one entry stands for all others.
func (m *linkMonitor) gauges() []linkGauge {
	m.mu.Lock()
	all := make([]linkGauge, 0, len(m.links))
	for _, l := range m.links {
		g := linkGauge{name: l.peer.name}
		if !l.health.Usable() {
			g.unusable = 1
		} else if l.health.Watched() {
			g.roundTrip = l.health.RoundTrip()
		}
		all = append(all, g)
	}
	m.mu.Unlock()
	// A Link may have the name of the last entry. Then that entry stands for it, too.
	slices.SortFunc(all, func(x, y linkGauge) int {
		switch {
		case x.name == y.name:
			return 0
		case x.name == otherLinks:
			return 1
		case y.name == otherLinks:
			return -1
		}
		return cmp.Compare(x.name, y.name)
	})
	return fold(all, maxLinkGauges, func(all *linkGauge, one linkGauge) {
		all.name = otherLinks
		all.unusable, all.roundTrip = max(all.unusable, one.unusable), max(all.roundTrip, one.roundTrip)
	})
}

// fold returns the first most elements of all, and one to which add has added the others,
// if there are others.
func fold[T any](all []T, most int, add func(rest *T, one T)) []T {
	if len(all) <= most {
		return all
	}
	var rest T
	for _, one := range all[most:] {
		add(&rest, one)
	}
	return append(all[:most:most], rest)
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
