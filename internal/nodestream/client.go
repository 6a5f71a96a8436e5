package nodestream

import (
	"bytes"
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
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// dialTimeout bounds a dial. It is short: the controllers are near, and behind
// their Service's address there may be a replica that has just gone.
const dialTimeout = time.Second

// ErrSilent reports a stream that ended because nothing came on it.
var ErrSilent = errors.New("the controller has been silent for too long")

// ClientOptions tune a Client. The zero value works.
type ClientOptions struct {
	// Version is told to the server, for the operator's eyes.
	Version string
	// Dial opens connections; nil means TCP, with names looked up by the host.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Guard is put around connections before their handshake; nil means none.
	Guard grpctls.Guard
	// OnState is called by Run with each View in turn, and with nil when the last one
	// expired. The controller is not heard meanwhile. May be nil.
	OnState func(View)
	// Held is a View that an earlier process was told, HeldAge how old it is. State returns
	// it until there is a newer one or it expires; OnState is not called for it.
	Held    View
	HeldAge time.Duration
	// OnQuestion makes the answer to what an operator asks of the node, before ctx ends.
	// There is one at a time. May be nil: nothing is answered.
	OnQuestion func(ctx context.Context) *wire.ReportRequest
	// Silence is how long a stream may be without a message; 0 means 15 s.
	Silence time.Duration
	// Expiry is how long a View is held without a stream; 0 means 24 h.
	Expiry time.Duration
	// BackoffMin and BackoffMax bound the waits between attempts, which are drawn
	// with full jitter; 0 means 100 ms and 5 s.
	BackoffMin, BackoffMax time.Duration
	// Log may be nil.
	Log *slog.Logger
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Client keeps the View of one agent or gateway up to date, and asks for
// signatures. Make it with NewClient; nothing happens until Run. Its other methods
// are safe for concurrent use.
type Client struct {
	addresses []string
	creds     credentials.TransportCredentials
	token     token
	o         ClientOptions
	metrics   clientMetrics

	state delta.Board[struct{}, View]             // nil or absent: none
	conn  delta.Board[struct{}, *grpc.ClientConn] // present while its stream works

	mu    sync.Mutex // guards heard
	heard time.Time  // when the state was last said to be whole; at first, the start
}

// NewClient returns a Client of the controllers at addresses (host:port; at least
// one), tried in turn. tlsConfig is asked at each handshake and verifies the server;
// tokenFile holds the projected token and is read for each call.
func NewClient(addresses []string, tlsConfig func() (*tls.Config, error), tokenFile string, o ClientOptions) (*Client, error) {
	if len(addresses) == 0 {
		return nil, errors.New("a node stream client needs the address of a controller")
	}
	o.Silence = cmp.Or(o.Silence, 15*time.Second)
	o.Expiry = cmp.Or(o.Expiry, 24*time.Hour)
	o.BackoffMin = cmp.Or(o.BackoffMin, 100*time.Millisecond)
	o.BackoffMax = cmp.Or(o.BackoffMax, 5*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
		}
	}
	c := &Client{
		addresses: addresses,
		creds:     grpctls.New(grpctls.Config{ALPN: ALPN, TLS: tlsConfig, Guard: o.Guard}),
		token:     token(tokenFile),
		o:         o,
		heard:     time.Now(),
	}
	if o.Held != nil && o.HeldAge < o.Expiry {
		c.heard = c.heard.Add(-o.HeldAge)
		c.state.Post(struct{}{}, o.Held)
	}
	c.metrics = newClientMetrics(o.Registerer, func() float64 { return c.Age().Seconds() })
	return c, nil
}

// State returns the newest whole View and a channel that is closed when it is
// replaced. The View is nil before the first and after the last one expired: then
// everything has to be refused.
func (c *Client) State() (View, <-chan struct{}) {
	view, _, changed := c.state.Read(struct{}{})
	return view, changed
}

// Age returns how old the state may be: the time since the controller last said
// that it is whole, or since NewClient.
func (c *Client) Age() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.heard)
}

// Expired reports that Age has reached Expiry.
func (c *Client) Expired() bool { return c.Age() >= c.o.Expiry }

func (c *Client) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
}

// Run keeps a stream open until ctx ends, and then returns nil. It must run once.
func (c *Client) Run(ctx context.Context) error {
	waits := backoff.Backoff{Min: c.o.BackoffMin, Max: c.o.BackoffMax}
	next := rand.N(len(c.addresses))
	for told := false; ; {
		address := c.addresses[next%len(c.addresses)]
		start := time.Now()
		whole, err := c.watch(ctx, address)
		if ctx.Err() != nil {
			return nil
		}
		c.metrics.lost.WithLabelValues(lostReason(err)).Inc()
		if whole {
			told = false
		}
		if whole && time.Since(start) > c.o.BackoffMax {
			waits.Reset()
		}
		if err != nil {
			next++
			// An outage is told once, and its end by the next stream.
			level := slog.LevelDebug
			if !told {
				level = slog.LevelInfo
			}
			c.o.Log.Log(ctx, level, "node stream lost", "address", address, "error", err)
			told = true
		}
		if c.Expired() {
			c.publish(nil)
		}
		if !waits.Wait(ctx) {
			return nil
		}
	}
}

// publish makes view the state.
func (c *Client) publish(view View) {
	if old, _ := c.State(); old == nil && view == nil {
		return
	}
	c.state.Post(struct{}{}, view)
	c.metrics.resources.Set(float64(len(view)))
	if view == nil {
		c.o.Log.Info("state expired, everything is refused until a controller answers", "age", c.Age())
	}
	if c.o.OnState != nil {
		c.o.OnState(view)
	}
}

// watch holds one stream for as long as it works. It returns whether the state
// became whole with it, and nil if the server ended it in good order.
func (c *Client) watch(ctx context.Context, address string) (whole bool, err error) {
	conn, err := c.connection(address)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(c.o.Silence, func() { cancel(ErrSilent) })
	defer silence.Stop()
	stream, err := wire.NewNodeStreamClient(conn).Watch(ctx, &wire.WatchRequest{Version: c.o.Version})
	if err != nil {
		return false, streamError(ctx, err)
	}
	receiver := newReceiver()
	reports := reporter{c: c, conn: conn}
	defer func() { cancel(nil); reports.wait() }()
	for {
		silence.Reset(c.o.Silence)
		u, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		if err != nil {
			return whole, streamError(ctx, err)
		}
		silence.Stop() // what takes long from here is not the controller
		view, err := apply(receiver, u)
		if err != nil {
			return whole, err
		}
		if !u.GetComplete() {
			continue
		}
		c.hear()
		reports.answer(ctx, u.GetQuestion())
		if view != nil {
			c.publish(view)
		}
		if !whole {
			whole = true
			c.o.Log.Info("node stream is up", "address", address, "resources", len(view))
			c.conn.Post(struct{}{}, conn)
			defer c.conn.Withdraw(struct{}{})
		}
	}
}

// maxState bounds the state of one client, in bytes on the wire: far beyond what
// a cluster needs, and short of what would harm the node.
const maxState = 256 << 20

// errUpdate marks Updates that a client refuses.
var errUpdate = errors.New("invalid update")

func newReceiver() *delta.Receiver[*wire.Resource] {
	return delta.NewReceiver(kind, delta.Limits{Bytes: maxState})
}

// apply checks u and takes it over. It returns the View that is whole with it, nil
// if nothing changed.
func apply(receiver *delta.Receiver[*wire.Resource], u *wire.Update) (View, error) {
	for _, r := range u.GetUpserts() {
		if err := Check(r); err != nil {
			return nil, fmt.Errorf("%w: %w", errUpdate, err)
		}
	}
	view, err := receiver.Apply(delta.Chunk[*wire.Resource]{Upserts: u.GetUpserts(), Removed: u.GetRemoved(), Whole: u.GetComplete()})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUpdate, err)
	}
	return view, nil
}

// connection prepares a connection; it is dialled by its first call.
func (c *Client) connection(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(c.creds),
		grpc.WithPerRPCCredentials(c.token),
		grpc.WithContextDialer(c.o.Dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(maxUpdate),
		grpc.WithStaticConnWindowSize(2*maxUpdate),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxUpdate)),
	)
}

// streamError prefers the reason that ended ctx, if it was ours.
func streamError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// lostReason sorts the end of a stream into the closed list.
func lostReason(err error) string {
	switch {
	case err == nil:
		return lostEnded
	case errors.Is(err, ErrSilent):
		return lostSilent
	case errors.Is(err, errUpdate):
		return lostInvalid
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return lostUnreachable
	case codes.Unauthenticated, codes.PermissionDenied:
		return lostRefused
	case codes.ResourceExhausted:
		return lostLimit
	}
	return lostOther
}

// Sign asks for an identity's certificate chain (DER, leaf first) on the stream's
// connection. It waits for a stream, and asks again if it loses the one it asked
// on, until ctx ends. An error is a gRPC status or wraps ctx's.
func (c *Client) Sign(ctx context.Context, namespace, serviceAccount string, csr []byte) ([][]byte, error) {
	req := &wire.SignRequest{Namespace: namespace, ServiceAccount: serviceAccount, Csr: csr}
	for {
		conn, up, changed := c.conn.Read(struct{}{})
		if up {
			resp, err := wire.NewNodeStreamClient(conn).Sign(ctx, req)
			if err == nil {
				return resp.GetChain(), nil
			}
			if code := status.Code(err); ctx.Err() != nil || code != codes.Unavailable && code != codes.Canceled {
				return nil, fmt.Errorf("sign %s/%s: %w", namespace, serviceAccount, err)
			}
			// If the connection broke, its stream is about to end as well.
			if !within(ctx, time.Second, changed) {
				return nil, fmt.Errorf("sign %s/%s: %w", namespace, serviceAccount, err)
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("sign %s/%s: no controller answers: %w", namespace, serviceAccount, ctx.Err())
		}
	}
}

// within waits for changed, for at most d. It returns whether it came.
func within(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// token is the file of a projected token.
type token string

// maxToken bounds a token's file.
const maxToken = 16 << 10

// GetRequestMetadata implements credentials.PerRPCCredentials. It reads the file
// each time, as the kubelet replaces the token.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	f, err := os.Open(string(t))
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "read the service account token: %v", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "read the service account token: %v", err)
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > maxToken {
		return nil, status.Errorf(codes.Unauthenticated, "the service account token in %s has %d bytes, want 1 to %d", string(t), len(text), maxToken)
	}
	return map[string]string{"authorization": "Bearer " + string(text)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (token) RequireTransportSecurity() bool { return true }
