// Package budget divides the resources of an agent or a gateway among their users, so
// that a heavy user leaves enough to the others.
//
//	Shares   open connections, by link, account or pod
//	Pending  unauthenticated connections, by source
//	Rates    how often something may be done, by key
//	FairSemaphore  concurrent computations, by key
//
// What always holds:
//   - No key has more than half of Shares, or the limit given to NewWithLimit. A key with
//     less than its assured share gets more while there is room. A key with at least that
//     share gets more only while a quarter of the whole is free.
//   - Pending evicts the oldest connection, of its source or of all.
//   - FairSemaphore serves keys in turn, and skips waiters that have gone.
//   - Memory is bounded, even against strangers.
package budget

import "sync"

// Shares is one budget. Make it with New. It is safe for concurrent use.
type Shares struct {
	total, perKey int

	mu     sync.Mutex // guards what follows
	used   int
	counts map[string]int
}

// These are parts of the total. assuredShare is the share that each key can always use
// while there is room. sharedLimit is the total use at which a key that has its assured
// share gets no more. maxShare is the most that one key can have by default.
func assuredShare(total int) int { return total / 8 }
func sharedLimit(total int) int  { return total - total/4 }
func maxShare(total int) int     { return total / 2 }

// New returns a budget of total connections, of which a key may have half.
func New(total int) *Shares { return NewWithLimit(total, maxShare(total)) }

// NewWithLimit returns a budget of total connections, of which a key may have perKey. If
// that is less than the assured share, it replaces the assured share.
func NewWithLimit(total, perKey int) *Shares {
	return &Shares{total: total, perKey: perKey, counts: make(map[string]int)}
}

// Acquire counts one more for key. It returns false if that is too many. If it returns
// true, the caller must call Release once.
func (s *Shares) Acquire(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := s.counts[key]
	if has >= s.limit(has) {
		return false
	}
	s.used++
	s.counts[key] = has + 1
	return true
}

// Release counts one less for key.
func (s *Shares) Release(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if has := s.counts[key] - 1; has != 0 {
		s.counts[key] = has
	} else {
		delete(s.counts, key)
	}
}

// Count returns how many key has.
func (s *Shares) Count(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[key]
}

// Limit returns how many connections key may have now: those that it has, and those that
// it could still add.
func (s *Shares) Limit(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.limit(s.counts[key])
}

// limit is Limit for a key that has so many. s.mu is held.
func (s *Shares) limit(has int) int {
	most := has + max(0, sharedLimit(s.total)-s.used) // as long as a quarter stays free
	if has < assuredShare(s.total) {
		most = max(most, min(assuredShare(s.total), has+s.total-s.used))
	}
	return max(has, min(most, s.perKey))
}
