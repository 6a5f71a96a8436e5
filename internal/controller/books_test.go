package controller

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

var small = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/24")}

func newBooks(a *api) *books {
	return &books{client: a, namespace: system, ranges: small, log: quietly}
}

func wantMirrors(names ...string) []ledger.Peer {
	p := ledger.Peer{Link: "east", TrustDomain: "east-27a432a2", Complete: true}
	for _, n := range names {
		p.Mirrors = append(p.Mirrors, ledger.MirrorWant{
			Namespace: "shop", Service: n, MirrorNamespace: "shop", MirrorName: n + "-east",
			Ports: []ledger.PortWant{{Name: "http", Protocol: "TCP", Port: 80, Route: 1024}},
		})
	}
	return []ledger.Peer{p}
}

func wantExports(names ...string) []catalog.Export {
	var out []catalog.Export
	for _, n := range names {
		out = append(out, catalog.Export{Namespace: "shop", Name: n, Ports: []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80}}})
	}
	return out
}

func (a *api) ledgers(t testing.TB) []v1alpha1.Ledger {
	t.Helper()
	var list v1alpha1.LedgerList
	if err := a.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func vipOf(book ledger.Book, name string) string {
	for _, m := range book.Link("east") {
		if m.Service == name {
			return strings.Join(m.VIPs, ",")
		}
	}
	return ""
}

func assigned(t testing.TB, b *books, cached []v1alpha1.Ledger, names ...string) ledger.Book {
	t.Helper()
	book, problems, err := b.assign(t.Context(), cached, wantExports(names...), wantMirrors(names...), time.Now())
	if err != nil || len(problems) > 0 {
		t.Fatalf("assign: %v, %v", problems, err)
	}
	return book
}

func TestBooksWriteOnlyChanges(t *testing.T) {
	a := newAPI(t)
	b := newBooks(a)
	assigned(t, b, nil, "bar", "foo")
	if len(a.wrote()) == 0 {
		t.Fatal("nothing was stored")
	}
	for name, cached := range map[string][]v1alpha1.Ledger{"cache that lags": nil, "cache that is fresh": a.ledgers(t)} {
		assigned(t, b, cached, "bar", "foo")
		if w := a.wrote(); len(w) > 0 {
			t.Errorf("%s: the same wants were written again: %v", name, w)
		}
	}
	assigned(t, newBooks(a), a.ledgers(t), "bar", "foo")
	if w := a.wrote(); len(w) > 0 {
		t.Errorf("a new leader wrote needlessly: %v", w)
	}
}

func TestBooksMendWhatHandsDo(t *testing.T) {
	for name, c := range map[string]struct {
		why string
		do  func(t *testing.T, a *api, shard *v1alpha1.Ledger)
	}{
		"shard deleted": {
			why: "callers hold on to the VIP: it must come back to whom it belonged",
			do: func(t *testing.T, a *api, shard *v1alpha1.Ledger) {
				if err := a.Delete(t.Context(), shard); err != nil {
					t.Fatal(err)
				}
			},
		},
		"entries removed": {
			why: "a VIP that was given and is forgotten would be given to another without its rest",
			do: func(t *testing.T, a *api, shard *v1alpha1.Ledger) {
				shard.Mirrors, shard.Exports = nil, nil
				if err := a.Update(t.Context(), shard); err != nil {
					t.Fatal(err)
				}
			},
		},
		"entries spoilt": {
			why: "what cannot be is dropped, and what is known stands",
			do: func(t *testing.T, a *api, shard *v1alpha1.Ledger) {
				for i := range shard.Mirrors {
					shard.Mirrors[i].VIPs = []string{"300.1.1.1"}
				}
				if err := a.Update(t.Context(), shard); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			b := newBooks(a)
			before := assigned(t, b, nil, "bar", "foo", "qux")
			assigned(t, b, a.ledgers(t), "bar", "foo", "qux") // the cache has shown all
			for _, shard := range a.ledgers(t) {
				c.do(t, a, &shard)
			}
			a.wrote()
			after := assigned(t, b, a.ledgers(t), "aaa", "bar", "foo", "qux")
			for _, n := range []string{"bar", "foo", "qux"} {
				if vipOf(before, n) != vipOf(after, n) || before.Route("shop", n, "http", "TCP") != after.Route("shop", n, "http", "TCP") {
					t.Errorf("%s: %s had %s and has %s", c.why, n, vipOf(before, n), vipOf(after, n))
				}
			}
			stored, problems := ledger.Load(a.ledgers(t))
			if diff := cmp.Diff(after.Live(), stored.Live()); diff != "" || len(problems) > 0 {
				t.Errorf("%s: the book is not what is stored: %v %s", c.why, problems, diff)
			}
			a.wrote()
			assigned(t, b, a.ledgers(t), "aaa", "bar", "foo", "qux")
			if w := a.wrote(); len(w) > 0 {
				t.Errorf("once mended nothing is written: %v", w)
			}
		})
	}
}

func TestBooksGoOnWithTheLastWholeBook(t *testing.T) {
	a := newAPI(t)
	b := newBooks(a)
	before := assigned(t, b, nil, "bar")
	a.refusing(func(verb string, _ client.Object) error {
		if verb == "create" || verb == "update" {
			return errors.New("etcd is full")
		}
		return nil
	})
	book, _, err := b.assign(t.Context(), nil, wantExports("bar", "foo"), wantMirrors("bar", "foo"), time.Now())
	if err == nil || vipOf(book, "bar") != vipOf(before, "bar") || vipOf(book, "foo") != "" {
		t.Errorf("what is not stored must not be told, what is stays: %v, bar %q, foo %q", err, vipOf(book, "bar"), vipOf(book, "foo"))
	}
}

func TestBooksSurviveALostAnswer(t *testing.T) {
	a := newAPI(t)
	b := newBooks(a)
	a.lose = func() bool { return true }
	if _, _, err := b.assign(t.Context(), nil, nil, wantMirrors("bar"), time.Now()); err == nil {
		t.Fatal("the answer was not lost")
	}
	a.lose = nil
	assigned(t, b, nil, "bar") // what was stored meanwhile is read, or each write would conflict for good
}

func TestBooksForgetVersions(t *testing.T) {
	a := newAPI(t)
	b := newBooks(a)
	for i := range 200 {
		assigned(t, b, a.ledgers(t), fmt.Sprint("s", i%2))
	}
	for name, versions := range b.known {
		if len(versions) > 2 {
			t.Errorf("%d versions of %s are remembered, though the cache keeps up", len(versions), name)
		}
	}
}

// Whatever becomes of writes and caches, and however often the leader changes: no
// VIP and no route id has two owners within a day.
func TestBooksGiveNothingTwice(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { chaos(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func chaos(t *testing.T, r *rand.Rand) {
	a := newAPI(t)
	a.refusing(func(verb string, o client.Object) error {
		if verb != "get" && r.IntN(6) == 0 {
			return errors.New("the connection was lost")
		}
		return nil
	})
	a.lose = func() bool { return r.IntN(6) == 0 }
	b, now := newBooks(a), time.Unix(1_800_000_000, 0)
	history := [][]v1alpha1.Ledger{nil} // what a cache may show, oldest first
	shown := 0
	owners := make(map[string]string)
	last := make(map[string]time.Time)
	for range 40 {
		now = now.Add(time.Duration(r.IntN(120)) * time.Minute)
		if r.IntN(15) == 0 {
			b, shown = newBooks(a), max(shown-r.IntN(3), 0) // another leader, whose cache may be further behind
		}
		shown = min(shown+r.IntN(4), len(history)-1)
		names := []string{}
		for i := range 12 {
			if r.IntN(3) > 0 {
				names = append(names, fmt.Sprint("s", i))
			}
		}
		book, _, err := b.assign(t.Context(), history[shown], wantExports(names...), wantMirrors(names...), now)
		history = append(history, a.ledgers(t))
		if err != nil {
			continue
		}
		given := make(map[string]string)
		for _, m := range book.Live() {
			given[m.VIPs[0]] = m.Service
		}
		for _, n := range names {
			given[fmt.Sprint("route ", book.Route("shop", n, "http", "TCP"))] = n
		}
		for what, owner := range given {
			if was := owners[what]; was != "" && was != owner && now.Sub(last[what]) < ledger.Rest {
				t.Fatalf("%s is %s's %v after it was %s's", what, owner, now.Sub(last[what]), was)
			}
			owners[what], last[what] = owner, now
		}
		if len(given) < 2*len(names) {
			t.Fatalf("%d names have %d VIPs and route ids", len(names), len(given))
		}
	}
}
