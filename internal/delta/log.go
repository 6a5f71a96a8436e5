// Package delta replicates a set of keyed values from one writer to many readers.
//
//	writer ─Apply▶ Log ─▶ Reader ─Next▶ Batch ──(wire)──▶ Batch ─Apply▶ Receiver ─Take▶ Delta
//	               one copy       bounded                 bounded            only whole ones
//
// The node stream and the catalog stream are built on it. It knows no protocol,
// socket or clock.
//
// What always holds:
//   - A reader costs the log one bit per key and a position, however far it is
//     behind. The log keeps one copy of the values for all readers.
//   - A batch is Whole if and only if a receiver that has applied it holds exactly
//     what the log holds for this reader at one moment.
//   - A batch never names a key that the reader was not sent before, except as an
//     upsert that passed the reader's filter.
//   - A change costs each reader time in proportion to the change and not to the log.
//   - A Receiver holds no more than its Limits allow.
package delta

import (
	"cmp"
	"slices"
	"sync"
)

// overhead is the most that protobuf framing adds to one entry of a message.
const overhead = 8

// Change is one key's new value, or its deletion.
type Change[V any] struct {
	Key     string
	Value   V
	Deleted bool
}

// Log holds the newest value of each key, in the order of their last changes. Make
// it with NewLog. It is safe for concurrent use.
//
// The order of changes is kept as a list of positions. A key that changes again is
// appended, and its older position is stale. Compaction drops stale positions, and
// tombstones that no reader needs any more.
type Log[V any] struct {
	size func(V) int

	mu         sync.RWMutex // guards all below, and the fields of readers that say so
	slots      map[string]uint32
	entries    []entry[V]
	free       []uint32   // unused entries
	order      []position // rising seq; positions whose entry has another seq are stale
	next       uint64     // seq of the next change; the first is 1
	live       int
	tombstones int
	compactAt  int // length of order at which it is compacted
	wake       chan struct{}
	readers    map[*Reader[V]]struct{}
}

// entry is the newest state of one key.
type entry[V any] struct {
	key     string
	value   V
	seq     uint64 // of its last change; 0: unused
	deleted bool   // a tombstone
}

// position says that the entry in slot changed as the seq-th change.
type position struct {
	seq  uint64
	slot uint32
}

const (
	minCompact    = 64   // below this length the order is not worth compacting
	minTombstones = 1024 // tombstones kept for slow readers, if the log has fewer keys
)

// NewLog returns an empty Log. size returns how many bytes a value takes in a message;
// it must be safe for concurrent use.
func NewLog[V any](size func(V) int) *Log[V] {
	return &Log[V]{
		size:      size,
		slots:     map[string]uint32{},
		next:      1,
		compactAt: minCompact,
		wake:      make(chan struct{}),
		readers:   map[*Reader[V]]struct{}{},
	}
}

// Apply makes changes, in order, and wakes all readers. A reader sees either none or
// all of them in a Whole batch. Each upsert counts as a change, so callers leave out
// values that are equal to what Get returns. Deleting an absent key does nothing.
// Values must not be modified afterwards.
func (l *Log[V]) Apply(changes ...Change[V]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.next
	for i := range changes {
		if c := &changes[i]; c.Deleted {
			l.delete(c.Key)
		} else {
			l.put(c.Key, c.Value)
		}
	}
	if l.next == before {
		return
	}
	if len(l.order) >= l.compactAt {
		l.compact()
	}
	l.wakeAll()
}

func (l *Log[V]) put(key string, value V) {
	slot, known := l.slots[key]
	switch {
	case known:
		if l.entries[slot].deleted {
			l.tombstones--
			l.live++
		}
	case len(l.free) > 0:
		slot = l.free[len(l.free)-1]
		l.free = l.free[:len(l.free)-1]
		l.slots[key] = slot
		l.live++
	default:
		slot = uint32(len(l.entries))
		l.entries = append(l.entries, entry[V]{})
		l.slots[key] = slot
		l.live++
	}
	l.entries[slot] = entry[V]{key: key, value: value, seq: l.next}
	l.append(slot)
}

func (l *Log[V]) delete(key string) {
	slot, known := l.slots[key]
	if !known || l.entries[slot].deleted {
		return
	}
	l.live--
	l.tombstones++
	l.entries[slot] = entry[V]{key: key, seq: l.next, deleted: true}
	l.append(slot)
}

// append records that the entry in slot changed.
func (l *Log[V]) append(slot uint32) {
	l.order = append(l.order, position{seq: l.next, slot: slot})
	l.next++
}

// compact drops stale positions and the tombstones that all readers have passed. If
// more tombstones are left than the bound, it drops the oldest of them too and resets
// the readers that needed one.
func (l *Log[V]) compact() {
	passed := l.next
	for r := range l.readers {
		passed = min(passed, r.cursor)
	}
	needed := 0
	l.filterOrder(func(p position) bool {
		if l.entries[p.slot].deleted && p.seq >= passed {
			needed++
		}
		return !l.entries[p.slot].deleted || p.seq >= passed
	})
	if bound := max(minTombstones, l.live); needed > bound {
		excess := needed - bound/2
		l.filterOrder(func(p position) bool {
			if !l.entries[p.slot].deleted || excess == 0 {
				return true
			}
			excess--
			for r := range l.readers {
				if r.cursor <= p.seq && r.sent.has(p.slot) {
					r.reset = true
				}
			}
			return false
		})
	}
	l.compactAt = max(minCompact, 2*len(l.order))
}

// filterOrder drops stale positions and those that keep refuses, and frees the entries
// of the latter.
func (l *Log[V]) filterOrder(keep func(position) bool) {
	kept := l.order[:0]
	for _, p := range l.order {
		switch e := &l.entries[p.slot]; {
		case e.seq != p.seq:
		case keep(p):
			kept = append(kept, p)
		default:
			if e.deleted {
				l.tombstones--
			}
			delete(l.slots, e.key)
			*e = entry[V]{}
			l.free = append(l.free, p.slot)
		}
	}
	l.order = kept
}

// wakeAll closes the channel that readers wait on. The caller holds the lock.
func (l *Log[V]) wakeAll() {
	close(l.wake)
	l.wake = make(chan struct{})
}

// Get returns the newest value of key, and whether there is one.
func (l *Log[V]) Get(key string) (value V, ok bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	slot, known := l.slots[key]
	if !known || l.entries[slot].deleted {
		return value, false
	}
	return l.entries[slot].value, true
}

// Len returns the number of keys.
func (l *Log[V]) Len() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.live
}

// Batch is one message's worth of changes for one reader.
type Batch[V any] struct {
	// Upserts are values that are new to the receiver or changed. Their keys and
	// those in Removed are distinct.
	Upserts []V
	// Removed are keys that the receiver forgets. It was sent each of them before.
	Removed []string
	// Whole says that the receiver now holds exactly what the log holds for it.
	Whole bool
	// Reset says that the receiver forgets all it holds before it applies the rest.
	Reset bool
}

// Reader reads a Log from the beginning, through a filter. Its first batches are a
// snapshot, and all later ones are what changed since. Make it with Log.NewReader and
// end it with Close. Refilter may be called at any time; the other methods are for one
// goroutine at a time.
type Reader[V any] struct {
	log    *Log[V]
	filter func(V) bool

	// The log writes the first two under its write lock. All are read and written by
	// the reader's goroutine under at least the read lock.
	reset    bool // a tombstone that the reader needed is gone
	refilter bool // examine again what was passed

	// sent has the slots whose values the receiver holds. For entries before cursor,
	// it holds the newest value if it holds any.
	sent   bitset
	cursor uint64
	// scan is the seq to look at next. It is before cursor while values that were
	// passed are examined again.
	scan  uint64
	whole bool // the last batch was
}

// NewReader returns a Reader of the values for which filter returns true; nil means
// all. The filter is called with a lock held, so it must be fast and must not use the
// Log. It must be safe for concurrent use. Its answer for a value may change only
// together with a call of Refilter.
func (l *Log[V]) NewReader(filter func(V) bool) *Reader[V] {
	r := &Reader[V]{log: l, filter: filter}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers[r] = struct{}{}
	return r
}

// Close releases the reader. It may be called more than once.
func (r *Reader[V]) Close() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	delete(r.log.readers, r)
}

// Refilter says that the filter may answer differently than before. The reader then
// examines all values again, and sends only the differences.
func (r *Reader[V]) Refilter() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.refilter = true
	r.log.wakeAll()
}

// Changed returns a channel that is closed once Next may return more.
func (r *Reader[V]) Changed() <-chan struct{} {
	r.log.mu.RLock()
	defer r.log.mu.RUnlock()
	if r.pending() {
		return closed
	}
	return r.log.wake
}

// closed is always ready to be received from.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// pending reports whether Next has anything to examine or to say.
func (r *Reader[V]) pending() bool {
	return r.reset || r.refilter || r.scan < r.log.next || !r.whole
}

// Whole reports whether the last batch made the receiver's copy whole.
func (r *Reader[V]) Whole() bool { return r.whole }

// Next returns the next batch, of at most limit bytes of values and keys; a single
// value above limit gets a batch of its own. It returns false when there is nothing to
// send. The first batch of an empty log is an empty Whole one.
func (r *Reader[V]) Next(limit int) (Batch[V], bool) {
	l := r.log
	l.mu.RLock()
	defer l.mu.RUnlock()
	if !r.pending() {
		return Batch[V]{}, false
	}
	var b Batch[V]
	if r.reset {
		b.Reset = true
		r.reset, r.refilter = false, false
		r.sent, r.cursor, r.scan = nil, 0, 0
	}
	if r.refilter {
		r.refilter = false
		r.scan = 0
	}
	complete := r.fill(&b, limit)
	if complete {
		r.scan, r.cursor = l.next, l.next
	}
	empty := len(b.Upserts) == 0 && len(b.Removed) == 0 && !b.Reset
	if empty && complete && r.whole {
		return Batch[V]{}, false
	}
	b.Whole, r.whole = complete, complete
	return b, true
}

// fill adds to b what the receiver lacks, in the order of changes, and advances the
// reader past it. It returns whether it came to the end of the log.
func (r *Reader[V]) fill(b *Batch[V], limit int) bool {
	l := r.log
	room := limit
	fits := func(size int) bool {
		first := room == limit
		room -= size + overhead
		return first || room >= 0
	}
	start, _ := slices.BinarySearchFunc(l.order, r.scan, func(p position, seq uint64) int {
		return cmp.Compare(p.seq, seq)
	})
	for _, p := range l.order[start:] {
		e := &l.entries[p.slot]
		if e.seq != p.seq {
			continue // changed again later
		}
		held := r.sent.has(p.slot)
		switch wanted := !e.deleted && (r.filter == nil || r.filter(e.value)); {
		case wanted && held && p.seq < r.cursor: // holds this value already
		case wanted:
			if !fits(l.size(e.value) + len(e.key)) {
				return false
			}
			b.Upserts = append(b.Upserts, e.value)
			r.sent.add(p.slot)
		case held:
			if !fits(len(e.key)) {
				return false
			}
			b.Removed = append(b.Removed, e.key)
			r.sent.remove(p.slot)
		}
		r.scan = p.seq + 1
		r.cursor = max(r.cursor, r.scan)
	}
	return true
}

// bitset is a set of small numbers. The zero value is empty.
type bitset []uint64

func (s bitset) has(n uint32) bool {
	i := int(n / 64)
	return i < len(s) && s[i]&(1<<(n%64)) != 0
}

func (s *bitset) add(n uint32) {
	i := int(n / 64)
	if i >= len(*s) {
		*s = append(*s, make([]uint64, i+1-len(*s))...)
	}
	(*s)[i] |= 1 << (n % 64)
}

func (s bitset) remove(n uint32) { s[n/64] &^= 1 << (n % 64) }
