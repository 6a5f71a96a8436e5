package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

// The requests of a port that has routes: each goes to the backend of the rule that
// matches it, by the newest state. routes.go has the rules.

// maxRouteBackends is how many backends a connection remembers.
const maxRouteBackends = 64

// connRoutes are the routes of a caller's connection. The mu of its requestBackend guards
// all but opaque.
type connRoutes struct {
	state    *state          // that rules is of
	rules    *reqroute.Rules // nil: the port has none for the caller
	backends map[reqroute.Ref]*requestBackend
	opaque   *requestBackend // of a connection that becomes opaque; nil: its own
}

// A routedRequest is what the routes say about a request.
type routedRequest struct {
	route  reqroute.Route
	target *reqroute.Backend
	copies []*requestBackend
	// copied is the head of the copies, if there are any. The filters of the rule have
	// changed it, and not those of the backend, which are for its application alone.
	copied *message.Head
}

// A redirectError is the answer to a request that a route redirects.
type redirectError struct {
	status   int
	location string
}

func (e *redirectError) Error() string { return "redirected to " + e.location }

// routeErrorStatus and routeErrorKinds are the status, and the kind by RFC 9209, of
// requests that no route forwards, by the reason.
var (
	routeErrorStatus = map[string]int{
		reasonNoRoute:        http.StatusNotFound,
		reasonNoRouteBackend: http.StatusInternalServerError,
		reasonAmbiguousPath:  http.StatusBadRequest,
		reasonRoutesUnread:   http.StatusServiceUnavailable,
		reasonRegexSteps:     http.StatusRequestHeaderFieldsTooLarge,
	}
	routeErrorKinds = map[string]string{
		reasonNoRoute:        "destination_not_found",
		reasonNoRouteBackend: "proxy_configuration_error",
		reasonAmbiguousPath:  "http_request_error",
		reasonRoutesUnread:   "proxy_configuration_error",
		reasonRegexSteps:     "http_request_error",
	}
)

// routeRefusal returns the refusal for an error of reqroute.
func routeRefusal(err error) error {
	switch err {
	case reqroute.ErrNoMatch:
		return refuse(reasonNoRoute, err)
	case reqroute.ErrPath:
		return refuse(reasonAmbiguousPath, err)
	case reqroute.ErrSteps:
		return refuse(reasonRegexSteps, err)
	case reqroute.ErrUnread:
		return refuse(reasonRoutesUnread, err)
	}
	return refuse(reasonNoRouteBackend, err)
}

// routesIn returns the rules for the connection's requests. If there are none, it returns
// why the caller may make no requests to the port that it dialed, and the policy.
func (cc *callerConn) routesIn(s *state) (*reqroute.Rules, retry.Policy, error) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if s != cc.routes.state {
		cc.routes.state, cc.routes.rules = s, s.routesFor(cc.out)
	}
	if cc.routes.rules != nil {
		return cc.routes.rules, retry.Policy{}, nil
	}
	err := cc.checkCallerIn(s)
	return nil, cc.policy, err
}

// route finds the backend of a request and its policy, and applies filters to the head.
// The error is why the request must not be forwarded; then the backend is that of the
// port that the caller dialed.
func (r *outboundRequest) route() error {
	cc := r.conn
	r.backend, r.ctx, r.routed = cc.requestBackend, cc.ctx, nil
	s, err := cc.agent.current()
	if err != nil {
		return err
	}
	rules, policy, err := cc.routesIn(s)
	if rules == nil {
		r.policy = policy
		return err
	}
	return r.follow(s, rules)
}

// follow is route for a port with rules.
func (r *outboundRequest) follow(s *state, rules *reqroute.Rules) error {
	route, target, b, err := r.conn.routeTo(s, rules, r.head)
	if err != nil {
		return err
	}
	r.backend = b
	policy, err := b.policyIn(s)
	if err != nil {
		return err
	}
	r.policy = route.Policy(policy)
	r.routed = &routedRequest{route: route, target: target}
	rule, backend := route.Mirrors(target)
	for _, list := range [...][]reqroute.Mirror{rule, backend} {
		for _, m := range list {
			if m.Selects(rand.Uint64()) {
				r.addCopy(s, m.To)
			}
		}
	}
	if len(r.routed.copies) > 0 {
		copied := *r.head
		copied.Fields = slices.Clone(r.head.Fields)
		route.EditRequest(&copied, &reqroute.Backend{})
		r.routed.copied = &copied
	}
	route.EditRequest(r.head, target)
	if route.EditsResponse(target) {
		r.plan.OnResponse = r.editRoutedResponse
	}
	return nil
}

// routeTo returns the route of a request and its backend. The error is a refusal or a
// redirectError.
func (cc *callerConn) routeTo(s *state, rules *reqroute.Rules, h *message.Head) (reqroute.Route, *reqroute.Backend, *requestBackend, error) {
	route, err := rules.Match(h)
	if err != nil {
		return route, nil, nil, routeRefusal(err)
	}
	if status, location, ok := route.Location(h); ok {
		return route, nil, nil, &redirectError{status, location}
	}
	target, err := route.Pick(rand.Uint64())
	if err != nil {
		return route, nil, nil, routeRefusal(fmt.Errorf("%s: %w", route.Name(), err))
	}
	b, err := cc.backendAt(s, target.Ref)
	if err != nil {
		return route, nil, nil, fmt.Errorf("%s: %w", route.Name(), err)
	}
	return route, target, b, nil
}

// backendAt returns the backend for a port of a frontend in s.
func (cc *callerConn) backendAt(s *state, ref reqroute.Ref) (*requestBackend, error) {
	m, vip, ok := s.frontend(ref.Namespace, ref.Name)
	if !ok {
		return nil, refuse(reasonNoRouteBackend, fmt.Errorf("no mirror is named %s/%s", ref.Namespace, ref.Name))
	}
	port, ok := m.ports[ref.Index]
	if !ok {
		return nil, refuse(reasonNoRouteBackend, fmt.Errorf("mirror %s has no port behind listener %d", m.name, ref.Index))
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if b := cc.routes.backends[ref]; b != nil && b.out.mirror == m && b.out.peer.uid == s.links[m.link].uid {
		return b, nil
	}
	out := &outboundConn{
		vip:        vip,
		index:      ref.Index,
		iface:      cc.out.iface,
		from:       cc.out.from,
		mirror:     m,
		port:       port,
		peer:       s.links[m.link],
		caller:     cc.out.caller,
		credential: cc.out.credential,
		podGrace:   new(podGrace),
	}
	cc.agent.monitor.use(out.peer.uid)
	b, err := cc.agent.newRequestBackend(out, cc.group.key.protocol)
	if err != nil {
		return nil, err
	}
	if len(cc.routes.backends) >= maxRouteBackends {
		cc.forgetBackends()
	}
	if old := cc.routes.backends[ref]; old != nil {
		cc.agent.requests.release(old.group)
	}
	if cc.routes.backends == nil {
		cc.routes.backends = make(map[reqroute.Ref]*requestBackend)
	}
	cc.routes.backends[ref] = b
	return b, nil
}

// forgetBackends forgets the backends of routes. Requests in flight keep theirs. cc.mu is
// held.
func (cc *callerConn) forgetBackends() {
	for _, b := range cc.routes.backends {
		cc.agent.requests.release(b.group)
	}
	clear(cc.routes.backends)
}

// releaseGroups releases all groups of a connection that makes no more requests.
func (cc *callerConn) releaseGroups() {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	cc.agent.requests.release(cc.group)
	cc.forgetBackends()
}

// policyIn returns the policy for requests, or why the caller may make none.
func (b *requestBackend) policyIn(s *state) (retry.Policy, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.checkCallerIn(s)
	return b.policy, err
}

// beginRouted begins to forward a request by a route. The stream that it returns replaces
// from. The caller must call end when the request has ended.
func (r *outboundRequest) beginRouted(from httprelay.Stream, ended bool) (_ httprelay.Stream, end func()) {
	ctx, release := r.conn.agent.leases.grant(r.conn.ctx, r.conn.agent.state.Load, r.backend.out.checkTarget)
	r.ctx = ctx
	stop := afterfunc.Start(ctx, r.cancel)
	from, endCopies := r.beginCopies(from, ended)
	return from, func() {
		stop()
		release()
		endCopies()
	}
}

// editRoutedResponse is editResponse with the filters of the route, which change final
// responses of applications.
func (r *outboundRequest) editRoutedResponse(h *message.Head) {
	_, far := h.Get(httprelay.ErrorField)
	editResponse(h)
	if h.Status >= 200 && !far {
		r.routed.route.EditResponse(h, r.routed.target)
	}
}

// answerRedirect answers a request that a route redirects. It returns false for any other
// error.
func (r *outboundRequest) answerRedirect(to httprelay.Stream, err error) (status int, ok bool) {
	redirect := (*redirectError)(nil)
	if !errors.As(err, &redirect) {
		return 0, false
	}
	h := &message.Head{Version: r.head.Version, Status: redirect.status}
	if h.Version != message.HTTP2 {
		h.Reason = http.StatusText(redirect.status)
	}
	h.Add("location", redirect.location)
	h.Add("content-length", "0")
	to.WriteHead(h, nil, true)
	return redirect.status, true
}

// routeOpaque routes a request with which the connection becomes opaque.
func (cc *callerConn) routeOpaque(h *message.Head) error {
	s, err := cc.agent.current()
	if err != nil {
		return err
	}
	rules, _, err := cc.routesIn(s)
	if rules == nil {
		return err
	}
	route, target, b, err := cc.routeTo(s, rules, h)
	if err != nil {
		return err
	}
	if _, err := b.policyIn(s); err != nil {
		return err
	}
	if err := cc.out.count.moveTo(cc.agent, b.out); err != nil {
		return err
	}
	route.EditRequest(h, target)
	cc.routes.opaque = b
	return nil
}

// reject answers the last request of a connection, whose head was read.
func (r *outboundRequest) reject(caller *httprelay.CallerConn, err error) {
	r.begin()
	caller.CloseAfterResponse()
	r.answer(caller, httprelay.Result{Err: err})
}

// redirectOpaque changes the target of a connection that becomes opaque to that of its
// route. Nothing else may use out.
func (c *connRoutes) redirectOpaque(out *outboundConn) {
	if c.opaque == nil {
		return
	}
	to := c.opaque.out
	out.vip, out.index, out.mirror, out.port, out.peer = to.vip, to.index, to.mirror, to.port, to.peer
}
