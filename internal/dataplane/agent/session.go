package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
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
)

// Outcomes of a session, as a metric label.
const (
	sessionMade          = "created"           // for its first caller
	sessionPreconnecting = "preconnecting"     // a preconnect started, which then
	sessionPreconnected  = "preconnected"      // succeeded, or
	sessionFailed        = "preconnect_failed" // failed
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

// newSession returns a session over a connection whose two ends are authenticated for a
// call.
func (a *Agent) newSession(conn *tunnel.Conn, gateway string, c *outboundConn) *clientSession {
	life := sessionMaxAge*3/4 + rand.N(sessionMaxAge/2)
	s := &clientSession{key: c.sessionKey(), gateway: gateway, conn: conn, outbound: *c, retireAt: time.Now().Add(life)}
	s.outbound.earlyData = nil
	link := c.peer.name
	s.count = func(outcome string) { a.metrics.countSession(outbound, link, outcome) }
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

// idleLease returns the check that the idle session must keep passing. It also fails if
// the Link no longer has the gateway address that s uses: an administrator who removes
// an address wants it to become unused.
func (s *clientSession) idleLease() func(*state) error {
	idle := s.outbound.idleLease()
	return func(now *state) error {
		if err := idle(now); err != nil {
			return err
		}
		if p := now.links[s.outbound.peer.name]; !slices.Contains(p.gateways, s.gateway) {
			return fmt.Errorf("gateway address %s is no longer listed in Link %s", s.gateway, p.name)
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
