package nodestream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Role is the kind of a caller. The zero value has no access.
type Role int

// The roles that may open a node stream.
const (
	RoleAgent Role = iota + 1
	RoleGateway
)

// String implements fmt.Stringer.
func (r Role) String() string {
	switch r {
	case RoleAgent:
		return "agent"
	case RoleGateway:
		return "gateway"
	}
	return "unknown"
}

// Subject is the caller that a token identifies.
type Subject struct {
	Role Role
	// Node is the node that the token is bound to. Required for agents.
	Node string
	// PodUID is the pod that the token is bound to.
	PodUID string
}

// scopes returns what s may read; none for a subject without access.
func (s Subject) scopes() []Scope {
	switch {
	case s.Role == RoleGateway:
		return []Scope{Gateways}
	case s.Role == RoleAgent && s.Node != "":
		return []Scope{Agents, Node(s.Node)}
	}
	return nil
}

// String implements fmt.Stringer.
func (s Subject) String() string {
	if s.Role == RoleAgent {
		return "agent of node " + s.Node
	}
	return s.Role.String()
}

// ErrNotChecked reports a token that could not be checked now, for example because the
// API server does not answer. The caller may retry.
var ErrNotChecked = errors.New("the token cannot be checked now")

// Authenticator identifies callers by their tokens.
type Authenticator interface {
	// Authenticate returns the caller that token identifies. It must check signature,
	// audience, expiry and binding. An error that wraps ErrNotChecked or a context's
	// error means that the token could not be checked; every other error rejects it.
	Authenticate(ctx context.Context, token string) (Subject, error)
}

// SignFunc returns the certificate chain (DER, leaf first) for the public key of csr and
// the identity of a ServiceAccount, if the holder of token may have it. The caller gets
// an error that is a gRPC status unchanged, one that wraps ErrNotChecked or a context's
// error as Unavailable, and any other as PermissionDenied with its text.
type SignFunc func(ctx context.Context, token, namespace, serviceAccount string, csr []byte) ([][]byte, error)

// ServerOptions tune a Server. The zero value works.
type ServerOptions struct {
	// Heartbeat is the time between heartbeats; 0 means 5 s.
	Heartbeat time.Duration
	// SendTimeout is how long sending one Update may take before the server closes the
	// client's connection; 0 means 30 s.
	SendTimeout time.Duration
	// MaxAge bounds how long a stream lives; each one lives between half of it and all
	// of it. 0 means 30 min.
	MaxAge time.Duration
	// MaxStreams bounds open streams; connections are bounded by twice as many. 0 means
	// 4096.
	MaxStreams int
	// MaxStreamsPerPod bounds the streams of one pod; 0 means 4.
	MaxStreamsPerPod int
	// Age returns how old the server's knowledge may be: the time since its API server
	// last proved to be in reach. Nil means always 0.
	Age func() time.Duration
	// Log may be nil.
	Log *slog.Logger
	// Registerer registers the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Server serves node streams. Make it with NewServer.
type Server struct {
	wire.UnimplementedNodeStreamServer
	auth    Authenticator
	hub     *Hub
	sign    SignFunc
	o       ServerOptions
	metrics serverMetrics
	stop    chan struct{} // closed when Serve ends
	stopped func()
	survey  *survey

	parking parking

	mu      sync.Mutex // guards all below
	streams int
	perPod  map[string]int
}

// NewServer returns a Server that streams to each caller the scopes of hub that belong to
// the Subject which auth returns.
func NewServer(auth Authenticator, hub *Hub, sign SignFunc, o ServerOptions) *Server {
	o.Heartbeat = cmp.Or(o.Heartbeat, 5*time.Second)
	o.SendTimeout = cmp.Or(o.SendTimeout, 30*time.Second)
	o.MaxAge = cmp.Or(o.MaxAge, 30*time.Minute)
	o.MaxStreams = cmp.Or(o.MaxStreams, 4096)
	o.MaxStreamsPerPod = cmp.Or(o.MaxStreamsPerPod, 4)
	if o.Age == nil {
		o.Age = func() time.Duration { return 0 }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	stop := make(chan struct{})
	return &Server{
		auth: auth, hub: hub, sign: sign, o: o, metrics: newServerMetrics(o.Registerer),
		stop: stop, stopped: sync.OnceFunc(func() { close(stop) }),
		perPod: map[string]int{}, survey: newSurvey(),
	}
}

// Serve serves on ln until ctx ends, closes ln, and waits for all calls. creds are made
// by grpctls.New with ALPN. It returns nil if it ended because of ctx. A Server serves
// once.
func (s *Server) Serve(ctx context.Context, ln net.Listener, creds credentials.TransportCredentials) error {
	g := grpc.NewServer(
		// Agents send little, and there may be a thousand of them. The default is 32 KiB.
		grpc.ReadBufferSize(4<<10),
		grpc.Creds(creds),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(32<<10),
		grpc.MaxConcurrentStreams(64),
		grpc.StaticStreamWindowSize(2*maxRequest),
		grpc.StaticConnWindowSize(4*maxRequest),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			// Clients close connections that they do not use; this closes all others.
			MaxConnectionIdle: time.Minute,
			Time:              30 * time.Second,
			Timeout:           10 * time.Second,
		}),
		grpc.WaitForHandlers(true),
	)
	wire.RegisterNodeStreamServer(g, s)
	ended := make(chan struct{})
	var closing sync.WaitGroup
	closing.Go(func() {
		select {
		case <-ctx.Done():
			s.stopped() // ends the streams; calls of Sign that run may finish
			force := time.AfterFunc(5*time.Second, g.Stop)
			defer force.Stop()
			g.GracefulStop()
		case <-ended:
			s.stopped()
			g.Stop()
		}
	})
	ln = grpctls.Limit(ln, 2*s.o.MaxStreams, func() { s.refuse(refusedConnections) })
	err := g.Serve(ln)
	close(ended)
	closing.Wait()
	s.parking.clear()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve node streams on %v: %w", ln.Addr(), err)
}

// Watch implements wire.NodeStreamServer.
func (s *Server) Watch(req *wire.WatchRequest, stream wire.NodeStream_WatchServer) error {
	ctx := stream.Context()
	subject, _, err := s.authenticate(ctx)
	if err != nil {
		return err
	}
	release, err := s.admit(subject)
	if err != nil {
		return err
	}
	defer release()
	s.o.Log.Debug("node stream opened", "client", subject, "pod", subject.PodUID, "version", req.GetVersion())
	questions, leave := s.survey.join(subject, req.GetVersion())
	defer leave()
	err = s.serveStream(req, stream, subject, questions)
	s.o.Log.Debug("node stream ended", "client", subject, "pod", subject.PodUID, "error", err)
	return err
}

// Sign implements wire.NodeStreamServer.
func (s *Server) Sign(ctx context.Context, req *wire.SignRequest) (*wire.SignResponse, error) {
	subject, token, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	if subject.Role != RoleAgent {
		s.refuse(refusedRole)
		return nil, status.Errorf(codes.PermissionDenied,
			"a %v may not request certificates: only agents may", subject.Role)
	}
	chain, err := s.sign(ctx, token, req.GetNamespace(), req.GetServiceAccount(), req.GetCsr())
	if err != nil {
		s.refuse(refusedSigning)
		return nil, asStatus(err, codes.PermissionDenied)
	}
	return &wire.SignResponse{Chain: chain}, nil
}

// authenticate returns the caller that the token of ctx identifies, and the token.
func (s *Server) authenticate(ctx context.Context) (Subject, string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		s.refuse(refusedNoToken)
		return Subject{}, "", status.Errorf(codes.Unauthenticated,
			"the call has %d authorization tokens, want one", len(values))
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok || token == "" {
		s.refuse(refusedNoToken)
		return Subject{}, "", status.Error(codes.Unauthenticated, "the authorization is not a bearer token")
	}
	subject, err := s.auth.Authenticate(ctx, token)
	if err != nil {
		err := asStatus(err, codes.Unauthenticated)
		if status.Code(err) == codes.Unavailable {
			s.refuse(refusedUnchecked)
		} else {
			s.refuse(refusedToken)
		}
		return Subject{}, "", err
	}
	if subject.scopes() == nil {
		s.refuse(refusedRole)
		return Subject{}, "", status.Error(codes.PermissionDenied,
			"the token is neither an agent's, bound to a node, nor a gateway's")
	}
	return subject, token, nil
}

// asStatus returns err as a gRPC status: unchanged if it is one, Unavailable if the call
// may be retried, and otherwise with code.
func asStatus(err error, code codes.Code) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, ErrNotChecked) || errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) {
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

// admit counts a new stream of subject, or refuses it. The caller calls release at its
// end.
func (s *Server) admit(subject Subject) (release func(), err error) {
	pod := cmp.Or(subject.PodUID, subject.String())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= s.o.MaxStreams || s.perPod[pod] >= s.o.MaxStreamsPerPod {
		s.refuse(refusedStreams)
		return nil, status.Errorf(codes.ResourceExhausted,
			"too many node streams: %d in total, %d of pod %s", s.streams, s.perPod[pod], pod)
	}
	s.streams++
	s.perPod[pod]++
	open := s.metrics.streams.WithLabelValues(subject.Role.String())
	open.Inc()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		open.Dec()
		s.streams--
		if s.perPod[pod]--; s.perPod[pod] == 0 {
			delete(s.perPod, pod)
		}
	}, nil
}

// updateInterval is the time in which a stream carries at most one Update with changes
// for each of its scopes. A change after a quiet interval is sent immediately. Changes
// within the interval are sent together, because each Update costs CPU time in a client
// that knows thousands of resources.
const updateInterval = 50 * time.Millisecond

// serveStream sends the state of subject, its changes, heartbeats and questions, until
// the stream has to end.
func (s *Server) serveStream(
	req *wire.WatchRequest, stream wire.NodeStream_WatchServer, subject Subject, questions <-chan uint64,
) error {
	first := true
	send := func(src *source, u *wire.Update) error {
		if first {
			u.Resume, first = src.token, false
		}
		src.sent++
		return s.send(stream, u)
	}
	src := s.parking.take(req.GetResume(), subject, req.GetReceived())
	if src == nil {
		var err error
		if src, err = s.hub.open(subject.scopes()); err != nil {
			s.refuse(refusedNoState)
			return status.Errorf(codes.Unavailable, "%v: %v", subject, err)
		}
	} else {
		s.metrics.resumed.Inc()
	}
	parked := false
	defer func() {
		if !parked {
			src.close()
		}
	}()
	if src.sent > 0 {
		// The client waits for an Update, and there may be no change for a while.
		if err := send(src, &wire.Update{Complete: src.whole()}); err != nil {
			return err
		}
	}
	heartbeat := time.NewTicker(s.o.Heartbeat)
	defer heartbeat.Stop()
	age := time.NewTimer(s.o.MaxAge/2 + rand.N(s.o.MaxAge/2+1))
	defer age.Stop()
	// pause fires when changes may be sent again. It is nil if they may be sent now.
	var pause <-chan time.Time
	sent := 0 // Updates with changes since the last pause
	for {
		var first, second <-chan struct{}
		if pause == nil {
			if u, ok := src.next(); ok {
				if err := send(src, u); err != nil {
					return err
				}
				if sent++; sent >= len(src.scopes) && src.whole() {
					pause, sent = time.After(updateInterval), 0
				}
			}
		}
		if pause == nil {
			first, second = src.changed()
		}
		select {
		case <-first:
		case <-second:
		case <-pause:
			pause = nil
		case <-heartbeat.C:
			if err := send(src, &wire.Update{Complete: src.whole()}); err != nil {
				return err
			}
		case question := <-questions:
			if err := send(src, &wire.Update{Complete: src.whole(), Question: question}); err != nil {
				return err
			}
		case <-src.gone():
			return status.Errorf(codes.Unavailable, "%v: the node is not known any more", subject)
		case <-age.C:
			parked = s.parking.put(src, subject, s.o.MaxStreams)
			return nil // the client opens the next stream with a new token
		case <-s.stop:
			return status.Error(codes.Unavailable, "this controller replica is stopping")
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// send sends u. It closes the connection of a client that does not read it in time.
func (s *Server) send(stream wire.NodeStream_WatchServer, u *wire.Update) error {
	ctx := stream.Context()
	timeout := time.AfterFunc(s.o.SendTimeout, func() {
		s.refuse(refusedSlow)
		grpctls.CloseConn(ctx)
	})
	defer timeout.Stop()
	u.TimeMs = time.Now().UnixMilli()
	u.AgeMs = uint64(max(0, s.o.Age().Milliseconds()))
	return stream.Send(u)
}

func (s *Server) refuse(reason string) { s.metrics.refused.WithLabelValues(reason).Inc() }
