//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A streamer is a gRPC server with a method of each kind.
type streamer struct {
	// ended receives how the context of each call of Wait ended, and how much time it
	// had.
	ended chan waited
	// connections counts those that the server has accepted.
	connections atomic.Int64
}

type waited struct {
	err  error
	left time.Duration // until the deadline; 0: there was none
}

func receive(s grpc.ServerStream) (string, error) {
	var m wrapperspb.StringValue
	err := s.RecvMsg(&m)
	return m.GetValue(), err
}

// streamerService is the service shop.Streams. Its messages are
// google.protobuf.StringValue.
var streamerService = grpc.ServiceDesc{
	ServiceName: "shop.Streams",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var m wrapperspb.StringValue
		if err := decode(&m); err != nil {
			return nil, err
		}
		if d, err := time.ParseDuration(m.GetValue()); err == nil {
			sleep(ctx, d)
		}
		switch m.GetValue() {
		case "broken":
			return nil, status.Error(codes.Internal, "broken")
		case "fail":
			grpc.SetTrailer(ctx, metadata.Pairs("why", "on purpose"))
			s, _ := status.New(codes.ResourceExhausted, "no more").WithDetails(wrapperspb.String("a detail"))
			return nil, s.Err()
		}
		return &m, nil
	}}},
	Streams: []grpc.StreamDesc{
		// Down answers one message with that many numbers.
		{StreamName: "Down", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			text, err := receive(s)
			if err != nil {
				return err
			}
			var n int
			fmt.Sscan(text, &n)
			s.SetHeader(metadata.Pairs("n", text))
			for i := range n {
				if err := s.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
					return err
				}
			}
			s.SetTrailer(metadata.Pairs("sent", text))
			return nil
		}},
		// Up answers all messages with their number and length.
		{StreamName: "Up", ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			n, length := 0, 0
			for {
				text, err := receive(s)
				if errors.Is(err, io.EOF) {
					return s.SendMsg(wrapperspb.String(fmt.Sprintf("%d messages, %d bytes", n, length)))
				} else if err != nil {
					return err
				}
				n, length = n+1, length+len(text)
			}
		}},
		// Both repeats each message.
		{StreamName: "Both", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			for {
				text, err := receive(s)
				if errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.SendMsg(wrapperspb.String(text)); err != nil {
					return err
				}
			}
		}},
		// Wait sends one message and then waits until the context of the call ends.
		{StreamName: "Wait", ServerStreams: true, Handler: func(srv any, s grpc.ServerStream) error {
			if _, err := receive(s); err != nil {
				return err
			}
			var w waited
			if at, ok := s.Context().Deadline(); ok {
				w.left = time.Until(at)
			}
			if err := s.SendMsg(wrapperspb.String("waiting")); err != nil {
				return err
			}
			<-s.Context().Done()
			w.err = s.Context().Err()
			srv.(*streamer).ended <- w
			return w.err
		}},
	},
}

// A countingListener counts the connections that it accepts.
type countingListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

// serveStreamer serves a streamer in the network of a pod of east until the test ends.
func serveStreamer(t *testing.T, pod string, port int, o ...grpc.ServerOption) *streamer {
	t.Helper()
	s := &streamer{ended: make(chan waited, 16)}
	listenIn(t, pod, port, func(ln net.Listener) {
		server := grpc.NewServer(o...)
		server.RegisterService(&streamerService, s)
		served := make(chan error, 1)
		go func() { served <- server.Serve(countingListener{ln, &s.connections}) }()
		t.Cleanup(func() { server.Stop(); <-served })
	})
	return s
}

// A streamsClient opens calls of shop.Streams over one kept connection.
type streamsClient struct {
	*grpc.ClientConn
	dials atomic.Int32
}

func newStreamsClient(t *testing.T, ns, address string) *streamsClient {
	t.Helper()
	c := new(streamsClient)
	dialer := func(ctx context.Context, address string) (net.Conn, error) {
		c.dials.Add(1)
		return dial(ctx, ns, address)
	}
	c.ClientConn = have(grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(dialer),
		grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *streamsClient) unary(ctx context.Context, text string, o ...grpc.CallOption) (string, error) {
	var m wrapperspb.StringValue
	err := c.Invoke(ctx, "/shop.Streams/Unary", wrapperspb.String(text), &m, o...)
	return m.GetValue(), err
}

// open begins a call and sends its first messages.
func (c *streamsClient) open(ctx context.Context, method string, texts ...string) (grpc.ClientStream, error) {
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/shop.Streams/"+method)
	for _, text := range texts {
		if err == nil {
			err = s.SendMsg(wrapperspb.String(text))
		}
	}
	return s, err
}

func next(s grpc.ClientStream) (string, error) {
	var m wrapperspb.StringValue
	err := s.RecvMsg(&m)
	return m.GetValue(), err
}

// TestStreamsOfGRPC: all four kinds of calls work as without Causeway, with their metadata,
// statuses, deadlines and cancellations. An application that ends its connections by
// GOAWAY makes no call fail.
func TestStreamsOfGRPC(t *testing.T) {
	openDesk(t)
	app := serveStreamer(t, "desk", 8081)
	// This application ends each connection after a second.
	aging := serveStreamer(t, "desk", 8443, grpc.KeepaliveParams(keepalive.ServerParameters{
		MaxConnectionAge:      time.Second,
		MaxConnectionAgeGrace: 20 * time.Second,
	}))
	ns := netOf(t, west, "client")
	c := newStreamsClient(t, ns, mirrorOf(t, "desk-east", 8081))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	within(t, soon, "the application answers", func() error { _, err := c.unary(ctx, "hello"); return err })
	dialed := c.dials.Load()

	t.Run("Unary", func(t *testing.T) {
		big := strings.Repeat("x", 3<<20)
		if got, err := c.unary(ctx, big); err != nil || got != big {
			t.Errorf("the answer has %d bytes, %v; want %d", len(got), err, len(big))
		}
		var trailer metadata.MD
		_, err := c.unary(ctx, "fail", grpc.Trailer(&trailer))
		s := status.Convert(err)
		if s.Code() != codes.ResourceExhausted || s.Message() != "no more" || len(s.Details()) != 1 || len(trailer["why"]) != 1 {
			t.Errorf("the error is %v with the details %v, the trailer %v", err, s.Details(), trailer)
		}
	})
	t.Run("ServerStream", func(t *testing.T) {
		const n = 5000
		s := have(c.open(ctx, "Down", fmt.Sprint(n)))(t)
		must(t, s.CloseSend())
		for i := range n {
			if got, err := next(s); err != nil || got != fmt.Sprint(i) {
				t.Fatalf("message %d is %q, %v", i, got, err)
			}
		}
		if _, err := next(s); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ends with %v", err)
		}
		header, err := s.Header()
		if err != nil || len(header["n"]) != 1 || len(s.Trailer()["sent"]) != 1 {
			t.Errorf("the header is %v, %v, the trailer %v", header, err, s.Trailer())
		}
	})
	t.Run("ClientStream", func(t *testing.T) {
		const n = 5000
		s := have(c.open(ctx, "Up"))(t)
		for range n {
			must(t, s.SendMsg(wrapperspb.String(strings.Repeat("y", 100))))
		}
		must(t, s.CloseSend())
		if got, err := next(s); err != nil || got != fmt.Sprintf("%d messages, %d bytes", n, 100*n) {
			t.Errorf("the answer is %q, %v", got, err)
		}
	})
	t.Run("BothWays", func(t *testing.T) {
		s := have(c.open(ctx, "Both"))(t)
		for i := range 500 { // each message waits for the one before
			sent := strings.Repeat("z", i*20)
			must(t, s.SendMsg(wrapperspb.String(sent)))
			if got, err := next(s); err != nil || got != sent {
				t.Fatalf("message %d has %d bytes, %v; want %d", i, len(got), err, len(sent))
			}
		}
		must(t, s.CloseSend())
		if _, err := next(s); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ends with %v", err)
		}
	})
	t.Run("Deadline", func(t *testing.T) {
		const limit = time.Second
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		start := time.Now()
		s := have(c.open(ctx, "Wait", "please"))(t)
		must(t, s.CloseSend())
		have(next(s))(t)
		_, err := next(s)
		if took := time.Since(start); status.Code(err) != codes.DeadlineExceeded || took < limit-50*time.Millisecond || took > 3*limit {
			t.Errorf("the call ends with %v after %v", err, took)
		}
		w := wait(t, app.ended)
		if w.err == nil || w.left <= 0 || w.left > limit {
			t.Errorf("the application had %v, and its call ended with %v", w.left, w.err)
		}
	})
	t.Run("Cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s := have(c.open(ctx, "Wait", "please"))(t)
		must(t, s.CloseSend())
		have(next(s))(t)
		start := time.Now()
		cancel()
		w := wait(t, app.ended)
		if !errors.Is(w.err, context.Canceled) || time.Since(start) > 2*time.Second {
			t.Errorf("the application's call ended with %v after %v", w.err, time.Since(start))
		}
	})
	if n := c.dials.Load(); n != dialed {
		t.Errorf("%d connections were opened, want %d", n, dialed)
	}
	t.Run("MaxConnectionAge", func(t *testing.T) {
		const limit = 5 * time.Second
		c := newStreamsClient(t, ns, mirrorOf(t, "desk-east", 8443))
		within(t, soon, "the application answers", func() error { _, err := c.unary(ctx, "hello"); return err })
		long := have(c.open(ctx, "Both", "first"))(t)
		have(next(long))(t)
		start, calls := time.Now(), 0
		for ; time.Since(start) < limit; calls++ {
			if got, err := c.unary(ctx, "hello"); err != nil || got != "hello" {
				t.Fatalf("call %d, %.2f s after the start: %q, %v", calls, time.Since(start).Seconds(), got, err)
			}
			sleep(ctx, 2*time.Millisecond)
		}
		must(t, long.SendMsg(wrapperspb.String("last")))
		must(t, long.CloseSend())
		if got, err := next(long); err != nil || got != "last" {
			t.Errorf("the stream that was open meanwhile answers %q, %v", got, err)
		}
		if _, err := next(long); !errors.Is(err, io.EOF) {
			t.Errorf("it ends with %v", err)
		}
		n := aging.connections.Load()
		t.Logf("%d calls in %v, over %d connections to the application and %d of the client", calls, limit, n, c.dials.Load())
		if n < 3 {
			t.Errorf("the application accepted %d connections only: the test proves nothing", n)
		}
	})
}

// wait returns the next value of a channel. It fails the test after 5 s.
func wait[T any](t *testing.T, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(5 * time.Second):
		t.Error("nothing came in 5 s")
	}
	return v
}
