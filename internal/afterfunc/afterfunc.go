// Package afterfunc runs a function when a context ends and lets the caller wait for it.
//
//	Start(ctx, f) ─ctx ends─▶ f runs in its own goroutine
//	stop()        ─────────▶ f has returned, or will never run
//
// context.AfterFunc's stop does not wait. A caller that returns, or hands a connection, a
// socket or a file on, can still be followed by f, which then changes something that
// belongs to the next owner. Use Start wherever f changes something that outlives the
// caller.
package afterfunc

import "context"

// Start arranges for f to run in its own goroutine after ctx ends. The caller must call
// stop, which may be repeated. If f has started, stop blocks until f has returned, and
// returns false. Otherwise it prevents f from running and returns true.
func Start(ctx context.Context, f func()) (stop func() bool) {
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		f()
	})
	return func() bool {
		if cancel() {
			close(done)
			return true
		}
		<-done
		return false
	}
}
