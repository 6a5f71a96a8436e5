package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
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
	// podTimeout bounds the dial of an application.
	podTimeout = 3 * time.Second
	// farewell and maxFarewell bound how long a refused caller is listened to.
	farewell    = time.Second
	maxFarewell = 64 << 10
)

// An arrival is one inbound connection.
type arrival struct {
	header route.Header
	server *identity.Credential
	caller identity.Name
	far    *vouching // for caller
	hello  tunnel.Hello
	to     admit.Decision
	addr   netip.AddrPort // of the application
	told   bool           // the far side was answered why it is refused
	leave  func()         // out of the budgets, once HELLO was answered with yes
	// greeted is when HELLO was answered; opened: OPEN has come.
	greeted time.Time
	opened  atomic.Bool
}

// inbound is the life of a tunnel that a gateway hands over. It closes c.
func (a *Agent) inbound(life context.Context, c *net.TCPConn) {
	in := &arrival{}
	tun, err := a.arrive(life, c, in)
	if err != nil {
		a.turnAway(c, in, err)
		return
	}
	defer in.leave()
	ctx, release := a.leases.hold(life, a.state.Load, in.lease())
	defer release()
	app, err := a.openApp(ctx, tun, in)
	if what := nobodyCame(err); what != "" {
		a.metrics.warm.WithLabelValues(inbound, what).Inc()
		a.log.Debug("a tunnel ended for which nobody came", "service", in.service(), "caller", in.caller, "error", err)
		a.part(c)
		return
	}
	if err != nil {
		a.turnAway(c, in, err)
		return
	}
	a.log.Info("tunnel served", "service", in.service(), "caller", in.caller, "link", in.to.Link.Name, "pod", in.header.PodUID)
	a.metrics.ended(inbound, in.to.Link.Name, transport.RelayHearing(ctx, app, tun, a.hearing(in)))
}

// arrive proves both ends to each other, and decides on what HELLO asks for.
func (a *Agent) arrive(life context.Context, c *net.TCPConn, in *arrival) (*tls.Conn, error) {
	if err := transport.Tune(c); err != nil {
		return nil, refuse(reasonOther, err)
	}
	hello, err := a.readHeader(c, in)
	if err != nil {
		return nil, err
	}
	tun, err := a.shake(life, c, hello, in)
	if err != nil {
		return nil, err
	}
	if err := a.decide(tun, in); err != nil {
		return nil, err
	}
	return tun, nil
}

// lease is the decision by which a tunnel is admitted, to be made again as long as
// it lives.
func (in *arrival) lease() func(*state) error {
	return func(s *state) error {
		if _, err := in.far.again(s, time.Now()); err != nil {
			return err
		}
		// Who waits in vain is not kept waiting: before OPEN the pod must take new connections.
		_, _, err := admitted(s, in, !in.warm())
		if err == nil && in.warm() && !s.accepting[backingKey{in.hello.Namespace, in.hello.Service, in.header.PodUID}] {
			err = errors.New("the pod is not ready")
		}
		return err
	}
}

// turnAway counts a refusal and ends the connection. Only what a proven caller is
// refused is told to the operator: strangers could fill the log.
func (a *Agent) turnAway(c *net.TCPConn, in *arrival, err error) {
	tell := a.log.Debug
	if !in.caller.IsZero() {
		tell = a.log.Info
	}
	a.metrics.refuse(inbound, reasonOf(err))
	tell("tunnel refused", "service", in.service(), "caller", in.caller, "link", in.header.Link,
		"source", in.header.Source, "reason", reasonOf(err), "error", err)
	if in.told {
		a.part(c)
		return
	}
	transport.Reset(c)
}

// part resets a connection after its far side had the time to read what it was told
// last: a reset could overtake it.
func (a *Agent) part(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(farewell))
	io.CopyN(io.Discard, c, maxFarewell)
	transport.Reset(c)
}

// readHeader takes exactly the gateway's header and the hello that it announces.
func (a *Agent) readHeader(c *net.TCPConn, in *arrival) ([]byte, error) {
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return nil, refuse(reasonOther, err)
	}
	header, err := route.ReadHeader(c, s.hopKey, time.Now())
	if err != nil {
		return nil, refuse("header_"+route.Reason(err), err)
	}
	in.header = header
	hello, err := header.ReadHello(c)
	if err != nil {
		return nil, refuse("header_"+route.Reason(err), err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return nil, refuse(reasonOther, err)
	}
	return hello, nil
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
	turn := &turn{Conn: c, turns: a.turns}
	if !turn.take(ctx) {
		return nil, refuse(reasonBusy, errors.New("too many handshakes at a time"))
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
	if in.far, err = newVouching(tun.ConnectionState(), anchors); err != nil {
		return nil, refuse("tls_"+identity.Reason(err), err)
	}
	in.caller = in.far.name
	return tun, nil
}

// serverOf returns the credential of a pod of this node.
func (a *Agent) serverOf(podUID string) (*identity.Credential, error) {
	s, err := a.current()
	if err != nil {
		return nil, err
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

// decide reads HELLO, makes the one decision on it, and answers.
func (a *Agent) decide(tun *tls.Conn, in *arrival) error {
	if err := tun.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return refuse(reasonOther, err)
	}
	hello, err := tunnel.ReadHello(tun)
	if err != nil {
		return refuse(reasonTunnel, err)
	}
	in.hello = hello
	s, err := a.current()
	if err == nil {
		in.to, in.addr, err = admitted(s, in, false)
	}
	if err == nil {
		in.leave, err = a.shares.guest(in)
	}
	h := &in.header
	answer := tunnel.Answer{
		Code: tunnel.Code_OK, Endpoint: h.Endpoint, Ready: h.Ready, ReadyCount: h.ReadyCount,
		Generation: h.Generation, Budget: h.Budget, First: a.speaker(in.localPort()),
	}
	if err != nil {
		answer = tunnel.Answer{Code: codeOf(err)}
	}
	in.greeted = time.Now()
	werr := tunnel.WriteHelloAnswer(tun, answer)
	if err == nil && werr != nil {
		in.leave()
		return refuse(reasonTunnel, werr)
	}
	in.told = err != nil && werr == nil
	return err
}

// admitted makes the decision in s, and says where the application is. It is asked again
// as long as the tunnel is open.
func admitted(s *state, in *arrival, open bool) (admit.Decision, netip.AddrPort, error) {
	refused := func(r *refusal) (admit.Decision, netip.AddrPort, error) { return admit.Decision{}, netip.AddrPort{}, r }
	d := admit.Decide(admit.Request{
		Caller: in.caller, Namespace: in.hello.Namespace, Service: in.hello.Service, Port: in.hello.Port,
		PodUID: in.header.PodUID, Open: open,
	}, s.admission)
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
	return d, netip.AddrPortFrom(p.addrs[0], uint16(d.Target)), nil
}

// openApp waits for OPEN, decides again, since that may be long after HELLO, dials
// the application, and answers.
func (a *Agent) openApp(ctx context.Context, tun *tls.Conn, in *arrival) (*net.TCPConn, error) {
	if err := a.awaitOpen(ctx, tun, in); err != nil {
		return nil, err
	}
	var to admit.Decision
	s, err := a.current()
	if err == nil {
		to, in.addr, err = admitted(s, in, false)
	}
	var app *net.TCPConn
	if err == nil {
		in.to = to
		app, err = a.dialPod(ctx, s, in)
	}
	code := tunnel.Code_OK
	if err != nil {
		code = codeOf(err)
	}
	werr := tun.SetDeadline(time.Now().Add(handshakeTimeout))
	if werr == nil {
		werr = tunnel.WriteOpenAnswer(tun, code)
	}
	if err == nil && werr != nil {
		transport.Reset(app)
		return nil, refuse(reasonTunnel, werr)
	}
	in.told = err != nil && werr == nil
	return app, err
}

// dialPod connects to the application, if its address still stands for the pod
// that was decided on. A pod that has been silent for long is found by the dial, which
// says nothing; that is why it is asked again before the first byte.
func (a *Agent) dialPod(ctx context.Context, s *state, in *arrival) (*net.TCPConn, error) {
	if err := a.stillThere(s, in); err != nil && !errors.Is(err, podid.ErrSilent) {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", in.addr.String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, &refusal{reason: reasonPodRefused, code: tunnel.Code_POD_REFUSED, err: fmt.Errorf("the pod refuses connections: %w", err)}
	case err != nil:
		return nil, &refusal{reason: reasonPodTimeout, code: tunnel.Code_POD_TIMEOUT, err: fmt.Errorf("the pod does not answer: %w", err)}
	}
	app := c.(*net.TCPConn)
	err = transport.Tune(app)
	if err == nil {
		err = a.stillThere(s, in)
	}
	if err != nil {
		transport.Reset(app)
		return nil, err
	}
	return app, nil
}

// stillThere says why the application's address does not stand for the pod any more.
func (a *Agent) stillThere(s *state, in *arrival) error {
	p, err := a.podAt(s, in.addr.Addr(), 0)
	if err == nil && p.uid == in.header.PodUID {
		return nil
	}
	r := unplaced(reasonUnknownPod, errors.Join(fmt.Errorf("address %v does not stand for the pod any more", in.addr.Addr()), err))
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
