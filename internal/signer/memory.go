package signer

import (
	"crypto/sha256"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// reviewLife is how long a review is believed: for so long a token that the
	// API server has since revoked still counts, if its pod is still there.
	reviewLife = time.Minute
	maxReviews = 4096
	maxNodes   = 8192
)

type tokenKey [sha256.Size]byte

func keyOf(token string) tokenKey { return sha256.Sum256([]byte(token)) }

// cache remembers reviews that named a caller, by a hash of the token. Refused
// tokens are not in it, so that strangers cannot crowd it.
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
		c.shrink(now)
	}
	c.entries[key] = review{caller, now.Add(reviewLife)}
}

// shrink drops what has expired, or if nothing has, any one: who asked is
// reviewed again.
func (c *cache) shrink(now time.Time) {
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

// rates bounds how often each node may ask.
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
			r.forget()
		}
		limiter = rate.NewLimiter(r.limit, r.burst)
		r.nodes[node] = limiter
	}
	return limiter.Allow()
}

// forget drops the nodes that a new limiter would treat alike.
func (r *rates) forget() {
	for node, limiter := range r.nodes {
		if limiter.Tokens() >= float64(r.burst) {
			delete(r.nodes, node)
		}
	}
}
