package transport

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// ErrGone reports a connection that was reset while somebody worked for it.
var ErrGone = errors.New("the connection was reset meanwhile")

// goneLook is between two looks at whether a connection was reset.
const goneLook = time.Second

// Gone reports whether a connection was reset or has ended both ways. It does not wait.
func Gone(c *net.TCPConn) bool { return closed(c) }

// WhileOpen returns a context that ends when ctx ends, when c was reset or has ended both
// ways (the cause is then ErrGone), or when the caller calls stop, as it must. WhileOpen
// checks c every second and reads nothing from it. At each check it calls also, which may
// be nil. It never calls also after stop has returned.
func WhileOpen(ctx context.Context, c *net.TCPConn, also func()) (open context.Context, stop func()) {
	open, end := context.WithCancelCause(ctx)
	var mu sync.Mutex // guards timer and stopped, and is held while it looks
	var timer *time.Timer
	stopped := false
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(goneLook, func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		if also != nil {
			also()
		}
		if closed(c) {
			end(ErrGone)
			return
		}
		timer.Reset(goneLook)
	})
	return open, func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
		end(nil)
	}
}
