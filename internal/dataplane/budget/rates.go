package budget

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets bounds the memory of one kind of rate. A bucket that is not used for some
// seconds is full, so forgetting it changes nothing.
const maxBuckets = 16_384

// Rates bound how fast each key may do something, by one token bucket for each. It is
// safe for concurrent use.
type Rates[K comparable] struct {
	limit rate.Limit
	burst int

	mu      sync.Mutex // guards buckets
	buckets *Map[K, *rate.Limiter]
}

// NewRates returns token buckets with a rate per second and a burst.
func NewRates[K comparable](perSecond rate.Limit, burst int) *Rates[K] {
	return &Rates[K]{
		limit:   perSecond,
		burst:   burst,
		buckets: NewMap[K, *rate.Limiter](maxBuckets),
	}
}

// Allow takes a token of key. It returns false if there is none.
func (r *Rates[K]) Allow(key K) bool { return r.bucket(key).AllowN(time.Now(), 1) }

// Refund gives a token back that was taken.
func (r *Rates[K]) Refund(key K) { r.bucket(key).AllowN(time.Now(), -1) }

func (r *Rates[K]) bucket(key K) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.buckets.Get(key)
	if !ok {
		b = rate.NewLimiter(r.limit, r.burst)
	}
	r.buckets.Put(key, b)
	return b
}
