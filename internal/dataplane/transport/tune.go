package transport

import (
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	keepIdle     = 15 * time.Second
	keepInterval = 5 * time.Second
	keepCount    = 3
	userTimeout  = 20 * time.Second
)

// Tune sets what every connection of Causeway has: no delay, keepalive (a silent peer is noticed after
// 30 s at most) and a user timeout of 20 s, after which unanswered data fails the connection. Relay and Splice put
// their own watch in the place of the latter.
func Tune(c *net.TCPConn) error {
	err := c.SetNoDelay(true)
	if err == nil {
		err = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount})
	}
	if err == nil {
		err = setUserTimeout(c, userTimeout)
	}
	if err != nil {
		return fmt.Errorf("tune connection with %v: %w", c.RemoteAddr(), err)
	}
	return nil
}

func setUserTimeout(c *net.TCPConn, d time.Duration) error {
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

const (
	watchInterval = 5 * time.Second
	// A peer that acknowledged nothing for deadSilence while data was sent to it deadRetransmits times is dead.
	deadSilence     = 20 * time.Second
	deadRetransmits = 5
	// So is one whose window is shut and who left deadProbes unanswered; with back-off these take some 15 s.
	deadProbes = 6
)

// deadWatch ends a carriage when a peer has stopped answering. TCP_USER_TIMEOUT would, but it also ends
// connections whose reader is slow and whose peer answers every probe of its shut window.
type deadWatch struct {
	c *carriage

	mu      sync.Mutex // guards what follows
	timer   *time.Timer
	stopped bool
}

func watchDead(c *carriage) *deadWatch {
	w := &deadWatch{c: c}
	for _, conn := range []net.Conn{c.first, c.second} {
		if t, ok := conn.(*net.TCPConn); ok {
			setUserTimeout(t, 0) // fails only if closed, which the copying notices
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(watchInterval, w.look)
	return w
}

func (w *deadWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	w.lookAt(First, w.c.first)
	w.lookAt(Second, w.c.second)
	w.timer.Reset(watchInterval)
}

func (w *deadWatch) lookAt(s Side, conn net.Conn) {
	t, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	if info, err := tcpInfo(t); err == nil && dead(info) {
		w.c.fail(s, fmt.Errorf("peer answers nothing: %w", unix.ETIMEDOUT))
	}
}

// stop returns once no look runs any more or will.
func (w *deadWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}

// dead reports whether a connection's peer has stopped answering what was sent to it.
func dead(info *unix.TCPInfo) bool {
	lost := info.Unacked > 0 && info.Retransmits >= deadRetransmits &&
		time.Duration(info.Last_ack_recv)*time.Millisecond >= deadSilence
	return lost || info.Probes >= deadProbes
}
