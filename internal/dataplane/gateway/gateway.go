// Package gateway hands each connection from a peer cluster to the agent, or the
// controller replica, that its sealed label selects. It never terminates TLS.
//
//	peer ─TLS▶ accept ─▶ read hello ─▶ open label ─▶ look up ─▶ pick, dial ─▶ header, hello ─▶ prove ─▶ splice
//
// What always holds:
//   - No byte reaches a backend, and none is dialed, before the label has opened under a
//     linked peer's key and its row admits that link. TLS clients get the same answer to
//     every other label; each refusal is counted by reason.
//   - A state is replaced whole, never edited; a connection is routed by one.
//   - A connection ends when its Link is seen deleted.
//   - Each stage of a connection has bounds of its own, in number and rate, per source or
//     per link. A connection is pending until its hello is read, and unproven until its
//     far side has answered beyond the handshake; after that it counts only in the shares
//     of its link and, within that, of its source.
//   - While the hello is in its buffer the gateway tries one endpoint after another.
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
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// Bounds of the connections that have not sent a whole ClientHello.
const (
	maxHellos           = 4096
	maxHellosFromSource = 512 // a peer behind NAT is one source
)

// Bounds of one gateway. Those of a single stage stand beside it.
const (
	// The connection rate of one source.
	acceptRate  = 1000
	acceptBurst = 4000

	helloTimeout      = 3 * time.Second
	dialTimeout       = time.Second
	connectTimeout    = 3 * time.Second // for all endpoints that are tried
	maxEndpointsTried = 4
	// defaultDrain is the default of Options.Drain.
	defaultDrain = 60 * time.Second
	// Bounds of joining peers, which have an invite. They are few, and each one is done
	// soon.
	maxJoins = 16
	joinTime = 15 * time.Second
)

// Server is a gateway's data path. Make it with NewServer.
type Server struct {
	state   atomic.Pointer[state]
	dial    func(context.Context, netip.AddrPort) (*net.TCPConn, error)
	log     *slog.Logger
	metrics *metrics
	// drain is how long open connections may continue after the context of Serve has
	// ended.
	drain time.Duration

	accepts *budget.Rates[netip.Prefix] // by source
	hellos  *budget.Pending
	// shares divide Limits.Connections among links, by UID.
	shares *budget.Shares
	// sources divide a link's share among the addresses that its agents come from.
	sources *sourceShares
	// unproven connections are cut after proofTime.
	unproven  *unprovenPool
	proofTime time.Duration
	ejections *ejections
	// joins has a slot for each connection of an invite, which is cut after joinTime.
	joins    chan struct{}
	joinTime time.Duration

	mu     sync.Mutex // guards routed and open
	routed map[string]map[*conn]struct{}
	// open are the endpoints that have connections, once for each address, also if the table
	// does not list them any more.
	open map[openKey][]openEndpoint
}

// A conn is one accepted connection.
type conn struct {
	*net.TCPConn
	source  netip.Prefix
	pending *budget.Entry
	cut     context.CancelCauseFunc // set once it is routed
	agent   route.Backend           // that has accepted it, if any; guarded by Server.mu
	open    openKey                 // zero until then; guarded by Server.mu
}

// NewServer returns a Server that refuses every connection until it has a state.
func NewServer(log *slog.Logger, r prometheus.Registerer) *Server {
	unproven := newUnproven(maxUnproven)
	hellos := budget.NewPending(maxHellos, maxHellosFromSource)
	return &Server{
		dial:      dialFrom(new(transport.LocalPorts)),
		log:       log,
		metrics:   newMetrics(r, hellos.Count, unproven.len),
		drain:     defaultDrain,
		accepts:   budget.NewRates[netip.Prefix](acceptRate, acceptBurst),
		hellos:    hellos,
		shares:    newShares(Limits{}.resolve(budget.Connections)),
		sources:   newSourceShares(),
		unproven:  unproven,
		proofTime: proofTime,
		ejections: newEjections(),
		joins:     make(chan struct{}, maxJoins),
		joinTime:  joinTime,
		routed:    make(map[string]map[*conn]struct{}),
		open:      make(map[openKey][]openEndpoint),
	}
}

// dialFrom returns a function that dials agents from local ports.
func dialFrom(ports *transport.LocalPorts) func(context.Context, netip.AddrPort) (*net.TCPConn, error) {
	return func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		c, err := ports.Dial(ctx, to.String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
}

// set makes next the current state and cuts the connections of Links that it lacks. Its
// cost does not depend on the number of other connections.
func (s *Server) set(next *state) {
	for _, c := range s.swap(next) {
		c.cut(errLinkGone)
	}
	s.unproven.dropSources(next.hasLink)
	s.sources.dropLinks(next.hasLink)
}

// swap makes next the current state and returns the connections of Links that it lacks.
func (s *Server) swap(next *state) (gone []*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Store(next)
	for uid, conns := range s.routed {
		if next.hasLink(uid) {
			continue
		}
		for c := range conns {
			gone = append(gone, c)
		}
	}
	return gone
}

// current returns the current state, or why new connections are refused.
func (s *Server) current() (*state, error) {
	st := s.state.Load()
	switch {
	case st == nil:
		return nil, refuse(reasonNotReady, errors.New("no complete state from the controller yet"))
	case st.expired:
		return nil, refuse(reasonNotReady, errors.New("no state from a controller for too long"))
	}
	return st, nil
}

// Serve accepts on ln, which transport.Listen returned, until ctx ends. It then closes
// ln, lets open connections continue for the drain time, ends them, and waits for all. It
// returns nil when ctx was the reason.
func (s *Server) Serve(ctx context.Context, ln *net.TCPListener) error {
	var open sync.WaitGroup
	defer open.Wait()
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		tcp, err := ln.AcceptTCP()
		if err != nil && ctx.Err() != nil {
			late := time.AfterFunc(s.drain, func() { end(transport.ErrDrained) })
			open.Wait()
			if !late.Stop() {
				// The process ends now, so Prometheus does not scrape this count.
				s.log.Info("drain period is over, open connections were reset", "connections", s.metrics.drained.Load())
			}
			return nil
		}
		if transport.IsTransient(err) {
			backoff.Sleep(ctx, 10*time.Millisecond) // out of descriptors: some will close
			continue
		}
		if err != nil {
			ln.Close()
			return fmt.Errorf("accept on %v: %w", ln.Addr(), err)
		}
		if c := s.admit(tcp); c != nil {
			open.Go(func() { s.serve(life, c) })
		}
	}
}

// admit admits a connection to the hello stage. If its source connects too fast, admit
// resets the connection and returns nil.
func (s *Server) admit(tcp *net.TCPConn) *conn {
	s.metrics.accepted.Inc()
	c := &conn{TCPConn: tcp, source: budget.SourceOf(addrOf(tcp.RemoteAddr()).Addr())}
	if !s.accepts.Allow(c.source) {
		s.metrics.refused.WithLabelValues(reasonAcceptRate).Inc()
		transport.Reset(tcp)
		return nil
	}
	c.pending = s.hellos.Add(c.source, func() { transport.Reset(tcp) })
	return c
}

// acquireJoin counts a connection of an invite. It returns false if there are too many.
func (s *Server) acquireJoin() bool {
	select {
	case s.joins <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) releaseJoin() { <-s.joins }

var (
	errJoinTime     = refuse(reasonJoinTime, errors.New("the time for a join is over"))
	errTooManyJoins = refuse(reasonTooManyJoins, errors.New("too many connections of invites"))
	errLinkGone     = refuse(reasonNotReady, errors.New("its Link was deleted meanwhile"))
	errLinkShare    = refuse(reasonLinkShare, errors.New("its link has its share of connections"))
	errSourceShare  = refuse(reasonSourceShare, errors.New("its source has its share of the link's connections"))
)

// serve serves one connection until it ends, and closes it.
func (s *Server) serve(life context.Context, c *conn) {
	ctx, cut := context.WithCancelCause(life)
	defer cut(nil)
	to, err := s.route(c)
	if err == nil && !s.bind(c, to.linkUID, cut) {
		err = errLinkGone
	}
	if err != nil {
		s.refuse(c, to.link, err)
		return
	}
	defer s.unbind(c, to.linkUID)
	if to.row.ID == route.Join {
		if !s.acquireJoin() {
			s.refuse(c, to.link, errTooManyJoins)
			return
		}
		defer s.releaseJoin()
		late := time.AfterFunc(s.joinTime, func() { cut(errJoinTime) })
		defer late.Stop()
	}
	leave, err := s.acquire(c, to)
	if err != nil {
		s.refuse(c, to.link, err)
		return
	}
	defer leave()
	candidate, err := s.unproven.admit(to.linkUID, c.source, cut)
	if err != nil {
		s.refuse(c, to.link, err)
		return
	}
	defer s.unproven.release(candidate)
	var backend *net.TCPConn
	transport.OnOwnStack(func() { backend, err = s.connect(ctx, c, to) })
	if err != nil {
		s.refuse(c, to.link, err)
		return
	}
	s.splice(ctx, cut, c, backend, to.link, candidate)
}

// acquire counts a connection in the shares of its link and of its source. The catalog,
// probes and joins count only in the share of their link, so a source's calls cannot keep
// them out. If there is no error, the caller must call leave.
func (s *Server) acquire(c *conn, to destination) (leave func(), err error) {
	if to.row.ID < route.FirstService {
		if !s.shares.Acquire(to.linkUID) {
			return nil, errLinkShare
		}
		return func() { s.shares.Release(to.linkUID) }, nil
	}
	of := linkSource{to.linkUID, c.source}
	if err := s.sources.acquire(s.shares, of); err != nil {
		return nil, err
	}
	return func() { s.sources.release(s.shares, of) }, nil
}

// splice relays a connection's bytes until it ends. It cuts the connection if its far
// side does not answer in time.
func (s *Server) splice(ctx context.Context, cut context.CancelCauseFunc, c *conn, backend *net.TCPConn,
	link string, candidate *candidate) {
	s.metrics.spliced.WithLabelValues(link).Inc()
	s.metrics.open.Inc()
	defer s.metrics.open.Dec()
	timeout := time.AfterFunc(s.proofTime, func() { cut(errUnproven) })
	defer timeout.Stop()
	proof := transport.RelayUntilProven(ctx, c.TCPConn, backend)
	if proof.Proven {
		timeout.Stop()
		s.unproven.markProven(candidate)
		s.sources.markProven(candidate.linkSource)
	}
	result := transport.Splice(ctx, c.TCPConn, backend, proof.Unsent) // closes both
	s.metrics.bytes.WithLabelValues(link, "in").Add(float64(proof.Sent + result.Sent))
	s.metrics.bytes.WithLabelValues(link, "out").Add(float64(proof.Received + result.Received))
	s.metrics.ended.WithLabelValues(result.Reason.String()).Inc()
	if result.Reason == transport.Drained {
		s.metrics.drained.Add(1)
	}
	switch err := result.Err; {
	case errors.Is(err, errEvicted), errors.Is(err, errUnproven), errors.Is(err, errJoinTime):
		s.count(c, link, err)
	}
}

// A destination is what a connection's label selects.
type destination struct {
	link, linkUID string
	hello         []byte
	row           route.Row
	hint          route.Hint
}

// route reads the hello and opens its label. It contacts no backend.
func (s *Server) route(c *conn) (destination, error) {
	hello, err := transport.ReadClientHello(c, helloTimeout)
	if evicted := s.hellos.Remove(c.pending); evicted != budget.NotEvicted {
		return destination{}, refuse(evictionReasons[evicted], errors.New("newer connections came before its hello"))
	}
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
	row, err := st.lookup(link, label)
	if err != nil {
		return destination{link: link}, err
	}
	return destination{
		link:    link,
		linkUID: st.links[link],
		hello:   hello.Raw,
		row:     row,
		hint:    label.Hint,
	}, nil
}

// bind records which Link the connection depends on. It returns false if the Link is
// already gone.
func (s *Server) bind(c *conn, linkUID string, cut context.CancelCauseFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.state.Load().hasLink(linkUID) {
		return false
	}
	c.cut = cut
	conns := s.routed[linkUID]
	if conns == nil {
		conns = make(map[*conn]struct{})
		s.routed[linkUID] = conns
	}
	conns[c] = struct{}{}
	return true
}

func (s *Server) unbind(c *conn, linkUID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeEndpoint(c)
	delete(s.routed[linkUID], c)
	if len(s.routed[linkUID]) == 0 {
		delete(s.routed, linkUID)
	}
}

// connect dials the row's endpoints in turn until one accepts the hello.
func (s *Server) connect(ctx context.Context, c *conn, to destination) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	failed := refuse(reasonNoEndpoint, fmt.Errorf("route %d has no ready endpoint", to.row.ID))
	tried := 0
	for e := range s.candidates(to) {
		if tried++; tried > maxEndpointsTried || ctx.Err() != nil {
			break
		}
		backend, err := s.handOver(ctx, c, to, e)
		if err == nil {
			s.ejections.succeeded(e.Backend.Address)
			if to.row.ID >= route.FirstService {
				s.setAgent(c, to.linkUID, e)
			}
			return backend, nil
		}
		if ctx.Err() == nil && isBackendFault(err) {
			s.ejections.failed(e.Backend.Address, time.Now())
		}
		s.metrics.backendFail.Inc()
		s.log.Debug("cannot hand connection to backend",
			"backend", e.Backend.Name, "address", e.Backend.Address, "error", err)
		failed = refuse(reasonBackend, err)
	}
	if r := (*refusal)(nil); errors.As(context.Cause(ctx), &r) {
		return nil, r // it was cut meanwhile
	}
	return nil, failed
}

// isBackendFault reports whether a failed dial says something about the backend. Lack of
// descriptors, memory, local ports or a local address is the gateway's own fault.
func isBackendFault(err error) bool {
	return !transport.IsTransient(err) && !errors.Is(err, transport.ErrNoLocalPort) &&
		!errors.Is(err, syscall.EADDRNOTAVAIL)
}

// handOver dials one endpoint's backend and writes the header and the hello.
func (s *Server) handOver(ctx context.Context, c *conn, to destination, e route.Endpoint) (*net.TCPConn, error) {
	ready, zones := to.row.Ready(rand.Uint64())
	header := route.Header{
		Source:      addrOf(c.RemoteAddr()),
		Destination: addrOf(c.LocalAddr()),
		PodUID:      e.PodUID,
		Endpoint:    e.ID,
		Ready:       ready,
		ReadyCount:  uint32(len(to.row.Endpoints)),
		Generation:  to.row.Generation,
		Time:        time.Now(),
		Link:        to.link,
		Budget:      uint32(1 + s.sources.room(s.shares, linkSource{to.linkUID, c.source})),
	}
	if e.Backend.ReadsZones {
		header.Zones = zones
	}
	if to.row.ID == route.Probe {
		header.Ready, header.ReadyCount = nil, 0 // agents have no ids
	}
	first, err := header.Marshal(e.Backend.HopKey, to.hello)
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
	if _, err := backend.Write(append(first, to.hello...)); err != nil {
		backend.Close()
		return nil, fmt.Errorf("hand over to %s: %w", e.Backend.Name, err)
	}
	return backend, nil
}

// A refusal is an error with a reason that is counted.
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

// refuse counts, and gives every ClientHello the same answer.
func (s *Server) refuse(c *conn, link string, err error) {
	s.count(c, link, err)
	if errors.Is(err, transport.ErrNotTLS) || errors.Is(err, os.ErrDeadlineExceeded) {
		// An alert would mean nothing to what is not TLS. To a client whose ClientHello
		// has been lost on the way, it would mean that its label is unknown.
		transport.Reset(c.TCPConn)
		return
	}
	transport.Refuse(c.TCPConn)
}
