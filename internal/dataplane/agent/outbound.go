package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// gatewayDialTimeout bounds the dial of a peer's gateways. The caller of an
	// unreachable peer is reset within it.
	gatewayDialTimeout = 3 * time.Second
	// openTimeout bounds HELLO and OPEN together, without the time that an application
	// takes to answer.
	openTimeout = 5 * time.Second
	// maxEarlyData is how many of the caller's first bytes are read to recognize its
	// protocol. OPEN can carry them.
	maxEarlyData = h1.MaxSniffed
)

// An outboundConn is one outbound connection.
type outboundConn struct {
	vip   netip.Addr
	index int // of the listener
	iface int // ingress
	from  netip.AddrPort

	mirror     *mirror
	port       mirrorPort
	peer       *peer
	caller     *pod
	credential *identity.Credential
	verified   *verifiedPeer // the pod called
	earlyData  []byte        // the caller's first bytes, sent with OPEN
	restData   []byte        // those that follow, if OPEN cannot carry all
	answer     tunnel.Answer
	// appTimeout is how long the far agent may wait for an application that does not
	// answer.
	appTimeout time.Duration
	podGrace   *podGrace // of the caller
	// count is how a caller's connection is counted. Only its own goroutine uses it.
	count *targetCount
}

// A targetCount is how a caller's connection is counted at its target.
type targetCount struct{ leave func() }

// remotePort returns the peer's port that the call is for.
func (c *outboundConn) remotePort() remotePort {
	return remotePort{c.peer.uid, c.mirror.namespace, c.mirror.service, c.port.number}
}

// serveOutbound serves a local pod's connection to a mirror. It blocks until the
// connection ends, and closes c.
func (a *Agent) serveOutbound(life context.Context, c *net.TCPConn, index int) {
	out := &outboundConn{vip: addrOf(c.LocalAddr()).Addr(), index: index, from: addrOf(c.RemoteAddr()), podGrace: new(podGrace), count: new(targetCount)}
	out.podGrace.add(c)
	if a.isCanary(out.vip) {
		a.serveCanary(life, c, out)
		return
	}
	if !a.metrics.acquire(outbound) {
		a.rejectOutbound(c, out, refuse(reasonTooMany, errors.New("this agent has too many connections")))
		return
	}
	defer a.metrics.release(outbound)
	leave, err := a.admitOutbound(life, c, out)
	if err != nil {
		a.rejectOutbound(c, out, err)
		return
	}
	defer leave()
	protocol, err := a.recognize(life, c, out)
	if err == nil && protocol != tunnel.Protocol_OPAQUE && !a.serveRequests(life, c, out, protocol) {
		return
	}
	var o *openedExchange
	var opening *slot
	if err == nil {
		o, opening, err = a.openOutbound(life, c, out)
	}
	if err != nil {
		a.rejectOutbound(c, out, err)
		return
	}
	a.preconnect(out)
	a.log.Debug("connection forwarded", "mirror", out.mirror.name, "caller", out.credential.Name(), "peer", out.peer.name,
		"endpoint", out.answer.Endpoint)
	counted, start := a.requestMetrics.Recorder(out.metricsKey(reqmetrics.TCP)).Start(time.Now()), time.Now()
	early := int64(len(out.earlyData)) // sent with OPEN
	rest := out.restData
	out.earlyData, out.restData = nil, nil // a call may last for days
	result := transport.ExchangeRest(o.ctx, c, rest, o.session.conn, a.shares.memory(out.peer.uid), nil)
	o.release()
	opening.end()
	result.Sent += early
	a.metrics.ended(outbound, out.peer.name, result)
	counted.Finish(time.Now(), exchangeResult(result, outbound, start))
	a.recordOutbound(out, start, result)
	a.logEnd(result, "mirror", out.mirror.name, "caller", out.callerName(), "peer", out.peer.name)
	o.session.bytes += result.Sent + result.Received
	if result.Reusable {
		err = o.session.awaitIdle(life, awaitIdleTimeout)
	}
	switch {
	case result.Reusable && err == nil:
		a.putIdle(o.session)
	case result.Reusable && errors.Is(err, context.DeadlineExceeded):
		o.session.Retire() // bytes that were sent are still delivered
	default:
		o.session.abort()
	}
}

// admitOutbound identifies the caller, counts its connection, and reads its first bytes
// if they come soon. The caller must call leave if there is no error.
func (a *Agent) admitOutbound(life context.Context, c *net.TCPConn, out *outboundConn) (leave func(), err error) {
	if !a.rates.pods.Allow(out.from.Addr()) {
		return nil, refuse(reasonCallRate, fmt.Errorf("%v makes too many connections a second", out.from.Addr()))
	}
	leaveSource, err := a.shares.acquireSource(out.from.Addr())
	if err != nil {
		return nil, err
	}
	counted := leaveSource
	defer func() {
		if err != nil {
			counted()
		}
	}()
	if err := a.identifyCaller(life, c, out); err != nil {
		return nil, err
	}
	if !a.rates.accounts.Allow(out.caller.account()) {
		return nil, refuse(reasonCallRate, fmt.Errorf("pods of %s/%s make too many connections a second",
			out.caller.namespace, out.caller.serviceAccount))
	}
	if out.count.leave, err = a.countAt(out); err != nil {
		return nil, err
	}
	counted = func() { out.count.leave(); leaveSource() }
	return counted, a.awaitEarlyData(life, c, out)
}

// countAt counts a connection at its target: the port, the link and the account of the
// caller. The caller must call leave if there is no error.
func (a *Agent) countAt(out *outboundConn) (leave func(), err error) {
	most, to := out.port.settings.MaxConnections, out.remotePort()
	if !a.connCircuits.acquire(to, most) {
		return nil, refuse(reasonCircuitOpen, fmt.Errorf("%d connections to %s are open, as many as its owner allows a node", most, out.mirror.name))
	}
	leaveShares, err := a.shares.acquireOutbound(out)
	if err != nil {
		a.connCircuits.release(to)
		return nil, err
	}
	return func() { leaveShares(); a.connCircuits.release(to) }, nil
}

// moveTo counts a connection at another target in place of its own. After an error it is
// counted nowhere.
func (t *targetCount) moveTo(a *Agent, to *outboundConn) (err error) {
	t.leave()
	if t.leave, err = a.countAt(to); err != nil {
		t.leave = func() {}
	}
	return err
}

// openOutbound opens an exchange with the application. If there is no error, the caller
// must end the turn after the exchange. The turn may have expired before.
func (a *Agent) openOutbound(life context.Context, c *net.TCPConn, out *outboundConn) (*openedExchange, *slot, error) {
	if err := out.peer.checkNamespace(out.caller.namespace); err != nil { // see checkUnrouted
		return nil, nil, err
	}
	opening, err := a.awaitOpening(life, c, out)
	if err != nil {
		return nil, nil, err
	}
	o, err := a.openUpstream(life, c, out)
	if err != nil {
		opening.end()
		return nil, nil, err
	}
	opening.opened()
	return o, opening, nil
}

func (a *Agent) rejectOutbound(c *net.TCPConn, out *outboundConn, err error) {
	a.metrics.refuse(outbound, reasonOf(err))
	a.countRefused(out, err)
	a.recordRefused(out, err)
	if reasonOf(err) == reasonCallerSilent {
		c.SetLinger(-1) // send FIN, as a server of such a protocol would
		c.Close()
		return
	}
	a.logLimited(slog.LevelInfo, "connection refused", "mirror", out.mirrorName(), "caller", out.callerName(), "source", out.from,
		"reason", reasonOf(err), "error", err)
	transport.Reset(c)
}

// identifyCaller finds the calling pod and the Service that it calls.
func (a *Agent) identifyCaller(life context.Context, c *net.TCPConn, out *outboundConn) error {
	if err := errors.Join(transport.Tune(c), c.SetLinger(0)); err != nil { // if this process is killed, the kernel resets
		return refuse(reasonOther, err)
	}
	var err error
	if out.iface, err = a.ingressOf(c); err != nil {
		return err
	}
	_, err = a.identify(life, c, func() (*pod, error) { err := a.resolve(out); return out.caller, err })
	return err
}

// resolve sets the Service, the caller and the credential of a call from the current
// state. An error that is not final may go away with a newer state.
func (a *Agent) resolve(c *outboundConn) error {
	s, err := a.current()
	if err != nil {
		return err
	}
	if !s.isVIP(c.vip) {
		return &refusal{reason: reasonNotVIP, final: true, err: fmt.Errorf("%v is not a virtual IP", c.vip)}
	}
	m := s.mirrors[c.vip]
	if m == nil {
		return refuse(reasonUnknownVIP, fmt.Errorf("no mirror has the virtual IP %v", c.vip))
	}
	c.mirror = m
	port, ok := m.ports[c.index]
	if !ok {
		return refuse(reasonUnknownVIP, fmt.Errorf("mirror %s has no port behind listener %d", m.name, c.index))
	}
	c.port, c.peer = port, s.links[m.link]
	a.monitor.use(c.peer.uid)
	if c.caller, err = a.podAt(s, c.from.Addr(), c.iface); err != nil {
		return podLookupRefusal(reasonUnknownCaller, err)
	}
	if err := c.checkUnrouted(); err != nil {
		return err
	}
	c.credential, ok = a.svids.get(c.caller.account())
	if !ok {
		return refuse(reasonNoSVID, fmt.Errorf("no certificate for %s/%s yet", c.caller.namespace, c.caller.serviceAccount))
	}
	return nil
}

// clientHandshake performs the TLS handshake and verifies both ends.
func (a *Agent) clientHandshake(life context.Context, raw *transport.Raw, out *outboundConn, hint route.Hint) (*tunnel.Conn, error) {
	ctx, cancel := context.WithTimeout(life, handshakeTimeout)
	defer cancel()
	sni, err := out.peer.sealer.Seal(out.port.route, hint, time.Now())
	if err != nil {
		return nil, refuse(reasonNoDayKey, err)
	}
	anchors := a.anchors()
	tun := tls.Client(raw, a.keyExchange.Limit(identity.ClientTLS(identity.PlaneTunnel, sni,
		func() (*identity.Credential, error) { return out.credential, nil },
		identity.VerifyOneOf(out.mirror.identities, func() *identity.Anchors { return anchors }, time.Now))))
	start := time.Now()
	if err := transport.Handshake(ctx, tun); err != nil {
		return nil, refuse(reasonHandshake, fmt.Errorf("TLS with %s: %w", out.mirror.name, explainAlert(err)))
	}
	raw.MarkProven()
	a.openings.measuredHandshake(out.peer.uid, time.Since(start))
	if out.verified, err = newVerifiedPeer(tun.ConnectionState(), anchors); err != nil {
		return nil, refuse(reasonHandshake, err)
	}
	return tunnel.NewConn(tun), nil
}

// errRejectedByPeer explains an alert. All refusals of a gateway look alike from the
// outside.
var errRejectedByPeer = errors.New("the peer's gateway or agent refused the connection; causeway check in the peer may show why")

// explainAlert wraps the error of a handshake that the far side has ended by an alert.
// A gateway does so if it cannot open the label or has no endpoint for it.
func explainAlert(err error) error {
	if alert := (*net.OpError)(nil); errors.As(err, &alert) && alert.Op == "remote error" { // as crypto/tls calls it
		return fmt.Errorf("%w (%w)", errRejectedByPeer, err)
	}
	return err
}

// checkPeer returns the name of the far end if the certificates of both ends are still
// valid.
func (c *outboundConn) checkPeer(s *state) (identity.Name, error) {
	return (&ends{c.credential, c.verified}).checkPeer(s, time.Now())
}

// checkExpectedPeer also checks that a new call may reach the far end.
func (c *outboundConn) checkExpectedPeer(s *state) error {
	name, err := c.checkPeer(s)
	if err == nil && !slices.Contains(s.mirrors[c.vip].identities, name) {
		err = fmt.Errorf("mirror %s no longer lists the identity %s", c.mirror.name, name)
	}
	return err
}

// hello returns the HELLO frame of the call.
func (c *outboundConn) hello() tunnel.Hello {
	return tunnel.Hello{Namespace: c.mirror.namespace, Service: c.mirror.service, Port: c.port.number}
}

// appendEarlyData reads further first bytes of the caller.
func (c *outboundConn) appendEarlyData(from *net.TCPConn) error {
	more, err := readEarlyData(from, max(0, maxEarlyData-len(c.earlyData)))
	if err != nil {
		return refuse(reasonCallerGone, err)
	}
	c.earlyData = append(c.earlyData, more...)
	return nil
}

// recordHelloAnswer stores what the answer to HELLO reports. It runs when the answer
// arrives, because the answer ages on a session that waits for its caller.
func (a *Agent) recordHelloAnswer(out *outboundConn) {
	zone := a.state.Load().zone
	switch out.answer.Code {
	case tunnel.Code_OK:
		a.endpointCache.recordAnswer(out.caller.account(), out.remotePort(), out.answer, zone)
		a.shares.recordBudget(out.peer.uid, out.answer.Budget)
	case tunnel.Code_NO_ENDPOINT:
		a.endpointCache.recordAnswer(out.caller.account(), out.remotePort(), out.answer, zone)
	}
}

// recordOpenRefusal records an endpoint that refused a call.
func (a *Agent) recordOpenRefusal(out *outboundConn, at route.EndpointID, failed error) {
	if !isEndpointRefusal(failed) {
		return
	}
	if answered := out.answer.Endpoint; answered != (route.EndpointID{}) {
		at = answered // only NO_ENDPOINT tells it with a refused HELLO
	}
	a.endpointCache.recordRefusal(out.caller.uid, out.remotePort(), at)
}

// readEarlyData reads up to most of the caller's first bytes that have arrived. It does
// not wait. It does not report a FIN, because Exchange finds it again. It does report
// an error, because the kernel reports an error only once.
func readEarlyData(c *net.TCPConn, most int) ([]byte, error) {
	if most == 0 {
		return nil, nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := earlyDataPool.Get().(*[maxEarlyData]byte) // most callers send far fewer bytes
	defer earlyDataPool.Put(buf)
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, failed = socket.Read(fd, buf[:most])
		return true
	})
	if err = errors.Join(err, failed); err != nil && failed != unix.EAGAIN {
		return nil, fmt.Errorf("read the caller's first bytes: %w", err)
	}
	return slices.Clone(buf[:max(n, 0)]), nil
}

var earlyDataPool = sync.Pool{New: func() any { return new([maxEarlyData]byte) }}

// checkOpen returns why an open call must end in s, or nil.
func (c *outboundConn) checkOpen(s *state) error {
	if err := c.checkTarget(s); err != nil {
		return err
	}
	if s.pods[c.caller.uid] == nil && !c.podGrace.allows(time.Now()) {
		return fmt.Errorf("pod %s/%s is gone", c.caller.namespace, c.caller.name)
	}
	return nil
}

// checkSilent returns why a call whose caller has sent nothing must end in s, or nil.
func (c *outboundConn) checkSilent(s *state) error {
	if err := c.checkOpen(s); err != nil {
		return err
	}
	if err := c.checkMirror(s); err != nil {
		return err
	}
	if s.mirrors[c.vip].ports[c.index].isOpaque() { // the caller may wait for a greeting
		return fmt.Errorf("mirror %s no longer expects requests", c.mirror.name)
	}
	return nil
}

// checkTarget returns an error if the call's Link is gone, or if its mirror no longer
// stands for the same Service.
func (c *outboundConn) checkTarget(s *state) error {
	if err := c.checkLink(s); err != nil {
		return err
	}
	if !s.mirrors[c.vip].sameTarget(c.mirror) {
		return fmt.Errorf("mirror %s has gone or stands for another Service", c.mirror.name)
	}
	return nil
}

// checkLink returns an error if the call's Link no longer exists.
func (c *outboundConn) checkLink(s *state) error {
	if p := s.links[c.peer.name]; p == nil || p.uid != c.peer.uid {
		return fmt.Errorf("Link %s is gone", c.peer.name)
	}
	return nil
}

// checkMirror returns an error if a new call would no longer reach the same port of the
// same Service in s.
func (c *outboundConn) checkMirror(s *state) error {
	if err := c.checkLink(s); err != nil {
		return err
	}
	if !s.mirrors[c.vip].sameTarget(c.mirror) || !s.mirrors[c.vip].ports[c.index].samePort(c.port) {
		return fmt.Errorf("mirror %s has gone or changed", c.mirror.name)
	}
	return nil
}

func (c *outboundConn) mirrorName() string {
	if c.mirror == nil {
		return ""
	}
	return c.mirror.name
}

func (c *outboundConn) callerName() string {
	if c.credential == nil {
		return ""
	}
	return c.credential.Name().String()
}
