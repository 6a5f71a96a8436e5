package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/balance"
	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/trace"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// The life of a caller's connection on which requests were recognized, and of each
// request, from its head to the end of its response. http_in.go is the far side.

const (
	// maxCallerRequests is how many requests one HTTP/2 connection of a caller may have
	// open.
	maxCallerRequests = 1024
	// sniffTimeout bounds the wait for the rest of a request line or a preface whose
	// beginning has come, on ports that are not declared to carry requests.
	sniffTimeout = time.Second
	// lingerTimeout bounds how long the agent reads the rest of a request that it does
	// not need, so that a TCP reset does not overtake the response.
	lingerTimeout = 5 * time.Second
	maxLinger     = 64 << 20
)

// A requestBackend is a port of a mirror, as the requests of one caller's connection use it.
type requestBackend struct {
	agent *Agent
	out   *outboundConn
	group *requestGroup
	// account is the caller's namespace/ServiceAccount.
	account string
	// memory is the link's budget of bytes.
	memory httprelay.Memory
	// recorders are for requests, and for those of gRPC.
	recorders [2]*reqmetrics.Recorder

	mu     sync.Mutex // guards what follows
	state  *state     // by which the caller was checked last
	policy retry.Policy
}

// A callerConn is a caller's connection that carries requests. Without routes, all of them
// go to the port of the mirror that the caller dialed.
type callerConn struct {
	*requestBackend
	ctx    context.Context // ends with the lease of the connection
	routes connRoutes
}

// recognize returns the protocol of a caller's connection. It inspects out.earlyData. If
// these bytes do not suffice, it reads more for up to sniffTimeout. On a port that is
// declared to carry requests it reads until the bytes suffice.
func (a *Agent) recognize(life context.Context, c *net.TCPConn, out *outboundConn) (tunnel.Protocol, error) {
	declared := out.port.speaksHTTP()
	p, err := sniff(c, out, sniffTimeout, !declared)
	if err == nil && p == h1.NeedMore {
		err = a.whileSilent(life, c, out, func() (err error) {
			p, err = sniff(c, out, noTimeout, true)
			return err
		})
		if err == nil {
			err = a.refreshSilent(out)
		}
	}
	switch {
	case err != nil:
		return 0, err
	case p == h1.HTTP1:
		return tunnel.Protocol_HTTP1, nil
	case p == h1.HTTP2:
		return tunnel.Protocol_HTTP2, nil
	}
	return tunnel.Protocol_OPAQUE, nil
}

// sniff recognizes the protocol of a caller's connection. It reads for up to timeout. If
// the bytes are still ambiguous then, it returns Opaque if final is set, and NeedMore
// otherwise.
func sniff(c *net.TCPConn, out *outboundConn, timeout time.Duration, final bool) (h1.Protocol, error) {
	deadline, over := time.Now().Add(timeout), false
	for {
		if err := out.appendEarlyData(c); err != nil {
			return 0, err
		}
		if len(out.earlyData) == 0 || out.port.isOpaque() {
			return h1.Opaque, nil
		}
		if p := h1.Sniff(out.earlyData, over); p != h1.NeedMore {
			return p, nil
		}
		err := transport.AwaitReadable(c, time.Until(deadline))
		if errors.Is(err, os.ErrDeadlineExceeded) && !final {
			return h1.NeedMore, nil
		}
		over = err != nil // nothing more comes
	}
}

// serveRequests serves a caller's connection that carries requests. If it returns true,
// the connection goes on as an opaque one: out.earlyData are its next bytes. Otherwise
// serveRequests has closed it.
func (a *Agent) serveRequests(life context.Context, c *net.TCPConn, out *outboundConn, p tunnel.Protocol) (opaque bool) {
	ctx, release := a.leases.grant(life, a.state.Load, out.checkOpen)
	defer release()
	a.endpointCache.recordRequests(out.caller.account(), out.remotePort())
	backend, err := a.newRequestBackend(out, p)
	if err != nil {
		a.rejectOutbound(c, out, err)
		return false
	}
	conn := &callerConn{requestBackend: backend, ctx: ctx}
	defer conn.releaseGroups()
	if p == tunnel.Protocol_HTTP2 {
		conn.serveHTTP2(c)
		return false
	}
	if !conn.serveHTTP1(c) {
		return false
	}
	release() // it reads out
	conn.routes.redirectOpaque(out)
	return true
}

// newRequestBackend returns the backend of the port that out resolves to. The caller must
// release its group.
func (a *Agent) newRequestBackend(out *outboundConn, p tunnel.Protocol) (*requestBackend, error) {
	group := a.requests.of(requestKey{out.sessionKey(), p}, a.balanceConfig(out))
	if group == nil {
		return nil, refuse(reasonOther, errNoSession)
	}
	return &requestBackend{
		agent:     a,
		out:       out,
		group:     group,
		account:   out.caller.namespace + "/" + out.caller.serviceAccount,
		memory:    a.shares.memory(out.peer.uid),
		recorders: a.requestRecorders(out.metricsKey(metricsProtocol(p))),
	}, nil
}

// serveHTTP1 serves the requests of an HTTP/1 connection, one after the other.
func (cc *callerConn) serveHTTP1(c *net.TCPConn) (opaque bool) {
	caller := httprelay.NewCallerConn(c, cc.out.earlyData)
	cc.out.earlyData = nil
	stop := afterfunc.Start(cc.ctx, func() { transport.Reset(c) })
	defer stop()
	watch := newCloseWatch(c)
	defer watch.stop()
	var head message.Head
	r := cc.newRequest(&head)
	leave := r.leave
	for {
		ended, err := caller.Next(&head)
		if err != nil {
			cc.endHTTP1(c, caller, err)
			return false
		}
		if h1.IsUpgrade(&head) || head.Method == "CONNECT" || h1.NeedsPinning(&head) {
			if err := cc.routeOpaque(&head); err != nil {
				r.reject(caller, err)
				closeHTTP1(c, true)
				return false
			}
			first := append(h1.AppendRequest(nil, &head, h1.Framing{}), caller.Rest()...)
			most := min(len(first), tunnel.MaxData)
			cc.out.earlyData, cc.out.restData = first[:most], first[most:]
			return stop()
		}
		h1.StripHop(&head)
		if cc.agent.acceptCtx.Err() != nil {
			caller.CloseAfterResponse()
		}
		r.begin()
		watch.start(leave, r.start)
		result := r.forward(caller, ended)
		watch.pause()
		if result.Err != nil && !ended { // its body may be unread
			caller.CloseAfterResponse()
		}
		r.answer(caller, result)
		if result.Err != nil && r.isGone() {
			transport.Reset(c) // a half-closed caller must not take this for an empty response
			return false
		}
		if next, linger := caller.Finish(); !next {
			closeHTTP1(c, linger)
			return false
		}
	}
}

// endHTTP1 closes a connection on which no other request comes, and answers one that is
// malformed.
func (cc *callerConn) endHTTP1(c *net.TCPConn, caller *httprelay.CallerConn, err error) {
	bad := (*h1.Error)(nil)
	if !errors.As(err, &bad) {
		closeHTTP1(c, false)
		return
	}
	cc.agent.metrics.refuse(outbound, reasonMalformed)
	countMalformed(cc.recorders[0], bad)
	cc.recordMalformed(reqmetrics.HTTP1, bad)
	cc.agent.logLimited(slog.LevelInfo, "request refused", "mirror", cc.out.mirrorName(), "caller", cc.out.callerName(), "reason", bad.Reason)
	fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: 0\r\nProxy-Status: causeway; error=http_request_error; details=%q\r\n\r\n",
		bad.Status, http.StatusText(bad.Status), bad.Reason)
	closeHTTP1(c, true)
}

// closeHTTP1 closes a connection after its last response. linger reports that bytes of
// the request may be under way.
func closeHTTP1(c *net.TCPConn, linger bool) {
	c.SetLinger(-1) // before this, a killed process resets c: a cut response must not look complete
	if linger {
		c.CloseWrite()
		c.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.CopyN(io.Discard, c, maxLinger)
	}
	c.Close()
}

// serveHTTP2 serves the requests of an HTTP/2 connection.
func (cc *callerConn) serveHTTP2(c *net.TCPConn) {
	c.SetLinger(-1) // the frames tell whether a response is complete
	conn := mux.New(c, mux.Config{
		Received:      cc.out.earlyData,
		Windows:       cc.agent.shares.memory(cc.out.peer.uid),
		MaxStreams:    maxCallerRequests,
		Handle:        cc.serveStream,
		OnFault:       cc.recordFault,
		RefusalFields: refusalFields("causeway"),
	})
	cc.out.earlyData = nil
	stop := afterfunc.Start(cc.agent.acceptCtx, conn.GoAway)
	defer stop()
	if err := conn.Run(cc.ctx); err != nil {
		cc.agent.log.Debug("connection for requests ended", "mirror", cc.out.mirror.name, "error", err)
	}
}

func (cc *callerConn) serveStream(s *mux.Stream) {
	head := requestHeads.Get().(*message.Head)
	defer requestHeads.Put(head)
	ended, err := s.ReadHead(head)
	if err != nil {
		return
	}
	r := cc.newRequest(head)
	r.begin()
	s.OnReset(func(error) { r.leave() })
	from := httprelay.MuxStream{Stream: s}
	r.answer(from, r.forward(from, ended))
}

// An outboundRequest is one request of a local pod. An HTTP/1 connection has one for all
// its requests, which come one after the other.
type outboundRequest struct {
	conn    *callerConn
	backend *requestBackend
	ctx     context.Context // of the caller's connection, or of the lease of the request
	head    *message.Head   // with the changes of a route
	target  string          // that the caller sent
	plan    httprelay.Plan
	opening func(*mux.Stream) // attach

	policy  retry.Policy
	routed  *routedRequest // nil without routes
	refused error          // why the request is not forwarded
	start   time.Time
	grpc    bool
	counted reqmetrics.Request
	trace   *trace.Request

	choice  balance.Choice
	session *requestSession
	sentAt  time.Time // of the current try
	tried   []route.EndpointID
	waits   bool // the request was sent with awaitField, and holds a share of outboundWaiting
	// repeatable: if the network path of the current try is dead, another one may follow.
	repeatable bool

	mu       sync.Mutex // guards what follows
	to       httprelay.Stream
	canceled bool
	gone     bool // the caller has gone
}

func (cc *callerConn) newRequest(head *message.Head) *outboundRequest {
	r := &outboundRequest{conn: cc, head: head}
	r.plan = httprelay.Plan{Open: r.openTry, Retry: r.retry, IsFailure: r.isFailure}
	r.opening = r.attach
	return r
}

// begin begins the request whose head was read.
func (r *outboundRequest) begin() {
	r.start, r.grpc = time.Now(), isGRPC(r.head)
	r.plan.OnResponse, r.plan.Start = editResponse, r.start
	r.target, r.trace = r.head.Target, r.conn.agent.tracer.Sample(r.head)
	r.trace.Describe(r.head, r.grpc)
	r.head.Del(awaitField) // only agents may send it
	r.refused = r.route()
	r.plan.Memory = r.backend.memory
	recorder := r.backend.recorders[0]
	if r.grpc {
		recorder = r.backend.recorders[1]
	}
	r.counted = recorder.Start(r.start)
	r.choice, r.session, r.tried, r.plan.Timeout = balance.Choice{}, nil, r.tried[:0], 0
	r.waits = false
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to, r.canceled, r.gone = nil, false, false
}

// leave is cancel for a caller that has gone.
func (r *outboundRequest) leave() {
	r.mu.Lock()
	r.gone = true
	r.mu.Unlock()
	r.cancel()
}

// cancel ends the current try and prevents further ones.
func (r *outboundRequest) cancel() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.canceled = true
	if r.to != nil {
		r.to.Reset(http2.ErrCodeCancel)
	}
}

func (r *outboundRequest) isCanceled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.canceled
}

func (r *outboundRequest) isGone() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gone
}

var errCanceled = errors.New("the request was canceled")

// forward forwards the request, with retries, and its response.
func (r *outboundRequest) forward(from httprelay.Stream, ended bool) httprelay.Result {
	if r.refused != nil {
		return httprelay.Result{Err: r.refused}
	}
	if err := r.backend.acquire(); err != nil {
		return httprelay.Result{Err: err}
	}
	defer r.backend.release()
	if r.routed != nil {
		var release func()
		from, release = r.beginRouted(from, ended)
		defer release()
	}
	r.backend.group.budget.Request(r.start)
	result := httprelay.Forward(from, r.head, ended, &r.plan)
	explainBody(&result)
	if r.waits {
		r.conn.agent.shares.outboundWaiting.Release(r.backend.account)
	}
	result.FromErr = result.FromErr || result.Err != nil && r.isGone()
	r.finish(result)
	return result
}

// openTry sets the timeout of a try and starts it. It returns ErrTimeout if the request
// has no time left.
func (r *outboundRequest) openTry(try int, h *message.Head, body []byte, end bool) (httprelay.Stream, error) {
	now := time.Now()
	left, limited := r.policy.TryTimeout(now.Sub(r.start))
	if limited && left <= 0 {
		return nil, httprelay.ErrTimeout
	}
	r.plan.Timeout, r.repeatable = left, r.isRepeatable(try)
	return r.open(now, h, body, end)
}

// open starts a try at the time began, which is now.
func (r *outboundRequest) open(began time.Time, h *message.Head, body []byte, end bool) (httprelay.Stream, error) {
	b := r.backend
	if err := b.checkCaller(); err != nil {
		return nil, err
	}
	ctx := r.ctx
	r.startSpan(h, began)
	if r.plan.Timeout > 0 { // it includes the wait for a session
		var end context.CancelFunc
		ctx, end = context.WithTimeoutCause(ctx, r.plan.Timeout, httprelay.ErrTimeout)
		defer end()
	}
	stream, err := r.openStream(ctx, h, body, end)
	if err != nil {
		return nil, err
	}
	r.addEndpoint()
	if r.plan.Timeout > 0 { // the rest of it is for the response
		r.plan.Timeout = max(r.plan.Timeout-time.Since(began), 1)
	}
	if r.isCanceled() {
		stream.Reset(http2.ErrCodeCancel)
		return nil, errCanceled
	}
	return httprelay.MuxStream{Stream: stream}, nil
}

// attach makes s the stream of the current try. s may still wait for its first write.
func (r *outboundRequest) attach(s *mux.Stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to = httprelay.MuxStream{Stream: s}
	if r.canceled {
		s.Reset(http2.ErrCodeCancel)
	}
}

// openStream opens a stream with an endpoint. If a session has just ended, nothing was
// sent, and openStream takes another session. This is no retry of the request.
func (r *outboundRequest) openStream(ctx context.Context, h *message.Head, body []byte, end bool) (stream *mux.Stream, err error) {
	b := r.backend
	for range openTries {
		s, choice, perr := b.agent.pick(ctx, b.group, b.out, r.tried)
		if perr != nil {
			return nil, perr
		}
		r.session, r.choice, r.sentAt = s, choice, time.Now()
		if ctx.Err() != nil {
			r.observe(balance.Neutral)
			return nil, context.Cause(ctx)
		}
		stream, err = r.openWithin(ctx, s.mux, h, body, end)
		if err == nil {
			r.tried = append(r.tried, s.endpoint)
			return stream, nil
		}
		r.observe(balance.Neutral)
		if !errors.Is(err, mux.ErrClosed) && !errors.Is(err, mux.ErrGoingAway) && !errors.Is(err, mux.ErrTooManyStreams) {
			return nil, err
		}
	}
	return nil, err
}

// openWithin opens a stream. If the try has a timeout, it waits only until ctx ends.
func (r *outboundRequest) openWithin(ctx context.Context, m *mux.Conn, h *message.Head, body []byte, end bool) (*mux.Stream, error) {
	options := mux.OpenOptions{Repeatable: r.repeatable, Opening: r.opening}
	if r.plan.Timeout == 0 {
		return m.OpenWith(h, body, end, options)
	}
	stop := func() bool { return true }
	options.Opening = func(s *mux.Stream) {
		r.attach(s)
		stop = context.AfterFunc(ctx, func() { s.Reset(http2.ErrCodeCancel) })
	}
	stream, err := m.OpenWith(h, body, end, options)
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return stream, err
}

// checkCaller returns why the caller may make no requests now, or nil.
func (b *requestBackend) checkCaller() error {
	s, err := b.agent.current()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.checkCallerIn(s)
}

// checkCallerIn is checkCaller for a state, and updates the policy. b.mu is held.
func (b *requestBackend) checkCallerIn(s *state) error {
	if s == b.state {
		return nil
	}
	if err := b.out.checkMirror(s); err != nil {
		return refuse(reasonRevoked, err)
	}
	if err := s.links[b.out.peer.name].checkNamespace(b.out.caller.namespace); err != nil {
		return err
	}
	b.state = s
	b.policy = s.mirrors[b.out.vip].ports[b.out.index].retryPolicy()
	return nil
}

// acquire counts a request in flight. If it returns nil, the caller must call release.
func (b *requestBackend) acquire() error {
	a, out := b.agent, b.out
	if !a.circuits.acquire(out.remotePort(), out.port.settings.MaxRequests) {
		return refuse(reasonCircuitOpen, fmt.Errorf("%d requests to %s are in flight, as many as its owner allows a node", out.port.settings.MaxRequests, out.mirror.name))
	}
	err := acquireShares(a.shares.outboundRequests, b.account, reasonTooManyRequests,
		a.shares.outboundRequestLinks, out.peer.uid, reasonTooManyRequests)
	if err != nil {
		a.circuits.release(out.remotePort())
	}
	return err
}

func (b *requestBackend) release() {
	a, out := b.agent, b.out
	releaseShares(a.shares.outboundRequests, b.account, a.shares.outboundRequestLinks, out.peer.uid)
	a.circuits.release(out.remotePort())
}

// observe ends the current try for the balancer.
func (r *outboundRequest) observe(o balance.Outcome) {
	if r.backend.group.balancer.Finish(r.choice, time.Since(r.sentAt), o, time.Now()) {
		r.counted.Ejected()
	}
	r.choice = balance.Choice{}
}

// isFailure reports whether a response counts as a failed try. An error response of the
// far agent does, unless it is final. A response of the application does if the
// policy names its status.
func (r *outboundRequest) isFailure(h *message.Head) bool {
	if value, far := h.Get(httprelay.ErrorField); far {
		r.addPeerError(value)
		if isFinalError(value) {
			r.observe(balance.ServerError) // its time says nothing about the application
			return false
		}
		return true
	}
	if status, ok := grpcStatusOf(h); ok && r.grpc {
		return r.policy.GRPCStatuses&(1<<status) != 0
	}
	return h.Status >= 400 && r.policy.Decide(retry.Attempt{Method: r.head.Method, Failure: retry.Status, Status: h.Status, Tries: 1}, nil).Retry
}

// isFinalError reports whether every endpoint would answer a request with this error of the
// far agent, because the caller may not make the request, or because it is too large. The
// status does not tell: it is 200 for gRPC.
func isFinalError(value string) bool {
	kind := httprelay.ErrorKind(value)
	return kind == "http_request_denied" || kind == "http_request_error"
}

// retry decides whether a failed try is followed by another.
func (r *outboundRequest) retry(f httprelay.Failure) bool {
	if r.isCanceled() {
		return false
	}
	attempt := retry.Attempt{Method: r.head.Method, Tries: f.Try + 1, Elapsed: time.Since(r.start), Body: retry.BodyKept}
	if !f.Replayable {
		attempt.Body = retry.BodyLost
	}
	attempt.Failure, attempt.Status = classify(f)
	if attempt.Failure == retry.Status && r.grpc {
		attempt.Failure = retry.GRPCStatus
		attempt.GRPCStatus, _ = grpcStatusOf(f.Response)
	}
	if isFinal(f.Err) {
		return false
	}
	r.observe(r.outcomeOfFailure(f, attempt))
	if r.hasWaited(f) {
		return false
	}
	if r.canWait(f) && r.hasTriedAll() {
		return r.sendToWait(f)
	}
	d := r.policy.Decide(attempt, nil)
	if !d.Retry {
		return r.sendToWait(f)
	}
	if !r.backend.group.budget.Withdraw(time.Now()) {
		r.counted.BudgetExhausted()
		return r.sendToWait(f)
	}
	r.counted.Retried(d.Reason)
	r.endFailedSpan(f)
	return d.Delay == 0 || backoff.Sleep(r.ctx, d.Delay)
}

// outcomeOfFailure returns what a failed try says about its endpoint.
func (r *outboundRequest) outcomeOfFailure(f httprelay.Failure, a retry.Attempt) balance.Outcome {
	switch {
	case a.Failure == retry.GoingAway, a.Failure == retry.NotProcessed && f.Response == nil:
		return balance.Neutral // the session's end says nothing about the endpoint
	case a.Failure == retry.Status, a.Failure == retry.GRPCStatus:
		value, ok := f.Response.Get("Grpc-Status")
		return r.outcomeOfResponse(f.Response.Status, value, ok)
	}
	return balance.Failure
}

// outcomeOfResponse returns what a response says about its endpoint. Gateway errors count
// toward ejection. Other server errors count only if the policy retries them.
func (r *outboundRequest) outcomeOfResponse(status int, grpc string, hasGRPC bool) balance.Outcome {
	on := balance.EjectOnGatewayErrors
	if r.policy.NamesStatus(status) {
		on = balance.EjectOnServerErrors
	}
	if code, ok := parseGRPCStatus(grpc); ok && hasGRPC && r.grpc {
		status = httpStatusOfGRPC(code)
		if r.policy.GRPCStatuses&(1<<code) != 0 {
			on = balance.EjectOnServerErrors
		}
	}
	return balance.OutcomeOf(status, on)
}

// isFinal reports whether another try would fail in the same way, because the refusal
// does not depend on the endpoint.
func isFinal(err error) bool {
	refused := (*refusal)(nil)
	return errors.As(err, &refused) && !isEndpointRefusal(err) && !isHandshakeReset(err)
}

// classify returns how a try failed.
func classify(f httprelay.Failure) (retry.Failure, int) {
	if f.Response != nil {
		if value, far := f.Response.Get(httprelay.ErrorField); far {
			if httprelay.IsNotProcessed(value) {
				return retry.NotProcessed, 0
			}
			return retry.Reset, 0
		}
		return retry.Status, f.Response.Status
	}
	reset := (*mux.ResetError)(nil)
	refused := (*refusal)(nil)
	switch {
	case errors.Is(f.Err, httprelay.ErrTimeout):
		return retry.TryTimeout, 0
	case errors.As(f.Err, &reset) && reset.GoingAway:
		return retry.GoingAway, 0
	case errors.Is(f.Err, mux.ErrTooManyStreams), errors.Is(f.Err, mux.ErrGoingAway), errors.Is(f.Err, mux.ErrClosed),
		errors.As(f.Err, &reset) && reset.NotProcessed:
		return retry.NotProcessed, 0
	case errors.As(f.Err, &refused):
		return retry.ConnectFailed, 0
	}
	return retry.Reset, 0
}

// finish records how the request ended.
func (r *outboundRequest) finish(result httprelay.Result) {
	var outcome balance.Outcome
	switch {
	case result.FromErr || r.isCanceled():
		outcome = balance.Neutral
	case result.Err != nil:
		outcome = balance.Failure
	default:
		outcome = r.outcomeOfResponse(result.Status, result.GRPCStatus, result.HasGRPC)
	}
	b := r.backend
	if r.session != nil && b.out.mirror.affinity > 0 && result.Began {
		b.agent.endpointCache.recordVisit(b.out.caller.uid, b.out.remotePort(), r.session.endpoint)
	}
	if r.choice.ID != (route.EndpointID{}) {
		now := time.Now()
		latency := now.Sub(r.sentAt)
		if result.Began {
			latency = result.FirstByte - r.sentAt.Sub(r.start)
		}
		if b.group.balancer.Finish(r.choice, latency, outcome, now) {
			r.counted.Ejected()
		}
	}
}

// answer answers a request that got no response, and counts how it ended.
func (r *outboundRequest) answer(from httprelay.Stream, result httprelay.Result) {
	switch {
	case result.Err == nil || isCallerGone(result):
	case !result.Began:
		result.Status, result.Err = r.answerError(from, result.Err)
	case result.FromErr:
		r.conn.agent.metrics.refuse(outbound, reasonMalformed)
	}
	now := time.Now()
	r.counted.Finish(now, requestResult(result, now.Sub(r.start)).Traced(r.trace.TraceID()))
	r.endSpan(result)
	r.record(result)
}

// answerError answers a request that got no response. The error that it returns is why the
// request failed: nil for a redirect.
func (r *outboundRequest) answerError(to httprelay.Stream, err error) (status int, _ error) {
	if status, ok := r.answerRedirect(to, err); ok {
		return status, nil
	}
	status, kind := errorStatus(err)
	reason := requestReason(err, outbound)
	details := reason
	if bad := (malformedBody{}); errors.As(err, &bad) {
		status, kind, details = bad.cause.Status, "http_request_error", bad.cause.Reason
	}
	r.conn.agent.metrics.refuse(outbound, reason)
	r.counted.Rejected(rejectionOf(err))
	r.conn.agent.logLimited(slog.LevelInfo, "request failed", "mirror", r.backend.out.mirrorName(), "caller", r.backend.out.callerName(),
		"status", status, "reason", reason, "error", err)
	httprelay.AnswerError(to, httprelay.MeshError{Side: "causeway", Status: status, Kind: kind, Reason: details, GRPC: r.grpc, Version: r.head.Version})
	return status, err
}

// errorStatus returns the status for an error, and its kind by RFC 9209, section 2.3.
func errorStatus(err error) (status int, kind string) {
	refused := (*refusal)(nil)
	switch {
	case errors.Is(err, httprelay.ErrTimeout):
		return 504, "http_response_timeout"
	case errors.As(err, &refused) && routeErrorStatus[refused.reason] != 0:
		return routeErrorStatus[refused.reason], routeErrorKinds[refused.reason]
	case errors.As(err, &refused) && (refused.reason == reasonSuspended || refused.reason == reasonCallerNotAllowed):
		return 403, "http_request_denied"
	case errors.As(err, &refused):
		return 503, "destination_unavailable"
	}
	return 503, "connection_terminated"
}

// requestReason returns why an agent answers a request in place of an application, as a
// metric's label.
func requestReason(err error, direction string) string {
	refused, bad := (*refusal)(nil), (*h1.Error)(nil)
	switch {
	case errors.Is(err, httprelay.ErrTimeout):
		return reasonRequestTimeout
	case errors.As(err, &refused):
		return refused.reason
	case errors.As(err, &bad):
		return reasonMalformed
	case direction == inbound:
		return reasonAppFailed
	}
	return reasonTunnel
}

// editResponse replaces ErrorField in an error response of the far agent by Proxy-Status
// (RFC 9209).
func editResponse(h *message.Head) {
	if value, far := h.Get(httprelay.ErrorField); far {
		h.Del(httprelay.ErrorField)
		h.Add("Proxy-Status", "causeway-peer; "+httprelay.ProxyStatus(value))
	}
}
