package peering

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxAddressSeries bounds the series by gateway address of one Link. The rest has none.
const maxAddressSeries = 64

var (
	reachableDesc = prometheus.NewDesc("causeway_controller_gateway_reachable",
		"1 if this replica has a stream to the gateway address of the peer. Unset until the first "+
			"attempt ends.",
		[]string{"link", "address"}, nil)
	catalogAgeDesc = prometheus.NewDesc("causeway_controller_catalog_age_seconds",
		"Time since the peer proved the catalog that this replica has to be current. Unset before the "+
			"first proof.",
		[]string{"link"}, nil)
	skewDesc = prometheus.NewDesc("causeway_controller_peer_clock_skew_seconds",
		"Clock of the peer minus that of this replica, to a minute. Unset until the peer has sent its time.",
		[]string{"link"}, nil)
)

// Collector collects what is known about each peer. NewCollector makes it.
type Collector struct{ peers *Peers }

// NewCollector returns a collector of the state of peers. It is to be registered.
func NewCollector(peers *Peers) Collector { return Collector{peers} }

// Describe implements prometheus.Collector.
func (Collector) Describe(to chan<- *prometheus.Desc) {
	to <- reachableDesc
	to <- catalogAgeDesc
	to <- skewDesc
}

// Collect implements prometheus.Collector.
func (c Collector) Collect(to chan<- prometheus.Metric) {
	for _, m := range c.peers.collect(time.Now()) {
		to <- m
	}
}

// collect holds the lock while it reads. It does not wait for a scraper.
func (p *Peers) collect(now time.Time) []prometheus.Metric {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []prometheus.Metric
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out = append(out, prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...))
	}
	for name, s := range p.links {
		for address, reachable := range s.snapshot.reachable() {
			value := 0.0
			if reachable {
				value = 1
			}
			gauge(reachableDesc, value, name, address)
		}
		if !s.catalog.current.IsZero() {
			gauge(catalogAgeDesc, max(0, now.Sub(s.catalog.current).Seconds()), name)
		}
		if s.hello != nil {
			gauge(skewDesc, s.skew.Seconds(), name)
		}
	}
	return out
}

// reachable says which of the addresses that should answer do, by address. It has
// maxAddressSeries addresses at most, and none whose first attempt has not ended.
func (s *Snapshot) reachable() map[string]bool {
	all := make(map[string]bool)
	for _, a := range s.expected() {
		if stream, ok := s.Streams[a.At]; ok && (stream.Connected || stream.Reason != noAnswerYet) {
			all[a.At] = stream.Connected
		}
	}
	sorted := slices.Sorted(maps.Keys(all))
	for _, address := range sorted[min(len(sorted), maxAddressSeries):] {
		delete(all, address)
	}
	return all
}
