package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// openApp waits for OPEN, dials the application, and answers. For requests it does not dial. It decides again, because
// OPEN may come long after HELLO.
func (a *Agent) openApp(ctx context.Context, c *net.TCPConn, conn *tunnel.Conn, in *inboundConn) (*net.TCPConn, error) {
	in.refusalSent = false
	if err := a.awaitOpen(ctx, conn, in); err != nil {
		return nil, err
	}
	var to admit.Decision
	var s *state
	err := a.awaitRate(ctx, in)
	if err == nil {
		s, err = a.current()
	}
	if err == nil {
		to, in.addrs, err = decide(s, in)
	}
	if err == nil {
		err = in.checkForwardable(s)
	}
	var app *net.TCPConn
	if err == nil {
		in.decision = to
		if in.protocol == tunnel.Protocol_OPAQUE {
			app, err = a.dialPod(ctx, s, c, in)
		}
	}
	code := tunnel.Code_OK
	if err != nil {
		code = codeOf(err)
	}
	werr := conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if werr == nil {
		werr = tunnel.WriteOpenAnswer(conn, code)
	}
	if err == nil && werr != nil {
		if app != nil {
			transport.Reset(app)
		}
		return nil, refuse(reasonTunnel, werr)
	}
	in.refusalSent, in.openAnswered = err != nil && werr == nil, err == nil
	return app, err
}

// The interval and the number of attempts of an exchange that exceeds its caller's
// rate.
const (
	ratePause = 20 * time.Millisecond
	rateTries = 100
)

// awaitRate waits until the caller's rate admits another exchange.
func (a *Agent) awaitRate(ctx context.Context, in *inboundConn) error {
	for range rateTries {
		if a.rates.exchanges.Allow(in.caller.String()) {
			return nil
		}
		if !backoff.Sleep(ctx, ratePause) {
			break
		}
	}
	return &refusal{reason: reasonExchangeRate, code: tunnel.Code_OVERLOADED, err: fmt.Errorf("%s makes too many calls a second", in.caller)}
}

// dialPod connects to the application at the first of the pod's addresses that answers.
// Each address must still belong to the pod that was admitted. If the kernel has not
// heard from a pod for long, the dial makes the kernel look for it. The dial itself
// sends no data, so the address is checked again before the first byte.
func (a *Agent) dialPod(ctx context.Context, s *state, c *net.TCPConn, in *inboundConn) (*net.TCPConn, error) {
	var there []string
	var err error
	for _, addr := range in.addrs {
		if serr := a.checkPodAddress(s, in, addr.Addr()); serr != nil && !errors.Is(serr, podid.ErrSilent) {
			err = serr
			continue
		}
		there = append(there, addr.String())
	}
	if len(there) == 0 {
		return nil, err
	}
	timeout := in.appTimeout
	if timeout == 0 {
		timeout = podTimeout
	}
	open, stop := transport.WatchClose(ctx, c, nil) // the client may leave
	defer stop()
	conn, winner, err := transport.Dialer{Timeout: timeout, Delay: podDelay, Dial: a.dialApp}.DialFirst(open, there...)
	switch {
	case err == nil:
	case errors.Is(err, transport.ErrNoLocalPort):
		return nil, &refusal{reason: reasonLocalPorts, code: tunnel.Code_OVERLOADED, err: fmt.Errorf("this node has no local port left: %w", err)}
	case refusedByAll(err, len(there)):
		return nil, &refusal{reason: reasonPodRefused, code: tunnel.Code_POD_REFUSED, err: fmt.Errorf("the pod refuses connections: %w", err)}
	default:
		return nil, &refusal{reason: reasonPodTimeout, code: tunnel.Code_POD_TIMEOUT, err: fmt.Errorf("the pod does not answer: %w", err)}
	}
	app := conn.(*net.TCPConn) // DialFirst has tuned it
	addr := netip.MustParseAddrPort(there[winner]).Addr()
	if err := a.checkPodAddress(s, in, addr); err != nil {
		transport.Reset(app)
		return nil, err
	}
	if err := in.forwardCaller(s, app); err != nil {
		transport.Reset(app)
		return nil, err
	}
	return app, nil
}

// refusedByAll reports whether each of the dialed addresses refused the connection.
func refusedByAll(err error, dialed int) bool {
	return errors.Is(err, syscall.ECONNREFUSED) && (dialed == 1 || !errors.Is(err, context.DeadlineExceeded))
}

// checkPodAddress returns why an address no longer belongs to the pod of the session,
// or nil.
func (a *Agent) checkPodAddress(s *state, in *inboundConn, addr netip.Addr) error {
	p, err := a.podAt(s, addr, 0)
	if err == nil && p.uid == in.header.PodUID {
		return nil
	}
	r := podLookupRefusal(reasonUnknownPod, errors.Join(fmt.Errorf("address %v does not stand for the pod any more", addr), err))
	r.code = tunnel.Code_NO_ENDPOINT
	return r
}
