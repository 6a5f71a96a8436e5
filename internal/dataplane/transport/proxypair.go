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

// Side is the connection of a proxy pair that ended it.
type Side uint8

// The sides. Neither: both ended cleanly, or the context ended.
const (
	Neither Side = iota
	First        // Exchange's plain connection, Splice's a
	Second       // Exchange's session, Splice's b
)

// String names the side.
func (s Side) String() string { return [...]string{"neither", "first", "second"}[s] }

// Reason is how a proxy pair ended. The list is closed.
type Reason uint8

// The reasons.
const (
	// Ended: both directions ended cleanly.
	Ended Reason = iota
	// WasReset: a connection was reset.
	WasReset
	// Truncated: the session ended within the exchange.
	Truncated
	// TimedOut: a peer no longer answered.
	TimedOut
	// Failed: any other error, of TLS or of the network.
	Failed
	// Canceled: the context ended.
	Canceled
	// Drained: the context ended with ErrDrained.
	Drained
	// NotRenewed: the context ended with ErrNotRenewed.
	NotRenewed
	// RecordLimit: the session has encrypted as much as its keys may.
	RecordLimit
	// FlowControl: the far side sent more than it may, or acknowledged more than was sent.
	FlowControl
)

// ErrDrained is the cause of a context that ends because a process was asked to stop
// and its drain time is over.
var ErrDrained = errors.New("the drain period is over")

// ErrNotRenewed is the cause of a context that ends because a certificate that opened an
// exchange has expired, and its owner has not proven itself again.
var ErrNotRenewed = errors.New("not proven again after a certificate has expired")

// String returns the reason as a metric label.
func (r Reason) String() string {
	return [...]string{"ended", "reset", "truncated", "timed_out", "failed", "cancelled", "drained",
		"certificate_not_renewed", "record_limit", "flow_control_error"}[r]
}

// Reasons returns all reasons, so that each can be counted from zero.
func Reasons() []Reason {
	return []Reason{Ended, WasReset, Truncated, TimedOut, Failed, Canceled, Drained, NotRenewed,
		RecordLimit, FlowControl}
}

// Result is the result of Exchange or Splice.
type Result struct {
	// Sent and Received are the bytes relayed from the first connection to the second,
	// and back.
	Sent, Received int64
	// Side and Reason are the connection that ended the pair, and how. Err is the
	// cause; it is nil if Reason is Ended.
	Side   Side
	Reason Reason
	Err    error
	// Reusable: the session, which Exchange has left open, can carry another exchange.
	Reusable bool
}

// Clean reports whether both directions ended cleanly.
func (r Result) Clean() bool { return r.Reason == Ended }

func reasonFor(err error) Reason {
	switch {
	case errors.Is(err, ErrRecordLimit):
		return RecordLimit
	case errors.Is(err, ErrFlowControl):
		return FlowControl
	case errors.Is(err, ErrTruncated):
		return Truncated
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ENOTCONN):
		return WasReset
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded):
		return TimedOut
	}
	return Failed
}

// proxyPair is the state that the two directions of Exchange or Splice share.
type proxyPair struct {
	first, second net.Conn // TCP connections, also that of a session
	// sever ends both connections at an abort; nil: it resets them.
	sever func()
	// sweep is called at each sweep; it may be nil. It must not block.
	sweep          func()
	received, sent atomic.Int64
	finSent        [3]atomic.Bool // by Side: set before we send FIN

	endOnce, severOnce sync.Once
	result             Result // written by endOnce, or after both directions have ended

	mu    sync.Mutex
	ended int // number of directions that have ended cleanly
}

// recordEnd records why the pair ends. Only the first call counts.
func (p *proxyPair) recordEnd(s Side, r Reason, err error) {
	p.endOnce.Do(func() { p.result.Side, p.result.Reason, p.result.Err = s, r, err })
}

// abort resets both connections and records why.
func (p *proxyPair) abort(s Side, r Reason, err error) {
	p.recordEnd(s, r, err)
	p.severOnce.Do(func() {
		if p.sever != nil {
			p.sever()
			return
		}
		Reset(p.first)
		Reset(p.second)
	})
}

// cancel aborts because the context has ended.
func (p *proxyPair) cancel(cause error) {
	reason := Canceled
	switch {
	case errors.Is(cause, ErrDrained):
		reason = Drained
	case errors.Is(cause, ErrNotRenewed):
		reason = NotRenewed
	}
	p.abort(Neither, reason, cause)
}

// fail aborts because of an error on a connection.
func (p *proxyPair) fail(s Side, err error) { p.abort(s, reasonFor(err), err) }

// directionEnded records that a direction has ended cleanly. It returns true for the
// second one, and then interrupts the wait of the direction that ended first.
func (p *proxyPair) directionEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended++; p.ended < 2 {
		return false
	}
	p.first.SetReadDeadline(time.Unix(1, 0))
	p.second.SetReadDeadline(time.Unix(1, 0))
	return true
}

func (p *proxyPair) bothEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended == 2
}

// sendFIN closes the write side of a connection.
func (p *proxyPair) sendFIN(s Side, conn *net.TCPConn) error {
	p.finSent[s].Store(true)
	return conn.CloseWrite()
}

// checkFIN returns nil if the io.EOF that was read from a side's connection was a FIN,
// and ECONNRESET if it was a reset. The kernel reports a reset only once. If it reported
// the reset to a writer, the reader gets io.EOF.
func (p *proxyPair) checkFIN(s Side, conn *net.TCPConn) error {
	// The order matters: after our own FIN a FIN closes the connection as well.
	if closed(conn) && !p.finSent[s].Load() {
		return os.NewSyscallError("read", syscall.ECONNRESET)
	}
	return nil
}

// run relays both directions until they have ended or aborted, and closes the
// connections.
func (p *proxyPair) run(ctx context.Context, toSecond, toFirst func()) Result {
	p.first.SetDeadline(time.Time{})
	p.second.SetDeadline(time.Time{})
	// The kernel closes the connections of a killed process. It must reset them,
	// because FIN would be a clean end.
	linger(0, p.first, p.second)
	stop := afterfunc.Start(ctx, func() { p.cancel(context.Cause(ctx)) })
	watch := watchDead(p)
	var goroutines sync.WaitGroup
	goroutines.Go(toSecond)
	toFirst()
	goroutines.Wait()
	watch.stop()
	stop()
	linger(-1, p.first, p.second) // fails on a connection that was reset, which is closed
	p.first.Close()
	p.second.Close()
	p.result.Sent, p.result.Received = p.sent.Load(), p.received.Load()
	return p.result
}
