package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

const (
	// aperture is the number of endpoints of a port over which one node spreads its
	// connections.
	aperture = 16
	// openTries is how many endpoints are tried before a call is refused.
	openTries = 3
	// retryWindow is how long the agent tries other endpoints. It does not include the
	// time in which applications did not answer.
	retryWindow = 3 * time.Second
	// How long the agent waits for an application that does not answer. longAppTimeout
	// is as long as the kernel of a caller in the same cluster would wait: its last SYN
	// is sent 63 s after the first one. shortAppTimeout applies while other endpoints
	// may answer.
	longAppTimeout  = maxAppTimeout
	shortAppTimeout = 3 * time.Second
)

// An openedExchange is a call that has reached the application. Its ctx ends with its
// lease, which release ends.
type openedExchange struct {
	session *clientSession
	ctx     context.Context
	release func()
}

// openUpstream opens a call to the application, over an idle session or a new one. If
// an endpoint refuses the call, it tries another.
func (a *Agent) openUpstream(life context.Context, c *net.TCPConn, out *outboundConn) (o *openedExchange, err error) {
	open, stop := transport.WatchClose(life, c, nil)
	defer stop()
	start := time.Now()
	for try := range openTries {
		endpoint := a.pickEndpoint(out)
		out.appTimeout = longAppTimeout
		if try < openTries-1 && a.mayHaveOthers(out) {
			out.appTimeout = shortAppTimeout // another endpoint may answer sooner
		}
		var again bool
		o, again, err = a.openAtEndpoint(open, life, c, out, endpoint)
		if again && isAppTimeout(err) {
			start = time.Now()
		}
		if !again || time.Since(start) > retryWindow {
			break
		}
	}
	if err != nil && errors.Is(context.Cause(open), transport.ErrGone) {
		err = refuse(reasonCallerGone, err)
	}
	return o, err
}

// mayHaveOthers reports whether a call can reach more than one endpoint, as far as this
// node knows.
func (a *Agent) mayHaveOthers(out *outboundConn) bool {
	if out.mirror.hostname != "" {
		return false
	}
	known, ok := a.endpointCache.lookup(out.caller.account(), out.remotePort())
	return !ok || len(known.ready) > 1
}

// openAtEndpoint opens a call at one endpoint, or at any endpoint for the zero value.
// ctx bounds the attempt. An open exchange lasts until life ends. If the attempt fails,
// again reports that nothing has reached an application and another endpoint may accept
// the call.
func (a *Agent) openAtEndpoint(ctx, life context.Context, c *net.TCPConn, out *outboundConn, at route.EndpointID) (o *openedExchange, again bool, err error) {
	key := out.sessionKey()
	var making *slot
	for {
		s, ok := a.sessions.Take(key, at)
		if !ok && making == nil {
			if making, err = a.awaitNewSession(ctx, c, out); err != nil {
				return nil, false, err
			}
			defer making.end()
			continue // a session may have become idle meanwhile
		}
		if !ok {
			return a.openNew(ctx, life, c, out, at, making)
		}
		if making != nil {
			making.end()
		}
		if !s.endIdleLease() || a.mustRetire(s) || !s.Healthy() {
			s.Retire()
			continue
		}
		o, notRead, err := a.openReused(ctx, life, c, out, s)
		if err == nil {
			a.metrics.countSession(outbound, out.peer.name, sessionReused)
			return o, false, nil
		}
		if !notRead {
			return nil, isEndpointRefusal(err), err
		}
	}
}

// openReused opens a call over a session that was idle. If that fails, notRead reports
// that the far side has not read OPEN or would refuse every call. Then it closed the
// session cleanly before, or there were no bytes to send, or it refused the session
// itself.
func (a *Agent) openReused(ctx, life context.Context, c *net.TCPConn, out *outboundConn, s *clientSession) (o *openedExchange, notRead bool, err error) {
	if err := out.appendEarlyData(c); err != nil {
		a.putIdle(s)
		return nil, false, err
	}
	credential, verified, answer := out.credential, out.verified, out.answer
	out.credential, out.verified, out.answer = s.outbound.credential, s.outbound.verified, s.outbound.answer
	lease, release := a.grantOpen(life, out, s)
	opening, cancel := mergeContexts(ctx, lease, openTimeout+out.appTimeout)
	watched, stopWatch := a.abortIfDead(opening, s)
	err = s.conn.OpenNext(watched, out.appTimeout, out.earlyData)
	stopWatch()
	defer cancel()
	if err == nil {
		return a.startExchange(out, s, lease, release), false, nil
	}
	release()
	a.recordOpenRefusal(out, s.Endpoint(), err)
	out.credential, out.verified, out.answer = credential, verified, answer
	if tunnel.Reusable(err) && s.awaitIdle(ctx, openTimeout) == nil {
		a.putIdle(s)
	} else {
		s.abort()
	}
	if isEndpointRefusal(err) && !tunnel.Reusable(err) {
		a.retireSiblings(s) // others with that endpoint would be refused as well
	}
	if r := (*refusal)(nil); errors.As(err, &r) {
		return nil, false, r // the lease has ended
	}
	r := (*tunnel.Refused)(nil)
	refused := errors.As(err, &r)
	notRead = refused && !isEndpointRefusal(err) || errors.Is(err, io.EOF) || !refused && len(out.earlyData) == 0
	return nil, notRead, out.openError(err)
}

// openNew opens a call over a new session. After the handshake it ends the turn making.
// If openNew fails, again is as openAtEndpoint's.
func (a *Agent) openNew(ctx, life context.Context, c *net.TCPConn, out *outboundConn, at route.EndpointID, making *slot) (o *openedExchange, again bool, err error) {
	raw, gateway, err := a.dialGateway(ctx, out.peer)
	if err != nil {
		return nil, false, err
	}
	conn, err := a.clientHandshake(ctx, raw, out, hintFor(out, at))
	making.end()
	if err != nil {
		raw.Reset()
		if again = isHandshakeReset(err); again && at != (route.EndpointID{}) {
			a.endpointCache.recordRefusal(out.caller.uid, out.remotePort(), at)
		}
		return nil, again, err
	}
	s := a.newSession(conn, gateway, out)
	lease, release := a.grantOpen(life, out, s)
	if err = out.appendEarlyData(c); err == nil {
		opening, cancel := mergeContexts(ctx, lease, openTimeout+out.appTimeout)
		defer cancel()
		out.answer, err = conn.Open(opening, out.hello(), out.appTimeout, out.earlyData)
		s.outbound.answer = out.answer
		a.recordHelloAnswer(out)
		a.recordOpenRefusal(out, at, err)
		a.recordMiss(out, at)
		if err == nil {
			a.metrics.countSession(outbound, out.peer.name, sessionMade)
			return a.startExchange(out, s, lease, release), false, nil
		}
	}
	release()
	if tunnel.Reusable(err) && s.awaitIdle(ctx, openTimeout) == nil {
		a.metrics.countSession(outbound, out.peer.name, sessionMade)
		a.putIdle(s)
	} else {
		raw.Reset()
	}
	if r := (*refusal)(nil); errors.As(err, &r) {
		return nil, false, r // the caller, or the lease, has ended
	}
	return nil, isEndpointRefusal(err), out.openError(err)
}

// startExchange counts an exchange that has been opened.
func (a *Agent) startExchange(out *outboundConn, s *clientSession, ctx context.Context, release func()) *openedExchange {
	s.exchange.begin()
	leave := a.sessions.StartExchange(s.key, s.Endpoint())
	if out.mirror.affinity > 0 {
		a.endpointCache.recordVisit(out.caller.uid, out.remotePort(), s.Endpoint())
	}
	return &openedExchange{session: s, ctx: ctx, release: func() { leave(); release() }}
}

// pickEndpoint returns the endpoint that a call should reach. The zero value leaves the
// choice to the gateway.
func (a *Agent) pickEndpoint(c *outboundConn) route.EndpointID {
	if c.mirror.hostname != "" {
		return route.EndpointID{}
	}
	if last := a.endpointCache.lastVisited(c.caller.uid, c.remotePort(), c.mirror.affinity); last != (route.EndpointID{}) {
		return last
	}
	return a.sessions.Pick(c.sessionKey(), a.endpoints(c))
}

// endpoints returns the endpoints of a port over which this node spreads its
// connections.
func (a *Agent) endpoints(c *outboundConn) []route.EndpointID {
	known, ok := a.endpointCache.lookup(c.caller.account(), c.remotePort())
	if !ok {
		return nil
	}
	ready := a.endpointCache.available(known.ready, c.remotePort())
	if near := a.inZone(c, known, ready); len(near) > 0 {
		ready = near
	}
	if len(ready) <= aperture {
		return ready
	}
	// Each node has its own aperture, and keeps it.
	ready = slices.Clone(ready)
	at := func(id route.EndpointID) uint64 { return maphash.Comparable(a.seed, id) }
	slices.SortFunc(ready, func(x, y route.EndpointID) int {
		if at(x) < at(y) {
			return -1
		}
		return 1
	})
	return ready[:aperture]
}

// inZone returns the endpoints of ready that are in the zone of this node. It returns
// none if the Service does not prefer the caller's zone, or if the peer reports no zones.
func (a *Agent) inZone(c *outboundConn, known endpointSet, ready []route.EndpointID) []route.EndpointID {
	if len(known.near) == 0 || !a.prefersSameZone(c) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(ready), func(id route.EndpointID) bool {
		return !slices.Contains(known.near, id)
	})
}

// hintFor returns the hint of a new session to the gateway.
func hintFor(c *outboundConn, at route.EndpointID) route.Hint {
	switch {
	case c.mirror.hostname != "":
		return route.ForHost(c.mirror.hostname)
	case at != route.EndpointID{}:
		return route.ForEndpoint(at)
	}
	return route.Hint{}
}

// recordMiss records an endpoint that the gateway did not route to, because its agent
// is unreachable.
func (a *Agent) recordMiss(c *outboundConn, hinted route.EndpointID) {
	none := route.EndpointID{}
	if hinted != none && c.answer.Endpoint != none && c.answer.Endpoint != hinted {
		a.endpointCache.recordMiss(c.remotePort(), hinted)
	}
}

// isEndpointRefusal reports whether the error is about one endpoint: nothing has
// reached an application, and another endpoint may take the call.
func isEndpointRefusal(err error) bool {
	r := (*tunnel.Refused)(nil)
	if !errors.As(err, &r) {
		return false
	}
	switch r.Code {
	case tunnel.Code_POD_REFUSED, tunnel.Code_POD_TIMEOUT, tunnel.Code_NO_ENDPOINT:
		return true
	}
	return false
}

// isAppTimeout reports whether an application did not answer.
func isAppTimeout(err error) bool {
	r := (*tunnel.Refused)(nil)
	return errors.As(err, &r) && r.Code == tunnel.Code_POD_TIMEOUT
}

// isHandshakeReset reports whether a handshake was reset, for example by an agent or a
// gateway that is overloaded or has ended. Then nothing has reached an application, and
// another endpoint may accept the call.
func isHandshakeReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, transport.ErrTruncated)
}

// openError returns the refusal of a call that could not be opened.
func (c *outboundConn) openError(err error) error {
	reason := reasonTunnel
	if r := (*tunnel.Refused)(nil); errors.As(err, &r) {
		reason = "peer_" + r.Code.Reason()
	}
	return refuse(reason, fmt.Errorf("open %s in %s: %w", c.hello(), c.peer.name, err))
}

// abortIfDead watches a reused session while OPEN is unanswered, until the caller calls
// stop. Each second it checks whether sent bytes were retransmitted and are still not
// acknowledged. If so, the network path has failed, and abortIfDead resets the session.
// So the caller does not wait as long as for a slow application.
func (a *Agent) abortIfDead(ctx context.Context, s *clientSession) (open context.Context, stop func()) {
	raw := transport.RawOf(s.conn)
	tcp, ok := raw.Conn.(*net.TCPConn)
	if !ok {
		return ctx, func() {}
	}
	return transport.WatchClose(ctx, tcp, func() {
		if transport.HasUnacked(tcp) {
			raw.Reset()
			a.markDead(s.gateway)
		}
	})
}

// mergeContexts returns a context that ends with a, with b, or after within.
func mergeContexts(a, b context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(b)
	stop := context.AfterFunc(a, func() { end(context.Cause(a)) })
	ctx, cancel := context.WithTimeout(ctx, within)
	return ctx, func() { cancel(); stop(); end(nil) }
}
