package view

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

var (
	noon   = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	secret = [32]byte{1, 2, 3}
	master = [32]byte{4, 5, 6}
	east   = Cluster{
		TrustDomain: "east-12",
		Issuers:     [][]byte{[]byte("own issuer")},
		VIPCIDRs:    []string{"240.0.0.0/12"},
		HopMaster:   master,
	}
	replica = Controller{PodName: "c-1", PodUID: "uid-c-1", Address: "10.0.0.9"}
)

// want compares a resource, and checks that a client accepts it.
func want(t *testing.T, why string, want, got *wire.Resource) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", why, diff)
	}
	if err := nodestream.NewHub().Apply(nodestream.Change{
		Scope:    nodestream.Agents,
		Resource: got,
	}); err != nil {
		t.Errorf("%s: %v", why, err)
	}
}

func TestCluster(t *testing.T) {
	n1, n2 := identity.HopKey(master, "agent/n1"), identity.HopKey(master, "agent/n2")
	if n1 == n2 {
		t.Fatal("two nodes have one hop key")
	}
	body := func(key []byte, zone string) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
			TrustDomain: "east-12",
			Issuers:     [][]byte{[]byte("own issuer")},
			HopKey:      key,
			VipCidrs:    []string{"240.0.0.0/12"},
			Zone:        zone,
		}}}
	}
	want(t, "an agent has the hop key of its own node", body(n1[:], ""), east.ForAgent("n1", ""))
	want(t, "an agent has the hop key and the zone of its own node",
		body(n2[:], "a"), east.ForAgent("n2", "a"))
	want(t, "a gateway has no hop key", body(nil, ""), east.ForGateways())
}

func TestUpstreams(t *testing.T) {
	agent, controller := identity.HopKey(master, "agent/n1"), identity.HopKey(master, "controller/c-1")
	want(t, "an agent", &wire.Resource{Body: &wire.Resource_Upstream{Upstream: &wire.Upstream{
		Name: "agent/n1", Address: "192.168.0.1:4144", HopKey: agent[:], Zone: "a", ReadsZones: true,
	}}}, east.Agent(Agent{Node: "n1", Address: "192.168.0.1", Zone: "a", ReadsZones: true}))
	want(t, "an address has one notation",
		&wire.Resource{Body: &wire.Resource_Upstream{Upstream: &wire.Upstream{
			Name: "agent/n1", Address: "[fd00::1]:4144", HopKey: agent[:],
		}}}, east.Agent(Agent{Node: "n1", Address: "fd00:0:0::1"}))
	want(t, "a controller", &wire.Resource{Body: &wire.Resource_Upstream{Upstream: &wire.Upstream{
		Name: "controller/c-1", Address: "10.0.0.9:4145", HopKey: controller[:],
	}}}, east.Controller(replica))
}

func TestLinks(t *testing.T) {
	west := Peer{
		Name:              "west",
		UID:               "uid-west",
		TrustDomain:       "west-1",
		Issuers:           [][]byte{[]byte("issuer")},
		IssuerNumber:      4,
		Gateways:          []Gateway{{"192.0.2.1:4143", true}, {"192.0.2.2:4143", false}},
		Secret:            secret,
		Suspended:         true,
		DefaultDeny:       true,
		CallersRestricted: true,
		CallerNamespaces:  []string{"shop", "bank"},
	}
	midnight := time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC)
	day := identity.Day(midnight)
	cases := map[string]struct {
		why         string
		at          time.Time
		first, last uint32
	}{
		"before midnight": {"the day has not changed yet", midnight.Add(-1), day - 2, day + 1},
		"midnight": {
			"an agent whose clock is behind still needs yesterday's key",
			midnight,
			day - 1,
			day + 2,
		},
		"elsewhere": {"days are UTC days", midnight.In(time.FixedZone("", -11*3600)), day - 1, day + 2},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			link := func(from, to string) *wire.Link {
				l := &wire.Link{
					Name:              "west",
					Uid:               "uid-west",
					TrustDomain:       "west-1",
					Issuers:           [][]byte{[]byte("issuer")},
					IssuerNumber:      4,
					Suspended:         true,
					DefaultDeny:       true,
					CallersRestricted: true,
					CallerNamespaces:  []string{"bank", "shop"},
				}
				for d := tc.first; d <= tc.last; d++ {
					key := identity.DayKey(secret, from, to, d)
					l.DayKeys = append(l.DayKeys, &wire.DayKey{Day: d, Key: key[:]})
				}
				return l
			}
			agents := link("east-12", "west-1")
			agents.Gateways = []*wire.GatewayAddress{
				{Address: "192.0.2.1:4143", Healthy: true},
				{Address: "192.0.2.2:4143"},
			}
			want(t, tc.why+"; an agent's keys are for labels to the peer",
				&wire.Resource{Body: &wire.Resource_Link{Link: agents}},
				LinkForAgents(west, "east-12", identity.Day(tc.at)))
			want(t, tc.why+"; a gateway's keys are for labels from the peer, and it dials no address",
				&wire.Resource{Body: &wire.Resource_Link{Link: link("west-1", "east-12")}},
				LinkForGateways(west, "east-12", identity.Day(tc.at)))
		})
	}
}

func TestFrontend(t *testing.T) {
	mirror := ledger.Mirror{
		Source:          ledger.Source{Namespace: "shop", Service: "web"},
		MirrorNamespace: "front", MirrorName: "web-west", AffinitySeconds: 60,
		VIPs:       []netip.Addr{netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("fd00::1")},
		Identities: []string{"spiffe://west-1/ns/shop/sa/web"},
		Ports: []ledger.MirrorPort{
			{Name: "http", Protocol: "TCP", Port: 80, Index: 3, Route: 2048, AppProtocol: "http"},
			{Name: "gone", Protocol: "TCP", Port: 81, Index: 4},
		},
	}
	frontend := func(edit func(*wire.Frontend, *wire.Backend)) *wire.Resource {
		b := &wire.Backend{
			Link: "west", Namespace: "shop", Service: "web", Ready: true,
			Identities: []string{"spiffe://west-1/ns/shop/sa/web"},
			Ports:      []*wire.BackendPort{{Index: 3, Port: 80, Route: 2048}},
		}
		f := &wire.Frontend{
			Namespace:              "front",
			Name:                   "web-west",
			Vips:                   []string{"240.0.0.1", "fd00::1"},
			SessionAffinitySeconds: 60,
			Ports:                  []*wire.FrontendPort{{Index: 3, Name: "http", AppProtocol: "http"}},
			Tiers:                  []*wire.Tier{{Backends: []*wire.Backend{b}}},
		}
		edit(f, b)
		return &wire.Resource{Body: &wire.Resource_Frontend{Frontend: f}}
	}
	named, headless, settled := mirror, mirror, mirror
	named.Hostname, named.Headless = "db-0", true
	headless.Headless = true
	settled.Settings = trafficsettings.Settings{
		Timeout: 500 * time.Millisecond, MaxRequests: 9, SlowStart: time.Second, PreferSameZone: true,
	}
	settled.Ports = slices.Clone(mirror.Ports)
	settled.Ports[0].Declared = trafficsettings.HTTP2
	want(t, "a port that the peer does not offer is left out",
		frontend(func(*wire.Frontend, *wire.Backend) {}),
		Frontend("west", mirror, true, trafficsettings.Defaults{}))
	want(t, "readiness is the peer's",
		frontend(func(_ *wire.Frontend, b *wire.Backend) { b.Ready = false }),
		Frontend("west", mirror, false, trafficsettings.Defaults{}))
	want(t, "a named pod's frontend leads to that pod only",
		frontend(func(_ *wire.Frontend, b *wire.Backend) { b.Hostname = "db-0" }),
		Frontend("west", named, true, trafficsettings.Defaults{}))
	want(t, "the settings are the Service's, and the Link's defaults for the rest",
		frontend(func(f *wire.Frontend, b *wire.Backend) {
			f.Ports[0].Declared = wire.Protocol_HTTP2
			b.Settings = &wire.TrafficSettings{
				TimeoutMs:      new(uint32(500)),
				Retries:        new(uint32(0)),
				RetryOn:        2,
				MaxRequests:    9,
				SlowStartMs:    1000,
				PreferSameZone: true,
			}
		}),
		Frontend("west", settled, true, trafficsettings.Defaults{
			Timeout: time.Hour,
			Retries: trafficsettings.None,
			RetryOn: trafficsettings.RetryReset,
			Opaque:  true,
		}))
	if r := Frontend("west", headless, true, trafficsettings.Defaults{}); r != nil {
		t.Errorf("no client dials a headless Service as such, got %v", r)
	}
}

func pod(namespace, name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      name,
			UID:       types.UID("uid-" + name),
			Labels:    map[string]string{},
		},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "sa"},
		Status: corev1.PodStatus{
			Phase:  corev1.PodRunning,
			PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{
				Type:               corev1.PodReadyToStartContainers,
				Status:             corev1.ConditionTrue,
				LastTransitionTime: metav1.NewTime(noon),
			}},
		},
	}
	for _, e := range edit {
		e(p)
	}
	return p
}

func TestPod(t *testing.T) {
	deleted := metav1.NewTime(noon)
	canary := func(p *corev1.Pod) { p.Labels["app.kubernetes.io/component"] = "canary" }
	cases := map[string]struct {
		why string
		pod *corev1.Pod
		is  func(*wire.Pod) bool
	}{
		"terminating": {
			"it still holds its address",
			pod("shop", "a", func(p *corev1.Pod) { p.DeletionTimestamp = &deleted }),
			func(p *wire.Pod) bool { return p.Terminating && p.Live },
		},
		"host network": {
			"its address is that of the node",
			pod("shop", "a", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
			func(p *wire.Pod) bool { return p.HostNetwork },
		},
		"starting": {
			"an agent may request its certificate early",
			pod("shop", "a", func(p *corev1.Pod) { p.Status = corev1.PodStatus{Phase: corev1.PodPending} }),
			func(p *wire.Pod) bool { return p.Live && len(p.Ips) == 0 && p.SandboxTimeNs == 0 },
		},
		"failed": {
			"another pod may have its address",
			pod("shop", "a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
			func(p *wire.Pod) bool { return p == nil },
		},
		"succeeded": {
			"another pod may have its address",
			pod("shop", "a", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
			func(p *wire.Pod) bool { return p == nil },
		},
		"unscheduled": {
			"it has no agent", pod("shop", "a", func(p *corev1.Pod) { p.Spec.NodeName = "" }),
			func(p *wire.Pod) bool { return p == nil },
		},
		"causeway's own": {
			"it has no identity", pod("causeway-system", "a"),
			func(p *wire.Pod) bool { return p == nil },
		},
		"canary": {
			"the agent must recognize it", pod("causeway-system", "a", canary),
			func(p *wire.Pod) bool { return p.Canary },
		},
		"a tenant's canary label": {
			"the label has a meaning in Causeway's own namespace only", pod("shop", "a", canary),
			func(p *wire.Pod) bool { return p != nil && !p.Canary },
		},
	}
	for name, tc := range cases {
		if r := Pod(tc.pod, "causeway-system"); !tc.is(r.GetPod()) {
			t.Errorf("%s: %s: got %v", name, tc.why, r)
		}
	}
	want(t, "an ordinary pod", &wire.Resource{Body: &wire.Resource_Pod{Pod: &wire.Pod{
		Uid:            "uid-a",
		Namespace:      "shop",
		Name:           "a",
		ServiceAccount: "sa",
		Ips:            []string{"10.0.0.1", "fd00::1"},
		Live:           true,
		SandboxTimeNs:  noon.UnixNano(),
	}}}, Pod(pod("shop", "a"), "causeway-system"))
}

// export is shop/bar with two ports, a ready pod on n1, and on n2 one that is not ready
// and one that has the other port only.
func export() *catalog.Export {
	return &catalog.Export{
		Namespace: "shop", Name: "bar", Links: []string{"west"},
		ForwardIdentity: trafficsettings.ForwardHeader,
		Ports: []catalog.Port{
			{Name: "http", Port: 80, Protocol: "TCP", AppProtocol: "http"},
			{Name: "admin", Port: 81, Protocol: "TCP", Declared: trafficsettings.TCP},
		},
		Policies: []v1alpha1.ExportPolicy{{
			ObjectMeta: metav1.ObjectMeta{Name: "only-web"},
			Spec: v1alpha1.ExportPolicySpec{Callers: []v1alpha1.Caller{
				{ServiceAccount: "web"},
				{
					ServiceAccount: "job",
					Methods:        []string{"GET"},
					Paths:          []v1alpha1.PathMatch{{Exact: "/a"}, {Prefix: "/b"}},
				},
			}},
		}},
		Endpoints: []catalog.Endpoint{
			{
				PodUID: "bar-1", Node: "n1", Host: "bar-0", Ready: true, Accepts: true,
				Targets: map[uint16]uint16{80: 8080}, Isolated: []uint16{80},
			},
			{PodUID: "bar-2", Node: "n2", Targets: map[uint16]uint16{80: 8080}},
			{PodUID: "bar-3", Node: "n2", Ready: true, Accepts: true, Targets: map[uint16]uint16{81: 8081}},
		},
	}
}

func TestExports(t *testing.T) {
	got := Exports(export(), slices.Values([]string{"n2", "n3"}))
	if diff := cmp.Diff([]string{"n1", "n2", "n3"}, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Fatalf("nodes (-want +got):\n%s", diff)
	}
	for node, resource := range got {
		if !proto.Equal(resource, ExportAt(export(), node)) {
			t.Errorf("%s alone receives something else", node)
		}
	}
	body := func(pods ...*wire.ExportPod) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Export{Export: &wire.Export{
			Namespace: "shop", Service: "bar", Links: []string{"west"},
			Ports: []*wire.ExportPort{
				{Port: 80, Name: "http", AppProtocol: "http"},
				{Port: 81, Name: "admin", Declared: wire.Protocol_TCP},
			},
			Policies: []*wire.Policy{{
				Name:    "only-web",
				Callers: []*wire.Caller{{ServiceAccount: "web"}},
				RequestCallers: []*wire.RequestCaller{{
					Caller:  &wire.Caller{ServiceAccount: "job"},
					Methods: []string{"GET"},
					Paths: []*wire.PathMatch{
						{Match: &wire.PathMatch_Exact{Exact: "/a"}},
						{Match: &wire.PathMatch_Prefix{Prefix: "/b"}},
					},
				}},
			}},
			Pods:            pods,
			ForwardIdentity: wire.ForwardIdentity_HEADER,
		}}}
	}
	want(t, "a node gets its own pods only", body(&wire.ExportPod{
		Uid:           "bar-1",
		Ready:         true,
		Accepts:       true,
		Targets:       map[uint32]uint32{80: 8080},
		IsolatedPorts: []uint32{80},
	}), got["n1"])
	want(t, "open tunnels of unready pods are checked too", body(
		&wire.ExportPod{Uid: "bar-2", Targets: map[uint32]uint32{80: 8080}},
		&wire.ExportPod{Uid: "bar-3", Ready: true, Accepts: true, Targets: map[uint32]uint32{81: 8081}},
	), got["n2"])
	want(t, "a pod of the namespace may have backed the Service, and serve what is open", body(), got["n3"])
	none := slices.Values([]string(nil))
	if got := Exports(&catalog.Export{Namespace: "shop", Name: "bar"}, none); len(got) != 0 {
		t.Errorf("an export of a namespace without pods is for no node, got %v", got)
	}
}

// table remembers rows as the hub does.
type table map[uint32]*wire.Route

func (m table) rows(now time.Time) Rows {
	return Rows{Cluster: east, Now: now, Last: func(id uint32) *wire.Route { return m[id] }}
}

func routeIDs(name, _ string) uint32 { return map[string]uint32{"http": 1024}[name] }

func TestRows(t *testing.T) {
	rows := table{}.rows(noon)
	key := identity.EndpointKey(master)
	id, catalogID := identity.EndpointID(key, "shop/bar", "bar-1"), identity.EndpointID(key,
		"causeway/catalog", "uid-c-1")
	host := route.HostHash("bar-0")
	generation := uint64(noon.UnixMilli())
	controllers := []*wire.Endpoint{{Id: catalogID[:], PodUid: "uid-c-1", Upstream: "controller/c-1"}}

	got := rows.Export(export(), routeIDs)
	if len(got) != 1 {
		t.Fatalf("a port without a route id is not offered, got %v", got)
	}
	want(t, "endpoints accept connections and have the port",
		&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
			Id: 1024, Links: []string{"west"}, Generation: generation,
			Endpoints: []*wire.Endpoint{{Id: id[:], PodUid: "bar-1", Upstream: "agent/n1", Host: host[:]}},
		}}}, got[0])
	want(t, "every Link may use the catalog", &wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
		Id: 0, Links: []string{"alps", "west"}, Generation: generation, Endpoints: controllers,
	}}}, rows.Catalog([]string{"west", "alps"}, []Controller{replica}))
	if got := rows.Invites(nil, []Controller{replica}); len(got) != 0 {
		t.Errorf("without an invite there is no row, got %v", got)
	}
	invites := rows.Invites([]Invite{
		{Name: "north", UID: "uid-i", LabelKey: secret, Until: noon},
	}, []Controller{replica})
	want(t, "an invite's key", &wire.Resource{Body: &wire.Resource_Invite{Invite: &wire.Invite{
		Name: "north", Uid: "uid-i", LabelKey: secret[:], UntilMs: noon.UnixMilli(),
	}}}, invites[0])
	want(t, "an invite leads to the controllers",
		&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
			Id:         route.Join,
			Links:      []string{route.InviteName("north")},
			Generation: generation,
			Endpoints:  controllers,
		}}}, invites[1])
}

func TestGenerationRisesWithEndpoints(t *testing.T) {
	sent, now, e := table{}, noon, export()
	generation := func() uint64 {
		row := sent.rows(now).Export(e, routeIDs)[0].GetRoute()
		sent[row.Id] = row
		return row.Generation
	}
	last := generation()
	for _, step := range []struct {
		why   string
		do    func()
		rises bool
	}{
		{"time passes", func() { now = now.Add(time.Hour) }, false},
		{"other Links may use it", func() { e.Links = []string{"north", "west"} }, false},
		{"a pod that does not accept connections changes", func() { e.Endpoints[1].Node = "n1" }, false},
		{"a pod becomes ready", func() { e.Endpoints[1].Accepts = true }, true},
		{"it becomes unready in the same millisecond", func() { e.Endpoints[1].Accepts = false }, true},
		{"a pod gets a name", func() { e.Endpoints[0].Host = "bar-9" }, true},
		{
			"a pod goes while the clock goes back",
			func() { now = now.Add(-48 * time.Hour); e.Endpoints[0].Accepts = false },
			true,
		},
		{"nothing changes", func() {}, false},
	} {
		step.do()
		next := generation()
		if rises := next > last; rises != step.rises || next < last {
			t.Errorf("%s: from %d to %d", step.why, last, next)
		}
		last = next
	}
}
