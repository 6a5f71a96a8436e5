package retry

import (
	"sync"
	"time"
)

// docs/design/0025-balancing.md has the reasons for these.
const (
	budgetSeconds    = 10  // length of the window
	budgetShare      = 0.2 // of the requests in the window
	retriesPerSecond = 10  // that are allowed with few requests
)

// Budget limits the retries of one key: in any 10 s they are at most 20 % of the requests
// and 100 more. The zero value is ready for use. It is safe for concurrent use.
type Budget struct {
	mu      sync.Mutex // guards what follows
	seconds [budgetSeconds]struct{ requests, retries int }
	// current is the Unix time of the newest second.
	current           int64
	requests, retries int // sums over seconds
}

// Request counts a request. Retries are not requests.
func (b *Budget) Request(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	b.seconds[b.current%budgetSeconds].requests++
	b.requests++
}

// Withdraw counts a retry, and returns whether the budget allows it. It counts only those
// that it allows.
func (b *Budget) Withdraw(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance(now)
	if float64(b.retries+1) > budgetShare*float64(b.requests)+retriesPerSecond*budgetSeconds {
		return false
	}
	b.seconds[b.current%budgetSeconds].retries++
	b.retries++
	return true
}

// advance clears the seconds that have left the window. A clock that goes backward
// changes nothing.
func (b *Budget) advance(now time.Time) {
	second := now.Unix()
	if second <= b.current {
		return
	}
	for s := max(b.current+1, second-budgetSeconds+1); s <= second; s++ {
		slot := &b.seconds[s%budgetSeconds]
		b.requests -= slot.requests
		b.retries -= slot.retries
		*slot = struct{ requests, retries int }{}
	}
	b.current = second
}
