package agent

import (
	"context"
	"errors"
	"sync"
	"time"
)

// news wakes everybody who waits for newer state. The zero value is ready.
type news struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// next returns a channel that is closed at the next tell.
func (n *news) next() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

// tell wakes all who wait.
func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}

// patience is how long a connection waits for state that may be on its way.
const patience = 2 * time.Second

// askAgain is between two questions if time alone may change the answer.
const askAgain = 100 * time.Millisecond

// await asks until it gets an answer, again whenever there is news, for at most
// patience. It returns the last error then, or at once one that is final.
func await[T any](ctx context.Context, n *news, ask func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		next := n.next() // before asking, so that no news is missed
		answer, err := ask()
		var r *refusal
		if err == nil || (errors.As(err, &r) && r.final) {
			return answer, err
		}
		var again <-chan time.Time
		if r != nil && r.again {
			again = time.After(askAgain)
		}
		select {
		case <-again:
		case <-next:
		case <-ctx.Done():
			return answer, err
		}
	}
}
