package delta

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// legacyEntry is a value as the wire has it: shared by reference.
type legacyEntry struct{ key, value string }

var entries = Kind[*legacyEntry]{
	Key:   func(e *legacyEntry) string { return e.key },
	Size:  func(e *legacyEntry) int { return len(e.key) + len(e.value) },
	Equal: func(a, b *legacyEntry) bool { return *a == *b },
}

func view(values ...string) map[string]*legacyEntry {
	v := map[string]*legacyEntry{}
	for i := 0; i < len(values); i += 2 {
		v[values[i]] = &legacyEntry{values[i], values[i+1]}
	}
	return v
}

// drainSender returns everything that s has to tell.
func drainSender(s *Sender[*legacyEntry]) (chunks []Chunk[*legacyEntry]) {
	for c, ok := s.Next(); ok; c, ok = s.Next() {
		chunks = append(chunks, c)
	}
	return chunks
}

var allowLegacyEntry = cmp.AllowUnexported(legacyEntry{})

func TestSender(t *testing.T) {
	up := func(e ...string) (es []*legacyEntry) {
		for i := 0; i < len(e); i += 2 {
			es = append(es, &legacyEntry{e[i], e[i+1]})
		}
		return es
	}
	cases := map[string]struct {
		why   string
		limit int
		views []map[string]*legacyEntry // each told to its end
		want  []Chunk[*legacyEntry]
	}{
		"empty first view": {
			why:   "a reader of an empty cluster must become ready",
			views: []map[string]*legacyEntry{nil},
			want:  []Chunk[*legacyEntry]{{Whole: true}},
		},
		"snapshot in chunks": {
			why:   "only the last chunk makes the copy whole",
			limit: 2 * (2 + overhead),
			views: []map[string]*legacyEntry{view("a", "1", "b", "2", "c", "3")},
			want:  []Chunk[*legacyEntry]{{Upserts: up("a", "1", "b", "2")}, {Upserts: up("c", "3"), Whole: true}},
		},
		"large value": {
			why:   "a value past the limit must not hold up the rest for ever",
			limit: 12,
			views: []map[string]*legacyEntry{view("a", "1", "b", "much too large for it", "c", "3")},
			want: []Chunk[*legacyEntry]{
				{Upserts: up("a", "1")}, {Upserts: up("b", "much too large for it")}, {Upserts: up("c", "3"), Whole: true}},
		},
		"equal values": {
			why:   "nothing is said when nothing changed, even if objects were made anew",
			views: []map[string]*legacyEntry{view("a", "1"), view("a", "1")},
			want:  []Chunk[*legacyEntry]{{Upserts: up("a", "1"), Whole: true}},
		},
		"change and removal": {
			why:   "a reader must end with exactly the newest view",
			views: []map[string]*legacyEntry{view("a", "1", "b", "2", "c", "3"), view("a", "1", "c", "4")},
			want: []Chunk[*legacyEntry]{
				{Upserts: up("a", "1", "b", "2", "c", "3"), Whole: true},
				{Upserts: up("c", "4"), Removed: []string{"b"}, Whole: true}},
		},
		"change in chunks": {
			why:   "a reader must not act on half of a change",
			limit: 10,
			views: []map[string]*legacyEntry{view("a", "1"), view("b", "2")},
			want: []Chunk[*legacyEntry]{
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
			var got []Chunk[*legacyEntry]
			for _, v := range tc.views {
				s.Offer(v)
				got = append(got, drainSender(s)...)
			}
			ignoreEmpty := cmp.Transformer("plain", func(c Chunk[*legacyEntry]) string {
				text := ""
				for _, e := range c.Upserts {
					text += " " + e.key + "=" + e.value
				}
				return fmt.Sprint(text, c.Removed, c.Whole)
			})
			if diff := cmp.Diff(tc.want, got, allowLegacyEntry, ignoreEmpty); diff != "" {
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
	chunks := drainSender(s)
	if len(chunks) != 1 || len(chunks[0].Upserts) != 2 {
		t.Errorf("a reader that took nothing is owed the newest view and no history, got %d chunks: %v", len(chunks), chunks)
	}
}

func TestSenderComparesReferencesFirst(t *testing.T) {
	kind, asked := entries, 0
	kind.Equal = func(a, b *legacyEntry) bool { asked++; return *a == *b }
	s := NewSender(kind, 1<<10)
	same := view("a", "1", "b", "2")
	for range 3 {
		s.Offer(maps.Clone(same))
		drainSender(s)
	}
	if asked != 0 {
		t.Errorf("shared values were compared %d times by content, want 0", asked)
	}
	renewed := view("a", "1", "b", "2")
	for range 3 {
		s.Offer(renewed)
		drainSender(s)
	}
	if asked != 2 {
		t.Errorf("values made anew were compared %d times by content, want once each", asked)
	}
}

// TestRandom holds engine against a dumb twin: whatever is offered and whenever
// the reader takes, every view it is handed was offered, and it ends with the last.
func TestSenderRandom(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		s := NewSender(entries, 1+rnd.IntN(60))
		r := NewViewReceiver(entries, Limits{})
		var offered []map[string]*legacyEntry
		var got map[string]*legacyEntry
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
					if cmp.Equal(offered[i], v, allowLegacyEntry) {
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
			v := map[string]*legacyEntry{}
			for range rnd.IntN(12) {
				key := fmt.Sprint("k", rnd.IntN(15))
				v[key] = &legacyEntry{key, fmt.Sprint(rnd.IntN(3))}
			}
			s.Offer(v)
			offered = append(offered, v)
			take(rnd.IntN(4))
		}
		take(1 << 20)
		if diff := cmp.Diff(offered[len(offered)-1], got, allowLegacyEntry); diff != "" {
			t.Fatalf("seed %d: the reader must end with the last view (-want +got):\n%s", seed, diff)
		}
	}
}

func TestViewReceiverRefuses(t *testing.T) {
	a, b := &legacyEntry{"a", "1"}, &legacyEntry{"b", "22"}
	cases := map[string]struct {
		why    string
		chunks []Chunk[*legacyEntry]
		limits Limits
		want   error
	}{
		"twice upserted": {why: "which one is it?", chunks: []Chunk[*legacyEntry]{{Upserts: []*legacyEntry{a, a}}}, want: ErrDuplicate},
		"upserted and removed": {why: "which one is it?", want: ErrDuplicate,
			chunks: []Chunk[*legacyEntry]{{Upserts: []*legacyEntry{a}}, {Upserts: []*legacyEntry{a}, Removed: []string{"a"}}}},
		"unknown removed": {why: "the copies have drifted apart: start anew", want: ErrUnknownKey,
			chunks: []Chunk[*legacyEntry]{{Removed: []string{"a"}}}},
		"too many": {why: "a peer must not fill our memory", limits: Limits{Entries: 1}, want: ErrTooMany,
			chunks: []Chunk[*legacyEntry]{{Upserts: []*legacyEntry{a}}, {Upserts: []*legacyEntry{b}}}},
		"too large": {why: "a peer must not fill our memory", limits: Limits{Bytes: 6}, want: ErrTooLarge,
			chunks: []Chunk[*legacyEntry]{{Upserts: []*legacyEntry{a}}, {Upserts: []*legacyEntry{b}}}},
		"within limits": {why: "what was replaced or removed no longer counts", limits: Limits{Entries: 1, Bytes: 4},
			chunks: []Chunk[*legacyEntry]{{Upserts: []*legacyEntry{a}}, {Upserts: []*legacyEntry{a}}, {Upserts: []*legacyEntry{b}, Removed: []string{"a"}}}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := NewViewReceiver(entries, tc.limits)
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

func TestViewReceiverHandsOutCopies(t *testing.T) {
	r := NewViewReceiver(entries, Limits{})
	one, _ := r.Apply(Chunk[*legacyEntry]{Upserts: []*legacyEntry{{"a", "1"}}, Whole: true})
	if v, _ := r.Apply(Chunk[*legacyEntry]{Whole: true}); v != nil {
		t.Errorf("a heartbeat changes nothing, got the view %v", v)
	}
	if v, _ := r.Apply(Chunk[*legacyEntry]{Upserts: []*legacyEntry{{"b", "1"}}}); v != nil {
		t.Errorf("half a change is nobody's business, got the view %v", v)
	}
	two, _ := r.Apply(Chunk[*legacyEntry]{Whole: true})
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
