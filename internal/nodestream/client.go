package nodestream

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
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// dialTimeout bounds a dial. It is short because the controllers are near, and the
// address of their Service may lead to a replica that has just stopped.
const dialTimeout = time.Second

// staleAge is the age of a live stream's state at which the client looks for a fresher
// replica. It is also how much older than the current state a new stream's may be: the
// ages of healthy replicas differ by less.
const staleAge = 30 * time.Second

// ErrSilent reports a stream that ended because no message came on it.
var ErrSilent = errors.New("the controller has been silent for too long")

// ClientOptions tune a Client. The zero value works.
type ClientOptions struct {
	// Version is sent to the server, for display.
	Version string
	// Dial opens connections; nil means TCP, with names resolved by the host.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Guard wraps connections before their handshake; nil means none.
	Guard grpctls.Guard
	// OnState is called with each View in turn, and with nil when the last one expired.
	// Calls do not overlap. The client reads no more of its stream meanwhile. May be nil.
	OnState func(View)
	// Held is a View that an earlier process received, and HeldAge its age. State returns
	// it until there is a newer one or it expires; OnState is not called for it.
	Held    View
	HeldAge time.Duration
	// OnQuestion makes the answer to a question of the controller, before ctx ends. Calls
	// do not overlap. Nil means that the client does not answer.
	OnQuestion func(ctx context.Context) *wire.ReportRequest
	// Silence is how long a stream may be without a message; 0 means 15 s.
	Silence time.Duration
	// Expiry is the age at which the state expires; 0 means 24 h.
	Expiry time.Duration
	// BackoffMin and BackoffMax bound the waits between attempts, which are drawn
	// with full jitter; 0 means 100 ms and 5 s.
	BackoffMin, BackoffMax time.Duration
	// Log may be nil.
	Log *slog.Logger
	// Registerer registers the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Client keeps the View of one agent or gateway up to date, and requests certificates.
// Make it with NewClient; it does nothing until Run. Its other methods are safe for
// concurrent use.
type Client struct {
	addresses []string
	creds     credentials.TransportCredentials
	token     token
	o         ClientOptions
	metrics   clientMetrics

	state *cell[View]             // nil: none
	conn  *cell[*grpc.ClientConn] // of a stream that works; nil: none

	mu      sync.Mutex // guards what follows
	freshAt time.Time  // the state was true at this time or later; at first, the start
	next    int        // index of the address to try next
}

// NewClient returns a Client of the controllers at addresses (host:port; at least one),
// which it tries in turn. An address may lead to several replicas. tlsConfig is called at
// each handshake and verifies the server. tokenFile holds the projected token and is
// read for each call.
func NewClient(
	addresses []string, tlsConfig func() (*tls.Config, error), tokenFile string, o ClientOptions,
) (*Client, error) {
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
		metrics:   newClientMetrics(o.Registerer),
		state:     newCell[View](nil),
		conn:      newCell[*grpc.ClientConn](nil),
		freshAt:   time.Now(),
		next:      rand.N(len(addresses)),
	}
	if o.Held != nil && o.HeldAge < o.Expiry {
		c.freshAt = c.freshAt.Add(-o.HeldAge)
		c.state.set(o.Held)
	}
	return c, nil
}

// State returns the newest whole View and a channel that is closed when it is replaced.
// The View is nil before the first one and after the last one expired. Then nothing may
// be admitted.
func (c *Client) State() (View, <-chan struct{}) { return c.state.get() }

// Age returns how old the state may be: the age that the controller reported with it
// plus the time since. Before the first state it is the time since NewClient.
func (c *Client) Age() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.freshAt)
}

// Expired reports that Age has reached Expiry.
func (c *Client) Expired() bool { return c.Age() >= c.o.Expiry }

// Run keeps a stream open until ctx ends, and then returns nil. It must run once.
func (c *Client) Run(ctx context.Context) error {
	waits := backoff.Backoff{Min: c.o.BackoffMin, Max: c.o.BackoffMax}
	logged := false // the outage was logged
	for {
		w := c.newWatch(ctx, c.nextAddress())
		for w != nil {
			start := time.Now()
			next, err := c.follow(ctx, w)
			if ctx.Err() != nil {
				if next != nil {
					next.close()
				}
				return nil
			}
			if w.up {
				logged = false
				if time.Since(start) > c.o.BackoffMax {
					waits.Reset()
				}
			}
			c.metrics.lost.WithLabelValues(lostReason(err)).Inc()
			if err != nil {
				level := slog.LevelDebug // one line per outage
				if !logged {
					level = slog.LevelInfo
				}
				c.o.Log.Log(ctx, level, "node stream lost", "address", w.address, "error", err)
				logged = next == nil
			}
			w = next
		}
		c.expire()
		if !waits.Wait(ctx) {
			return nil
		}
	}
}

// nextAddress returns the addresses in turn.
func (c *Client) nextAddress() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = (c.next + 1) % len(c.addresses)
	return c.addresses[c.next]
}

// follow publishes what comes on w, until its stream ends or that of a fresher replica is
// whole. It closes w. It returns the stream to follow next, which is already whole, or
// nil. The error is nil if the server ended the stream without one.
func (c *Client) follow(ctx context.Context, w *watch) (next *watch, err error) {
	reports := reporter{c: c, conn: w.conn}
	search := search{c: c}
	defer func() {
		if found := search.stop(); next == nil {
			next = found // it works and w does not, so its age does not matter
		} else if found != nil {
			found.close()
		}
		if w.up {
			c.conn.set(nil)
		}
		w.close()
		reports.wait()
	}()
	for {
		if w.receiver.Whole() {
			c.accept(w)
		}
		if next := search.update(ctx, w); next != nil {
			return next, errReplaced
		}
		u, err := w.receive()
		if errors.Is(err, io.EOF) {
			if !w.reopen() {
				return nil, nil
			}
			c.metrics.lost.WithLabelValues(lostEnded).Inc()
			continue
		}
		if err != nil {
			return nil, err
		}
		if w.receiver.Whole() {
			reports.answer(w.ctx, u.GetQuestion())
		}
	}
}

// accept publishes the state of w, which is whole, if it changed. It does not replace the
// current state by one that is clearly older.
func (c *Client) accept(w *watch) {
	if d, changed := w.receiver.Take(); changed {
		current, _ := c.State()
		w.view, w.published = merge(w.view, d), false
		keepRoutes(w.view, d, current)
	}
	if !w.up {
		w.up = true
		c.o.Log.Info("node stream is up", "address", w.address, "resources", len(w.view))
		c.conn.set(w.conn)
	}
	if current, _ := c.State(); !w.adopted && current != nil && w.freshAt.Before(c.current().Add(-staleAge)) {
		if !w.logged {
			w.logged = true
			c.o.Log.Info("keeping the current state, because the controller's is older", "address", w.address,
				"age", time.Since(w.freshAt).Round(time.Second), "current", c.Age().Round(time.Second))
		}
		c.expire()
		return
	}
	w.adopted = true
	c.mu.Lock()
	c.freshAt = w.freshAt
	c.mu.Unlock()
	if c.Expired() {
		c.expire()
		w.published = false
		return
	}
	if !w.published {
		w.published = true
		c.publish(w.view)
	}
}

// current returns the time at which the current state was true.
func (c *Client) current() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.freshAt
}

// publish makes view the state.
func (c *Client) publish(view View) {
	c.state.set(view)
	c.metrics.resources.Set(float64(len(view)))
	if c.o.OnState != nil {
		c.o.OnState(view)
	}
}

// expire drops the state if it is too old.
func (c *Client) expire() {
	if view, _ := c.State(); view == nil || !c.Expired() {
		return
	}
	c.o.Log.Info("state expired, refusing all connections until a controller answers", "age", c.Age())
	c.publish(nil)
}

// lostReason returns the metric label for the end of a stream.
func lostReason(err error) string {
	switch {
	case err == nil:
		return lostEnded
	case errors.Is(err, errReplaced):
		return lostReplaced
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

// Sign requests the certificate chain (DER, leaf first) of an identity on the stream's
// connection. It waits for a stream, and retries on the next one if it loses the
// connection, until ctx ends. An error is a gRPC status or wraps ctx's error.
func (c *Client) Sign(ctx context.Context, namespace, serviceAccount string, csr []byte) ([][]byte, error) {
	req := &wire.SignRequest{Namespace: namespace, ServiceAccount: serviceAccount, Csr: csr}
	for {
		conn, changed := c.conn.get()
		if conn != nil {
			resp, err := wire.NewNodeStreamClient(conn).Sign(ctx, req)
			if err == nil {
				return resp.GetChain(), nil
			}
			if code := status.Code(err); ctx.Err() != nil ||
				code != codes.Unavailable && code != codes.Canceled {
				return nil, fmt.Errorf("sign %s/%s: %w", namespace, serviceAccount, err)
			}
			// If the connection broke, its stream ends soon as well.
			if !within(ctx, time.Second, changed) {
				return nil, fmt.Errorf("sign %s/%s: %w", namespace, serviceAccount, err)
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("sign %s/%s: no controller answers: %w", namespace, serviceAccount,
				ctx.Err())
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
