package delta

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// entry is a value as the wire has it: shared by reference.
type entry struct{ key, value string }

var entries = Kind[*entry]{
	Key:   func(e *entry) string { return e.key },
	Size:  func(e *entry) int { return len(e.key) + len(e.value) },
	Equal: func(a, b *entry) bool { return *a == *b },
}

func view(values ...string) map[string]*entry {
	v := map[string]*entry{}
	for i := 0; i < len(values); i += 2 {
		v[values[i]] = &entry{values[i], values[i+1]}
	}
	return v
}

// drain returns everything that s has to tell.
func drain(s *Sender[*entry]) (chunks []Chunk[*entry]) {
	for c, ok := s.Next(); ok; c, ok = s.Next() {
		chunks = append(chunks, c)
	}
	return chunks
}

var allowEntry = cmp.AllowUnexported(entry{})

func TestSender(t *testing.T) {
	up := func(e ...string) (es []*entry) {
		for i := 0; i < len(e); i += 2 {
			es = append(es, &entry{e[i], e[i+1]})
		}
		return es
	}
	cases := map[string]struct {
		why   string
		limit int
		views []map[string]*entry // each told to its end
		want  []Chunk[*entry]
	}{
		"empty first view": {
			why:   "a reader of an empty cluster must become ready",
			views: []map[string]*entry{nil},
			want:  []Chunk[*entry]{{Whole: true}},
		},
		"snapshot in chunks": {
			why:   "only the last chunk makes the copy whole",
			limit: 2 * (2 + overhead),
			views: []map[string]*entry{view("a", "1", "b", "2", "c", "3")},
			want:  []Chunk[*entry]{{Upserts: up("a", "1", "b", "2")}, {Upserts: up("c", "3"), Whole: true}},
		},
		"large value": {
			why:   "a value past the limit must not hold up the rest for ever",
			limit: 12,
			views: []map[string]*entry{view("a", "1", "b", "much too large for it", "c", "3")},
			want: []Chunk[*entry]{
				{Upserts: up("a", "1")}, {Upserts: up("b", "much too large for it")}, {Upserts: up("c", "3"), Whole: true}},
		},
		"equal values": {
			why:   "nothing is said when nothing changed, even if objects were made anew",
			views: []map[string]*entry{view("a", "1"), view("a", "1")},
			want:  []Chunk[*entry]{{Upserts: up("a", "1"), Whole: true}},
		},
		"change and removal": {
			why:   "a reader must end with exactly the newest view",
			views: []map[string]*entry{view("a", "1", "b", "2", "c", "3"), view("a", "1", "c", "4")},
			want: []Chunk[*entry]{
				{Upserts: up("a", "1", "b", "2", "c", "3"), Whole: true},
				{Upserts: up("c", "4"), Removed: []string{"b"}, Whole: true}},
		},
		"change in chunks": {
			why:   "a reader must not act on half of a change",
			limit: 10,
			views: []map[string]*entry{view("a", "1"), view("b", "2")},
			want: []Chunk[*entry]{
				{Upserts: up("a", "1"), Whole: true},
				{Upserts: up("b", "2")}, {Removed: []string{"a"}, Whole: true}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.limit == 0 {
				tc.limit = 1 << 10
			}
			s := NewSender(entries, tc.limit)
			var got []Chunk[*entry]
			for _, v := range tc.views {
				s.Offer(v)
				got = append(got, drain(s)...)
			}
			ignoreEmpty := cmp.Transformer("plain", func(c Chunk[*entry]) string {
				text := ""
				for _, e := range c.Upserts {
					text += " " + e.key + "=" + e.value
				}
				return fmt.Sprint(text, c.Removed, c.Whole)
			})
			if diff := cmp.Diff(tc.want, got, allowEntry, ignoreEmpty); diff != "" {
				t.Errorf("%s: chunks (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}

func TestSenderLatestWins(t *testing.T) {
	s := NewSender(entries, 1<<10)
	for i := range 1000 {
		s.Offer(view("a", fmt.Sprint(i), fmt.Sprint("k", i), "x"))
	}
	chunks := drain(s)
	if len(chunks) != 1 || len(chunks[0].Upserts) != 2 {
		t.Errorf("a reader that took nothing is owed the newest view and no history, got %d chunks: %v", len(chunks), chunks)
	}
}

func TestSenderComparesReferencesFirst(t *testing.T) {
	kind, asked := entries, 0
	kind.Equal = func(a, b *entry) bool { asked++; return *a == *b }
	s := NewSender(kind, 1<<10)
	same := view("a", "1", "b", "2")
	for range 3 {
		s.Offer(maps.Clone(same))
		drain(s)
	}
	if asked != 0 {
		t.Errorf("shared values were compared %d times by content, want 0", asked)
	}
	renewed := view("a", "1", "b", "2")
	for range 3 {
		s.Offer(renewed)
		drain(s)
	}
	if asked != 2 {
		t.Errorf("values made anew were compared %d times by content, want once each", asked)
	}
}

// TestRandom holds engine against a dumb twin: whatever is offered and whenever
// the reader takes, every view it is handed was offered, and it ends with the last.
func TestRandom(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s := NewSender(entries, 1+rnd.IntN(60))
		r := NewReceiver(entries, Limits{})
		var offered []map[string]*entry
		var got map[string]*entry
		last := -1
		take := func(n int) {
			for ; n > 0; n-- {
				c, ok := s.Next()
				if !ok {
					return
				}
				v, err := r.Apply(c)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if (v != nil) != c.Whole {
					t.Fatalf("seed %d: a whole chunk with a change hands out a view, and no other does", seed)
				}
				if v == nil {
					continue
				}
				got = v
				// The twin: a list of all views, the reader moving forward through it.
				found := false
				for i := max(last, 0); i < len(offered); i++ {
					if cmp.Equal(offered[i], v, allowEntry) {
						last, found = i, true
						break
					}
				}
				if !found {
					t.Fatalf("seed %d: the reader was handed a view that was never offered: %v", seed, v)
				}
			}
		}
		for range 1 + rnd.IntN(40) {
			v := map[string]*entry{}
			for range rnd.IntN(12) {
				key := fmt.Sprint("k", rnd.IntN(15))
				v[key] = &entry{key, fmt.Sprint(rnd.IntN(3))}
			}
			s.Offer(v)
			offered = append(offered, v)
			take(rnd.IntN(4))
		}
		take(1 << 20)
		if diff := cmp.Diff(offered[len(offered)-1], got, allowEntry); diff != "" {
			t.Fatalf("seed %d: the reader must end with the last view (-want +got):\n%s", seed, diff)
		}
	}
}

func TestReceiverRefuses(t *testing.T) {
	a, b := &entry{"a", "1"}, &entry{"b", "22"}
	cases := map[string]struct {
		why    string
		chunks []Chunk[*entry]
		limits Limits
		want   error
	}{
		"twice upserted": {why: "which one is it?", chunks: []Chunk[*entry]{{Upserts: []*entry{a, a}}}, want: ErrDuplicate},
		"upserted and removed": {why: "which one is it?", want: ErrDuplicate,
			chunks: []Chunk[*entry]{{Upserts: []*entry{a}}, {Upserts: []*entry{a}, Removed: []string{"a"}}}},
		"unknown removed": {why: "the copies have drifted apart: start anew", want: ErrUnknownKey,
			chunks: []Chunk[*entry]{{Removed: []string{"a"}}}},
		"too many": {why: "a peer must not fill our memory", limits: Limits{Entries: 1}, want: ErrTooMany,
			chunks: []Chunk[*entry]{{Upserts: []*entry{a}}, {Upserts: []*entry{b}}}},
		"too large": {why: "a peer must not fill our memory", limits: Limits{Bytes: 6}, want: ErrTooLarge,
			chunks: []Chunk[*entry]{{Upserts: []*entry{a}}, {Upserts: []*entry{b}}}},
		"within limits": {why: "what was replaced or removed no longer counts", limits: Limits{Entries: 1, Bytes: 4},
			chunks: []Chunk[*entry]{{Upserts: []*entry{a}}, {Upserts: []*entry{a}}, {Upserts: []*entry{b}, Removed: []string{"a"}}}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := NewReceiver(entries, tc.limits)
			var err error
			for _, c := range tc.chunks {
				if _, e := r.Apply(c); e != nil {
					err = e
					break
				}
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: got %v, want %v", tc.why, err, tc.want)
			}
		})
	}
}

func TestReceiverHandsOutCopies(t *testing.T) {
	r := NewReceiver(entries, Limits{})
	one, _ := r.Apply(Chunk[*entry]{Upserts: []*entry{{"a", "1"}}, Whole: true})
	if v, _ := r.Apply(Chunk[*entry]{Whole: true}); v != nil {
		t.Errorf("a heartbeat changes nothing, got the view %v", v)
	}
	if v, _ := r.Apply(Chunk[*entry]{Upserts: []*entry{{"b", "1"}}}); v != nil {
		t.Errorf("half a change is nobody's business, got the view %v", v)
	}
	two, _ := r.Apply(Chunk[*entry]{Whole: true})
	if len(one) != 1 || len(two) != 2 {
		t.Errorf("views are immutable: got %v and then %v, want 1 and 2 entries", one, two)
	}
}

func TestBoard(t *testing.T) {
	var b Board[string, int]
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	_, ok, absent := b.Read("a")
	if ok || closed(absent) {
		t.Error("an empty board has nothing to say")
	}
	b.Post("a", 1)
	if !closed(absent) {
		t.Error("who waits for a first value must be woken")
	}
	v, ok, changed := b.Read("a")
	if v != 1 || !ok {
		t.Errorf("got %d, %v, want what was posted", v, ok)
	}
	b.Post("b", 1)
	if closed(changed) {
		t.Error("another's value wakes nobody")
	}
	b.Post("a", 2)
	if !closed(changed) {
		t.Error("a new value must wake its reader")
	}
	_, _, changed = b.Read("a")
	b.Withdraw("a")
	if _, ok, _ := b.Read("a"); ok || !closed(changed) {
		t.Error("a withdrawn value must wake its reader and be gone")
	}
}
