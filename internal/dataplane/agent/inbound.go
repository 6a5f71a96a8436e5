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
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// headerTimeout bounds a gateway's header and the hello behind it.
	headerTimeout = 3 * time.Second
	// handshakeTimeout bounds TLS and HELLO.
	handshakeTimeout = 5 * time.Second
	// podTimeout bounds the dial of an application, maxPatience what a client may ask for instead:
	// a full accept queue is waited for as long as the caller waits.
	podTimeout  = 3 * time.Second
	maxPatience = 2 * time.Minute
	// podDelay is the head start of a pod's first address over the next one.
	podDelay = 250 * time.Millisecond
	// farewell and maxFarewell bound how long a refused caller is listened to.
	farewell    = time.Second
	maxFarewell = 64 << 10
)

// An arrival is one inbound session.
type arrival struct {
	header route.Header
	server *identity.Credential
	caller identity.Name
	far    atomic.Pointer[vouching] // for caller; renewed while the session is open
	secret tunnel.SessionSecret
	hello  tunnel.Hello
	to     admit.Decision
	addrs  []netip.AddrPort // of the application
	// patience is how long the client waits for the application.
	patience time.Duration
	told     bool    // the far side was answered why it is refused
	leave    func()  // out of the budgets, once HELLO was answered with yes
	parting  parting // of the pod
	// exchanges are those that are over.
	exchanges atomic.Int64
	// idleSince is since when OPEN is awaited, in Unix nanoseconds; 0: an exchange is open.
	idleSince atomic.Int64
	// retiring: the gateway that it comes by drains. No other exchange is to begin.
	retiring atomic.Bool

	from netip.Addr // the gateway's, as this node sees it
	// waking is held while a deadline is set on conn because of the gateway's notice, and
	// while idleSince changes: a deadline must not hit an exchange that has begun.
	waking sync.Mutex
	conn   *tunnel.Conn
}

// inbound is the life of a session that a gateway hands over. It closes c.
func (a *Agent) inbound(life context.Context, c *net.TCPConn) {
	in := &arrival{}
	leave, err := a.readHeader(c, in)
	if err == nil {
		defer leave()
		if in.header.Probe() {
			a.serveProbe(life, c, in)
			return
		}
		in.conn, err = a.arrive(life, c, in)
	}
	if err == errNotice {
		c.Close()
		return
	}
	if err == errRenewal {
		a.part(c)
		return
	}
	if err != nil {
		a.turnAway(c, in, err)
		return
	}
	conn := in.conn
	defer in.leave()
	a.metrics.session(inbound, sessionMade)
	in.from = addrOf(c.RemoteAddr()).Addr()
	a.arrivals.add(in)
	defer a.arrivals.remove(in)
	ctx, release := a.leases.hold(life, a.state.Load, in.lease())
	defer release()
	for a.exchange(ctx, c, conn, in) {
		in.exchanges.Add(1)
	}
}

// exchange serves one exchange of a session, from OPEN on. It reports whether the session can
// carry another; if not, it has ended.
func (a *Agent) exchange(ctx context.Context, c *net.TCPConn, conn *tunnel.Conn, in *arrival) bool {
	app, err := a.openApp(ctx, c, conn, in)
	if what := nobodyCame(err); what != "" {
		a.metrics.session(inbound, what)
		a.log.Debug("a session ended that nobody was on", "service", in.service(), "caller", in.caller, "error", err)
		a.part(c)
		return false
	}
	if err != nil && in.told && codeOf(err).KeepsSession() {
		a.countRefusal(in, err)
		if conn.Discard(maxFarewell, time.Now().Add(farewell)) == nil && tunnel.WriteEmpty(conn, tunnel.TypeIdle) == nil {
			return true
		}
		transport.Reset(c)
		return false
	}
	if err != nil {
		a.turnAway(c, in, err)
		return false
	}
	if in.between() {
		a.metrics.session(inbound, sessionReused)
	}
	a.tell(slog.LevelInfo, "call served", "service", in.service(), "caller", in.caller, "link", in.to.Link.Name, "pod", in.header.PodUID)
	in.parting.pod.Store(app)
	result := transport.Exchange(ctx, app, conn, a.hearing(in))
	in.parting.pod.Store(nil)
	a.metrics.ended(inbound, in.to.Link.Name, result)
	a.tellEnd(result, "service", in.service(), "caller", in.caller, "link", in.to.Link.Name)
	if !result.Reusable {
		a.metrics.session(inbound, sessionLost)
		return false
	}
	if in.retiring.Load() || transport.RawOf(conn).Worn() {
		a.metrics.session(inbound, sessionRetired)
		halfClose(conn)
		a.part(c)
		return false
	}
	conn.SetWriteDeadline(time.Now().Add(handshakeTimeout))
	if err := tunnel.WriteEmpty(conn, tunnel.TypeIdle); err != nil {
		a.metrics.session(inbound, sessionLost)
		transport.Reset(c)
		return false
	}
	conn.SetWriteDeadline(time.Time{})
	return true
}

// arrive proves both ends to each other, and decides on what HELLO asks for.
func (a *Agent) arrive(life context.Context, c *net.TCPConn, in *arrival) (*tunnel.Conn, error) {
	conn, err := a.accept(life, c, in)
	if err != nil {
		return nil, err
	}
	if err := a.decide(conn, in); err != nil {
		return nil, err
	}
	return conn, nil
}

// accept proves both ends to each other.
func (a *Agent) accept(life context.Context, c *net.TCPConn, in *arrival) (*tunnel.Conn, error) {
	hello, err := in.header.ReadHello(c)
	if err != nil {
		return nil, refuse("header_"+route.Reason(err), err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return nil, refuse(reasonOther, err)
	}
	from := linkSource{in.header.Link, budget.SourceOf(in.header.Source.Addr())}
	if !a.rates.handshakes.Take(from) {
		return nil, refuse(reasonHandshakeRate, fmt.Errorf("%v of link %s makes too many handshakes a second", from.source, from.link))
	}
	tun, err := a.shake(life, c, hello, in)
	if err != nil {
		return nil, err
	}
	a.rates.handshakes.Refund(from) // it was no replay
	return tunnel.NewConn(tun), nil
}

// lease returns the check that a session must keep passing. An idle session must meet the
// conditions of a new call. An open exchange must meet only those of admit.Keep.
func (in *arrival) lease() func(*state) error {
	return func(s *state) error {
		if _, err := in.far.Load().again(s, time.Now()); err != nil {
			return err
		}
		if !in.nobodyThere() {
			return in.kept(s) // an OPEN that is on its way is decided on when it comes
		}
		_, _, err := admitted(s, in)
		// Whoever waits in vain is not kept waiting: for the next call the pod must be ready.
		if err == nil && !s.accepting[backingKey{in.hello.Namespace, in.hello.Service, in.header.PodUID}] {
			err = errors.New("the pod is not ready")
		}
		return err
	}
}

// kept asks whether an open exchange may stay.
func (in *arrival) kept(s *state) error {
	d := admit.Keep(in.request(), s.admission)
	// With the last pod of its namespace on this node, the node's exports of it go, too.
	gone := d.Reason == admit.NoPod || d.Reason == admit.PodDead ||
		d.Reason == admit.NoExport && s.pods[in.header.PodUID] == nil
	if !d.Allowed && !(gone && in.parting.permits(time.Now())) {
		return &refusal{reason: d.Reason.String(), code: d.Code, err: fmt.Errorf("%s may not go on calling %s: %s", in.caller, in.hello, d.Reason)}
	}
	return nil
}

func (in *arrival) request() admit.Request {
	return admit.Request{Caller: in.caller, Namespace: in.hello.Namespace, Service: in.hello.Service, Port: in.hello.Port,
		PodUID: in.header.PodUID}
}

// turnAway counts a refusal and ends the connection. Only what a proven caller or a
// gateway is refused is told to the operator: strangers could fill the log.
func (a *Agent) turnAway(c *net.TCPConn, in *arrival, err error) {
	a.countRefusal(in, err)
	if in.told {
		a.part(c)
		return
	}
	transport.Reset(c)
}

func (a *Agent) countRefusal(in *arrival, err error) {
	level := slog.LevelDebug
	if !in.caller.IsZero() || errors.Is(err, route.ErrStale) { // or a gateway's clock is wrong
		level = slog.LevelInfo
	}
	a.metrics.refuse(inbound, reasonOf(err))
	a.tell(level, "call refused", "service", in.service(), "caller", in.caller, "link", in.header.Link,
		"source", in.header.Source, "reason", reasonOf(err), "error", err)
}

// part resets a connection after its far side had the time to read what it was told
// last: a reset could overtake it.
func (a *Agent) part(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(farewell))
	io.CopyN(io.Discard, c, maxFarewell)
	transport.Reset(c)
}

// readHeader reads the gateway's header, and admits the connection to the bound on all of them.
// Until then it is in a pool of its own, so that strangers on the node's network cannot take
// the room of those who come by a gateway. leave must be called if there is no error.
func (a *Agent) readHeader(c *net.TCPConn, in *arrival) (leave func(), err error) {
	place := a.headers.Enter(budget.SourceOf(addrOf(c.RemoteAddr()).Addr()), func() { transport.Reset(c) })
	defer func() {
		if evicted := a.headers.Leave(place); evicted != budget.Stayed {
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
	if in.header.Draining() {
		a.arrivals.retire(addrOf(c.RemoteAddr()).Addr())
		return nil, errNotice
	}
	if err := transport.Tune(c); err != nil {
		return nil, refuse(reasonOther, err)
	}
	if !a.metrics.enter(inbound) {
		return nil, refuse(reasonTooMany, errors.New("this agent has too many connections"))
	}
	return func() { a.metrics.leave(inbound) }, nil
}

// shake ends TLS as the pod that the header names.
func (a *Agent) shake(life context.Context, c *net.TCPConn, hello []byte, in *arrival) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(life, handshakeTimeout)
	defer cancel()
	var err error
	in.server, err = await(ctx, &a.news, func() (*identity.Credential, error) { return a.serverOf(in.header.PodUID) })
	if err != nil {
		return nil, err
	}
	turn := &turn{TCPConn: c, turns: a.turns, link: in.header.Link, ctx: ctx}
	if !turn.take() {
		return nil, refuse(reasonBusy, errors.New("too many handshakes at a time, or its client has gone"))
	}
	defer turn.give()
	anchors := a.anchors()
	raw := transport.Accepted(turn, hello)
	tun := tls.Server(raw, identity.ServerTLS(identity.PlaneTunnel,
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return in.server, nil },
		true, identity.VerifyAnyWorkload(func() *identity.Anchors { return anchors }, time.Now)))
	if err := tun.HandshakeContext(ctx); err != nil {
		return nil, refuse("tls_"+identity.Reason(err), fmt.Errorf("TLS with a caller: %w", err))
	}
	raw.Proven()
	raw.Conn = c // the handshake was all that took turns
	cs := tun.ConnectionState()
	far, err := newVouching(cs, anchors)
	if err != nil {
		return nil, refuse("tls_"+identity.Reason(err), err)
	}
	if in.secret, err = tunnel.NewSessionSecret(cs); err != nil {
		return nil, refuse(reasonOther, err)
	}
	in.far.Store(far)
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

// decide reads HELLO, makes the one decision on it, and answers. RENEW may come in place of
// HELLO.
func (a *Agent) decide(conn *tunnel.Conn, in *arrival) error {
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
		in.to, in.addrs, err = admitted(s, in)
	}
	if err == nil {
		in.leave, err = a.shares.guest(in)
	}
	h := &in.header
	answer := tunnel.Answer{
		Code: tunnel.Code_OK, Endpoint: h.Endpoint, Ready: h.Ready, ReadyCount: h.ReadyCount,
		Generation: h.Generation, Budget: h.Budget, First: a.speaker(in.localPort()),
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
		in.leave()
		return refuse(reasonTunnel, werr)
	}
	in.told = err != nil && werr == nil
	return err
}

// admitted makes the decision on a new exchange in s, and says where the application is.
func admitted(s *state, in *arrival) (admit.Decision, []netip.AddrPort, error) {
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

// openApp waits for OPEN, decides again, since that may be long after HELLO, dials
// the application, and answers.
func (a *Agent) openApp(ctx context.Context, c *net.TCPConn, conn *tunnel.Conn, in *arrival) (*net.TCPConn, error) {
	in.told = false
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
		to, in.addrs, err = admitted(s, in)
	}
	var app *net.TCPConn
	if err == nil {
		in.to = to
		app, err = a.dialPod(ctx, s, c, in)
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
		transport.Reset(app)
		return nil, refuse(reasonTunnel, werr)
	}
	in.told = err != nil && werr == nil
	return app, err
}

// awaitRate waits until the caller may have another exchange.
func (a *Agent) awaitRate(ctx context.Context, in *arrival) error {
	for range rateTries {
		if a.rates.exchanges.Take(in.caller.String()) {
			return nil
		}
		if !backoff.Sleep(ctx, ratePause) {
			break
		}
	}
	return &refusal{reason: reasonExchangeRate, code: tunnel.Code_OVERLOADED, err: fmt.Errorf("%s makes too many calls a second", in.caller)}
}

// How often, and how many times, an exchange beyond its caller's rate asks whether it may begin.
const (
	ratePause = 20 * time.Millisecond
	rateTries = 100
)

// dialPod connects to the application at the first of the pod's addresses that answers, if that
// still stands for the pod that was decided on. A pod that has been silent for long is found by
// the dial, which says nothing; that is why it is asked again before the first byte.
func (a *Agent) dialPod(ctx context.Context, s *state, c *net.TCPConn, in *arrival) (*net.TCPConn, error) {
	var there []string
	var err error
	for _, addr := range in.addrs {
		if serr := a.stillThere(s, in, addr.Addr()); serr != nil && !errors.Is(serr, podid.ErrSilent) {
			err = serr
			continue
		}
		there = append(there, addr.String())
	}
	if len(there) == 0 {
		return nil, err
	}
	patience := in.patience
	if patience == 0 {
		patience = podTimeout
	}
	open, stop := transport.WhileOpen(ctx, c, nil) // the client may give up
	defer stop()
	conn, winner, err := transport.Dialer{Timeout: patience, Delay: podDelay, Dial: a.ports.Dial}.First(open, there...)
	switch {
	case err == nil:
	case errors.Is(err, transport.ErrNoLocalPort):
		return nil, &refusal{reason: reasonLocalPorts, code: tunnel.Code_OVERLOADED, err: fmt.Errorf("this node has no local port left: %w", err)}
	case refusedByAll(err, len(there)):
		return nil, &refusal{reason: reasonPodRefused, code: tunnel.Code_POD_REFUSED, err: fmt.Errorf("the pod refuses connections: %w", err)}
	default:
		return nil, &refusal{reason: reasonPodTimeout, code: tunnel.Code_POD_TIMEOUT, err: fmt.Errorf("the pod does not answer: %w", err)}
	}
	app := conn.(*net.TCPConn) // tuned
	addr := netip.MustParseAddrPort(there[winner]).Addr()
	if err := a.stillThere(s, in, addr); err != nil {
		transport.Reset(app)
		return nil, err
	}
	return app, nil
}

// refusedByAll reports whether every one of the addresses that were dialed refuses.
func refusedByAll(err error, dialed int) bool {
	return errors.Is(err, syscall.ECONNREFUSED) && (dialed == 1 || !errors.Is(err, context.DeadlineExceeded))
}

// stillThere says why an address of the application does not stand for the pod any more.
func (a *Agent) stillThere(s *state, in *arrival, addr netip.Addr) error {
	p, err := a.podAt(s, addr, 0)
	if err == nil && p.uid == in.header.PodUID {
		return nil
	}
	r := unplaced(reasonUnknownPod, errors.Join(fmt.Errorf("address %v does not stand for the pod any more", addr), err))
	r.code = tunnel.Code_NO_ENDPOINT
	return r
}

// codeOf is what the far side is told of a refusal.
func codeOf(err error) tunnel.Code {
	if r := (*refusal)(nil); errors.As(err, &r) && r.code != tunnel.Code_CODE_UNSPECIFIED {
		return r.code
	}
	return tunnel.Code_NOT_READY
}

func (in *arrival) service() string {
	if in.hello.Service == "" {
		return ""
	}
	return in.hello.Namespace + "/" + in.hello.Service + ":" + strconv.Itoa(int(in.hello.Port))
}
