package agent

import (
	"net"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// A closeWatch finds out that a caller has gone while it waits for a response, because
// no goroutine reads from its connection then.
type closeWatch struct {
	c     *net.TCPConn
	timer *time.Timer

	mu      sync.Mutex // guards what follows
	cancel  func()     // nil: no request is open
	since   time.Time  // when that request began
	running bool       // the timer
}

const closeWatchInterval = time.Second

func newCloseWatch(c *net.TCPConn) *closeWatch {
	w := &closeWatch{c: c}
	w.timer = time.AfterFunc(time.Hour, w.check)
	w.timer.Stop()
	return w
}

// start calls cancel, until pause, once the caller has gone. The request begins now.
func (w *closeWatch) start(cancel func(), now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel, w.since = cancel, now
	if !w.running {
		w.running = true
		w.timer.Reset(closeWatchInterval)
	}
}

// pause leaves the timer running, which costs less than to stop and to start it for each
// request.
func (w *closeWatch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel = nil
}

func (w *closeWatch) stop() {
	w.pause()
	w.timer.Stop()
}

func (w *closeWatch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.cancel == nil:
		w.running = false
	case time.Since(w.since) >= closeWatchInterval && (transport.IsClosed(w.c) || transport.HasReceivedFIN(w.c)):
		w.cancel()
		w.running = false // until the next request
	default:
		w.timer.Reset(closeWatchInterval)
	}
}
