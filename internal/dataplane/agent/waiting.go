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
	// idlePatience is how long a session may wait for OPEN. After warmAfter without OPEN
	// the session counts as idle. Until then a caller may have sent OPEN together with
	// HELLO.
	idlePatience = 2 * time.Minute
	warmAfter    = time.Second
	// maxWaiting is how many sessions may wait so long, in shares by link. Of more, each has
	// openTimeout.
	maxWaiting = 8192
)

// nobodyThere reports whether the session waits for a caller who has not come.
func (in *arrival) nobodyThere() bool {
	since := in.idleSince.Load()
	return since != 0 && time.Since(time.Unix(0, since)) >= warmAfter
}

// between reports whether the session is between two exchanges: the last one's caller has gone.
func (in *arrival) between() bool { return in.exchanges.Load() > 0 }

// How a session ends that nobody is on: in its time, or because it would not be admitted any
// more. Neither is a caller's refusal, so neither is counted or told as one.
var (
	errUnused = errors.New("nobody came for the session")
	errLost   = errors.New("the session was taken back while nobody was on it")
)

// nobodyCame is what became of an idle session, as a metric's label, or empty if err is about a call.
func nobodyCame(err error) string {
	switch {
	case errors.Is(err, errUnused):
		return sessionRetired
	case errors.Is(err, errLost):
		return sessionLost
	}
	return ""
}

// awaitOpen reads OPEN. It blocks until OPEN comes, ctx ends, or the session has waited
// too long. It ends an idle session with close_notify, so that the client knows that no
// application has received anything.
func (a *Agent) awaitOpen(ctx context.Context, conn *tunnel.Conn, in *arrival) error {
	wait := openTimeout
	if link := in.to.Link.UID; a.shares.waiting.Enter(link) {
		wait = idlePatience
		defer a.shares.waiting.Leave(link)
	}
	a.waiting.Add(1)
	defer a.waiting.Add(-1)
	start := time.Now()
	if err := conn.SetReadDeadline(start.Add(wait)); err != nil {
		return refuse(reasonOther, err)
	}
	in.waits(start)
	if in.retiring.Load() {
		in.wake() // the notice has come before the session waited
	}
	// Both deadlines must be set before this function returns: the exchange that follows clears
	// deadlines once, and a later one would cut it.
	stop := afterfunc.Start(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	retired := afterfunc.Start(a.taking, func() {
		if in.between() {
			conn.SetReadDeadline(time.Unix(1, 0))
		} else {
			conn.SetReadDeadline(start.Add(warmAfter))
		}
	})
	defer retired()
	patience, err := conn.ReadOpen()
	in.patience = min(patience, maxPatience)
	if err == nil {
		in.opens()
	}
	ended := !stop()
	switch {
	case ended && (in.nobodyThere() || in.between() && err != nil):
		halfClose(conn)
		return fmt.Errorf("%w: %w", errLost, context.Cause(ctx))
	case ended:
		in.told = halfClose(conn) == nil
		return fmt.Errorf("wait for OPEN: %w", context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded) && (in.nobodyThere() || in.between()):
		halfClose(conn)
		return errUnused
	case err == io.EOF:
		return errUnused
	case err != nil:
		return refuse(reasonTunnel, err)
	}
	return nil
}

// halfClose says close_notify.
func halfClose(conn *tunnel.Conn) error { return conn.Conn.(*tls.Conn).CloseWrite() }
