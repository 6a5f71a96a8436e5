package ledger

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

var (
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	wide  = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/12")}
	small = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/28")} // 13 usable addresses
	// four has the addresses .2 to .6 alone.
	four = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/29")}
)

func mirrorWant(service string, ports ...string) MirrorWant {
	w := MirrorWant{
		Namespace: "shop", Service: service, MirrorNamespace: "shop", MirrorName: service + "-east",
		Identities: []string{"spiffe://east.1/ns/shop/sa/" + service},
	}
	for i, p := range ports {
		w.Ports = append(w.Ports, PortWant{Name: p, Protocol: "TCP", Port: uint16(80 + i), Route: uint32(2000 + i)})
	}
	return w
}

func east(wants ...MirrorWant) []Peer {
	return []Peer{{Link: "east", TrustDomain: "east.1", Complete: true, Mirrors: wants}}
}

// vips tells the VIPs of the live entries by source service.
func vips(b Book) map[string]string {
	out := map[string]string{}
	for _, m := range b.Live() {
		out[m.Link+"/"+m.Service] = m.VIPs[0]
	}
	return out
}

func TestAddresses(t *testing.T) {
	b, problems := Book{}.AssignMirrors(east(mirrorWant("bar", "http"), mirrorWant("foo", "http")), wide, noon)
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	want := map[string]string{"east/bar": "240.0.0.2", "east/foo": "240.0.0.3"}
	if d := cmp.Diff(want, vips(b)); d != "" {
		t.Errorf("the range's own address and the canary's are never given (-want +got):\n%s", d)
	}
}

func TestRest(t *testing.T) {
	bar, foo := mirrorWant("bar", "http"), mirrorWant("foo", "http")
	start, _ := Book{}.AssignMirrors(east(bar), wide, noon)
	gone, _ := start.AssignMirrors(east(), wide, noon)

	cases := map[string]struct {
		why   string
		peers []Peer
		after time.Duration
		want  map[string]string
	}{
		"back within the day": {
			why:   "callers hold connections and caches for a while: the same Service is the same address",
			peers: east(bar), after: Rest - 1, want: map[string]string{"east/bar": "240.0.0.2"},
		},
		"back after the day, nobody else came": {
			why:   "nothing speaks against giving it its own again",
			peers: east(bar), after: 30 * Rest, want: map[string]string{"east/bar": "240.0.0.2"},
		},
		"another meanwhile": {
			why:   "a connection meant for bar must never reach foo",
			peers: east(foo), after: Rest - 1, want: map[string]string{"east/foo": "240.0.0.3"},
		},
		"another long after": {
			why:   "what was never given has rested longest",
			peers: east(foo), after: 30 * Rest, want: map[string]string{"east/foo": "240.0.0.3"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, problems := gone.AssignMirrors(c.peers, wide, noon.Add(c.after))
			if d := cmp.Diff(c.want, vips(b)); d != "" || len(problems) > 0 {
				t.Errorf("%s: problems %v (-want +got):\n%s", c.why, problems, d)
			}
		})
	}
	if len(gone.Live()) != 0 || len(gone.Link("east")) != 0 {
		t.Errorf("a resting entry is no mirror: %v", gone.Live())
	}
}

func TestRestIsNotShorter(t *testing.T) {
	late := noon.Add(time.Second - 1) // the API keeps whole seconds
	b, _ := Book{}.AssignMirrors(east(mirrorWant("bar")), wide, late)
	b, _ = b.AssignMirrors(east(), wide, late)
	if since := b.mirrors[0].RestingSince; since.Before(&metav1.Time{Time: late}) || rested(since, late.Add(Rest-1)) {
		t.Errorf("a rest that begins at %v is said to begin at %v", late, since)
	}
}

func TestLongestRestedFirst(t *testing.T) {
	var wants []MirrorWant
	for i := range 5 {
		wants = append(wants, mirrorWant(fmt.Sprintf("s%d", i), "http"))
	}
	b, problems := Book{}.AssignMirrors(east(wants...), four, noon)
	if len(problems) > 0 {
		t.Fatalf("a /29 has five addresses to give: %v", problems)
	}
	// s3 goes first, then s1, then all.
	b, _ = b.AssignMirrors(east(wants[0], wants[1], wants[2], wants[4]), four, noon)
	b, _ = b.AssignMirrors(east(wants[0], wants[2], wants[4]), four, noon.Add(time.Hour))
	b, _ = b.AssignMirrors(east(), four, noon.Add(2*time.Hour))

	_, problems = b.AssignMirrors(east(mirrorWant("new")), four, noon.Add(Rest-time.Second))
	if len(problems) != 1 || problems[0].Reason != VIPsExhausted {
		t.Errorf("a second before the first has rested there is nothing to give: %v", problems)
	}
	b, problems = b.AssignMirrors(east(mirrorWant("new"), mirrorWant("newer")), four, noon.Add(2*Rest))
	want := map[string]string{"east/new": "240.0.0.5", "east/newer": "240.0.0.3"}
	if d := cmp.Diff(want, vips(b)); d != "" || len(problems) > 0 {
		t.Errorf("the longest-rested goes first: problems %v (-want +got):\n%s", problems, d)
	}
}

func TestIncomplete(t *testing.T) {
	bar, foo := mirrorWant("bar", "http"), mirrorWant("foo", "http")
	start, _ := Book{}.AssignMirrors(east(bar), wide, noon)
	cases := map[string]struct {
		why   string
		peers []Peer
		live  []string
	}{
		"nothing heard yet": {
			why:   "a peer that is silent has withdrawn nothing",
			peers: []Peer{{Link: "east", TrustDomain: "east.1"}},
			live:  []string{"bar"},
		},
		"half a catalog": {
			why:   "what has come is made, what has not come stays",
			peers: []Peer{{Link: "east", TrustDomain: "east.1", Mirrors: []MirrorWant{foo}}},
			live:  []string{"bar", "foo"},
		},
		"no such Link any more": {
			why:  "a deleted Link needs no catalog to end its mirrors",
			live: nil,
		},
		"a new Link of the old name": {
			why:   "the identities expected were those of another cluster",
			peers: []Peer{{Link: "east", TrustDomain: "other.1"}},
			live:  nil,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, _ := start.AssignMirrors(c.peers, wide, noon.Add(time.Hour))
			var live []string
			for _, m := range b.Link("east") {
				live = append(live, m.Service)
			}
			if d := cmp.Diff(c.live, live); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func TestNameTaken(t *testing.T) {
	// "a" of link "b-c" and "a-b" of link "c" both become a-b-c.
	late := Peer{Link: "b-c", TrustDomain: "x", Complete: true, Mirrors: []MirrorWant{{Namespace: "n", Service: "a", MirrorNamespace: "n", MirrorName: "a-b-c"}}}
	first := Peer{Link: "c", TrustDomain: "y", Complete: true, Mirrors: []MirrorWant{{Namespace: "n", Service: "a-b", MirrorNamespace: "n", MirrorName: "a-b-c"}}}

	b, _ := Book{}.AssignMirrors([]Peer{first, {Link: "b-c", Complete: true}}, wide, noon)
	b, problems := b.AssignMirrors([]Peer{late, first}, wide, noon)
	if len(b.Link("c")) != 1 || len(b.Link("b-c")) != 0 {
		t.Errorf("whom the ledger saw first keeps the name, though it sorts later: %v", b.Live())
	}
	if len(problems) != 1 || problems[0].Reason != NameTaken || problems[0].Link != "b-c" || problems[0].Service != "n/a-b-c" {
		t.Errorf("the other is told: %v", problems)
	}
	first.Mirrors = nil
	b, problems = b.AssignMirrors([]Peer{late, first}, wide, noon)
	if len(b.Link("b-c")) != 1 || len(problems) > 0 {
		t.Errorf("once the name is free the other has it: %v, problems %v", b.Live(), problems)
	}
}

func TestIndexes(t *testing.T) {
	index := func(b Book, name string) int32 {
		for _, p := range b.Link("east")[0].Ports {
			if p.Name == name {
				return p.Index
			}
		}
		return -1
	}
	b, _ := Book{}.AssignMirrors(east(mirrorWant("bar", "http", "grpc")), wide, noon)
	if index(b, "http") != 0 || index(b, "grpc") != 1 {
		t.Fatalf("indexes begin at 0 in the order of port numbers: %v", b.Live())
	}
	b, _ = b.AssignMirrors(east(mirrorWant("bar", "grpc", "admin")), wide, noon)
	if index(b, "grpc") != 1 || index(b, "admin") != 2 {
		t.Errorf("an index stays with its name and is never given to another: %v", b.Live())
	}
	ports := b.Link("east")[0].Ports
	if len(ports) != 3 || ports[0].Route != 0 || ports[1].Route != 2000 {
		t.Errorf("a port not offered is remembered without a route: %v", ports)
	}

	vip := b.Link("east")[0].VIPs[0]
	for i := range 29 { // indexes 3 to 31
		b, _ = b.AssignMirrors(east(mirrorWant("bar", fmt.Sprintf("p%d", i))), wide, noon)
	}
	if got := b.Link("east")[0]; got.VIPs[0] != vip || index(b, "p28") != 31 {
		t.Fatalf("32 ports fit one VIP: %v", got)
	}
	b, problems := b.AssignMirrors(east(mirrorWant("bar", "last", "p28")), wide, noon)
	got := b.Link("east")
	if len(got) != 1 || got[0].VIPs[0] == vip || index(b, "last") != 0 || index(b, "p28") != 1 || len(problems) > 0 {
		t.Errorf("a mirror out of indexes begins anew on another VIP: %v, problems %v", got, problems)
	}
	reloaded, problems := Load(b.Shards("causeway-system"))
	if d := cmp.Diff(b.Shards(""), reloaded.Shards("")); d != "" || len(problems) > 0 {
		t.Errorf("the retired VIP rests beside the live one: %v\n%s", problems, d)
	}
	b, _ = b.AssignMirrors(east(mirrorWant("bar", "last"), mirrorWant("foo")), wide, noon.Add(Rest-time.Second))
	if vips(b)["east/foo"] == vip {
		t.Error("the retired VIP rests like any other")
	}
}

func TestFamilies(t *testing.T) {
	both := []netip.Prefix{small[0], netip.MustParsePrefix("fd00:cafe::/64")}
	b, _ := Book{}.AssignMirrors(east(mirrorWant("bar")), small, noon)
	b, _ = b.AssignMirrors(east(mirrorWant("bar")), both, noon)
	if d := cmp.Diff([]string{"240.0.0.2", "fd00:cafe::2"}, b.Link("east")[0].VIPs); d != "" {
		t.Errorf("a second family adds a VIP and keeps the first (-want +got):\n%s", d)
	}
	moved := []netip.Prefix{netip.MustParsePrefix("241.0.0.0/28")}
	b, _ = b.AssignMirrors(east(mirrorWant("bar")), moved, noon)
	if d := cmp.Diff([]string{"241.0.0.2"}, b.Link("east")[0].VIPs); d != "" {
		t.Errorf("another range means other VIPs (-want +got):\n%s", d)
	}
}

func exportWant(service string, ports ...string) ExportWant {
	w := ExportWant{Namespace: "shop", Service: service}
	for _, p := range ports {
		w.Ports = append(w.Ports, ExportPort{Name: p, Protocol: "TCP"})
	}
	return w
}

func TestRoutes(t *testing.T) {
	b, _ := Book{}.AssignExports([]ExportWant{exportWant("foo", "http"), exportWant("bar", "grpc", "http")}, noon)
	got := map[string]uint32{}
	for _, k := range [][2]string{{"bar", "grpc"}, {"bar", "http"}, {"foo", "http"}, {"foo", "none"}, {"none", "http"}} {
		got[k[0]+":"+k[1]] = b.Route("shop", k[0], k[1], "TCP")
	}
	want := map[string]uint32{"bar:grpc": 1024, "bar:http": 1025, "foo:http": 1026, "foo:none": 0, "none:http": 0}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("route ids begin at 1024 (-want +got):\n%s", d)
	}
	if b.Route("shop", "bar", "http", "UDP") != 0 {
		t.Error("a route id is for one protocol")
	}

	gone, _ := b.AssignExports([]ExportWant{exportWant("foo", "http")}, noon)
	if gone.Route("shop", "bar", "http", "TCP") != 0 {
		t.Error("what is not exported has no route")
	}
	back, _ := gone.AssignExports([]ExportWant{exportWant("foo", "http"), exportWant("bar", "http", "admin")}, noon.Add(time.Hour))
	if back.Route("shop", "bar", "http", "TCP") != 1025 || back.Route("shop", "bar", "admin", "TCP") != 1027 {
		t.Errorf("what comes back has its route again, a new port a new one: %v", back.exports)
	}
}

func TestRoutesRest(t *testing.T) {
	const last = FirstRoute + 1 // two route ids
	b, _ := Book{}.assignExports([]ExportWant{exportWant("a", "p"), exportWant("b", "p")}, noon, last)
	b, _ = b.assignExports([]ExportWant{exportWant("a", "p")}, noon, last)
	b, _ = b.assignExports(nil, noon.Add(time.Hour), last)

	_, problems := b.assignExports([]ExportWant{exportWant("c", "p")}, noon.Add(Rest-time.Second), last)
	if len(problems) != 1 || problems[0].Reason != RoutesExhausted {
		t.Errorf("a second before the first has rested there is nothing to give: %v", problems)
	}
	b, problems = b.assignExports([]ExportWant{exportWant("c", "p"), exportWant("d", "p")}, noon.Add(2*Rest), last)
	if b.Route("shop", "c", "p", "TCP") != FirstRoute+1 || b.Route("shop", "d", "p", "TCP") != FirstRoute || len(problems) > 0 {
		t.Errorf("the longest-rested goes first: %v, problems %v", b.exports, problems)
	}
}

func TestRoutesOfManyNames(t *testing.T) {
	b := Book{}
	for i := range 200 {
		b, _ = b.AssignExports([]ExportWant{exportWant("bar", fmt.Sprintf("p%d", i))}, noon)
	}
	for _, e := range b.exports {
		if len(e.Ports) > maxExportPorts {
			t.Errorf("a Service renamed for ever must not grow an entry for ever: %d ports", len(e.Ports))
		}
	}
	if got := b.Route("shop", "bar", "p199", "TCP"); got != 1024+199 {
		t.Errorf("its retired route ids rest: the newest is %d", got)
	}
}

func TestLoad(t *testing.T) {
	rest := &metav1.Time{Time: noon}
	mirror := func(service, vip string, since *metav1.Time) v1alpha1.LedgerMirror {
		return v1alpha1.LedgerMirror{Link: "east", Namespace: "shop", Service: service, MirrorNamespace: "shop", MirrorName: service + "-east", VIPs: []string{vip}, RestingSince: since}
	}
	export := func(service string, route int64) v1alpha1.LedgerExport {
		return v1alpha1.LedgerExport{Namespace: "shop", Service: service, Ports: []v1alpha1.LedgerExportPort{{Protocol: "TCP", Route: route}}}
	}
	bad := func(change func(*v1alpha1.LedgerMirror)) v1alpha1.Ledger {
		m := mirror("bar", "240.0.0.2", nil)
		m.Ports = []v1alpha1.LedgerMirrorPort{{Name: "a", Protocol: "TCP", Port: 80}, {Name: "b", Protocol: "TCP", Port: 81, Index: 1}}
		change(&m)
		return v1alpha1.Ledger{Mirrors: []v1alpha1.LedgerMirror{m}}
	}
	cases := map[string]struct {
		why    string
		shards []v1alpha1.Ledger
		kept   []string
		reason string
	}{
		"one VIP, two mirrors": {
			why:    "two owners of a VIP would carry one's callers to the other: the first by source keeps it",
			shards: []v1alpha1.Ledger{{Mirrors: []v1alpha1.LedgerMirror{mirror("foo", "240.0.0.2", nil)}}, {Mirrors: []v1alpha1.LedgerMirror{mirror("bar", "240.0.0.2", nil)}}},
			kept:   []string{"east/bar"}, reason: Duplicate,
		},
		"one VIP, living and resting": {
			why:    "a write of several shards that stopped half-way: the living has it already",
			shards: []v1alpha1.Ledger{{Mirrors: []v1alpha1.LedgerMirror{mirror("bar", "240.0.0.2", rest), mirror("foo", "240.0.0.2", nil)}}},
			kept:   []string{"east/foo"}, reason: Duplicate,
		},
		"one source twice": {
			why:    "one mirror has one entry that lives",
			shards: []v1alpha1.Ledger{{Mirrors: []v1alpha1.LedgerMirror{mirror("bar", "240.0.0.3", nil), mirror("bar", "240.0.0.2", nil)}}},
			kept:   []string{"east/bar"}, reason: Duplicate,
		},
		"one route, two exports": {
			why:    "a label for one would open the other",
			shards: []v1alpha1.Ledger{{Exports: []v1alpha1.LedgerExport{export("foo", 1024), export("bar", 1024)}}},
			reason: Duplicate,
		},
		"a route of Causeway's own": {
			why:    "route 0 is the catalog",
			shards: []v1alpha1.Ledger{{Exports: []v1alpha1.LedgerExport{export("foo", 0)}}},
			reason: Damaged,
		},
		"no address":       {why: "it must parse", shards: []v1alpha1.Ledger{bad(func(m *v1alpha1.LedgerMirror) { m.VIPs[0] = "240.0.0" })}, reason: Damaged},
		"another spelling": {why: "one address written twice would pass for two", shards: []v1alpha1.Ledger{bad(func(m *v1alpha1.LedgerMirror) { m.VIPs[0] = "::ffff:240.0.0.2%eth0" })}, reason: Damaged},
		"index 32":         {why: "there is no such listener", shards: []v1alpha1.Ledger{bad(func(m *v1alpha1.LedgerMirror) { m.Ports[0].Index = 32 })}, reason: Damaged},
		"an index twice":   {why: "a listener means one port", shards: []v1alpha1.Ledger{bad(func(m *v1alpha1.LedgerMirror) { m.Ports[0].Index = 1 })}, reason: Damaged},
		"a port twice":     {why: "a port has one listener", shards: []v1alpha1.Ledger{bad(func(m *v1alpha1.LedgerMirror) { m.Ports[0].Name = "b" })}, reason: Damaged},
		"a negative route": {why: "it would wrap into another's", shards: []v1alpha1.Ledger{bad(func(m *v1alpha1.LedgerMirror) { m.Ports[0].Route = -1 })}, reason: Damaged},
		"nobody's":         {why: "an entry names its source", shards: []v1alpha1.Ledger{bad(func(m *v1alpha1.LedgerMirror) { m.Link = "" })}, reason: Damaged},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, problems := Load(c.shards)
			var kept []string
			for k := range vips(b) {
				kept = append(kept, k)
			}
			if d := cmp.Diff(c.kept, kept); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if len(problems) != 1 || problems[0].Reason != c.reason || !slices.Contains(Reasons, problems[0].Reason) {
				t.Errorf("%s: got problems %v, want one %s", c.why, problems, c.reason)
			}
		})
	}
}

func TestShardOf(t *testing.T) {
	for key, want := range map[string]int{"east/shop/bar": 7, "shop/bar": 3} {
		if got := shardOf(key); got != want {
			t.Errorf("the shard of a key never moves: %s is in %d, not %d (docs/design/0007-ledger.md)", key, got, want)
		}
	}
}

func TestChanged(t *testing.T) {
	b, _ := Book{}.AssignMirrors(east(mirrorWant("bar", "http")), wide, noon)
	first := Changed(nil, b.Shards("causeway-system"))
	if len(first) != 1 || first[0].ResourceVersion != "" {
		t.Fatalf("one entry is one shard to create: %v", first)
	}
	if first[0].Name != "ledger-07" {
		t.Errorf("the shard of a key never moves: east/shop/bar is in %s", first[0].Name)
	}
	stored := first[0].DeepCopy()
	stored.ResourceVersion = "7"
	if again := Changed([]v1alpha1.Ledger{*stored}, b.Shards("causeway-system")); len(again) != 0 {
		t.Errorf("nothing is written when nothing changed: %v", again)
	}
	b, _ = b.AssignMirrors(east(), wide, noon)
	if gone := Changed([]v1alpha1.Ledger{*stored}, b.Shards("causeway-system")); len(gone) != 1 || gone[0].ResourceVersion != "7" || gone[0].Mirrors[0].RestingSince == nil {
		t.Errorf("a change is an update of what is stored: %v", gone)
	}
	if emptied := Changed([]v1alpha1.Ledger{*stored}, Book{}.Shards("causeway-system")); len(emptied) != 1 || len(emptied[0].Mirrors) != 0 {
		t.Errorf("the last entry of a shard can go: %v", emptied)
	}
}

// TestBook lives through random weeks and checks what always holds.
func TestBook(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { liveThrough(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func liveThrough(t *testing.T, r *rand.Rand) {
	w := witness{vips: map[string]held{}, routes: map[int64]held{}, indexes: map[string]held{}}
	b, now := Book{}, noon
	for range 80 {
		now = now.Add(time.Duration(r.IntN(int(12 * time.Hour))))
		peers, exports := randomPeers(r), randomExports(r)
		next, _ := b.AssignMirrors(peers, small, now)
		next, _ = next.assignExports(exports, now, FirstRoute+9)
		w.check(t, next, now)

		for _, p := range peers {
			r.Shuffle(len(p.Mirrors), func(i, j int) { p.Mirrors[i], p.Mirrors[j] = p.Mirrors[j], p.Mirrors[i] })
		}
		slices.Reverse(peers)
		slices.Reverse(exports)
		other, _ := b.AssignMirrors(peers, small, now)
		other, _ = other.assignExports(exports, now, FirstRoute+9)
		if c := Changed(next.Shards(""), other.Shards("")); len(c) != 0 {
			t.Fatalf("another order of the same gives another Book: %v", c)
		}
		again, _ := next.AssignMirrors(peers, small, now)
		again, _ = again.assignExports(exports, now, FirstRoute+9)
		if c := Changed(next.Shards(""), again.Shards("")); len(c) != 0 {
			t.Fatalf("the same wants again change the Book: %v", c)
		}
		loaded, problems := Load(next.Shards(""))
		if c := Changed(next.Shards(""), loaded.Shards("")); len(c) != 0 || len(problems) > 0 {
			t.Fatalf("what is stored is not what is read: %v %v", problems, c)
		}
		b = loaded
	}
}

func randomPeers(r *rand.Rand) []Peer {
	var peers []Peer
	for _, link := range []string{"east", "north"} {
		if r.IntN(8) == 0 {
			continue // unlinked for a while
		}
		p := Peer{Link: link, TrustDomain: link, Complete: r.IntN(3) > 0}
		for i := range 6 {
			if r.IntN(2) == 0 {
				continue
			}
			w := MirrorWant{Namespace: "n", Service: fmt.Sprint("s", i), MirrorNamespace: "n", MirrorName: fmt.Sprint("s", i, "-", link)}
			if i == 0 {
				w.MirrorName = "clash"
			}
			for port := range 1 + r.IntN(4) {
				w.Ports = append(w.Ports, PortWant{Name: fmt.Sprint("p", r.IntN(12)*4+port), Protocol: "TCP", Port: uint16(1 + port), Route: 5000})
			}
			p.Mirrors = append(p.Mirrors, w)
		}
		peers = append(peers, p)
	}
	return peers
}

func randomExports(r *rand.Rand) []ExportWant {
	var out []ExportWant
	for i := range 4 {
		if r.IntN(2) == 0 {
			out = append(out, exportWant(fmt.Sprint("s", i), fmt.Sprint("p", r.IntN(2))))
		}
	}
	return out
}

// held is who had something, and when it was last seen with them, live.
type held struct {
	by string
	at time.Time
}

type witness struct {
	vips    map[string]held
	routes  map[int64]held
	indexes map[string]held // by source, VIP and index: the port, and by port: the index
}

func (w witness) check(t *testing.T, b Book, now time.Time) {
	t.Helper()
	all := map[string]bool{}
	names := map[string]bool{}
	for _, m := range b.mirrors {
		for _, vip := range m.VIPs {
			if all[vip] {
				t.Fatalf("VIP %s is in two entries", vip)
			}
			all[vip] = true
		}
		if m.RestingSince != nil {
			continue
		}
		name := m.MirrorNamespace + "/" + m.MirrorName
		if names[name] {
			t.Fatalf("two mirrors are called %s", name)
		}
		names[name] = true
		vip, k := m.VIPs[0], sourceOf(m).String()
		if was, ok := w.vips[vip]; ok && was.by != k && now.Sub(was.at) < Rest {
			t.Fatalf("VIP %s went from %s to %s after %v", vip, was.by, k, now.Sub(was.at))
		}
		w.vips[vip] = held{k, now}
		for _, p := range m.Ports {
			port, listener := k+" "+vip+" "+p.Name, fmt.Sprint(k, " ", vip, ":", p.Index)
			w.holds(t, port, listener, now)
			w.holds(t, listener, port, now)
		}
	}
	routes := map[int64]bool{}
	for _, e := range b.exports {
		for _, p := range e.Ports {
			if routes[p.Route] {
				t.Fatalf("route %d is in two entries", p.Route)
			}
			routes[p.Route] = true
			k := exportOf(e).String() + p.Name + p.Protocol
			if was, ok := w.routes[p.Route]; e.RestingSince == nil && ok && was.by != k && now.Sub(was.at) < Rest {
				t.Fatalf("route %d went from %s to %s after %v", p.Route, was.by, k, now.Sub(was.at))
			}
			if e.RestingSince == nil {
				w.routes[p.Route] = held{k, now}
			}
		}
	}
}

// holds checks that what belongs to whom belonged to nobody else for a day.
func (w witness) holds(t *testing.T, what, whom string, now time.Time) {
	t.Helper()
	if was, ok := w.indexes[what]; ok && was.by != whom && now.Sub(was.at) < Rest {
		t.Fatalf("%s went from %s to %s after %v", what, was.by, whom, now.Sub(was.at))
	}
	w.indexes[what] = held{whom, now}
}

func TestForget(t *testing.T) {
	b, now := Book{}, noon
	for i := range 3 {
		var wants []MirrorWant
		for j := range 800 {
			wants = append(wants, mirrorWant(fmt.Sprintf("s%d-%d", i, j)))
		}
		b, _ = b.AssignMirrors(east(wants...), wide, now)
		now = now.Add(2 * Rest)
	}
	b, _ = b.AssignMirrors(east(), wide, now)
	if got := len(b.mirrors); got < maxRested || got > maxRested+800 {
		t.Errorf("%d entries are kept: those that rest, and a bounded number that have rested", got)
	}
}

func BenchmarkAssignMirrors10k(b *testing.B) {
	var wants []MirrorWant
	for i := range 10000 {
		wants = append(wants, mirrorWant(fmt.Sprintf("s%d", i), "http", "grpc"))
	}
	book, _ := Book{}.AssignMirrors(east(wants...), wide, noon)
	for b.Loop() {
		book.AssignMirrors(east(wants...), wide, noon)
	}
}
