package peering

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
)

// taken is a CatalogChange with keys as text.
type taken struct {
	Whole, Complete              bool
	Upserts, Removed, ProblemsOf []string
	Stale                        link.Staleness
}

func take(p *Peers, applied wire.Version) taken {
	c := p.TakeCatalog("east", applied, time.Now())
	out := taken{Whole: c.Whole, Complete: c.Complete, Stale: c.Stale}
	for _, s := range c.Upserts {
		out.Upserts = append(out.Upserts, s.Name)
	}
	for _, key := range c.Removed {
		out.Removed = append(out.Removed, key.Name)
	}
	for _, key := range slices.SortedFunc(maps.Keys(c.Problems), catalog.Key.Compare) {
		out.ProblemsOf = append(out.ProblemsOf, key.Name)
	}
	return out
}

func shopKeys(names ...string) []catalog.Key {
	var out []catalog.Key
	for _, name := range names {
		out = append(out, catalog.Key{Namespace: "shop", Name: name})
	}
	return out
}

// upserts returns valid Services, sorted.
func upserts(names ...string) []catalog.Service {
	all := services(names...)
	var out []catalog.Service
	for _, key := range slices.SortedFunc(maps.Keys(all), catalog.Key.Compare) {
		out = append(out, all[key])
	}
	return out
}

func checkTake(t *testing.T, p *Peers, applied wire.Version, why string, want taken) {
	t.Helper()
	if diff := cmp.Diff(want, take(p, applied)); diff != "" {
		t.Errorf("%s (-want +got)\n%s", why, diff)
	}
}

func TestTakeCatalogReturnsChanges(t *testing.T) {
	p, end := setEast(t, kubetest.New(nil), "192.0.2.1:4143")
	defer end()
	none := wire.Version{}
	stream := p.StreamForTest("east", "192.0.2.1:4143")
	checkTake(t, p, none, "nothing has arrived", taken{Whole: true})
	checkTake(t, p, none, "nothing has arrived since", taken{})
	stream.Hello(hello(east(), 1))
	stream.Deliver(wire.Delta{Upserts: upserts("a", "b")})
	stream.Deliver(wire.Delta{Upserts: upserts("c"), Removed: shopKeys("b")})
	checkTake(t, p, none, "two differences are merged", taken{
		Complete: true,
		Upserts:  []string{"a", "c"},
		Removed:  []string{"b"},
	})
	problems := map[catalog.Key][]catalog.Problem{shopKeys("a")[0]: {{
		Service: "shop/a",
		Reason:  catalog.InvalidPorts,
	}}}
	stream.Deliver(wire.Delta{Removed: shopKeys("a"), Problems: problems})
	checkTake(t, p, none, "a Service that became invalid has a problem", taken{
		Complete:   true,
		Removed:    []string{"a"},
		ProblemsOf: []string{"a"},
	})
	stream.Deliver(wire.Delta{Upserts: upserts("a")})
	checkTake(t, p, none, "the problem has ended", taken{Complete: true, Upserts: []string{"a"}})
	checkTake(t, p, none, "nothing has arrived since", taken{Complete: true})
	p.Set(t.Context(), map[string]Want{"east": {Peer: anotherEast()}}, nil)
	stream.Deliver(wire.Delta{Upserts: upserts("late")})
	checkTake(t, p, none, "another Link starts with nothing", taken{Whole: true})
	p.Set(t.Context(), nil, nil)
}

// A replica that is behind, or an epoch that is new, must not delete mirrors.
func TestTakeCatalogHoldsRemovalsBack(t *testing.T) {
	west()
	h := hello(east(), 1)
	synctest.Test(t, func(t *testing.T) {
		p, end := setEast(t, kubetest.New(nil), "192.0.2.1:4143")
		defer end()
		stream := p.StreamForTest("east", "192.0.2.1:4143")
		stream.Hello(h)
		version := func(n uint64) wire.Version { return wire.Version{Epoch: "one", Generation: n} }
		stream.Deliver(wire.Delta{Upserts: upserts("a", "b", "c"), Version: version(7)})
		checkTake(t, p, wire.Version{}, "the first catalog", taken{
			Whole:    true,
			Complete: true,
			Upserts:  []string{"a", "b", "c"},
		})
		stream.Deliver(wire.Delta{Upserts: upserts("d"), Removed: shopKeys("b", "c"), Version: version(6)})
		checkTake(t, p, version(7), "a replica that is behind", taken{
			Upserts: []string{"d"},
			Stale:   link.PeerCatalogOlder,
		})
		stream.Deliver(wire.Delta{Upserts: upserts("c"), Version: version(8)})
		checkTake(t, p, version(7), "it has caught up: b is gone, c was never",
			taken{Complete: true, Upserts: []string{"c"}, Removed: []string{"b"}})

		rebuilt := wire.Version{Epoch: "two", Generation: 1}
		stream.Deliver(wire.Delta{Removed: shopKeys("a", "c", "d"), Version: rebuilt})
		checkTake(t, p, version(8), "an epoch that is new", taken{Stale: link.PeerEpochChanged})
		for range 11 * 30 {
			bubble.Pass(2 * time.Second)
			stream.Freshness(wire.Freshness{Version: rebuilt})
		}
		checkTake(t, p, version(8), "an epoch that has been the only one for ten minutes",
			taken{Complete: true, Removed: []string{"a", "c", "d"}})
	})
}

func TestSnapshotIsStaleIfEveryReplicaIs(t *testing.T) {
	p, end := setEast(t, kubetest.New(nil), "192.0.2.1:4143", "192.0.2.2:4143")
	defer end()
	one, two := p.StreamForTest("east", "192.0.2.1:4143"), p.StreamForTest("east", "192.0.2.2:4143")
	one.Hello(hello(east(), 1))
	for _, c := range []struct {
		why  string
		do   func()
		want link.Staleness
	}{
		{"no heartbeat yet", func() {}, ""},
		{
			"the only replica is cut off",
			func() { one.Freshness(wire.Freshness{Age: time.Minute}) },
			link.PeerCatalogStale,
		},
		{"the other stream has said nothing", func() { two.Hello(hello(east(), 1)) }, link.PeerCatalogStale},
		{"the other replica is current", func() { two.Freshness(wire.Freshness{Age: time.Second}) }, ""},
		{"the current one is gone", func() { two.Disconnected(nil) }, link.PeerCatalogStale},
		{"both are gone, which other conditions say", func() { one.Disconnected(nil) }, ""},
	} {
		c.do()
		if got := observe(p).Stale; got != c.want {
			t.Errorf("%s: %q, want %q", c.why, got, c.want)
		}
	}
}
