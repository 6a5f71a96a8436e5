package wire

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/grpctls"
)

var (
	errStreams  = errors.New("too many catalog streams")
	errNotReady = errors.New("the controller is starting")
	errStopping = errors.New("this controller replica is stopping")
)

// Identify returns the name of the Link whose peer is at the other end of a connection,
// or an error, which rejects it. It decides from the verified certificates and checks
// them against the clock. It must be fast, because it is called again with each
// heartbeat. A stream whose Link is no longer the same ends.
type Identify func(tls.ConnectionState) (link string, err error)

// ServerOptions tune a Server. The zero value works.
type ServerOptions struct {
	Timing
	// MaxStreams bounds open streams; 0 means 4096. There may be twice as many
	// connections.
	MaxStreams int
	// MaxStreamsPerLink bounds the streams of one Link; 0 means 16.
	MaxStreamsPerLink int
	// Budgets are shared by everything that talks to peers; nil means a separate one.
	Budgets *Budgets
	// Log may be nil.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Server serves the catalog to linked peers. Make it with NewServer.
type Server struct {
	UnimplementedCatalogServer
	identify Identify
	board    *Board
	sink     Sink
	o        ServerOptions
	stop     chan struct{} // closed when Serve ends

	receivers sync.WaitGroup // goroutines that receive

	mu      sync.Mutex // guards all below; no callback runs under it
	streams int
	links   map[string]*inboundLink
}

// inboundLink is a Link with open streams.
type inboundLink struct {
	streams int // guarded by Server.mu

	deliver sync.Mutex // held while the sink is called for this Link
	greeted bool       // guarded by deliver: the sink has the peer's Hello
}

// NewServer returns a Server that sends each peer what board holds for its Link. sink
// receives what peers say of themselves; Disconnected is called after the last stream of
// a Link if Hello was called before.
func NewServer(identify Identify, board *Board, sink Sink, o ServerOptions) *Server {
	o.Timing = o.Timing.orDefaults()
	o.MaxStreams = cmp.Or(o.MaxStreams, 4096)
	o.MaxStreamsPerLink = cmp.Or(o.MaxStreamsPerLink, 16)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Budgets == nil {
		o.Budgets = NewBudgets()
	}
	return &Server{
		identify: identify,
		board:    board,
		sink:     sink,
		o:        o,
		stop:     make(chan struct{}),
		links:    map[string]*inboundLink{},
	}
}

// Serve serves on ln until ctx ends, closes ln, and waits for all streams. creds come
// from grpctls.New with ALPN. It returns nil if ctx was the reason. A Server serves once.
func (s *Server) Serve(ctx context.Context, ln net.Listener, creds credentials.TransportCredentials) error {
	defer s.receivers.Wait()
	g := grpc.NewServer(
		// Peers send little on these streams. The default is 32 KiB for each.
		grpc.ReadBufferSize(4<<10),
		grpc.Creds(creds),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxRecvMsgSize(maxInboundMessage),
		grpc.MaxHeaderListSize(8<<10),
		grpc.MaxConcurrentStreams(1),
		grpc.StaticStreamWindowSize(2*maxInboundMessage),
		grpc.StaticConnWindowSize(2*maxInboundMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 10 * time.Second,
			Time:              30 * time.Second,
			Timeout:           10 * time.Second,
		}),
		grpc.WaitForHandlers(true),
	)
	RegisterCatalogServer(g, s)
	ended := make(chan struct{})
	var closing sync.WaitGroup
	closing.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		close(s.stop) // all streams end
		force := time.AfterFunc(5*time.Second, g.Stop)
		defer force.Stop()
		g.GracefulStop()
	})
	ln = grpctls.Limit(ln, 2*s.o.MaxStreams, func() { s.count(endedConnections) })
	err := g.Serve(ln)
	close(ended)
	closing.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve catalogs on %v: %w", ln.Addr(), err)
}

// Sync implements CatalogServer.
func (s *Server) Sync(transport Catalog_SyncServer) error {
	link, err := s.sync(transport)
	s.count(reason(err))
	s.o.Log.Debug("catalog stream ended", "link", link, "error", err)
	return asStatus(err)
}

func (s *Server) sync(transport Catalog_SyncServer) (link string, err error) {
	state, ok := grpctls.State(transport.Context())
	if !ok {
		return "", fmt.Errorf("%w: the connection proves nothing", ErrNotLinked)
	}
	link, err = s.identify(state)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotLinked, err)
	}
	if s.board.Hello() == nil {
		return link, errNotReady
	}
	in, err := s.admit(link)
	if err != nil {
		return link, err
	}
	defer func() { s.release(link, in, err) }()
	out := &stream{
		protocolState: &protocolState{},
		transport:     transport,
		link:          link,
		board:         s.board,
		budget:        s.o.Budgets.peer(link),
		timing:        s.o.Timing,
		verify:        func() error { return s.verify(link, state) },
		abort:         func() { grpctls.CloseConn(transport.Context()) },
		stop:          s.stop,
		wakeup:        make(chan struct{}, 1),
		sink:          inboundSink{s.sink, in},
		deliver:       &in.deliver,
	}
	return link, out.run(transport.Context(), s.receivers.Go)
}

// verify returns an error if the stream must end.
func (s *Server) verify(link string, state tls.ConnectionState) error {
	now, err := s.identify(state)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNotLinked, err)
	case now != link:
		return fmt.Errorf("%w: its Link %q is gone", ErrNotLinked, link)
	}
	return nil
}

// admit counts a new stream of link, or refuses it. The caller releases it.
func (s *Server) admit(link string) (*inboundLink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.links[link]
	if in == nil {
		// It stays for good, so that the calls for a Link stay in one order. There are
		// no more of them than there were names of Links.
		in = &inboundLink{}
		s.links[link] = in
	}
	if s.streams >= s.o.MaxStreams || in.streams >= s.o.MaxStreamsPerLink {
		return nil, fmt.Errorf("%w: %d in all, %d of link %s", errStreams, s.streams, in.streams, link)
	}
	s.streams++
	in.streams++
	s.o.Metrics.open.WithLabelValues(inbound).Inc()
	return in, nil
}

// release counts the end of a stream of link.
func (s *Server) release(link string, in *inboundLink, err error) {
	in.deliver.Lock()
	defer in.deliver.Unlock()
	s.mu.Lock()
	s.streams--
	in.streams--
	last := in.streams == 0
	s.mu.Unlock()
	s.o.Metrics.open.WithLabelValues(inbound).Dec()
	if last && in.greeted {
		in.greeted = false
		s.sink.Disconnected(link, err)
	}
}

func (s *Server) count(reason string) { s.o.Metrics.ended.WithLabelValues(inbound, reason).Inc() }

// inboundSink records that the sink has the Hello of a Link's peer.
type inboundSink struct {
	Sink
	in *inboundLink
}

// Hello implements Sink.
func (s inboundSink) Hello(link string, h *Hello, skew time.Duration) uint64 {
	s.in.greeted = true
	return s.Sink.Hello(link, h, skew)
}

// asStatus returns the status that tells a peer why its stream ended. A stream that ends
// because this replica stops ends in good order, so the peer dials again and reaches
// another replica. No code is Unavailable, by which gRPC reports a lost connection.
func asStatus(err error) error {
	if err == nil || errors.Is(err, errStopping) {
		return nil
	}
	code := map[string]codes.Code{
		endedSilent: codes.DeadlineExceeded, endedSlow: codes.DeadlineExceeded,
		endedProtocol: codes.InvalidArgument, endedLimit: codes.ResourceExhausted,
		endedNotLinked: codes.PermissionDenied,
		endedStreams:   codes.Aborted, endedNotReady: codes.FailedPrecondition,
		endedOrderly: codes.Canceled,
	}[reason(err)]
	if code == codes.OK {
		code = codes.Unknown
	}
	return status.Error(code, err.Error())
}
