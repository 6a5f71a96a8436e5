package mux

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// relay is a Handle that sends each stream on through another connection.
func relay(up *Conn) func(*Stream) {
	return func(down *Stream) {
		var h message.Head
		end, err := down.ReadHead(&h)
		if err != nil {
			return
		}
		s, err := up.Open(&h, nil, end)
		if err != nil {
			down.Reset(http2.ErrCodeRefusedStream)
			return
		}
		defer s.Reset(http2.ErrCodeCancel)
		down.OnReset(func(error) { s.Reset(http2.ErrCodeCancel) })
		var wg sync.WaitGroup
		defer wg.Wait()
		if !end {
			wg.Go(func() { relayBody(s, down) })
		}
		for h.Status = 0; h.Status < 200; {
			if end, err = s.ReadHead(&h); err == nil {
				err = down.WriteHead(&h, nil, end)
			}
			if err != nil {
				break
			}
		}
		if err == nil && !end {
			err = relayBody(down, s)
		}
		var reset *ResetError
		if errors.As(err, &reset) {
			down.Reset(reset.Code)
		} else {
			down.Reset(http2.ErrCodeNo)
		}
	}
}

// relayBody copies a body and its trailers.
func relayBody(dst, src *Stream) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n], false); err != nil {
				return err
			}
		}
		if err == io.EOF {
			var trailers message.Head
			if src.Trailers(&trailers) {
				return dst.WriteTrailers(&trailers)
			}
			_, err = dst.Write(nil, true)
			return err
		}
		if err != nil {
			return err
		}
	}
}

// testTLS returns the configurations of a server and a client that trusts it.
func testTLS(t testing.TB) (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"far.test"},
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return server, &tls.Config{RootCAs: roots, ServerName: "far.test"}
}

// startRelay returns the address of a near end. What it accepts crosses a TLS session to
// a far end, which dials addr.
func startRelay(t testing.TB, addr string) string {
	b := &budget{limit: 64 << 20}
	serverTLS, clientTLS := testTLS(t)
	app := dialMux(t, addr, Config{Windows: b})
	far := listen(t, func(nc net.Conn) {
		New(tls.Server(nc, serverTLS), Config{Handle: relay(app), Windows: b}).Run(context.Background())
	})
	nc, err := net.Dial("tcp", far)
	if err != nil {
		t.Fatal(err)
	}
	session := New(tls.Client(nc, clientTLS), Config{Client: true, Windows: b})
	var wg sync.WaitGroup
	wg.Go(func() { session.Run(context.Background()) })
	t.Cleanup(func() {
		nc.Close()
		wg.Wait()
	})
	return listen(t, func(nc net.Conn) {
		New(nc, Config{Handle: relay(session), Windows: b}).Run(context.Background())
	})
}

// grpcService echoes sizes and metadata.
type grpcService struct {
	testpb.UnimplementedTestServiceServer
}

func payload(n int) *testpb.Payload { return &testpb.Payload{Body: bytes.Repeat([]byte("g"), n)} }

func (grpcService) UnaryCall(ctx context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if s := r.GetResponseStatus(); s.GetCode() != 0 {
		return nil, status.Error(codes.Code(s.Code), s.Message)
	}
	grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "1"))
	return &testpb.SimpleResponse{Payload: payload(int(r.ResponseSize))}, nil
}

func (grpcService) StreamingOutputCall(
	r *testpb.StreamingOutputCallRequest,
	out testpb.TestService_StreamingOutputCallServer,
) error {
	for _, p := range r.ResponseParameters {
		if err := out.Send(&testpb.StreamingOutputCallResponse{Payload: payload(int(p.Size))}); err != nil {
			return err
		}
	}
	return nil
}

func (grpcService) StreamingInputCall(in testpb.TestService_StreamingInputCallServer) error {
	total := 0
	for {
		r, err := in.Recv()
		if err == io.EOF {
			return in.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: int32(total)})
		}
		if err != nil {
			return err
		}
		total += len(r.Payload.Body)
	}
}

func (grpcService) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error {
	for {
		r, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		err = s.Send(&testpb.StreamingOutputCallResponse{Payload: payload(len(r.Payload.Body))})
		if err != nil {
			return err
		}
	}
}

// TestRelaysGRPC sends the four kinds of calls through two relays and a TLS session.
func TestRelaysGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, grpcService{})
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	defer wg.Wait()
	defer server.Stop()
	addr := startRelay(t, l.Addr().String())
	plain := grpc.WithTransportCredentials(insecure.NewCredentials())
	cc, err := grpc.NewClient("passthrough:///"+addr, plain)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	client := testpb.NewTestServiceClient(cc)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	t.Run("unary", func(t *testing.T) {
		for i := range 60 {
			var trailer metadata.MD
			r, err := client.UnaryCall(ctx, &testpb.SimpleRequest{
				ResponseSize: int32(i * 1000),
				Payload:      payload(i * 500),
			}, grpc.Trailer(&trailer))
			if err != nil || len(r.Payload.GetBody()) != i*1000 || len(trailer["x-trailer"]) != 1 {
				t.Fatalf("call %d: %d bytes, %v, %v", i, len(r.GetPayload().GetBody()), trailer, err)
			}
		}
	})
	t.Run("unary, concurrent", func(t *testing.T) {
		var calls sync.WaitGroup
		for range 50 {
			calls.Go(func() {
				for range 20 {
					r, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 1000})
					if err != nil || len(r.Payload.Body) != 1000 {
						t.Error(err)
						return
					}
				}
			})
		}
		calls.Wait()
	})
	t.Run("status", func(t *testing.T) {
		_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{
			ResponseStatus: &testpb.EchoStatus{Code: int32(codes.DataLoss), Message: "lost"},
		})
		if s := status.Convert(err); s.Code() != codes.DataLoss || s.Message() != "lost" {
			t.Errorf("status %v", s)
		}
	})
	t.Run("unimplemented", func(t *testing.T) {
		_, err := client.EmptyCall(ctx, &testpb.Empty{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("status %v", err)
		}
	})
	t.Run("server streaming", func(t *testing.T) {
		var params []*testpb.ResponseParameters
		for i := range 100 {
			params = append(params, &testpb.ResponseParameters{Size: int32(i * 300)})
		}
		req := &testpb.StreamingOutputCallRequest{ResponseParameters: params}
		s, err := client.StreamingOutputCall(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for i := range params {
			r, err := s.Recv()
			if err != nil || len(r.Payload.Body) != i*300 {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		if _, err := s.Recv(); err != io.EOF {
			t.Errorf("end: %v", err)
		}
	})
	t.Run("client streaming", func(t *testing.T) {
		s, err := client.StreamingInputCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if err := s.Send(&testpb.StreamingInputCallRequest{Payload: payload(50000)}); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := s.CloseAndRecv(); err != nil || r.AggregatedPayloadSize != 5000000 {
			t.Errorf("%v, %v", r, err)
		}
	})
	t.Run("bidirectional", func(t *testing.T) {
		s, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			if err := s.Send(&testpb.StreamingOutputCallRequest{Payload: payload(i * 100)}); err != nil {
				t.Fatal(err)
			}
			if r, err := s.Recv(); err != nil || len(r.Payload.GetBody()) != i*100 {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		s.CloseSend()
		if _, err := s.Recv(); err != io.EOF {
			t.Errorf("end: %v", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		s, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := s.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("end: %v", err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		s, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("end: %v", err)
		}
	})
}
