// Package budget divides what an agent or a gateway has among those who use it, so that one
// who takes much leaves enough to the others.
//
//	Shares   open connections, by link, account or pod
//	Pending  connections that have not proven anything yet, by source
//	Rates    how often something may be done, by key
//	Turns    who may compute now, by key
//
// What always holds:
//   - Of Shares no key has more than half. A key with less than its assured share gets in
//     while there is room at all. One with more gets in only while a quarter of the whole
//     is free.
//   - In Pending the oldest makes room, of its source or of all.
//   - Turns go from key to key, and never to one who has gone.
//   - Memory is bounded, whatever strangers do.
package budget

import "sync"

// Shares is one budget. Make it with New. It is safe for concurrent use.
type Shares struct {
	whole int

	mu   sync.Mutex // guards what follows
	used int
	by   map[string]int
}

// These are parts of the whole. assured is the share that each key can always use while
// there is room. shared is the total use at which a key that has its assured share gets
// no more. highest is the most that one key can have.
func assured(whole int) int { return whole / 8 }
func shared(whole int) int  { return whole - whole/4 }
func highest(whole int) int { return whole / 2 }

// New returns a budget of whole connections.
func New(whole int) *Shares { return &Shares{whole: whole, by: make(map[string]int)} }

// Enter counts one more in for key, or returns false if that is too many. Each one that
// was counted in must Leave, once.
func (s *Shares) Enter(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by[key] >= s.limit(key) {
		return false
	}
	s.used++
	s.by[key]++
	return true
}

// Leave counts one out.
func (s *Shares) Leave(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.by[key]--; s.by[key] == 0 {
		delete(s.by, key)
	}
}

// Count is how many key has.
func (s *Shares) Count(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[key]
}

// Limit returns how many connections key may have now: those that it has, and those that
// it could still add.
func (s *Shares) Limit(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit(key)
}

func (s *Shares) limit(key string) int {
	has := s.by[key]
	most := has + max(0, shared(s.whole)-s.used) // as long as a quarter stays free
	if has < assured(s.whole) {
		most = max(most, min(assured(s.whole), has+s.whole-s.used))
	}
	return max(has, min(most, highest(s.whole)))
}
