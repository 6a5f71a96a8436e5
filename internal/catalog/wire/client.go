package wire

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/grpctls"
)

var (
	errDial      = errors.New("the gateway cannot be reached")
	errHandshake = errors.New("the TLS handshake failed")
	// errUnanswered: the connection ended, or nothing came in time, before an answer.
	errUnanswered = errors.New("the TLS handshake was not answered")
	// errTurnedAway: what answers ends the handshake with an alert, as gateways do.
	errTurnedAway = errors.New("the gateway rejected the connection")
	errBroken     = errors.New("the connection broke")
	errReopened   = errors.New("the stream is reopened")
)

// ClientOptions tune a Client. The zero value works.
type ClientOptions struct {
	Timing
	// BackoffMin and BackoffMax bound the waits between attempts, which are drawn with
	// full jitter; 0 means 200 ms and 10 s.
	BackoffMin, BackoffMax time.Duration
	// Penalty is the wait after the peer violated the protocol or a bound. It is drawn
	// between half of Penalty and all of it; 0 means 5 min.
	Penalty time.Duration
	// Guard wraps connections before their handshake; nil means none.
	Guard grpctls.Guard
	// Log may be nil.
	Log *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// Client keeps a stream to a peer's controllers open through one address of the peer's
// gateways. Make it with Subscriber.NewClient. It does nothing until Run.
type Client struct {
	subscriber *Subscriber
	sink       Sink
	dial       func(context.Context) (net.Conn, error)
	tls        func(hint ReplicaID) (*tls.Config, error)
	verify     func(tls.ConnectionState) error
	o          ClientOptions
	deliver    sync.Mutex // held while sink is called

	mu        sync.Mutex // guards all below
	hint      ReplicaID  // for the next attempt only
	reopening bool
	cancel    context.CancelCauseFunc // of the current attempt; nil: there is none
}

// NewClient returns a Client for one address. All arguments are required. dial opens a
// plain connection to the address. tlsConfig is called for each handshake, so that each
// connection has a sealed label of its own; hint is the replica that the label should ask
// for, zero for any. The configuration must verify the peer. verify is called again with
// each heartbeat: it returns an error, which ends the stream, once the peer's certificate
// has expired or no longer matches the Link.
func (s *Subscriber) NewClient(sink Sink, dial func(context.Context) (net.Conn, error),
	tlsConfig func(hint ReplicaID) (*tls.Config, error), verify func(tls.ConnectionState) error,
	o ClientOptions) *Client {
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
	return &Client{subscriber: s, sink: sink, dial: dial, tls: tlsConfig, verify: verify, o: o}
}

// Reopen ends the stream in good order and dials again at once, asking for replica; zero
// asks for any. The copy of the catalog stays, and Disconnected is not called unless the
// new attempt fails. Without a stream, only the next attempt asks for replica.
func (c *Client) Reopen(replica ReplicaID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hint = replica
	if c.cancel != nil {
		c.reopening = true
		c.cancel(errReopened)
	}
}

// begin returns the context and the hint of one attempt.
func (c *Client) begin(ctx context.Context) (context.Context, context.CancelCauseFunc, ReplicaID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, c.cancel = context.WithCancelCause(ctx)
	hint := c.hint
	c.hint = ReplicaID{}
	return ctx, c.cancel, hint
}

// isReopening reports whether Reopen ended the attempt.
func (c *Client) isReopening() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reopening
}

// finish ends an attempt. It reports whether Reopen did.
func (c *Client) finish() (reopening bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reopening = c.reopening
	c.reopening, c.cancel = false, nil
	return reopening
}

// Run keeps a stream open until ctx ends, and then returns nil. It must run once.
func (c *Client) Run(ctx context.Context) error {
	waits := backoff.Backoff{Min: c.o.BackoffMin, Max: c.o.BackoffMax}
	for logged := false; ; {
		start := time.Now()
		greeted, err := c.sync(ctx)
		if c.finish() && ctx.Err() == nil {
			c.o.Metrics.ended.WithLabelValues(outbound, endedReopened).Inc()
			continue
		}
		c.subscriber.failed(c)
		why := reason(err)
		c.o.Metrics.ended.WithLabelValues(outbound, why).Inc()
		c.disconnected(err)
		if ctx.Err() != nil {
			return nil
		}
		if greeted {
			logged = false
		}
		if greeted && time.Since(start) > c.o.BackoffMax {
			waits.Reset()
		}
		// An outage is logged once.
		level := slog.LevelInfo
		if logged {
			level = slog.LevelDebug
		}
		logged = true
		c.o.Log.Log(ctx, level, "catalog stream lost", "link", c.subscriber.link, "reason", why, "error", err)
		wait := waits.Next()
		if why == endedProtocol || why == endedLimit {
			wait = c.o.Penalty/2 + rand.N(c.o.Penalty/2+1)
		}
		if !backoff.Sleep(ctx, wait) {
			return nil
		}
	}
}

func (c *Client) disconnected(err error) {
	c.deliver.Lock()
	defer c.deliver.Unlock()
	c.sink.Disconnected(c.subscriber.link, err)
}

// sync keeps one stream open for as long as it works. It returns whether the peer said
// hello, and why the stream ended: nil if the peer ended it in good order.
func (c *Client) sync(ctx context.Context) (greeted bool, err error) {
	ctx, cancel, hint := c.begin(ctx)
	defer cancel(nil)
	if c.subscriber.board.Hello() == nil {
		return false, errNotReady
	}
	var failed failure
	conn, err := c.connection(hint, &failed)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel(nil)
	// Until the stream is open, nothing else bounds the attempt.
	connecting := time.AfterFunc(connectTimeout, func() { cancel(context.DeadlineExceeded) })
	transport, err := NewCatalogClient(conn).Sync(ctx)
	if !connecting.Stop() {
		err = fmt.Errorf("no stream within %v: %w", connectTimeout,
			cmp.Or(failed.get(), context.DeadlineExceeded))
	}
	if err != nil {
		return false, cmp.Or(failed.get(), err)
	}
	c.o.Metrics.open.WithLabelValues(outbound).Inc()
	defer c.o.Metrics.open.WithLabelValues(outbound).Dec()
	s, err := c.stream(transport, func() { cancel(nil) })
	if err != nil {
		return false, err
	}
	err = s.run(ctx, receiver.Go)
	c.subscriber.over(s, c.isReopening())
	return s.greeting != nil, broken(err, s.greeting != nil)
}

// stream returns the stream on transport, ready to run.
func (c *Client) stream(transport Catalog_SyncClient, abort func()) (*clientStream, error) {
	state, ok := grpctls.State(transport.Context())
	if !ok {
		return nil, fmt.Errorf("%w: the connection proves nothing", errHandshake)
	}
	sub := c.subscriber
	cs := &clientStream{client: c}
	cs.stream = &stream{
		protocolState: &protocolState{},
		transport:     transport,
		link:          sub.link,
		board:         sub.board,
		budget:        sub.budget,
		timing:        c.o.Timing,
		verify: func() error {
			if err := c.verify(state); err != nil {
				return fmt.Errorf("%w: %w", ErrNotTrusted, err)
			}
			return nil
		},
		abort:       abort,
		wakeup:      make(chan struct{}, 1),
		sink:        c.sink,
		deliver:     &c.deliver,
		onHello:     func() { sub.greeted(cs) },
		onFreshness: func(f Freshness) { sub.observe(cs, f) },
		onUpdate:    func(complete bool) { sub.received(cs, complete) },
	}
	return cs, nil
}

// broken distinguishes a connection that was lost from one that never worked, which gRPC
// reports alike. In TLS 1.3 a server rejects a client after the client's handshake is
// complete, so a stream that is cut before the peer's Hello counts as a failed handshake.
func broken(err error, greeted bool) error {
	switch {
	case status.Code(err) != codes.Unavailable:
		return err
	case greeted:
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	return fmt.Errorf("%w: %w", errHandshake, err)
}

// isUnanswered reports whether a handshake failed because its connection did, and not
// because of what the other side said.
func isUnanswered(err error) bool {
	ends := []error{
		io.EOF,
		io.ErrUnexpectedEOF,
		syscall.ECONNRESET,
		syscall.EPIPE,
		os.ErrDeadlineExceeded,
		context.DeadlineExceeded,
	}
	return slices.ContainsFunc(ends, func(end error) bool { return errors.Is(err, end) })
}

// connectTimeout bounds an attempt until its stream is open.
const connectTimeout = 2 * grpctls.HandshakeTimeout

// failure keeps the error of a connection attempt, because gRPC turns it into text.
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

// connection prepares a connection. Its first call dials.
func (c *Client) connection(hint ReplicaID, failed *failure) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := c.dial(ctx)
		if err != nil {
			failed.set(fmt.Errorf("%w: %w", errDial, err))
		}
		return conn, err
	}
	handshakeFailed := func(err error) {
		why := errHandshake
		// crypto/tls reports an alert of the other side as a "remote error".
		if alert := (*net.OpError)(nil); errors.As(err, &alert) && alert.Op == "remote error" {
			why = errTurnedAway
		} else if isUnanswered(err) {
			why = errUnanswered
		}
		failed.set(fmt.Errorf("%w: %w", why, err))
	}
	return grpc.NewClient("passthrough:///"+c.subscriber.link,
		grpc.WithTransportCredentials(grpctls.New(grpctls.Config{
			ALPN:   ALPN,
			TLS:    func() (*tls.Config, error) { return c.tls(hint) },
			Guard:  c.o.Guard,
			Failed: handshakeFailed,
		})),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithIdleTimeout(0),
		grpc.WithMaxHeaderListSize(8<<10),
		grpc.WithReadBufferSize(16<<10), // a TLS record
		grpc.WithStaticStreamWindowSize(2*maxMessage),
		grpc.WithStaticConnWindowSize(2*maxMessage),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
}
