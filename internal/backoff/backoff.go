// Package backoff spaces out the attempts of one caller: each wait is drawn
// evenly from nothing to a bound that doubles, so that callers who lost the same
// server come back spread over time.
//
//	attempt ─failed▶ Wait(0…Min) ─▶ attempt ─failed▶ Wait(0…2·Min) ─▶ … Wait(0…Max)
//
// What always holds: a wait ends with its context.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the state of one caller. Both bounds are required. It is not safe
// for concurrent use.
type Backoff struct {
	// Min bounds the first wait.
	Min time.Duration
	// Max bounds every wait.
	Max time.Duration

	bound time.Duration
}

// Reset makes the next wait a first one.
func (b *Backoff) Reset() { b.bound = 0 }

// Next draws the next wait.
func (b *Backoff) Next() time.Duration {
	b.bound = min(max(2*b.bound, b.Min), b.Max)
	return rand.N(b.bound + 1)
}

// Wait blocks for the next wait. It returns false if ctx ended it.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Sleep blocks for d. It returns false if ctx ended it.
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
