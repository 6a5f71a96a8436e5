package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func into(namespace string, w MirrorWant) MirrorWant {
	w.MirrorNamespace = namespace
	return w
}

// services are the Services of east that have a mirror.
func (w *world) services() string {
	var out []string
	for k := range w.mirrors {
		out = append(out, strings.TrimPrefix(k, "east shop/"))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestQuotas(t *testing.T) {
	a, b, c, d := mirrorWant("a"), mirrorWant("b"), mirrorWant("c"), mirrorWant("d")
	cases := map[string]struct {
		why     string
		old     bool // b was there first, then came c and d together
		quotas  Quotas
		wants   []MirrorWant
		live    string
		message string
	}{
		"none": {why: "without quotas all is given", wants: []MirrorWant{a, b, c}, live: "a b c"},
		"enough": {
			why:    "the bound itself is allowed",
			quotas: Quotas{Mirrors: 3},
			wants:  []MirrorWant{a, b, c},
			live:   "a b c",
		},
		"newcomers": {
			why:     "of those who come together the first by name",
			quotas:  Quotas{Mirrors: 2},
			wants:   []MirrorWant{c, a, b},
			live:    "a b",
			message: "leave out 1 mirrors: 1 by services",
		},
		"a newcomer": {
			why:    "an existing entry stays even if the new name sorts first",
			old:    true,
			quotas: Quotas{Mirrors: 3},
			wants:  []MirrorWant{a, b, c, d}, live: "b c d", message: "leave out 1 mirrors: 1 by services",
		},
		"lowered": {
			why: "the oldest stay", old: true, quotas: Quotas{Mirrors: 1}, wants: []MirrorWant{a, b, c, d},
			live: "b", message: "leave out 3 mirrors: 3 by services",
		},
		"lowered, of one age": {
			why:    "of one age the first by name",
			old:    true,
			quotas: Quotas{Mirrors: 2},
			wants:  []MirrorWant{b, c, d},
			live:   "b c", message: "leave out 1 mirrors: 1 by services",
		},
		"by namespace": {
			why: "of ours: there the kubelet tells every container", quotas: Quotas{PerNamespace: 1},
			wants:   []MirrorWant{a, into("pay", b), c},
			live:    "a b",
			message: "leave out 1 mirrors: 1 by servicesPerNamespace",
		},
		"moved": {
			why:     "a mirror that moves to a full namespace is a newcomer there",
			old:     true,
			quotas:  Quotas{PerNamespace: 2},
			wants:   []MirrorWant{into("pay", b), c, d, a},
			live:    "b c d",
			message: "leave out 1 mirrors: 1 by servicesPerNamespace",
		},
		"several": {
			why:    "one problem counts all",
			quotas: Quotas{Mirrors: 2, PerNamespace: 1},
			wants:  []MirrorWant{a, into("pay", b), c, into("pay", d)},
			live:   "a b", message: "leave out 2 mirrors: 2 by services",
		},
		"share": {
			why:     "of 16 addresses an eighth",
			quotas:  Quotas{VIPPercent: 13},
			wants:   []MirrorWant{a, b, c},
			live:    "a b",
			message: "leave out 1 mirrors: 1 by vipPercent",
		},
		"least share": {
			why:     "a small range is no reason for none",
			quotas:  Quotas{VIPPercent: 1},
			wants:   []MirrorWant{a, b},
			live:    "a",
			message: "leave out 1 mirrors: 1 by vipPercent",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tiny)
			if c.old {
				w.link("east", Quotas{})
				w.want("east", b)
				w.sync()
				w.after(time.Hour).want("east", mirrorWant("c"), mirrorWant("d"))
				w.sync()
			}
			w.after(time.Hour).link("east", c.quotas)
			w.want("east", c.wants...)
			for range 2 { // the same wants again change nothing
				w.sync()
				if d := cmp.Diff(c.live, w.services()); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
				message := ""
				problems := w.Problems("east")
				if len(problems) > 0 {
					message = problems[0].Message
				}
				if len(problems) > 1 || !strings.HasSuffix(message, c.message) ||
					(message == "") != (c.message == "") {
					t.Errorf("%s: problems %v", c.why, problems)
				}
			}
			w.link("east", Quotas{})
			w.sync()
			if len(w.Problems("east")) > 0 || len(w.mirrors) != max(len(c.wants), 2) {
				t.Errorf("quotas that are raised let all in: %s, %v", w.services(), w.Problems("east"))
			}
		})
	}
}

func TestFreedRoomGoesToTheOldest(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{Mirrors: 1})
	for _, s := range []string{"first", "zed", "bar", "foo"} {
		w.want("east", mirrorWant(s))
		w.after(time.Minute).sync()
	}
	for _, want := range []string{"zed", "bar", "foo"} {
		w.unwant("east", mirrorWant(w.services()))
		w.after(time.Minute).sync()
		if w.services() != want {
			t.Errorf("%q has the place, want %q", w.services(), want)
		}
	}
	if p := w.Problems("east"); len(p) > 0 {
		t.Errorf("problems %v, want none, because no source waits", p)
	}
}

func TestQuotaOfAddressesCountsReleased(t *testing.T) {
	w := newWorld(t, tiny)
	w.link("east", Quotas{VIPPercent: 50}) // 8 of 16
	for i := range 6 {
		w.want("east", mirrorWant(fmt.Sprint("old", i)))
	}
	w.sync()
	for i := range 6 {
		w.unwant("east", mirrorWant(fmt.Sprint("old", i)))
		w.want("east", mirrorWant(fmt.Sprint("new", i)))
	}
	w.sync()
	if p := w.Problems("east"); len(w.mirrors) != 2 || len(p) != 1 {
		t.Errorf("a peer that changes its exports all day does not take the range from others: %d live, %v",
			len(w.mirrors), p)
	}
	w.after(2 * ReuseDelay).sync()
	if p := w.Problems("east"); len(w.mirrors) != 6 || len(p) != 0 {
		t.Errorf("addresses released long ago are anyone's: %d live, %v", len(w.mirrors), p)
	}
	w.link("east", Quotas{VIPPercent: 20})
	w.sync()
	if p := w.Problems("east"); len(w.mirrors) != 3 || len(p) != 1 {
		t.Errorf("lowered: %d live, %v", len(w.mirrors), p)
	}
}

func TestQuotasAreAPeersOwn(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{Mirrors: 1})
	w.link("north", Quotas{Mirrors: 1})
	n := mirrorWant("n")
	n.MirrorName = "n-north"
	w.want("east", mirrorWant("a"), mirrorWant("b"))
	w.want("north", n)
	w.sync()
	if len(w.Problems("east")) != 1 || len(w.Problems("north")) != 0 || w.mirrors["north shop/n"] == nil {
		t.Errorf("one peer's quota is not another's: %v", w.vips())
	}
}
