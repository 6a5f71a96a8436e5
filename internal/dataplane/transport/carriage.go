package transport

import (
	"context"
	"errors"
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
	First        // Exchange's plain connection, Splice's a
	Second       // Exchange's session, Splice's b
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
	// Truncated: the session ended within the exchange.
	Truncated
	// TimedOut: a peer answered nothing any more.
	TimedOut
	// Failed: any other error, of TLS or of the network.
	Failed
	// Cancelled: the context ended.
	Cancelled
	// Drained: the context ended with ErrDrained.
	Drained
	// NotRenewed: the context ended with ErrNotRenewed.
	NotRenewed
	// RecordLimit: the session has encrypted as much as its keys may.
	RecordLimit
)

// ErrDrained is the cause of a context that ends because a process is asked to stop and its
// grace is over.
var ErrDrained = errors.New("the process stops, and its grace is over")

// ErrNotRenewed is the cause of a context that ends because a certificate that opened an
// exchange has expired, and its owner has not proven itself again.
var ErrNotRenewed = errors.New("not proven again after a certificate has expired")

// String names the reason, as a metric's label.
func (r Reason) String() string {
	return [...]string{"ended", "reset", "truncated", "timed_out", "failed", "cancelled", "drained",
		"certificate_not_renewed", "record_limit"}[r]
}

// Reasons returns all reasons, to be counted from zero.
func Reasons() []Reason {
	return []Reason{Ended, WasReset, Truncated, TimedOut, Failed, Cancelled, Drained, NotRenewed,
		RecordLimit}
}

// Result is how Exchange or Splice went.
type Result struct {
	// Forth and Back are the bytes carried from the first connection to the second, and back.
	Forth, Back int64
	// Side and Reason say who ended it and how; Err is the cause, nil if Reason is Ended.
	Side   Side
	Reason Reason
	Err    error
	// Reusable: the session, which Exchange has left open, can carry another exchange.
	Reusable bool
}

// Clean reports whether both directions ended by themselves.
func (r Result) Clean() bool { return r.Reason == Ended }

func reasonFor(err error) Reason {
	switch {
	case errors.Is(err, ErrRecordLimit):
		return RecordLimit
	case errors.Is(err, ErrTruncated):
		return Truncated
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ENOTCONN):
		return WasReset
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded):
		return TimedOut
	}
	return Failed
}

// carriage is what the two directions of Exchange or Splice share.
type carriage struct {
	first, second net.Conn // TCP connections, that of a session too
	// sever ends both connections at an abort; nil: by a reset.
	sever       func()
	back, forth atomic.Int64
	finSent     [3]atomic.Bool // by Side: set before our FIN is sent there

	noteOnce, severOnce sync.Once
	result              Result // written by noteOnce, or after both directions are joined

	mu    sync.Mutex
	ended int // directions that have ended cleanly
}

// note notes why the carriage ends; only the first note counts.
func (c *carriage) note(s Side, r Reason, err error) {
	c.noteOnce.Do(func() { c.result.Side, c.result.Reason, c.result.Err = s, r, err })
}

// abort resets both connections and says why.
func (c *carriage) abort(s Side, r Reason, err error) {
	c.note(s, r, err)
	c.severOnce.Do(func() {
		if c.sever != nil {
			c.sever()
			return
		}
		Reset(c.first)
		Reset(c.second)
	})
}

// cancel aborts because the context has ended.
func (c *carriage) cancel(cause error) {
	reason := Cancelled
	switch {
	case errors.Is(cause, ErrDrained):
		reason = Drained
	case errors.Is(cause, ErrNotRenewed):
		reason = NotRenewed
	}
	c.abort(Neither, reason, cause)
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

// checkFIN returns nil if the io.EOF that was read from a side's connection was a FIN,
// and ECONNRESET if it was a reset. The kernel reports a reset only once. If it reported
// the reset to a writer, the reader gets io.EOF.
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
	stop := afterfunc.Start(ctx, func() { c.cancel(context.Cause(ctx)) })
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
