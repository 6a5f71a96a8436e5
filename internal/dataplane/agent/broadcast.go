package agent

import (
	"context"
	"errors"
	"sync"
	"time"
)

// broadcast wakes every goroutine that waits for a newer state. The zero value is
// ready.
type broadcast struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// wait returns a channel that the next notifyAll closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// notifyAll wakes all waiting goroutines.
func (b *broadcast) notifyAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// answerTimeout is how long a connection waits for a newer state.
const answerTimeout = 2 * time.Second

// answerRetryInterval is the time between two attempts if a retry without a newer state
// may succeed.
const answerRetryInterval = 100 * time.Millisecond

// awaitAnswer calls ask until it succeeds, and again after each notification, for at
// most answerTimeout. It then returns the last error. It returns a final error at once.
func awaitAnswer[T any](ctx context.Context, b *broadcast, ask func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	for {
		next := b.wait() // before ask, so that no notification is missed
		answer, err := ask()
		var r *refusal
		if err == nil || (errors.As(err, &r) && r.final) {
			return answer, err
		}
		var again <-chan time.Time
		if r != nil && r.retry {
			again = time.After(answerRetryInterval)
		}
		select {
		case <-again:
		case <-next:
		case <-ctx.Done():
			return answer, err
		}
	}
}
