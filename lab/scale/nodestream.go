package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// maxNodeUpdate is the largest message of a node stream.
const maxNodeUpdate = 1 << 20

// A nodeStream is the stream of one simulated agent. It reads everything and keeps nothing:
// a thousand whole agents would not fit into the machine beside the clusters.
type nodeStream struct {
	netns   string // from which it dials
	address string // of a controller
	of      clusterIdentity
	token   string
	seen    *sightings    // of pods, as podState writes them
	whole   chan struct{} // closed when the first copy is complete

	mu  sync.Mutex
	err error // why the last stream ended
}

func (s *nodeStream) lastError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// run keeps the stream open until ctx ends.
func (s *nodeStream) run(ctx context.Context) {
	opened := sync.OnceFunc(func() { close(s.whole) })
	for {
		err := s.follow(ctx, opened)
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
		if sleep(ctx, time.Second) != nil {
			return
		}
	}
}

// follow reads one stream until it ends, and calls whole when its first copy is complete.
func (s *nodeStream) follow(ctx context.Context, whole func()) error {
	conn, err := grpc.NewClient("passthrough:///"+s.address,
		grpc.WithTransportCredentials(grpctls.New(grpctls.Config{
			ALPN: nodestream.ALPN,
			TLS: func() (*tls.Config, error) {
				return identity.ClientTLS(identity.PlaneNode, "causeway-controller", nil, s.of.verify), nil
			},
			Guard: transport.GuardDialed,
		})),
		grpc.WithPerRPCCredentials(bearer(s.token)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialFrom(ctx, s.netns, "tcp", address)
		}),
		grpc.WithNoProxy(),
		grpc.WithStaticStreamWindowSize(maxNodeUpdate),
		grpc.WithStaticConnWindowSize(2*maxNodeUpdate),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxNodeUpdate)),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := wire.NewNodeStreamClient(conn).Watch(ctx, &wire.WatchRequest{Version: "simulated"})
	if err != nil {
		return err
	}
	for complete := false; ; {
		u, err := stream.Recv()
		if err != nil {
			return err
		}
		now := time.Now()
		if complete {
			err = s.look(u, now)
		}
		if err != nil {
			return err
		}
		if u.GetComplete() {
			complete = true
			whole()
		}
	}
}

// look records the pods in an Update that follows the first copy.
func (s *nodeStream) look(u *wire.Update, now time.Time) error {
	for _, raw := range u.GetUpserts() {
		var r wire.Resource
		if err := proto.Unmarshal(raw, &r); err != nil {
			return errors.Join(errors.New("decode a resource"), err)
		}
		if p := r.GetPod(); p != nil && len(p.GetIps()) > 0 {
			s.seen.add(podState(p.GetUid(), p.GetIps()[0]), now)
		}
	}
	return nil
}

// podState names a pod together with the address that its status has.
func podState(uid, ip string) string { return uid + "@" + ip }

// bearer is a token that each call carries.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }
