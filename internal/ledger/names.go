package ledger

import (
	"cmp"
	"container/heap"
	"slices"
	"strings"
	"time"
)

// nameKey is namespace and name of a mirror.
type nameKey struct{ namespace, name string }

func (k nameKey) String() string { return k.namespace + "/" + k.name }

// sourceID names a source of any peer.
type sourceID struct {
	peer   *peer
	source Source
}

// place is a slot of a block.
type place struct {
	block *block
	slot  int
}

func (p place) pending() *record   { return p.block.pending[p.slot] }
func (p place) committed() *record { return p.block.committed[p.slot] }

// nameIndex holds the places of live entries by the mirror's name. Usually each has one.
type nameIndex map[nameKey][]place

func (x nameIndex) add(k nameKey, p place) { x[k] = append(x[k], p) }

func (x nameIndex) remove(k nameKey, p place) {
	if left := slices.DeleteFunc(x[k], func(o place) bool { return o == p }); len(left) > 0 {
		x[k] = left
	} else {
		delete(x, k)
	}
}

// uncommitted reports whether the pending entry lives and the stored one does not.
func (p place) uncommitted() bool {
	c, n := p.committed(), p.pending()
	return n.live() && (!c.live() || c.source() != n.source())
}

// compareAge orders live entries by Since, then trust domain, source and place. What is
// not committed yet is younger than all that is.
func compareAge(x, y place, of func(place) *record) int {
	r, s := of(x), of(y)
	newX, newY := r == x.pending() && x.uncommitted(), s == y.pending() && y.uncommitted()
	switch {
	case newX && !newY:
		return 1
	case newY && !newX:
		return -1
	}
	return cmp.Or(cmp.Compare(r.Since, s.Since), strings.Compare(x.block.domain(), y.block.domain()),
		r.source().compare(s.source()), cmp.Compare(x.block.number, y.block.number), cmp.Compare(x.slot,
			y.slot))
}

// oldest returns the place whose entry is the oldest.
func oldest(places []place, of func(place) *record) place {
	return slices.MinFunc(places, func(x, y place) int { return compareAge(x, y, of) })
}

// deadlines are sources in the order of a time at which they must be planned again.
type deadlines struct {
	heap  deadlineHeap
	limit int
}

type deadline struct {
	at time.Time
	sourceID
}

// add records that id is to be planned at a time. Several times of one source do no harm;
// those whose entry is not absent any more are forgotten from time to time.
func (d *deadlines) add(at time.Time, id sourceID) {
	heap.Push(&d.heap, deadline{at, id})
	if len(d.heap) > max(d.limit, minHeap) {
		d.heap = slices.DeleteFunc(d.heap,
			func(x deadline) bool { return !x.peer.absentUntil(x.source).Equal(x.at) })
		heap.Init(&d.heap)
		d.limit = 2 * len(d.heap)
	}
}

// minHeap is the size from which on heaps are cleared of what is not valid any more.
const minHeap = 1024

func (d *deadlines) first() (time.Time, bool) {
	if len(d.heap) == 0 {
		return time.Time{}, false
	}
	return d.heap[0].at, true
}

// due removes and returns a source whose time has come.
func (d *deadlines) due(now time.Time) (sourceID, bool) {
	if t, ok := d.first(); !ok || now.Before(t) {
		return sourceID{}, false
	}
	return heap.Pop(&d.heap).(deadline).sourceID, true
}

type deadlineHeap []deadline

func (h deadlineHeap) Len() int           { return len(h) }
func (h deadlineHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h deadlineHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *deadlineHeap) Push(x any)        { *h = append(*h, x.(deadline)) }
func (h *deadlineHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// released are slots of one peer in the order in which they may be reused.
type released struct {
	heap  releasedHeap
	limit int
}

type releasedSlot struct {
	at int64
	place
}

func (q *released) add(at int64, p place) {
	heap.Push(&q.heap, releasedSlot{at, p})
	if len(q.heap) > max(q.limit, minHeap) {
		q.heap = slices.DeleteFunc(q.heap, func(x releasedSlot) bool { return !x.valid() })
		heap.Init(&q.heap)
		q.limit = 2 * len(q.heap)
	}
}

// valid reports whether the slot still has the entry that was released then.
func (r releasedSlot) valid() bool {
	e := r.pending()
	return e != nil && e.Released == r.at && r.block.state[r.slot] == reserved
}

// first is when the first slot may be reused.
func (q *released) first() (time.Time, bool) {
	for len(q.heap) > 0 {
		if q.heap[0].valid() {
			return time.Unix(q.heap[0].at, 0).Add(ReuseDelay), true
		}
		heap.Pop(&q.heap) // it lives again or belongs to another source
	}
	return time.Time{}, false
}

// pop removes the slot that first spoke of.
func (q *released) pop() releasedSlot { return heap.Pop(&q.heap).(releasedSlot) }

type releasedHeap []releasedSlot

func (h releasedHeap) Len() int { return len(h) }
func (h releasedHeap) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[i].at, h[j].at), cmp.Compare(h[i].block.number, h[j].block.number),
		cmp.Compare(h[i].slot, h[j].slot)) < 0
}
func (h releasedHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *releasedHeap) Push(x any)   { *h = append(*h, x.(releasedSlot)) }
func (h *releasedHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
