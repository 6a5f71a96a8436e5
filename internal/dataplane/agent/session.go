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

// Bounds of sessions between exchanges, and of those that are made ahead of their callers.
const (
	maxIdleSessions = 2048
	// idleLife is shorter than the far side's patience, so that it is we who end it.
	idleLife = 90 * time.Second
	// sessionLook is between two looks at whether idle sessions are still sound.
	sessionLook   = 5 * time.Second
	spareSessions = 2
	// sessionLife is how long a session takes new exchanges, give or take a quarter.
	sessionLife = 30 * time.Minute
	// maxCarried is after how many bytes it takes no more: long before AES-GCM's record limit.
	maxCarried = 32 << 30
	// aheadRate and aheadBurst bound how fast sessions are made ahead, for one peer; aheadJitter
	// spreads them.
	aheadRate   = 20 // a second
	aheadBurst  = 4
	aheadJitter = 200 * time.Millisecond
	// scoutAge is how old what is known of a port's endpoints may be, as long as it is called:
	// then a session is made that brings newer news.
	scoutAge = 3 * time.Second
	// aperture is over how many endpoints of a port one node's connections are spread.
	aperture = 16
	// openTries is how many endpoints are tried before a call is refused because none accepts.
	openTries = 3
	// retryTime is after how long no other endpoint is tried.
	retryTime = 3 * time.Second
	// An application that does not answer is waited for so long: as long as a caller commonly
	// waits, unless there are others that may answer.
	longPatience  = time.Minute
	shortPatience = 3 * time.Second
)

// What became of a session, as a metric's label.
const (
	sessionMade    = "made"  // for its first caller
	sessionBegun   = "begun" // ahead of its caller, and within seconds:
	sessionAhead   = "ahead" // made, or
	sessionFailed  = "failed"
	sessionReused  = "reused"
	sessionRetired = "retired" // in good order: it was idle or in use for long enough
	sessionLost    = "lost"    // ended by the far side, broken, or not admitted any more
)

// A sessionKey is what a session can be used for.
type sessionKey struct {
	caller string // SPIFFE ID
	vip    netip.Addr
	index  int
	// to, hostname and route are where that leads.
	to       farPort
	hostname string
	route    uint32
}

func (c *call) sessionKey() sessionKey {
	return sessionKey{c.as.Name().String(), c.vip, c.index, c.farPort(), c.to.hostname, c.port.route}
}

// A clientSession is one session with a pod of a peer.
type clientSession struct {
	key     sessionKey
	by      string // the gateway's address
	call    call   // as whom, to whom, and what the far side answered
	conn    *tunnel.Conn
	until   time.Time // when it takes no more exchanges
	carried int64
	// idle ends with the lease of an idle session. forget stops the pool from learning of that;
	// release ends the lease. All are set while the session is idle.
	idle    context.Context
	forget  func() bool
	release func()
	ended   func(what string) // counts
}

// Endpoint is the one that the session leads to.
func (s *clientSession) Endpoint() route.EndpointID { return s.call.answer.Endpoint }

// Sound reports whether the far side has said nothing since the last exchange, which would be an
// end, and its kernel answers when it is asked whether it is there.
func (s *clientSession) Sound() bool {
	tcp, ok := transport.RawOf(s.conn).Conn.(*net.TCPConn)
	return !ok || transport.Quiet(tcp) && !transport.Unanswered(tcp)
}

// Retire ends an idle session in good order. Nothing can come from the far side any more, so
// there is nothing to wait for.
func (s *clientSession) Retire() {
	s.disarm()
	what := sessionRetired
	if !s.Sound() {
		what = sessionLost
	}
	s.ended(what)
	transport.RawOf(s.conn).Hurry() // close_notify fits, or the far side reads nothing
	s.conn.Close()
}

// disarm ends the lease of an idle session. It reports whether the session was still admitted.
func (s *clientSession) disarm() bool {
	if s.forget == nil {
		return true
	}
	admitted := s.idle.Err() == nil
	s.forget()
	s.release()
	s.idle, s.forget, s.release = nil, nil, nil
	return admitted
}

// settleTime is how long a far application may read what was sent before FIN until its
// session is not used again.
const settleTime = 2 * time.Minute

// settle waits until the far side has taken the last exchange: its application may still be
// reading what was sent before FIN, and another exchange would wait behind it. The error
// wraps context.DeadlineExceeded if that takes longer than within, or ctx's cause, or says
// why the session is of no more use.
func (s *clientSession) settle(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	stop := afterfunc.Start(ctx, func() { s.conn.SetReadDeadline(time.Unix(1, 0)) })
	err := s.conn.ReadIdle()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// lose ends a session that is of no more use.
func (s *clientSession) lose() {
	s.ended(sessionLost)
	transport.RawOf(s.conn).Reset()
}

// spent reports whether a session is to take no more exchanges. One whose caller has a newer
// certificate by now is spent: an exchange is to be proven for as long as can be.
func (a *Agent) spent(s *clientSession) bool {
	newest, ok := a.svids.get(s.call.caller.account())
	return !ok || newest != s.call.as || time.Now().After(s.until) || s.carried > maxCarried ||
		a.detours.avoids(s.by, time.Now())
}

// An opened call has reached the application. Its ctx ends with its lease, which release
// ends. leave gives its shares back: only once its session has settled, so that a peer which
// never says IDLE takes no more than its own share.
type opened struct {
	session *clientSession
	ctx     context.Context
	release func()
	leave   func()
}

// open brings a call to the application: over an idle session, or else over a new one. What an
// endpoint does not take goes to another.
func (a *Agent) open(life context.Context, c *net.TCPConn, call *call) (o *opened, err error) {
	open, stop := transport.WhileOpen(life, c, nil)
	defer stop()
	start := time.Now()
	for try := range openTries {
		endpoint := a.choose(call)
		call.patience = longPatience
		if try < openTries-1 && len(a.endpoints(call)) > 1 {
			call.patience = shortPatience // another may answer sooner
		}
		var again bool
		if o, again, err = a.openAt(open, life, c, call, endpoint); !again || time.Since(start) > retryTime {
			break
		}
	}
	if err != nil && errors.Is(context.Cause(open), transport.ErrGone) {
		err = refuse(reasonCallerGone, err)
	}
	return o, err
}

// openAt opens a call at one endpoint, or at any for the zero value, within ctx; what is open
// then lasts for life. If that fails, again says that nothing has reached an application, and
// another may take the call.
func (a *Agent) openAt(ctx, life context.Context, c *net.TCPConn, call *call, at route.EndpointID) (o *opened, again bool, err error) {
	key := call.sessionKey()
	for {
		s, ok := a.sessions.Take(key, at)
		if !ok {
			return a.openNew(ctx, life, c, call, at)
		}
		if !s.disarm() || a.spent(s) || !s.Sound() {
			s.Retire()
			continue
		}
		o, unread, err := a.openNext(ctx, life, c, call, s)
		if err == nil {
			a.metrics.session(outbound, sessionReused)
			return o, false, nil
		}
		if !unread {
			return nil, turnedAway(err), err
		}
	}
}

// turnedAway reports whether the error is about one endpoint: nothing has reached an
// application, and another endpoint may take the call.
func turnedAway(err error) bool {
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

// openNext opens a call over a session that was idle. If that fails, unread says that the far
// side has not read OPEN, or would refuse every call: it closed in good order before, or there
// was nothing to send, or its refusal was about the session.
func (a *Agent) openNext(ctx, life context.Context, c *net.TCPConn, call *call, s *clientSession) (o *opened, unread bool, err error) {
	if err := call.listen(c); err != nil {
		a.rest(s)
		return nil, false, err
	}
	as, far, answer := call.as, call.far, call.answer
	call.as, call.far, call.answer = s.call.as, s.call.far, s.call.answer
	lease, release := a.leases.hold(life, a.state.Load, call.lease())
	opening, cancel := both(ctx, lease, openTimeout+call.patience)
	watched, certain := a.doubt(opening, s)
	err = s.conn.OpenNext(watched, call.patience, call.first)
	certain()
	defer cancel()
	if err == nil {
		return a.entered(call, s, lease, release), false, nil
	}
	release()
	a.learn(call, s.Endpoint(), err)
	call.as, call.far, call.answer = as, far, answer
	if tunnel.Reusable(err) && s.settle(ctx, openTimeout) == nil {
		a.rest(s)
	} else {
		s.lose()
	}
	if turnedAway(err) && !tunnel.Reusable(err) {
		a.leave(s) // others with that endpoint would be refused as well
	}
	if r := (*refusal)(nil); errors.As(err, &r) {
		return nil, false, r // the lease has ended
	}
	r := (*tunnel.Refused)(nil)
	refused := errors.As(err, &r)
	unread = refused && !turnedAway(err) || errors.Is(err, io.EOF) || !refused && len(call.first) == 0
	return nil, unread, call.unopened(err)
}

// openNew opens a call over a new session. If that fails, again is as openAt's.
func (a *Agent) openNew(ctx, life context.Context, c *net.TCPConn, call *call, at route.EndpointID) (o *opened, again bool, err error) {
	raw, by, err := a.reach(ctx, call.peer)
	if err != nil {
		return nil, false, err
	}
	conn, err := a.prove(ctx, raw, call, wishFor(call, at))
	if err != nil {
		raw.Reset()
		if again = cutShort(err); again && at != (route.EndpointID{}) {
			a.learnt.turnedAway(call.caller.uid, call.farPort(), at)
		}
		return nil, again, err
	}
	s := a.newSession(conn, by, call)
	lease, release := a.leases.hold(life, a.state.Load, call.lease())
	if err = call.listen(c); err == nil {
		opening, cancel := both(ctx, lease, openTimeout+call.patience)
		defer cancel()
		call.answer, err = conn.Open(opening, call.hello(), call.patience, call.first)
		s.call.answer = call.answer
		a.told(call)
		a.learn(call, at, err)
		a.missed(call, at)
		if err == nil {
			a.metrics.session(outbound, sessionMade)
			return a.entered(call, s, lease, release), false, nil
		}
	}
	release()
	if tunnel.Reusable(err) && s.settle(ctx, openTimeout) == nil {
		a.metrics.session(outbound, sessionMade)
		a.rest(s)
	} else {
		raw.Reset()
	}
	if r := (*refusal)(nil); errors.As(err, &r) {
		return nil, false, r // the caller, or the lease, has ended
	}
	return nil, turnedAway(err), call.unopened(err)
}

// both returns a context that ends with a, with b, or after a while.
func both(a, b context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(b)
	stop := context.AfterFunc(a, func() { end(context.Cause(a)) })
	ctx, cancel := context.WithTimeout(ctx, within)
	return ctx, func() { cancel(); stop(); end(nil) }
}

// cutShort reports whether a handshake was reset, as by a far agent or a gateway that is busy or
// has ended: nothing has reached an application, and another may take the call.
func cutShort(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, transport.ErrTruncated)
}

// missed notes an endpoint that the gateway did not lead to: its agent cannot be reached.
func (a *Agent) missed(c *call, wished route.EndpointID) {
	none := route.EndpointID{}
	if wished != none && c.answer.Endpoint != none && c.answer.Endpoint != wished {
		a.learnt.missed(c.farPort(), wished)
	}
}

// entered counts an exchange in that is open now.
func (a *Agent) entered(call *call, s *clientSession, ctx context.Context, release func()) *opened {
	leave := a.sessions.Enter(s.key, s.Endpoint())
	if call.to.affinity > 0 {
		a.learnt.visited(call.caller.uid, call.farPort(), s.Endpoint())
	}
	return &opened{session: s, ctx: ctx, release: func() { leave(); release() }}
}

// unopened is why a call was not opened, with its reason.
func (c *call) unopened(err error) error {
	reason := reasonTunnel
	if r := (*tunnel.Refused)(nil); errors.As(err, &r) {
		reason = "peer_" + r.Code.Reason()
	}
	return refuse(reason, fmt.Errorf("open %s in %s: %w", c.hello(), c.peer.name, err))
}

// newSession makes a session of a connection whose ends have proven themselves for a call.
func (a *Agent) newSession(conn *tunnel.Conn, by string, c *call) *clientSession {
	life := sessionLife*3/4 + rand.N(sessionLife/2)
	s := &clientSession{key: c.sessionKey(), by: by, conn: conn, call: *c, until: time.Now().Add(life)}
	s.call.first = nil
	s.ended = func(what string) { a.metrics.session(outbound, what) }
	return s
}

// rest lets a session that is between exchanges wait for the next, unless it is spent.
func (a *Agent) rest(s *clientSession) {
	if a.spent(s) {
		s.Retire()
		return
	}
	ctx, release := a.leases.hold(a.taking, a.state.Load, s.idleLease())
	kept := a.sessions.Put(s.key, s, func() {
		s.idle, s.release = ctx, release
		s.forget = context.AfterFunc(ctx, func() { a.drop(s) })
	})
	if !kept {
		release()
		s.Retire()
	}
}

// leave retires the idle sessions of the same key with the same endpoint.
func (a *Agent) leave(s *clientSession) {
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

// drop retires a session, if it is still idle.
func (a *Agent) drop(s *clientSession) {
	if a.sessions.Drop(s.key, s) {
		s.Retire()
	}
}

// choose returns the endpoint that a call should reach; the zero value leaves that to the gateway.
func (a *Agent) choose(c *call) route.EndpointID {
	if c.to.hostname != "" {
		return route.EndpointID{}
	}
	if last := a.learnt.last(c.caller.uid, c.farPort(), c.to.affinity); last != (route.EndpointID{}) {
		return last
	}
	return a.sessions.Pick(c.sessionKey(), a.endpoints(c))
}

// endpoints are those over which this node's connections to a port are spread.
func (a *Agent) endpoints(c *call) []route.EndpointID {
	known, ok := a.learnt.known(c.caller.account(), c.farPort())
	if !ok {
		return nil
	}
	ready := a.learnt.without(known.ready, c.farPort())
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

// wishFor is what a new session asks the gateway for.
func wishFor(c *call, at route.EndpointID) route.Wish {
	switch {
	case c.to.hostname != "":
		return route.ForHost(c.to.hostname)
	case at != route.EndpointID{}:
		return route.ForEndpoint(at)
	}
	return route.Wish{}
}

// prepare makes sessions ahead for the next calls like this one: a spare one, one with each
// endpoint that has none, and one that brings news of the endpoints when what is known is old.
func (a *Agent) prepare(c *call) {
	if !a.shares.roomy(c.peer.uid) {
		return // others need it more
	}
	key := c.sessionKey()
	if c.to.affinity == 0 && c.to.hostname == "" {
		if a.learnt.ask(c.caller.account(), c.farPort()) {
			a.ahead(key, c, route.EndpointID{}, a.sessions.BeginMore)
		}
		for _, e := range a.sessions.Lacks(key, a.endpoints(c)) {
			if !a.ahead(key, c, e, a.sessions.BeginMore) {
				return
			}
		}
	}
	a.ahead(key, c, route.EndpointID{}, a.sessions.Begin)
}

// ahead makes a session in the background, if begin and the peer's rate allow it.
func (a *Agent) ahead(key sessionKey, c *call, at route.EndpointID, begin func(sessionKey, route.EndpointID) bool) bool {
	if !begin(key, at) {
		return false
	}
	if !a.bucket(c.peer.uid).Allow() {
		a.sessions.Done(key, at)
		return false
	}
	next := call{vip: c.vip, index: c.index, to: c.to, port: c.port, peer: c.peer, caller: c.caller}
	a.metrics.session(outbound, sessionBegun)
	go func() { // which the pool's Close waits for
		defer a.sessions.Done(key, at)
		backoff.Sleep(a.taking, rand.N(aheadJitter))
		err := context.Cause(a.taking)
		if err == nil {
			err = a.makeAhead(key, next, at)
		}
		if err != nil {
			a.metrics.session(outbound, sessionFailed)
			a.log.Debug("no session made ahead", "mirror", next.to.name, "error", err)
		}
	}()
	return true
}

// bucket bounds how fast sessions to a peer are made ahead.
func (a *Agent) bucket(link string) *rate.Limiter {
	var limiter *rate.Limiter
	a.buckets.put(link, func(was *rate.Limiter, _ time.Duration, there bool) (*rate.Limiter, bool) {
		if limiter = was; !there {
			limiter = rate.NewLimiter(aheadRate, aheadBurst)
		}
		return limiter, true
	})
	return limiter
}

// freshen brings a call that was made to the state in force and its caller's newest certificate.
func (a *Agent) freshen(key sessionKey, c *call) error {
	s, err := a.current()
	if err == nil {
		err = c.welcome(s)
	}
	if err != nil {
		return err
	}
	c.peer = s.links[c.peer.name]
	if err := c.peer.admits(c.caller.namespace); err != nil {
		return err
	}
	var ok bool
	if c.as, ok = a.svids.get(c.caller.account()); !ok || c.as.Name().String() != key.caller {
		return fmt.Errorf("no certificate for %s", key.caller)
	}
	return nil
}

// makeAhead makes a session, says HELLO, and puts it into the pool.
func (a *Agent) makeAhead(key sessionKey, c call, at route.EndpointID) error {
	if err := a.freshen(key, &c); err != nil {
		return err
	}
	raw, by, err := a.reach(a.taking, c.peer)
	if err != nil {
		return err
	}
	conn, err := a.prove(a.taking, raw, &c, wishFor(&c, at))
	if err != nil {
		raw.Reset()
		return err
	}
	ctx, release := a.leases.hold(a.taking, a.state.Load, c.idleLease())
	defer release()
	greeting, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if c.answer, err = conn.Greet(greeting, c.hello()); err != nil {
		raw.Reset()
		return err
	}
	a.told(&c)
	a.missed(&c, at)
	a.metrics.session(outbound, sessionAhead)
	a.rest(a.newSession(conn, by, &c))
	return nil
}

// idleLease is the decision by which s waits for a caller. It also ends with the address
// that s goes by, because whoever takes an address out of a Link wants to turn it off.
func (s *clientSession) idleLease() func(*state) error {
	idle := s.call.idleLease()
	return func(now *state) error {
		if err := idle(now); err != nil {
			return err
		}
		if p := now.links[s.call.peer.name]; !slices.Contains(p.gateways, s.by) {
			return fmt.Errorf("%s is not a gateway address of Link %s any more", s.by, p.name)
		}
		return nil
	}
}

// idleLease is the decision by which a session waits for a caller.
func (c call) idleLease() func(*state) error {
	return func(s *state) error {
		if err := c.welcome(s); err != nil {
			return err
		}
		return c.expected(s)
	}
}

// welcome says why a caller like c's would not make the call any more in s.
func (c *call) welcome(s *state) error {
	if err := c.leads(s); err != nil {
		return err
	}
	if !s.callers[c.caller.account()] {
		return fmt.Errorf("no pod of %s/%s is left", c.caller.namespace, c.caller.serviceAccount)
	}
	return nil
}

// doubt watches a reused session while OPEN is unanswered, until the caller calls stop.
// Each second it checks whether sent bytes were retransmitted and are still not
// acknowledged. If so, the network path has failed. doubt then resets the session, so
// that the caller does not wait as long as for a slow application.
func (a *Agent) doubt(ctx context.Context, s *clientSession) (open context.Context, stop func()) {
	raw := transport.RawOf(s.conn)
	tcp, ok := raw.Conn.(*net.TCPConn)
	if !ok {
		return ctx, func() {}
	}
	return transport.WhileOpen(ctx, tcp, func() {
		if transport.Unheard(tcp) {
			raw.Reset()
			a.lostWay(s.by)
		}
	})
}

// lostWay takes in that nobody has heard what was sent by way of a gateway's address.
func (a *Agent) lostWay(address string) {
	a.detours.lost(address, time.Now())
	a.forsake(address)
}

// forsake ends what is idle by way of addresses that this node has found wanting. A caller on
// such a session could only be reset; without it, its call goes another way.
func (a *Agent) forsake(addresses ...string) {
	if len(addresses) == 0 {
		return
	}
	for _, s := range a.sessions.Idle() {
		if slices.Contains(addresses, s.by) {
			a.drop(s)
		}
	}
}

func newSessions() *session.Pool[sessionKey, *clientSession] {
	return session.New[sessionKey, *clientSession](session.Bounds{
		Idle: maxIdleSessions, Life: idleLife, Look: sessionLook, Endpoints: aperture, Spare: spareSessions,
	})
}
