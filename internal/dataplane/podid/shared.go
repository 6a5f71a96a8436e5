package podid

import (
	"net/netip"
	"sync"
)

// sharedCalls calls a function for a key, and gives one result to all callers that began
// to wait before that call started. So at most one call for a key is under way, and no
// result is older than the question. golang.org/x/sync/singleflight differs in the
// latter: it also gives a result to callers that came while the call was under way.
//
// Make it with newSharedCalls. It is safe for concurrent use.
type sharedCalls[K comparable, V any] struct {
	do func(K) V

	mu     sync.Mutex // guards queues and what is in them
	queues map[K]*queue[V]
}

// A queue is the callers for one key.
type queue[V any] struct {
	turn  chan struct{} // holds a value while a call is under way
	next  *sharedCall[V]
	users int
}

// A sharedCall is a call that has not started yet or is under way.
type sharedCall[V any] struct {
	done   chan struct{} // closed when result is set
	result V
}

func newSharedCalls[K comparable, V any](do func(K) V) *sharedCalls[K, V] {
	return &sharedCalls[K, V]{do: do, queues: make(map[K]*queue[V])}
}

// get returns the result of a call that starts after get was called. It blocks until
// then.
func (s *sharedCalls[K, V]) get(key K) V {
	q, call, first := s.join(key)
	defer s.leave(key, q)
	if first {
		q.turn <- struct{}{} // waits for the call that is under way
		s.close(q)
		call.result = s.do(key)
		close(call.done)
		<-q.turn
	}
	<-call.done
	return call.result
}

// join returns the next call for key. The caller that is first must make it.
func (s *sharedCalls[K, V]) join(key K) (q *queue[V], call *sharedCall[V], first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q = s.queues[key]
	if q == nil {
		q = &queue[V]{turn: make(chan struct{}, 1)}
		s.queues[key] = q
	}
	q.users++
	if first = q.next == nil; first {
		q.next = &sharedCall[V]{done: make(chan struct{})}
	}
	return q, q.next, first
}

// close lets no more callers join the call that is about to start.
func (s *sharedCalls[K, V]) close(q *queue[V]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q.next = nil
}

func (s *sharedCalls[K, V]) leave(key K, q *queue[V]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(s.queues, key)
	}
}

// maxWaiters is how many callers from one address may wait for their identification at
// the same time.
const maxWaiters = 64

// waiters counts callers by address. The zero value is ready.
type waiters struct {
	mu     sync.Mutex // guards byAddr
	byAddr map[netip.Addr]int
}

// enter counts a caller in, or returns false if maxWaiters are counted already. If it
// returns true, the caller must call leave once.
func (w *waiters) enter(addr netip.Addr) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byAddr[addr] >= maxWaiters {
		return false
	}
	if w.byAddr == nil {
		w.byAddr = make(map[netip.Addr]int)
	}
	w.byAddr[addr]++
	return true
}

func (w *waiters) leave(addr netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byAddr[addr]--; w.byAddr[addr] == 0 {
		delete(w.byAddr, addr)
	}
}
