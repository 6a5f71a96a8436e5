package view

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func withPods() Inputs {
	mirror := func(hostname, vip string) v1alpha1.LedgerMirror {
		return v1alpha1.LedgerMirror{
			Link: "west", Namespace: "shop", Service: "db", Hostname: hostname, MirrorNamespace: "shop", MirrorName: hostname + "db-west", VIPs: []string{vip},
			Ports: []v1alpha1.LedgerMirrorPort{{Name: "sql", Protocol: "TCP", Port: 5432, Route: 2000}},
		}
	}
	list := mirror("", "240.0.0.2")
	list.Headless = true
	plain := mirror("", "240.0.0.5")
	plain.Service, plain.SessionAffinitySeconds = "web", 60
	return Inputs{
		Now: time.Unix(1767225600, 0), TrustDomain: "east.1", Namespace: "causeway-system", Nodes: []string{"n1"},
		Peers:   []Peer{{Name: "west", UID: "u", TrustDomain: "west.1"}},
		Mirrors: []v1alpha1.LedgerMirror{list, mirror("db-0", "240.0.0.3"), mirror("db-1", "240.0.0.4"), plain},
		Exports: []catalog.Export{{
			Namespace: "shop", Name: "sets", Links: []string{"west"}, Ports: []catalog.Port{{Name: "sql", Protocol: "TCP", Port: 5432, Route: 1024}},
			Endpoints: []catalog.Endpoint{
				{PodUID: "uid-0", Node: "n1", Host: "sets-0", IP: netip.MustParseAddr("10.0.0.1"), Ready: true, Targets: map[uint16]uint16{5432: 5432}},
				{PodUID: "uid-1", Node: "n1", IP: netip.MustParseAddr("10.0.0.2"), Ready: true, Targets: map[uint16]uint16{5432: 5432}},
			},
		}},
	}
}

func TestNamedPods(t *testing.T) {
	var b Builder
	views, err := b.Build(withPods())
	if err != nil {
		t.Fatal(err)
	}
	type told struct {
		vip, hostname string
		affinity      uint32
	}
	want := map[string]told{
		"mirror/west/shop/db/db-0": {vip: "240.0.0.3", hostname: "db-0"},
		"mirror/west/shop/db/db-1": {vip: "240.0.0.4", hostname: "db-1"},
		"mirror/west/shop/web":     {vip: "240.0.0.5", affinity: 60},
	}
	got := map[string]told{}
	for key, r := range views.Agents["n1"] {
		if m := r.GetMirror(); m != nil {
			got[key] = told{m.Vips[0], m.Hostname, m.SessionAffinitySeconds}
		}
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(told{})); d != "" {
		t.Errorf("agents know the pods' mirrors, and not the one that only lists them (-want +got):\n%s", d)
	}
	hosts := map[string][]byte{}
	for _, e := range views.Gateway["route/1024"].GetRoute().Endpoints {
		hosts[e.PodUid] = e.Host
	}
	hash := route.HostHash("sets-0")
	if d := cmp.Diff(map[string][]byte{"uid-0": hash[:], "uid-1": nil}, hosts); d != "" {
		t.Errorf("the gateway knows which endpoint has the name (-want +got):\n%s", d)
	}
}

func TestGenerationFollowsNames(t *testing.T) {
	var b Builder
	build := func(in Inputs) *wire.Route {
		t.Helper()
		views, err := b.Build(in)
		if err != nil {
			t.Fatal(err)
		}
		return views.Gateway["route/1024"].GetRoute()
	}
	in := withPods()
	first := build(in)
	in.Now = in.Now.Add(time.Minute)
	if again := build(in); again != first {
		t.Error("what did not change is the same pointer")
	}
	in.Exports[0].Endpoints[1].Host = "sets-1"
	if after := build(in); after.Generation <= first.Generation {
		t.Error("another name is another set of endpoints")
	}
}

func TestEveryResourceIsTaken(t *testing.T) {
	var b Builder
	views, err := b.Build(withPods())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []nodestream.View{views.Gateway, views.Agents["n1"]} {
		for key, r := range v {
			if err := nodestream.Check(r); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
}
