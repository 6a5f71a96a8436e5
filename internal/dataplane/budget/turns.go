package budget

import (
	"container/list"
	"context"
	"sync"
)

// Turns limits how many tasks compute at the same time. It serves the keys of waiting
// tasks in turn, so that a key with many tasks does not delay the others. Make it with
// NewTurns. It is safe for concurrent use.
type Turns struct {
	mu     sync.Mutex // guards what follows
	all    int
	free   int // less than 0 after Resize, until enough were given back
	queues map[string]*queue
	order  list.List // of *queue, that of the next turn first
}

// queue holds those of one key that wait, oldest first.
type queue struct {
	key     string
	waiting list.List // of *waiter
	place   *list.Element
}

type waiter struct {
	alive func() bool
	done  chan bool // whether it has a turn; buffered
}

// NewTurns returns n turns.
func NewTurns(n int) *Turns { return &Turns{all: n, free: n, queues: make(map[string]*queue)} }

// Resize changes the number of turns. It takes none back from those who have one.
func (t *Turns) Resize(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free += n - t.all
	t.all = n
	t.serve()
}

// Take waits for a turn of key, which Give must give back. It returns false if ctx ended
// first, or if alive, asked when the turn comes, says that nobody needs it any more. alive
// must not block.
func (t *Turns) Take(ctx context.Context, key string, alive func() bool) bool {
	w, place := t.enter(key, alive)
	if w == nil {
		return true
	}
	select {
	case has := <-w.done:
		return has
	case <-ctx.Done():
	}
	if t.leave(key, place) {
		return false
	}
	if <-w.done { // the turn has come in that moment
		t.Give()
	}
	return false
}

// enter takes a free turn, or else a place in the queue of key.
func (t *Turns) enter(key string, alive func() bool) (*waiter, *list.Element) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free > 0 {
		t.free--
		return nil, nil
	}
	q := t.queues[key]
	if q == nil {
		q = &queue{key: key}
		q.place = t.order.PushBack(q)
		t.queues[key] = q
	}
	w := &waiter{alive: alive, done: make(chan bool, 1)}
	return w, q.waiting.PushBack(w)
}

// leave gives a place in a queue up. It returns false if the place has been served.
func (t *Turns) leave(key string, place *list.Element) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := place.Value.(*waiter)
	if w.alive == nil {
		return false
	}
	t.remove(t.queues[key], place)
	return true
}

// Give gives a turn back.
func (t *Turns) Give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	t.serve()
}

// Waiting returns how many tasks wait for a turn.
func (t *Turns) Waiting() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range t.queues {
		n += q.waiting.Len()
	}
	return n
}

// serve gives free turns to those who wait, key by key.
func (t *Turns) serve() {
	for t.free > 0 && t.order.Len() > 0 {
		front := t.order.Front()
		q := front.Value.(*queue)
		t.order.MoveToBack(front)
		place := q.waiting.Front()
		w := place.Value.(*waiter)
		has := w.alive()
		t.remove(q, place)
		if has {
			t.free--
		}
		w.done <- has
	}
}

// remove takes a place out, and marks it as served.
func (t *Turns) remove(q *queue, place *list.Element) {
	q.waiting.Remove(place)
	place.Value.(*waiter).alive = nil
	if q.waiting.Len() == 0 {
		t.order.Remove(q.place)
		delete(t.queues, q.key)
	}
}
