package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// with gives the one peer of east quotas.
func with(q Quotas, wants ...MirrorWant) []Peer {
	p := east(wants...)
	p[0].Quotas = q
	return p
}

func into(namespace string, w MirrorWant) MirrorWant {
	w.MirrorNamespace = namespace
	return w
}

func TestQuotas(t *testing.T) {
	a, b, c, d := mirrorWant("a"), mirrorWant("b"), mirrorWant("c"), mirrorWant("d")
	// b was here first, then came c and d together.
	old, _ := Book{}.AssignMirrors(east(b), wide, noon)
	old, _ = old.AssignMirrors(east(b, c, d), wide, noon.Add(time.Hour))

	cases := map[string]struct {
		why     string
		book    Book
		quotas  Quotas
		wants   []MirrorWant
		live    []string
		message string
	}{
		"none":      {why: "without quotas all is given", wants: []MirrorWant{a, b, c}, live: []string{"a", "b", "c"}},
		"enough":    {why: "the bound itself is allowed", quotas: Quotas{Mirrors: 3}, wants: []MirrorWant{a, b, c}, live: []string{"a", "b", "c"}},
		"newcomers": {why: "of those who come together the first by name", quotas: Quotas{Mirrors: 2}, wants: []MirrorWant{c, a, b}, live: []string{"a", "b"}, message: "leave out 1 mirrors: 1 by services"},
		"a newcomer": {
			why: "who is here stays, whatever the newcomer is called", book: old, quotas: Quotas{Mirrors: 3},
			wants: []MirrorWant{a, b, c, d}, live: []string{"b", "c", "d"}, message: "leave out 1 mirrors: 1 by services",
		},
		"lowered": {
			why: "the oldest stay", book: old, quotas: Quotas{Mirrors: 1}, wants: []MirrorWant{a, b, c, d},
			live: []string{"b"}, message: "leave out 3 mirrors: 3 by services",
		},
		"lowered, of one age": {
			why: "of one age the first by name", book: old, quotas: Quotas{Mirrors: 2}, wants: []MirrorWant{b, c, d},
			live: []string{"b", "c"}, message: "leave out 1 mirrors: 1 by services",
		},
		"by namespace": {
			why: "of ours: there the kubelet tells every container", quotas: Quotas{PerNamespace: 1},
			wants: []MirrorWant{a, into("pay", b), c}, live: []string{"a", "b"}, message: "leave out 1 mirrors: 1 by servicesPerNamespace",
		},
		"several": {
			why: "one problem counts all", quotas: Quotas{Mirrors: 2, PerNamespace: 1}, wants: []MirrorWant{a, into("pay", b), c, into("pay", d)},
			live: []string{"a", "b"}, message: "leave out 2 mirrors: 2 by services",
		},
		"share": {
			why: "of 16 addresses an eighth", quotas: Quotas{VIPPercent: 13}, wants: []MirrorWant{a, b, c}, live: []string{"a", "b"}, message: "leave out 1 mirrors: 1 by vipPercent",
		},
		"least share": {
			why: "a small range is no reason for none", quotas: Quotas{VIPPercent: 1}, wants: []MirrorWant{a, b}, live: []string{"a"}, message: "leave out 1 mirrors: 1 by vipPercent",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			for range 2 { // the same wants again change nothing
				var problems []Problem
				c.book, problems = c.book.AssignMirrors(with(c.quotas, c.wants...), small, noon.Add(2*time.Hour))
				var live []string
				for _, m := range c.book.Live() {
					live = append(live, m.Service)
				}
				if d := cmp.Diff(c.live, live); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
				message := ""
				if len(problems) > 0 {
					message = problems[0].Message
				}
				if len(problems) > 1 || !strings.HasSuffix(message, c.message) || (message == "") != (c.message == "") {
					t.Errorf("%s: problems %v", c.why, problems)
				}
			}
		})
	}
}

func TestQuotaOfAddressesCountsTheResting(t *testing.T) {
	half := Quotas{VIPPercent: 50} // 8 of 16
	var old, new []MirrorWant
	for i := range 6 {
		old, new = append(old, mirrorWant(fmt.Sprint("old", i))), append(new, mirrorWant(fmt.Sprint("new", i)))
	}
	b, _ := Book{}.AssignMirrors(with(half, old...), small, noon)
	b, problems := b.AssignMirrors(with(half, new...), small, noon.Add(time.Hour))
	if len(b.Live()) != 2 || len(problems) != 1 {
		t.Errorf("a peer that changes its exports all day does not take the range from others: %d live, %v", len(b.Live()), problems)
	}
	b, problems = b.AssignMirrors(with(half, new...), small, noon.Add(2*Rest))
	if len(b.Live()) != 6 || len(problems) != 0 {
		t.Errorf("rested addresses are anyone's: %d live, %v", len(b.Live()), problems)
	}
	b, problems = b.AssignMirrors(with(Quotas{VIPPercent: 20}, new...), small, noon.Add(2*Rest))
	if len(b.Live()) != 3 || len(problems) != 1 {
		t.Errorf("lowered: %d live, %v", len(b.Live()), problems)
	}
}

func TestQuotasAreALinksOwn(t *testing.T) {
	peers := append(with(Quotas{Mirrors: 1}, mirrorWant("a"), mirrorWant("b")), Peer{Link: "north", TrustDomain: "north.1", Complete: true, Quotas: Quotas{Mirrors: 1}})
	n := mirrorWant("n")
	n.MirrorName, n.Identities = "n-north", nil
	peers[1].Mirrors = []MirrorWant{n}
	b, problems := Book{}.AssignMirrors(peers, wide, noon)
	got := slices.Sorted(maps.Keys(vips(b)))
	if d := cmp.Diff([]string{"east/a", "north/n"}, got); d != "" || len(problems) != 1 || problems[0].Link != "east" {
		t.Errorf("one Link's quota is not another's: %v\n%s", problems, d)
	}
}

func TestQuotaOfASilentPeer(t *testing.T) {
	b, _ := Book{}.AssignMirrors(east(mirrorWant("a"), mirrorWant("b")), wide, noon)
	peers := with(Quotas{Mirrors: 2}, mirrorWant("c"))
	peers[0].Complete = false
	b, problems := b.AssignMirrors(peers, wide, noon)
	if got := slices.Sorted(maps.Keys(vips(b))); len(got) != 2 || len(problems) != 1 {
		t.Errorf("what has not been heard of again counts: %v, %v", got, problems)
	}
}

func TestSince(t *testing.T) {
	since := func(b Book) time.Time {
		live := b.Live()
		return live[0].Since.Time
	}
	b, _ := Book{}.AssignMirrors(east(mirrorWant("a")), wide, noon)
	later, _ := b.AssignMirrors(east(mirrorWant("a")), wide, noon.Add(time.Hour))
	if !since(later).Equal(noon) {
		t.Errorf("an age does not change: %v", since(later))
	}
	gone, _ := later.AssignMirrors(east(), wide, noon.Add(time.Hour))
	back, _ := gone.AssignMirrors(east(mirrorWant("a")), wide, noon.Add(2*time.Hour))
	if !since(back).Equal(noon.Add(2 * time.Hour)) {
		t.Errorf("who comes back is new: %v", since(back))
	}
	shards := b.Shards("causeway-system")
	for i := range shards {
		for j := range shards[i].Mirrors {
			shards[i].Mirrors[j].Since = nil // as an earlier version left it
		}
	}
	old, _ := Load(shards)
	old, _ = old.AssignMirrors(east(mirrorWant("a")), wide, noon)
	if old.Live()[0].Since != nil {
		t.Error("an upgrade writes no ledger")
	}
}
