// Package throttle limits the rate of one class of requests to the API server, and lowers
// the rate when the API server answers 429 (Too Many Requests).
//
//	caller ─Wait?─▶ Limiter ─▶ Take ─▶ client ─▶ Limiter.RoundTripper ─▶ API server
//	                   ▲                                  │ 429
//	                   └──── halve the rate ──────────────┘
//
// What always holds:
//   - The rate is never above the configured one and never below a 64th of it.
//   - A 429 halves the rate at most once per second, because the answers to requests that
//     were already in flight carry no new information.
//   - Without further 429 answers the rate grows by a twentieth of the configured rate per
//     second: additive increase, multiplicative decrease.
package throttle

import (
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// minFraction is the smallest part of the configured rate that remains.
	minFraction = 64
	// recoverySteps is the number of seconds that it takes to recover from zero.
	recoverySteps = 20
	// cutInterval is the shortest time between two halvings.
	cutInterval = time.Second
)

// Limiter is a token bucket whose rate follows the API server's answers. It is safe for
// concurrent use. Create it with New.
type Limiter struct {
	configured rate.Limit
	onOverload func()

	mu      sync.Mutex
	bucket  *rate.Limiter // guarded by mu for changes of its rate
	cut     time.Time     // when the rate was last halved; guarded by mu
	updated time.Time     // up to when the recovery is applied; guarded by mu
}

// New returns a Limiter of perSecond requests per second with a burst of one second.
// onOverload is called for every 429 answer; nil: nothing is called.
func New(perSecond int, onOverload func()) *Limiter {
	if onOverload == nil {
		onOverload = func() {}
	}
	return &Limiter{
		configured: rate.Limit(perSecond),
		onOverload: onOverload,
		bucket:     rate.NewLimiter(rate.Limit(perSecond), perSecond),
	}
}

// Wait returns how long the caller has to wait before a request may start; 0: not at all.
// It takes no token and does not block.
func (l *Limiter) Wait(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restore(now)
	return Until(l.bucket, now)
}

// Take takes the token of one request. It never blocks: a request that was started before
// its token was there makes later callers wait.
func (l *Limiter) Take(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restore(now)
	l.bucket.ReserveN(now, 1)
}

// Rate returns the current rate in requests per second.
func (l *Limiter) Rate(now time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restore(now)
	return float64(l.bucket.Limit())
}

// Overloaded tells the Limiter that the API server has answered 429.
func (l *Limiter) Overloaded(now time.Time) {
	l.onOverload()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut.IsZero() && now.Sub(l.cut) < cutInterval {
		return
	}
	l.restore(now)
	l.cut, l.updated = now, now
	l.setRate(now, max(l.bucket.Limit()/2, l.configured/minFraction))
}

// restore raises the rate for the time that has passed since the last 429.
func (l *Limiter) restore(now time.Time) {
	if l.bucket.Limit() >= l.configured {
		return
	}
	passed := now.Sub(l.updated)
	if passed < cutInterval {
		return
	}
	l.updated = now
	step := l.configured / recoverySteps * rate.Limit(passed.Seconds())
	l.setRate(now, min(l.bucket.Limit()+step, l.configured))
}

func (l *Limiter) setRate(now time.Time, limit rate.Limit) {
	l.bucket.SetLimitAt(now, limit)
	l.bucket.SetBurstAt(now, max(1, int(limit)))
}

// RoundTripper returns a RoundTripper that passes requests on to next and reports 429
// answers to the Limiter. It fits rest.Config.Wrap.
func (l *Limiter) RoundTripper(next http.RoundTripper) http.RoundTripper {
	return roundTripper{limiter: l, next: next}
}

type roundTripper struct {
	limiter *Limiter
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusTooManyRequests {
		r.limiter.Overloaded(time.Now())
	}
	return resp, err
}

// WrappedRoundTripper lets client-go find the transport below.
func (r roundTripper) WrappedRoundTripper() http.RoundTripper { return r.next }

// Until returns how long it takes until bucket holds a whole token; 0: it does now.
func Until(bucket *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - bucket.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return max(time.Duration(missing/float64(bucket.Limit())*float64(time.Second)), time.Microsecond)
}
