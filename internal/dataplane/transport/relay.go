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
)

// Side says which of the two connections ended a carriage.
type Side uint8

// The sides. Neither: both ended cleanly, or the context ended.
const (
	Neither Side = iota
	First        // Relay's plain connection, Splice's a
	Second       // Relay's tunnel, Splice's b
)

// String names the side.
func (s Side) String() string { return [...]string{"neither", "first", "second"}[s] }

// Reason says how a carriage ended. The list is closed.
type Reason uint8

// The reasons.
const (
	// Ended: both directions ended cleanly.
	Ended Reason = iota
	// WasReset: a connection was reset.
	WasReset
	// Truncated: the tunnel's TCP connection ended without close_notify.
	Truncated
	// TimedOut: a peer answered nothing any more.
	TimedOut
	// Failed: any other error, of TLS or of the network.
	Failed
	// Cancelled: the context ended.
	Cancelled
)

// String names the reason, as a metric's label.
func (r Reason) String() string {
	return [...]string{"ended", "reset", "truncated", "timed_out", "failed", "cancelled"}[r]
}

// Reasons returns all reasons, to be counted from zero.
func Reasons() []Reason {
	return []Reason{Ended, WasReset, Truncated, TimedOut, Failed, Cancelled}
}

// Result is how Relay or Splice went.
type Result struct {
	// Forth and Back are the bytes carried from the first connection to the second, and back.
	Forth, Back int64
	// Side and Reason say who ended it and how; Err is the cause, nil if Reason is Ended.
	Side   Side
	Reason Reason
	Err    error
}

// Clean reports whether both directions ended by themselves.
func (r Result) Clean() bool { return r.Reason == Ended }

func reasonFor(err error) Reason {
	switch {
	case errors.Is(err, ErrTruncated):
		return Truncated
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ENOTCONN):
		return WasReset
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded):
		return TimedOut
	}
	return Failed
}

// carriage is what the two directions of Relay or Splice share.
type carriage struct {
	first, second net.Conn // TCP connections, that of a tunnel too
	back, forth   atomic.Int64
	finSent       [3]atomic.Bool // by Side: set before our FIN is sent there

	abortOnce sync.Once
	result    Result // written by abortOnce, or after both directions are joined

	mu    sync.Mutex
	ended int // directions that have ended cleanly
}

// abort resets both connections and says why; only the first abort counts.
func (c *carriage) abort(s Side, r Reason, err error) {
	c.abortOnce.Do(func() {
		c.result.Side, c.result.Reason, c.result.Err = s, r, err
		Reset(c.first)
		Reset(c.second)
	})
}

// fail aborts because of an error on a connection.
func (c *carriage) fail(s Side, err error) { c.abort(s, reasonFor(err), err) }

// end notes that a direction has ended cleanly. With the second one it wakes the direction that ended
// first from its watch and returns true.
func (c *carriage) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended++; c.ended < 2 {
		return false
	}
	c.first.SetReadDeadline(time.Unix(1, 0))
	c.second.SetReadDeadline(time.Unix(1, 0))
	return true
}

func (c *carriage) bothEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended == 2
}

// sendFIN ends what is written to a side's connection.
func (c *carriage) sendFIN(s Side, conn *net.TCPConn) error {
	c.finSent[s].Store(true)
	return conn.CloseWrite()
}

// checkFIN returns nil if an end that was read from a side's connection is a FIN. The kernel tells of a reset
// but once: if a writer was told, the reader sees what looks like an end.
func (c *carriage) checkFIN(s Side, conn *net.TCPConn) error {
	// The order matters: after our own FIN a FIN closes the connection as well.
	if closed(conn) && !c.finSent[s].Load() {
		return os.NewSyscallError("read", syscall.ECONNRESET)
	}
	return nil
}

// run carries both directions until they have ended or aborted, and closes the connections.
func (c *carriage) run(ctx context.Context, forth, back func()) Result {
	c.first.SetDeadline(time.Time{})
	c.second.SetDeadline(time.Time{})
	// The kernel closes what a killed process leaves. It must not say FIN for us: that would be an end.
	linger(0, c.first, c.second)
	stop := afterfunc.Start(ctx, func() { c.abort(Neither, Cancelled, context.Cause(ctx)) })
	watch := watchDead(c)
	var goroutines sync.WaitGroup
	goroutines.Go(forth)
	back()
	goroutines.Wait()
	watch.stop()
	stop()
	linger(-1, c.first, c.second) // fails on what was reset, which is closed
	c.first.Close()
	c.second.Close()
	c.result.Forth, c.result.Back = c.forth.Load(), c.back.Load()
	return c.result
}

// Relay carries bytes between an application's connection and a tunnel until both directions have ended
// cleanly, one side aborts, or ctx ends, and returns once nothing of it runs any more. FIN on plain becomes
// close_notify in the tunnel and the other way round, each direction for itself; anything else that ends one
// side resets the other.
//
// It takes both connections over, clears their deadlines and closes them. The tunnel must lie on a *Raw that
// lies on TCP, with its handshake done; else Relay panics.
func Relay(ctx context.Context, plain *net.TCPConn, tun *tls.Conn) Result {
	return RelayHearing(ctx, plain, tun, func(Side) {})
}

// RelayHearing is Relay. It calls heard once, when the first bytes of all have come, with
// the side that they are from. heard must not block.
func RelayHearing(ctx context.Context, plain *net.TCPConn, tun *tls.Conn, heard func(Side)) Result {
	raw, ok := tun.NetConn().(*Raw)
	if !ok {
		panic(fmt.Sprintf("transport: Relay of a tunnel over %T, not *Raw", tun.NetConn()))
	}
	r := &relay{carriage: carriage{first: plain, second: raw.Conn}, plain: plain, tun: tun, raw: raw, heard: heard}
	raw.patient.Store(true)
	return r.run(ctx, r.plainToTunnel, r.tunnelToPlain)
}

type relay struct {
	carriage
	plain *net.TCPConn
	tun   *tls.Conn
	raw   *Raw
	// closing: our close_notify is on its way, so the peer may close its TCP connection.
	closing atomic.Bool

	spoken sync.Once
	heard  func(Side)
}

func (r *relay) hear(s Side) { r.spoken.Do(func() { r.heard(s) }) }

func (r *relay) plainToTunnel() {
	src, err := newSource(r.plain)
	for err == nil {
		if err = src.read(); err != nil {
			break
		}
		n := src.n
		r.hear(First)
		_, werr := r.tun.Write(src.buf[:n])
		src.release()
		if werr != nil {
			r.fail(Second, werr)
			return
		}
		r.forth.Add(int64(n))
	}
	if err == io.EOF {
		err = r.checkFIN(First, r.plain)
	}
	if err != nil {
		r.fail(First, err)
		return
	}
	r.closing.Store(true)
	if err := r.tun.CloseWrite(); err != nil {
		r.fail(Second, err)
		return
	}
	if r.end() {
		return
	}
	if err := awaitReset(r.plain); err != nil && !r.bothEnded() {
		r.fail(First, err)
	}
}

func (r *relay) tunnelToPlain() {
	if err := r.copyFromTunnel(); err != nil {
		return
	}
	if err := r.sendFIN(First, r.plain); err != nil {
		r.fail(First, err)
		return
	}
	if !r.end() {
		r.awaitRawEnd()
	}
	if r.bothEnded() {
		r.part()
	}
}

// copyFromTunnel copies until close_notify. After any other end it has aborted and returns an error.
func (r *relay) copyFromTunnel() error {
	buf := recordPool.Get().(*[recordSize]byte)
	defer recordPool.Put(buf)
	for {
		n, err := r.tun.Read(buf[:])
		if n > 0 {
			r.hear(Second)
			if _, err := r.plain.Write(buf[:n]); err != nil {
				r.fail(First, err)
				return err
			}
			r.back.Add(int64(n))
		}
		switch {
		case err == io.EOF: // close_notify: Raw never returns io.EOF
			return nil
		case err != nil:
			r.fail(Second, err)
			return err
		}
	}
}

// awaitRawEnd waits, after the peer's close_notify, until our direction has ended too. Meanwhile nothing
// may come: an end of TCP before our close_notify means that the peer is gone.
func (r *relay) awaitRawEnd() {
	var b [1]byte
	n, err := r.raw.Conn.Read(b[:])
	switch {
	case r.bothEnded():
	case n > 0:
		r.fail(Second, ErrAfterEnd)
	case err == io.EOF && r.closing.Load():
	case err == io.EOF:
		r.fail(Second, ErrTruncated)
	default:
		r.fail(Second, err)
	}
}

// part lets the accepting side close the TCP connection first, for a second at most: whoever closes first
// keeps the port in TIME_WAIT, and the dialling side is the one that can run out of ports.
func (r *relay) part() {
	if !r.raw.dialed {
		return
	}
	r.raw.Conn.SetReadDeadline(time.Now().Add(time.Second))
	var b [1]byte
	r.raw.Conn.Read(b[:])
}
