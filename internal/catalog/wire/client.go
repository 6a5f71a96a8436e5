package wire

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/grpctls"
)

var (
	errDial      = errors.New("the gateway cannot be reached")
	errHandshake = errors.New("the peer was not believed, or does not believe us")
	// errTurnedAway: what answers at the address ends the handshake by an alert, as gateways do.
	errTurnedAway = errors.New("the gateway turns us away")
	errBroken     = errors.New("the connection broke")
)

// ClientOptions tune a Client. The zero value works.
type ClientOptions struct {
	Timing
	// BackoffMin and BackoffMax bound the waits between attempts, which are drawn
	// with full jitter; 0 means 200 ms and 10 s.
	BackoffMin, BackoffMax time.Duration
	// Penalty is the wait after a peer broke the protocol or a bound, between half of
	// it and all of it; 0 means 5 min.
	Penalty time.Duration
	// Guard is put around connections before their handshake; nil means none.
	Guard grpctls.Guard
	// Log may be nil.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Client keeps a stream to a peer's controllers through one address of its
// gateway, and subscribes to its catalog. Make it with NewClient; nothing happens
// until Run.
type Client struct {
	link  string
	board *Board
	sink  Sink
	dial  func(context.Context) (net.Conn, error)
	tls   func() (*tls.Config, error)
	o     ClientOptions
}

// NewClient returns a Client for a Link. board says who we are. dial opens a plain
// connection to the gateway's address; tlsConfig is asked at each handshake, so that
// every connection has a label of its own in its server name, and verifies the peer.
func NewClient(link string, board *Board, sink Sink, dial func(context.Context) (net.Conn, error),
	tlsConfig func() (*tls.Config, error), o ClientOptions) *Client {
	o.Timing = o.Timing.orDefaults()
	o.BackoffMin = cmp.Or(o.BackoffMin, 200*time.Millisecond)
	o.BackoffMax = cmp.Or(o.BackoffMax, 10*time.Second)
	o.Penalty = cmp.Or(o.Penalty, 5*time.Minute)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &Client{link: link, board: board, sink: sink, dial: dial, tls: tlsConfig, o: o}
}

// Run keeps a stream open until ctx ends, and then returns nil. It must run once.
func (c *Client) Run(ctx context.Context) error {
	waits := backoff.Backoff{Min: c.o.BackoffMin, Max: c.o.BackoffMax}
	for told := false; ; {
		start := time.Now()
		greeted, err := c.sync(ctx)
		why := reason(err)
		c.o.Metrics.ended.WithLabelValues(outbound, why).Inc()
		c.sink.Disconnected(c.link, err)
		if ctx.Err() != nil {
			return nil
		}
		if greeted {
			told = false
		}
		if greeted && time.Since(start) > c.o.BackoffMax {
			waits.Reset()
		}
		// An outage is told once.
		level := slog.LevelInfo
		if told {
			level = slog.LevelDebug
		}
		told = true
		c.o.Log.Log(ctx, level, "catalog stream lost", "link", c.link, "reason", why, "error", err)
		wait := waits.Next()
		if why == endedProtocol || why == endedLimit {
			wait = c.o.Penalty/2 + rand.N(c.o.Penalty/2+1)
		}
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

// sync holds one stream for as long as it works. It returns whether the peer said
// hello, and why the stream ended: nil if the peer ended it in good order.
func (c *Client) sync(ctx context.Context) (greeted bool, err error) {
	if _, ok, _ := c.board.hello.Read(struct{}{}); !ok {
		return false, errNotReady
	}
	var failed failure
	conn, err := c.connection(&failed)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	var listener sync.WaitGroup
	defer listener.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Until the stream is there, nothing but this bounds the attempt.
	connecting := time.AfterFunc(connectTimeout, cancel)
	stream, err := NewCatalogClient(conn).Sync(ctx)
	if !connecting.Stop() {
		err = fmt.Errorf("no stream within %v: %w", connectTimeout, cmp.Or(failed.get(), context.DeadlineExceeded))
	}
	if err != nil {
		return false, cmp.Or(failed.get(), err)
	}
	c.o.Metrics.open.WithLabelValues(outbound).Inc()
	defer c.o.Metrics.open.WithLabelValues(outbound).Dec()
	t := &talk{
		conversation: newConversation(true), stream: stream, link: c.link, board: c.board, timing: c.o.Timing,
		check: func() error { return nil },
		cut:   cancel,
		woken: make(chan struct{}, 1), sink: c.sink, deliver: new(sync.Mutex),
	}
	err = t.run(ctx, listener.Go)
	return t.greeting != nil, broken(err, t.greeting != nil)
}

// broken tells a connection that was there and is lost from one that never was, which gRPC calls alike. In TLS 1.3 a server
// judges a client when that believes to be through: who is cut off before the peer's hello was not believed.
func broken(err error, greeted bool) error {
	switch {
	case status.Code(err) != codes.Unavailable:
		return err
	case greeted:
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	return fmt.Errorf("%w: %w", errHandshake, err)
}

// connectTimeout bounds an attempt until its stream is there.
const connectTimeout = 2 * grpctls.HandshakeTimeout

// failure keeps why a connection could not be made, which gRPC makes plain text of.
type failure struct {
	mu  sync.Mutex // guards err
	err error
}

func (f *failure) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failure) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// connection prepares a connection; it is dialled by its first call.
func (c *Client) connection(failed *failure) (*grpc.ClientConn, error) {
	if c.dial == nil {
		return nil, errors.New("a catalog client needs a way to dial")
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := c.dial(ctx)
		if err != nil {
			failed.set(fmt.Errorf("%w: %w", errDial, err))
		}
		return conn, err
	}
	shake := func(err error) {
		why := errHandshake
		if alert := (*net.OpError)(nil); errors.As(err, &alert) && alert.Op == "remote error" { // as crypto/tls calls an alert
			why = errTurnedAway
		}
		failed.set(fmt.Errorf("%w: %w", why, err))
	}
	return grpc.NewClient("passthrough:///"+c.link,
		grpc.WithTransportCredentials(grpctls.New(grpctls.Config{ALPN: ALPN, TLS: c.tls, Guard: c.o.Guard, Failed: shake})),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithIdleTimeout(0),
		grpc.WithMaxHeaderListSize(8<<10),
		grpc.WithStaticStreamWindowSize(1<<20),
		grpc.WithStaticConnWindowSize(1<<20),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
}
