package gateway

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets bounds the memory of one kind of rate. A bucket that is not used for some
// seconds is full, so forgetting it changes nothing.
const maxBuckets = 16_384

// rates bound how fast each key may do something, by one token bucket for each. It is
// safe for concurrent use.
type rates[K comparable] struct {
	limit rate.Limit
	burst int

	mu      sync.Mutex // guards buckets
	buckets *boundedMap[K, *rate.Limiter]
}

func newRates[K comparable](perSecond rate.Limit, burst int) *rates[K] {
	return &rates[K]{
		limit:   perSecond,
		burst:   burst,
		buckets: newBoundedMap[K, *rate.Limiter](maxBuckets),
	}
}

// take takes a token of key. It returns false if there is none.
func (r *rates[K]) take(key K) bool { return r.bucket(key).AllowN(time.Now(), 1) }

// refund gives a token back that was taken.
func (r *rates[K]) refund(key K) { r.bucket(key).AllowN(time.Now(), -1) }

func (r *rates[K]) bucket(key K) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.buckets.get(key)
	if !ok {
		b = rate.NewLimiter(r.limit, r.burst)
	}
	r.buckets.put(key, b)
	return b
}
