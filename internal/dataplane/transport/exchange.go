package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

const (
	// resetWrite is how long writing RESET may take. After that the session is reset.
	resetWrite = 100 * time.Millisecond
	// resetAnswer bounds the time between our RESET and the other side's last frame. The
	// window bounds the bytes.
	resetAnswer = 2 * time.Second
	// resetDelivery is how long an application has to read the bytes before a reset.
	resetDelivery = 2 * time.Second
)

// Exchange carries bytes between plain, an application's connection, and a session on
// which OPEN was answered. It blocks until each direction has had its last frame, the
// session breaks, or ctx ends, and all its goroutines have ended. A FIN on plain becomes
// END in the session, and END becomes FIN, each direction separately. A reset of plain
// becomes RESET, after the bytes that plain sent before. If the session breaks, plain is
// reset.
//
// Exchange owns plain and closes it. The caller owns the session. If the result is
// Reusable, the session is between exchanges and has no deadline; otherwise it was reset.
// Each direction begins with a window of tunnel.AssuredWindow bytes. What it grows by is
// reserved from memory, and released at the end. If memory is nil, there is no limit.
//
// The session must be TLS over a *Raw that is on TCP; Exchange panics if there is no
// *Raw. It calls onFirstBytes, which may be nil, once, with the side that sent the first
// bytes. onFirstBytes must not block.
func Exchange(ctx context.Context, plain *net.TCPConn, session *tunnel.Conn, memory Memory, onFirstBytes func(Side)) Result {
	return ExchangeRest(ctx, plain, nil, session, memory, onFirstBytes)
}

// ExchangeRest is Exchange, but sends rest to the session before it reads from plain.
func ExchangeRest(ctx context.Context, plain *net.TCPConn, rest []byte, session *tunnel.Conn, memory Memory, onFirstBytes func(Side)) Result {
	raw := RawOf(session)
	if memory == nil {
		memory = unlimited{}
	}
	x := &exchange{
		plain:        plain,
		rest:         rest,
		plainSocket:  socket.NewConn(plain),
		session:      session,
		raw:          raw,
		onFirstBytes: onFirstBytes,
		flow: flow{
			memory:   memory,
			outgoing: newSendWindow(memory, session.EarlyData()),
			incoming: newReceiveWindow(memory),
		},
	}
	x.changed.L = &x.flowMu
	x.proxyPair = proxyPair{first: plain, second: raw.Conn, sever: x.abortSession, sweep: x.shrinkIdle}
	return x.run(ctx)
}

// RawOf returns the *Raw under a session's TLS. It panics if there is none.
func RawOf(session *tunnel.Conn) *Raw {
	if t, ok := session.Conn.(*tls.Conn); ok {
		if raw, ok := t.NetConn().(*Raw); ok {
			return raw
		}
	}
	panic(fmt.Sprintf("transport: a session over %T", session.Conn))
}

type exchange struct {
	proxyPair
	plain       *net.TCPConn
	rest        []byte       // bytes that were read from plain before; toSession sends them first
	plainSocket *socket.Conn // for writes to plain
	session     *tunnel.Conn
	raw         *Raw
	flow

	firstOnce    sync.Once
	onFirstBytes func(Side)

	lastSent  atomic.Bool // our last frame is written, or being written
	lastRead  atomic.Bool // the other side's last frame was read, or the session is broken
	farReset  atomic.Bool // that frame was RESET
	appClosed atomic.Bool // plain accepts no more bytes
	broken    atomic.Bool // the session is broken
	lastLost  atomic.Bool // our last frame could not be written
	// resetSent is when we have sent RESET, in Unix nanoseconds; 0: not yet.
	resetSent atomic.Int64
}

var past = time.Unix(1, 0)

// abortSession resets the session and interrupts the relay. run then resets plain.
func (x *exchange) abortSession() {
	x.broken.Store(true)
	x.raw.Reset()
	x.plain.SetDeadline(past)
	x.wake()
}

func (x *exchange) run(ctx context.Context) Result {
	x.plain.SetDeadline(time.Time{})
	x.session.SetDeadline(time.Time{})
	// The kernel closes the connections of a killed process. It must reset plain,
	// because FIN would be a clean end.
	linger(0, x.plain)
	boundQueues(x.plain)
	stop := afterfunc.Start(ctx, func() { x.cancel(context.Cause(ctx)) })
	watch := watchDead(&x.proxyPair)
	x.goroutines.Go(x.toSession)
	x.toPlain()
	x.finish()
	x.goroutines.Wait()
	watch.stop()
	stop()
	x.releaseWindows()
	if x.lastLost.Load() { // the other side's last frame may have been in our buffers already
		x.abort(Second, WasReset, errFarReset)
	}
	x.result.Reusable = !x.broken.Load()
	if x.result.Reusable {
		x.session.SetDeadline(time.Time{})
	}
	if x.result.Clean() {
		linger(-1, x.plain)
		x.plain.Close()
	} else {
		ResetDelivered(x.plain, resetDelivery)
	}
	x.result.Sent, x.result.Received = x.sent.Load(), x.received.Load()
	return x.result
}

func (x *exchange) reportFirstBytes(s Side) {
	if x.onFirstBytes != nil {
		x.firstOnce.Do(func() { x.onFirstBytes(s) })
	}
}

// toSession relays the application's bytes and writes the last frame.
func (x *exchange) toSession() {
	src, err := newSource(x.plain)
	if err == nil {
		src.headroom = tunnel.PrefixLen
		err = x.sendRest()
	}
	for err == nil {
		if src.most = x.awaitCredit(); src.most == 0 {
			err = errInterrupted
			break
		}
		if err = src.read(); err != nil {
			break
		}
		n := src.n
		x.recordSent(n)
		x.reportFirstBytes(First)
		werr := x.send(src.buf[:tunnel.PrefixLen+n])
		src.release()
		if werr != nil {
			x.handleWriteError(werr)
			return
		}
		x.sent.Add(int64(n))
	}
	if err == io.EOF {
		err = x.checkFIN(First, x.plain)
	}
	switch {
	case errors.Is(err, errRestUnsent):
		x.handleWriteError(err)
	case x.broken.Load():
	case x.farReset.Load():
		x.writeLast(tunnel.TypeReset)
	case err != nil:
		x.reset(err)
	case x.writeLast(tunnel.TypeEnd) && !x.lastRead.Load():
		x.awaitLast()
	}
}

// errRestUnsent reports that a write of rest to the session failed.
var errRestUnsent = errors.New("first bytes were not sent")

// sendRest sends rest, as fast as the far side gives credit.
func (x *exchange) sendRest() error {
	for len(x.rest) > 0 {
		n := min(x.awaitCredit(), len(x.rest), tunnel.MaxData)
		if n == 0 {
			return errInterrupted
		}
		x.recordSent(n)
		if err := x.send(append(make([]byte, tunnel.PrefixLen, tunnel.PrefixLen+n), x.rest[:n]...)); err != nil {
			return fmt.Errorf("%w: %w", errRestUnsent, err)
		}
		x.sent.Add(int64(n))
		x.rest = x.rest[n:]
	}
	x.rest = nil
	return nil
}

// errInterrupted ends the wait for credit. The session is broken, or the far side has sent
// RESET.
var errInterrupted = errors.New("interrupted")

// send writes a DATA frame, after it has filled in the prefix.
func (x *exchange) send(frame []byte) error {
	tunnel.PutPrefix(frame, tunnel.TypeData, len(frame)-tunnel.PrefixLen)
	write := func() error {
		_, err := x.session.Write(frame)
		return err
	}
	if len(frame) <= maxRecord {
		return write() // crypto/tls makes one write of it
	}
	return x.raw.BatchWrites(write)
}

// maxRecord is the maximum payload of a TLS record (RFC 8446, section 5.1).
const maxRecord = 16 << 10

// recordPool holds buffers for what TLS returns at once. An application that stalls
// holds one.
var recordPool = sync.Pool{New: func() any { return new([maxRecord]byte) }}

// writeLast writes our last frame. It interrupts toPlain if the other side's last frame
// was read.
func (x *exchange) writeLast(t tunnel.Type) bool {
	x.lastSent.Store(true) // before the other side can answer by the next OPEN
	if err := tunnel.WriteEmpty(x.session, t); err != nil {
		x.lastLost.Store(true)
		x.handleWriteError(err)
		return false
	}
	if x.lastRead.Load() {
		x.session.SetReadDeadline(past)
	}
	return true
}

// handleWriteError handles a failed write to the session. If the session was reset,
// toPlain still delivers what the far side sent before, and then finds the reset.
func (x *exchange) handleWriteError(err error) {
	if reasonFor(err) != WasReset {
		x.fail(Second, err)
	}
}

// reset forwards the application's reset. It sends RESET if that can be written at
// once, and otherwise resets the session.
func (x *exchange) reset(err error) {
	x.recordEnd(First, reasonFor(err), err)
	x.appClosed.Store(true)
	now := time.Now()
	x.resetSent.Store(now.UnixNano())
	x.raw.SetWriteDeadline(now.Add(resetWrite))
	x.session.SetReadDeadline(now.Add(resetAnswer))
	x.writeLast(tunnel.TypeReset)
}

// awaitLast waits, after the application's FIN, for the other side's last frame. It
// forwards a reset of the application meanwhile, because no other goroutine reads from
// it.
func (x *exchange) awaitLast() {
	err := awaitReset(x.plain)
	if !x.lastRead.Load() && !x.broken.Load() {
		x.reset(err)
	}
}

// toPlain relays bytes to the application, up to the last frame.
func (x *exchange) toPlain() {
	for {
		t, n, err := x.session.Next()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && x.lastRead.Load() && x.lastSent.Load():
			return // interrupted by writeLast
		case errors.Is(err, os.ErrDeadlineExceeded) && x.resetSent.Load() != 0:
			x.abandonReset()
			return
		case err == io.EOF:
			x.fail(Second, ErrTruncated)
			return
		case err != nil:
			x.fail(Second, err)
			return
		}
		ended := x.lastRead.Load()
		switch {
		case t == tunnel.TypeData && !ended:
			x.session.ConsumePrefix()
			if !x.receiveData(n) {
				return
			}
		case t == tunnel.TypeEnd && !ended:
			x.session.ConsumePrefix()
			x.endPlain()
			if x.recordLast() {
				return
			}
		case t == tunnel.TypeCredit: // it may follow END
			if !x.receiveCredit() {
				return
			}
		case t == tunnel.TypeIdle && ended && x.lastSent.Load():
			return // the answer to our last frame was faster than writeLast; ReadIdle reads it
		case t == tunnel.TypeReset: // it may follow END
			x.session.ConsumePrefix()
			x.farReset.Store(true)
			x.recordEnd(Second, WasReset, errFarReset)
			x.recordLast()
			x.plain.SetReadDeadline(past)
			x.setWriteDeadline(time.Now().Add(resetDelivery)) // for flush
			x.wake()
			return
		default:
			x.fail(Second, fmt.Errorf("%v within an exchange: %w", t, tunnel.ErrUnexpectedFrame))
			return
		}
	}
}

// recordLast records that the other side's last frame was read, and reports whether
// ours was sent.
func (x *exchange) recordLast() bool {
	x.lastRead.Store(true)
	if !x.lastSent.Load() {
		return false
	}
	x.plain.SetReadDeadline(past) // for awaitLast
	return true
}

var (
	errFarReset     = fmt.Errorf("the far side's application: %w", syscall.ECONNRESET)
	errResetIgnored = errors.New("the far side does not take a reset")
)

// abandonReset resets a session whose far side does not read RESET, after it has
// delivered the bytes before.
func (x *exchange) abandonReset() {
	if tcp, ok := x.raw.Conn.(*net.TCPConn); ok {
		ResetDelivered(tcp, resetDelivery)
	}
	x.abort(Second, Failed, errResetIgnored)
}

// receiveData writes a body of n bytes to the application, or drops it if the
// application accepts no more. It reports whether the exchange continues.
func (x *exchange) receiveData(n int) bool {
	if err := x.recordReceived(n); err != nil {
		x.fail(Second, err)
		return false
	}
	buf := recordPool.Get().(*[maxRecord]byte)
	defer recordPool.Put(buf)
	for n > 0 {
		got, err := x.session.Read(buf[:min(n, len(buf))])
		n -= got
		if got > 0 {
			x.reportFirstBytes(Second)
			x.deliver(buf[:got])
		}
		switch {
		case err == nil || n == 0:
		case errors.Is(err, os.ErrDeadlineExceeded) && x.resetSent.Load() != 0:
			x.abandonReset()
			return false
		default:
			x.fail(Second, err)
			return false
		}
	}
	return true
}

// recordAppClosed records that the application accepts no more bytes. toSession still
// relays what the application sent before, and then finds its reset. If the application
// sent FIN before, recordAppClosed wakes awaitLast, which forwards the reset.
func (x *exchange) recordAppClosed() {
	x.appClosed.Store(true)
	if x.lastSent.Load() {
		x.plain.SetReadDeadline(past) // for awaitLast
	}
}
