package budget

import (
	"container/list"
	"context"
	"sync"
)

// FairSemaphore limits how many tasks compute at the same time. It serves the keys of
// waiting tasks in turn, so that a key with many tasks does not delay the others. Make
// it with NewFairSemaphore. It is safe for concurrent use.
type FairSemaphore struct {
	mu     sync.Mutex // guards what follows
	all    int
	free   int // less than 0 after Resize, until enough were given back
	queues map[string]*queue
	order  list.List // of *queue, the next one first
}

// queue holds the waiters of one key, oldest first.
type queue struct {
	key     string
	waiting list.List // of *waiter
	element *list.Element
}

type waiter struct {
	alive func() bool
	done  chan bool // whether it has a slot; buffered
}

// NewFairSemaphore returns a semaphore with n slots.
func NewFairSemaphore(n int) *FairSemaphore {
	return &FairSemaphore{all: n, free: n, queues: make(map[string]*queue)}
}

// Resize changes the number of turns. It takes none back from those who have one.
func (s *FairSemaphore) Resize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free += n - s.all
	s.all = n
	s.serve()
}

// Acquire waits for a slot. The caller must then call Release. It returns false if ctx
// ended first, or if alive returned false when a slot was free. alive must not block.
func (s *FairSemaphore) Acquire(ctx context.Context, key string, alive func() bool) bool {
	w, element := s.acquireOrQueue(key, alive)
	if w == nil {
		return true
	}
	select {
	case has := <-w.done:
		return has
	case <-ctx.Done():
	}
	if s.cancel(key, element) {
		return false
	}
	if <-w.done { // it was served concurrently
		s.Release()
	}
	return false
}

// acquireOrQueue takes a free slot, or else adds a waiter to the queue of key.
func (s *FairSemaphore) acquireOrQueue(key string, alive func() bool) (*waiter, *list.Element) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free > 0 {
		s.free--
		return nil, nil
	}
	q := s.queues[key]
	if q == nil {
		q = &queue{key: key}
		q.element = s.order.PushBack(q)
		s.queues[key] = q
	}
	w := &waiter{alive: alive, done: make(chan bool, 1)}
	return w, q.waiting.PushBack(w)
}

// cancel removes a waiter. It returns false if the waiter was served already.
func (s *FairSemaphore) cancel(key string, element *list.Element) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := element.Value.(*waiter)
	if w.alive == nil {
		return false
	}
	s.remove(s.queues[key], element)
	return true
}

// Release passes the slot to the next live waiter, or frees it.
func (s *FairSemaphore) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	s.serve()
}

// Waiting returns how many tasks wait for a turn.
func (s *FairSemaphore) Waiting() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		n += q.waiting.Len()
	}
	return n
}

// serve gives free turns to those who wait, key by key.
func (s *FairSemaphore) serve() {
	for s.free > 0 && s.order.Len() > 0 {
		front := s.order.Front()
		q := front.Value.(*queue)
		s.order.MoveToBack(front)
		element := q.waiting.Front()
		w := element.Value.(*waiter)
		has := w.alive()
		s.remove(q, element)
		if has {
			s.free--
		}
		w.done <- has
	}
}

// remove removes a waiter, and marks it as served.
func (s *FairSemaphore) remove(q *queue, element *list.Element) {
	q.waiting.Remove(element)
	element.Value.(*waiter).alive = nil
	if q.waiting.Len() == 0 {
		s.order.Remove(q.element)
		delete(s.queues, q.key)
	}
}
