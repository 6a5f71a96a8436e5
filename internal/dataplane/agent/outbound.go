package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	// openTimeout bounds handshake, HELLO and OPEN together.
	openTimeout = 10 * time.Second
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
}

// outbound is the life of a local pod's connection to a mirror. It closes c.
func (a *Agent) outbound(life context.Context, c *net.TCPConn, index int) {
	call := &call{vip: addrOf(c.LocalAddr()).Addr(), index: index, from: addrOf(c.RemoteAddr())}
	tun, err := a.call(life, c, call)
	if err != nil {
		a.metrics.refuse(outbound, reasonOf(err))
		a.log.Info("call refused", "mirror", call.name(), "caller", call.callerName(), "source", call.from,
			"reason", reasonOf(err), "error", err)
		transport.Reset(c)
		return
	}
	ctx, end := context.WithCancelCause(life)
	defer end(nil)
	chain, as := tun.ConnectionState().PeerCertificates, call.as
	done := a.leases.add(end, func(s *state) error {
		if err := call.standing(s); err != nil {
			return err
		}
		if time.Now().After(as.NotAfter().Add(afterExpiry)) {
			return errors.New("the caller's certificate has expired")
		}
		_, err := s.vouched(chain, time.Now())
		return err
	})
	defer done()
	if err := call.standing(a.state.Load()); err != nil {
		end(err) // it changed while the tunnel was made
	}
	a.log.Debug("call carried", "mirror", call.to.name, "caller", as.Name(), "peer", call.peer.name)
	a.metrics.ended(outbound, call.peer.name, transport.Relay(ctx, c, tun))
}

// call finds out what c wants and who it is, and opens the tunnel for it.
func (a *Agent) call(life context.Context, c *net.TCPConn, call *call) (*tls.Conn, error) {
	if err := transport.Tune(c); err != nil {
		return nil, refuse(reasonOther, err)
	}
	var err error
	if call.iface, err = transport.IngressInterface(c); err != nil {
		return nil, refuse(reasonUnknownCaller, err)
	}
	if isLoopback(call.iface) {
		return nil, refuse(reasonHostCaller, errors.New("calls from the host network have no identity: call from a pod of its own network"))
	}
	if _, err := await(life, &a.news, func() (struct{}, error) { return struct{}{}, a.resolve(call) }); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(life, reachTimeout)
	defer cancel()
	raw, err := a.reach(ctx, call.peer)
	if err != nil {
		return nil, err
	}
	tun, err := a.open(life, raw, c, call)
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
		return refuse(reasonUnknownCaller, err)
	}
	c.as, ok = a.svids.get(c.caller.account())
	if !ok {
		return refuse(reasonNoSVID, fmt.Errorf("no certificate for %s/%s yet", c.caller.namespace, c.caller.serviceAccount))
	}
	return nil
}

// reach dials the peer's gateways.
func (a *Agent) reach(ctx context.Context, p *peer) (*transport.Raw, error) {
	if len(p.gateways) == 0 {
		return nil, refuse(reasonNoGateway, fmt.Errorf("Link %s names no gateway address", p.name))
	}
	conn, _, err := a.dialer.First(ctx, p.gateways...)
	if err != nil {
		return nil, refuse(reasonUnreachable, fmt.Errorf("reach the gateway of %s: %w", p.name, err))
	}
	return transport.Dialed(conn), nil
}

// open proves both ends to each other and asks for the Service.
func (a *Agent) open(life context.Context, raw *transport.Raw, c *net.TCPConn, call *call) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(life, openTimeout)
	defer cancel()
	sni, err := call.peer.sealer.Seal(call.port.route, route.Wish{}, time.Now())
	if err != nil {
		return nil, refuse(reasonNoDayKey, err)
	}
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	tun := tls.Client(raw, identity.ClientTLS(identity.PlaneTunnel, sni,
		func() (*identity.Credential, error) { return call.as, nil },
		identity.VerifyOneOf(call.to.identities, func() *identity.Anchors { return s.anchors }, time.Now)))
	if err := tun.HandshakeContext(ctx); err != nil {
		return nil, refuse(reasonHandshake, fmt.Errorf("TLS with %s: %w", call.to.name, err))
	}
	raw.Proven()
	first, err := early(c)
	if err != nil {
		return nil, refuse(reasonCallerGone, err)
	}
	hello := tunnel.Hello{Namespace: call.to.namespace, Service: call.to.service, Port: call.port.number}
	if _, err := tunnel.Open(ctx, tun, hello, first); err != nil {
		reason := reasonTunnel
		if r := (*tunnel.Refused)(nil); errors.As(err, &r) {
			reason = "peer_" + r.Code.Reason()
		}
		return nil, refuse(reason, fmt.Errorf("open %s in %s: %w", hello, call.peer.name, err))
	}
	return tun, nil
}

// isLoopback reports whether an interface is the node's own lo, by which calls
// from its host network come.
func isLoopback(index int) bool {
	i, err := net.InterfaceByIndex(index)
	return err == nil && i.Flags&net.FlagLoopback != 0
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
	case s == nil:
		return nil // the last state expired: that ends nothing by itself
	case s.links[c.peer.name] == nil || s.links[c.peer.name].uid != c.peer.uid:
		return fmt.Errorf("Link %s is gone", c.peer.name)
	case s.mirrors[c.vip] == nil || s.mirrors[c.vip].name != c.to.name || s.mirrors[c.vip].ports[c.index] != c.port:
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
