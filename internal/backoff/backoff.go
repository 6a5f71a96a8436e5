// Package backoff implements exponential backoff with full jitter. Each delay is uniform
// between zero and a bound that doubles with each attempt. The jitter spreads the retries
// of many callers that lost the same server.
//
//	attempt ─failed▶ Wait(0…Min) ─▶ attempt ─failed▶ Wait(0…2·Min) ─▶ … Wait(0…Max)
//
// Invariant: a wait ends when its context is done.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the state of one caller's attempts. Min and Max are required. A Backoff is
// not safe for concurrent use.
type Backoff struct {
	// Min is the longest first delay.
	Min time.Duration
	// Max is the longest delay.
	Max time.Duration

	bound time.Duration
}

// Reset starts again with the first delay. Call it after a success.
func (b *Backoff) Reset() { b.bound = 0 }

// Next returns the next delay.
func (b *Backoff) Next() time.Duration {
	b.bound = min(max(2*b.bound, b.Min), b.Max)
	return rand.N(b.bound + 1)
}

// Wait blocks for the next delay. It returns false if ctx was done first.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Sleep blocks for d. It returns false if ctx was done first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
