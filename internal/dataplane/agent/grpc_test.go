package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// grpcApp is an application of gRPC. Its methods return the payload that they receive.
type grpcApp struct {
	testpb.UnimplementedTestServiceServer
	mu      sync.Mutex // guards callers
	callers map[string]int
}

// record notes the SPIFFE ID that a call names.
func (s *grpcApp) record(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.callers == nil {
		s.callers = map[string]int{}
	}
	s.callers[fmt.Sprint(md.Get(callerField))]++
}

func (s *grpcApp) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	s.record(ctx)
	grpc.SetTrailer(ctx, metadata.Pairs("sum", fmt.Sprint(len(in.GetPayload().GetBody()))))
	if st := in.GetResponseStatus(); st.GetCode() != 0 {
		return nil, status.Error(codes.Code(st.Code), st.Message)
	}
	return &testpb.SimpleResponse{Payload: in.Payload}, nil
}

func (s *grpcApp) StreamingOutputCall(in *testpb.StreamingOutputCallRequest, out testpb.TestService_StreamingOutputCallServer) error {
	s.record(out.Context())
	for range in.ResponseParameters {
		if err := out.Send(&testpb.StreamingOutputCallResponse{Payload: in.Payload}); err != nil {
			return err
		}
	}
	return nil
}

func (s *grpcApp) StreamingInputCall(in testpb.TestService_StreamingInputCallServer) error {
	s.record(in.Context())
	total := 0
	for {
		m, err := in.Recv()
		if err == io.EOF {
			return in.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: int32(total)})
		}
		if err != nil {
			return err
		}
		total += len(m.GetPayload().GetBody())
	}
}

func (s *grpcApp) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	s.record(stream.Context())
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: m.Payload}); err != nil {
			return err
		}
	}
}

// serveGRPC returns a function for newHarness that serves each connection.
func serveGRPC(app testpb.TestServiceServer, options ...grpc.ServerOption) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		s := grpc.NewServer(options...)
		testpb.RegisterTestServiceServer(s, app)
		ln := &oneConn{closed: make(chan struct{})}
		ln.conn = &closeNotifier{Conn: c, closed: ln.end}
		s.Serve(ln)
		s.Stop()
	}
}

// closeNotifier calls closed when the connection is closed.
type closeNotifier struct {
	net.Conn
	closed func()
}

func (c *closeNotifier) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

// grpcClient returns a client of bar, whose connections come from a pod.
func (w *harness) grpcClient(pod string) testpb.TestServiceClient {
	w.Helper()
	w.learnClientFirst()
	cc := must(grpc.NewClient("passthrough:///bar-east", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return w.tryDial(pod) }),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry()))(w.TB)
	w.Cleanup(func() { cc.Close() })
	return testpb.NewTestServiceClient(cc)
}

// TestGRPC: unary calls and the three kinds of streams pass with their trailers and
// statuses, and the application learns each caller's SPIFFE ID.
func TestGRPC(t *testing.T) {
	app := &grpcApp{}
	w := newHarness(t, serveGRPC(app))
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().ForwardIdentity = wire.ForwardIdentity_HEADER })
	c := w.grpcClient(alice)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), callerField, "spiffe://west-1/ns/shop/sa/forged"), testTimeout)
	defer cancel()
	body := make([]byte, 300_000)
	rand.Read(body)
	payload := &testpb.Payload{Body: body}

	var trailer metadata.MD
	answer, err := c.UnaryCall(ctx, &testpb.SimpleRequest{Payload: payload}, grpc.Trailer(&trailer))
	if err != nil || !bytes.Equal(answer.Payload.Body, body) || fmt.Sprint(trailer["sum"]) != "[300000]" {
		t.Errorf("unary: %v, trailers %v", err, trailer)
	}
	_, err = c.UnaryCall(ctx, &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(codes.FailedPrecondition), Message: "not now"}})
	if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "not now" {
		t.Errorf("status: %v", err)
	}

	down, err := c.StreamingOutputCall(ctx, &testpb.StreamingOutputCallRequest{Payload: payload, ResponseParameters: make([]*testpb.ResponseParameters, 10)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if m, err := down.Recv(); err != nil || !bytes.Equal(m.Payload.Body, body) {
			t.Fatalf("server stream, message %d: %v", i, err)
		}
	}
	if _, err := down.Recv(); err != io.EOF {
		t.Errorf("server stream ends with %v", err)
	}

	up, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if err := up.Send(&testpb.StreamingInputCallRequest{Payload: payload}); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := up.CloseAndRecv(); err != nil || sum.AggregatedPayloadSize != 3_000_000 {
		t.Errorf("client stream: %v, %v", sum, err)
	}

	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if err := both.Send(&testpb.StreamingOutputCallRequest{Payload: payload}); err != nil {
			t.Fatal(err)
		}
		if m, err := both.Recv(); err != nil || !bytes.Equal(m.Payload.Body, body) {
			t.Fatalf("bidirectional stream, message %d: %v", i, err)
		}
	}
	both.CloseSend()
	if _, err := both.Recv(); err != io.EOF {
		t.Errorf("bidirectional stream ends with %v", err)
	}

	short, end := context.WithTimeout(ctx, 50*time.Millisecond)
	defer end()
	waits, err := c.FullDuplexCall(short)
	if err == nil {
		_, err = waits.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}

	if _, err := w.grpcClient(bob).UnaryCall(ctx, &testpb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
	app.mu.Lock()
	defer app.mu.Unlock()
	if len(app.callers) != 2 || app.callers["[spiffe://west-1/ns/shop/sa/alice]"] < 5 || app.callers["[spiffe://west-1/ns/shop/sa/bob]"] != 1 {
		t.Errorf("the application saw %v", app.callers)
	}
}

// TestGRPCGoAway: an application that ends its connections by GOAWAY again and again fails
// no call, and its open streams go on.
func TestGRPCGoAway(t *testing.T) {
	w := newHarness(t, serveGRPC(&grpcApp{}, grpc.KeepaliveParams(keepalive.ServerParameters{
		MaxConnectionAge: 50 * time.Millisecond, MaxConnectionAgeGrace: time.Minute})))
	c := w.grpcClient(alice)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() error {
		if err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte("x")}}); err != nil {
			return err
		}
		_, err := stream.Recv()
		return err
	}
	if err := exchange(); err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	failed := make(chan error, 8)
	for range cap(failed) {
		calls.Go(func() {
			for w.dials.Load() < 6 {
				if _, err := c.UnaryCall(ctx, &testpb.SimpleRequest{Payload: &testpb.Payload{Body: []byte("x")}}); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	calls.Wait()
	close(failed)
	for err := range failed {
		t.Errorf("a call failed: %v", err)
	}
	if err := exchange(); err != nil {
		t.Errorf("the open stream: %v", err)
	}
	stream.CloseSend()
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
}

// unavailableApp is a grpcApp whose first calls fail. It sends headers before if headers is
// set.
type unavailableApp struct {
	grpcApp
	calls, failing int64
	headers        bool
}

func (s *unavailableApp) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if n := atomic.AddInt64(&s.calls, 1); n > s.failing {
		return s.grpcApp.UnaryCall(ctx, in)
	}
	if s.headers {
		grpc.SendHeader(ctx, metadata.Pairs("x", "y"))
	}
	return nil, status.Error(codes.Unavailable, "not now")
}

// TestRetryOnUnavailable: with retry-on: unavailable, the agent sends a call again whose
// response is UNAVAILABLE and Trailers-Only. Response headers commit a call.
func TestRetryOnUnavailable(t *testing.T) {
	for name, tc := range map[string]struct {
		retryOn trafficsettings.RetryOn
		headers bool
		failing int64
		calls   int64 // that the application receives
		want    codes.Code
	}{
		"Trailers-Only":   {trafficsettings.RetryUnavailable, false, 2, 3, codes.OK},
		"too often":       {trafficsettings.RetryUnavailable, false, 9, 3, codes.Unavailable},
		"headers before":  {trafficsettings.RetryUnavailable, true, 1, 1, codes.Unavailable},
		"another setting": {trafficsettings.Retry5xx, false, 1, 1, codes.Unavailable},
		"by default":      {0, false, 1, 1, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			app := &unavailableApp{failing: tc.failing, headers: tc.headers}
			w := newHarness(t, serveGRPC(app))
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				backendOf(r).Settings = &wire.TrafficSettings{RetryOn: uint32(tc.retryOn)}
			})
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			_, err := w.grpcClient(alice).UnaryCall(ctx, &testpb.SimpleRequest{})
			if n := atomic.LoadInt64(&app.calls); status.Code(err) != tc.want || n != tc.calls {
				t.Errorf("%v after %d calls of the application, want %v after %d", err, n, tc.want, tc.calls)
			}
		})
	}
}
