package admit

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

func name(t testing.TB, s string) identity.Name {
	t.Helper()
	n, err := identity.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fixture is a State still open to edits.
type fixture struct {
	links   []Link
	exports []Export
	pods    []Pod
}

func (w fixture) state() *State { return NewState(w.links, w.exports, w.pods) }

// newFixture is a world in which web of west may call bar.
func newFixture() fixture {
	return fixture{
		links: []Link{{Name: "west", UID: "uid-west", TrustDomain: "west-1a2b3c4d"}, {Name: "north", UID: "uid-north", TrustDomain: "north-1a2b3c4d"}},
		exports: []Export{
			{Namespace: "shop", Service: "bar", Ports: []uint32{80, 443}, Links: []string{"west"},
				Backing: map[string]map[uint32]uint32{"pod-1": {80: 8080}}},
			{Namespace: "shop", Service: "hidden", Ports: []uint32{80}, Links: []string{"north"},
				Backing: map[string]map[uint32]uint32{"pod-1": {80: 8080}}},
			{Namespace: "thief", Service: "bar", Ports: []uint32{80}, Links: []string{"west"},
				Backing: map[string]map[uint32]uint32{"pod-1": {80: 8080}}},
		},
		pods: []Pod{
			{UID: "pod-1", Namespace: "shop", Name: "bar-1", IPs: []netip.Addr{netip.MustParseAddr("10.244.0.5")}, Live: true},
			{UID: "pod-2", Namespace: "shop", Name: "other", Live: true},
		},
	}
}

const web = "spiffe://west-1a2b3c4d/ns/shop/sa/web"

func TestDecide(t *testing.T) {
	ask := Request{Caller: name(t, web), Namespace: "shop", Service: "bar", Port: 80, PodUID: "pod-1"}
	callers := func(cs ...Caller) func(*fixture) {
		return func(w *fixture) { w.exports[0].Policies = []Policy{{Name: "other"}, {Name: "front", Callers: cs}} }
	}
	same := func(*fixture) {}
	isolate := func(w *fixture) { w.exports[0].Isolated = map[string][]uint32{"pod-1": {80}} }
	cases := map[string]struct {
		why    string
		world  func(*fixture)
		ask    func(*Request)
		reason Reason
		code   tunnel.Code
		policy string
	}{
		"ordinary": {"what the export rules admit", same, nil, Admitted, tunnel.Code_OK, ""},
		"nobody":   {"without an identity nothing is decided", same, func(r *Request) { r.Caller = identity.Name{} }, NoLink, tunnel.Code_NOT_EXPORTED, ""},
		"probe": {"it tests the path, and is no workload", same, func(r *Request) {
			r.Caller = probeOf(t, r.Caller.TrustDomain())
		}, CallerIsProbe, tunnel.Code_DENIED, ""},
		"unlinked domain": {"a former peer", func(w *fixture) { w.links = w.links[1:] }, nil, NoLink, tunnel.Code_NOT_EXPORTED, ""},
		"two Links, one domain": {"who could then say whose rules hold?", func(w *fixture) {
			w.links = append(w.links, Link{Name: "west-2", UID: "u", TrustDomain: "west-1a2b3c4d"})
		}, nil, AmbiguousLink, tunnel.Code_NOT_EXPORTED, ""},
		"not exported":           {"unexported means unreachable, whatever the label", func(w *fixture) { w.exports = w.exports[1:] }, nil, NoExport, tunnel.Code_NOT_EXPORTED, ""},
		"other name in frame":    {"right label, wrong frame", same, func(r *Request) { r.Service = "secret" }, NoExport, tunnel.Code_NOT_EXPORTED, ""},
		"hidden from this peer":  {"exported to north, backed by the same pod", same, func(r *Request) { r.Service = "hidden" }, LinkNotAdmitted, tunnel.Code_NOT_EXPORTED, ""},
		"no such port":           {"ports are exported one by one", same, func(r *Request) { r.Port = 8080 }, NoPort, tunnel.Code_NOT_EXPORTED, ""},
		"unknown pod":            {"a gateway that splices to the wrong node", same, func(r *Request) { r.PodUID = "pod-9" }, NoPod, tunnel.Code_NO_ENDPOINT, ""},
		"no pod":                 {"a header without a pod", same, func(r *Request) { r.PodUID = "" }, NoPod, tunnel.Code_NO_ENDPOINT, ""},
		"finished pod":           {"its address is another's by now", func(w *fixture) { w.pods[0].Live = false }, nil, PodDead, tunnel.Code_NO_ENDPOINT, ""},
		"foreign namespace":      {"a tenant's slice names a neighbor's pod", same, func(r *Request) { r.Namespace = "thief" }, PodForeign, tunnel.Code_NO_ENDPOINT, ""},
		"other pod":              {"a gateway that splices to the wrong pod", same, func(r *Request) { r.PodUID = "pod-2" }, PodNotBacking, tunnel.Code_NO_ENDPOINT, ""},
		"pod lacks the port":     {"a named port that this pod has not", same, func(r *Request) { r.Port = 443 }, PodNotBacking, tunnel.Code_NO_ENDPOINT, ""},
		"target 0":               {"no port to dial", func(w *fixture) { w.exports[0].Backing["pod-1"][80] = 0 }, nil, PodNotBacking, tunnel.Code_NO_ENDPOINT, ""},
		"terminating, new":       {"it takes no new connections", func(w *fixture) { w.pods[0].Terminating = true }, nil, PodTerminating, tunnel.Code_NO_ENDPOINT, ""},
		"policy without callers": {"an empty policy admits nobody", callers(), nil, PolicyDenies, tunnel.Code_DENIED, ""},
		"caller of nothing":      {"an empty caller matches nobody, rather than everybody", callers(Caller{}), nil, PolicyDenies, tunnel.Code_DENIED, ""},
		"by account":             {"one field", callers(Caller{ServiceAccount: "web"}), nil, Admitted, tunnel.Code_OK, "front"},
		"by link":                {"one field", callers(Caller{Link: "west"}), nil, Admitted, tunnel.Code_OK, "front"},
		"by SPIFFE ID":           {"one field", callers(Caller{SPIFFEID: web}), nil, Admitted, tunnel.Code_OK, "front"},
		"by all":                 {"all fields", callers(Caller{"west", "shop", "web", web}), nil, Admitted, tunnel.Code_OK, "front"},
		"all but the link":       {"every field must fit", callers(Caller{"north", "shop", "web", web}), nil, PolicyDenies, tunnel.Code_DENIED, ""},
		"all but the namespace":  {"every field must fit", callers(Caller{"west", "other", "web", web}), nil, PolicyDenies, tunnel.Code_DENIED, ""},
		"all but the account":    {"every field must fit", callers(Caller{"west", "shop", "api", web}), nil, PolicyDenies, tunnel.Code_DENIED, ""},
		"all but the ID":         {"every field must fit", callers(Caller{"west", "shop", "web", web + "x"}), nil, PolicyDenies, tunnel.Code_DENIED, ""},
		"second caller":          {"any caller of any policy will do", callers(Caller{Link: "north"}, Caller{Namespace: "shop"}), nil, Admitted, tunnel.Code_OK, "front"},
		"isolated":               {"Causeway must not open a port that a NetworkPolicy closes", isolate, nil, PodIsolated, tunnel.Code_DENIED, ""},
		"isolated, other port":   {"isolation is per port", func(w *fixture) { w.exports[0].Isolated = map[string][]uint32{"pod-1": {443}} }, nil, Admitted, tunnel.Code_OK, ""},
		"isolated and named":     {"an explicit ExportPolicy opens it", func(w *fixture) { isolate(w); callers(Caller{Link: "west"})(w) }, nil, Admitted, tunnel.Code_OK, "front"},
		"isolated, not named":    {"a policy for others does not", func(w *fixture) { isolate(w); callers(Caller{Link: "north"})(w) }, nil, PolicyDenies, tunnel.Code_DENIED, ""},
		"default deny":           {"deleting the last policy must not open a Service", func(w *fixture) { w.links[0].DefaultDeny = true }, nil, DefaultDenies, tunnel.Code_DENIED, ""},
		"default deny, named":    {"a policy names the caller", func(w *fixture) { w.links[0].DefaultDeny = true; callers(Caller{Link: "west"})(w) }, nil, Admitted, tunnel.Code_OK, "front"},
		"suspended, new":         {"no new connections", func(w *fixture) { w.links[0].Suspended = true }, nil, LinkSuspended, tunnel.Code_DENIED, ""},
		"terminating, serving": {"the last pod of a Recreate rollout still serves", func(w *fixture) {
			w.pods[0].Terminating = true
			w.exports[0].Accepts = map[string]bool{"pod-1": true}
		}, nil, Admitted, tunnel.Code_OK, ""},
	}
	for title, c := range cases {
		t.Run(title, func(t *testing.T) {
			w, r := newFixture(), ask
			c.world(&w)
			if c.ask != nil {
				c.ask(&r)
			}
			want := Decision{Allowed: c.reason == Admitted, Reason: c.reason, Code: c.code, Policy: c.policy}
			if c.reason > AmbiguousLink && c.reason != CallerIsProbe {
				want.Link = w.links[0]
			}
			if want.Allowed {
				want.Pod, want.Target = w.pods[0], 8080
			}
			if d := cmp.Diff(want, Decide(r, w.state()), cmpopts.EquateComparable(netip.Addr{})); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
}

// TestKeep: an open connection ends for what its owners decide about who may call, for
// the end of its pod, and for nothing else.
func TestKeep(t *testing.T) {
	ask := Request{Caller: name(t, web), Namespace: "shop", Service: "bar", Port: 80, PodUID: "pod-1"}
	cases := map[string]struct {
		why    string
		world  func(*fixture)
		reason Reason
	}{
		"ordinary":       {"nothing has changed", func(*fixture) {}, Admitted},
		"unlinked":       {"its Link is gone", func(w *fixture) { w.links = nil }, NoLink},
		"suspended":      {"suspension stops new connections alone", func(w *fixture) { w.links[0].Suspended = true }, Admitted},
		"two Links":      {"who could then say whose rules hold?", func(w *fixture) { w.links = append(w.links, w.links[0]) }, AmbiguousLink},
		"unexported":     {"its Service is", func(w *fixture) { w.exports = w.exports[1:] }, NoExport},
		"hidden":         {"from this peer", func(w *fixture) { w.exports[0].Links = []string{"north"} }, LinkNotAdmitted},
		"another port":   {"the Service was given other ports", func(w *fixture) { w.exports[0].Ports = []uint32{8080} }, Admitted},
		"selector moved": {"blue serves what it has, and green what comes", func(w *fixture) { w.exports[0].Backing = nil }, Admitted},
		"terminating":    {"it finishes what it has", func(w *fixture) { w.pods[0].Terminating = true }, Admitted},
		"pod ended":      {"its address is another's by now", func(w *fixture) { w.pods[0].Live = false }, PodDead},
		"pod gone":       {"its address is another's by now", func(w *fixture) { w.pods = nil }, NoPod},
		"policy for others": {"a new policy is for open connections as well", func(w *fixture) {
			w.exports[0].Policies = []Policy{{Name: "front", Callers: []Caller{{Link: "north"}}}}
		}, PolicyDenies},
		"policy for it": {"it names the caller", func(w *fixture) {
			w.exports[0].Policies = []Policy{{Name: "front", Callers: []Caller{{Link: "west"}}}}
		}, Admitted},
		"isolated": {"a NetworkPolicy closes its port", func(w *fixture) {
			w.exports[0].Isolated = map[string][]uint32{"pod-1": {80}}
		}, PodIsolated},
		"default deny": {"the Link denies by default", func(w *fixture) { w.links[0].DefaultDeny = true }, DefaultDenies},
	}
	for title, c := range cases {
		t.Run(title, func(t *testing.T) {
			w := newFixture()
			c.world(&w)
			got := Keep(ask, w.state())
			if got.Reason != c.reason || got.Allowed != (c.reason == Admitted) || got.Code != reasons[c.reason].code || got.Target != 0 {
				t.Errorf("%s: %+v, want %v", c.why, got, c.reason)
			}
		})
	}
}

// TestKeepIsolated: the isolation of a pod counts while the pod backs the Service, and as
// it was at last after that. An ExportPolicy that names the caller opens it in each case.
func TestKeepIsolated(t *testing.T) {
	const named, unnamed = true, false
	isolated := map[string][]uint32{"pod-1": {80}}
	moved := func(w *fixture) { w.exports[0].Backing, w.exports[0].Isolated = nil, nil }
	cases := map[string]struct {
		why    string
		world  func(*fixture)
		was    bool
		policy bool
		reason Reason
	}{
		"open":                     {"no NetworkPolicy isolates it", func(*fixture) {}, false, unnamed, Admitted},
		"isolated now":             {"a NetworkPolicy closes its port", func(w *fixture) { w.exports[0].Isolated = isolated }, false, unnamed, PodIsolated},
		"isolated now, named":      {"an ExportPolicy opens it", func(w *fixture) { w.exports[0].Isolated = isolated }, false, named, Admitted},
		"no longer isolated":       {"what holds now counts, as the pod backs the Service", func(*fixture) {}, true, unnamed, Admitted},
		"moved, open":              {"nothing closed its port", moved, false, unnamed, Admitted},
		"moved, isolated, named":   {"the policy that admitted it is there", moved, true, named, Admitted},
		"moved, isolated, unnamed": {"the policy that admitted it is gone", moved, true, unnamed, PodIsolated},
		"port remapped": {"the Service has other ports, and the pod backs those", func(w *fixture) {
			w.exports[0].Backing = map[string]map[uint32]uint32{"pod-1": {8080: 8080}}
		}, true, unnamed, PodIsolated},
	}
	for title, c := range cases {
		t.Run(title, func(t *testing.T) {
			w := newFixture()
			c.world(&w)
			if c.policy == named {
				w.exports[0].Policies = []Policy{{Name: "front", Callers: []Caller{{Link: "west"}}}}
			}
			ask := Request{Caller: name(t, web), Namespace: "shop", Service: "bar", Port: 80, PodUID: "pod-1", WasIsolated: c.was}
			if got := Keep(ask, w.state()); got.Reason != c.reason {
				t.Errorf("%s: %v, want %v", c.why, got.Reason, c.reason)
			}
		})
	}
}

// Whatever is admitted is kept: nothing ends in the moment in which it begins.
func TestAdmittedRequestIsKept(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	admitted := 0
	for range 20_000 {
		w, r := randomFixture(rng)
		if s := w.state(); Decide(r, s).Allowed {
			admitted++
			if kept := Keep(r, s); !kept.Allowed {
				t.Fatalf("admitted and then not kept: %v in %+v", kept.Reason, w)
			}
		}
	}
	if admitted < 100 {
		t.Errorf("%d requests were admitted: this proves nothing", admitted)
	}
}

func TestNoState(t *testing.T) {
	ask := Request{Caller: name(t, web), Namespace: "shop", Service: "bar", Port: 80, PodUID: "pod-1"}
	for title, s := range map[string]*State{"nil": nil, "zero": {}} {
		for _, d := range []Decision{Decide(ask, s), Keep(ask, s)} {
			if d.Allowed || d.Reason != NoState || d.Code != tunnel.Code_NOT_READY {
				t.Errorf("%s state: %+v, want a refusal", title, d)
			}
		}
	}
	if d := Decide(ask, NewState(nil, nil, nil)); d.Allowed || d.Reason != NoLink {
		t.Errorf("empty state: %+v, want %v", d, NoLink)
	}
	if (Decision{}).Allowed || (Decision{}).Code == tunnel.Code_OK {
		t.Error("the zero Decision admits")
	}
}

func TestReasonsAreClosedAndDistinct(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Reasons() {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d is named %q, as another is or not at all", r, r)
		}
		seen[r.String()] = true
		if ok := reasons[r].code == tunnel.Code_OK; ok != (r == Admitted) {
			t.Errorf("%v has code %v", r, reasons[r].code)
		}
	}
}

// randomFixture makes worlds small enough that callers, links, services and pods often
// meet.
func randomFixture(rng *rand.Rand) (fixture, Request) {
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	some := func(s ...string) []string {
		return slices.DeleteFunc(s, func(string) bool { return rng.IntN(4) == 0 })
	}
	var w fixture
	for _, l := range some("west", "north") {
		w.links = append(w.links, Link{Name: l, UID: "uid-" + l, TrustDomain: l + "-1a2b3c4d", Suspended: rng.IntN(6) == 0, DefaultDeny: rng.IntN(6) == 0})
	}
	for _, uid := range some("pod-1", "pod-2") {
		w.pods = append(w.pods, Pod{UID: uid, Namespace: pick("shop", "shop", "other"), Live: rng.IntN(8) > 0,
			Terminating: rng.IntN(4) == 0})
	}
	for _, s := range some("bar", "baz") {
		e := Export{Namespace: pick("shop", "shop", "other"), Service: s, Ports: []uint32{80, 443}[:1+rng.IntN(2)], Links: some("west", "north"),
			Backing: map[string]map[uint32]uint32{}, Accepts: map[string]bool{}, Isolated: map[string][]uint32{}}
		for _, uid := range some("pod-1", "pod-2") {
			e.Backing[uid] = map[uint32]uint32{80: 8080}
			e.Accepts[uid] = rng.IntN(2) == 0
			if rng.IntN(4) == 0 {
				e.Isolated[uid] = []uint32{80}
			}
		}
		for p := range rng.IntN(3) {
			policy := Policy{Name: fmt.Sprint("p", p)}
			for range rng.IntN(3) {
				caller := Caller{Link: pick("", "west", "north"), Namespace: pick("", "shop"), ServiceAccount: pick("", "web", "api")}
				if rng.IntN(2) == 0 {
					policy.Callers = append(policy.Callers, caller)
					continue
				}
				policy.Requests = append(policy.Requests, RequestRule{
					Caller: caller, Methods: some("GET", "PUT"), Paths: []Path{{Exact: "/a"}, {Prefix: "/b"}}[:rng.IntN(3)],
				})
			}
			e.Policies = append(e.Policies, policy)
		}
		w.exports = append(w.exports, e)
	}
	n, err := identity.NewName(pick("west", "north")+"-1a2b3c4d", "shop", pick("web", "api"))
	if err != nil {
		panic(err)
	}
	return w, Request{Caller: n, Namespace: "shop", Service: pick("bar", "baz"), Port: 80, PodUID: pick("pod-1", "pod-2"), HTTP: rng.IntN(2) == 0,
		WasIsolated: rng.IntN(2) == 0}
}

// removals are edits by which an operator or a controller takes something away. None
// may admit a caller. Removing a whole policy is not among them: by design it opens a
// service to all.
var removals = map[string]func(*rand.Rand, *fixture){
	"a link":           func(r *rand.Rand, w *fixture) { w.links = without(r, w.links) },
	"an export":        func(r *rand.Rand, w *fixture) { w.exports = without(r, w.exports) },
	"a pod":            func(r *rand.Rand, w *fixture) { w.pods = without(r, w.pods) },
	"an admitted link": inExport(func(r *rand.Rand, e *Export) { e.Links = without(r, e.Links) }),
	"a port":           inExport(func(r *rand.Rand, e *Export) { e.Ports = without(r, e.Ports) }),
	"a backing pod":    inExport(func(r *rand.Rand, e *Export) { delete(e.Backing, []string{"pod-1", "pod-2"}[r.IntN(2)]) }),
	"a policy's caller": inExport(func(r *rand.Rand, e *Export) {
		for i := range e.Policies {
			e.Policies[i].Callers = without(r, e.Policies[i].Callers)
			e.Policies[i].Requests = without(r, e.Policies[i].Requests)
		}
	}),
	"a pod's life": func(_ *rand.Rand, w *fixture) {
		for i := range w.pods {
			w.pods[i].Live = false
		}
	},
	"a pod's openness": inExport(func(_ *rand.Rand, e *Export) {
		for _, uid := range []string{"pod-1", "pod-2"} {
			e.Isolated[uid] = []uint32{80}
		}
	}),
	"a pod's readiness": inExport(func(_ *rand.Rand, e *Export) { clear(e.Accepts) }),
	"a link's service": func(_ *rand.Rand, w *fixture) {
		for i := range w.links {
			w.links[i].Suspended = true
		}
	},
	"a link's default": func(_ *rand.Rand, w *fixture) {
		for i := range w.links {
			w.links[i].DefaultDeny = true
		}
	},
}

func without[T any](r *rand.Rand, s []T) []T {
	if len(s) == 0 {
		return s
	}
	i := r.IntN(len(s))
	return slices.Delete(slices.Clone(s), i, i+1)
}

func inExport(edit func(*rand.Rand, *Export)) func(*rand.Rand, *fixture) {
	return func(r *rand.Rand, w *fixture) {
		if len(w.exports) > 0 {
			edit(r, &w.exports[r.IntN(len(w.exports))])
		}
	}
}

func TestRemovalsNeverAdmit(t *testing.T) {
	admitted, ended := 0, map[string]int{}
	for seed := range uint64(20_000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w, r := randomFixture(rng)
		before, kept := Decide(r, w.state()), Keep(r, w.state())
		if before.Allowed {
			admitted++
		}
		for _, what := range slices.Sorted(maps.Keys(removals)) {
			w, r := randomFixture(rand.New(rand.NewPCG(seed, 1)))
			removals[what](rng, &w)
			after := Decide(r, w.state())
			if after.Allowed && !before.Allowed {
				t.Fatalf("seed %d: without %s a refusal (%v) became an admission", seed, what, before.Reason)
			}
			if before.Allowed && !after.Allowed {
				ended[what]++
			}
			if Keep(r, w.state()).Allowed && !kept.Allowed {
				t.Fatalf("seed %d: without %s a refusal (%v) is kept", seed, what, kept.Reason)
			}
		}
	}
	for what := range removals {
		if ended[what] == 0 {
			t.Errorf("removing %s never ended a lease in %d admitted cases: the test proves nothing", what, admitted)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	w, r := newFixture(), Request{Caller: name(b, web), Namespace: "shop", Service: "bar", Port: 80, PodUID: "pod-1"}
	s := w.state()
	b.ReportAllocs()
	for b.Loop() {
		Decide(r, s)
	}
}

func probeOf(t *testing.T, trustDomain string) identity.Name {
	t.Helper()
	name, err := identity.ProbeName(trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	return name
}
