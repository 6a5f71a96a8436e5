package transport

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// flow is the flow control of an exchange.
//
// It cannot deadlock, because the goroutine that reads the session never waits for a
// writer. Three rules ensure this:
//   - toPlain never writes to the session. A goroutine of its own sends CREDIT, and may
//     wait for toSession's write. Both writes complete because the far side's toPlain
//     always reads.
//   - toPlain waits for the application only while toSession has credit. If toSession
//     waits for credit, which may come behind bytes that the application does not take,
//     toPlain puts these bytes into queue and reads on. The window bounds the queue.
//   - Each side sends CREDIT before the application has taken half of what the other side
//     permits itself. So a sender whose bytes were all taken never waits.
type flow struct {
	memory     Memory
	goroutines sync.WaitGroup

	flowMu   sync.Mutex // guards what follows
	changed  sync.Cond  // credit has come, or the exchange ends
	outgoing sendWindow
	incoming receiveWindow
	waiting  bool // toSession waits for credit
	// delivering: toPlain waits for the application. interrupted: toSession has ended
	// that wait by a deadline.
	delivering, interrupted bool

	queue     [][]byte // bytes for the application, in buffers of the pool
	flushing  bool     // flush runs, and writes the queue to the application
	endQueued bool     // FIN follows the queue

	crediting  bool  // writeCredits runs
	ownChanged bool  // the far side must learn outgoing.own
	unbound    bool  // the receive queue of plain may grow
	swept      int64 // bytes sent until the last sweep
	finished   bool  // no goroutine may start any more
}

// wake wakes toSession from awaitCredit.
func (x *exchange) wake() {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.changed.Broadcast()
}

// finish ends flow control when toPlain returns.
func (x *exchange) finish() {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.finished = true
	x.changed.Broadcast()
}

func (x *exchange) releaseWindows() {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.outgoing.release()
	x.incoming.release()
}

// shrinkIdle reduces the send window to the assured one if nothing was sent since its
// last call. It does nothing until the far side knows the larger window. Otherwise the
// far side would see no decrease and would not acknowledge it.
func (x *exchange) shrinkIdle() {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	sent := x.sent.Load()
	if sent == x.swept && !x.ownChanged && x.outgoing.shrink() {
		x.ownChanged = true
		x.sendCredit()
	}
	x.swept = sent
}

// awaitCredit waits until bytes may be sent, and returns how many. It returns 0 if the
// exchange ends.
func (x *exchange) awaitCredit() int {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	for {
		if x.broken.Load() || x.farReset.Load() {
			return 0
		}
		if n := x.outgoing.available(); n > 0 {
			return n
		}
		x.waiting = true
		if x.delivering && !x.interrupted {
			x.interrupted = true
			x.plain.SetWriteDeadline(past)
		}
		x.changed.Wait()
		x.waiting = false
	}
}

// recordSent records that n bytes are about to be sent.
func (x *exchange) recordSent(n int) {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.outgoing.underWay += n
}

// receiveCredit reads CREDIT. It reports whether the exchange continues.
func (x *exchange) receiveCredit() bool {
	c, err := x.session.ReadCredit()
	if err == nil {
		err = x.applyCredit(c)
	}
	if err != nil {
		x.fail(Second, err)
	}
	return err == nil
}

func (x *exchange) applyCredit(c tunnel.Credit) error {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.incoming.onOwn(int(c.Own))
	changed, err := x.outgoing.onCredit(c)
	x.ownChanged = x.ownChanged || changed
	if changed && x.outgoing.own >= cheapWindow && !x.unbound {
		x.unbound = true
		unboundUnread(x.plain)
	}
	x.sendCredit()
	x.changed.Broadcast()
	return err
}

// recordReceived records a DATA frame of n bytes.
func (x *exchange) recordReceived(n int) error {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	return x.incoming.receive(n, time.Now)
}

// recordTaken records n bytes that the application's kernel has accepted.
func (x *exchange) recordTaken(n int) {
	x.received.Add(int64(n))
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.incoming.taken += int64(n)
	if x.lastRead.Load() {
		x.incoming.trim()
	}
	x.sendCredit()
}

// sendCredit starts to send CREDIT if that is due. x.flowMu must be held.
func (x *exchange) sendCredit() {
	if !x.crediting && !x.finished && x.creditDue() {
		x.crediting = true
		x.goroutines.Go(x.writeCredits)
	}
}

// creditDue reports whether CREDIT must be sent. It returns false after RESET in either
// direction. A direction whose last frame was read or sent needs no CREDIT. x.flowMu must
// be held.
func (x *exchange) creditDue() bool {
	if x.broken.Load() || x.farReset.Load() || x.resetSent.Load() != 0 {
		return false
	}
	return !x.lastRead.Load() && x.incoming.due() || !x.lastSent.Load() && x.ownChanged
}

// writeCredits sends CREDIT as long as that is due.
func (x *exchange) writeCredits() {
	for {
		c, ok := x.nextCredit()
		if !ok {
			return
		}
		if err := tunnel.WriteCredit(x.session, c); err != nil {
			x.handleWriteError(err)
			return
		}
	}
}

func (x *exchange) nextCredit() (c tunnel.Credit, ok bool) {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	if !x.creditDue() {
		x.crediting = false
		return c, false
	}
	c.Taken, c.Window = x.incoming.credit(time.Now())
	c.Own = uint32(x.outgoing.own)
	x.ownChanged = false
	return c, true
}

// deliver writes bytes to the application, or drops them if it accepts no more. It waits
// for the application only while toSession has credit.
func (x *exchange) deliver(b []byte) {
	wait, queued := x.beginDelivery(b)
	if queued || x.appClosed.Load() {
		return
	}
	if !wait {
		x.deliverNow(b)
		return
	}
	n, err := x.plainSocket.Write(b)
	interrupted := x.endDelivery()
	x.recordTaken(n)
	switch {
	case err == nil:
	case interrupted && errors.Is(err, os.ErrDeadlineExceeded) && !x.broken.Load():
		x.startQueue(b[n:])
	default:
		x.recordAppClosed()
	}
}

// beginDelivery appends the bytes to the queue if there is one. Otherwise wait reports
// whether to wait for the application, and endDelivery must follow if so.
func (x *exchange) beginDelivery(b []byte) (wait, queued bool) {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	if x.flushing {
		x.enqueue(b)
		return false, true
	}
	x.delivering = !x.waiting
	return x.delivering, false
}

// endDelivery ends the wait for the application. It reports whether toSession has
// interrupted the wait.
func (x *exchange) endDelivery() (interrupted bool) {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	interrupted = x.interrupted
	x.delivering, x.interrupted = false, false
	if interrupted {
		x.setWriteDeadline(time.Time{})
	}
	return interrupted
}

// setWriteDeadline sets the deadline of writes to the application, unless the exchange is
// broken, which has set another.
func (x *exchange) setWriteDeadline(t time.Time) {
	x.plain.SetWriteDeadline(t)
	if x.broken.Load() {
		x.plain.SetWriteDeadline(past)
	}
}

// deliverNow writes what the application accepts at once, and queues the rest.
func (x *exchange) deliverNow(b []byte) {
	n, err := x.plainSocket.WriteNow(b)
	x.recordTaken(n)
	switch {
	case err != nil:
		x.recordAppClosed()
	case n < len(b):
		x.startQueue(b[n:])
	}
}

// startQueue queues bytes for the application. If there is no memory for a queue, it
// blocks until the application has taken the bytes. toSession then receives no credit
// until startQueue returns.
func (x *exchange) startQueue(b []byte) {
	if !x.memory.Reserve(assuredWindow) {
		n, err := x.plainSocket.Write(b)
		x.recordTaken(n)
		if err != nil {
			x.recordAppClosed()
		}
		return
	}
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.flushing = true
	x.enqueue(b)
	x.goroutines.Go(x.flush)
}

// enqueue appends bytes to the queue. It fills the last buffer before it takes another.
// x.flowMu must be held.
func (x *exchange) enqueue(b []byte) {
	for len(b) > 0 {
		if last := len(x.queue) - 1; last < 0 || len(x.queue[last]) == bufferSize {
			x.queue = append(x.queue, bufferPool.Get().(*[bufferSize]byte)[:0])
		}
		tail := &x.queue[len(x.queue)-1]
		n := min(len(b), bufferSize-len(*tail))
		*tail = append(*tail, b[:n]...)
		b = b[n:]
	}
}

// flush writes the queue to the application and returns when the queue is empty. After
// RESET each further buffer has the write timeout resetDelivery.
func (x *exchange) flush() {
	for {
		b := x.dequeue()
		if b == nil {
			return
		}
		n := 0
		if !x.appClosed.Load() {
			var err error
			if n, err = x.plainSocket.Write(b); err != nil {
				x.recordAppClosed()
			}
		}
		bufferPool.Put((*[bufferSize]byte)(b[:bufferSize]))
		x.recordTaken(n)
		if x.farReset.Load() {
			x.setWriteDeadline(time.Now().Add(resetDelivery))
		}
	}
}

// dequeue returns the first buffer of the queue, or nil after the last one. Then it ends
// the queue.
func (x *exchange) dequeue() []byte {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	if len(x.queue) > 0 {
		b := x.queue[0]
		x.queue = x.queue[1:]
		return b
	}
	x.queue, x.flushing = nil, false
	x.memory.Release(assuredWindow)
	if x.endQueued && !x.appClosed.Load() {
		x.sendFIN(First, x.plain) // toSession finds an error
	}
	return nil
}

// endPlain sends FIN to the application, after what is queued for it.
func (x *exchange) endPlain() {
	x.flowMu.Lock()
	defer x.flowMu.Unlock()
	x.incoming.end()
	if x.flushing {
		x.endQueued = true
	} else if !x.appClosed.Load() {
		x.sendFIN(First, x.plain) // toSession finds an error
	}
}

// Bounds of what the kernel holds for a connection to an application. It would enlarge
// both queues to several MiB if an application was fast for a moment.
const (
	// maxUnsent is how many bytes the send queue holds that the kernel has not sent.
	maxUnsent = 128 << 10
	// maxUnread is how many bytes the receive queue holds, until the window for sending
	// has grown to cheapWindow. The kernel may need up to twice as much memory for them,
	// and permits less if net.core.rmem_max is smaller.
	maxUnread = 256 << 10
)

// boundQueues bounds the queues of a connection to an application. Linux before 5.14 has
// no SO_BUF_LOCK and could not remove the bound of the receive queue later, so there
// boundQueues does not set it.
func boundQueues(c *net.TCPConn) {
	control(c, func(fd int) error { // fails only if c is closed, which the relay detects
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, maxUnread),
			// The kernel derived the clamp from the first buffer and does not raise it.
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, maxUnread),
		)
	})
}

// unboundUnread lets the kernel enlarge the receive queue of a connection.
func unboundUnread(c *net.TCPConn) {
	control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
	})
}
