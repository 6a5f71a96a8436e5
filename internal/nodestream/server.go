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

	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Role is what a caller is. The zero value is nobody.
type Role int

// The roles that have a node stream.
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
	return "nobody"
}

// Subject is whom a token stands for.
type Subject struct {
	Role Role
	// Node is the node that the token is bound to. Required for agents.
	Node string
	// PodUID is the pod that the token is bound to.
	PodUID string
}

// recipient is whose View s reads; empty if none.
func (s Subject) recipient() Recipient {
	switch {
	case s.Role == RoleGateway:
		return Gateway
	case s.Role == RoleAgent && s.Node != "":
		return Agent(s.Node)
	}
	return ""
}

// ErrNotChecked reports a token that could not be looked at now, for example
// because the API server does not answer. The caller is told to come again.
var ErrNotChecked = errors.New("the token cannot be checked now")

// Authenticator knows whom tokens stand for.
type Authenticator interface {
	// Authenticate returns whom token stands for. It must check signature, audience,
	// expiry and binding. An error that wraps ErrNotChecked or a context's error says
	// that nothing is known about the token; every other one refuses it.
	Authenticate(ctx context.Context, token string) (Subject, error)
}

// SignFunc returns the certificate chain (DER, leaf first) for the public key of csr
// and the identity of a ServiceAccount, if the holder of token may have it. An
// error that is a gRPC status goes to the caller as it is; one that wraps
// ErrNotChecked or a context's error as Unavailable; others as PermissionDenied
// with their text.
type SignFunc func(ctx context.Context, token, namespace, serviceAccount string, csr []byte) ([][]byte, error)

// ServerOptions tune a Server. The zero value works.
type ServerOptions struct {
	// Heartbeat is the time between heartbeats; 0 means 5 s.
	Heartbeat time.Duration
	// SendTimeout is how long a reader may take for one Update before its connection
	// is cut; 0 means 30 s.
	SendTimeout time.Duration
	// MaxAge is the longest that a stream lives; each gets between half of it and
	// all of it. 0 means 30 min.
	MaxAge time.Duration
	// MaxStreams bounds open streams, and connections to twice as many; 0 means 4096.
	MaxStreams int
	// MaxStreamsPerPod bounds the streams of one pod; 0 means 4.
	MaxStreamsPerPod int
	// Log may be nil.
	Log *slog.Logger
	// Registerer takes the metrics; nil means none.
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
	asker   *asker

	mu      sync.Mutex // guards all below
	streams int
	perPod  map[string]int
}

// NewServer returns a Server that tells each caller the View that hub holds for
// whom auth says it is.
func NewServer(auth Authenticator, hub *Hub, sign SignFunc, o ServerOptions) *Server {
	o.Heartbeat = cmp.Or(o.Heartbeat, 5*time.Second)
	o.SendTimeout = cmp.Or(o.SendTimeout, 30*time.Second)
	o.MaxAge = cmp.Or(o.MaxAge, 30*time.Minute)
	o.MaxStreams = cmp.Or(o.MaxStreams, 4096)
	o.MaxStreamsPerPod = cmp.Or(o.MaxStreamsPerPod, 4)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	stop := make(chan struct{})
	return &Server{
		auth: auth, hub: hub, sign: sign, o: o, metrics: newServerMetrics(o.Registerer),
		stop: stop, stopped: sync.OnceFunc(func() { close(stop) }),
		perPod: map[string]int{}, asker: newAsker(),
	}
}

// Serve serves on ln until ctx ends, with creds of grpctls.New and ALPN, closes ln,
// and waits for every call. It returns nil when ctx was the reason. A Server serves
// once.
func (s *Server) Serve(ctx context.Context, ln net.Listener, creds credentials.TransportCredentials) error {
	g := grpc.NewServer(
		grpc.Creds(creds),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(32<<10),
		grpc.MaxConcurrentStreams(64),
		grpc.StaticStreamWindowSize(2*maxRequest),
		grpc.StaticConnWindowSize(4*maxRequest),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			// Without a call a connection is of no use to a client of ours.
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
			s.stopped() // streams end by themselves, signatures under way finish
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
	s.o.Log.Debug("node stream opened", "reader", subject.recipient(), "pod", subject.PodUID, "version", req.GetVersion())
	asked, leave := s.asker.join(subject, req.GetVersion())
	defer leave()
	err = s.tell(stream, subject.recipient(), asked)
	s.o.Log.Debug("node stream ended", "reader", subject.recipient(), "pod", subject.PodUID, "error", err)
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
		return nil, status.Errorf(codes.PermissionDenied, "a %v may not ask for identities: only agents may", subject.Role)
	}
	chain, err := s.sign(ctx, token, req.GetNamespace(), req.GetServiceAccount(), req.GetCsr())
	if err != nil {
		s.refuse(refusedSigning)
		return nil, asStatus(err, codes.PermissionDenied)
	}
	return &wire.SignResponse{Chain: chain}, nil
}

// authenticate returns whom the caller's token stands for, and the token.
func (s *Server) authenticate(ctx context.Context) (Subject, string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		s.refuse(refusedNoToken)
		return Subject{}, "", status.Errorf(codes.Unauthenticated, "the call has %d authorization tokens, want one", len(values))
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
	if subject.recipient() == "" {
		s.refuse(refusedRole)
		return Subject{}, "", status.Error(codes.PermissionDenied, "the token is neither an agent's, bound to a node, nor a gateway's")
	}
	return subject, token, nil
}

// asStatus makes err a status: its own if it is one, Unavailable if it is about
// being asked at a bad time, else code.
func asStatus(err error, code codes.Code) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, ErrNotChecked) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

// admit counts a stream of subject in, or refuses it. The caller releases it.
func (s *Server) admit(subject Subject) (release func(), err error) {
	pod := cmp.Or(subject.PodUID, string(subject.recipient()))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= s.o.MaxStreams || s.perPod[pod] >= s.o.MaxStreamsPerPod {
		s.refuse(refusedStreams)
		return nil, status.Errorf(codes.ResourceExhausted, "too many node streams: %d in all, %d of pod %s", s.streams, s.perPod[pod], pod)
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

// tell sends the View of to, and then what changes and what is asked, until the stream has to end.
func (s *Server) tell(stream wire.NodeStream_WatchServer, to Recipient, asked <-chan uint64) error {
	sender := delta.NewSender(kind, chunkBytes)
	heartbeat := time.NewTicker(s.o.Heartbeat)
	defer heartbeat.Stop()
	age := time.NewTimer(s.o.MaxAge/2 + rand.N(s.o.MaxAge/2+1))
	defer age.Stop()
	for {
		view, ok, changed := s.hub.Read(to)
		if !ok {
			s.refuse(refusedNoState)
			return status.Errorf(codes.Unavailable, "no complete state yet for %s", to)
		}
		sender.Offer(view)
		for c, ok := sender.Next(); ok; c, ok = sender.Next() {
			if err := s.send(stream, &wire.Update{Upserts: c.Upserts, Removed: c.Removed, Complete: c.Whole}); err != nil {
				return err
			}
		}
		for waiting := true; waiting; {
			select {
			case <-changed:
				waiting = false
			case <-heartbeat.C:
				if err := s.send(stream, &wire.Update{Complete: true}); err != nil {
					return err
				}
			case question := <-asked:
				if err := s.send(stream, &wire.Update{Complete: true, Question: question}); err != nil {
					return err
				}
			case <-age.C:
				return nil // the reader comes back with a fresh token
			case <-s.stop:
				return status.Error(codes.Unavailable, "this controller replica is stopping")
			case <-stream.Context().Done():
				return status.FromContextError(stream.Context().Err()).Err()
			}
		}
	}
}

// send sends u, or cuts the connection of a reader that does not take it in time.
func (s *Server) send(stream wire.NodeStream_WatchServer, u *wire.Update) error {
	ctx := stream.Context()
	cut := time.AfterFunc(s.o.SendTimeout, func() {
		s.refuse(refusedSlow)
		grpctls.Cut(ctx)
	})
	defer cut.Stop()
	u.TimeMs = time.Now().UnixMilli()
	return stream.Send(u)
}

func (s *Server) refuse(reason string) { s.metrics.refused.WithLabelValues(reason).Inc() }
