package signer

import (
	"crypto/sha256"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// reviewLifetime is how long a review is cached. A token that the API server has
	// revoked stays valid for that time, if its pod still exists.
	reviewLifetime = time.Minute
	maxReviews     = 4096
	maxNodes       = 8192
)

type tokenKey [sha256.Size]byte

func keyOf(token string) tokenKey { return sha256.Sum256([]byte(token)) }

// cache holds successful reviews by a hash of the token. It does not hold failed reviews,
// so that strangers cannot fill it.
type cache struct {
	mu      sync.Mutex // guards entries
	entries map[tokenKey]review
}

type review struct {
	caller  Caller
	expires time.Time
}

func newCache() *cache { return &cache{entries: make(map[tokenKey]review)} }

func (c *cache) get(key tokenKey) (Caller, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.entries[key]
	if !ok {
		return Caller{}, false
	}
	if !time.Now().Before(r.expires) {
		delete(c.entries, key)
		return Caller{}, false
	}
	return r.caller, true
}

func (c *cache) put(key tokenKey, caller Caller) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxReviews {
		c.evict(now)
	}
	c.entries[key] = review{caller, now.Add(reviewLifetime)}
}

// evict makes space for one entry. It removes expired entries and, if there are none, an
// arbitrary entry. An evicted token is reviewed again.
func (c *cache) evict(now time.Time) {
	for key, r := range c.entries {
		if !now.Before(r.expires) {
			delete(c.entries, key)
		}
	}
	for key := range c.entries {
		if len(c.entries) < maxReviews {
			return
		}
		delete(c.entries, key)
	}
}

// rates limits the rate of requests per node.
type rates struct {
	limit rate.Limit
	burst int

	mu    sync.Mutex // guards nodes
	nodes map[string]*rate.Limiter
}

func newRates(perSecond float64, burst int) *rates {
	return &rates{limit: rate.Limit(perSecond), burst: burst, nodes: make(map[string]*rate.Limiter)}
}

func (r *rates) allow(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	limiter, ok := r.nodes[node]
	if !ok {
		if len(r.nodes) >= maxNodes {
			r.evictIdle()
		}
		limiter = rate.NewLimiter(r.limit, r.burst)
		r.nodes[node] = limiter
	}
	return limiter.Allow()
}

// evictIdle removes limiters that have their full burst, because a new limiter is equal
// to them.
func (r *rates) evictIdle() {
	for node, limiter := range r.nodes {
		if limiter.Tokens() >= float64(r.burst) {
			delete(r.nodes, node)
		}
	}
}
