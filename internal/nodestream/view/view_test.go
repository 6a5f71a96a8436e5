package view

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

var (
	noon   = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	secret = [32]byte{1, 2, 3}
	master = [32]byte{4, 5, 6}
)

func pod(namespace, name, node string, edit ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "sa-" + name},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(noon)}}},
	}
	for _, e := range edit {
		e(&p)
	}
	return p
}

// cluster is east with nodes n1 and n2, its peer west, a mirror of west's, and an
// export shop/bar with a ready pod on n1, an unready one on n2, and two ports.
func cluster() Inputs {
	resting := metav1.NewTime(noon)
	return Inputs{
		Now: noon, TrustDomain: "east-12", Namespace: "causeway-system", Issuers: [][]byte{[]byte("own issuer")}, HopMaster: master,
		VIPCIDRs: []string{"240.0.0.0/12"},
		Peers: []Peer{{Name: "west", UID: "uid-west", TrustDomain: "west-1", Issuers: [][]byte{[]byte("issuer")}, IssuerNumber: 4,
			Gateways: []Gateway{{"192.0.2.1:4143", true}, {"192.0.2.2:4143", false}}, Secret: secret}},
		Mirrors: []v1alpha1.LedgerMirror{
			{Link: "west", Namespace: "shop", Service: "web", MirrorNamespace: "shop", MirrorName: "web-west", VIPs: []string{"240.0.0.1"},
				Identities: []string{"spiffe://west-1/ns/shop/sa/web"},
				Ports:      []v1alpha1.LedgerMirrorPort{{Name: "http", Protocol: "TCP", Port: 80, Index: 3, Route: 2048, AppProtocol: "http"}, {Port: 81, Index: 4}}},
			{Link: "west", Namespace: "shop", Service: "old", VIPs: []string{"240.0.0.2"}, RestingSince: &resting},
			{Link: "invalid", Namespace: "shop", Service: "far", VIPs: []string{"240.0.0.3"}},
		},
		Exports: []catalog.Export{{
			Namespace: "shop", Name: "bar", Links: []string{"west"},
			Ports:    []catalog.Port{{Name: "http", Port: 80, Route: 1024}, {Name: "admin", Port: 81}},
			Policies: []v1alpha1.ExportPolicy{{ObjectMeta: metav1.ObjectMeta{Name: "only-web"}, Spec: v1alpha1.ExportPolicySpec{Callers: []v1alpha1.Caller{{ServiceAccount: "web"}}}}},
			Endpoints: []catalog.Endpoint{
				{PodUID: "bar-1", Node: "n1", Ready: true, Targets: map[uint16]uint16{80: 8080}},
				{PodUID: "bar-2", Node: "n2", Targets: map[uint16]uint16{80: 8080}},
				{PodUID: "bar-3", Node: "n2", Ready: true, Targets: map[uint16]uint16{81: 8081}},
			},
		}},
		Pods: []corev1.Pod{
			pod("shop", "bar-1", "n1"), pod("shop", "bar-2", "n2"), pod("shop", "unscheduled", ""),
			pod("shop", "done", "n1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
			pod("causeway-system", "controller", "n1"),
			pod("causeway-system", "canary", "n2", func(p *corev1.Pod) { p.Labels["app.kubernetes.io/component"] = "canary" }),
			pod("shop", "no-canary", "n2", func(p *corev1.Pod) { p.Labels["app.kubernetes.io/component"] = "canary" }),
		},
		Controllers: []Controller{{PodName: "c-1", PodUID: "uid-c-1", Address: "10.0.0.9"}},
		Nodes:       []string{"n1", "n2"},
		Agents:      map[string]string{"n1": "192.168.0.1"},
	}
}

func build(t *testing.T, b *Builder, in Inputs) Views {
	t.Helper()
	v, err := b.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func keys(v nodestream.View) []string { return slices.Sorted(maps.Keys(v)) }

func TestWhoIsToldWhat(t *testing.T) {
	v := build(t, new(Builder), cluster())
	for name, tc := range map[string]struct {
		why  string
		view nodestream.View
		want []string
	}{
		"n1": {
			why: "its own pods and what they back; no finished, foreign or Causeway's own pod; no resting mirror, none of an invalid peer", view: v.Agents["n1"],
			want: []string{"cluster", "export/shop/bar", "link/west", "mirror/west/shop/web", "pod/bar-1"},
		},
		"n2": {
			why: "likewise", view: v.Agents["n2"],
			want: []string{"cluster", "export/shop/bar", "link/west", "mirror/west/shop/web", "pod/bar-2", "pod/canary", "pod/no-canary"},
		},
		"gateway": {
			why: "routes and no pod, mirror or policy; a port without route id is not offered, a node without ready agent no backend", view: v.Gateway,
			want: []string{"backend/agent/n1", "backend/controller/c-1", "cluster", "link/west", "route/0", "route/1024"},
		},
	} {
		if diff := cmp.Diff(tc.want, keys(tc.view)); diff != "" {
			t.Errorf("%s: %s (-want +got)\n%s", name, tc.why, diff)
		}
		for key, r := range tc.view {
			if err := nodestream.Check(r); err != nil || r.Key != key {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if len(v.Agents) != 2 {
		t.Errorf("views for %v, want one for each node with an agent", slices.Sorted(maps.Keys(v.Agents)))
	}
}

func TestWhatAgentsAreTold(t *testing.T) {
	v := build(t, new(Builder), cluster())
	hop := identity.HopKey(master, "agent/n1")
	for key, want := range map[string]*wire.Resource{
		"cluster": {Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
			TrustDomain: "east-12", Issuers: [][]byte{[]byte("own issuer")}, HopKey: hop[:], VipCidrs: []string{"240.0.0.0/12"}}}},
		"mirror/west/shop/web": {Body: &wire.Resource_Mirror{Mirror: &wire.Mirror{
			Link: "west", Namespace: "shop", Service: "web", Vips: []string{"240.0.0.1"}, Mirror: "shop/web-west",
			Identities: []string{"spiffe://west-1/ns/shop/sa/web"},
			Ports:      []*wire.MirrorPort{{Index: 3, Port: 80, Name: "http", Route: 2048, AppProtocol: "http"}}}}},
		"pod/bar-1": {Body: &wire.Resource_Pod{Pod: &wire.Pod{
			Uid: "bar-1", Namespace: "shop", Name: "bar-1", ServiceAccount: "sa-bar-1", Ips: []string{"10.0.0.1", "fd00::1"}, Live: true,
			SandboxTimeNs: noon.UnixNano()}}},
		"export/shop/bar": {Body: &wire.Resource_Export{Export: &wire.Export{
			Namespace: "shop", Service: "bar", Links: []string{"west"},
			Ports:    []*wire.ExportPort{{Port: 80, Name: "http"}, {Port: 81, Name: "admin"}},
			Policies: []*wire.Policy{{Name: "only-web", Callers: []*wire.Caller{{ServiceAccount: "web"}}}},
			Pods:     []*wire.ExportPod{{Uid: "bar-1", Ready: true, Targets: map[uint32]uint32{80: 8080}}}}}},
	} {
		want.Key = key
		if diff := cmp.Diff(want, v.Agents["n1"][key], protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", key, diff)
		}
	}
	if n2 := v.Agents["n2"]; !n2["pod/canary"].GetPod().GetCanary() || n2["pod/no-canary"].GetPod().GetCanary() || n2["pod/no-canary"] == nil {
		t.Errorf("a canary is told as one, and a tenant's pod is none whatever its labels: %v", keys(n2))
	}
	one, other := v.Agents["n1"]["cluster"].GetCluster().HopKey, v.Agents["n2"]["cluster"].GetCluster().HopKey
	if string(one) == string(other) {
		t.Error("two nodes have one hop key")
	}
	if pods := v.Agents["n2"]["export/shop/bar"].GetExport().Pods; len(pods) != 2 {
		t.Errorf("%d pods of the export on n2, want ready and unready ones: open tunnels are held against them", len(pods))
	}
}

func TestWhatGatewaysAreTold(t *testing.T) {
	v := build(t, new(Builder), cluster())
	hop, controllerHop := identity.HopKey(master, "agent/n1"), identity.HopKey(master, "controller/c-1")
	id := identity.EndpointID(identity.EndpointKey(master), "shop/bar", "bar-1")
	catalogID := identity.EndpointID(identity.EndpointKey(master), "causeway/catalog", "uid-c-1")
	generation := uint64(noon.UnixMilli())
	for key, want := range map[string]*wire.Resource{
		"cluster": {Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
			TrustDomain: "east-12", Issuers: [][]byte{[]byte("own issuer")}, VipCidrs: []string{"240.0.0.0/12"}}}},
		"backend/agent/n1": {Body: &wire.Resource_Backend{Backend: &wire.Backend{Name: "agent/n1", Address: "192.168.0.1:4144", HopKey: hop[:]}}},
		"backend/controller/c-1": {Body: &wire.Resource_Backend{Backend: &wire.Backend{
			Name: "controller/c-1", Address: "10.0.0.9:4145", HopKey: controllerHop[:]}}},
		"route/0": {Body: &wire.Resource_Route{Route: &wire.Route{Id: 0, Links: []string{"west"}, Generation: generation,
			Endpoints: []*wire.Endpoint{{Id: catalogID[:], PodUid: "uid-c-1", Backend: "controller/c-1"}}}}},
		"route/1024": {Body: &wire.Resource_Route{Route: &wire.Route{Id: 1024, Links: []string{"west"}, Generation: generation,
			Endpoints: []*wire.Endpoint{{Id: id[:], PodUid: "bar-1", Backend: "agent/n1"}}}}},
	} {
		want.Key = key
		if diff := cmp.Diff(want, v.Gateway[key], protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", key, diff)
		}
	}
}

func TestPods(t *testing.T) {
	deleted := metav1.NewTime(noon)
	isolating := catalog.NewIsolation([]networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "isolated"}}}}})
	in := cluster()
	in.Isolation = isolating
	in.Pods = []corev1.Pod{
		pod("shop", "terminating", "n1", func(p *corev1.Pod) { p.DeletionTimestamp = &deleted }),
		pod("shop", "host", "n1", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		pod("shop", "isolated", "n1"),
		pod("shop", "young", "n1", func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} }),
		pod("shop", "failed", "n1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
	}
	v := build(t, new(Builder), in).Agents["n1"]
	for name, tc := range map[string]struct {
		why string
		is  func(*wire.Pod) bool
	}{
		"terminating": {"it takes nothing new and still holds its address", func(p *wire.Pod) bool { return p.Terminating && p.Live }},
		"host":        {"its address is the node's", func(p *wire.Pod) bool { return p.HostNetwork }},
		"isolated":    {"a policy must name its callers", func(p *wire.Pod) bool { return p.Isolated }},
		"young":       {"its certificate can be asked for already", func(p *wire.Pod) bool { return p.Live && len(p.Ips) == 0 && p.SandboxTimeNs == 0 }},
		"failed":      {"its address may be another's", func(p *wire.Pod) bool { return p == nil }},
	} {
		if p := v["pod/"+name].GetPod(); !tc.is(p) {
			t.Errorf("%s: %s: %v", name, tc.why, p)
		}
	}
}

// The catalog route is for every valid peer, and each peer is in all views or none.
func TestPeersComeAndGo(t *testing.T) {
	in := cluster()
	in.Peers = append(in.Peers, Peer{Name: "alps", UID: "uid-alps", TrustDomain: "alps-1"})
	v := build(t, new(Builder), in)
	if got := v.Gateway["route/0"].GetRoute().Links; !slices.Equal(got, []string{"alps", "west"}) {
		t.Errorf("the catalog is for %v", got)
	}
	if l := v.Agents["n1"]["link/alps"].GetLink(); l == nil || len(l.Issuers) != 0 {
		t.Errorf("a peer before its first catalog stream: %v", l)
	}
	in.Peers = nil
	v = build(t, new(Builder), in)
	for _, view := range []nodestream.View{v.Gateway, v.Agents["n1"]} {
		for key := range view {
			if strings.HasPrefix(key, "link/") || strings.HasPrefix(key, "mirror/") {
				t.Errorf("without peers there is %s", key)
			}
		}
	}
}

func TestDayKeys(t *testing.T) {
	midnight := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC)
	day := identity.Day(midnight)
	for name, tc := range map[string]struct {
		why         string
		at          time.Time
		first, last uint32
	}{
		"before midnight": {"today is yesterday still", midnight.Add(-1), day - 2, day + 1},
		"midnight":        {"the day begins here, and perhaps not yet at an agent whose clock is behind", midnight, day - 1, day + 2},
		"elsewhere":       {"days are UTC's", midnight.In(time.FixedZone("", -11*3600)), day - 1, day + 2},
	} {
		t.Run(name, func(t *testing.T) {
			in := cluster()
			in.Now = tc.at
			v := build(t, new(Builder), in)
			var outbound, inbound []*wire.DayKey
			for d := tc.first; d <= tc.last; d++ {
				key := identity.DayKey(secret, "east-12", "west-1", d)
				outbound = append(outbound, &wire.DayKey{Day: d, Key: key[:]})
			}
			for d := tc.first; d <= tc.last; d++ {
				key := identity.DayKey(secret, "west-1", "east-12", d)
				inbound = append(inbound, &wire.DayKey{Day: d, Key: key[:]})
			}
			if diff := cmp.Diff(outbound, v.Agents["n1"]["link/west"].GetLink().DayKeys, protocmp.Transform()); diff != "" {
				t.Errorf("%s: an agent's are to the peer (-want +got)\n%s", tc.why, diff)
			}
			if diff := cmp.Diff(inbound, v.Gateway["link/west"].GetLink().DayKeys, protocmp.Transform()); diff != "" {
				t.Errorf("%s: a gateway's are from the peer (-want +got)\n%s", tc.why, diff)
			}
			if n := len(v.Gateway["link/west"].GetLink().Gateways); n != 0 {
				t.Errorf("a gateway dials nobody, and is told %d addresses", n)
			}
		})
	}
}

// What did not change is shared, so that comparing Views is comparing pointers.
func TestUnchangedIsShared(t *testing.T) {
	var b Builder
	first := build(t, &b, cluster())
	in := cluster()
	in.Now = noon.Add(time.Hour)
	second := build(t, &b, in)
	if !Same(first.Gateway, second.Gateway) || !Same(first.Agents["n1"], second.Agents["n1"]) || !Same(first.Agents["n2"], second.Agents["n2"]) {
		t.Error("an hour changes nothing, and the Views differ")
	}
	if first.Agents["n1"]["link/west"] != first.Agents["n2"]["link/west"] {
		t.Error("what all agents are told is not shared between them")
	}
	in.Pods[0].Status.PodIPs[0].IP = "10.0.0.77"
	third := build(t, &b, in)
	if Same(second.Agents["n1"], third.Agents["n1"]) || !Same(second.Agents["n2"], third.Agents["n2"]) || !Same(second.Gateway, third.Gateway) {
		t.Error("a pod of n1 changes n1's View and no other")
	}
	for key, r := range third.Agents["n1"] {
		if (second.Agents["n1"][key] == r) != (key != "pod/bar-1") {
			t.Errorf("%s: shared: %v", key, second.Agents["n1"][key] == r)
		}
	}
	if fourth := build(t, &b, cluster()); !Same(fourth.Agents["n2"], first.Agents["n2"]) {
		t.Error("sharing ends after a change elsewhere")
	}
}

func TestGenerationRisesWithEndpoints(t *testing.T) {
	var b Builder
	generation := func(in Inputs) uint64 { return build(t, &b, in).Gateway["route/1024"].GetRoute().Generation }
	in := cluster()
	last := generation(in)
	for _, step := range []struct {
		why   string
		do    func()
		rises bool
	}{
		{"time passes", func() { in.Now = in.Now.Add(time.Hour) }, false},
		{"other Links may use it", func() { in.Exports[0].Links = []string{"north", "west"} }, false},
		{"an unready pod changes", func() { in.Exports[0].Endpoints[1].Node = "n1" }, false},
		{"a pod becomes ready", func() { in.Exports[0].Endpoints[1].Ready = true }, true},
		{"and unready in the same millisecond", func() { in.Exports[0].Endpoints[1].Ready = false }, true},
		{"a pod goes while the clock goes back", func() { in.Now = in.Now.Add(-48 * time.Hour); in.Exports[0].Endpoints[0].Ready = false }, true},
		{"nothing changes", func() {}, false},
	} {
		step.do()
		now := generation(in)
		if rises := now > last; rises != step.rises || now < last {
			t.Errorf("%s: from %d to %d", step.why, last, now)
		}
		last = now
	}
}
