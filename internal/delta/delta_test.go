package delta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// item is a value as the wire has it: it carries its key.
type item struct{ key, value string }

func itemKey(i *item) string { return i.key }
func itemSize(i *item) int   { return len(i.value) }

var compareItems = cmp.Options{cmp.AllowUnexported(item{}), cmpopts.EquateEmpty()}

// set and unset make Changes of "key=value" and of keys.
func set(pairs ...string) (changes []Change[*item]) {
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		changes = append(changes, Change[*item]{Key: key, Value: &item{key, value}})
	}
	return changes
}

func unset(keys ...string) (changes []Change[*item]) {
	for _, key := range keys {
		changes = append(changes, Change[*item]{Key: key, Deleted: true})
	}
	return changes
}

// summary is a Batch in one line.
func summary(b Batch[*item]) string {
	var words []string
	if b.Reset {
		words = append(words, "reset")
	}
	for _, i := range b.Upserts {
		words = append(words, i.key+"="+i.value)
	}
	for _, key := range b.Removed {
		words = append(words, "-"+key)
	}
	if b.Whole {
		words = append(words, "whole")
	}
	return strings.Join(words, " ")
}

// drain returns all that r has to send.
func drain(r *Reader[*item], limit int) (batches []string) {
	for b, ok := r.Next(limit); ok; b, ok = r.Next(limit) {
		batches = append(batches, summary(b))
	}
	return batches
}

func TestReader(t *testing.T) {
	notSecret := func(i *item) bool { return !strings.Contains(i.value, "secret") }
	two := 2 * (1 + 1 + overhead) // room for two entries of one byte each
	cases := map[string]struct {
		why    string
		limit  int
		filter func(*item) bool
		steps  [][]Change[*item] // the reader is drained before the first and after each
		want   []string
	}{
		"empty log": {
			why:  "a reader of an empty cluster must become ready",
			want: []string{"whole"},
		},
		"snapshot and changes": {
			why:   "a reader gets everything once, and then differences",
			steps: [][]Change[*item]{set("a=1", "b=2"), set("a=3"), unset("b")},
			want:  []string{"whole", "a=1 b=2 whole", "a=3 whole", "-b whole"},
		},
		"batches": {
			why:   "only the last batch of a change makes the copy whole",
			limit: two,
			steps: [][]Change[*item]{set("a=1", "b=2", "c=3")},
			want:  []string{"whole", "a=1 b=2", "c=3 whole"},
		},
		"value above the limit": {
			why:   "a large value must not block the rest forever",
			limit: two,
			steps: [][]Change[*item]{set("a=1", "b="+strings.Repeat("x", 50), "c=3")},
			want:  []string{"whole", "a=1", "b=" + strings.Repeat("x", 50), "c=3 whole"},
		},
		"same key twice": {
			why:   "a reader is sent the newest value and no history",
			steps: [][]Change[*item]{set("a=1", "a=2"), append(set("a=3"), unset("a")...)},
			want:  []string{"whole", "a=2 whole", "-a whole"},
		},
		"created and deleted between reads": {
			why:   "the name of something that a reader never had is nothing that it needs",
			steps: [][]Change[*item]{append(set("a=1"), unset("a")...)},
			want:  []string{"whole"},
		},
		"deletion of an absent key": {
			why:   "callers need not know whether a key is there",
			steps: [][]Change[*item]{unset("a")},
			want:  []string{"whole"},
		},
		"filtered": {
			why:    "names must not leak through a filter, neither by an upsert nor by a removal",
			filter: notSecret,
			steps: [][]Change[*item]{
				set("a=1", "b=secret"),
				set("b=secret2"),
				unset("b"),
				set("b=1"),
				set("b=secret"),
				unset("b"),
			},
			want: []string{"whole", "a=1 whole", "b=1 whole", "-b whole"},
		},
		"the rest is filtered": {
			why:    "a copy is whole even if what was left to send turns out to be nothing",
			filter: notSecret, limit: two / 2,
			steps: [][]Change[*item]{set("a=1", "b=2", "c=secret")},
			want:  []string{"whole", "a=1", "b=2 whole"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if tc.limit == 0 {
				tc.limit = 1 << 10
			}
			l := NewLog(itemSize)
			r := l.NewReader(tc.filter)
			defer r.Close()
			got := drain(r, tc.limit)
			for _, changes := range tc.steps {
				l.Apply(changes...)
				got = append(got, drain(r, tc.limit)...)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s: batches (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}

func TestLateReader(t *testing.T) {
	l := NewLog(itemSize)
	l.Apply(set("a=1", "b=2", "c=3")...)
	l.Apply(set("a=4")...)
	l.Apply(unset("b")...)
	r := l.NewReader(nil)
	defer r.Close()
	if diff := cmp.Diff([]string{"c=3 a=4 whole"}, drain(r, 1<<10)); diff != "" {
		t.Errorf("a new reader is sent what is there and no history (-want +got):\n%s", diff)
	}
}

func TestGetAndLen(t *testing.T) {
	l := NewLog(itemSize)
	l.Apply(set("a=1", "b=2")...)
	l.Apply(unset("a")...)
	if v, ok := l.Get("b"); !ok || v.value != "2" {
		t.Errorf("Get(b) = %v, %v", v, ok)
	}
	if v, ok := l.Get("a"); ok || v != nil {
		t.Errorf("Get of a deleted key = %v, %v", v, ok)
	}
	if n := l.Len(); n != 1 {
		t.Errorf("Len() = %d, want 1", n)
	}
}

func TestRefilter(t *testing.T) {
	l := NewLog(itemSize)
	l.Apply(set("a=1", "b=2", "c=3")...)
	hidden := "b"
	r := l.NewReader(func(i *item) bool { return i.key != hidden })
	defer r.Close()
	got := drain(r, 1<<10)
	r.Refilter()
	got = append(got, drain(r, 1<<10)...) // nothing: the filter answers as before
	hidden = "c"
	l.Apply(set("a=4")...)
	r.Refilter()
	got = append(got, drain(r, 1<<10)...)
	want := []string{"a=1 c=3 whole", "b=2 a=4 -c whole"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("a reader whose filter changed is sent the differences only (-want +got):\n%s", diff)
	}
}

func TestChanged(t *testing.T) {
	ready := func(r *Reader[*item]) bool {
		select {
		case <-r.Changed():
			return true
		default:
			return false
		}
	}
	l := NewLog(itemSize)
	r := l.NewReader(nil)
	defer r.Close()
	if !ready(r) {
		t.Error("a new reader must send its first Whole batch at once")
	}
	drain(r, 1<<10)
	if ready(r) {
		t.Error("a reader that has sent everything must wait")
	}
	before := r.Changed()
	l.Apply(set("a=1", "b=2")...)
	select {
	case <-before:
	default:
		t.Error("a change must wake a reader that waits already")
	}
	if !ready(r) {
		t.Error("a reader that asks after the change must not wait for another one")
	}
	r.Next(1)
	if !ready(r) {
		t.Error("a reader must not wait while it has more to send")
	}
	drain(r, 1<<10)
	r.Refilter()
	if !ready(r) {
		t.Error("a new filter must wake its reader")
	}
	drain(r, 1<<10)
	l.Apply(unset("absent")...)
	if ready(r) {
		t.Error("nothing changed, so no reader needs to wake up")
	}
}

// TestCompaction runs many changes of few keys: the log must not grow with them.
func TestCompaction(t *testing.T) {
	l := NewLog(itemSize)
	fast, slow := l.NewReader(nil), l.NewReader(nil)
	defer fast.Close()
	defer slow.Close()
	drain(slow, 1<<10)
	for i := range 100_000 {
		key := fmt.Sprint("k", i)
		l.Apply(set(key + "=1")...)
		drain(fast, 1<<10)
		l.Apply(unset(key)...)
		drain(fast, 1<<10)
	}
	if n := len(l.entries); n > 4*minTombstones {
		t.Errorf("the log has %d entries for no key at all", n)
	}
	if n := len(l.order); n > 4*minTombstones {
		t.Errorf("the order has %d positions for no key at all", n)
	}
	if got := drain(slow, 1<<10); len(got) != 0 {
		t.Errorf("a slow reader that misses nothing is sent %v, want nothing", got)
	}
	if l.tombstones != len(l.slots) {
		t.Errorf("the log counts %d tombstones and has %d", l.tombstones, len(l.slots))
	}
}

func TestResetOfASlowReader(t *testing.T) {
	l := NewLog(itemSize)
	slow := l.NewReader(nil)
	defer slow.Close()
	l.Apply(set("gone=1", "stays=2")...)
	drain(slow, 1<<10)
	l.Apply(unset("gone")...)
	for i := range 10 * minTombstones { // never read, so their tombstones pile up
		key := fmt.Sprint("k", i)
		l.Apply(set(key + "=1")...)
		l.Apply(unset(key)...)
	}
	if diff := cmp.Diff([]string{"reset stays=2 whole"}, drain(slow, 1<<10)); diff != "" {
		t.Errorf("a reader that missed a removal forgets all and gets a snapshot (-want +got):\n%s", diff)
	}
}

// TestSharesKeepInvariants compares Log, Reader and Receiver with plain maps: random
// changes, filters and pauses, with a log that keeps few tombstones.
func TestSharesKeepInvariants(t *testing.T) {
	resets := 0
	defer func() {
		if resets == 0 {
			t.Error("no reader was ever reset: the test does not cover it")
		}
	}()
	for seed := range uint64(120) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		l := NewLog(itemSize)
		keys, rounds := 1+rnd.IntN(40), 1+rnd.IntN(300)
		if seed%10 == 0 {
			keys = 5000 // enough for resets
		}
		content := map[string]*item{} // what the log must hold
		var readers []*twin
		for range rounds {
			switch rnd.IntN(10) {
			case 0:
				if len(readers) < 8 {
					readers = append(readers, newTwin(l, rnd.IntN(4)))
				}
			case 1:
				if n := len(readers); n > 0 && rnd.IntN(4) == 0 {
					readers[0].r.Close()
					readers = readers[1:]
				}
			case 2:
				if n := len(readers); n > 0 {
					w := readers[rnd.IntN(n)]
					w.hide.Store(int64(rnd.IntN(4)))
					w.r.Refilter()
				}
			case 3, 4, 5, 6:
				var changes []Change[*item]
				for range 1 + rnd.IntN(1+keys/4) {
					key := fmt.Sprint("k", rnd.IntN(keys))
					c := Change[*item]{Key: key, Deleted: rnd.IntN(2) == 0}
					if c.Deleted {
						delete(content, key)
					} else {
						c.Value = &item{key, fmt.Sprint(rnd.IntN(10))}
						content[key] = c.Value
					}
					changes = append(changes, c)
				}
				l.Apply(changes...)
			default:
				for _, w := range readers {
					w.read(t, seed, content, rnd.IntN(3), 1+rnd.IntN(60))
				}
			}
		}
		for _, w := range readers {
			w.read(t, seed, content, 1<<20, 1+rnd.IntN(1<<10))
			if !w.receiver.Whole() {
				t.Fatalf("seed %d: a reader that has sent everything is not whole", seed)
			}
			w.r.Close()
			resets += w.resets
		}
		if l.Len() != len(content) {
			t.Fatalf("seed %d: Len() = %d, want %d", seed, l.Len(), len(content))
		}
	}
}

// twin is a reader, its receiver, and plain maps of what they must hold.
type twin struct {
	r        *Reader[*item]
	receiver *Receiver[*item]
	hide     atomic.Int64     // values that end on no such digit are hidden
	shown    map[string]bool  // keys that this reader was ever sent
	taken    map[string]*item // the state made of what Take returned
	resets   int
}

func newTwin(l *Log[*item], hide int) *twin {
	w := &twin{
		receiver: NewReceiver(itemKey, itemSize, Limits{}),
		shown:    map[string]bool{},
		taken:    map[string]*item{},
	}
	w.hide.Store(int64(hide))
	w.r = l.NewReader(w.shows)
	return w
}

// shows is the filter. With hide 0 everything passes.
func (w *twin) shows(i *item) bool {
	hide := w.hide.Load()
	return hide == 0 || int64(i.value[0]-'0')%(hide+1) != 0
}

// read takes up to n batches.
func (w *twin) read(t *testing.T, seed uint64, content map[string]*item, n, limit int) {
	t.Helper()
	for ; n > 0; n-- {
		b, ok := w.r.Next(limit)
		if !ok {
			return
		}
		if b.Reset {
			w.resets++
		}
		for _, key := range b.Removed {
			if !w.shown[key] {
				t.Fatalf("seed %d: the batch names %s, which the reader was never sent", seed, key)
			}
		}
		for _, v := range b.Upserts {
			if !w.shows(v) {
				t.Fatalf("seed %d: the batch has %v, which the filter refuses", seed, v)
			}
			w.shown[v.key] = true
		}
		if err := w.receiver.Apply(b); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		d, changed := w.receiver.Take()
		if changed && !b.Whole {
			t.Fatalf("seed %d: the receiver hands out a state that is not whole", seed)
		}
		for _, v := range d.Upserts {
			w.taken[v.key] = v
		}
		for _, key := range d.Removed {
			if _, is := w.taken[key]; !is {
				t.Fatalf("seed %d: the receiver removes %s, which it never handed out", seed, key)
			}
			delete(w.taken, key)
		}
		if !b.Whole {
			continue
		}
		want := maps.Clone(content)
		maps.DeleteFunc(want, func(_ string, v *item) bool { return !w.shows(v) })
		if !maps.Equal(want, w.taken) {
			t.Fatalf("seed %d: a whole state differs (-want +got):\n%s", seed,
				cmp.Diff(want, w.taken, compareItems))
		}
		if w.receiver.Len() != len(want) {
			t.Fatalf("seed %d: the receiver holds %d keys, want %d", seed, w.receiver.Len(), len(want))
		}
	}
}

// TestConcurrentReaders runs writers and readers side by side, for the race detector.
func TestConcurrentReaders(t *testing.T) {
	l := NewLog(itemSize)
	ctx, stop := context.WithCancel(t.Context())
	var writers, readers sync.WaitGroup
	var twins []*twin
	for i := range 8 {
		w := newTwin(l, i%4)
		twins = append(twins, w)
		readers.Go(func() {
			for {
				select {
				case <-w.r.Changed():
				case <-ctx.Done():
					return
				}
				for b, ok := w.r.Next(64); ok; b, ok = w.r.Next(64) {
					if err := w.receiver.Apply(b); err != nil {
						t.Error(err)
						return
					}
				}
				if rand.IntN(10) == 0 {
					w.hide.Store(int64(rand.IntN(4)))
					w.r.Refilter()
				}
			}
		})
	}
	content := map[string]*item{}
	writers.Go(func() {
		for i := range 3000 {
			key := fmt.Sprint("k", rand.IntN(50))
			c := Change[*item]{Key: key, Value: &item{key, fmt.Sprint(i % 10)}, Deleted: i%3 == 0}
			if c.Deleted {
				delete(content, key)
			} else {
				content[key] = c.Value
			}
			l.Apply(c)
			l.NewReader(nil).Close()
		}
	})
	writers.Wait()
	stop()
	readers.Wait()
	for i, w := range twins {
		w.r.Refilter()
		for b, ok := w.r.Next(64); ok; b, ok = w.r.Next(64) {
			if err := w.receiver.Apply(b); err != nil {
				t.Fatal(err)
			}
		}
		want := maps.Clone(content)
		maps.DeleteFunc(want, func(_ string, v *item) bool { return !w.shows(v) })
		if !w.receiver.Whole() || w.receiver.Len() != len(want) {
			t.Errorf("reader %d ends with %d keys, want %d", i, w.receiver.Len(), len(want))
		}
		w.r.Close()
	}
}

func TestReceiverRefuses(t *testing.T) {
	a, b := &item{"a", "1"}, &item{"b", "22"}
	cases := map[string]struct {
		why     string
		limits  Limits
		batches []Batch[*item]
		want    error
	}{
		"duplicate upsert": {
			why:     "the order within a batch has no meaning",
			batches: []Batch[*item]{{Upserts: []*item{a, a}}}, want: ErrDuplicate,
		},
		"upsert and removal": {
			why: "the order within a batch has no meaning",
			batches: []Batch[*item]{
				{Upserts: []*item{a}, Whole: true},
				{Upserts: []*item{a}, Removed: []string{"a"}},
			},
			want: ErrDuplicate,
		},
		"unknown removal": {
			why:     "sender and receiver disagree on what is held",
			batches: []Batch[*item]{{Removed: []string{"a"}}}, want: ErrUnknownKey,
		},
		"unknown removal after a reset": {
			why: "what was held before the reset is forgotten",
			batches: []Batch[*item]{
				{Upserts: []*item{a}, Whole: true},
				{Reset: true},
				{Removed: []string{"a"}, Whole: true},
			},
		},
		"unknown removal after the snapshot": {
			why:     "a reset excuses nothing that comes after its snapshot",
			batches: []Batch[*item]{{Reset: true, Whole: true}, {Removed: []string{"a"}}},
			want:    ErrUnknownKey,
		},
		"entries": {
			why:     "a peer must not fill our memory",
			limits:  Limits{Entries: 1},
			batches: []Batch[*item]{{Upserts: []*item{a}}, {Upserts: []*item{b}}}, want: ErrTooMany,
		},
		"bytes": {
			why:     "a peer must not fill our memory",
			limits:  Limits{Bytes: 4},
			batches: []Batch[*item]{{Upserts: []*item{a}}, {Upserts: []*item{b}}}, want: ErrTooLarge,
		},
		"replaced values": {
			why:    "only what is held counts",
			limits: Limits{Entries: 1, Bytes: 4},
			batches: []Batch[*item]{
				{Upserts: []*item{a}},
				{Upserts: []*item{a}},
				{Removed: []string{"a"}},
				{Upserts: []*item{b}},
				{Reset: true, Upserts: []*item{b}},
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := NewReceiver(itemKey, itemSize, tc.limits)
			var err error
			for i, b := range tc.batches {
				if err = r.Apply(b); err != nil && i < len(tc.batches)-1 {
					t.Fatalf("batch %d: %v", i, err)
				}
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: error %v, want %v", tc.why, err, tc.want)
			}
		})
	}
}

func TestReceiverTake(t *testing.T) {
	r := NewReceiver(itemKey, itemSize, Limits{})
	a1, a2, b, c := &item{"a", "1"}, &item{"a", "2"}, &item{"b", "1"}, &item{"c", "1"}
	steps := []struct {
		batch Batch[*item]
		want  Delta[*item]
		is    bool
	}{
		{batch: Batch[*item]{Upserts: []*item{b, a1}}},
		{
			batch: Batch[*item]{Upserts: []*item{c}, Whole: true},
			want:  Delta[*item]{Upserts: []*item{a1, b, c}},
			is:    true,
		},
		{batch: Batch[*item]{Whole: true}},
		{batch: Batch[*item]{Upserts: []*item{a2}, Removed: []string{"c"}}},
		{
			batch: Batch[*item]{Upserts: []*item{c}, Removed: []string{"b"}, Whole: true},
			want:  Delta[*item]{Upserts: []*item{a2, c}, Removed: []string{"b"}},
			is:    true,
		},
		{
			batch: Batch[*item]{Reset: true, Upserts: []*item{a1}, Whole: true},
			want:  Delta[*item]{Upserts: []*item{a1}, Removed: []string{"c"}},
			is:    true,
		},
		{batch: Batch[*item]{Upserts: []*item{b}}},
		{batch: Batch[*item]{Removed: []string{"b"}, Whole: true}},
	}
	for i, s := range steps {
		if err := r.Apply(s.batch); err != nil {
			t.Fatal(err)
		}
		got, is := r.Take()
		if diff := cmp.Diff(s.want, got, compareItems); is != s.is || diff != "" {
			t.Errorf("step %d: Take() returns %v, want %v; delta (-want +got):\n%s", i, is, s.is, diff)
		}
	}
	if v, ok := r.Get("a"); !ok || v != a1 || r.Bytes() != 2 {
		t.Errorf("at the end: Get(a) = %v, %v; Bytes() = %d", v, ok, r.Bytes())
	}
}

// BenchmarkOneChange changes one key of 10,000 and lets every reader send it.
func BenchmarkOneChange(b *testing.B) {
	for _, readers := range []int{200, 1000} {
		for _, filtered := range []bool{false, true} {
			b.Run(fmt.Sprintf("readers=%d/filtered=%v", readers, filtered), func(b *testing.B) {
				l, all := benchLog(readers, filtered)
				defer closeAll(all)
				values := []*item{{"key-5000", "one"}, {"key-5000", "two"}}
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					l.Apply(Change[*item]{Key: "key-5000", Value: values[i%2]})
					for _, r := range all {
						if batch, ok := r.Next(256 << 10); !ok || len(batch.Upserts) != 1 {
							b.Fatalf("a reader is sent %d values, want the one that changed",
								len(batch.Upserts))
						}
					}
				}
			})
		}
	}
}

// BenchmarkSnapshot sends 10,000 keys to one new reader.
func BenchmarkSnapshot(b *testing.B) {
	l, _ := benchLog(0, false)
	b.ReportAllocs()
	for b.Loop() {
		r := l.NewReader(nil)
		for _, ok := r.Next(256 << 10); ok; _, ok = r.Next(256 << 10) {
		}
		r.Close()
	}
}

// BenchmarkRefilter lets one reader examine 10,000 keys again.
func BenchmarkRefilter(b *testing.B) {
	_, all := benchLog(1, true)
	defer closeAll(all)
	b.ReportAllocs()
	for b.Loop() {
		all[0].Refilter()
		if _, ok := all[0].Next(256 << 10); ok {
			b.Fatal("nothing changed")
		}
	}
}

func benchLog(readers int, filtered bool) (*Log[*item], []*Reader[*item]) {
	l := NewLog(itemSize)
	for i := range 10_000 {
		key := fmt.Sprint("key-", i)
		l.Apply(Change[*item]{Key: key, Value: &item{key, strings.Repeat("x", 300)}})
	}
	var filter func(*item) bool
	if filtered {
		filter = func(i *item) bool { return i.key != "key-1" }
	}
	var all []*Reader[*item]
	for range readers {
		r := l.NewReader(filter)
		for _, ok := r.Next(256 << 10); ok; _, ok = r.Next(256 << 10) {
		}
		all = append(all, r)
	}
	return l, slices.Clip(all)
}

func closeAll(readers []*Reader[*item]) {
	for _, r := range readers {
		r.Close()
	}
}
