package peering

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
)

// collected returns the gauges of a Collector by name and label values.
func collected(t *testing.T, p *Peers) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(NewCollector(p))
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			out[name] = m.GetGauge().GetValue()
		}
	}
	return out
}

func TestCollector(t *testing.T) {
	const one, two = "192.0.2.1:4143", "192.0.2.2:4143"
	p, end := setEast(t, kubetest.New(nil), one, two)
	defer end()
	first, second := p.StreamForTest("east", one), p.StreamForTest("east", two)
	if got := collected(t, p); len(got) != 0 {
		t.Errorf("series of a peer that was never reached: %v", got)
	}
	first.HelloWithSkew(hello(east(), 1), 3*time.Minute)
	second.Disconnected(wire.ErrSilent)
	want := map[string]float64{
		"causeway_controller_gateway_reachable " + one + " east": 1,
		"causeway_controller_gateway_reachable " + two + " east": 0,
		"causeway_controller_peer_clock_skew_seconds east":       180,
	}
	if diff := cmp.Diff(want, collected(t, p)); diff != "" {
		t.Errorf("series (-want +got):\n%s", diff)
	}
	first.Catalog(services("web"))
	first.Freshness(wire.Freshness{Age: time.Hour})
	age := collected(t, p)["causeway_controller_catalog_age_seconds east"]
	if age < 3600 || age > 3700 {
		t.Errorf("the catalog is %v s old, want an hour", age)
	}
}

func TestConfirm(t *testing.T) {
	now := time.Unix(1000, 0)
	version := func(epoch string, generation uint64) wire.Version {
		return wire.Version{Epoch: epoch, Generation: generation}
	}
	for name, tc := range map[string]struct {
		why      string
		complete bool
		f        wire.Freshness
		want     time.Time
	}{
		"current": {
			why:      "the replica had nothing newer when it last read its API server",
			complete: true,
			f:        wire.Freshness{Version: version("a", 5), Age: 3 * time.Second},
			want:     now.Add(-3 * time.Second),
		},
		"behind": {
			why:      "a replica that is behind had less than we have",
			complete: true,
			f:        wire.Freshness{Version: version("a", 4)},
			want:     now,
		},
		"ahead": {
			why:      "what the replica has more is still to come",
			complete: true,
			f:        wire.Freshness{Version: version("a", 6)},
		},
		"another epoch": {
			why:      "generations of two epochs cannot be compared",
			complete: true,
			f:        wire.Freshness{Version: version("b", 1)},
		},
		"incomplete": {
			why: "the catalog has not arrived",
			f:   wire.Freshness{Version: version("a", 5)},
		},
		"from the future": {
			why:      "a peer cannot make its catalog younger than now",
			complete: true,
			f:        wire.Freshness{Version: version("a", 5), Age: -time.Hour},
			want:     now,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCatalogState()
			c.complete, c.version = tc.complete, version("a", 5)
			c.confirm(tc.f, now)
			if !c.current.Equal(tc.want) {
				t.Errorf("%s: current at %v, want %v", tc.why, c.current, tc.want)
			}
			c.confirm(wire.Freshness{Version: version("a", 5), Age: time.Hour}, now)
			if c.current.Before(tc.want) {
				t.Errorf("%s: an older proof replaced a newer one", tc.why)
			}
		})
	}
}

func TestAddressSeriesAreBounded(t *testing.T) {
	s := &Snapshot{Streams: make(map[string]StreamState)}
	for i := range 2 * maxAddressSeries {
		at := fmt.Sprintf("192.0.2.%d:4143", i)
		s.Addresses.Use = append(s.Addresses.Use, link.Address{At: at})
		s.Streams[at] = StreamState{Connected: true}
	}
	if n := len(s.reachable()); n != maxAddressSeries {
		t.Errorf("%d series, want %d", n, maxAddressSeries)
	}
}
