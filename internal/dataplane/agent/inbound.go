package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// headerTimeout bounds the arrival of a gateway's header and the ClientHello after
	// it.
	headerTimeout = 3 * time.Second
	// handshakeTimeout bounds TLS and HELLO.
	handshakeTimeout = 5 * time.Second
	// podTimeout bounds the dial of an application. maxAppTimeout bounds what a client
	// may request instead, so that a call can wait for a full accept queue.
	podTimeout    = 3 * time.Second
	maxAppTimeout = 2 * time.Minute
	// podDelay is the head start of a pod's first address over the next one.
	podDelay = 250 * time.Millisecond
	// refusalReadTimeout and maxRefusalDiscard bound how long the agent reads from a
	// refused caller.
	refusalReadTimeout = time.Second
	maxRefusalDiscard  = 64 << 10
)

// An inboundConn is one inbound session.
type inboundConn struct {
	header   route.Header
	server   *identity.Credential
	caller   identity.Name
	verified atomic.Pointer[verifiedPeer] // for caller; renewed while the session is open
	secret   tunnel.SessionSecret
	hello    tunnel.Hello
	decision admit.Decision
	addrs    []netip.AddrPort // of the application
	// appTimeout is how long the client waits for the application.
	appTimeout time.Duration
	// protocol is what follows the answer to OPEN. If it is not an exchange, requests are
	// the requests of the session.
	protocol      tunnel.Protocol
	requests      atomic.Pointer[mux.Conn]
	refusalSent   bool        // the far side has received the reason
	openAnswered  bool        // OPEN was accepted
	opaque        atomic.Bool // the last OPEN was for an exchange
	releaseShares func()      // set once HELLO was accepted
	podGrace      podGrace    // of the pod, for the connections of an exchange or of requests
	// isolated: NetworkPolicies isolated the port when the pod last backed the Service.
	isolated atomic.Bool
	// exchanges counts the completed exchanges.
	exchanges atomic.Int64
	// idleSince is when the wait for OPEN began, in Unix nanoseconds; 0: an exchange is
	// open.
	idleSince atomic.Int64
	// retiring: the session's gateway drains, and no other exchange may begin.
	retiring atomic.Bool

	from netip.Addr // the gateway's address, as seen by this node
	// deadlineMu is held while the drain notice sets a deadline on conn, and while
	// idleSince changes. So that deadline never interrupts an exchange.
	deadlineMu sync.Mutex
	conn       *tunnel.Conn
}

// serveInbound serves a session that a gateway hands over. It blocks until the session
// ends, and closes c.
func (a *Agent) serveInbound(life context.Context, c *net.TCPConn) {
	in := &inboundConn{}
	leave, err := a.readHeader(c, in)
	if err == nil {
		defer leave()
		if in.header.Probe() {
			a.serveProbe(life, c, in)
			return
		}
		in.from = addrOf(c.RemoteAddr()).Addr()
		a.inboundConns.accept(in)
		if in.conn, err = a.acceptSession(life, c, in); err != nil {
			a.inboundConns.reject(in)
		}
	}
	if err == errDrainNotice {
		c.Close()
		return
	}
	if err == errRenewal {
		a.closeAfterRefusal(c)
		return
	}
	if err != nil {
		a.rejectInbound(c, in, err)
		return
	}
	conn := in.conn
	defer in.releaseShares()
	a.metrics.countSession(inbound, in.decision.Link.Name, sessionMade)
	a.inboundConns.add(in)
	defer a.inboundConns.remove(in)
	ctx, release := a.leases.grant(life, a.state.Load, in.lease())
	defer release()
	for a.exchange(ctx, c, conn, in) {
		in.exchanges.Add(1)
	}
	if in.protocol != tunnel.Protocol_OPAQUE && in.openAnswered {
		a.serveInboundRequests(life, ctx, c, conn, in)
	}
}

// exchange serves one exchange of a session, from OPEN on. It reports whether the
// session can serve another one. If not, the session has ended.
func (a *Agent) exchange(ctx context.Context, c *net.TCPConn, conn *tunnel.Conn, in *inboundConn) bool {
	app, err := a.openApp(ctx, c, conn, in)
	if what := idleOutcome(err); what != "" {
		a.metrics.countSession(inbound, in.decision.Link.Name, what)
		a.log.Debug("idle session ended", "service", in.service(), "caller", in.caller, "error", err)
		a.closeAfterRefusal(c)
		return false
	}
	if err != nil && in.refusalSent && codeOf(err).KeepsSession() {
		a.countRejected(in, err)
		a.countRefusal(in, err)
		if conn.Discard(maxRefusalDiscard, time.Now().Add(refusalReadTimeout)) == nil && tunnel.WriteEmpty(conn, tunnel.TypeIdle) == nil {
			return true
		}
		transport.Reset(c)
		return false
	}
	if err != nil {
		a.countRejected(in, err)
		a.rejectInbound(c, in, err)
		return false
	}
	if in.protocol != tunnel.Protocol_OPAQUE {
		return false // serveInbound goes on
	}
	if in.isReused() {
		a.metrics.countSession(inbound, in.decision.Link.Name, sessionReused)
	}
	a.logLimited(slog.LevelInfo, "connection served", "service", in.service(), "caller", in.caller, "link", in.decision.Link.Name, "pod", in.header.PodUID)
	in.podGrace.add(app)
	counted, start := a.requestMetrics.Recorder(in.metricsKey()).Start(time.Now()), time.Now()
	result := transport.Exchange(ctx, app, conn, a.shares.memory(in.decision.Link.UID), a.observeFirstSpeaker(in))
	in.podGrace.remove(app)
	a.metrics.ended(inbound, in.decision.Link.Name, result)
	counted.Finish(time.Now(), exchangeResult(result, inbound, start))
	a.recordInbound(in, start, result)
	a.logEnd(result, "service", in.service(), "caller", in.caller, "link", in.decision.Link.Name)
	if !result.Reusable {
		a.metrics.countSession(inbound, in.decision.Link.Name, sessionLost)
		return false
	}
	if in.retiring.Load() || transport.RawOf(conn).Worn() {
		a.metrics.countSession(inbound, in.decision.Link.Name, sessionRetired)
		halfClose(conn)
		a.closeAfterRefusal(c)
		return false
	}
	conn.SetWriteDeadline(time.Now().Add(handshakeTimeout))
	if err := tunnel.WriteEmpty(conn, tunnel.TypeIdle); err != nil {
		a.metrics.countSession(inbound, in.decision.Link.Name, sessionLost)
		transport.Reset(c)
		return false
	}
	conn.SetWriteDeadline(time.Time{})
	return true
}

// acceptSession authenticates both ends and answers HELLO.
func (a *Agent) acceptSession(life context.Context, c *net.TCPConn, in *inboundConn) (*tunnel.Conn, error) {
	conn, err := a.accept(life, c, in)
	if err != nil {
		return nil, err
	}
	if err := a.answerHello(conn, in); err != nil {
		return nil, err
	}
	return conn, nil
}

// accept proves both ends to each other.
func (a *Agent) accept(life context.Context, c *net.TCPConn, in *inboundConn) (*tunnel.Conn, error) {
	hello, err := in.header.ReadHello(c)
	if err != nil {
		return nil, refuse("header_"+route.Reason(err), err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return nil, refuse(reasonOther, err)
	}
	from := linkSource{in.header.Link, budget.SourceOf(in.header.Source.Addr())}
	if !a.rates.handshakes.Allow(from) {
		return nil, refuse(reasonHandshakeRate, fmt.Errorf("%v of link %s makes too many handshakes a second", from.source, from.link))
	}
	tun, err := a.serverHandshake(life, c, hello, in)
	if err != nil {
		return nil, err
	}
	a.rates.handshakes.Refund(from) // the handshake was not a replay
	return tunnel.NewConn(tun), nil
}

// lease returns the check that a session must keep passing. An idle session must meet
// the conditions of a new call. An open exchange must meet only those of admit.Keep.
func (in *inboundConn) lease() func(*state) error {
	return func(s *state) error {
		if _, err := in.verified.Load().recheck(s, time.Now()); err != nil {
			return err
		}
		if isolated, ok := admit.Isolated(in.request(), s.admission); ok {
			in.isolated.Store(isolated)
		}
		if !in.isIdle() && !in.hasNoRequests() {
			return in.checkOpen(s) // openApp decides on an OPEN that may be in flight
		}
		_, _, err := decide(s, in)
		// An idle session is for the next call, which needs a ready pod.
		if err == nil && !s.accepting[backingKey{in.hello.Namespace, in.hello.Service, in.header.PodUID}] {
			err = errors.New("the pod is not ready")
		}
		return err
	}
}

// checkOpen returns why an open exchange must end, or nil.
func (in *inboundConn) checkOpen(s *state) error {
	d := admit.Keep(in.request(), s.admission)
	// When the last pod of its namespace leaves the node, the node loses the exports of
	// that namespace too.
	gone := d.Reason == admit.NoPod || d.Reason == admit.PodDead ||
		d.Reason == admit.NoExport && s.pods[in.header.PodUID] == nil
	switch {
	case d.Allowed:
		return nil
	case gone && in.podGrace.allows(time.Now()):
		if m := in.requests.Load(); m != nil {
			m.GoAway() // no other request can reach the pod
		}
		return nil
	}
	return &refusal{reason: d.Reason.String(), code: d.Code, err: fmt.Errorf("%s may no longer reach %s: %s", in.caller, in.hello, d.Reason)}
}

func (in *inboundConn) request() admit.Request {
	return admit.Request{Caller: in.caller, Namespace: in.hello.Namespace, Service: in.hello.Service, Port: in.hello.Port,
		PodUID: in.header.PodUID, HTTP: !in.opaque.Load(), WasIsolated: in.isolated.Load()}
}

// rejectInbound counts a refusal and ends the connection. Only what a proven caller or a
// gateway is refused is told to the operator: strangers could fill the log.
func (a *Agent) rejectInbound(c *net.TCPConn, in *inboundConn, err error) {
	a.countRefusal(in, err)
	if in.refusalSent {
		a.closeAfterRefusal(c)
		return
	}
	transport.Reset(c)
}

func (a *Agent) countRefusal(in *inboundConn, err error) {
	level := slog.LevelDebug
	if !in.caller.IsZero() || errors.Is(err, route.ErrStale) { // or a gateway's clock is wrong
		level = slog.LevelInfo
	}
	a.metrics.refuse(inbound, reasonOf(err))
	a.recordRejected(in, err)
	a.logLimited(level, "connection refused", "service", in.service(), "caller", in.caller, "link", in.header.Link,
		"source", in.header.Source, "reason", reasonOf(err), "error", err)
}

// closeAfterRefusal resets a connection after the far side had time to read the
// refusal. An immediate reset could overtake it.
func (a *Agent) closeAfterRefusal(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(refusalReadTimeout))
	io.CopyN(io.Discard, c, maxRefusalDiscard)
	transport.Reset(c)
}

// readHeader reads the gateway's header, and counts the connection against
// Limits.Connections. Until then the connection is in a separate pool, so that strangers on
// the node's network cannot exhaust the connections of gateways. headerLimiter bounds how
// fast they come. The caller must call leave if there is no error.
func (a *Agent) readHeader(c *net.TCPConn, in *inboundConn) (leave func(), err error) {
	source := budget.SourceOf(addrOf(c.RemoteAddr()).Addr())
	if !a.headerLimiter.allow(source) {
		return nil, refuse(reasonHeaderRate, errors.New("its source connects too fast, and sends no valid header"))
	}
	entry := a.headers.Add(source, func() { transport.Reset(c) })
	defer func() {
		if evicted := a.headers.Remove(entry); evicted != budget.NotEvicted {
			if leave != nil {
				leave()
			}
			leave, err = nil, refuse(reasonTooManyHeaders, errors.New("newer connections came before its header"))
		}
	}()
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return nil, refuse(reasonOther, err)
	}
	if in.header, err = route.ReadHeader(c, s.hopKey, time.Now()); err != nil {
		return nil, refuse("header_"+route.Reason(err), err)
	}
	a.headerLimiter.proven(source)
	if in.header.Draining() {
		a.inboundConns.drainVia(addrOf(c.RemoteAddr()).Addr())
		return nil, errDrainNotice
	}
	if err := transport.Tune(c); err != nil {
		return nil, refuse(reasonOther, err)
	}
	if !a.metrics.acquire(inbound) {
		return nil, refuse(reasonTooMany, errors.New("this agent has too many connections"))
	}
	return func() { a.metrics.release(inbound) }, nil
}

// serverHandshake performs the TLS handshake as the pod that the header names.
func (a *Agent) serverHandshake(life context.Context, c *net.TCPConn, hello []byte, in *inboundConn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(life, handshakeTimeout)
	defer cancel()
	var err error
	in.server, err = awaitAnswer(ctx, &a.stateChanged, func() (*identity.Credential, error) { return a.serverOf(in.header.PodUID) })
	if err != nil {
		return nil, err
	}
	limited := &handshakeConn{TCPConn: c, limiter: a.handshakeLimiter, link: in.header.Link, ctx: ctx}
	if !limited.acquire() {
		return nil, refuse(reasonBusy, errors.New("too many handshakes at a time, or its client has gone"))
	}
	defer limited.release()
	anchors := a.anchors()
	raw := transport.WrapAccepted(limited, hello)
	tun := tls.Server(raw, identity.ServerTLS(identity.PlaneTunnel,
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return in.server, nil },
		true, identity.VerifyAnyWorkload(func() *identity.Anchors { return anchors }, time.Now)))
	if err := transport.Handshake(ctx, tun); err != nil {
		return nil, refuse("tls_"+identity.Reason(err), fmt.Errorf("TLS with a caller: %w", err))
	}
	raw.MarkProven()
	raw.Replace(c) // only the handshake is limited
	cs := tun.ConnectionState()
	far, err := newVerifiedPeer(cs, anchors)
	if err != nil {
		return nil, refuse("tls_"+identity.Reason(err), err)
	}
	if in.secret, err = tunnel.NewSessionSecret(cs); err != nil {
		return nil, refuse(reasonOther, err)
	}
	in.verified.Store(far)
	in.caller = far.name
	return tun, nil
}

// serverOf returns the credential of a pod of this node, or for no pod that of probes.
func (a *Agent) serverOf(podUID string) (*identity.Credential, error) {
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	if podUID == "" {
		return a.probeCredential()
	}
	p := s.pods[podUID]
	if p == nil || p.hostNetwork {
		return nil, refuse(reasonUnknownPod, fmt.Errorf("pod %q is not on this node", podUID))
	}
	c, ok := a.svids.get(p.account())
	if !ok {
		return nil, refuse(reasonNoSVID, fmt.Errorf("no certificate for %s/%s yet", p.namespace, p.serviceAccount))
	}
	return c, nil
}

// answerHello reads HELLO, makes the one decision on it, and answers. RENEW may come in
// place of HELLO.
func (a *Agent) answerHello(conn *tunnel.Conn, in *inboundConn) error {
	if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return refuse(reasonOther, err)
	}
	renew, err := conn.IsRenew()
	if err != nil {
		return refuse(reasonTunnel, err)
	}
	if renew {
		return a.serveRenewal(conn, in)
	}
	hello, err := conn.ReadHello()
	if err != nil {
		return refuse(reasonTunnel, err)
	}
	in.hello = hello
	s, err := a.current()
	if err == nil {
		in.decision, in.addrs, err = decide(s, in)
	}
	if err == nil {
		in.releaseShares, err = a.shares.acquireInbound(in)
	}
	h := &in.header
	answer := tunnel.Answer{
		Code: tunnel.Code_OK, Endpoint: h.Endpoint, Ready: h.Ready, ReadyCount: h.ReadyCount, Zones: h.Zones,
		Generation: h.Generation, Budget: h.Budget, First: a.firstSpeaker(in.localPort()),
	}
	switch code := codeOf(err); {
	case err == nil:
	case code == tunnel.Code_NO_ENDPOINT: // the caller is to choose another one
		answer.Code, answer.Budget = code, 0
	default:
		answer = tunnel.Answer{Code: code}
	}
	werr := tunnel.WriteHelloAnswer(conn, answer)
	if err == nil && werr != nil {
		in.releaseShares()
		return refuse(reasonTunnel, werr)
	}
	in.refusalSent = err != nil && werr == nil
	return err
}

// decide decides on a new exchange in s, and returns the addresses of the application.
func decide(s *state, in *inboundConn) (admit.Decision, []netip.AddrPort, error) {
	refused := func(r *refusal) (admit.Decision, []netip.AddrPort, error) { return admit.Decision{}, nil, r }
	d := admit.Decide(in.request(), s.admission)
	if !d.Allowed {
		return refused(&refusal{reason: d.Reason.String(), code: d.Code, err: fmt.Errorf("%s may not call %s: %s", in.caller, in.hello, d.Reason)})
	}
	p := s.pods[in.header.PodUID]
	if p == nil || in.server == nil || p.namespace != in.server.Name().Namespace() || p.serviceAccount != in.server.Name().ServiceAccount() {
		return refused(&refusal{reason: reasonUnknownPod, code: tunnel.Code_NO_ENDPOINT, err: errors.New("the pod is gone")})
	}
	if len(p.addrs) == 0 {
		return refused(&refusal{reason: reasonUnknownPod, code: tunnel.Code_NO_ENDPOINT, err: errors.New("the pod has no address yet")})
	}
	addrs := make([]netip.AddrPort, len(p.addrs))
	for i, addr := range p.addrs {
		addrs[i] = netip.AddrPortFrom(addr, uint16(d.Target))
	}
	return d, addrs, nil
}

// codeOf returns the code that the far side receives for a refusal.
func codeOf(err error) tunnel.Code {
	if r := (*refusal)(nil); errors.As(err, &r) && r.code != tunnel.Code_CODE_UNSPECIFIED {
		return r.code
	}
	return tunnel.Code_NOT_READY
}

func (in *inboundConn) service() string {
	if in.hello.Service == "" {
		return ""
	}
	return in.hello.Namespace + "/" + in.hello.Service + ":" + strconv.Itoa(int(in.hello.Port))
}
