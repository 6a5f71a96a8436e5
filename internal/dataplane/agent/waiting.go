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
	// warmTimeout is how long a tunnel may wait between HELLO and OPEN, and warmAfter how
	// long it waits until it is a warm one: before, its caller is there already.
	warmTimeout = time.Minute
	warmAfter   = time.Second
	// maxWaiting is how many tunnels may wait so long. Of more, each has openTimeout.
	maxWaiting = 4096
)

// warm reports whether the tunnel was opened for a caller yet to come, who has not come.
func (in *arrival) warm() bool { return !in.opened.Load() && time.Since(in.greeted) >= warmAfter }

// How a warm tunnel ends that nobody came for: in its time, or because it would not be
// admitted any more. Neither is a caller's refusal, so neither is counted or told as one.
var (
	errUnused = errors.New("nobody came for the tunnel")
	errLost   = errors.New("the tunnel was taken back before anybody came for it")
)

// nobodyCame is what became of a warm tunnel, as a metric's label, or empty if err is about a call.
func nobodyCame(err error) string {
	switch {
	case errors.Is(err, errUnused):
		return warmUnused
	case errors.Is(err, errLost):
		return warmLost
	}
	return ""
}

// awaitOpen reads OPEN, until ctx ends, or nobody may be expected to come any more. It
// ends a warm tunnel by close_notify, from which the client knows that no application
// has got anything.
func (a *Agent) awaitOpen(ctx context.Context, tun *tls.Conn, in *arrival) error {
	wait := openTimeout
	if a.waiting.Add(1) <= maxWaiting {
		wait = warmTimeout
	}
	defer a.waiting.Add(-1)
	if err := tun.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return refuse(reasonOther, err)
	}
	// Both deadlines must be set before this function returns: the session that follows
	// clears deadlines once, and a later one would cut it.
	stop := afterfunc.Start(ctx, func() { tun.SetReadDeadline(time.Unix(1, 0)) })
	retired := afterfunc.Start(a.taking, func() { tun.SetReadDeadline(in.greeted.Add(warmAfter)) })
	defer retired()
	err := tunnel.ReadOpen(tun)
	in.opened.Store(err == nil)
	ended := !stop()
	switch {
	case ended && in.warm():
		tun.CloseWrite()
		return fmt.Errorf("%w: %w", errLost, context.Cause(ctx))
	case ended:
		in.told = tun.CloseWrite() == nil
		return fmt.Errorf("wait for OPEN: %w", context.Cause(ctx))
	case errors.Is(err, os.ErrDeadlineExceeded) && in.warm():
		tun.CloseWrite()
		return errUnused
	case err == io.EOF:
		return errUnused
	case err != nil:
		return refuse(reasonTunnel, err)
	}
	return nil
}
