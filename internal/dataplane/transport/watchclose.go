package transport

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ErrGone reports a connection that was reset during an operation.
var ErrGone = errors.New("the connection was reset meanwhile")

// closeCheckInterval is the time between two checks of whether a connection was reset.
const closeCheckInterval = time.Second

// IsClosed reports whether a connection was reset or has ended both ways. It does not
// wait.
func IsClosed(c *net.TCPConn) bool { return closed(c) }

// WatchClose returns a context that ends when ctx ends, when c was reset or has ended
// both ways (the cause is then ErrGone), or when the caller calls stop, as it must.
// WatchClose checks c every second and reads nothing from it. At each check it calls
// onCheck, which may be nil. It never calls onCheck after stop has returned.
func WatchClose(ctx context.Context, c *net.TCPConn, onCheck func()) (open context.Context, stop func()) {
	open, end := context.WithCancelCause(ctx)
	var mu sync.Mutex // guards timer and stopped, and is held during a check
	var timer *time.Timer
	stopped := false
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(closeCheckInterval, func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		if onCheck != nil {
			onCheck()
		}
		if closed(c) {
			end(ErrGone)
			return
		}
		timer.Reset(closeCheckInterval)
	})
	return open, func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
		end(nil)
	}
}
