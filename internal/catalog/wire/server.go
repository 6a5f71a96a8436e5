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
	errNotReady = errors.New("the controller has nothing to say yet")
	errStopping = errors.New("this controller replica is stopping")
)

// Peer says whose connection it is: the name of the Link, or an error, which
// refuses. It must decide from the proven certificates, check them against the
// clock, and be quick: it is asked again with each heartbeat, and a stream whose
// Link is no longer the same ends.
type Peer func(tls.ConnectionState) (link string, err error)

// ServerOptions tune a Server. The zero value works.
type ServerOptions struct {
	Timing
	// MaxStreams bounds open streams, and connections to twice as many; 0 means 4096.
	MaxStreams int
	// MaxStreamsPerLink bounds those of one Link; 0 means 16.
	MaxStreamsPerLink int
	// Log may be nil.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Server serves the catalog to linked peers. Make it with NewServer.
type Server struct {
	UnimplementedCatalogServer
	peer  Peer
	board *Board
	sink  Sink
	o     ServerOptions
	stop  chan struct{} // closed when Serve ends

	listeners sync.WaitGroup // goroutines that hear peers

	mu      sync.Mutex // guards all below, and nothing is called under it
	streams int
	links   map[string]*inboundLink
}

// inboundLink is a Link with open streams.
type inboundLink struct {
	streams int // guarded by Server.mu

	deliver sync.Mutex // held while the sink is called for this Link
	greeted bool       // guarded by deliver: the sink knows of the peer
}

// NewServer returns a Server that tells each peer what board holds for its Link,
// and sink what peers say of themselves. Disconnected is called when the last of a
// Link's streams has ended, if Hello was; Catalog never is.
func NewServer(peer Peer, board *Board, sink Sink, o ServerOptions) *Server {
	o.Timing = o.Timing.orDefaults()
	o.MaxStreams = cmp.Or(o.MaxStreams, 4096)
	o.MaxStreamsPerLink = cmp.Or(o.MaxStreamsPerLink, 16)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &Server{peer: peer, board: board, sink: sink, o: o, stop: make(chan struct{}), links: map[string]*inboundLink{}}
}

// Serve serves on ln until ctx ends, with creds of grpctls.New and ALPN, closes ln,
// and waits for every stream. It returns nil when ctx was the reason. A Server
// serves once.
func (s *Server) Serve(ctx context.Context, ln net.Listener, creds credentials.TransportCredentials) error {
	defer s.listeners.Wait()
	g := grpc.NewServer(
		grpc.Creds(creds),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(8<<10),
		grpc.MaxConcurrentStreams(1),
		grpc.StaticStreamWindowSize(2*maxMessage),
		grpc.StaticConnWindowSize(2*maxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 10 * time.Second, Time: 30 * time.Second, Timeout: 10 * time.Second}),
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
		close(s.stop) // streams end by themselves
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
func (s *Server) Sync(stream Catalog_SyncServer) error {
	link, err := s.sync(stream)
	s.count(reason(err))
	s.o.Log.Debug("catalog stream ended", "link", link, "error", err)
	return asStatus(err)
}

func (s *Server) sync(stream Catalog_SyncServer) (link string, err error) {
	state, ok := grpctls.State(stream.Context())
	if !ok {
		return "", fmt.Errorf("%w: the connection proves nothing", ErrNotLinked)
	}
	link, err = s.peer(state)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotLinked, err)
	}
	if _, ok, _ := s.board.hello.Read(struct{}{}); !ok {
		return link, errNotReady
	}
	in, err := s.admit(link)
	if err != nil {
		return link, err
	}
	defer func() { s.release(link, in, err) }()
	t := &talk{
		conversation: newConversation(false), stream: stream, link: link, board: s.board, timing: s.o.Timing,
		check: func() error { return s.still(link, state) },
		cut:   func() { grpctls.Cut(stream.Context()) },
		stop:  s.stop, woken: make(chan struct{}, 1), sink: inboundSink{s.sink, in}, deliver: &in.deliver,
	}
	return link, t.run(stream.Context(), s.listeners.Go)
}

// still says whether the stream may go on.
func (s *Server) still(link string, state tls.ConnectionState) error {
	now, err := s.peer(state)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNotLinked, err)
	case now != link:
		return fmt.Errorf("%w any more as %q", ErrNotLinked, link)
	}
	return nil
}

// admit counts a stream of link in, or refuses it. The caller releases it.
func (s *Server) admit(link string) (*inboundLink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.links[link]
	if in == nil {
		// Kept for good, so that calls for a Link stay in one order: there are no more
		// of them than Links had names.
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

// release counts a stream of link out, which ended for err.
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

// inboundSink notes that the sink knows of a Link's peer.
type inboundSink struct {
	Sink
	in *inboundLink
}

// Hello implements Sink.
func (s inboundSink) Hello(link string, h *Hello, skew time.Duration) uint64 {
	s.in.greeted = true
	return s.Sink.Hello(link, h, skew)
}

// asStatus tells a peer why its stream ended. One that ends because we stop ends in good order: the peer comes again, and is
// led to another replica. No code here is Unavailable, by which gRPC tells of connections that are lost.
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
