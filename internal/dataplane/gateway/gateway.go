// Package gateway hands each connection from a peer cluster to the agent, or the
// controller replica, that its sealed label leads to. It never terminates TLS.
//
//	peer ─TLS▶ accept ─▶ read hello ─▶ open label ─▶ look up ─▶ pick, dial ─▶ header, hello ─▶ prove ─▶ splice
//
// What always holds:
//   - No byte reaches a backend, and none is dialled, before the label has opened
//     under a linked peer's key and its row admits that link. All else is refused,
//     in one way, and counted by reason.
//   - A state is replaced whole, never edited; a connection is routed by one.
//   - A connection ends when its Link is seen deleted.
//   - What a label alone admits is few and short-lived for each link: until its far
//     side has answered beyond the handshake, a connection is unproven.
//   - While the hello is in its buffer it tries one endpoint after another.
//   - Serve returns only after the last connection that it accepted has ended.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// Bounds of one gateway. They keep strangers from costing more than they should.
const (
	maxConnections    = 50_000
	maxHellosFromOne  = 512 // a peer behind NAT is one source
	helloTimeout      = 3 * time.Second
	dialTimeout       = time.Second
	connectTimeout    = 3 * time.Second // for all endpoints that are tried
	maxEndpointsTried = 4
	// drain is how long open connections may go on after the process is told to stop.
	drain = 25 * time.Second
	// Of those who come by an invite there are few at a time, and soon gone.
	maxJoins = 16
	joinTime = 15 * time.Second
)

// Server is a gateway's data path. Make it with NewServer.
type Server struct {
	state   atomic.Pointer[state]
	dial    func(context.Context, netip.AddrPort) (*net.TCPConn, error)
	log     *slog.Logger
	metrics *metrics
	hellos  *perSource
	// shares divide maxConnections among links, by UID.
	shares *budget.Shares
	// unproven ones live for provenAfter.
	unproven    *unproven
	provenAfter time.Duration
	// joins has room for each connection of an invite, which lives for joinTime.
	joins    chan struct{}
	joinTime time.Duration

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

// A conn is one accepted connection.
type conn struct {
	*net.TCPConn
	linkUID string // once routed; guarded by Server.mu
	cut     context.CancelCauseFunc
}

// NewServer returns a Server that refuses everything until it has a state.
func NewServer(log *slog.Logger, r prometheus.Registerer) *Server {
	unproven := newUnproven(maxUnproven)
	return &Server{
		dial: dialTCP, log: log, metrics: newMetrics(r, unproven.waiting),
		hellos: newPerSource(maxHellosFromOne), shares: budget.New(maxConnections), unproven: unproven, provenAfter: provenAfter,
		joins: make(chan struct{}, maxJoins), joinTime: joinTime,
		conns: make(map[*conn]struct{}),
	}
}

func dialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// set puts a new state in force and ends the connections of Links that it lacks.
func (s *Server) set(next *state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Store(next)
	for c := range s.conns {
		if c.linkUID != "" && !next.holds(c.linkUID) {
			c.cut(errLinkGone)
		}
	}
}

// current returns the state in force, or why new connections are refused.
func (s *Server) current() (*state, error) {
	st := s.state.Load()
	switch {
	case st == nil:
		return nil, refuse(reasonNotReady, errors.New("no complete state from the controller yet"))
	case st.expired:
		return nil, refuse(reasonNotReady, errors.New("the controller has been away for too long"))
	}
	return st, nil
}

// Serve accepts on ln until ctx ends, closes ln, lets open connections go on for
// a while, ends them, and waits for all. It returns nil when ctx was the reason.
func (s *Server) Serve(ctx context.Context, ln *net.TCPListener) error {
	var open sync.WaitGroup
	defer open.Wait()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		tcp, err := ln.AcceptTCP()
		if err != nil && ctx.Err() != nil {
			time.AfterFunc(drain, end)
			open.Wait()
			return nil
		}
		if transport.Passing(err) {
			backoff.Sleep(ctx, 10*time.Millisecond) // out of descriptors: some will close
			continue
		}
		if err != nil {
			ln.Close()
			return fmt.Errorf("accept on %v: %w", ln.Addr(), err)
		}
		s.metrics.accepted.Inc()
		c := s.enter(tcp)
		if c == nil {
			continue
		}
		open.Go(func() { s.serve(life, c) })
	}
}

// enter takes a connection in, or closes it if there are too many.
func (s *Server) enter(tcp *net.TCPConn) *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConnections || transport.Tune(tcp) != nil {
		s.metrics.refused.WithLabelValues(reasonTooMany).Inc()
		transport.Reset(tcp)
		return nil
	}
	c := &conn{TCPConn: tcp}
	s.conns[c] = struct{}{}
	return c
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// enterJoin counts a connection of an invite in, if there is room.
func (s *Server) enterJoin() bool {
	select {
	case s.joins <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) leaveJoin() { <-s.joins }

var errJoinTime = refuse(reasonJoinTime, errors.New("whoever comes by an invite has no more time than this"))

var errLinkGone = refuse(reasonNotReady, errors.New("its Link was deleted meanwhile"))

// serve is the life of one connection. It closes it.
func (s *Server) serve(life context.Context, c *conn) {
	ctx, cut := context.WithCancelCause(life)
	defer cut(nil)
	defer s.leave(c)
	to, err := s.route(c)
	if err == nil && !s.bind(c, to.linkUID, cut) {
		err = errLinkGone
	}
	if err != nil {
		s.refuse(c, to.link, err)
		return
	}
	if to.row.ID == route.Join {
		if !s.enterJoin() {
			s.refuse(c, to.link, refuse(reasonTooManyJoins, errors.New("too many come by invites at the same time")))
			return
		}
		defer s.leaveJoin()
		late := time.AfterFunc(s.joinTime, func() { cut(errJoinTime) })
		defer late.Stop()
	}
	if !s.shares.Enter(to.linkUID) {
		s.refuse(c, to.link, refuse(reasonLinkShare, errors.New("its link has its share of this gateway's connections already")))
		return
	}
	defer s.shares.Leave(to.linkUID)
	candidate := s.unproven.enter(to.linkUID, addrOf(c.RemoteAddr()).Addr(), cut)
	defer s.unproven.leave(candidate)
	backend, err := s.connect(ctx, c, to)
	if err != nil {
		s.refuse(c, to.link, err)
		return
	}
	s.metrics.spliced.WithLabelValues(to.link).Inc()
	s.metrics.open.Inc()
	defer s.metrics.open.Dec()
	timeout := time.AfterFunc(s.provenAfter, func() { cut(errUnproven) })
	defer timeout.Stop()
	proof := transport.Prove(ctx, c.TCPConn, backend)
	if proof.Proven {
		timeout.Stop()
		s.unproven.leave(candidate)
	}
	result := transport.Splice(ctx, c.TCPConn, backend, proof.Left) // closes both
	s.metrics.bytes.WithLabelValues(to.link, "in").Add(float64(proof.Forth + result.Forth))
	s.metrics.bytes.WithLabelValues(to.link, "out").Add(float64(proof.Back + result.Back))
	s.metrics.ended.WithLabelValues(result.Reason.String()).Inc()
	if errors.Is(result.Err, errEvicted) || errors.Is(result.Err, errUnproven) || errors.Is(result.Err, errJoinTime) {
		s.count(c, to.link, result.Err)
	}
}

// A destination is where a connection's label leads.
type destination struct {
	link, linkUID string
	hello         []byte
	row           route.Row
	wish          route.Wish
}

// route reads the hello and opens its label. It touches no backend.
func (s *Server) route(c *conn) (destination, error) {
	source := addrOf(c.RemoteAddr()).Addr()
	if !s.hellos.enter(source) {
		return destination{}, refuse(reasonTooManyFrom, errors.New("too many connections from its address have sent no hello yet"))
	}
	hello, err := transport.ReadClientHello(c, helloTimeout)
	s.hellos.leave(source)
	if err != nil {
		return destination{}, refuse(transport.HelloReason(err), err)
	}
	st, err := s.current()
	if err != nil {
		return destination{}, err
	}
	link, label, err := st.keyring.Open(hello.ServerName, time.Now())
	if err != nil {
		return destination{link: link}, refuse(route.Reason(err), err)
	}
	row, err := st.table.Lookup(link, label.Route)
	if err != nil {
		return destination{link: link}, refuse(route.Reason(err), err)
	}
	return destination{link: link, linkUID: st.links[link], hello: hello.Raw, row: row, wish: label.Wish}, nil
}

// bind notes which Link the connection depends on, unless that is gone already.
func (s *Server) bind(c *conn, linkUID string, cut context.CancelCauseFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.linkUID, c.cut = linkUID, cut
	return s.state.Load().holds(linkUID)
}

// connect dials the row's endpoints in turn until one takes the hello.
func (s *Server) connect(ctx context.Context, c *conn, to destination) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var failed error = refuse(reasonNoEndpoint, fmt.Errorf("route %d has no ready endpoint", to.row.ID))
	tried, seq := 0, rand.Uint64()
	for e := range to.row.Pick(to.wish, seq) {
		if tried++; tried > maxEndpointsTried || ctx.Err() != nil {
			break
		}
		backend, err := s.hand(ctx, c, to, e, seq)
		if err == nil {
			return backend, nil
		}
		s.metrics.backendFail.Inc()
		s.log.Debug("a backend does not take a connection", "backend", e.Backend.Name, "address", e.Backend.Address, "error", err)
		failed = refuse(reasonBackend, err)
	}
	if r := (*refusal)(nil); errors.As(context.Cause(ctx), &r) {
		return nil, r // it was cut meanwhile
	}
	return nil, failed
}

// hand dials one endpoint's backend and writes it header and hello.
func (s *Server) hand(ctx context.Context, c *conn, to destination, e route.Endpoint, seq uint64) (*net.TCPConn, error) {
	header, err := route.Header{
		Source: addrOf(c.RemoteAddr()), Destination: addrOf(c.LocalAddr()),
		PodUID: e.PodUID, Endpoint: e.ID, Ready: to.row.Ready(seq), ReadyCount: uint32(len(to.row.Endpoints)),
		Generation: to.row.Generation, Time: time.Now(), Link: to.link, Budget: uint32(s.shares.Limit(to.linkUID)),
	}.Marshal(e.Backend.HopKey, to.hello)
	if err != nil {
		return nil, err
	}
	backend, err := s.dial(ctx, e.Backend.Address)
	if err != nil {
		return nil, err
	}
	if err := transport.Tune(backend); err != nil {
		backend.Close()
		return nil, err
	}
	backend.SetWriteDeadline(time.Now().Add(dialTimeout))
	if _, err := backend.Write(append(header, to.hello...)); err != nil {
		backend.Close()
		return nil, fmt.Errorf("hand over to %s: %w", e.Backend.Name, err)
	}
	return backend, nil
}

// A refusal is why a connection goes nowhere, with a counted reason.
type refusal struct {
	reason string
	err    error
}

func refuse(reason string, err error) error { return &refusal{reason, err} }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// count counts a refusal.
func (s *Server) count(c *conn, link string, err error) {
	reason := reasonNotReady
	if r := (*refusal)(nil); errors.As(err, &r) {
		reason = r.reason
	}
	s.metrics.refused.WithLabelValues(reason).Inc()
	s.log.Debug("connection refused", "source", c.RemoteAddr(), "link", link, "reason", reason, "error", err)
}

// refuse counts, and answers every TLS client alike.
func (s *Server) refuse(c *conn, link string, err error) {
	s.count(c, link, err)
	if errors.Is(err, transport.ErrNotTLS) {
		transport.Reset(c.TCPConn) // an alert would mean nothing there
		return
	}
	transport.Refuse(c.TCPConn)
}

func addrOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
