package transport

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A peer is dead if it acknowledged nothing for deadSilence while data was sent to it
	// deadRetransmits times.
	deadSilence     = 60 * time.Second
	deadRetransmits = 5
	// A peer is also dead if it left deadProbes window probes unanswered and acknowledged
	// nothing for deadSilence.
	deadProbes = 6
)

// deadSweeper checks every proxy pair of the process.
var deadSweeper sweeper

// deadWatch fails a proxy pair whose peer no longer answers. TCP_USER_TIMEOUT would also
// end connections whose reader is slow and whose peer answers every probe of its shut
// window. deadWatch also fails a pair of which one connection has been broken for a whole
// interval while nothing moved, because then no goroutine reads from the broken one.
type deadWatch struct {
	c     *proxyPair
	entry *sweepEntry

	// Only check uses what follows.
	broken [3]bool // by Side: at the last check
	moved  int64   // bytes until the last check
}

// watchDead clears the user timeout of both connections and starts to watch them.
func watchDead(c *proxyPair) *deadWatch {
	w := &deadWatch{c: c}
	for _, conn := range []net.Conn{c.first, c.second} {
		if t, ok := conn.(*net.TCPConn); ok {
			setUserTimeout(t, 0) // fails only if t is closed, which the relay detects
		}
	}
	w.entry = deadSweeper.add(w.check)
	return w
}

// stop ends the watch. It waits for a check that has started.
func (w *deadWatch) stop() { deadSweeper.remove(w.entry) }

// check fails the pair if one of its peers is dead or gone.
func (w *deadWatch) check() {
	moved := w.c.sent.Load() + w.c.received.Load()
	still := moved == w.moved
	w.moved = moved
	if w.c.sweep != nil {
		w.c.sweep()
	}
	w.checkConn(First, w.c.first, still)
	w.checkConn(Second, w.c.second, still)
}

// checkConn checks one connection. still reports that no byte moved since the last
// check.
func (w *deadWatch) checkConn(s Side, conn net.Conn, still bool) {
	t, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	info, err := tcpInfo(t)
	if err != nil {
		return // closed, by an abort
	}
	if dead(info) {
		w.c.fail(s, fmt.Errorf("peer does not respond: %w", unix.ETIMEDOUT))
		return
	}
	// The order matters: after our own FIN a FIN closes the connection as well.
	broken := info.State == tcpClose && !w.c.finSent[s].Load()
	if broken && w.broken[s] && still {
		w.c.fail(s, fmt.Errorf("connection is closed: %w", unix.ECONNRESET))
	}
	w.broken[s] = broken
}

// dead reports whether a connection's peer no longer answers what was sent to it.
func dead(info *unix.TCPInfo) bool {
	if time.Duration(info.Last_ack_recv)*time.Millisecond < deadSilence {
		return false
	}
	return info.Unacked > 0 && info.Retransmits >= deadRetransmits || info.Probes >= deadProbes
}
