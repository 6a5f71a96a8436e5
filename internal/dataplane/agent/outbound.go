package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
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
	// openTimeout bounds HELLO and OPEN together.
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
	answer tunnel.Answer
}

// farPort is what the call means in the peer.
func (c *call) farPort() farPort {
	return farPort{c.peer.uid, c.to.namespace, c.to.service, c.port.number}
}

// outbound is the life of a local pod's connection to a mirror. It closes c.
func (a *Agent) outbound(life context.Context, c *net.TCPConn, index int) {
	call := &call{vip: addrOf(c.LocalAddr()).Addr(), index: index, from: addrOf(c.RemoteAddr())}
	tun, err := a.call(life, c, call)
	if err != nil {
		a.refuseCall(c, call, err)
		return
	}
	ctx, release := a.leases.hold(life, a.state.Load, call.lease())
	defer release()
	if err := a.open(ctx, tun, c, call); err != nil {
		tun.NetConn().(*transport.Raw).Reset()
		a.refuseCall(c, call, err)
		return
	}
	a.log.Debug("call carried", "mirror", call.to.name, "caller", call.as.Name(), "peer", call.peer.name, "endpoint", call.answer.Endpoint)
	a.metrics.ended(outbound, call.peer.name, transport.Relay(ctx, c, tun))
}

func (a *Agent) refuseCall(c *net.TCPConn, call *call, err error) {
	a.metrics.refuse(outbound, reasonOf(err))
	a.complaints.Do(func() {
		a.log.Info("call refused", "mirror", call.name(), "caller", call.callerName(), "source", call.from,
			"reason", reasonOf(err), "error", err)
	})
	transport.Reset(c)
}

// call finds out what c wants and who it is, and makes a tunnel for it, which has
// proven both ends to each other and carried nothing yet.
func (a *Agent) call(life context.Context, c *net.TCPConn, call *call) (*tls.Conn, error) {
	if err := errors.Join(transport.Tune(c), c.SetLinger(0)); err != nil { // if this process is killed, the kernel resets
		return nil, refuse(reasonOther, err)
	}
	var err error
	if call.iface, err = a.cameBy(c); err != nil {
		return nil, err
	}
	if _, err := await(life, &a.news, func() (struct{}, error) { return struct{}{}, a.resolve(call) }); err != nil {
		return nil, err
	}
	raw, err := a.reach(life, call.peer)
	if err != nil {
		return nil, err
	}
	tun, err := a.prove(life, raw, call)
	if err != nil {
		raw.Reset()
		return nil, err
	}
	return tun, nil
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
	if c.caller, err = a.attached.pod(s, c.from.Addr(), c.iface); err != nil {
		return unplaced(reasonUnknownCaller, err)
	}
	c.as, ok = a.svids.get(c.caller.account())
	if !ok {
		return refuse(reasonNoSVID, fmt.Errorf("no certificate for %s/%s yet", c.caller.namespace, c.caller.serviceAccount))
	}
	return nil
}

// prove proves both ends to each other.
func (a *Agent) prove(life context.Context, raw *transport.Raw, call *call) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(life, handshakeTimeout)
	defer cancel()
	sni, err := call.peer.sealer.Seal(call.port.route, a.wish(call), time.Now())
	if err != nil {
		return nil, refuse(reasonNoDayKey, err)
	}
	anchors := a.anchors()
	tun := tls.Client(raw, identity.ClientTLS(identity.PlaneTunnel, sni,
		func() (*identity.Credential, error) { return call.as, nil },
		identity.VerifyOneOf(call.to.identities, func() *identity.Anchors { return anchors }, time.Now)))
	if err := tun.HandshakeContext(ctx); err != nil {
		return nil, refuse(reasonHandshake, fmt.Errorf("TLS with %s: %w", call.to.name, err))
	}
	raw.Proven()
	if call.far, err = newVouching(tun.ConnectionState(), anchors); err != nil {
		return nil, refuse(reasonHandshake, err)
	}
	return tun, nil
}

// wish is whom the call asks the gateway for: the very pod that the mirror stands
// for, or the endpoint that session affinity remembers, or any.
func (a *Agent) wish(c *call) route.Wish {
	if c.to.hostname != "" {
		return route.ForHost(c.to.hostname)
	}
	return a.learnt.wish(c.caller.uid, c.farPort(), c.to.affinity)
}

// lease is the decision by which a call goes on, to be made again as long as its
// tunnel lives.
func (c *call) lease() func(*state) error {
	return func(s *state) error {
		now := time.Now()
		if err := c.standing(s); err != nil {
			return err
		}
		if now.After(c.as.NotAfter().Add(afterExpiry)) {
			return errors.New("the caller's certificate has expired")
		}
		name, err := c.far.again(s, now)
		if err == nil && !slices.Contains(s.mirrors[c.vip].identities, name) {
			err = fmt.Errorf("%s is none of those expected behind mirror %s any more", name, c.to.name)
		}
		return err
	}
}

// open asks for the Service, and sends the caller's first bytes along.
func (a *Agent) open(ctx context.Context, tun *tls.Conn, c *net.TCPConn, call *call) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	first, err := early(c)
	if err != nil {
		return refuse(reasonCallerGone, err)
	}
	hello := tunnel.Hello{Namespace: call.to.namespace, Service: call.to.service, Port: call.port.number}
	call.answer, err = tunnel.Open(ctx, tun, hello, first)
	a.learn(call, err)
	if err == nil {
		return nil
	}
	reason := reasonTunnel
	if r := (*tunnel.Refused)(nil); errors.As(err, &r) {
		reason = "peer_" + r.Code.Reason()
	} else if r := (*refusal)(nil); errors.As(err, &r) {
		reason = r.reason // the lease has ended
	}
	return refuse(reason, fmt.Errorf("open %s in %s: %w", hello, call.peer.name, err))
}

// learn remembers what the far side's answer to a call tells.
func (a *Agent) learn(call *call, failed error) {
	if call.answer.Code == tunnel.Code_OK {
		a.learnt.heard(call.caller.account(), call.farPort(), call.answer)
	}
	switch r := (*tunnel.Refused)(nil); {
	case errors.As(failed, &r):
		a.learnt.turnedAway(call.caller.uid, call.farPort())
	case failed == nil && call.to.affinity > 0:
		a.learnt.visited(call.caller.uid, call.farPort(), call.answer.Endpoint)
	}
}

// early takes the caller's first bytes, if they are there already, without
// waiting. An end is left for Relay to find again; an error, which the kernel
// reports once only, is the end of the call.
func early(c *net.TCPConn) ([]byte, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	buf := make([]byte, maxEarly)
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), buf)
		return failed != unix.EINTR
	})
	if err = errors.Join(err, failed); err != nil && failed != unix.EAGAIN {
		return nil, fmt.Errorf("read the caller's first bytes: %w", err)
	}
	return buf[:max(n, 0)], nil
}

// standing says why the call would not be made any more in s.
func (c *call) standing(s *state) error {
	switch {
	case s.links[c.peer.name] == nil || s.links[c.peer.name].uid != c.peer.uid:
		return fmt.Errorf("Link %s is gone", c.peer.name)
	case !s.mirrors[c.vip].means(c.to) || s.mirrors[c.vip].ports[c.index] != c.port:
		return fmt.Errorf("mirror %s has gone or changed", c.to.name)
	case s.pods[c.caller.uid] == nil:
		return fmt.Errorf("pod %s/%s is gone", c.caller.namespace, c.caller.name)
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
