package mirror

import (
	"container/heap"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

// A lane is one of the queues of a Link. A lower lane is served first.
type lane int

const (
	// noLane: the mirror is not queued.
	noLane lane = iota
	// repairLane holds mirrors that exist, because callers may depend on them.
	repairLane
	// createLane holds mirrors that do not exist yet.
	createLane
	// deleteLane holds mirrors that are not wanted. They are served when no other mirror
	// of the Link is, so that a renamed mirror is made before the old one goes, and DNS
	// drops a named pod before its address goes.
	deleteLane
	// resyncLane holds mirrors that only the periodic resync has queued.
	resyncLane
	laneCount
)

// failuresToPause is how many writes of a Link must fail in a row, without an answer of
// the API server, before the Link pauses. Then one worker at a time tries again.
const failuresToPause = 3

// failed records a write of the Link that has not been answered. It reports whether the
// Link pauses from now on.
func (l *linkQueue) failed(now time.Time) bool {
	l.failures++
	if l.failures >= failuresToPause && !now.Before(l.pausedUntil) {
		l.pausedUntil = now.Add(l.pauses.Next())
	}
	return l.failures == failuresToPause
}

// answered records an answer of the API server. It reports whether the Link had paused.
func (l *linkQueue) answered() bool {
	paused := l.failures >= failuresToPause
	l.failures, l.pausedUntil = 0, time.Time{}
	l.pauses.Reset()
	return paused
}

// deleteWithin is how long other work of the Link may hold up a deletion.
const deleteWithin = 5 * time.Second

// queue decides which mirror is handled next. A mirror is in it once at most and is not
// handed out while it is being handled. Links take turns. client-go's workqueue does not
// fit, because whether a Link may be served depends on its running workers and budgets.
//
// A queue is not safe for concurrent use: Writer.mu guards it.
type queue struct {
	options Options
	total   *throttle.Limiter
	active  []*linkQueue // those with something queued, in the order of their turns
	running int
	delayed delayed
}

// linkQueue is the part of the queue that belongs to one Link.
type linkQueue struct {
	owner  *linkState
	lanes  [laneCount]fifo
	queued int // mirrors, in all lanes
	// adopt: the Link's objects are to be listed before anything else.
	adopt    bool
	isActive bool

	running  int // mirrors that are being handled
	deleting int // those of them that came from deleteLane

	writes, deletes *rate.Limiter
	last            lane // the lane served last
	// mass: so many mirrors are to be deleted that deletions are paced.
	mass bool

	// failures counts writes that have failed since the last answer of the API server.
	failures    int
	pauses      backoff.Backoff
	pausedUntil time.Time
}

// push queues m in a lane, or moves it there; the resync moves nothing. A mirror that is
// being handled is queued again afterwards.
func (q *queue) push(l *linkQueue, m *mirrorState, to lane, now time.Time) {
	if m.running {
		m.again = true
		if to != resyncLane {
			m.onlyResync = false
		}
		return
	}
	if m.lane == to || m.lane != noLane && to == resyncLane {
		return
	}
	if m.lane == noLane {
		l.queued++
		m.queuedAt = now
		m.onlyResync = true
	}
	if to != resyncLane {
		m.onlyResync = false
	}
	m.lane = to
	l.lanes[to].push(m)
	q.activate(l)
}

func (q *queue) activate(l *linkQueue) {
	if !l.isActive {
		l.isActive = true
		q.active = append(q.active, l)
	}
}

// remove takes m out of the queue.
func (q *queue) remove(l *linkQueue, m *mirrorState) {
	if m.lane != noLane {
		m.lane = noLane
		l.queued--
	}
	q.delayed.set(m, time.Time{})
}

// drop takes a whole Link out of the queue.
func (q *queue) drop(l *linkQueue) {
	q.active = slices.DeleteFunc(q.active, func(x *linkQueue) bool { return x == l })
	l.isActive, l.adopt = false, false
}

// pop returns the next Link to serve and its mirror, which is nil if the Link is to adopt
// what stands. If there is none, wait is when to ask again; 0: when something has
// happened.
func (q *queue) pop(now time.Time) (l *linkQueue, m *mirrorState, wait time.Duration) {
	if q.running >= q.options.Workers || len(q.active) == 0 {
		return nil, nil, 0
	}
	if wait := q.total.Wait(now); wait > 0 {
		return nil, nil, wait
	}
	for i := 0; i < len(q.active); i++ {
		l := q.active[i]
		if l.queued == 0 && !l.adopt {
			l.isActive = false
			q.active = slices.Delete(q.active, i, i+1)
			i--
			continue
		}
		ok, left := l.eligible(q.options, now)
		if !ok {
			wait = sooner(wait, left)
			continue
		}
		// The Link's next turn comes after all others.
		q.active = append(slices.Delete(q.active, i, i+1), l)
		return l, q.start(l, now), 0
	}
	return nil, nil, wait
}

// start hands out the next mirror of an eligible Link.
func (q *queue) start(l *linkQueue, now time.Time) *mirrorState {
	to, _ := l.next(now)
	q.running++
	l.running++
	if l.adopt {
		l.adopt = false
		return nil
	}
	m := l.lanes[to].pop(to)
	l.last = to
	l.queued--
	m.fromDelete = to == deleteLane
	if m.fromDelete {
		l.deleting++
	}
	if m.fromDelete && l.mass {
		l.deletes.ReserveN(now, 1)
	}
	m.lane, m.running = noLane, true
	q.delayed.set(m, time.Time{})
	return m
}

// done returns a worker to the queue. m is nil after an adoption.
func (q *queue) done(l *linkQueue, m *mirrorState) {
	q.running--
	l.running--
	if m == nil {
		return
	}
	m.running = false
	if m.fromDelete {
		l.deleting--
	}
}

// eligible reports whether a worker may serve the Link now, and otherwise when it may
// become so though nothing happens; 0: never.
func (l *linkQueue) eligible(o Options, now time.Time) (bool, time.Duration) {
	workers := o.WorkersPerLink
	if l.failures >= failuresToPause {
		workers = 1 // one write tries whether the API server is back
	}
	if l.running >= workers {
		return false, 0
	}
	if left := l.pausedUntil.Sub(now); left > 0 {
		return false, left
	}
	if left := throttle.Until(l.writes, now); left > 0 {
		return false, left
	}
	if l.adopt {
		return true, 0
	}
	to, left := l.next(now)
	return to != noLane, left
}

// next returns the lane to serve; noLane: none, and when there may be one, if that is
// known.
func (l *linkQueue) next(now time.Time) (lane, time.Duration) {
	var wait time.Duration
	if head := l.lanes[deleteLane].head(deleteLane); head != nil {
		overdue := now.Sub(head.queuedAt) >= deleteWithin
		other := l.has(repairLane) || l.has(createLane)
		idle := l.running == l.deleting && !other
		pace := time.Duration(0)
		if l.mass {
			pace = throttle.Until(l.deletes, now)
		}
		turn := idle || overdue && !(other && l.last == deleteLane) // others every second time
		if turn && pace == 0 {
			return deleteLane, 0
		}
		wait = pace
		if !overdue {
			wait = max(pace, deleteWithin-now.Sub(head.queuedAt))
		}
	}
	for _, to := range []lane{repairLane, createLane, resyncLane} {
		if l.has(to) {
			return to, 0
		}
	}
	return noLane, wait
}

func (l *linkQueue) has(to lane) bool { return l.lanes[to].head(to) != nil }

// fifo is one lane. A mirror that has left the lane stays in it until it comes to the
// head.
type fifo struct {
	items []*mirrorState
	first int
}

func (f *fifo) push(m *mirrorState) { f.items = append(f.items, m) }

// head returns the first mirror that is still in the lane; nil: there is none.
func (f *fifo) head(in lane) *mirrorState {
	for f.first < len(f.items) {
		if m := f.items[f.first]; m.lane == in {
			return m
		}
		f.items[f.first] = nil
		f.first++
	}
	f.items, f.first = f.items[:0], 0
	return nil
}

func (f *fifo) pop(in lane) *mirrorState {
	m := f.head(in)
	f.items[f.first] = nil
	f.first++
	if f.first > len(f.items)/2 && f.first > 64 { // keep the memory in proportion
		f.items = slices.Delete(f.items, 0, f.first)
		f.first = 0
	}
	return m
}

// delayed orders mirrors by the time at which they are to be looked at again.
type delayed []*mirrorState

// set gives m a time; the zero time: none.
func (d *delayed) set(m *mirrorState, due time.Time) {
	switch {
	case due.IsZero() && m.due.IsZero():
	case due.IsZero():
		heap.Remove(d, m.place)
		m.due = time.Time{}
	case m.due.IsZero():
		m.due = due
		heap.Push(d, m)
	default:
		m.due = due
		heap.Fix(d, m.place)
	}
}

// next returns the mirror that is due, if there is one, and otherwise when there will be;
// 0: there is none at all.
func (d *delayed) next(now time.Time) (*mirrorState, time.Duration) {
	if len(*d) == 0 {
		return nil, 0
	}
	m := (*d)[0]
	if left := m.due.Sub(now); left > 0 {
		return nil, left
	}
	d.set(m, time.Time{})
	return m, 0
}

func (d delayed) Len() int           { return len(d) }
func (d delayed) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d delayed) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

// Push implements heap.Interface.
func (d *delayed) Push(x any) {
	m := x.(*mirrorState)
	m.place = len(*d)
	*d = append(*d, m)
}

// Pop implements heap.Interface.
func (d *delayed) Pop() any {
	last := len(*d) - 1
	m := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return m
}
