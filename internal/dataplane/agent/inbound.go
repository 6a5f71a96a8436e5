package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
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
	// maxHandshakes are computed at a time.
	maxHandshakes = 16
	// podTimeout bounds the dial of an application.
	podTimeout = 3 * time.Second
	// warmTimeout is how long a tunnel may wait between HELLO and OPEN.
	warmTimeout = time.Minute
)

// An arrival is one inbound connection.
type arrival struct {
	header route.Header
	server *identity.Credential
	caller identity.Name
	hello  tunnel.Hello
	to     admit.Decision
	addr   netip.AddrPort // of the application
}

// inbound is the life of a tunnel that a gateway hands over. It closes c.
func (a *Agent) inbound(life context.Context, c *net.TCPConn) {
	in := &arrival{}
	tun, app, err := a.arrive(life, c, in)
	if err != nil {
		a.metrics.refuse(inbound, reasonOf(err))
		a.log.Info("tunnel refused", "service", in.service(), "caller", in.caller, "link", in.header.Link,
			"source", in.header.Source, "reason", reasonOf(err), "error", err)
		transport.Reset(c)
		return
	}
	ctx, end := context.WithCancelCause(life)
	defer end(nil)
	chain := tun.ConnectionState().PeerCertificates
	again := func(s *state) error {
		if _, err := s.vouched(chain, time.Now()); err != nil {
			return err
		}
		return a.admitted(s, in, true)
	}
	done := a.leases.add(end, again)
	defer done()
	if s := a.state.Load(); s != nil {
		if err := again(s); err != nil {
			end(err) // it changed while the application was dialled
		}
	}
	a.log.Info("tunnel served", "service", in.service(), "caller", in.caller, "link", in.to.Link.Name, "pod", in.header.PodUID)
	a.metrics.ended(inbound, in.to.Link.Name, transport.Relay(ctx, app, tun))
}

// arrive proves both ends to each other, decides, and dials the application.
func (a *Agent) arrive(life context.Context, c *net.TCPConn, in *arrival) (*tls.Conn, *net.TCPConn, error) {
	if err := transport.Tune(c); err != nil {
		return nil, nil, refuse(reasonOther, err)
	}
	hello, err := a.readHeader(c, in)
	if err != nil {
		return nil, nil, err
	}
	tun, err := a.shake(life, c, hello, in)
	if err != nil {
		return nil, nil, err
	}
	if err := a.decide(tun, in); err != nil {
		return nil, nil, err
	}
	app, err := a.openApp(life, tun, in)
	if err != nil {
		return nil, nil, err
	}
	return tun, app, nil
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
	return hello, nil
}

// shake ends TLS as the pod that the header names.
func (a *Agent) shake(life context.Context, c *net.TCPConn, hello []byte, in *arrival) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(life, handshakeTimeout)
	defer cancel()
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	in.server, err = await(ctx, &a.news, func() (*identity.Credential, error) { return a.serverOf(in.header.PodUID) })
	if err != nil {
		return nil, err
	}
	select {
	case a.shaking <- struct{}{}:
		defer func() { <-a.shaking }()
	case <-ctx.Done():
		return nil, refuse(reasonBusy, errors.New("too many handshakes at a time"))
	}
	raw := transport.Accepted(c, hello)
	tun := tls.Server(raw, identity.ServerTLS(identity.PlaneTunnel,
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return in.server, nil },
		true, identity.VerifyAnyWorkload(func() *identity.Anchors { return s.anchors }, time.Now)))
	if err := tun.HandshakeContext(ctx); err != nil {
		return nil, refuse("tls_"+identity.Reason(err), fmt.Errorf("TLS with a caller: %w", err))
	}
	raw.Proven()
	if in.caller, err = identity.PeerName(tun.ConnectionState()); err != nil {
		return nil, refuse("tls_"+identity.Reason(err), err)
	}
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
		err = a.admitted(s, in, false)
	}
	h := &in.header
	answer := tunnel.Answer{
		Code: tunnel.Code_OK, Endpoint: h.Endpoint, Ready: h.Ready, ReadyCount: h.ReadyCount,
		Generation: h.Generation, Budget: h.Budget,
	}
	if err != nil {
		answer = tunnel.Answer{Code: codeOf(err)}
	}
	if werr := tunnel.WriteHelloAnswer(tun, answer); werr != nil && err == nil {
		err = refuse(reasonTunnel, werr)
	}
	return err
}

// admitted makes the decision in s. It is asked again as long as the tunnel is open.
func (a *Agent) admitted(s *state, in *arrival, open bool) error {
	d := admit.Decide(admit.Request{
		Caller: in.caller, Namespace: in.hello.Namespace, Service: in.hello.Service, Port: in.hello.Port,
		PodUID: in.header.PodUID, Open: open,
	}, s.admission)
	if !d.Allowed {
		return &refusal{reason: d.Reason.String(), code: d.Code, err: fmt.Errorf("%s may not call %s: %s", in.caller, in.hello, d.Reason)}
	}
	p := s.pods[in.header.PodUID]
	if p == nil || in.server == nil || p.namespace != in.server.Name().Namespace() || p.serviceAccount != in.server.Name().ServiceAccount() {
		return &refusal{reason: reasonUnknownPod, code: tunnel.Code_NO_ENDPOINT, err: errors.New("the pod is gone")}
	}
	if len(p.addrs) == 0 {
		return &refusal{reason: reasonUnknownPod, code: tunnel.Code_NO_ENDPOINT, err: errors.New("the pod has no address yet")}
	}
	if !open {
		in.to, in.addr = d, netip.AddrPortFrom(p.addrs[0], uint16(d.Target))
	}
	return nil
}

// openApp waits for OPEN, dials the application, and answers.
func (a *Agent) openApp(life context.Context, tun *tls.Conn, in *arrival) (*net.TCPConn, error) {
	if err := tun.SetDeadline(time.Now().Add(warmTimeout)); err != nil {
		return nil, refuse(reasonOther, err)
	}
	if err := tunnel.ReadOpen(tun); err != nil {
		return nil, refuse(reasonTunnel, err)
	}
	app, err := a.dialPod(life, in)
	code := tunnel.Code_OK
	if err != nil {
		code = codeOf(err)
	}
	if werr := tunnel.WriteOpenAnswer(tun, code); werr != nil && err == nil {
		transport.Reset(app)
		err = refuse(reasonTunnel, werr)
	}
	return app, err
}

// dialPod connects to the application, if its address still stands for the pod
// that was decided on.
func (a *Agent) dialPod(life context.Context, in *arrival) (*net.TCPConn, error) {
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	if p, err := a.attached.pod(s, in.addr.Addr(), 0); err != nil || p.uid != in.header.PodUID {
		return nil, &refusal{reason: reasonUnknownPod, code: tunnel.Code_NO_ENDPOINT,
			err: errors.Join(fmt.Errorf("address %v does not stand for the pod any more", in.addr.Addr()), err)}
	}
	ctx, cancel := context.WithTimeout(life, podTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", in.addr.String())
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, &refusal{reason: reasonPodRefused, code: tunnel.Code_POD_REFUSED, err: fmt.Errorf("the pod refuses connections: %w", err)}
	case err != nil:
		return nil, &refusal{reason: reasonPodTimeout, code: tunnel.Code_POD_TIMEOUT, err: fmt.Errorf("the pod does not answer: %w", err)}
	}
	app := c.(*net.TCPConn)
	if err := transport.Tune(app); err != nil {
		app.Close()
		return nil, refuse(reasonOther, err)
	}
	return app, nil
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
