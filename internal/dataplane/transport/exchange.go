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
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

const (
	// resetWrite is how long writing RESET may take. After that the session is reset.
	resetWrite = 100 * time.Millisecond
	// resetAnswer and resetDiscard bound the time and the bytes between our RESET and the
	// other side's last frame. The socket buffers of three hops can hold several MiB of
	// an upload.
	resetAnswer  = 2 * time.Second
	resetDiscard = 16 << 20
	// lastWords is how long an application has to take what was said before a reset.
	lastWords = 2 * time.Second
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
// The session must be TLS over a *Raw that is on TCP; Exchange panics if there is no
// *Raw. It calls heard, which may be nil, once, with the side that sent the first bytes.
// heard must not block.
func Exchange(ctx context.Context, plain *net.TCPConn, session *tunnel.Conn, heard func(Side)) Result {
	raw := RawOf(session)
	x := &exchange{plain: plain, session: session, raw: raw, heard: heard}
	x.carriage = carriage{first: plain, second: raw.Conn, sever: x.breakUp}
	return x.run(ctx)
}

// RawOf returns what lies under a session's TLS. It panics if that is no *Raw.
func RawOf(session *tunnel.Conn) *Raw {
	if t, ok := session.Conn.(*tls.Conn); ok {
		if raw, ok := t.NetConn().(*Raw); ok {
			return raw
		}
	}
	panic(fmt.Sprintf("transport: a session over %T", session.Conn))
}

type exchange struct {
	carriage
	plain   *net.TCPConn
	session *tunnel.Conn
	raw     *Raw

	spoken sync.Once
	heard  func(Side)

	lastSent atomic.Bool // our last frame is written, or being written
	lastRead atomic.Bool // the other side's last frame has come, or the session is broken
	farReset atomic.Bool // ... and was RESET
	dead     atomic.Bool // plain takes no more
	broken   atomic.Bool // so is the session
	lastLost atomic.Bool // our last frame could not be written
	// resetSent is when we have sent RESET, in Unix nanoseconds; 0: not yet.
	resetSent atomic.Int64
}

var past = time.Unix(1, 0)

// breakUp resets the session, and wakes who waits for plain, which is reset by run in the end.
func (x *exchange) breakUp() {
	x.broken.Store(true)
	x.raw.Reset()
	x.plain.SetDeadline(past)
}

func (x *exchange) run(ctx context.Context) Result {
	x.plain.SetDeadline(time.Time{})
	x.session.SetDeadline(time.Time{})
	// The kernel closes what a killed process leaves. It must not say FIN for us.
	linger(0, x.plain)
	stop := afterfunc.Start(ctx, func() { x.cancel(context.Cause(ctx)) })
	watch := watchDead(&x.carriage)
	var goroutines sync.WaitGroup
	goroutines.Go(x.toSession)
	x.toPlain()
	goroutines.Wait()
	watch.stop()
	stop()
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
		ResetDelivered(x.plain, lastWords)
	}
	x.result.Forth, x.result.Back = x.forth.Load(), x.back.Load()
	return x.result
}

func (x *exchange) hear(s Side) {
	if x.heard != nil {
		x.spoken.Do(func() { x.heard(s) })
	}
}

// toSession carries what the application says, and writes the last frame.
func (x *exchange) toSession() {
	src, err := newSource(x.plain)
	if err == nil {
		src.room = tunnel.PrefixLen
	}
	for err == nil {
		if err = src.read(); err != nil {
			break
		}
		n := src.n
		x.hear(First)
		werr := x.send(src.buf[:tunnel.PrefixLen+n])
		src.release()
		if werr != nil {
			x.unsent(werr)
			return
		}
		x.forth.Add(int64(n))
	}
	if err == io.EOF {
		err = x.checkFIN(First, x.plain)
	}
	switch {
	case x.broken.Load():
	case x.farReset.Load():
		x.last(tunnel.TypeReset)
	case err != nil:
		x.reset(err)
	case x.last(tunnel.TypeEnd) && !x.lastRead.Load():
		x.awaitLast()
	}
}

// send writes a frame of DATA whose prefix is still to be filled in.
func (x *exchange) send(frame []byte) error {
	tunnel.PutPrefix(frame, tunnel.TypeData, len(frame)-tunnel.PrefixLen)
	write := func() error {
		_, err := x.session.Write(frame)
		return err
	}
	if len(frame) <= maxRecord {
		return write() // it is one write by itself
	}
	return x.raw.Gather(write)
}

// maxRecord is what a TLS record holds at most (RFC 8446, section 5.1).
const maxRecord = 16 << 10

// last writes our last frame and wakes toPlain if there is nothing more for it to wait for.
func (x *exchange) last(t tunnel.Type) bool {
	x.lastSent.Store(true) // before the other side can answer by the next OPEN
	if err := tunnel.WriteEmpty(x.session, t); err != nil {
		x.lastLost.Store(true)
		x.unsent(err)
		return false
	}
	if x.lastRead.Load() {
		x.session.SetReadDeadline(past)
	}
	return true
}

// unsent handles a failed write to the session. If the session was reset, toPlain still
// delivers what the far side sent before, and then finds the reset.
func (x *exchange) unsent(err error) {
	if reasonFor(err) != WasReset {
		x.fail(Second, err)
	}
}

// reset passes the application's reset on: by a frame if that can be written at once.
func (x *exchange) reset(err error) {
	x.note(First, reasonFor(err), err)
	x.dead.Store(true)
	now := time.Now()
	x.resetSent.Store(now.UnixNano())
	x.raw.SetWriteDeadline(now.Add(resetWrite))
	x.session.SetReadDeadline(now.Add(resetAnswer))
	x.last(tunnel.TypeReset)
}

// awaitLast waits, after the application's FIN, for the other side's last frame. A reset of the
// application's meanwhile is passed on: nobody else reads from it.
func (x *exchange) awaitLast() {
	err := awaitReset(x.plain)
	if !x.lastRead.Load() && !x.broken.Load() {
		x.reset(err)
	}
}

// toPlain carries what comes for the application, up to the last frame.
func (x *exchange) toPlain() {
	discarded := 0
	for {
		t, n, err := x.session.Next()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && x.lastRead.Load() && x.lastSent.Load():
			return // woken by last
		case errors.Is(err, os.ErrDeadlineExceeded) && x.resetSent.Load() != 0:
			x.giveUp()
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
			x.session.Take()
			if !x.deliver(n, &discarded) {
				return
			}
		case t == tunnel.TypeEnd && !ended:
			x.session.Take()
			if !x.dead.Load() {
				x.sendFIN(First, x.plain) // what fails, toSession finds
			}
			if x.lastComes() {
				return
			}
		case t == tunnel.TypeReset: // one may follow END
			x.session.Take()
			x.farReset.Store(true)
			x.note(Second, WasReset, errFarReset)
			x.lastComes()
			x.plain.SetReadDeadline(past)
			return
		default:
			x.fail(Second, fmt.Errorf("%v within an exchange: %w", t, tunnel.ErrUnexpectedFrame))
			return
		}
	}
}

// lastComes notes the other side's last frame, and reports whether ours was sent.
func (x *exchange) lastComes() bool {
	x.lastRead.Store(true)
	if !x.lastSent.Load() {
		return false
	}
	x.plain.SetReadDeadline(past) // for awaitLast
	return true
}

var (
	errFarReset = fmt.Errorf("the far side's application: %w", syscall.ECONNRESET)
	errNoLast   = errors.New("the far side does not take a reset")
)

// giveUp resets a session whose far side does not take RESET, once it has what was said before.
func (x *exchange) giveUp() {
	if tcp, ok := x.raw.Conn.(*net.TCPConn); ok {
		ResetDelivered(tcp, lastWords)
	}
	x.abort(Second, Failed, errNoLast)
}

// deliver passes a body of n bytes on to the application, or drops it if that takes no more. It
// reports whether the exchange goes on.
func (x *exchange) deliver(n int, discarded *int) bool {
	buf := bufferPool.Get().(*[bufferSize]byte)
	defer bufferPool.Put(buf)
	for n > 0 {
		got, err := x.session.Read(buf[:min(n, len(buf))])
		n -= got
		if got > 0 {
			x.hear(Second)
			if !x.dead.Load() {
				if _, werr := x.plain.Write(buf[:got]); werr != nil {
					x.refused()
				} else {
					x.back.Add(int64(got))
				}
			} else if *discarded += got; *discarded > resetDiscard {
				x.giveUp()
				return false
			}
		}
		switch {
		case err == nil || n == 0:
		case errors.Is(err, os.ErrDeadlineExceeded) && x.resetSent.Load() != 0:
			x.giveUp()
			return false
		default:
			x.fail(Second, err)
			return false
		}
	}
	return true
}

// refused records that the application takes no more bytes. toSession still carries what
// the application sent before, and then finds its reset. If the application sent FIN
// before, refused wakes awaitLast, which passes the reset on.
func (x *exchange) refused() {
	x.dead.Store(true)
	if x.lastSent.Load() {
		x.plain.SetReadDeadline(past) // for awaitLast
	}
}
