package agent

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

func noneRevoked(string) bool { return false }

func TestNewState(t *testing.T) {
	east, north := newCluster(t, "east-12"), newCluster(t, "north-123")
	link := func(name, domain string, issuers ...[]byte) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{Name: name, Uid: "uid-" + name, TrustDomain: domain, Issuers: issuers,
			Gateways: []*wire.GatewayAddress{{Address: "late:4143"}, {Address: "healthy:4143", Healthy: true}}}}}
	}
	mirror := func(link, service, vip string, identities ...string) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
			Namespace: "shop", Name: service + "-" + link, Vips: []string{vip},
			Tiers: []*wire.Tier{{Backends: []*wire.Backend{{Link: link, Namespace: "shop", Service: service, Identities: identities}}}}}}}
	}
	pod := func(uid string, p *wire.Pod) *wire.Resource {
		p.Uid, p.Namespace, p.Name, p.ServiceAccount = uid, "shop", uid, "sa"
		return &wire.Resource{Body: &wire.Resource_Pod{Pod: p}}
	}
	barID, northID := "spiffe://east-12/ns/shop/sa/bar", "spiffe://north-123/ns/shop/sa/bar"
	linkEast := link("east", "east-12", east.issuers()...)
	cases := map[string]struct {
		why       string
		resources []*wire.Resource
		revoked   string
		mirrors   map[string]string // by VIP, who holds it; "": nobody does
		trusted   []string
		links     []string
		broken    bool // an error tells of something
	}{
		"all is well": {
			why:       "a state is what the view says",
			resources: []*wire.Resource{linkEast, mirror("east", "bar", "240.0.0.1", barID)},
			mirrors:   map[string]string{"240.0.0.1": "shop/bar-east"}, trusted: []string{"east-12"}, links: []string{"east"},
		},
		"link seen deleted": {
			why:       "neither its mirrors nor its issuers count",
			resources: []*wire.Resource{linkEast, mirror("east", "bar", "240.0.0.1", barID)}, revoked: "uid-east",
		},
		"one VIP, two mirrors": {
			why: "sending callers to whichever comes first would be a lottery with their data",
			resources: []*wire.Resource{linkEast, mirror("east", "bar", "240.0.0.1", barID), mirror("east", "foo", "240.0.0.1", barID),
				mirror("east", "qux", "240.0.0.1", barID), mirror("east", "own", "240.0.0.2", barID)},
			mirrors: map[string]string{"240.0.0.1": "", "240.0.0.2": "shop/own-east"},
			trusted: []string{"east-12"}, links: []string{"east"}, broken: true,
		},
		"identity of another cluster": {
			why: "a peer vouches for its own trust domain only, even if the other is linked too",
			resources: []*wire.Resource{linkEast, link("north", "north-123", north.issuers()...),
				mirror("east", "bar", "240.0.0.1", northID), mirror("east", "foo", "240.0.0.2", barID)},
			mirrors: map[string]string{"240.0.0.2": "shop/foo-east"},
			trusted: []string{"east-12", "north-123"}, links: []string{"east", "north"}, broken: true,
		},
		"identity that is none": {
			why:       "one broken mirror harms no other",
			resources: []*wire.Resource{linkEast, mirror("east", "bar", "240.0.0.1", "bar"), mirror("east", "foo", "240.0.0.2", barID)},
			mirrors:   map[string]string{"240.0.0.2": "shop/foo-east"}, trusted: []string{"east-12"}, links: []string{"east"}, broken: true,
		},
		"two links, one trust domain": {
			why:       "whose workload calls could not be told",
			resources: []*wire.Resource{linkEast, link("other", "east-12", east.issuers()...)},
			links:     []string{"east", "other"},
		},
		"own trust domain": {
			why:       "no peer vouches for our own workloads",
			resources: []*wire.Resource{link("self", "west-1", newCluster(t, "west-1").issuers()...)},
			links:     []string{"self"},
		},
		"issuer of another trust domain": {
			why:       "one peer's broken list takes nothing from the others",
			resources: []*wire.Resource{linkEast, link("north", "north-123", east.issuers()...)},
			trusted:   []string{"east-12"}, links: []string{"east", "north"}, broken: true,
		},
		"no issuers yet": {
			why:       "before the first catalog stream a peer is a name",
			resources: []*wire.Resource{link("east", "east-12"), mirror("east", "bar", "240.0.0.1", barID)},
			mirrors:   map[string]string{"240.0.0.1": "shop/bar-east"}, links: []string{"east"},
		},
	}
	cluster := &wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{TrustDomain: "west-1", HopKey: make([]byte, 32), VipCidrs: []string{"240.0.0.0/8"}}}}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			view := must(nodestream.NewView(append(tc.resources, cluster)...))(t)
			s, err := newState(view, func(uid string) bool { return uid == tc.revoked }, nil)
			if s == nil || (err != nil) != tc.broken {
				t.Fatalf("%s: %v, want broken: %v", tc.why, err, tc.broken)
			}
			for range 10 {
				if _, again := newState(view, func(uid string) bool { return uid == tc.revoked }, nil); err != nil && again.Error() != err.Error() {
					t.Errorf("the error reads differently each time: %q, %q", err, again)
				}
			}
			got := map[string]string{}
			for addr, m := range s.mirrors {
				got[addr.String()] = ""
				if m != nil {
					got[addr.String()] = m.name
				}
			}
			if diff := cmp.Diff(tc.mirrors, got); diff != "" && len(tc.mirrors)+len(got) > 0 {
				t.Errorf("%s: mirrors (-want +got)\n%s", tc.why, diff)
			}
			if got := s.anchors.TrustDomains(); !slices.Equal(got, tc.trusted) {
				t.Errorf("%s: trusted are %v, want %v", tc.why, got, tc.trusted)
			}
			if got := slices.Sorted(maps.Keys(s.links)); !slices.Equal(got, tc.links) {
				t.Errorf("%s: links are %v, want %v", tc.why, got, tc.links)
			}
		})
	}

	t.Run("gateways", func(t *testing.T) {
		s, _ := newState(must(nodestream.NewView(cluster, linkEast))(t), noneRevoked, nil)
		if got, want := s.links["east"].gateways, []string{"healthy:4143", "late:4143"}; !slices.Equal(got, want) {
			t.Errorf("healthy ones come first: %v, want %v", got, want)
		}
	})
	t.Run("pods", func(t *testing.T) {
		s, err := newState(must(nodestream.NewView(cluster,
			pod("own", &wire.Pod{Live: true, Ips: []string{"10.0.0.1", "fd00::1"}}),
			pod("mapped", &wire.Pod{Live: true, Ips: []string{"::ffff:10.0.0.2"}}),
			pod("host", &wire.Pod{Live: true, HostNetwork: true, Ips: []string{"192.0.2.1"}}),
			pod("finished", &wire.Pod{Ips: []string{"10.0.0.1"}}),
			pod("leaving", &wire.Pod{Live: true, Terminating: true, Ips: []string{"10.0.0.3"}}),
			pod("young", &wire.Pod{Live: true}),
		))(t), noneRevoked, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]string{}
		for addr, pods := range s.podsByAddr {
			for _, p := range pods {
				got[addr.String()] = append(got[addr.String()], p.name)
			}
		}
		want := map[string][]string{"10.0.0.1": {"own"}, "fd00::1": {"own"}, "10.0.0.2": {"mapped"}, "10.0.0.3": {"leaving"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("who has an address: neither finished pods nor the node's own (-want +got)\n%s", diff)
		}
		if got := s.accounts(); len(got) != 1 || !got[account{"shop", "sa"}] {
			t.Errorf("accounts: %v", got)
		}
	})
	t.Run("useless", func(t *testing.T) {
		short := &wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{TrustDomain: "west-1", HopKey: make([]byte, 31)}}}
		for why, r := range map[string]*wire.Resource{"without its cluster": linkEast, "with half a hop key": short} {
			if s, err := newState(must(nodestream.NewView(r))(t), noneRevoked, nil); s != nil || err == nil {
				t.Errorf("a view %s: %v, %v", why, s, err)
			}
		}
		if _, err := newState(nil, noneRevoked, nil); !errors.Is(err, errNoCluster) {
			t.Errorf("no view: %v", err)
		}
	})
}

// What owners of Services ask for reaches the ports of both ends.
func TestPortsHaveSettings(t *testing.T) {
	link := &wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{Name: "east", Uid: "uid-east", TrustDomain: "east-12"}}}
	cluster := &wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{TrustDomain: "west-1", HopKey: make([]byte, 32)}}}
	frontend := &wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
		Namespace: "shop", Name: "bar-east", Vips: []string{"240.0.0.1"},
		Ports: []*wire.FrontendPort{
			{Index: 0, AppProtocol: "http"}, {Index: 1, AppProtocol: "http", Declared: wire.Protocol_TCP}, {Index: 2}, {Index: 3, Declared: 99},
		},
		Tiers: []*wire.Tier{{Backends: []*wire.Backend{{
			Link: "east", Namespace: "shop", Service: "bar",
			Ports: []*wire.BackendPort{{Index: 0, Port: 80, Route: 1024}, {Index: 1, Port: 81, Route: 1025}, {Index: 2, Port: 82, Route: 1026}, {Index: 3, Port: 83, Route: 1027}},
			Settings: &wire.TrafficSettings{
				TimeoutMs: new(uint32(0)), PerTryTimeoutMs: new(uint32(1500)), Retries: new(uint32(2)), RetryOn: 1 << 1,
				MaxConnections: 1, MaxPendingRequests: 2, MaxRequests: 3, SlowStartMs: 4, PreferSameZone: true,
			},
		}}}},
	}}}
	export := &wire.Resource{Body: &wire.Resource_Export{Export: &wire.Export{
		Namespace: "shop", Service: "foo", ForwardIdentity: wire.ForwardIdentity_PROXY_V2,
		Ports: []*wire.ExportPort{{Port: 80, AppProtocol: "kubernetes.io/h2c"}, {Port: 81, Declared: wire.Protocol_GRPC}},
	}}}
	s, err := newState(must(nodestream.NewView(cluster, link, frontend, export))(t), noneRevoked, nil)
	if err != nil {
		t.Fatal(err)
	}
	settings := trafficsettings.Settings{
		Timeout: trafficsettings.None, PerTryTimeout: 1500 * time.Millisecond, Retries: 2, RetryOn: trafficsettings.RetryReset,
		MaxConnections: 1, MaxPendingRequests: 2, MaxRequests: 3, SlowStart: 4 * time.Millisecond, PreferSameZone: true,
	}
	ports := s.mirrors[netip.MustParseAddr("240.0.0.1")].ports
	for i, want := range []mirrorPort{
		{number: 80, route: 1024, appProtocol: "http", protocol: trafficsettings.HTTP1, settings: settings},
		{number: 81, route: 1025, appProtocol: "http", protocol: trafficsettings.TCP, settings: settings},
		{number: 82, route: 1026, settings: settings},
		{number: 83, route: 1027, protocol: trafficsettings.TCP, settings: settings},
	} {
		if ports[i] != want {
			t.Errorf("mirror port %d: %+v, want %+v", i, ports[i], want)
		}
	}
	for port, want := range map[uint32]exportedPort{
		80: {"kubernetes.io/h2c", trafficsettings.HTTP2, trafficsettings.ForwardProxyV2},
		81: {"", trafficsettings.GRPC, trafficsettings.ForwardProxyV2},
		82: {},
	} {
		if got := s.exportedPorts[exportedPortKey{"shop", "foo", port}]; got != want {
			t.Errorf("exported port %d: %+v, want %+v", port, got, want)
		}
	}
}

// A rule with methods or paths admits no session, because this agent asks about no
// request.
func TestAdmissionHasRequestRules(t *testing.T) {
	got := exportOf(&wire.Export{Policies: []*wire.Policy{{Name: "front", RequestCallers: []*wire.RequestCaller{{
		Caller: &wire.Caller{Link: "west"}, Methods: []string{"GET"},
		Paths: []*wire.PathMatch{{Match: &wire.PathMatch_Exact{Exact: "/a"}}, {Match: &wire.PathMatch_Prefix{Prefix: "/b"}}, {}},
	}}}}})
	want := []admit.Policy{{Name: "front", Requests: []admit.RequestRule{{
		Caller: admit.Caller{Link: "west"}, Methods: []string{"GET"}, Paths: []admit.Path{{Exact: "/a"}, {Prefix: "/b"}, {}},
	}}}}
	if diff := cmp.Diff(want, got.Policies); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestIsVIP(t *testing.T) {
	s := &state{vips: []netip.Prefix{netip.MustParsePrefix("240.0.0.0/16"), netip.MustParsePrefix("fd00::/64")}}
	for addr, want := range map[string]bool{"240.0.1.2": true, "240.1.0.0": false, "fd00::7": true, "fd01::7": false, "127.0.0.1": false} {
		if s.isVIP(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s: want %v", addr, want)
		}
	}
}

// A view that makes no state at all must not keep a deleted Link in force.
func TestInvalidViewStillRevokesLinks(t *testing.T) {
	w := newHarness(t, echoLines)
	c := w.dial(alice)
	wantEcho(t, c)
	useless := w.view(&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{HopKey: []byte("short")}}})
	w.west.onState(uplink.State{View: useless, Revoked: noneRevoked})
	wantEcho(t, c)
	if answer := must(w.call(bob, ""))(t); answer != "" {
		t.Errorf("bob's call: %q", answer)
	}
	w.west.onState(uplink.State{View: useless, Revoked: func(uid string) bool { return uid == "link-to-east" }})
	_, err := io.ReadAll(c)
	wantReset(t, "what the deleted Link had admitted", err)
	if answer, err := w.call(bob, ""); err == nil {
		t.Errorf("a new call goes to a deleted Link: %q", answer)
	}
	w.west.onState(uplink.State{View: useless, Revoked: noneRevoked, Expired: true})
	if _, err := w.west.current(); err == nil {
		t.Error("a state that has expired admits new calls")
	}
}

// largeView returns a view of 10,000 mirrors of 200 linked clusters.
func largeView(t testing.TB) nodestream.View {
	const links, mirrors = 200, 50
	resources := []*wire.Resource{{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
		TrustDomain: "west-1", HopKey: make([]byte, 32), VipCidrs: []string{"240.0.0.0/12"}}}}}
	for i := range links {
		name := fmt.Sprintf("link-%d", i)
		c := newCluster(t, fmt.Sprintf("peer-%d", i))
		resources = append(resources, &wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{
			Name: name, Uid: "uid-" + name, TrustDomain: c.root.TrustDomain(), Issuers: c.issuers(),
			Gateways: []*wire.GatewayAddress{{Address: "192.0.2.1:4143", Healthy: true}},
			DayKeys:  []*wire.DayKey{{Day: 1, Key: make([]byte, 32)}, {Day: 2, Key: make([]byte, 32)}}}}})
		for k := range mirrors {
			service := fmt.Sprintf("bar-%d", k)
			resources = append(resources, &wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
				Namespace: "shop", Name: service + "-" + name,
				Vips:  []string{netip.AddrFrom4([4]byte{240, 1, byte(i), byte(k)}).String()},
				Ports: []*wire.FrontendPort{{Index: 0}},
				Tiers: []*wire.Tier{{Backends: []*wire.Backend{{
					Link: name, Namespace: "shop", Service: service,
					Identities: []string{"spiffe://" + c.root.TrustDomain() + "/ns/shop/sa/bar"},
					Ports:      []*wire.BackendPort{{Index: 0, Port: 80, Route: uint32(k + 1)}}}}}}}}})
		}
	}
	return must(nodestream.NewView(resources...))(t)
}

// TestStateSharesWhatHasNotChanged: a new state parses only resources that are new, and
// is otherwise the same as one made of the view alone.
func TestStateSharesWhatHasNotChanged(t *testing.T) {
	view := largeView(t)
	first := must(newState(view, noneRevoked, nil))(t)
	at := func(link, mirror byte) netip.Addr { return netip.AddrFrom4([4]byte{240, 1, link, mirror}) }

	next := maps.Clone(view)
	for key, r := range view {
		switch {
		case r.GetFrontend().GetName() == "bar-0-link-0":
			f := proto.CloneOf(r)
			f.GetFrontend().Tiers[0].Backends[0].Service = "foo"
			next[key] = f
		case r.GetLink().GetName() == "link-1":
			l := proto.CloneOf(r)
			l.GetLink().TrustDomain = "other-1"
			l.GetLink().Issuers = nil
			next[key] = l
		}
	}
	second, err := newState(next, noneRevoked, first)
	_, wantErr := newState(next, noneRevoked, nil)
	if err == nil || wantErr == nil || err.Error() != wantErr.Error() {
		t.Errorf("error %.200v, want that of a state made of the view alone: %.200v", err, wantErr)
	}
	if got := second.mirrors[at(0, 0)].service; got != "foo" {
		t.Errorf("the changed frontend leads to %s, want foo", got)
	}
	if got := second.mirrors[at(1, 0)]; got != nil {
		t.Errorf("%s is served, but its Link cannot vouch for its identity any more", got.name)
	}
	if second.mirrors[at(0, 1)] != first.mirrors[at(0, 1)] || second.links["link-2"] != first.links["link-2"] {
		t.Error("what has not changed was parsed again")
	}
}

// BenchmarkNewState makes the state after a change of one among 10,000 mirrors of 200
// Links.
func BenchmarkNewState(b *testing.B) {
	view := largeView(b)
	was := must(newState(view, noneRevoked, nil))(b)
	for key, r := range view {
		if r.GetFrontend() != nil {
			view = maps.Clone(view)
			view[key] = proto.CloneOf(r)
			break
		}
	}
	for name, was := range map[string]*state{"after a change": was, "the first": nil} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(newState(view, noneRevoked, was))(b)
			}
		})
	}
}
