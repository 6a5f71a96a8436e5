package rotation

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/identity"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// a world gives issuers names in the order in which they are seen, so that a state can be
// written down.
type world struct {
	roots Roots
	first *identity.Issuer
	seen  []*x509.Certificate
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root, err := identity.NewRoot("west-d1e4195c", start)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{roots: FirstRoots(root)}
	if w.first, err = root.NewIssuer(start); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) name(c *x509.Certificate) string {
	n := slices.IndexFunc(w.seen, c.Equal)
	if n < 0 {
		n = len(w.seen)
		w.seen = append(w.seen, c)
	}
	return fmt.Sprint(n)
}

// text is "number: current>next|formers".
func (w *world) text(s State) string {
	out := fmt.Sprintf("%d: %s", s.Number, w.name(s.Current.Certificate()))
	if s.Next != nil {
		out += ">" + w.name(s.Next.Certificate())
	}
	for _, f := range s.Formers {
		out += "|" + w.name(f.Certificate)
	}
	return out
}

// step is one decision, that must come to want.
type step struct {
	after time.Duration // since start
	acks  map[string]uint64
	ask   Request
	want  string
}

func TestDecide(t *testing.T) {
	const h, day = time.Hour, 24 * time.Hour
	soon := Request{ID: "a", Announce: "3s"}
	two := func(a, b uint64) map[string]uint64 { return map[string]uint64{"east": a, "north": b} }
	many := func(n int) Request { return Request{ID: fmt.Sprint("r", n), Announce: "0s"} }
	for name, c := range map[string]struct {
		why   string
		steps []step
	}{
		"idle": {"nothing asks, and the issuer is young", []step{{after: 200 * day, want: "1: 0"}}},
		"asked": {"announced, and signing when the last peer knows it", []step{
			{acks: two(1, 1), ask: Request{ID: "a"}, want: "2: 0>1"},
			{after: h, acks: two(2, 1), ask: Request{ID: "a"}, want: "2: 0>1"},
			{after: 2 * h, acks: two(2, 2), ask: Request{ID: "a"}, want: "2: 1|0"},
			{after: 2*h + Keep - 1, acks: two(2, 2), ask: Request{ID: "a"}, want: "2: 1|0"},
			{after: 2*h + Keep, acks: two(2, 2), ask: Request{ID: "a"}, want: "3: 1"},
			{after: 3*h + Keep, acks: two(2, 2), ask: Request{ID: "a"}, want: "3: 1"},
		}},
		"a dead peer": {"it holds up nothing beyond the deadline", []step{
			{acks: two(1, 0), ask: soon, want: "2: 0>1"},
			{after: 3*time.Second - 1, acks: two(2, 0), ask: soon, want: "2: 0>1"},
			{after: 3 * time.Second, acks: two(2, 0), ask: soon, want: "2: 1|0"},
		}},
		"nobody linked": {"there is nobody to wait for", []step{
			{ask: Request{ID: "a"}, want: "2: 0>1"},
			{after: 1, ask: Request{ID: "a"}, want: "2: 1|0"},
		}},
		"by itself": {"after two thirds of its life, and then all of the time ahead, since agents may be cut off", []step{
			{after: 243 * day, acks: two(1, 1), want: "1: 0"},
			{after: 244 * day, acks: two(1, 1), want: "2: 0>1"},
			{after: 244*day + 23*h, acks: two(2, 2), want: "2: 0>1"},
			{after: 245 * day, acks: two(2, 2), want: "2: 1|0"},
			{after: 247 * day, acks: two(2, 2), want: "3: 1"},
		}},
		"hurried": {"a request while one is under way makes that one sooner", []step{
			{after: 244 * day, acks: two(1, 1), want: "2: 0>1"},
			{after: 244*day + h, acks: two(2, 1), ask: soon, want: "2: 0>1"},
			{after: 244*day + h + 3*time.Second, acks: two(2, 1), ask: soon, want: "2: 1|0"},
		}},
		"nearly expired": {"controllers were off for months: the announcement is cut short", []step{
			{after: 364*day + 12*h, acks: two(0, 0), want: "2: 0>1"},
			{after: 364*day + 12*h + 1, acks: two(0, 0), want: "2: 1|0"},
		}},
		"expired": {"an issuer that is over is not listed for a day more", []step{
			{after: 400 * day, want: "2: 0>1"},
			{after: 400*day + 1, want: "2: 1|0"},
			{after: 400*day + 2, want: "3: 1"},
		}},
		"revoked": {"at once, with all that was listed or announced", []step{
			{acks: two(1, 1), ask: many(1), want: "2: 0>1"},
			{after: 1, ask: many(1), want: "2: 1|0"},
			{after: 2, ask: Request{ID: "b"}, want: "3: 1>2|0"},
			{after: 3, acks: two(1, 1), ask: Request{ID: "c", Revoke: true}, want: "4: 3"},
			{after: 4, acks: two(1, 1), ask: Request{ID: "c", Revoke: true}, want: "4: 3"},
		}},
		"too many": {"peers take no list of more than four: the next waits until one leaves", []step{
			{ask: many(1), want: "2: 0>1"}, {ask: many(1), want: "2: 1|0"},
			{after: h, ask: many(2), want: "3: 1>2|0"}, {after: h, ask: many(2), want: "3: 2|0|1"},
			{after: h, ask: many(3), want: "4: 2>3|0|1"}, {after: h, ask: many(3), want: "4: 3|0|1|2"},
			{after: h, ask: many(4), want: "4: 3|0|1|2"},
			{after: Keep, ask: many(4), want: "5: 3>4|1|2"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := First(w.first)
			for i, step := range c.steps {
				now := start.Add(step.after)
				next, changed, err := Decide(now, s, w.roots, step.acks, step.ask)
				if err != nil {
					t.Fatal(err)
				}
				if got := w.text(next); got != step.want {
					t.Fatalf("step %d: %s, want %s: %s", i, got, step.want, c.why)
				}
				if same := w.text(next) == w.text(s) && next.Request == s.Request && next.Deadline.Equal(s.Deadline); changed == same {
					t.Errorf("step %d: changed: %v", i, changed)
				}
				if _, err := w.roots.Current.SignIssuerList(next.Number, next.Listed()); err != nil {
					t.Errorf("step %d: no peer would take the list: %v", i, err)
				}
				data, err := next.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				if s, err = Parse(data, w.roots.Current.Certificate()); err != nil { // as another replica reads it
					t.Fatal(err)
				}
				if w.text(s) != w.text(next) || s.Needed != next.Needed || s.Announced != next.Announced || s.Request != next.Request ||
					!s.Deadline.Equal(next.Deadline) || !s.Since.Equal(next.Since) || s.Hurry != next.Hurry {
					t.Fatalf("step %d: kept as %+v, was %+v", i, s, next)
				}
			}
		})
	}
}

func TestDecideUnderAnExpiredRoot(t *testing.T) {
	w := newWorld(t)
	s := First(w.first)
	for _, r := range []Request{{ID: "a"}, {ID: "a", Revoke: true}} {
		next, changed, err := Decide(start.Add(2*identity.RootLifetime), s, w.roots, nil, r)
		if err == nil || changed || w.text(next) != "1: 0" {
			t.Errorf("%+v: %s, %v, %v: want nothing changed and the error", r, w.text(next), changed, err)
		}
	}
}

func TestNeverRotated(t *testing.T) {
	w := newWorld(t)
	data, err := First(w.first).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	delete(data, rest)
	s, err := Parse(data, w.roots.Current.Certificate())
	if err != nil || w.text(s) != "1: 0" || s.Needed != 1 {
		t.Errorf("a Secret of an older version: %v, %v", s, err)
	}
}

func TestRequest(t *testing.T) {
	for name, c := range map[string]struct{ why, text, wrong string }{
		"none":     {"nothing asks", "", ""},
		"plain":    {"24 hours", `{"id":"a"}`, ""},
		"no id":    {"it would never be done", `{"revoke":true}`, "its id"},
		"garbage":  {"somebody's hand", `yes`, "invalid character"},
		"backward": {"the past", `{"id":"a","announce":"-1s"}`, "not between"},
		"too far":  {"nobody waits that long", `{"id":"a","announce":"9999h"}`, "not between"},
		"no time":  {"not a duration", `{"id":"a","announce":"soon"}`, "no duration"},
		"long":     {"bounded", `{"id":"` + strings.Repeat("a", maxRequest) + `"}`, "more than"},
	} {
		r, err := ParseRequest(c.text)
		if (err == nil) != (c.wrong == "") || err != nil && (!strings.Contains(err.Error(), c.wrong) || r != Request{}) {
			t.Errorf("%s: %v, want %q: %s", name, err, c.wrong, c.why)
		}
	}
	if got := (Request{ID: "a"}).Ahead(); got != Ahead {
		t.Errorf("announced for %v, want %v", got, Ahead)
	}
}

func TestProgress(t *testing.T) {
	w := newWorld(t)
	s, _, err := Decide(start, First(w.first), w.roots, nil, Request{ID: "a", Announce: "1h"})
	if err != nil {
		t.Fatal(err)
	}
	at := start.Add(time.Hour)
	want := Progress{Request: "a", Number: 2, Listed: 2, Deadline: &at, Waiting: []string{"north"}, Fault: "no"}
	got, err := ParseProgress(Tell(s, w.roots, map[string]uint64{"east": 2, "north": 1}, errors.New("no")).String())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, want less: %s", err, diff)
	}
}
