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

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// reachTimeout bounds the dial of a peer's gateways: a caller of an unreachable
	// peer is reset within it.
	reachTimeout = 3 * time.Second
	// openTimeout bounds HELLO and OPEN together, apart from an application's time to answer.
	openTimeout = 5 * time.Second
	// maxEarly is how many of the caller's first bytes ride with OPEN.
	maxEarly = 8 << 10
)

// A call is one outbound connection.
type call struct {
	vip   netip.Addr
	index int // of the listener
	iface int // by which it came in
	from  netip.AddrPort

	to     *mirror
	port   mirrorPort
	peer   *peer
	caller *pod
	as     *identity.Credential
	far    *vouching // for the one called
	first  []byte    // of what the caller said
	answer tunnel.Answer
	// patience is how long an application that does not answer is waited for.
	patience time.Duration
	parting  *parting // of the caller
}

// farPort is what the call means in the peer.
func (c *call) farPort() farPort {
	return farPort{c.peer.uid, c.to.namespace, c.to.service, c.port.number}
}

// outbound is the life of a local pod's connection to a mirror. It closes c.
func (a *Agent) outbound(life context.Context, c *net.TCPConn, index int) {
	call := &call{vip: addrOf(c.LocalAddr()).Addr(), index: index, from: addrOf(c.RemoteAddr()), parting: new(parting)}
	call.parting.pod.Store(c)
	if a.isCanary(call.vip) {
		a.canary(life, c, call)
		return
	}
	if !a.metrics.enter(outbound) {
		a.refuseCall(c, call, refuse(reasonTooMany, errors.New("this agent has too many connections")))
		return
	}
	defer a.metrics.leave(outbound)
	o, err := a.carry(life, c, call)
	if err != nil {
		a.refuseCall(c, call, err)
		return
	}
	defer o.leave()
	a.prepare(call)
	a.log.Debug("call carried", "mirror", call.to.name, "caller", call.as.Name(), "peer", call.peer.name,
		"endpoint", call.answer.Endpoint)
	early := int64(len(call.first)) // which OPEN has brought
	call.first = nil                // a call may last for days
	result := transport.Exchange(o.ctx, c, o.session.conn, nil)
	o.release()
	result.Forth += early
	a.metrics.ended(outbound, call.peer.name, result)
	o.session.carried += result.Forth + result.Back
	if result.Reusable {
		err = o.session.settle(life, settleTime)
	}
	switch {
	case result.Reusable && err == nil:
		a.rest(o.session)
	case result.Reusable && errors.Is(err, context.DeadlineExceeded):
		o.session.Retire() // what was sent still arrives
	default:
		o.session.lose()
	}
}

// carry brings a call to the application.
func (a *Agent) carry(life context.Context, c *net.TCPConn, call *call) (o *opened, err error) {
	if !a.rates.pods.Take(call.from.Addr()) {
		return nil, refuse(reasonCallRate, fmt.Errorf("%v makes too many connections a second", call.from.Addr()))
	}
	leaveSource, err := a.shares.source(call.from.Addr())
	if err != nil {
		return nil, err
	}
	leave := leaveSource
	defer func() {
		if err != nil {
			leave()
		}
	}()
	if err := a.meet(life, c, call); err != nil {
		return nil, err
	}
	if !a.rates.accounts.Take(call.caller.account()) {
		return nil, refuse(reasonCallRate, fmt.Errorf("pods of %s/%s make too many connections a second",
			call.caller.namespace, call.caller.serviceAccount))
	}
	leaveCall, err := a.shares.call(call)
	if err != nil {
		return nil, err
	}
	leave = func() { leaveCall(); leaveSource() }
	if err := a.awaitSpeech(c, call); err != nil {
		return nil, err
	}
	opened, err := a.awaitOpening(life, c, call)
	if err != nil {
		return nil, err
	}
	defer opened()
	if o, err = a.open(life, c, call); err != nil {
		return nil, err
	}
	o.leave = leave
	return o, nil
}

func (a *Agent) refuseCall(c *net.TCPConn, call *call, err error) {
	a.metrics.refuse(outbound, reasonOf(err))
	if reasonOf(err) == reasonSilent {
		c.SetLinger(-1) // an end, as a server of such a protocol gives it
		c.Close()
		return
	}
	a.tell(slog.LevelInfo, "call refused", "mirror", call.name(), "caller", call.callerName(), "source", call.from,
		"reason", reasonOf(err), "error", err)
	transport.Reset(c)
}

// meet finds out what c wants and who it is.
func (a *Agent) meet(life context.Context, c *net.TCPConn, call *call) error {
	if err := errors.Join(transport.Tune(c), c.SetLinger(0)); err != nil { // if this process is killed, the kernel resets
		return refuse(reasonOther, err)
	}
	var err error
	if call.iface, err = a.cameBy(c); err != nil {
		return err
	}
	_, err = a.identify(life, c, func() (*pod, error) { err := a.resolve(call); return call.caller, err })
	return err
}

// resolve answers, from the state in force, which Service a call means, who makes
// it, and as whom it is made. What it cannot answer now may come with newer state.
func (a *Agent) resolve(c *call) error {
	s, err := a.current()
	if err != nil {
		return err
	}
	if !s.isVIP(c.vip) {
		return &refusal{reason: reasonNotVIP, final: true, err: fmt.Errorf("%v is no virtual IP", c.vip)}
	}
	m := s.mirrors[c.vip]
	if m == nil {
		return refuse(reasonUnknownVIP, fmt.Errorf("no mirror has the virtual IP %v", c.vip))
	}
	c.to = m
	port, ok := m.ports[c.index]
	if !ok {
		return refuse(reasonUnknownVIP, fmt.Errorf("mirror %s has no port behind listener %d", m.name, c.index))
	}
	c.port, c.peer = port, s.links[m.link]
	if c.caller, err = a.podAt(s, c.from.Addr(), c.iface); err != nil {
		return unplaced(reasonUnknownCaller, err)
	}
	if err := c.peer.admits(c.caller.namespace); err != nil {
		return err
	}
	c.as, ok = a.svids.get(c.caller.account())
	if !ok {
		return refuse(reasonNoSVID, fmt.Errorf("no certificate for %s/%s yet", c.caller.namespace, c.caller.serviceAccount))
	}
	return nil
}

// prove proves both ends to each other.
func (a *Agent) prove(life context.Context, raw *transport.Raw, call *call, wish route.Wish) (*tunnel.Conn, error) {
	ctx, cancel := context.WithTimeout(life, handshakeTimeout)
	defer cancel()
	sni, err := call.peer.sealer.Seal(call.port.route, wish, time.Now())
	if err != nil {
		return nil, refuse(reasonNoDayKey, err)
	}
	anchors := a.anchors()
	tun := tls.Client(raw, identity.ClientTLS(identity.PlaneTunnel, sni,
		func() (*identity.Credential, error) { return call.as, nil },
		identity.VerifyOneOf(call.to.identities, func() *identity.Anchors { return anchors }, time.Now)))
	if err := tun.HandshakeContext(ctx); err != nil {
		return nil, refuse(reasonHandshake, fmt.Errorf("TLS with %s: %w", call.to.name, explain(err)))
	}
	raw.Proven()
	if call.far, err = newVouching(tun.ConnectionState(), anchors); err != nil {
		return nil, refuse(reasonHandshake, err)
	}
	return tunnel.NewConn(tun), nil
}

// errTurnedAway is all that an alert says: a gateway's refusals look alike to whoever is outside.
var errTurnedAway = errors.New("the peer's gateway, or the agent behind it, turns the call away: it counts why, and causeway check in the peer may tell")

// explain tells a handshake that the far side has ended by an alert, as a gateway does that opens no label of ours, or has
// nobody to lead us to.
func explain(err error) error {
	if alert := (*net.OpError)(nil); errors.As(err, &alert) && alert.Op == "remote error" { // as crypto/tls calls it
		return fmt.Errorf("%w (%w)", errTurnedAway, err)
	}
	return err
}

// lease is the decision by which a call stays open, to be made again as long as it is: it asks
// what must end an open call, and neither ports nor the identities that a new one may meet.
func (c *call) lease() func(*state) error {
	return func(s *state) error {
		if err := c.kept(s); err != nil {
			return err
		}
		_, err := c.vouched(s)
		return err
	}
}

// vouched returns who is at the far end, if both ends still are who they have proven to be.
func (c *call) vouched(s *state) (identity.Name, error) {
	now := time.Now()
	if now.After(c.as.NotAfter().Add(afterExpiry)) {
		return identity.Name{}, errors.New("the caller's certificate has expired")
	}
	return c.far.again(s, now)
}

// expected asks, too, whether the far end is one that new calls may meet.
func (c *call) expected(s *state) error {
	name, err := c.vouched(s)
	if err == nil && !slices.Contains(s.mirrors[c.vip].identities, name) {
		err = fmt.Errorf("%s is none of those expected behind mirror %s any more", name, c.to.name)
	}
	return err
}

// hello is what the call asks the far side for.
func (c *call) hello() tunnel.Hello {
	return tunnel.Hello{Namespace: c.to.namespace, Service: c.to.service, Port: c.port.number}
}

// listen takes more of what the caller has said first.
func (c *call) listen(from *net.TCPConn) error {
	more, err := early(from, maxEarly-len(c.first))
	if err != nil {
		return refuse(reasonCallerGone, err)
	}
	c.first = append(c.first, more...)
	return nil
}

// told remembers what the far side's answer to HELLO tells, when it comes: on a session that
// waits for its caller it grows old.
func (a *Agent) told(call *call) {
	if call.answer.Code == tunnel.Code_OK {
		a.learnt.heard(call.caller.account(), call.farPort(), call.answer)
		a.shares.grant(call.peer.uid, call.answer.Budget)
	}
}

// learn remembers an endpoint that did not take a call.
func (a *Agent) learn(call *call, at route.EndpointID, failed error) {
	if !turnedAway(failed) {
		return
	}
	if answered := call.answer.Endpoint; answered != (route.EndpointID{}) {
		at = answered // a refused HELLO does not tell
	}
	a.learnt.turnedAway(call.caller.uid, call.farPort(), at)
}

// early reads up to most of the caller's first bytes that have arrived already. It does
// not wait. It does not report a FIN, because Exchange finds it again. It does report an
// error, because the kernel reports an error only once.
func early(c *net.TCPConn, most int) ([]byte, error) {
	if most == 0 {
		return nil, nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := earlyPool.Get().(*[maxEarly]byte) // what is there is mostly much less
	defer earlyPool.Put(buf)
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), buf[:most])
		return failed != unix.EINTR
	})
	if err = errors.Join(err, failed); err != nil && failed != unix.EAGAIN {
		return nil, fmt.Errorf("read the caller's first bytes: %w", err)
	}
	return slices.Clone(buf[:max(n, 0)]), nil
}

var earlyPool = sync.Pool{New: func() any { return new([maxEarly]byte) }}

// kept says why an open call must end in s.
func (c *call) kept(s *state) error {
	if err := c.linked(s); err != nil {
		return err
	}
	switch {
	case !s.mirrors[c.vip].means(c.to):
		return fmt.Errorf("mirror %s has gone or stands for another Service", c.to.name)
	case s.pods[c.caller.uid] == nil && !c.parting.permits(time.Now()):
		return fmt.Errorf("pod %s/%s is gone", c.caller.namespace, c.caller.name)
	}
	return nil
}

// linked says why the call's Link is none any more.
func (c *call) linked(s *state) error {
	if p := s.links[c.peer.name]; p == nil || p.uid != c.peer.uid {
		return fmt.Errorf("Link %s is gone", c.peer.name)
	}
	return nil
}

// leads says why a new call would not lead to the same port of the same Service any more in s.
func (c *call) leads(s *state) error {
	if err := c.linked(s); err != nil {
		return err
	}
	if !s.mirrors[c.vip].means(c.to) || !s.mirrors[c.vip].ports[c.index].leadsTo(c.port) {
		return fmt.Errorf("mirror %s has gone or changed", c.to.name)
	}
	return nil
}

func (c *call) name() string {
	if c.to == nil {
		return ""
	}
	return c.to.name
}

func (c *call) callerName() string {
	if c.as == nil {
		return ""
	}
	return c.as.Name().String()
}
