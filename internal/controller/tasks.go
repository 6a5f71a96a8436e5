package controller

import (
	"context"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/causeway-mesh/causeway/internal/backoff"
)

// A task runs the newest work that it was given, and again until it succeeds.
type task struct {
	cancel context.CancelFunc
	wake   chan struct{}

	mu   sync.Mutex // guards work
	work work
}

// work does one run of a task and returns the delay until its next run. 0 means that it
// runs again only after it is set again. failures counts the failed runs in a row.
type work func(ctx context.Context, failures int) (again time.Duration, err error)

// tasks starts tasks and waits for them.
type tasks struct {
	running sync.WaitGroup
	log     *slog.Logger
}

// start starts a task that runs until ctx or the task ends.
func (t *tasks) start(ctx context.Context, log *slog.Logger) *task {
	ctx, cancel := context.WithCancel(ctx)
	out := &task{cancel: cancel, wake: make(chan struct{}, 1)}
	t.running.Go(func() { out.run(ctx, log) })
	return out
}

// set makes work the one to run, in place of any that has not begun.
func (t *task) set(work work) {
	t.mu.Lock()
	t.work = work
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *task) run(ctx context.Context, log *slog.Logger) {
	waits := backoff.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second}
	failures := 0
	for again := (<-chan time.Time)(nil); ; {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-again:
		}
		t.mu.Lock()
		work := t.work
		t.mu.Unlock()
		start := time.Now()
		wait, err := work(ctx, failures)
		took := time.Since(start)
		if err == nil {
			waits.Reset()
			failures = 0
		} else if ctx.Err() == nil {
			logFailure(ctx, log, "write failed, retrying", err, failures)
			failures++
			wait = waits.Next() + retryPause
		}
		again = nil
		if wait > 0 {
			again = time.After(wait)
		}
		backoff.Sleep(ctx, min(took, maxTaskPause))
	}
}

const (
	// retryPause is the least wait after a failed write.
	retryPause = 50 * time.Millisecond
	// maxTaskPause bounds the rest of a task after its work, which is as long as the work
	// took.
	maxTaskPause = 250 * time.Millisecond
)

// logFailure logs an outage once. A conflict is routine.
func logFailure(ctx context.Context, log *slog.Logger, message string, err error, failures int) {
	level := slog.LevelWarn
	if failures > 0 || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		level = slog.LevelDebug
	}
	log.Log(ctx, level, message, "error", err)
}
