package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/session"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// Bounds of idle sessions and of preconnected ones.
const (
	maxIdleSessions = 2048
	// sessionIdleTimeout is shorter than the far side's openWait, so that this side
	// ends an idle session.
	sessionIdleTimeout = 90 * time.Second
	// sessionCheckInterval is the time between two checks of idle sessions.
	sessionCheckInterval = 5 * time.Second
	spareSessions        = 2
	// sessionMaxAge is how long a session accepts new exchanges, plus or minus a
	// quarter.
	sessionMaxAge = 30 * time.Minute
	// maxSessionBytes is how many bytes a session carries before it accepts no more
	// exchanges. It is far below the record limit of AES-GCM.
	maxSessionBytes = 32 << 30
	// preconnectRate and preconnectBurst bound how fast the agent preconnects sessions
	// to one peer. preconnectJitter spreads them.
	preconnectRate   = 20 // a second
	preconnectBurst  = 4
	preconnectJitter = 200 * time.Millisecond
	// endpointRefreshAge is how old the known endpoints of a port in use may become.
	// Then the agent preconnects a session, whose answer brings newer ones.
	endpointRefreshAge = 3 * time.Second
	// aperture is the number of endpoints of a port over which one node spreads its
	// connections.
	aperture = 16
	// openTries is how many endpoints are tried before a call is refused.
	openTries = 3
	// retryWindow is how long other endpoints are tried.
	retryWindow = 3 * time.Second
	// How long the agent waits for an application that does not answer. longAppTimeout
	// is as long as callers commonly wait. shortAppTimeout applies while other
	// endpoints may answer.
	longAppTimeout  = time.Minute
	shortAppTimeout = 3 * time.Second
)

// Outcomes of a session, as a metric label.
const (
	sessionMade          = "made"   // for its first caller
	sessionPreconnecting = "begun"  // a preconnect started, which then
	sessionPreconnected  = "ahead"  // succeeded, or
	sessionFailed        = "failed" // failed
	sessionReused        = "reused"
	sessionRetired       = "retired" // ended cleanly, because it was idle or old
	sessionLost          = "lost"    // ended by the far side, broken, or no longer admitted
)

// A sessionKey identifies the sessions that a call can use.
type sessionKey struct {
	caller string // SPIFFE ID
	vip    netip.Addr
	index  int
	// port, hostname and route are the target of the mirror.
	port     remotePort
	hostname string
	route    uint32
}

func (c *outboundConn) sessionKey() sessionKey {
	return sessionKey{c.credential.Name().String(), c.vip, c.index, c.remotePort(), c.mirror.hostname, c.port.route}
}

// A clientSession is one session with a pod of a peer.
type clientSession struct {
	key      sessionKey
	gateway  string       // its address
	outbound outboundConn // the connection that it was made for
	conn     *tunnel.Conn
	retireAt time.Time // when it accepts no more exchanges
	bytes    int64
	// idleCtx ends with the lease of an idle session. stopWatch stops the watch of
	// idleCtx, and release ends the lease. All three are set while the session is idle.
	idleCtx   context.Context
	stopWatch func() bool
	release   func()
	count     func(outcome string) // counts the session in metrics
	// exchange is the one that is open, or the last one.
	exchange *openExchange
}

// Endpoint returns the endpoint that the session reaches.
func (s *clientSession) Endpoint() route.EndpointID { return s.outbound.answer.Endpoint }

// Healthy reports whether the far side has sent nothing since the last exchange, and
// its kernel answers keepalive probes. Any byte would be the end of the session.
func (s *clientSession) Healthy() bool {
	tcp, ok := transport.RawOf(s.conn).Conn.(*net.TCPConn)
	return !ok || transport.IsQuiet(tcp) && !transport.HasUnansweredProbe(tcp)
}

// Retire ends an idle session cleanly. It does not wait, because the far side can send
// nothing more.
func (s *clientSession) Retire() {
	s.endIdleLease()
	outcome := sessionRetired
	if !s.Healthy() {
		outcome = sessionLost
	}
	s.count(outcome)
	transport.RawOf(s.conn).FailSlowWrites() // close_notify fits into the send buffer, or the far side reads nothing
	s.conn.Close()
}

// endIdleLease ends the lease of an idle session. It reports whether the session was
// still admitted.
func (s *clientSession) endIdleLease() bool {
	if s.stopWatch == nil {
		return true
	}
	admitted := s.idleCtx.Err() == nil
	s.stopWatch()
	s.release()
	s.idleCtx, s.stopWatch, s.release = nil, nil, nil
	return admitted
}

// awaitIdleTimeout is how long the agent waits for IDLE before it gives a session up.
const awaitIdleTimeout = 2 * time.Minute

// awaitIdle waits for IDLE, with which the far side reports that the application has
// read the last exchange. Before that, another exchange would wait behind unread bytes.
// If IDLE takes longer than within, the error wraps context.DeadlineExceeded. If ctx
// ends, the error is its cause. Other errors say why the session is not usable.
func (s *clientSession) awaitIdle(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	stop := afterfunc.Start(ctx, func() { s.conn.SetReadDeadline(time.Unix(1, 0)) })
	err := s.conn.ReadIdle()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// abort resets a session that is not usable.
func (s *clientSession) abort() {
	s.count(sessionLost)
	transport.RawOf(s.conn).Reset()
}

// mustRetire reports whether a session may accept no more exchanges. This includes a
// session whose caller has a newer certificate, so that an exchange can stay open for
// as long as possible.
func (a *Agent) mustRetire(s *clientSession) bool {
	newest, ok := a.svids.get(s.outbound.caller.account())
	return !ok || newest != s.outbound.credential || time.Now().After(s.retireAt) || s.bytes > maxSessionBytes ||
		transport.RawOf(s.conn).Worn() || a.penalties.isPenalized(s.gateway, time.Now())
}

// An openedExchange is a call that has reached the application. Its ctx ends with its
// lease, which release ends. releaseShares releases its shares. It is called only after
// awaitIdle, so that a peer that never sends IDLE uses no more than its own share.
type openedExchange struct {
	session       *clientSession
	ctx           context.Context
	release       func()
	releaseShares func()
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
		if try < openTries-1 && len(a.endpoints(out)) > 1 {
			out.appTimeout = shortAppTimeout // another endpoint may answer sooner
		}
		var again bool
		if o, again, err = a.openAtEndpoint(open, life, c, out, endpoint); !again || time.Since(start) > retryWindow {
			break
		}
	}
	if err != nil && errors.Is(context.Cause(open), transport.ErrGone) {
		err = refuse(reasonCallerGone, err)
	}
	return o, err
}

// openAtEndpoint opens a call at one endpoint, or at any endpoint for the zero value.
// ctx bounds the attempt. An open exchange lasts until life ends. If the attempt fails,
// again reports that nothing has reached an application and another endpoint may accept
// the call.
func (a *Agent) openAtEndpoint(ctx, life context.Context, c *net.TCPConn, out *outboundConn, at route.EndpointID) (o *openedExchange, again bool, err error) {
	key := out.sessionKey()
	for {
		s, ok := a.sessions.Take(key, at)
		if !ok {
			return a.openNew(ctx, life, c, out, at)
		}
		if !s.endIdleLease() || a.mustRetire(s) || !s.Healthy() {
			s.Retire()
			continue
		}
		o, notRead, err := a.openReused(ctx, life, c, out, s)
		if err == nil {
			a.metrics.countSession(outbound, sessionReused)
			return o, false, nil
		}
		if !notRead {
			return nil, isEndpointRefusal(err), err
		}
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

// openNew opens a call over a new session. If that fails, again is as openAtEndpoint's.
func (a *Agent) openNew(ctx, life context.Context, c *net.TCPConn, out *outboundConn, at route.EndpointID) (o *openedExchange, again bool, err error) {
	raw, gateway, err := a.dialGateway(ctx, out.peer)
	if err != nil {
		return nil, false, err
	}
	conn, err := a.clientHandshake(ctx, raw, out, hintFor(out, at))
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
			a.metrics.countSession(outbound, sessionMade)
			return a.startExchange(out, s, lease, release), false, nil
		}
	}
	release()
	if tunnel.Reusable(err) && s.awaitIdle(ctx, openTimeout) == nil {
		a.metrics.countSession(outbound, sessionMade)
		a.putIdle(s)
	} else {
		raw.Reset()
	}
	if r := (*refusal)(nil); errors.As(err, &r) {
		return nil, false, r // the caller, or the lease, has ended
	}
	return nil, isEndpointRefusal(err), out.openError(err)
}

// mergeContexts returns a context that ends with a, with b, or after within.
func mergeContexts(a, b context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(b)
	stop := context.AfterFunc(a, func() { end(context.Cause(a)) })
	ctx, cancel := context.WithTimeout(ctx, within)
	return ctx, func() { cancel(); stop(); end(nil) }
}

// isHandshakeReset reports whether a handshake was reset, for example by an agent or a
// gateway that is overloaded or has ended. Then nothing has reached an application, and
// another endpoint may accept the call.
func isHandshakeReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, transport.ErrTruncated)
}

// recordMiss records an endpoint that the gateway did not route to, because its agent
// is unreachable.
func (a *Agent) recordMiss(c *outboundConn, hinted route.EndpointID) {
	none := route.EndpointID{}
	if hinted != none && c.answer.Endpoint != none && c.answer.Endpoint != hinted {
		a.endpointCache.recordMiss(c.remotePort(), hinted)
	}
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

// openError returns the refusal of a call that could not be opened.
func (c *outboundConn) openError(err error) error {
	reason := reasonTunnel
	if r := (*tunnel.Refused)(nil); errors.As(err, &r) {
		reason = "peer_" + r.Code.Reason()
	}
	return refuse(reason, fmt.Errorf("open %s in %s: %w", c.hello(), c.peer.name, err))
}

// newSession returns a session over a connection whose two ends are authenticated for a
// call.
func (a *Agent) newSession(conn *tunnel.Conn, gateway string, c *outboundConn) *clientSession {
	life := sessionMaxAge*3/4 + rand.N(sessionMaxAge/2)
	s := &clientSession{key: c.sessionKey(), gateway: gateway, conn: conn, outbound: *c, retireAt: time.Now().Add(life)}
	s.outbound.earlyData = nil
	s.count = func(outcome string) { a.metrics.countSession(outbound, outcome) }
	return s
}

// putIdle puts a session without an exchange into the pool, or retires it if it may
// accept no more exchanges.
func (a *Agent) putIdle(s *clientSession) {
	if a.mustRetire(s) {
		s.Retire()
		return
	}
	ctx, release := a.leases.grant(a.acceptCtx, a.state.Load, s.idleLease())
	added := a.sessions.Put(s.key, s, func() {
		s.idleCtx, s.release = ctx, release
		s.stopWatch = context.AfterFunc(ctx, func() { a.retireIdle(s) })
	})
	if !added {
		release()
		s.Retire()
	}
}

// retireSiblings retires the idle sessions of the same key and endpoint.
func (a *Agent) retireSiblings(s *clientSession) {
	if s.Endpoint() == (route.EndpointID{}) {
		return
	}
	for {
		other, ok := a.sessions.Take(s.key, s.Endpoint())
		if !ok {
			return
		}
		other.Retire()
	}
}

// retireIdle retires a session if it is still idle.
func (a *Agent) retireIdle(s *clientSession) {
	if a.sessions.Drop(s.key, s) {
		s.Retire()
	}
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

// preconnect makes sessions for future calls like this one: a spare one, one with each
// endpoint that has none, and one whose answer refreshes the known endpoints when they
// are old.
func (a *Agent) preconnect(c *outboundConn) {
	if !a.shares.hasSpareBudget(c.peer.uid) {
		return // the rest of the budget is for calls
	}
	key := c.sessionKey()
	if c.mirror.affinity == 0 && c.mirror.hostname == "" {
		if a.endpointCache.needsRefresh(c.caller.account(), c.remotePort()) {
			a.startPreconnect(key, c, route.EndpointID{}, a.sessions.ReserveExtra)
		}
		for _, e := range a.sessions.Missing(key, a.endpoints(c)) {
			if !a.startPreconnect(key, c, e, a.sessions.ReserveExtra) {
				return
			}
		}
	}
	a.startPreconnect(key, c, route.EndpointID{}, a.sessions.Reserve)
}

// startPreconnect makes a session in the background, if begin and the peer's rate allow
// it.
func (a *Agent) startPreconnect(key sessionKey, c *outboundConn, at route.EndpointID, begin func(sessionKey, route.EndpointID) bool) bool {
	if !begin(key, at) {
		return false
	}
	if !a.preconnectLimiter(c.peer.uid).Allow() {
		a.sessions.Unreserve(key, at)
		return false
	}
	next := outboundConn{vip: c.vip, index: c.index, mirror: c.mirror, port: c.port, peer: c.peer, caller: c.caller}
	a.metrics.countSession(outbound, sessionPreconnecting)
	go func() { // the pool's Close waits for it
		defer a.sessions.Unreserve(key, at)
		backoff.Sleep(a.acceptCtx, rand.N(preconnectJitter))
		err := context.Cause(a.acceptCtx)
		if err == nil {
			err = a.dialSession(key, next, at)
		}
		if err != nil {
			a.metrics.countSession(outbound, sessionFailed)
			a.log.Debug("no session made ahead", "mirror", next.mirror.name, "error", err)
		}
	}()
	return true
}

// preconnectLimiter returns the limiter of preconnects to a peer.
func (a *Agent) preconnectLimiter(link string) *rate.Limiter {
	var limiter *rate.Limiter
	a.preconnectLimiters.update(link, func(was *rate.Limiter, _ time.Duration, there bool) (*rate.Limiter, bool) {
		if limiter = was; !there {
			limiter = rate.NewLimiter(preconnectRate, preconnectBurst)
		}
		return limiter, true
	})
	return limiter
}

// refreshCaller updates a call from the current state, with its caller's newest
// certificate.
func (a *Agent) refreshCaller(key sessionKey, c *outboundConn) error {
	s, err := a.current()
	if err == nil {
		err = c.checkCaller(s)
	}
	if err != nil {
		return err
	}
	c.peer = s.links[c.peer.name]
	if err := c.peer.checkNamespace(c.caller.namespace); err != nil {
		return err
	}
	var ok bool
	if c.credential, ok = a.svids.get(c.caller.account()); !ok || c.credential.Name().String() != key.caller {
		return fmt.Errorf("no certificate for %s", key.caller)
	}
	return nil
}

// dialSession makes a session, exchanges HELLO, and puts the session into the pool.
func (a *Agent) dialSession(key sessionKey, c outboundConn, at route.EndpointID) error {
	if err := a.refreshCaller(key, &c); err != nil {
		return err
	}
	raw, gateway, err := a.dialGateway(a.acceptCtx, c.peer)
	if err != nil {
		return err
	}
	conn, err := a.clientHandshake(a.acceptCtx, raw, &c, hintFor(&c, at))
	if err != nil {
		raw.Reset()
		return err
	}
	ctx, release := a.leases.grant(a.acceptCtx, a.state.Load, c.idleLease())
	defer release()
	helloCtx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if c.answer, err = conn.ExchangeHello(helloCtx, c.hello()); err != nil {
		raw.Reset()
		return err
	}
	a.recordHelloAnswer(&c)
	a.recordMiss(&c, at)
	a.metrics.countSession(outbound, sessionPreconnected)
	a.putIdle(a.newSession(conn, gateway, &c))
	return nil
}

// idleLease is the decision by which s waits for a caller. It also ends with the address
// that s goes by, because whoever takes an address out of a Link wants to turn it off.
func (s *clientSession) idleLease() func(*state) error {
	idle := s.outbound.idleLease()
	return func(now *state) error {
		if err := idle(now); err != nil {
			return err
		}
		if p := now.links[s.outbound.peer.name]; !slices.Contains(p.gateways, s.gateway) {
			return fmt.Errorf("%s is not a gateway address of Link %s any more", s.gateway, p.name)
		}
		return nil
	}
}

// idleLease returns the check that an idle session must keep passing.
func (c outboundConn) idleLease() func(*state) error {
	return func(s *state) error {
		if err := c.checkCaller(s); err != nil {
			return err
		}
		return c.checkExpectedPeer(s)
	}
}

// checkCaller returns an error if no caller like c's could make this call in s.
func (c *outboundConn) checkCaller(s *state) error {
	if err := c.checkMirror(s); err != nil {
		return err
	}
	if !s.callers[c.caller.account()] {
		return fmt.Errorf("no pod of %s/%s is left", c.caller.namespace, c.caller.serviceAccount)
	}
	return nil
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

// markDead penalizes a gateway address through which sent bytes were not acknowledged,
// and drops its idle sessions.
func (a *Agent) markDead(address string) {
	a.penalties.recordDead(address, time.Now())
	a.dropVia(address)
}

// dropVia retires the idle sessions through addresses that failed. A call on such a
// session would be reset. Without the session the call uses another address.
func (a *Agent) dropVia(addresses ...string) {
	if len(addresses) == 0 {
		return
	}
	for _, s := range a.sessions.Idle() {
		if slices.Contains(addresses, s.gateway) {
			a.retireIdle(s)
		}
	}
}

func newSessions() *session.Pool[sessionKey, *clientSession] {
	return session.New[sessionKey, *clientSession](session.Bounds{
		MaxIdle: maxIdleSessions, IdleTimeout: sessionIdleTimeout, CheckInterval: sessionCheckInterval, Endpoints: aperture, Spare: spareSessions,
	})
}
