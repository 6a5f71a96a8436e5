package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/balance"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

const (
	// maxRequests is how many requests a peer may have open in one session.
	maxRequests = 256
	// resetRate is how many requests per second a peer may reset in one session. It is
	// high because the requests of many callers may time out at the same moment.
	resetRate = 5000
	// busyRequests is how many open requests make the agent open another session to the
	// same endpoint.
	busyRequests = 128
	// upkeepInterval is the time between two looks at which endpoints a group knows and
	// lacks sessions with.
	upkeepInterval = 500 * time.Millisecond
	// requestIdleTimeout is how long a session without requests stays open. It is shorter
	// than the far side's openWait.
	requestIdleTimeout = 90 * time.Second
	// affinityWait is how long a request waits for the session that it prefers, if there
	// is a session with another endpoint. It prefers a session with the endpoint that its
	// caller has used before, or one in the zone of its caller.
	affinityWait = time.Second
	// otherZone is the priority of endpoints that are not in the zone of the caller.
	otherZone = 1
)

// A requestKey identifies the sessions that requests can share: a session key, and the
// protocol that the caller and the application speak.
type requestKey struct {
	session  sessionKey
	protocol tunnel.Protocol
}

// A requestGroup balances the requests of one key over sessions with its endpoints.
type requestGroup struct {
	key      requestKey
	balancer *balance.Balancer
	budget   retry.Budget
	// users counts the callers' connections that hold the group; guarded by mu of
	// requestGroups.
	users int

	mu       sync.Mutex // guards what follows
	sessions map[route.EndpointID][]*requestSession
	dials    map[route.EndpointID]*sessionDial
	known    []route.EndpointID // what the balancer knows
	near     []route.EndpointID // of known, in this node's zone; empty without preference
	missing  []route.EndpointID // those of known without a session
	upkeepAt time.Time
	aperture uint64 // the balancer's version at the last upkeep
	used     time.Time
}

// A sessionDial is an attempt to make a session, which several requests may await.
type sessionDial struct {
	began   time.Time
	done    chan struct{}
	session *requestSession
	err     error
}

// A requestSession is one multiplexed session with an endpoint.
type requestSession struct {
	endpoint route.EndpointID
	gateway  string
	mux      *mux.Conn
	raw      *transport.Raw
	retireAt time.Time
	retired  atomic.Bool // accepts no more requests
	outbound outboundConn
	// exchange has the certificates of both ends, which are renewed while requests are open.
	exchange *openExchange
	path     pathWatch // of checkPath
}

// requestGroups are the groups in use. The zero value is ready.
type requestGroups struct {
	mu     sync.Mutex // guards what follows
	groups map[requestKey]*requestGroup
	closed bool
	// work is the sessions and the dials in progress.
	work sync.WaitGroup
}

// of returns the group of a key, or nil once close was called. The caller must call
// release when it does not use the group any more.
func (g *requestGroups) of(key requestKey, cfg balance.Config) *requestGroup {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	group := g.groups[key]
	if group == nil {
		if g.groups == nil {
			g.groups = make(map[requestKey]*requestGroup)
		}
		group = &requestGroup{key: key, balancer: balance.New(cfg),
			sessions: make(map[route.EndpointID][]*requestSession), dials: make(map[route.EndpointID]*sessionDial)}
		g.groups[key] = group
	}
	group.users++
	return group
}

// release gives back a group that of returned.
func (g *requestGroups) release(group *requestGroup) {
	g.mu.Lock()
	defer g.mu.Unlock()
	group.users--
}

// begin counts work that close waits for. It returns false once close was called.
func (g *requestGroups) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.work.Add(1)
	return true
}

// retire lets open requests finish and accepts no new ones. It does not wait.
func (g *requestGroups) retire() {
	for _, s := range g.all() {
		s.retire()
	}
}

// close accepts no more sessions, and waits until those that are open have ended.
func (g *requestGroups) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.retire()
	g.work.Wait()
}

func (g *requestGroups) all() (out []*requestSession) {
	g.mu.Lock()
	groups := make([]*requestGroup, 0, len(g.groups))
	for _, group := range g.groups {
		groups = append(groups, group)
	}
	g.mu.Unlock()
	for _, group := range groups {
		group.mu.Lock()
		for _, list := range group.sessions {
			out = append(out, list...)
		}
		group.mu.Unlock()
	}
	return out
}

// retire accepts no more requests on the session, which ends with its last one.
func (s *requestSession) retire() {
	if !s.retired.Swap(true) {
		s.mux.GoAway()
	}
}

// usable reports whether the session accepts another request.
func (s *requestSession) usable() bool { return !s.retired.Load() && s.mux.CanOpen() }

// errNoSession reports that no session could be made because the agent stops.
var errNoSession = errors.New("the agent is asked to stop")

// pick chooses an endpoint for a request and returns a session with it. It prefers
// endpoints that have a session. If no endpoint has one, it blocks until a session is
// open. In two cases it blocks for at most affinityWait, although another endpoint has a
// session: if the caller's affinity names an endpoint without one, and if the choice is
// in the caller's zone and only endpoints in other zones have one. Unless there is an
// error, the caller must call Finish or Done of the balancer with the choice.
func (a *Agent) pick(ctx context.Context, g *requestGroup, out *outboundConn, tried []route.EndpointID) (*requestSession, balance.Choice, error) {
	now := time.Now()
	a.upkeep(g, out, now)
	choice, err := g.choose(out, a.affinityOf(out), tried, now)
	if errors.Is(err, balance.ErrNoEndpoint) {
		return a.pickUnknown(ctx, g, out, tried, now)
	}
	if err != nil {
		return nil, balance.Choice{}, refuse(reasonCircuitOpen, err)
	}
	if s := g.sessionWith(choice.ID); s != nil {
		return s, choice, nil
	}
	return a.pickWithoutSession(ctx, g, out, choice, tried, now)
}

// pickUnknown is pick while no endpoint is known.
func (a *Agent) pickUnknown(ctx context.Context, g *requestGroup, out *outboundConn, tried []route.EndpointID, now time.Time) (*requestSession, balance.Choice, error) {
	s := g.anySession(nil)
	if s == nil {
		var err error
		if s, err = a.awaitSession(ctx, g, out, route.EndpointID{}); err != nil {
			return nil, balance.Choice{}, err
		}
		if a.prefersSameZone(out) {
			a.learnEndpoints(g, out, now) // the answer may name endpoints in the zone
			if g.isElsewhere(s.endpoint) {
				return a.pick(ctx, g, out, tried)
			}
		}
	}
	choice, _ := g.balancer.PickID(s.endpoint, now)
	return s, choice, nil
}

// pickWithoutSession is pick for a choice that has no session.
func (a *Agent) pickWithoutSession(ctx context.Context, g *requestGroup, out *outboundConn, choice balance.Choice, tried []route.EndpointID, now time.Time) (*requestSession, balance.Choice, error) {
	near := g.isNear(choice.ID)
	anySession := g.anySession(nil)
	taking := anySession
	if near {
		taking = g.anySession(g.balancer.TakesPart)
	}
	plan := planWithoutSession(withoutSession{
		near:       near,
		remembered: len(tried) == 0 && choice.ID == a.affinityOf(out),
		late:       g.isDialLate(choice.ID, now),
		taking:     alternativeOf(taking, tried),
		any:        alternativeOf(anySession, tried),
	})
	// instead returns another session, unless the balancer rejects its endpoint.
	instead := func(s *requestSession, took time.Duration, outcome balance.Outcome) (balance.Choice, bool) {
		other, ok := g.balancer.PickID(s.endpoint, time.Now())
		if ok {
			g.balancer.Finish(choice, took, outcome, time.Now())
		}
		return other, ok
	}
	switch plan.first {
	case useTaking:
		if other, ok := instead(taking, 0, balance.Neutral); ok {
			a.startSession(g, out, choice.ID)
			return taking, other, nil
		}
	case useAny:
		if other, ok := instead(anySession, 0, balance.Neutral); ok {
			return anySession, other, nil
		}
	}
	start, wait := time.Now(), ctx
	if plan.otherwise != awaitChoice {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, affinityWait)
		defer cancel()
	}
	s, err := a.awaitSession(wait, g, out, choice.ID)
	if err != nil && plan.otherwise == useAny && ctx.Err() == nil {
		if other, ok := instead(anySession, time.Since(start), outcomeOfDial(wait, err)); ok {
			return anySession, other, nil
		}
		if wait.Err() != nil {
			wait = ctx
			s, err = a.awaitSession(wait, g, out, choice.ID)
		}
	}
	if err != nil {
		g.balancer.Finish(choice, time.Since(start), outcomeOfDial(wait, err), time.Now())
		if plan.otherwise == pickAgain && ctx.Err() == nil {
			return a.pick(ctx, g, out, []route.EndpointID{choice.ID})
		}
		return nil, balance.Choice{}, err
	}
	if s.endpoint != choice.ID { // the gateway knows better
		g.balancer.Finish(choice, 0, balance.Neutral, time.Now())
		choice, _ = g.balancer.PickID(s.endpoint, now)
	}
	return s, choice, nil
}

// outcomeOfDial is what the lack of a session says about an endpoint. It says nothing if
// the wait was too short, if this agent makes no further session, or if no gateway could
// be reached.
func outcomeOfDial(wait context.Context, err error) balance.Outcome {
	if wait.Err() != nil || errors.Is(err, errNoSession) {
		return balance.Neutral
	}
	switch reasonOf(err) {
	case reasonCircuitOpen, reasonGatewayBudget, reasonNoGateway, reasonUnreachable:
		return balance.Neutral
	}
	return balance.Failure
}

// isDialLate reports that a session with an endpoint has been in the making for so long
// that no request should wait for it if another endpoint has a session.
func (g *requestGroup) isDialLate(at route.EndpointID, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.dials[at]
	return d != nil && now.Sub(d.began) >= affinityWait
}

// choose chooses an endpoint, preferably one with a session that was not tried yet.
func (g *requestGroup) choose(out *outboundConn, affinity route.EndpointID, tried []route.EndpointID, now time.Time) (balance.Choice, error) {
	if affinity != (route.EndpointID{}) && len(tried) == 0 {
		if c, ok := g.balancer.PickID(affinity, now); ok {
			return c, nil
		}
	}
	g.mu.Lock()
	missing, zoned := g.missing, len(g.near) > 0
	g.mu.Unlock()
	var c balance.Choice
	var err error
	switch {
	case len(missing) == 0:
		return g.balancer.Pick(now, tried...)
	case len(tried) == 0:
		c, err = g.balancer.PickAvoiding(now, missing...)
	default:
		c, err = g.balancer.Pick(now, slices.Concat(missing, tried)...)
	}
	if err != nil || !zoned || c.Trial || g.balancer.TakesPart(c.ID) {
		return c, err
	}
	// A new session in the caller's zone is better than an open session in another zone.
	near, err := g.balancer.Pick(now, tried...)
	if err != nil || !near.Trial && !g.balancer.TakesPart(near.ID) {
		g.balancer.Done(near)
		return c, nil
	}
	g.balancer.Done(c)
	return near, nil
}

func (a *Agent) affinityOf(out *outboundConn) route.EndpointID {
	if out.mirror.affinity == 0 {
		return route.EndpointID{}
	}
	return a.endpointCache.lastVisited(out.caller.uid, out.remotePort(), out.mirror.affinity)
}

// anySession returns a session with any endpoint that match accepts; nil accepts all.
func (g *requestGroup) anySession(match func(route.EndpointID) bool) *requestSession {
	g.mu.Lock()
	defer g.mu.Unlock()
	for at := range g.sessions {
		if match != nil && !match(at) {
			continue
		}
		if s := g.leastLoaded(at); s != nil {
			return s
		}
	}
	return nil
}

// isNear reports whether the Service prefers the zone of the caller and an endpoint is in
// it.
func (g *requestGroup) isNear(id route.EndpointID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Contains(g.near, id)
}

// isElsewhere reports whether an endpoint is in another zone, although the Service
// prefers the zone of the caller and has endpoints there.
func (g *requestGroup) isElsewhere(id route.EndpointID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.near) > 0 && !slices.Contains(g.near, id)
}

// sessionWith returns the session with an endpoint that has the fewest open requests.
func (g *requestGroup) sessionWith(at route.EndpointID) *requestSession {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leastLoaded(at)
}

func (g *requestGroup) leastLoaded(at route.EndpointID) (best *requestSession) {
	least, list := 0, g.sessions[at]
	if len(list) == 1 && list[0].usable() {
		return list[0] // its load does not matter
	}
	for _, s := range list {
		if load := s.mux.Load(); s.usable() && (best == nil || load < least) {
			best, least = s, load
		}
	}
	return best
}

// upkeep gives the balancer the endpoints that the peer reports. It also opens sessions
// with the endpoints of the aperture whose sessions are missing or busy, and with those
// that wait for a trial after an ejection. It does nothing until upkeepInterval has passed
// or the aperture has changed. It does not block.
func (a *Agent) upkeep(g *requestGroup, out *outboundConn, now time.Time) {
	version := g.balancer.Version()
	g.mu.Lock()
	if now.Before(g.upkeepAt) && version == g.aperture {
		g.mu.Unlock()
		return
	}
	g.upkeepAt, g.used, g.aperture = now.Add(upkeepInterval), now, version
	g.mu.Unlock()
	a.learnEndpoints(g, out, now)
	var busy []route.EndpointID
	g.mu.Lock()
	for at, list := range g.sessions {
		open := 0
		for _, s := range list {
			if s.usable() && s.mux.Load() < busyRequests {
				open++
			}
		}
		if open == 0 {
			busy = append(busy, at)
		}
	}
	g.mu.Unlock()
	for _, at := range slices.Concat(g.balancer.Aperture(now), g.balancer.DueTrials(now)) {
		if g.sessionWith(at) == nil || slices.Contains(busy, at) {
			a.startSession(g, out, at)
		}
	}
	if a.endpointCache.needsRefresh(out.caller.account(), out.remotePort()) && out.mirror.hostname == "" {
		a.startPreconnect(g.key.session, out, route.EndpointID{}, a.sessions.ReserveExtra)
	}
}

// learnEndpoints tells the balancer which endpoints the peer reports.
func (a *Agent) learnEndpoints(g *requestGroup, out *outboundConn, now time.Time) {
	set, ok := a.endpointCache.lookup(out.caller.account(), out.remotePort())
	if !ok || out.mirror.hostname != "" {
		return
	}
	ready := a.endpointCache.available(set.ready, out.remotePort())
	near := a.inZone(out, set, ready)
	g.mu.Lock()
	defer g.mu.Unlock() // also during Update, which must get the newest ones last
	changed := !slices.Equal(g.known, ready) || !slices.Equal(g.near, near)
	g.known, g.near = ready, near
	g.updateMissing()
	if !changed {
		return
	}
	known := make([]balance.Endpoint, len(ready))
	for i, id := range ready {
		known[i].ID = id
		if len(near) > 0 && !slices.Contains(near, id) {
			known[i].Priority = otherZone
		}
	}
	g.balancer.Update(known, now)
}

// updateMissing updates missing. g.mu is held.
func (g *requestGroup) updateMissing() {
	lacks := func(id route.EndpointID) bool { return len(g.sessions[id]) == 0 }
	preferred := g.near
	if len(preferred) == 0 {
		preferred = g.known
	}
	g.missing = nil
	if !slices.ContainsFunc(preferred, func(id route.EndpointID) bool { return !lacks(id) }) {
		return // no session is open, so none is preferable
	}
	for _, id := range g.known {
		if lacks(id) {
			g.missing = append(g.missing, id)
		}
	}
}

// isCovered reports whether the endpoints in tried include all known endpoints.
func (g *requestGroup) isCovered(tried []route.EndpointID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !slices.ContainsFunc(g.known, func(id route.EndpointID) bool { return !slices.Contains(tried, id) })
}

// awaitSession returns a session with an endpoint, or with any for the zero value. It
// waits for one if there is none.
func (a *Agent) awaitSession(ctx context.Context, g *requestGroup, out *outboundConn, at route.EndpointID) (*requestSession, error) {
	most, to := out.port.settings.MaxPendingRequests, out.remotePort()
	if !a.pendingCircuits.acquire(to, most) {
		if a.monitor.isRefused(out.peer.uid) { // that is why so many wait
			return nil, refuse(reasonUnreachable, fmt.Errorf("the gateways of %s refuse connections, and %d requests wait for them", out.peer.name, most))
		}
		return nil, refuse(reasonCircuitOpen, fmt.Errorf("%d requests to %s wait for a connection, as many as its owner allows a node", most, out.mirror.name))
	}
	defer a.pendingCircuits.release(to)
	d := a.startSession(g, out, at)
	if d == nil {
		return nil, refuse(reasonOther, errNoSession)
	}
	select {
	case <-d.done:
		return d.session, d.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// startSession makes a session with an endpoint in the background, unless that is being
// done already.
func (a *Agent) startSession(g *requestGroup, out *outboundConn, at route.EndpointID) *sessionDial {
	if !a.requests.begin() { // before g.mu, which forget locks second
		return nil
	}
	d, mine := g.beginDial(at)
	if !mine {
		a.requests.work.Done()
		return d
	}
	next := outboundConn{vip: out.vip, index: out.index, mirror: out.mirror, port: out.port, peer: out.peer, caller: out.caller}
	go func() {
		defer a.requests.work.Done()
		var run func()
		d.session, run, d.err = a.openRequests(g, next, at)
		g.finishDial(at, d)
		close(d.done)
		if d.err != nil {
			a.log.Debug("no session for requests", "mirror", next.mirror.name, "error", d.err)
			return
		}
		run()
	}()
	return d
}

// beginDial returns the dial to an endpoint that is in progress. If there is none, it
// begins one, and the caller must call finishDial.
func (g *requestGroup) beginDial(at route.EndpointID) (d *sessionDial, mine bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := g.dials[at]; d != nil {
		return d, false
	}
	d = &sessionDial{began: time.Now(), done: make(chan struct{})}
	g.dials[at] = d
	return d, true
}

// finishDial removes a dial, and adds its session.
func (g *requestGroup) finishDial(at route.EndpointID, d *sessionDial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.dials, at)
	if d.session == nil {
		return
	}
	g.sessions[d.session.endpoint] = append(g.sessions[d.session.endpoint], d.session)
	g.updateMissing()
	g.upkeepAt = time.Time{} // the answer has told which endpoints there are
}

func (g *requestGroup) remove(s *requestSession) {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := slices.DeleteFunc(g.sessions[s.endpoint], func(other *requestSession) bool { return other == s })
	if g.sessions[s.endpoint] = list; len(list) == 0 {
		delete(g.sessions, s.endpoint)
	}
	g.updateMissing()
}

// openRequests makes a session for requests, over an idle session or a new one. run
// serves the session until it has ended.
func (a *Agent) openRequests(g *requestGroup, c outboundConn, at route.EndpointID) (s *requestSession, run func(), err error) {
	conn, gateway, err := a.dialRequests(g, &c, at)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	s = &requestSession{endpoint: c.answer.Endpoint, gateway: gateway, raw: transport.RawOf(conn), outbound: c,
		retireAt: now.Add(sessionMaxAge)}
	s.exchange = newOpenExchange(&s.outbound, &clientSession{key: g.key.session, gateway: gateway, conn: conn, outbound: c}, now, a.renewals.pause)
	s.exchange.begin()
	s.mux = mux.New(conn.Conn.(*tls.Conn), mux.Config{
		Client:    true,
		ResetRate: resetRate,
		Coding:    codingOf(g.key.protocol),
		Windows:   a.shares.memory(c.peer.uid),
		OnGoAway:  func() { s.retired.Store(true) },
		OnFault:   func(f mux.Fault) { s.recordFault(a, f) },
	})
	a.metrics.countSession(outbound, c.peer.name, sessionMade)
	return s, func() { a.runRequests(g, s) }, nil
}

// codingOf returns how header blocks are coded in sessions of a protocol.
func codingOf(p tunnel.Protocol) mux.Coding {
	if p == tunnel.Protocol_HTTP1 {
		return httprelay.Coding{}
	}
	return nil
}

// dialRequests opens a session for requests and returns its connection. It also works
// while the agent stops, because connected callers may still make their last requests.
func (a *Agent) dialRequests(g *requestGroup, c *outboundConn, at route.EndpointID) (conn *tunnel.Conn, gateway string, err error) {
	if err := a.refreshCaller(g.key.session, c); err != nil {
		return nil, "", err
	}
	raw, gateway, err := a.dialGateway(a.baseCtx, c.peer)
	if err != nil {
		return nil, "", err
	}
	tun, err := a.clientHandshake(a.baseCtx, raw, c, hintFor(c, at))
	if err != nil {
		raw.Reset()
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(a.baseCtx, openTimeout)
	defer cancel()
	c.answer, err = tun.OpenRequests(ctx, c.hello(), g.key.protocol)
	a.recordHelloAnswer(c)
	a.recordOpenRefusal(c, at, err)
	a.recordMiss(c, at)
	if err != nil {
		raw.Reset()
		return nil, "", c.openError(err)
	}
	return tun, gateway, nil
}

// runRequests serves a session until it has ended. A session that must accept no more
// requests ends with its last request. A session that must not stay open ends at once.
func (a *Agent) runRequests(g *requestGroup, s *requestSession) {
	defer g.remove(s)
	leave := a.sessions.StartExchange(g.key.session, s.endpoint)
	defer leave()
	lease, release := a.leases.grant(a.baseCtx, a.state.Load, a.requestLease(s))
	defer release()
	defer s.exchange.over.Store(true)
	if tcp, ok := s.raw.Conn.(*net.TCPConn); ok {
		transport.ClearUserTimeout(tcp) // checkPath decides
	}
	err := s.mux.Run(lease)
	outcome := sessionRetired
	if err != nil {
		outcome = sessionLost
		a.logRequestsEnd(lease, err, "mirror", s.outbound.mirror.name, "peer", s.outbound.peer.name)
	}
	a.metrics.countSession(outbound, s.outbound.peer.name, outcome)
}

// logRequestsEnd logs why a session for requests has ended. It warns if Causeway has ended
// it for a reason that an operator can do something about.
func (a *Agent) logRequestsEnd(lease context.Context, err error, about ...any) {
	if cause := context.Cause(lease); errors.Is(cause, transport.ErrNotRenewed) {
		a.logLimited(slog.LevelWarn, "connection ended", append(about, "reason", transport.NotRenewed.String(), "error", cause)...)
		return
	}
	if errors.Is(err, transport.ErrRecordLimit) {
		a.logLimited(slog.LevelWarn, "connection ended", append(about, "reason", transport.RecordLimit.String(), "error", err)...)
		return
	}
	a.log.Debug("session for requests ended", append(about, "error", err)...)
}

// requestLease returns the check that a session must keep passing to stay open. The check
// also retires a session that may accept no more requests, and has a session with open
// requests renewed when it is due.
func (a *Agent) requestLease(s *requestSession) func(*state) error {
	return func(now *state) error {
		at := time.Now()
		if err := s.outbound.checkTarget(now); err != nil {
			return err
		}
		if err := s.exchange.checkEnds(now, at); err != nil {
			return err
		}
		if !s.accepts(now) {
			s.retire()
		}
		if s.mux.Load() > 0 && s.exchange.isDue(at) {
			a.renewals.add(s.exchange)
		}
		return nil
	}
}

// accepts reports whether the session may accept new requests in a state. It may not if
// the Link no longer has its gateway address.
func (s *requestSession) accepts(now *state) bool {
	return s.outbound.idleLease()(now) == nil && slices.Contains(now.links[s.outbound.peer.name].gateways, s.gateway)
}

// watchRequests retires sessions that are idle or old, whose caller has a newer
// certificate, or whose gateway is penalized, until ctx ends. It forgets groups that are
// not used any more, and limits inbound sessions that are idle.
func (a *Agent) watchRequests(ctx context.Context) {
	tick := time.NewTicker(sessionCheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, s := range a.requests.all() {
				if a.mustRetireRequests(s, now) {
					s.retire()
				}
			}
			a.requests.forget(now)
			a.limitIdleRequests(now)
		}
	}
}

func (a *Agent) mustRetireRequests(s *requestSession, now time.Time) bool {
	since, idle := s.mux.Idle()
	newest, ok := a.svids.get(s.outbound.caller.account())
	return !ok || newest != s.outbound.credential || now.After(s.retireAt) || idle && now.Sub(since) > requestIdleTimeout ||
		s.raw.Worn() || a.penalties.isPenalized(s.gateway, now)
}

// forget deletes groups that have no session and no user, and were not used for a while.
func (g *requestGroups) forget(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, group := range g.groups {
		group.mu.Lock()
		if group.users == 0 && len(group.sessions) == 0 && len(group.dials) == 0 && now.Sub(group.used) > setAge {
			delete(g.groups, key)
		}
		group.mu.Unlock()
	}
}
