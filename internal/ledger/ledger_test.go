package ledger

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

func TestBlockSize(t *testing.T) {
	cases := map[string]struct {
		why    string
		ranges string
		want   int
	}{
		"large":  {why: "a block is 256 addresses", ranges: "240.0.0.0/12", want: 256},
		"IPv6":   {why: "a large range has no larger blocks", ranges: "fd00::/64", want: 256},
		"medium": {why: "64 blocks leave room for 64 peers", ranges: "240.0.0.0/19", want: 128},
		"small": {
			why:    "smaller blocks would cost more objects than they save",
			ranges: "240.0.0.0/24",
			want:   16,
		},
		"two":       {why: "the smaller range decides", ranges: "fd00::/64 240.0.0.0/20", want: 64},
		"very tiny": {why: "one block must do", ranges: "240.0.0.0/29", want: 16},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var ranges []netip.Prefix
			for _, r := range strings.Fields(c.ranges) {
				ranges = append(ranges, netip.MustParsePrefix(r))
			}
			if got := newSpace(ranges).size; got != c.want {
				t.Errorf("%s: %d, want %d", c.why, got, c.want)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, r := range []string{"240.0.0.0/24", "fd00:cafe::/120", "10.1.2.192/26"} {
		s := newSpace([]netip.Prefix{netip.MustParsePrefix(r)})
		p := s.ranges[0]
		given := 0
		for n := range capacity(p) {
			a, ok := address(p, n)
			if !ok {
				continue
			}
			given++
			if got, ok := s.number(a); !ok || got != n || !p.Contains(a) {
				t.Errorf("%v is slot %d, %v, want %d", a, got, ok, n)
			}
			if a == p.Addr() || a == p.Addr().Next() || a.Is4() && !p.Contains(a.Next()) {
				t.Errorf("%v must not be given: it is the range's, the canary's or the broadcast address", a)
			}
		}
		want := capacity(p) - 2
		if p.Addr().Is4() {
			want--
		}
		if given != want {
			t.Errorf("%s gives %d addresses, want %d", r, given, want)
		}
	}
}

func TestFirstMirrors(t *testing.T) {
	w := newWorld(t, dual)
	w.link("east", Quotas{})
	w.link("west", Quotas{})
	w.want("east", mirrorWant("bar", "http"), mirrorWant("foo", "http"))
	other := mirrorWant("bar", "http")
	other.MirrorName = "bar-west"
	w.want("west", other)
	if w.Tick(w.now); len(w.Changes().Mirrors) > 0 {
		t.Error("nothing is reported before it is stored")
	}
	w.sync()
	want := map[string]string{
		"east shop/bar": "240.0.0.2",
		"east shop/foo": "240.0.0.3",
		"west shop/bar": "240.0.1.0",
	}
	if d := cmp.Diff(want, w.vips()); d != "" {
		t.Errorf("each peer has a block of its own (-want +got):\n%s", d)
	}
	got := w.mirrors["east shop/bar"]
	full := &Mirror{
		Source:          Source{Namespace: "shop", Service: "bar"},
		MirrorNamespace: "shop",
		MirrorName:      "bar-east",
		VIPs:            []netip.Addr{netip.MustParseAddr("240.0.0.2"), netip.MustParseAddr("fd00:cafe::2")},
		Ports:           []MirrorPort{{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}},
		Identities:      []string{"spiffe://east/ns/shop/sa/bar"},
		Since:           noon,
	}
	if d := cmp.Diff(full, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("what is stored is all of it (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"directory", "mirrors-0", "mirrors-1"}, w.objectNames()); d != "" {
		t.Errorf("objects (-want +got):\n%s", d)
	}
}

func TestTakeoverWritesNothing(t *testing.T) {
	w := newWorld(t, wide)
	for _, d := range []string{"east", "west"} {
		w.link(d, Quotas{})
		for i := range 300 {
			each := mirrorWant(fmt.Sprint("s", i), "http")
			each.MirrorName += d
			w.want(d, each)
		}
		w.SetApplied(d, "theirs", 7)
	}
	w.Export(exportWant("a", "http"), w.now)
	w.Unwant("west", Source{Namespace: "shop", Service: "s7"}, w.now)
	w.sync()

	next := newWorldOn(t, w.store, wide, w.now.Add(time.Hour))
	for _, d := range []string{"west", "east"} {
		next.link(d, Quotas{})
		for i := range 300 {
			each := mirrorWant(fmt.Sprint("s", 299-i), "http")
			each.MirrorName += d
			if d == "east" || each.Service != "s7" {
				next.want(d, each)
			}
		}
		next.Complete(d, next.now)
		if epoch, generation := next.Applied(d); epoch != "theirs" || generation != 7 {
			t.Errorf("what was applied last is stored: %s %d", epoch, generation)
		}
		next.SetApplied(d, "theirs", 7)
	}
	next.Export(exportWant("a", "http"), next.now)
	next.ExportsComplete(next.now)
	if n := next.sync(); n > 0 {
		t.Errorf("a takeover writes %d objects", n)
	}
	if d := cmp.Diff(w.vips(), next.vips()); d != "" {
		t.Errorf("addresses (-before +after):\n%s", d)
	}
	if epoch, generation := next.Version(); epoch != "epoch-1" ||
		generation != uint64(w.exports.committed) || generation == 0 {
		t.Errorf("version %s %d", epoch, generation)
	}
}

func TestFollower(t *testing.T) {
	w := newWorld(t, wide)
	f := newWorldOn(t, w.store, wide, w.now)
	follow := func() {
		w.sync()
		f.store.loadAll(f.Book)
		f.Tick(f.now)
		f.read()
	}
	w.link("east", Quotas{})
	f.link("east", Quotas{})
	w.want("east", mirrorWant("bar", "http"))
	f.want("east", mirrorWant("bar", "http"), mirrorWant("foo", "http"))
	follow()
	if d := cmp.Diff(map[string]string{"east shop/bar": "240.0.0.2"}, f.vips()); d != "" {
		t.Errorf("a follower reports what is stored and not what it wants (-want +got):\n%s", d)
	}
	w.unwant("east", mirrorWant("bar"))
	follow()
	if len(f.mirrors) != 0 {
		t.Errorf("a follower has what is stored: %v", f.vips())
	}
}

func TestReuse(t *testing.T) {
	bar, foo := mirrorWant("bar", "http"), mirrorWant("foo", "http")
	cases := map[string]struct {
		why   string
		wants []MirrorWant
		after time.Duration
		want  map[string]string
	}{
		"back within the day": {
			why:   "callers hold connections and caches: the same Service has the same address",
			wants: []MirrorWant{bar},
			after: ReuseDelay - 1,
			want:  map[string]string{"east shop/bar": "240.0.0.2"},
		},
		"back after the day": {
			why:   "no other source has received its address",
			wants: []MirrorWant{bar},
			after: 30 * ReuseDelay,
			want:  map[string]string{"east shop/bar": "240.0.0.2"},
		},
		"another meanwhile": {
			why:   "a connection meant for bar must never reach foo",
			wants: []MirrorWant{foo},
			after: ReuseDelay - 1,
			want:  map[string]string{"east shop/foo": "240.0.0.3"},
		},
		"both": {
			why:   "who returns finds its place although others came",
			wants: []MirrorWant{foo, bar},
			after: time.Hour,
			want:  map[string]string{"east shop/foo": "240.0.0.3", "east shop/bar": "240.0.0.2"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, wide)
			w.link("east", Quotas{})
			w.want("east", bar)
			w.sync()
			w.unwant("east", bar)
			w.sync()
			if len(w.mirrors) > 0 {
				t.Errorf("a released entry is no mirror: %v", w.vips())
			}
			w = newWorldOn(t, w.store, wide, w.now.Add(c.after)) // with another leader
			w.link("east", Quotas{})
			w.want("east", c.wants...)
			w.sync()
			if d := cmp.Diff(c.want, w.vips()); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
}

// tiny has the addresses .2 to .14 in one block.
var tiny = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/28")}

// fill wants 13 mirrors, which is all that tiny has, and releases s3, then s1, then s5.
func fill(t *testing.T) *world {
	w := newWorld(t, tiny)
	w.link("east", Quotas{})
	for i := range 13 {
		w.want("east", mirrorWant(fmt.Sprintf("s%02d", i)))
	}
	w.sync()
	if len(w.mirrors) != 13 || len(w.Problems("east")) > 0 {
		t.Fatalf("a /28 has 13 addresses to give: %v", w.Problems("east"))
	}
	for _, i := range []int{3, 1, 5} {
		w.unwant("east", mirrorWant(fmt.Sprintf("s%02d", i)))
		w.sync()
		w.after(time.Hour)
	}
	return w
}

func TestLongestReleasedFirst(t *testing.T) {
	w := fill(t)
	w.want("east", mirrorWant("new1"))
	w.sync()
	w.want("east", mirrorWant("new0"))
	w.now = noon.Add(ReuseDelay - time.Second)
	w.sync()
	if d := cmp.Diff([]string{VIPsExhausted}, reasons(w.Problems("east"))); d != "" {
		t.Errorf("a second before the first may be reused there is nothing to give:\n%s", d)
	}
	next := w.Tick(w.now)
	if want := noon.Add(ReuseDelay); next.Before(want) || next.After(want.Add(time.Minute)) {
		t.Errorf("the next Tick is due when an address may be reused: %v", next)
	}
	w.now = next
	w.sync()
	if got := w.vips(); got["east shop/new1"] != "240.0.0.5" || got["east shop/new0"] != "" {
		t.Errorf("the first who waited has what was released first: %v", got)
	}
	w.after(3 * time.Hour)
	w.sync()
	if got := w.vips(); got["east shop/new0"] != "240.0.0.3" || len(w.Problems("east")) > 0 {
		t.Errorf("the second has the next: %v, %v", got, w.Problems("east"))
	}
}

func TestListed(t *testing.T) {
	three, one := netip.MustParseAddr("240.0.0.5"), netip.MustParseAddr("240.0.0.3")
	cases := map[string]struct {
		why    string
		list   map[netip.Addr]ListedBy
		after  time.Duration
		want   string
		reason []string
	}{
		"ours": {
			why:   "a slice of a mirror still leads callers of the old name there",
			list:  map[netip.Addr]ListedBy{three: {Causeway: true}},
			after: 1000 * time.Hour,
			want:  "240.0.0.3",
		},
		"all": {
			why: "no address is better than another's address",
			list: map[netip.Addr]ListedBy{
				three:                            {Causeway: true},
				one:                              {Causeway: true},
				netip.MustParseAddr("240.0.0.7"): {Causeway: true},
			},
			after: 1000 * time.Hour, reason: []string{VIPsExhausted},
		},
		"foreign": {
			why:    "the owner of the foreign slice has a day to notice",
			list:   map[netip.Addr]ListedBy{three: {Other: "shop/mine"}},
			after:  ReuseDelay + 3*time.Hour,
			want:   "240.0.0.3",
			reason: []string{VIPListed},
		},
		"foreign for long": {
			why:   "a tenant's slice must not hold an address for ever",
			list:  map[netip.Addr]ListedBy{three: {Other: "shop/mine"}},
			after: 2*ReuseDelay + time.Second,
			want:  "240.0.0.5",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := fill(t)
			for a, by := range c.list {
				w.SetListed(a, by)
			}
			w.now = noon.Add(c.after)
			w.want("east", mirrorWant("new"))
			w.sync()
			if got := w.vips()["east shop/new"]; got != c.want {
				t.Errorf("%s: %s, want %s", c.why, got, c.want)
			}
			if d := cmp.Diff(c.reason, reasons(w.Problems("east"))); d != "" {
				t.Errorf("problems:\n%s", d)
			}
			for a := range c.list {
				w.SetListed(a, ListedBy{})
			}
			w.sync()
			if w.vips()["east shop/new"] == "" {
				t.Error("once nothing lists it any more, who waits has it")
			}
		})
	}
}

func TestListedAddressWithoutEntry(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.SetListed(netip.MustParseAddr("240.0.0.2"), ListedBy{Causeway: true})
	w.SetListed(netip.MustParseAddr("240.0.0.3"), ListedBy{Other: "shop/mine"})
	w.want("east", mirrorWant("bar"))
	w.sync()
	if got := w.vips()["east shop/bar"]; got != "240.0.0.4" {
		t.Errorf("a lost ledger must not give a listed address again: %s", got)
	}
}

func TestIncomplete(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar"), mirrorWant("foo"))
	w.sync()
	next := newWorldOn(t, w.store, wide, w.now)
	next.sync()
	if len(next.mirrors) != 2 {
		t.Errorf("a Link that was not read yet has lost nothing: %v", next.vips())
	}
	next.link("east", Quotas{})
	next.want("east", mirrorWant("bar"))
	next.sync()
	if len(next.mirrors) != 2 {
		t.Errorf("a peer that is silent has withdrawn nothing: %v", next.vips())
	}
	next.Complete("east", next.now)
	next.sync()
	if d := cmp.Diff(map[string]string{"east shop/bar": "240.0.0.2"}, next.vips()); d != "" {
		t.Errorf("a whole catalog withdraws what is not in it:\n%s", d)
	}
	if d := cmp.Diff([]string{"east"}, next.Peers()); d != "" {
		t.Errorf("peers:\n%s", d)
	}
	next.RemovePeer("east", next.now)
	next.sync()
	if len(next.mirrors) != 0 {
		t.Errorf("a deleted Link needs no catalog to end its mirrors: %v", next.vips())
	}
}

func TestBlocksReturn(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar"))
	w.sync()
	w.RemovePeer("east", w.now)
	w.sync()
	w.SetListed(netip.MustParseAddr("240.0.0.2"), ListedBy{Causeway: true})
	w.now = noon.Add(ReuseDelay)
	w.sync()
	if len(w.directory.committed) != 1 {
		t.Error("a listed address keeps its block")
	}
	w.SetListed(netip.MustParseAddr("240.0.0.2"), ListedBy{})
	next := w.Tick(w.now)
	if next.IsZero() || next.After(w.now.Add(2*time.Hour)) {
		t.Errorf("Tick returns %v, want a time within two hours", next)
	}
	w.now = next
	w.sync()
	if len(w.directory.committed) != 0 || len(w.Peers()) != 0 {
		t.Errorf("the block returns: %v, %v", w.directory.committed, w.Peers())
	}
	w.link("west", Quotas{})
	w.want("west", mirrorWant("foo"))
	w.sync()
	if d := cmp.Diff(map[string]string{"west shop/foo": "240.0.0.2"}, w.vips()); d != "" {
		t.Errorf("another peer has it (-want +got):\n%s", d)
	}
}

func TestPeerReturns(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar"))
	w.sync()
	w.RemovePeer("east", w.now)
	w.sync()
	w.after(time.Hour).SetPeer(Peer{TrustDomain: "east", Link: "again"})
	w.want("east", mirrorWant("new"), mirrorWant("bar"))
	w.sync()
	if d := cmp.Diff(map[string]string{
		"east shop/bar": "240.0.0.2",
		"east shop/new": "240.0.0.3",
	}, w.vips()); d != "" {
		t.Errorf("another Link of the peer finds the same entries (-want +got):\n%s", d)
	}
}

func TestLinkRenamed(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar", "http"))
	w.sync()
	before := w.mirrors["east shop/bar"]
	w.SetPeer(Peer{TrustDomain: "east", Link: "east2"})
	if n := w.sync(); n != 0 {
		t.Errorf("a Link that takes over and wants the same writes %d objects", n)
	}
	renamed := mirrorWant("bar", "http")
	renamed.MirrorName = "bar-east2"
	w.after(time.Hour).want("east", renamed)
	w.sync()
	after := w.mirrors["east shop/bar"]
	if after.VIPs[0] != before.VIPs[0] || after.MirrorName != "bar-east2" ||
		!after.Since.Equal(before.Since) {
		t.Errorf("another name is no other entry: %v, before %v", after, before)
	}
}

func TestRangeReturns(t *testing.T) {
	w := newWorld(t, dual)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("a"), mirrorWant("b"))
	w.sync()
	before := maps.Clone(w.mirrors)
	w.unwant("east", mirrorWant("a"))
	w.sync()
	four := newWorldOn(t, w.store, wide, w.now)
	four.link("east", Quotas{})
	four.want("east", mirrorWant("a"), mirrorWant("b"))
	four.sync()
	if d := cmp.Diff(map[string]string{
		"east shop/a": "240.0.0.2",
		"east shop/b": "240.0.0.3",
	}, four.vips()); d != "" {
		t.Errorf("without IPv6 (-want +got):\n%s", d)
	}
	again := newWorldOn(t, w.store, dual, w.now)
	again.sync()
	for k, m := range before {
		if got := again.mirrors[k]; got == nil || !slices.Equal(got.VIPs, m.VIPs) {
			t.Errorf("a range that returns gives %s other addresses: %v, before %v", k, got, m.VIPs)
		}
	}
}

func TestOneFamilyExhausted(t *testing.T) {
	ranges := []netip.Prefix{tiny[0], netip.MustParsePrefix("fd00::/64")}
	w := newWorld(t, ranges)
	w.link("east", Quotas{})
	for i := range 20 {
		w.want("east", mirrorWant(fmt.Sprintf("s%02d", i)))
	}
	w.sync()
	if len(w.mirrors) != 20 {
		t.Fatalf("IPv6 has room for all: %v", w.vips())
	}
	both := 0
	for _, m := range w.mirrors {
		both += len(m.VIPs) - 1
	}
	if d := cmp.Diff([]string{VIPsExhausted}, reasons(w.Problems("east"))); d != "" || both != 13 {
		t.Errorf("%d have both families, want 13; problems:\n%s", both, d)
	}
}

func TestNameTaken(t *testing.T) {
	w := newWorld(t, wide)
	w.link("b-c", Quotas{})
	w.link("c", Quotas{})
	late := MirrorWant{Namespace: "n", Service: "a", MirrorNamespace: "n", MirrorName: "a-b-c"}
	first := MirrorWant{Namespace: "n", Service: "a-b", MirrorNamespace: "n", MirrorName: "a-b-c"}
	w.want("c", first)
	w.sync()
	w.after(time.Hour).want("b-c", late)
	w.sync()
	if w.mirrors["c n/a-b"] == nil || w.mirrors["b-c n/a"] != nil {
		t.Errorf("the older entry keeps the name, though it sorts later: %v", w.vips())
	}
	p := w.Problems("b-c")
	if len(p) != 1 || p[0].Reason != NameTaken || p[0].Link != "b-c" || p[0].Service != "n/a-b-c" {
		t.Errorf("the other has a problem: %v", p)
	}
	w.unwant("c", first)
	w.sync()
	if w.mirrors["b-c n/a"] == nil || len(w.Problems("b-c")) > 0 {
		t.Errorf("once the name is free the other has it: %v, %v", w.vips(), w.Problems("b-c"))
	}
	w.after(time.Hour).want("c", first)
	w.sync()
	if got := reasons(w.Problems("c")); len(w.mirrors) != 1 || !slices.Equal(got, []string{NameTaken}) {
		t.Errorf("who returns is the younger one: %v, %v", w.vips(), got)
	}
	w.RemovePeer("b-c", w.now)
	w.sync()
	if w.mirrors["c n/a-b"] == nil {
		t.Errorf("a Link that goes frees its names: %v", w.vips())
	}
}

// TestNameMovesWithinOneWrite frees a name in one block and gives it to another one.
func TestNameMovesWithinOneWrite(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.link("west", Quotas{})
	w.want("east", mirrorWant("bar"))
	w.want("west", mirrorWant("other")) // has a block already
	w.sync()
	theirs := mirrorWant("theirs")
	theirs.MirrorName = "bar-east"
	w.after(time.Hour).unwant("east", mirrorWant("bar"))
	w.want("west", theirs)
	writes := w.Writes(w.now)
	slices.Reverse(writes) // west's block is stored first
	for _, each := range writes {
		o, err := w.store.write(each)
		w.Done(each, o, err, w.now)
		w.read()
		names := map[string]string{}
		for k, m := range w.mirrors {
			if names[m.MirrorName] != "" {
				t.Errorf("%s and %s have one name", k, names[m.MirrorName])
			}
			names[m.MirrorName] = k
		}
	}
	if w.mirrors["west shop/theirs"] == nil || w.mirrors["east shop/bar"] != nil {
		t.Errorf("the name has moved: %v", w.vips())
	}
}

func TestIndexes(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	index := func(name string) int {
		for _, p := range w.mirrors["east shop/bar"].Ports {
			if p.Name == name {
				return int(p.Index)
			}
		}
		return -1
	}
	offer := func(ports ...string) {
		w.after(time.Minute).want("east", mirrorWant("bar", ports...))
		w.sync()
	}
	offer("http", "grpc")
	if index("http") != 0 || index("grpc") != 1 {
		t.Fatalf("indexes begin at 0 in the order of port numbers: %v", w.mirrors)
	}
	offer("grpc", "admin")
	if index("grpc") != 1 || index("admin") != 2 {
		t.Errorf("an index stays with its name and is never given to another: %v", w.mirrors)
	}
	ports := w.mirrors["east shop/bar"].Ports
	if len(ports) != 3 || ports[0].Route != 0 || ports[1].Route != 2000 {
		t.Errorf("a port not offered is remembered without a route: %v", ports)
	}
	vip := w.vips()["east shop/bar"]
	for i := range 29 { // indexes 3 to 31
		offer(fmt.Sprintf("p%d", i))
	}
	if w.vips()["east shop/bar"] != vip || index("p28") != 31 {
		t.Fatalf("32 ports fit one address: %v", w.mirrors)
	}
	offer("last", "p28")
	if w.vips()["east shop/bar"] == vip || index("last") != 0 || index("p28") != 1 ||
		len(w.Problems("east")) > 0 {
		t.Errorf("a mirror out of indexes begins again at another address: %v, %v", w.mirrors,
			w.Problems("east"))
	}
	w.want("east", mirrorWant("foo"))
	w.sync()
	if w.vips()["east shop/foo"] == vip {
		t.Error("the old address is released like any other")
	}
}

func TestIndexesExhausted(t *testing.T) {
	w := newWorld(t, tiny)
	w.link("east", Quotas{})
	for i := range 12 {
		w.want("east", mirrorWant(fmt.Sprintf("s%02d", i)))
	}
	for i := range 33 {
		w.after(time.Minute).want("east", mirrorWant("t", fmt.Sprint("p", i), "http"))
		w.sync()
	}
	m := w.mirrors["east shop/t"]
	if m == nil || len(m.Ports) != Listeners || !slices.Equal(reasons(w.Problems("east")), []string{
		PortsExhausted,
	}) {
		t.Errorf("without another address the new port is left out: %v, %v", m, w.Problems("east"))
	}
	offered := 0
	for _, p := range m.Ports {
		if p.Route != 0 {
			offered++
		}
	}
	if offered != 1 {
		t.Errorf("%d ports are offered, want http alone", offered)
	}
}

func TestContentBudget(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.link("west", Quotas{})
	w.want("east", mirrorWant("bar", "http"))
	w.sync()
	writes, start := 0, w.store.writes
	flip := func() {
		each := mirrorWant("bar", "http")
		each.Ports[0].AppProtocol = fmt.Sprint("a", writes)
		w.want("east", each)
		writes += w.sync()
	}
	for range 1000 {
		flip()
	}
	if writes != 20 {
		t.Errorf("a burst is 20 writes: %d", writes)
	}
	if next, want := w.Tick(w.now), w.now.Add(30*time.Second); !next.Equal(want) {
		t.Errorf("the next is due at %v, want %v", next, want)
	}
	for range 3600 {
		w.after(time.Second)
		flip()
	}
	if writes != 20+120 || w.store.writes != start+140 {
		t.Errorf("then one in 30 s: %d", writes)
	}
	mirror := mirrorWant("foo", "http")
	mirror.MirrorName = "foo-west"
	w.want("west", mirror)
	w.want("east", mirrorWant("new", "http"))
	w.sync()
	if w.mirrors["west shop/foo"] == nil || w.mirrors["east shop/new"] == nil {
		t.Errorf("allocations and other peers do not wait: %v", w.vips())
	}
}

func TestAllocationBudget(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar", "http"))
	w.sync()
	writes := 0
	for range 1000 {
		w.after(100*time.Millisecond).unwant("east", mirrorWant("bar"))
		writes += w.sync()
		w.want("east", mirrorWant("bar", "http"))
		writes += w.sync()
	}
	if writes < 100 || writes > 400 {
		t.Errorf("a peer that exports and withdraws for 100 s makes us write %d times", writes)
	}
}

func TestContentIsBounded(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	rnd := rand.New(rand.NewPCG(1, 2))
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[rnd.IntN(36)]
		}
		return string(b)
	}
	for i := range 1000 {
		each := MirrorWant{
			Namespace:       word(63),
			Service:         fmt.Sprintf("s%03d", i) + word(59),
			MirrorNamespace: word(63),
			MirrorName:      word(63),
		}
		for range 16 {
			each.Identities = append(each.Identities, "spiffe://east/ns/"+each.Namespace+"/sa/"+word(253))
			each.Ports = append(each.Ports, PortWant{
				Name:        word(63),
				Protocol:    "TCP",
				Port:        65535,
				AppProtocol: word(317),
				Route:       1 << 31,
			})
		}
		w.want("east", each)
	}
	for range 20 {
		w.sync() // the store refuses objects of more than 256 KiB
		w.after(time.Minute)
	}
	if len(w.mirrors) != 1000 {
		t.Errorf("%d mirrors of 1000; problems %v", len(w.mirrors), w.Problems("east")[:1])
	}
	most := 0
	for _, n := range w.objectNames() {
		most = max(most, len(w.objects[n].Data))
	}
	if most < 128<<10 {
		t.Errorf("the largest object has %d bytes, so this test tests nothing", most)
	}
	if got := reasons(w.Problems("east")); !slices.Equal(got, []string{ContentTooLarge}) {
		t.Errorf("what is left out is reported: %v", got)
	}
	for k, m := range w.mirrors {
		if len(m.Ports) != 16 {
			t.Fatalf("%s has %d ports: no name of a port is left out", k, len(m.Ports))
		}
		if len(m.Identities) == 0 {
			t.Fatalf("%s has no identity", k)
		}
	}
	if problems := w.loadAll(newTestBook(wide)); len(problems) > 0 {
		t.Errorf("what was stored is readable: %v", problems)
	}
}

func TestNamesThatCannotBeStored(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	escape := mirrorWant("bar", "\x1b[2J")
	long := mirrorWant("foo")
	for i := range 32 {
		long.Ports = append(long.Ports, PortWant{
			Name:     fmt.Sprint(i) + strings.Repeat("p", 200),
			Protocol: "TCP",
			Port:     80,
			Route:    1,
		})
	}
	w.want("east", escape, long, mirrorWant("good", "http"))
	w.sync()
	if len(w.mirrors) != 1 || len(w.Problems("east")) != 2 {
		t.Errorf("what would not be read again is not stored: %v, %v", w.vips(), w.Problems("east"))
	}
	if problems := w.loadAll(newTestBook(wide)); len(problems) > 0 {
		t.Errorf("what is stored is readable: %v", problems)
	}
}

func TestGrowthIsRefused(t *testing.T) {
	w := newWorld(t, []netip.Prefix{netip.MustParsePrefix("240.0.0.0/18")})
	w.link("east", Quotas{VIPPercent: 1}) // one block of 256
	large := func(i, accounts int) MirrorWant {
		each := mirrorWant(fmt.Sprintf("s%03d", i), "http")
		each.Identities = nil
		for j := range accounts {
			each.Identities = append(each.Identities,
				fmt.Sprintf("spiffe://east/ns/shop/sa/%03d-%02d", i, j)+strings.Repeat("x", 240))
		}
		return each
	}
	for i := range 120 {
		w.want("east", large(i, 0))
	}
	w.sync()
	if len(w.mirrors) != 120 {
		t.Fatalf("%d mirrors", len(w.mirrors))
	}
	for i := range 120 {
		w.want("east", large(i, 14))
	}
	w.sync()
	if !slices.Equal(reasons(w.Problems("east")), []string{ContentTooLarge}) || len(w.mirrors) != 120 {
		t.Errorf("the entries that grow are refused, and stay: %d, %v", len(w.mirrors),
			reasons(w.Problems("east")))
	}
	renamed := large(119, 14)
	renamed.MirrorName = "another"
	w.want("east", renamed)
	w.sync()
	if got := w.mirrors["east shop/s119"].MirrorName; got != "another" {
		t.Errorf("an allocation of an entry that cannot grow is stored without the rest: %s", got)
	}
	w.unwant("east", large(0, 0))
	w.sync()
	if w.mirrors["east shop/s000"] != nil {
		t.Error("a release always fits")
	}
}

func TestFailingObjectStopsItsPeerOnly(t *testing.T) {
	w := newWorld(t, wide)
	for _, d := range []string{"east", "west"} {
		w.link(d, Quotas{})
		each := mirrorWant("bar", "http")
		each.MirrorName += d
		w.want(d, each)
	}
	w.sync()
	w.refuse = func(o *v1alpha1.Ledger) error {
		if o.Owner == "east" {
			return errors.New("etcdserver: request is too large")
		}
		return nil
	}
	for _, d := range []string{"east", "west"} {
		each := mirrorWant("foo", "http")
		each.MirrorName += d
		w.want(d, each)
	}
	w.Export(exportWant("a", "http"), w.now)
	attempts := w.sync()
	if w.mirrors["west shop/foo"] == nil || len(w.members) != 1 || w.mirrors["east shop/foo"] != nil {
		t.Errorf("one peer's object stops others: %v, %v", w.vips(), w.members)
	}
	if got := reasons(w.Problems("east")); !slices.Equal(got, []string{
		WriteFailed,
	}) || len(w.Problems("west")) > 0 {
		t.Errorf("that peer has the problem: %v, %v", got, w.Problems("west"))
	}
	for range 600 {
		attempts += w.after(time.Second).sync()
	}
	if attempts > 25 {
		t.Errorf("%d attempts in ten minutes", attempts)
	}
	w.refuse = nil
	w.after(time.Minute).sync()
	if w.mirrors["east shop/foo"] == nil || len(w.Problems("east")) > 0 {
		t.Errorf("after the failure: addresses %v, problems %v, want the address and no problem", w.vips(),
			w.Problems("east"))
	}
}

// TestFieldsArePruned stores without the data, as an API server whose kind is older does.
func TestFieldsArePruned(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.sync()
	w.want("east", mirrorWant("bar"))
	writes := 0
	for range 600 {
		for _, each := range w.after(time.Second).Writes(w.now) {
			writes++
			pruned := each
			pruned.Object = each.Object.DeepCopy()
			pruned.Object.Data = nil
			o, err := w.store.write(pruned)
			w.Done(each, o, err, w.now)
		}
	}
	w.read()
	if len(w.mirrors) != 0 || writes > 25 {
		t.Errorf("%d writes, and %v", writes, w.vips())
	}
	if len(w.Problems("east"))+len(w.ExportProblems("east")) == 0 {
		t.Error("there is no problem about the old kind")
	}
}

func TestDeletedAndEditedByHand(t *testing.T) {
	damage := map[string]func(w *world, name string){
		"deleted": func(w *world, name string) {
			delete(w.objects, name)
			w.Unload(name)
		},
		"emptied": func(w *world, name string) {
			o := w.objects[name].DeepCopy()
			o.Data, o.Entries = nil, 0
			w.put(o)
			w.Load(w.objects[name])
		},
		"garbage": func(w *world, name string) {
			o := w.objects[name].DeepCopy()
			o.Data, o.Generation = []byte("garbage"), o.Generation+1
			w.put(o)
			w.Load(w.objects[name])
		},
	}
	for how, do := range damage {
		for _, name := range []string{"directory", "mirrors-0", "exports-0"} {
			t.Run(how+" "+name, func(t *testing.T) {
				w := newWorld(t, wide)
				w.link("east", Quotas{})
				w.want("east", mirrorWant("bar", "http"), mirrorWant("gone", "http"))
				w.Export(exportWant("a", "http"), w.now)
				w.sync()
				w.unwant("east", mirrorWant("gone"))
				w.sync()
				follower := newWorldOn(t, w.store, wide, w.now)
				follower.read()
				vips, members := w.vips(), maps.Clone(w.members)
				do(w, name)
				if o := w.objects[name]; o != nil {
					follower.Load(o)
				} else {
					follower.Unload(name)
				}
				w.read()
				follower.read()
				if d := cmp.Diff(vips, w.vips()) + cmp.Diff(vips, follower.vips()) +
					cmp.Diff(members, w.members); d != "" {
					t.Errorf("it takes no effect (-want +got):\n%s", d)
				}
				if n := w.after(time.Minute).sync(); n != 1 {
					t.Errorf("it is written again once: %d", n)
				}
				fresh := newWorldOn(t, w.store, wide, w.now)
				fresh.read()
				if d := cmp.Diff(vips, fresh.vips()) + cmp.Diff(members, fresh.members); d != "" {
					t.Errorf("all is stored as before (-want +got):\n%s", d)
				}
				fresh.link("east", Quotas{})
				fresh.want("east", mirrorWant("other"))
				fresh.sync()
				if fresh.vips()["east shop/other"] == "240.0.0.3" {
					t.Error("released entries are stored again too")
				}
			})
		}
	}
}

func TestUnknownDamage(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar", "http"))
	w.Export(exportWant("a", "http"), w.now)
	w.sync()
	routes := w.members["shop/a"].Routes
	for _, name := range []string{"mirrors-0", "exports-0"} {
		w.objects[name].Data = []byte("garbage")
	}
	next := &world{
		TB:      t,
		store:   w.store,
		Book:    newTestBook(wide),
		now:     w.now.Add(time.Hour),
		mirrors: map[string]*Mirror{},
		members: map[string]*Member{},
	}
	if d := cmp.Diff([]string{Damaged}, reasons(w.store.loadAll(next.Book))); d != "" {
		t.Errorf("problems of Load:\n%s", d)
	}
	next.link("east", Quotas{})
	next.want("east", mirrorWant("foo", "http"))
	next.Export(exportWant("b", "http"), next.now)
	next.sync()
	if got := next.vips()["east shop/foo"]; got == "" || got == "240.0.0.2" {
		t.Errorf("address %s was reused within a day, although its source is not known", got)
	}
	if got := next.members["shop/b"]; got == nil || cmp.Equal(got.Routes, routes) {
		t.Errorf("nor is a route id: %v", got)
	}
}

func TestApplied(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.SetApplied("east", "theirs", 3)
	if n := w.sync(); n > 1 {
		t.Errorf("a peer without entries has no object to write it to: %d writes", n)
	}
	w.want("east", mirrorWant("bar"))
	w.sync()
	w.SetApplied("east", "theirs", 4)
	w.sync()
	next := newWorldOn(t, w.store, wide, w.now)
	if epoch, generation := next.Applied("east"); epoch != "theirs" || generation != 4 {
		t.Errorf("it is stored: %s %d", epoch, generation)
	}
}

func TestReasonsAreSorted(t *testing.T) {
	if !slices.IsSorted(Reasons) {
		t.Errorf("%v", Reasons)
	}
}
