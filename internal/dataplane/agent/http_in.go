package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// The life of a session for requests at the side of the application, and of each
// request. http_out.go is the caller's side.

const (
	// appIdleTimeout is how long a connection to an application stays open without a
	// request. Most applications keep idle connections for longer, so they rarely close
	// one just when the agent sends a request.
	appIdleTimeout = time.Second
	// appStreams is how many requests may be open at the same time on one HTTP/2
	// connection to an application.
	appStreams = 100
)

// An inboundRequests is a session for requests.
type inboundRequests struct {
	agent    *Agent
	in       *inboundConn
	session  *net.TCPConn
	ctx      context.Context // ends with the session
	protocol tunnel.Protocol
	caller   string // its SPIFFE ID
	mux      *mux.Conn
	apps     appConns

	recorders [2]*reqmetrics.Recorder // of requests, and of those of gRPC

	mu       sync.Mutex // guards what follows
	state    *state     // by which the caller was decided on last
	anything bool       // it admits each request
	forward  bool       // the application asks for callerField
}

// serveInboundRequests serves a session for requests. It blocks until the session has
// ended, and closes it. OPEN must already be answered. ctx ends when the session is no
// longer admitted.
func (a *Agent) serveInboundRequests(life, ctx context.Context, c *net.TCPConn, conn *tunnel.Conn, in *inboundConn) {
	r := &inboundRequests{agent: a, in: in, session: c, protocol: in.protocol, caller: in.caller.String()}
	var end context.CancelFunc
	r.ctx, end = context.WithCancel(life)
	defer end()
	r.apps.ctx = r.ctx
	defer r.apps.close()
	r.recorders = a.requestRecorders(in.metricsKey())
	r.mux = mux.New(conn.Conn.(*tls.Conn), mux.Config{
		Coding:        codingOf(r.protocol),
		MaxStreams:    maxRequests,
		ResetRate:     resetRate,
		Windows:       a.shares.memory(in.decision.Link.UID),
		Handle:        r.serve,
		OnFault:       r.recordFault,
		RefusalFields: refusalFields(""),
	})
	a.recordClientFirst(in.localPort())
	a.logLimited(slog.LevelInfo, "serving requests", "service", in.service(), "caller", in.caller, "link", in.decision.Link.Name,
		"pod", in.header.PodUID)
	transport.ClearUserTimeout(c) // limitIdleRequests ends dead sessions
	in.requests.Store(r.mux)
	if in.retiring.Load() { // the drain notice came before
		r.mux.GoAway()
	}
	defer afterfunc.Start(ctx, func() {
		if _, idle := r.mux.Idle(); idle {
			r.mux.GoAway()
		} else {
			end() // what Keep refuses ends at once
		}
	})()
	defer afterfunc.Start(a.acceptCtx, r.mux.GoAway)()
	err := r.mux.Run(r.ctx)
	outcome := sessionRetired
	if err != nil {
		outcome = sessionLost
		a.logRequestsEnd(ctx, err, "service", in.service(), "caller", in.caller, "link", in.decision.Link.Name)
	}
	a.metrics.countSession(inbound, in.decision.Link.Name, outcome)
}

// hasNoRequests reports whether it is a session for requests and none is open.
func (in *inboundConn) hasNoRequests() bool {
	m := in.requests.Load()
	if m == nil {
		return false
	}
	_, idle := m.Idle()
	return idle
}

// serve serves one request.
func (r *inboundRequests) serve(s *mux.Stream) {
	head := requestHeads.Get().(*message.Head)
	defer requestHeads.Put(head)
	ended, err := s.ReadHead(head)
	if err != nil {
		if h1.IsMalformed(err) {
			r.recordFault(mux.Fault{Reason: "malformed_head", Err: err})
		}
		return
	}
	from := callerStream{httprelay.MuxStream{Stream: s}}
	waits := takeWait(head)
	removeClaims(head)
	start := time.Now()
	counted := r.recorder(head).Start(start)
	traced := r.startSpan(head, start)
	f := appRequests.Get().(*appRequest)
	f.session, f.stream, f.counted, f.waits = r, s, counted, waits
	f.start, f.plan.Start = start, start
	result := r.relay(f, from, head, ended)
	f.free()
	if result.Err != nil && !result.Began && !result.FromErr {
		if timeout, ok := grpcTimeout(head); ok && time.Since(start) >= timeout {
			result.Err = httprelay.ErrTimeout // the application gives up when the caller does
		}
		r.refuse(from, head, result.Err, counted)
		result.Status = refusalOf(result.Err).Status
	}
	now := time.Now()
	counted.Finish(now, requestResult(result, now.Sub(start)).Traced(traced.TraceID()))
	endInboundSpan(traced, result)
	r.record(head, start, result)
}

// relay forwards a request, unless it must be refused, and its response.
func (r *inboundRequests) relay(f *appRequest, from httprelay.Stream, head *message.Head, ended bool) httprelay.Result {
	if err := r.admit(head); err != nil {
		return httprelay.Result{Err: err}
	}
	shares, link := r.agent.shares, r.in.decision.Link.UID
	err := acquireShares(shares.inboundRequests, r.caller, reasonTooManyRequests, shares.inboundRequestLinks, link, reasonTooManyRequests)
	if err != nil {
		return httprelay.Result{Err: &refusal{reason: reasonTooManyRequests, code: tunnel.Code_OVERLOADED, err: err}}
	}
	defer releaseShares(shares.inboundRequests, r.caller, shares.inboundRequestLinks, link)
	r.identify(head)
	defer f.release()
	use := f.use
	f.stream.OnReset(func(error) { f.cancel(use) })
	result := httprelay.Forward(from, head, ended, &f.plan)
	result.FromErr = result.FromErr || result.Err != nil && f.isCanceled()
	f.complete = result.Err == nil && !result.Unread
	return result
}

// requestHeads are heads whose fields' capacity can be used again.
var requestHeads = sync.Pool{New: func() any { return new(message.Head) }}

// admit decides on a request. If no policy names methods or paths, it decides again only
// after the state has changed.
func (r *inboundRequests) admit(head *message.Head) error {
	s, err := r.agent.current()
	if err != nil {
		return err
	}
	anything, err := r.decide(s)
	if err != nil || anything {
		return err
	}
	path, _, err := head.NormalPath()
	if err != nil {
		path = "" // no rule with paths admits it
	}
	if d := admit.DecideRequest(r.in.request(), head.Method, path, s.admission); !d.Allowed {
		return &refusal{reason: d.Reason.String(), code: d.Code, err: fmt.Errorf("%s may not %s %s of %s: %s",
			r.in.caller, head.Method, path, r.in.hello, d.Reason)}
	}
	return nil
}

// decide decides on the session in s. anything reports that each request is admitted.
func (r *inboundRequests) decide(s *state) (anything bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s == r.state {
		return r.anything, nil
	}
	if _, _, err := decide(s, r.in); err != nil {
		return false, err
	}
	opaque := r.in.request()
	opaque.HTTP = false
	r.state, r.anything = s, admit.Decide(opaque, s.admission).Allowed
	r.forward = r.in.exportedPort(s).forwardIdentity == trafficsettings.ForwardHeader
	return r.anything, nil
}

// callerField is the field by which an application learns the SPIFFE ID of the caller,
// if its Service has the annotation causeway.dev/forward-identity: header.
const callerField = "causeway-client-id"

// A callerStream is the stream of a request whose trailers claim nothing that only an
// agent may say.
type callerStream struct{ httprelay.MuxStream }

// ReadTrailers is of httprelay.Stream.
func (s callerStream) ReadTrailers(h *message.Head) bool {
	if !s.MuxStream.ReadTrailers(h) {
		return false
	}
	removeClaims(h)
	return len(h.Fields) > 0
}

// removeClaims removes fields that only an agent may set from what a caller sent. It also
// removes those whose name has underscores in place of hyphens, because CGI and similar
// interfaces do not tell the two apart (RFC 3875, section 4.1.18).
func removeClaims(h *message.Head) {
	h.Fields = slices.DeleteFunc(h.Fields, func(f message.Field) bool {
		return isNamed(f.Name, callerField) || isNamed(f.Name, httprelay.ErrorField) || isNamed(f.Name, awaitField)
	})
}

// isNamed reports whether name is field, in any case, with underscores for hyphens.
func isNamed(name, field string) bool {
	return len(name) == len(field) && strings.EqualFold(strings.ReplaceAll(name, "_", "-"), field)
}

// identify sets callerField if the application asks for it.
func (r *inboundRequests) identify(head *message.Head) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forward {
		head.Add(callerField, r.caller)
	}
}

// recorder returns the metrics of a request.
func (r *inboundRequests) recorder(head *message.Head) *reqmetrics.Recorder {
	if isGRPC(head) {
		return r.recorders[1]
	}
	return r.recorders[0]
}

// refuse answers a request that has no response of an application.
func (r *inboundRequests) refuse(to httprelay.Stream, head *message.Head, err error, counted reqmetrics.Request) {
	reason := requestReason(err, inbound)
	r.agent.metrics.refuse(inbound, reason)
	r.agent.logLimited(slog.LevelInfo, "request refused", "service", r.in.service(), "caller", r.in.caller,
		"link", r.in.header.Link, "reason", reason, "error", err)
	counted.Rejected(rejectionOf(err))
	e := refusalOf(err)
	e.GRPC, e.Version = isGRPC(head), head.Version
	httprelay.AnswerError(to, e)
}

// refusalOf returns the response for an error.
func refusalOf(err error) httprelay.MeshError {
	e := httprelay.MeshError{Status: 502, Kind: "connection_terminated", Reason: requestReason(err, inbound)}
	bad := (*h1.Error)(nil)
	refused := (*refusal)(nil)
	switch {
	case errors.Is(err, httprelay.ErrTimeout):
		e.Status, e.Kind = 504, "http_response_timeout"
	case errors.As(err, &bad):
		e.Kind = "http_protocol_error"
	case isNotProcessed(err):
		e.Status, e.Kind, e.NotProcessed = 503, "destination_unavailable", true
	case errors.As(err, &refused):
		e.Status, e.Kind, e.NotProcessed = 503, "destination_unavailable", true
		if refused.code == tunnel.Code_DENIED || refused.code == tunnel.Code_NOT_EXPORTED {
			e.Status, e.Kind, e.NotProcessed = 403, "http_request_denied", false
		}
	}
	return e
}

// An appRequest is one request to an application.
type appRequest struct {
	plan    httprelay.Plan // of the functions below, made once
	session *inboundRequests
	stream  *mux.Stream // of the caller's agent
	counted reqmetrics.Request
	start   time.Time
	waits   bool               // the caller's agent sent awaitField
	app     *httprelay.AppConn // of HTTP/1
	reused  bool
	// complete reports that the response and the request were forwarded completely.
	complete bool

	mu       sync.Mutex // guards what follows
	use      uint64     // number of this use of the object
	to       httprelay.Stream
	canceled bool
}

// appRequests are requests that have ended, for others to use their memory.
var appRequests = sync.Pool{New: func() any {
	f := new(appRequest)
	f.plan = httprelay.Plan{Open: f.open, Retry: f.retry, OnResponse: removeErrorField}
	return f
}}

func removeErrorField(h *message.Head) { h.Del(httprelay.ErrorField) }

// free returns f to appRequests. A cancel that comes late finds that its use is over.
func (f *appRequest) free() {
	f.mu.Lock()
	f.use++
	f.to, f.canceled = nil, false
	f.mu.Unlock()
	f.session, f.stream, f.counted, f.app = nil, nil, reqmetrics.Request{}, nil
	f.waits, f.reused, f.complete = false, false, false
	appRequests.Put(f)
}

// cancel ends the request, because the caller has gone. It does nothing after the end of
// this use of f.
func (f *appRequest) cancel(use uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.use != use {
		return
	}
	f.canceled = true
	if f.to != nil {
		f.to.Reset(http2.ErrCodeCancel)
	}
}

func (f *appRequest) isCanceled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.canceled
}

// open sends a request to the application, over a connection that is idle or a new one.
func (f *appRequest) open(try int, h *message.Head, body []byte, end bool) (httprelay.Stream, error) {
	if f.isCanceled() {
		return nil, errCanceled
	}
	to, err := f.send(try, h, body, end)
	if err != nil && f.mustWait(err, body) {
		to, err = f.sendWaiting(try, h, body, end, err)
	}
	if err != nil {
		return nil, err
	}
	if f.isCanceled() {
		to.Reset(http2.ErrCodeCancel)
		return nil, errCanceled
	}
	return to, nil
}

// sendWaiting continues send, which has returned err, while the request must wait. Those
// that wait have shares of their own, so that an application that does not answer does not
// use up those of other requests.
func (f *appRequest) sendWaiting(try int, h *message.Head, body []byte, end bool, err error) (to httprelay.Stream, _ error) {
	r := f.session
	waiting := r.agent.shares.inboundWaiting
	if !waiting.Acquire(r.caller) {
		return nil, err
	}
	defer waiting.Release(r.caller)
	pause := redialPause
	for err != nil && f.mustWait(err, body) && backoff.Sleep(r.ctx, pause) {
		to, err = f.send(try, h, body, end)
		pause = min(2*pause, maxRedialPause)
	}
	return to, err
}

// attach makes to the stream of the current try. The caller calls it before it sends
// anything, so that cancel can end a send that the application delays.
func (f *appRequest) attach(to httprelay.Stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = to
	if f.canceled {
		to.Reset(http2.ErrCodeCancel)
	}
}

func (f *appRequest) send(try int, h *message.Head, body []byte, end bool) (httprelay.Stream, error) {
	r := f.session
	if r.protocol == tunnel.Protocol_HTTP2 {
		opening := func(s *mux.Stream) { f.attach(httprelay.MuxStream{Stream: s}) }
		stream, err := r.apps.openStream(r, h, body, end, opening)
		if err != nil {
			return nil, err
		}
		return httprelay.MuxStream{Stream: stream}, nil
	}
	if f.app != nil { // of the last try
		r.in.podGrace.remove(f.app.Conn())
		transport.Reset(f.app.Conn())
		f.app = nil
	}
	if try == 0 {
		f.app = r.apps.take()
	}
	if f.reused = f.app != nil; !f.reused {
		c, err := r.dial()
		if err != nil {
			return nil, err
		}
		f.app = httprelay.NewAppConn(c)
	}
	r.in.podGrace.add(f.app.Conn())
	f.attach(f.app)
	return f.app, f.app.Send(h, body, end)
}

// retry decides whether a request is sent again over a new connection. It is sent again
// if an idle connection had ended before any byte of the request was sent, or if an
// application of HTTP/2 reports that it did not process the request. The caller's agent
// decides about everything else, because it has the policy and the budget for retries.
func (f *appRequest) retry(failure httprelay.Failure) bool {
	unsent := (*httprelay.UnsentError)(nil)
	switch {
	case !failure.Replayable, failure.Response != nil, f.isCanceled():
		return false
	case f.reused && errors.As(failure.Err, &unsent):
	case isNotProcessed(failure.Err) && failure.Try+1 < openTries:
	default:
		return false
	}
	f.counted.Retried(retry.ReasonNotProcessed)
	return true
}

// isNotProcessed reports whether the other end of a stream says that it did not process
// the request.
func isNotProcessed(err error) bool {
	reset := (*mux.ResetError)(nil)
	return errors.As(err, &reset) && reset.NotProcessed
}

// release gives the connection back if it can carry another request.
func (f *appRequest) release() {
	if f.app == nil {
		return
	}
	f.session.in.podGrace.remove(f.app.Conn())
	f.mu.Lock()
	f.to = nil // a late cancel must not reset the connection of the next request
	f.mu.Unlock()
	if f.complete && f.app.Reusable() {
		f.session.apps.put(f.app)
		return
	}
	transport.Reset(f.app.Conn())
}

// dial connects to the application.
func (r *inboundRequests) dial() (*net.TCPConn, error) {
	s, err := r.agent.current()
	if err != nil {
		return nil, err
	}
	return r.agent.dialPod(r.ctx, s, r.session, r.in)
}

// appConns are a session's connections to its application that carry no HTTP/1 request,
// and those of HTTP/2.
type appConns struct {
	ctx   context.Context
	work  sync.WaitGroup // the connections of HTTP/2
	mu    sync.Mutex     // guards what follows
	idle  []idleApp      // the last is the most recently used
	timer *time.Timer
	muxes []*mux.Conn
	ended bool
	// onEnd has the function to call when a connection of HTTP/2 has ended.
	onEnd map[*mux.Conn]func()
	// dialing is the dial of an HTTP/2 connection that is in progress; nil: none.
	dialing *appDial
}

// An appDial is the dial of an HTTP/2 connection. Several requests may wait for it.
type appDial struct {
	done chan struct{} // closed when the dial has ended
	err  error         // valid once done is closed
}

type idleApp struct {
	*httprelay.AppConn
	since time.Time
}

// take returns an idle connection, or nil.
func (p *appConns) take() *httprelay.AppConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		last := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if last.IsQuiet() {
			return last.AppConn
		}
		last.Conn().Close()
	}
	return nil
}

// put keeps an idle connection for appIdleTimeout.
func (p *appConns) put(c *httprelay.AppConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		c.Conn().Close()
		return
	}
	p.idle = append(p.idle, idleApp{c, time.Now()})
	if p.timer == nil {
		p.timer = time.AfterFunc(appIdleTimeout, p.expire)
	}
}

// expire closes the connections that were idle for too long.
func (p *appConns) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	n := 0
	for n < len(p.idle) && now.Sub(p.idle[n].since) >= appIdleTimeout {
		p.idle[n].end()
		n++
	}
	p.idle = slices.Delete(p.idle, 0, n)
	p.timer = nil
	if len(p.idle) > 0 && !p.ended {
		p.timer = time.AfterFunc(p.idle[0].since.Add(appIdleTimeout).Sub(now), p.expire)
	}
}

// end ends an idle connection by FIN.
func (c idleApp) end() {
	c.Conn().SetLinger(-1)
	c.Conn().Close()
}

// close closes all connections and waits for those of HTTP/2.
func (p *appConns) close() {
	p.mu.Lock()
	p.ended = true
	for _, c := range p.idle {
		c.end()
	}
	p.idle = nil
	if p.timer != nil {
		p.timer.Stop()
	}
	for _, m := range p.muxes {
		m.GoAway()
	}
	p.mu.Unlock()
	p.work.Wait()
}

// openStream sends a request over an HTTP/2 connection to the application. It passes
// opening on in mux.OpenOptions.
func (p *appConns) openStream(r *inboundRequests, h *message.Head, body []byte, end bool, opening func(*mux.Stream)) (stream *mux.Stream, err error) {
	for range openTries {
		m, derr := p.conn(r)
		if derr != nil {
			return nil, derr
		}
		stream, err = m.OpenWith(h, body, end, mux.OpenOptions{Opening: opening}) // nothing was sent if it fails
		if !errors.Is(err, mux.ErrClosed) && !errors.Is(err, mux.ErrGoingAway) && !errors.Is(err, mux.ErrTooManyStreams) {
			return stream, err
		}
		if !errors.Is(err, mux.ErrTooManyStreams) { // others were faster
			p.drop(m)
		}
	}
	return nil, &refusal{reason: reasonPodRefused, code: tunnel.Code_POD_REFUSED, err: fmt.Errorf("the application accepts no requests: %w", err)}
}

// conn returns an HTTP/2 connection that can carry another request. If there is none, it
// dials. Requests that arrive during the dial share the connection or the error.
func (p *appConns) conn(r *inboundRequests) (*mux.Conn, error) {
	return p.share(func() (*mux.Conn, error) {
		c, err := r.dial()
		if err != nil {
			return nil, err
		}
		m := mux.New(c, mux.Config{
			Client:  true,
			Windows: r.agent.shares.memory(r.in.decision.Link.UID),
			OnFault: r.recordAppFault,
		})
		r.in.podGrace.add(c)
		p.callOnEnd(m, func() { r.in.podGrace.remove(c) })
		return m, nil
	})
}

// callOnEnd has do called when m has ended.
func (p *appConns) callOnEnd(m *mux.Conn, do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.onEnd == nil {
		p.onEnd = make(map[*mux.Conn]func())
	}
	p.onEnd[m] = do
}

// finishEnd calls the function that callOnEnd was given for a connection, if any.
func (p *appConns) finishEnd(m *mux.Conn) {
	p.mu.Lock()
	do := p.onEnd[m]
	delete(p.onEnd, m)
	p.mu.Unlock()
	if do != nil {
		do()
	}
}

// share does the work of conn. dial makes a new connection.
func (p *appConns) share(dial func() (*mux.Conn, error)) (*mux.Conn, error) {
	for {
		d, m, mine := p.findOrDial()
		switch {
		case m != nil:
			return m, nil
		case mine:
			m, err := dial()
			p.dialed(d, m, err)
			return m, err
		}
		<-d.done
		if d.err != nil {
			return nil, d.err
		}
	}
}

// findOrDial returns a connection m, or the dial d in progress. If there is neither, it
// starts d and mine is true: the caller must dial and call dialed.
func (p *appConns) findOrDial() (d *appDial, m *mux.Conn, mine bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.muxes {
		if m.CanOpen() && m.Load() < appStreams {
			return nil, m, false
		}
	}
	if p.dialing != nil {
		return p.dialing, nil, false
	}
	p.dialing = &appDial{done: make(chan struct{})}
	return p.dialing, nil, true
}

// dialed ends a dial. If err is nil, it also starts to run the connection until p.ctx
// ends.
func (p *appConns) dialed(d *appDial, m *mux.Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(d.done)
	p.dialing, d.err = nil, err
	if err != nil {
		return
	}
	p.muxes = append(p.muxes, m)
	p.work.Go(func() {
		m.Run(p.ctx)
		p.drop(m)
		p.finishEnd(m)
	})
}

// drop removes an HTTP/2 connection from muxes, so that no new request uses it. Its open
// requests finish.
func (p *appConns) drop(m *mux.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.muxes {
		if other == m {
			p.muxes = append(p.muxes[:i], p.muxes[i+1:]...)
			return
		}
	}
}
