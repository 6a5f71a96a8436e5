package admit

import (
	"math/rand/v2"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// TestDecideRequest: rules with methods and paths admit single requests, and no opaque
// exchange.
func TestDecideRequest(t *testing.T) {
	west, north := Caller{Link: "west"}, Caller{Link: "north"}
	reads := RequestRule{Caller: west, Methods: []string{"GET", "HEAD"}, Paths: []Path{{Prefix: "/api"}, {Exact: "/health"}}}
	rules := func(r ...RequestRule) []Policy { return []Policy{{Name: "other"}, {Name: "front", Requests: r}} }
	cases := map[string]struct {
		why          string
		policies     []Policy
		method, path string
		want         Reason // of the request
		session      Reason // of a session of requests
		opaque       Reason // of an opaque exchange
	}{
		"no policy": {
			why: "the export rules admit every request", method: "GET", path: "/",
			want: Admitted, session: Admitted, opaque: Admitted,
		},
		"a caller without rules": {
			why: "every call of it is admitted", policies: []Policy{{Name: "front", Callers: []Caller{west}}}, method: "PUT", path: "/x",
			want: Admitted, session: Admitted, opaque: Admitted,
		},
		"method and path": {
			why: "both match", policies: rules(reads), method: "GET", path: "/api/v1",
			want: Admitted, session: Admitted, opaque: RequestsOnly,
		},
		"the other path": {
			why: "any path suffices", policies: rules(reads), method: "HEAD", path: "/health",
			want: Admitted, session: Admitted, opaque: RequestsOnly,
		},
		"another method": {
			why: "a method must match", policies: rules(reads), method: "POST", path: "/api/v1",
			want: RequestDenied, session: Admitted, opaque: RequestsOnly,
		},
		"a method in lower case": {
			why: "methods are case-sensitive", policies: rules(reads), method: "get", path: "/api",
			want: RequestDenied, session: Admitted, opaque: RequestsOnly,
		},
		"another path": {
			why: "a path must match", policies: rules(reads), method: "GET", path: "/apis",
			want: RequestDenied, session: Admitted, opaque: RequestsOnly,
		},
		"no normal form": {
			why: "an ambiguous path matches no path", policies: rules(reads), method: "GET",
			want: RequestDenied, session: Admitted, opaque: RequestsOnly,
		},
		"no normal form, methods alone": {
			why: "ambiguity matters only to rules with paths", policies: rules(RequestRule{Caller: west, Methods: []string{"GET"}}), method: "GET",
			want: Admitted, session: Admitted, opaque: RequestsOnly,
		},
		"a second rule": {
			why: "any rule suffices", policies: rules(reads, RequestRule{Caller: Caller{Namespace: "shop"}, Methods: []string{"POST"}}),
			method: "POST", path: "/orders",
			want: Admitted, session: Admitted, opaque: RequestsOnly,
		},
		"rules do not combine": {
			why:      "a method of one rule and a path of another are not a rule",
			policies: rules(RequestRule{Caller: west, Methods: []string{"GET"}, Paths: []Path{{Exact: "/a"}}}, RequestRule{Caller: west, Methods: []string{"POST"}, Paths: []Path{{Exact: "/b"}}}),
			method:   "GET", path: "/b",
			want: RequestDenied, session: Admitted, opaque: RequestsOnly,
		},
		"another caller's rule": {
			why: "it names nobody here", policies: rules(RequestRule{Caller: north, Methods: []string{"GET"}}), method: "GET", path: "/",
			want: PolicyDenies, session: PolicyDenies, opaque: PolicyDenies,
		},
		"a rule that names nobody": {
			why: "the zero Caller matches no workload", policies: rules(RequestRule{Methods: []string{"GET"}}), method: "GET", path: "/",
			want: PolicyDenies, session: PolicyDenies, opaque: PolicyDenies,
		},
		"a wider policy": {
			why:      "policies are a union",
			policies: append(rules(reads), Policy{Name: "wide", Callers: []Caller{west}}), method: "DELETE", path: "/api",
			want: Admitted, session: Admitted, opaque: Admitted,
		},
	}
	for title, c := range cases {
		t.Run(title, func(t *testing.T) {
			w := newFixture()
			w.exports[0].Policies = c.policies
			ask := Request{Caller: name(t, web), Namespace: "shop", Service: "bar", Port: 80, PodUID: "pod-1"}
			http := ask
			http.HTTP = true
			s := w.state()
			for what, d := range map[string]struct {
				got  Decision
				want Reason
			}{
				"request":            {DecideRequest(http, c.method, c.path, s), c.want},
				"request, unflagged": {DecideRequest(ask, c.method, c.path, s), c.want},
				"session":            {Decide(http, s), c.session},
				"open session":       {Keep(http, s), c.session},
				"opaque":             {Decide(ask, s), c.opaque},
				"open, opaque":       {Keep(ask, s), c.opaque},
			} {
				if d.got.Reason != d.want || d.got.Allowed != (d.want == Admitted) {
					t.Errorf("%s: %s: %v, want %v", c.why, what, d.got.Reason, d.want)
				}
				if denied := d.got.Code == tunnel.Code_DENIED; denied == d.got.Allowed || d.got.Allowed && d.got.Link.Name != "west" {
					t.Errorf("%s: %s: %+v", c.why, what, d.got)
				}
			}
		})
	}
}

func TestPathMatches(t *testing.T) {
	for _, c := range []struct {
		why  string
		path Path
		s    string
		want bool
	}{
		{"the zero value matches nothing", Path{}, "/", false},
		{"the whole path", Path{Exact: "/a"}, "/a", true},
		{"and no more", Path{Exact: "/a"}, "/a/", false},
		{"a path is case-sensitive", Path{Exact: "/a"}, "/A", false},
		{"the prefix itself", Path{Prefix: "/a"}, "/a", true},
		{"the next segment", Path{Prefix: "/a"}, "/a/b", true},
		{"a trailing slash is a segment", Path{Prefix: "/a"}, "/a/", true},
		{"whole segments only", Path{Prefix: "/a"}, "/ab", false},
		{"a slash at its end has no meaning", Path{Prefix: "/a/"}, "/a", true},
		{"nor below it", Path{Prefix: "/a/"}, "/a/b", true},
		{"everything", Path{Prefix: "/"}, "/a", true},
		{"the root", Path{Prefix: "/"}, "/", true},
		{"not a path", Path{Prefix: "/"}, "*", false},
		{"no normal form", Path{Prefix: "/"}, "", false},
	} {
		if got := c.path.Matches(c.s); got != c.want {
			t.Errorf("%s: %+v matches %q: %v, want %v", c.why, c.path, c.s, got, c.want)
		}
	}
}

// The three decisions agree: what an opaque exchange may do, every request may, and what
// one request may do, a session of requests may. An open one is kept.
func TestDecisionsAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	requests, refused := 0, 0
	for range 50_000 {
		w, r := randomFixture(rng)
		s := w.state()
		method, path := []string{"GET", "PUT"}[rng.IntN(2)], []string{"", "/a", "/b/c"}[rng.IntN(3)]
		r.HTTP = false
		opaque, request := Decide(r, s), DecideRequest(r, method, path, s)
		r.HTTP = true
		session := Decide(r, s)
		if opaque.Allowed && !request.Allowed || request.Allowed && !session.Allowed || session.Allowed && !Keep(r, s).Allowed {
			t.Fatalf("opaque %v, request %v, session %v, kept %v in %+v", opaque.Reason, request.Reason, session.Reason, Keep(r, s).Reason, w)
		}
		if request.Allowed && !opaque.Allowed {
			requests++
		}
		if request.Reason == RequestDenied {
			refused++
		}
	}
	if requests < 100 || refused < 100 {
		t.Errorf("%d requests were admitted by rules and %d refused: this proves nothing", requests, refused)
	}
}

func BenchmarkDecideRequest(b *testing.B) {
	w, r := newFixture(), Request{Caller: name(b, web), Namespace: "shop", Service: "bar", Port: 80, PodUID: "pod-1", HTTP: true}
	w.exports[0].Policies = []Policy{{Name: "front", Requests: []RequestRule{
		{Caller: Caller{Link: "west"}, Methods: []string{"GET"}, Paths: []Path{{Exact: "/a"}, {Prefix: "/b"}}},
	}}}
	s := w.state()
	b.ReportAllocs()
	for b.Loop() {
		DecideRequest(r, "GET", "/b/c", s)
	}
}
