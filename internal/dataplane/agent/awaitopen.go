package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

const (
	// openWait is how long a session may wait for OPEN. After idleAfter without OPEN
	// the session counts as idle. Until then a caller may have sent OPEN together with
	// HELLO.
	openWait  = 2 * time.Minute
	idleAfter = time.Second
	// maxWaiting bounds the sessions that may wait for openWait, shared between links.
	// Each further session may wait for openTimeout.
	maxWaiting = 8192
)

// isIdle reports whether the session waits for OPEN without a caller.
func (in *inboundConn) isIdle() bool {
	since := in.idleSince.Load()
	return since != 0 && time.Since(time.Unix(0, since)) >= idleAfter
}

// isReused reports whether the session has completed an exchange.
func (in *inboundConn) isReused() bool { return in.exchanges.Load() > 0 }

// These errors end a session that has no caller: it was unused for too long, or it is
// no longer admitted. Neither is the refusal of a caller, so neither is counted or
// logged as one.
var (
	errUnused      = errors.New("the session was not used")
	errIdleRevoked = errors.New("the idle session is no longer admitted")
)

// idleOutcome returns the outcome of an idle session as a metric label. It is empty if
// err is about a call.
func idleOutcome(err error) string {
	switch {
	case errors.Is(err, errUnused):
		return sessionRetired
	case errors.Is(err, errIdleRevoked):
		return sessionLost
	}
	return ""
}

// awaitOpen reads OPEN. It blocks until OPEN comes, ctx ends, or the session has waited
// too long. It ends an idle session with close_notify, so that the client knows that no
// application has received anything.
func (a *Agent) awaitOpen(ctx context.Context, conn *tunnel.Conn, in *inboundConn) error {
	wait := openTimeout
	if link := in.decision.Link.UID; a.shares.waiting.Acquire(link) {
		wait = openWait
		defer a.shares.waiting.Release(link)
	}
	a.waiting.Add(1)
	defer a.waiting.Add(-1)
	start := time.Now()
	if err := conn.SetReadDeadline(start.Add(wait)); err != nil {
		return refuse(reasonOther, err)
	}
	in.markAwaitingOpen(start)
	if in.retiring.Load() {
		in.interruptIdle() // the drain notice came before the session waited
	}
	// Both deadlines must be set before this function returns. The exchange that
	// follows clears deadlines only once, so a later deadline would interrupt it.
	stop := afterfunc.Start(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	retired := afterfunc.Start(a.acceptCtx, func() {
		if in.isReused() {
			conn.SetReadDeadline(time.Unix(1, 0))
		} else {
			conn.SetReadDeadline(start.Add(idleAfter))
		}
	})
	defer retired()
	open, err := conn.ReadOpen()
	in.appTimeout, in.protocol = min(open.AppTimeout, maxAppTimeout), open.Protocol
	in.opaque.Store(err == nil && open.Protocol == tunnel.Protocol_OPAQUE)
	if err == nil {
		in.markOpenReceived()
	}
	ended := !stop()
	switch {
	case ended && (in.isIdle() || in.isReused() && err != nil):
		halfClose(conn)
		return fmt.Errorf("%w: %w", errIdleRevoked, context.Cause(ctx))
	case ended:
		in.refusalSent = halfClose(conn) == nil
		return fmt.Errorf("wait for OPEN: %w", context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded) && (in.isIdle() || in.isReused()):
		halfClose(conn)
		return errUnused
	case err == io.EOF:
		return errUnused
	case err != nil:
		return refuse(reasonTunnel, err)
	}
	return nil
}

// halfClose sends close_notify.
func halfClose(conn *tunnel.Conn) error { return conn.Conn.(*tls.Conn).CloseWrite() }
