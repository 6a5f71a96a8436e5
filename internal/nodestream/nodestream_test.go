package nodestream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/grpctls/grpctlstest"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is one controller and its clients, in a bubble of fake time.
type world struct {
	t      *testing.T
	hub    *Hub
	auth   func(token string) (Subject, error)
	sign   SignFunc
	server *Server
	so     ServerOptions
	co     ClientOptions

	ln    *bufconn.Listener
	creds grpctls.Config // the client's
	token string         // file
	up    atomic.Bool
	tasks sync.WaitGroup
	ctx   context.Context
	end   context.CancelFunc
}

// Authenticate implements Authenticator.
func (w *world) Authenticate(_ context.Context, token string) (Subject, error) { return w.auth(token) }

// newWorld starts nothing yet. Tokens are "gateway" and "agent/NODE".
func newWorld(t *testing.T) *world {
	w := &world{t: t, hub: NewHub(), ln: bufconn.Listen(1 << 10)}
	w.ctx, w.end = context.WithCancel(t.Context())
	w.auth = func(token string) (Subject, error) {
		if node, ok := strings.CutPrefix(token, "agent/"); ok {
			return Subject{Role: RoleAgent, Node: node, PodUID: "pod-of-" + node}, nil
		}
		if token == "gateway" {
			return Subject{Role: RoleGateway, PodUID: "pod-of-gateway"}, nil
		}
		return Subject{}, fmt.Errorf("token %q is not known", token)
	}
	w.token = filepath.Join(t.TempDir(), "token")
	w.setToken("gateway")
	return w
}

func (w *world) setToken(token string) {
	if err := os.WriteFile(w.token, []byte(token+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// serve starts the server.
func (w *world) serve() {
	server, client := grpctlstest.Pair(w.t, "client")
	w.creds = grpctls.Config{TLS: grpctlstest.Config(client)}
	w.server = NewServer(w, w.hub, w.sign, w.so)
	w.tasks.Go(func() {
		creds := grpctls.New(grpctls.Config{ALPN: ALPN, TLS: grpctlstest.Config(server)})
		if err := w.server.Serve(w.ctx, w.ln, creds); err != nil {
			w.t.Error(err)
		}
	})
	w.up.Store(true)
}

// client starts a client.
func (w *world) client() *Client {
	if w.co.Dial == nil {
		w.co.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			if !w.up.Load() {
				return nil, errors.New("no route")
			}
			return w.ln.DialContext(ctx)
		}
	}
	c, err := NewClient([]string{"controller.test:4146"}, w.creds.TLS, w.token, w.co)
	if err != nil {
		w.t.Fatal(err)
	}
	w.tasks.Go(func() {
		if err := c.Run(w.ctx); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

// close ends everything and waits for it.
func (w *world) close() {
	w.end()
	w.tasks.Wait()
}

// in runs f in a bubble.
func in(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		f(t, w)
	})
}

func upstream(name, address string) *wire.Resource {
	return &wire.Resource{Key: "upstream/" + name, Body: &wire.Resource_Upstream{
		Upstream: &wire.Upstream{Name: name, Address: address, HopKey: make([]byte, keyBytes)}}}
}

func mustView(t *testing.T, resources ...*wire.Resource) View {
	t.Helper()
	v, err := NewView(resources...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// publish makes resources the content of a scope, and serves streams from now on.
func (w *world) publish(to Scope, resources ...*wire.Resource) View {
	w.t.Helper()
	if node, ok := strings.CutPrefix(string(to), nodePrefix); ok {
		w.hub.AddNode(node)
	}
	want := mustView(w.t, resources...)
	have, _ := w.hub.View(to)
	changes := []Change{{Scope: to, Removed: "absent"}} // serves the stream of a node that has nothing
	for _, r := range want {
		changes = append(changes, Change{Scope: to, Resource: r})
	}
	for key := range have {
		if want[key] == nil {
			changes = append(changes, Change{Scope: to, Removed: key})
		}
	}
	if err := w.hub.Apply(changes...); err != nil {
		w.t.Fatal(err)
	}
	w.hub.SetReady()
	return want
}

func wantState(t *testing.T, why string, c *Client, want View) {
	t.Helper()
	synctest.Wait()
	got, _ := c.State()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Fatalf("%s: state (-want +got):\n%s", why, diff)
	}
}

func (w *world) refused(reason string) float64 {
	return testutil.ToFloat64(w.server.metrics.refused.WithLabelValues(reason))
}

func lost(c *Client, reason string) float64 {
	return testutil.ToFloat64(c.metrics.lost.WithLabelValues(reason))
}

func TestStream(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		c := w.client()
		synctest.Wait()
		if v, _ := c.State(); v != nil {
			t.Fatalf("nothing was published, the state must be none and not %v", v)
		}
		if w.refused(refusedNoState) == 0 {
			t.Error("a client that comes too early must be refused and counted")
		}
		one := w.publish(Gateways, upstream("a", "1:1"))
		w.publish(Node("n1"), upstream("secret", "1:1"))
		bubble.Pass(6 * time.Second)
		wantState(t, "first snapshot", c, one)
		_, changed := c.State()
		two := w.publish(Gateways, upstream("a", "1:2"), upstream("b", "1:1"))
		<-changed
		wantState(t, "change", c, two)
		w.publish(Node("n1"))
		w.publish(Agents, upstream("for agents", "1:1"))
		wantState(t, "changes of other scopes", c, two)
		bubble.Pass(updateInterval)
		wantState(t, "empty view", c, w.publish(Gateways))
	})
}

// An agent has two scopes. One that changes all the time does not delay the other.
func TestBusyScopeDelaysNoOther(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.setToken("agent/n1")
		w.serve()
		w.publish(Agents, upstream("a", "1:1"))
		w.publish(Node("n1"), upstream("b", "1:1"))
		c := w.client()
		bubble.Pass(time.Minute)
		for i := range 200 {
			w.publish(Agents, upstream("a", fmt.Sprint("1:", 10+i)))
			if i == 100 {
				w.publish(Node("n1"), upstream("b", "1:2"))
			}
			if i == 100+int(2*updateInterval/time.Millisecond) {
				v, _ := c.State()
				if got := v["upstream/b"].GetUpstream().GetAddress(); got != "1:2" {
					t.Errorf("after two intervals the node's own change has not arrived: %s", got)
				}
			}
			bubble.Pass(time.Millisecond)
		}
	})
}

// Each changed state causes work in a client, so the server sends many changes together.
// The first change does not wait.
func TestChangesComeTogether(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.publish(Gateways, upstream("a", "1:1"))
		states := 0
		w.co.OnState = func(View) { states++ }
		c := w.client()
		bubble.Pass(time.Minute)
		states = 0
		first := w.publish(Gateways, upstream("a", "1:2"))
		synctest.Wait()
		wantState(t, "the first change", c, first)
		var last View
		for i := range 1000 {
			last = w.publish(Gateways, upstream("a", fmt.Sprint("1:", 10+i)))
			bubble.Pass(time.Millisecond)
		}
		bubble.Pass(updateInterval)
		wantState(t, "the last change", c, last)
		if most := int(time.Second/updateInterval) + 2; states > most {
			t.Errorf("1,000 changes in a second are %d states, want at most %d", states, most)
		}
	})
}

func TestLargeSnapshot(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		var big []*wire.Resource
		for i := range 300 {
			big = append(big, upstream(fmt.Sprint(i), strings.Repeat("x", 10<<10)))
		}
		v := w.publish(Gateways, big...)
		seen := 0
		w.co.OnState = func(View) { seen++ }
		wantState(t, "3 MiB in chunks", w.client(), v)
		if seen != 1 {
			t.Errorf("a partial snapshot must not be published: OnState was called %d times, want 1", seen)
		}
	})
}

func TestRandomSlowReader(t *testing.T) {
	for seed := range uint64(6) {
		in(t, func(t *testing.T, w *world) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			w.co.OnState = func(View) { bubble.Pass(time.Duration(rnd.IntN(2000)) * time.Millisecond) }
			w.serve()
			random := rand.New(rand.NewPCG(seed, 2))
			c := w.client()
			var last View
			for range 30 {
				var rs []*wire.Resource
				for i := range 20 {
					if random.IntN(3) > 0 {
						rs = append(rs, upstream(fmt.Sprint(i), strings.Repeat("x", random.IntN(30<<10))))
					}
				}
				last = w.publish(Gateways, rs...)
				bubble.Pass(time.Duration(random.IntN(3000)) * time.Millisecond)
			}
			bubble.Pass(20 * time.Second)
			wantState(t, fmt.Sprintf("seed %d: a slow client ends with the last state", seed), c, last)
			if n := lost(c, lostInvalid) + lost(c, lostSilent); n != 0 {
				t.Errorf("seed %d: %v streams broke for no reason", seed, n)
			}
		})
	}
}

func TestHeartbeatKeepsStateFresh(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.publish(Gateways)
		c := w.client()
		synctest.Wait()
		bubble.Pass(10*time.Minute - time.Second)
		if age := c.Age(); age > 5*time.Second {
			t.Errorf("an idle stream's state is %v old, want at most a heartbeat", age)
		}
		if n := lost(c, lostSilent); n != 0 {
			t.Errorf("an idle stream was closed %v times", n)
		}
	})
}

func TestSilence(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.Heartbeat = time.Hour // a controller that hangs
		w.serve()
		v := w.publish(Gateways, upstream("a", "1:1"))
		c := w.client()
		wantState(t, "first", c, v)
		start := time.Now()
		bubble.Pass(15*time.Second - 1)
		if lost(c, lostSilent) != 0 {
			t.Errorf("the stream was closed after %v of silence, before 15 s", time.Since(start))
		}
		bubble.Pass(time.Nanosecond)
		if lost(c, lostSilent) != 1 {
			t.Error("15 s of silence must end the stream")
		}
		wantState(t, "the state outlives the stream", c, v)
	})
}

func TestOutageAndExpiry(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.Heartbeat = time.Hour
		w.co.BackoffMax = 5 * time.Minute // fewer attempts make the test faster
		w.serve()
		v := w.publish(Gateways, upstream("a", "1:1"))
		var states []View
		w.co.OnState = func(v View) { states = append(states, v) }
		c := w.client()
		wantState(t, "first", c, v)
		w.up.Store(false) // the first stream will die of silence, no other follows
		bubble.Pass(24*time.Hour - time.Second)
		wantState(t, "an outage of a day is survived", c, v)
		if c.Expired() {
			t.Error("expired before 24 h")
		}
		bubble.Pass(6 * time.Minute)
		wantState(t, "after a day the state expires", c, nil)
		if !c.Expired() || len(states) != 2 || states[1] != nil {
			t.Errorf("expiry must be reported once: %d states", len(states))
		}
		w.up.Store(true)
		bubble.Pass(6 * time.Minute)
		wantState(t, "the controller is back", c, v)
	})
}

func TestStreamsEndForReauthentication(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		v := w.publish(Gateways, upstream("a", "1:1"))
		w.publish(Node("n1"))
		c := w.client()
		wantState(t, "first", c, v)
		bubble.Pass(15*time.Minute - time.Second)
		if lost(c, lostEnded) != 0 {
			t.Error("a stream lives 15 min at least")
		}
		w.setToken("agent/n1") // a rotated token, which here is also another agent's
		bubble.Pass(16 * time.Minute)
		if lost(c, lostEnded) == 0 {
			t.Error("a stream lives 30 min at most")
		}
		wantState(t, "the next stream has the next token", c, View{})
	})
}

func TestReconnectReplacesWhole(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.setToken("agent/n1")
		v := w.publish(Node("n1"), upstream("a", "1:1"), upstream("b", "1:1"))
		c := w.client()
		wantState(t, "first", c, v)
		w.hub.RemoveNode("n1") // ends the stream
		bubble.Pass(10 * time.Second)
		wantState(t, "a node that the controller does not know keeps its state", c, v)
		w.hub.AddNode("n1")
		bubble.Pass(10 * time.Second)
		wantState(t, "a node is served only once its scope has content", c, v)
		v = w.publish(Node("n1"), upstream("b", "1:2"))
		bubble.Pass(6 * time.Second)
		wantState(t, "resources that were removed meanwhile are gone", c, v)
	})
}

func TestRefusals(t *testing.T) {
	cases := map[string]struct {
		why    string
		token  string
		auth   func(string) (Subject, error)
		reason string
		code   codes.Code
	}{
		"unknown token": {
			why:    "only holders of a token may read",
			token:  "thief",
			reason: refusedToken,
			code:   codes.Unauthenticated,
		},
		"empty token": {
			why:    "a missing token is not checked",
			token:  " ",
			reason: refusedNoToken,
			code:   codes.Unauthenticated,
		},
		"unknown role": {
			why:    "another ServiceAccount has no scope",
			token:  "x",
			reason: refusedRole,
			code:   codes.PermissionDenied,
			auth:   func(string) (Subject, error) { return Subject{}, nil },
		},
		"agent without a node": {
			why:    "a token that is not bound to a node could be used anywhere",
			token:  "x",
			reason: refusedRole,
			code:   codes.PermissionDenied,
			auth:   func(string) (Subject, error) { return Subject{Role: RoleAgent}, nil },
		},
		"API server unreachable": {
			why:    "the token could not be checked, so the caller may retry",
			token:  "x",
			reason: refusedUnchecked,
			code:   codes.Unavailable,
			auth: func(string) (Subject, error) {
				return Subject{}, fmt.Errorf("review: %w",
					ErrNotChecked)
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				if tc.auth != nil {
					w.auth = tc.auth
				}
				w.publish(Gateways)
				w.setToken(tc.token)
				w.serve()
				c := w.client()
				bubble.Pass(time.Second)
				wantState(t, tc.why, c, nil)
				if tc.reason != refusedNoToken && w.refused(tc.reason) == 0 {
					t.Errorf("%s: not counted as %s", tc.why, tc.reason)
				}
				conn, err := c.connection("controller.test")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_, err = wire.NewNodeStreamClient(conn).Sign(t.Context(), &wire.SignRequest{})
				if got := status.Code(err); got != tc.code {
					t.Errorf("%s: got %v, want %v", tc.why, err, tc.code)
				}
			})
		})
	}
}

func TestStreamLimits(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.MaxStreamsPerPod, w.so.MaxStreams = 2, 3
		w.serve()
		w.publish(Gateways)
		w.publish(Node("n1"))
		w.publish(Node("n2"))
		up := func(c *Client) bool {
			bubble.Pass(time.Second)
			v, _ := c.State()
			return v != nil
		}
		for i, want := range []bool{true, true, false} {
			if got := up(w.client()); got != want {
				t.Errorf("stream %d of a pod is up: %v, want %v: a pod may have two streams and not three",
					i+1, got, want)
			}
		}
		w.setToken("agent/n1")
		if !up(w.client()) {
			t.Error("one pod's streams must not use up another's")
		}
		w.setToken("agent/n2")
		if up(w.client()) {
			t.Error("the server may have three streams and not four")
		}
		if w.refused(refusedStreams) == 0 {
			t.Error("refused streams must be counted")
		}
	})
}

func TestSlowReaderIsCut(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.co.Silence = time.Hour
		block := make(chan struct{})
		first := true
		w.co.OnState = func(View) {
			if first {
				first = false
				<-block // reads nothing from now on
			}
		}
		w.serve()
		w.publish(Gateways)
		c := w.client()
		synctest.Wait()
		for i := range 100 { // far more than any window or buffer holds
			var rs []*wire.Resource
			for j := range 40 {
				rs = append(rs, upstream(fmt.Sprint(j), fmt.Sprint(i)+strings.Repeat("x", 50<<10)))
			}
			w.publish(Gateways, rs...)
		}
		bubble.Pass(29 * time.Second)
		if w.refused(refusedSlow) != 0 {
			t.Error("a client has 30 s")
		}
		bubble.Pass(2 * time.Second)
		if w.refused(refusedSlow) != 1 {
			t.Error("a client that reads nothing for 30 s must be cut and counted")
		}
		if n := testutil.ToFloat64(w.server.metrics.streams.WithLabelValues("gateway")); n != 0 {
			t.Errorf("the cut stream must be over, %v are open", n)
		}
		close(block)
		bubble.Pass(10 * time.Second)
		v, _ := w.hub.View(Gateways)
		wantState(t, "it recovers when it reads again", c, v)
	})
}

func TestSign(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		var asked []string
		var fail error
		w.sign = func(_ context.Context, token, ns, sa string, csr []byte) ([][]byte, error) {
			asked = append(asked, fmt.Sprint(token, " ", ns, "/", sa, " ", string(csr)))
			return [][]byte{[]byte("leaf"), []byte("issuer")}, fail
		}
		w.serve()
		w.publish(Node("n1"))
		w.publish(Gateways)
		w.setToken("agent/n1")
		c := w.client()
		chain, err := c.Sign(t.Context(), "shop", "web", []byte("csr")) // waits for the stream
		if err != nil || len(chain) != 2 {
			t.Fatalf("sign: %v, %v", chain, err)
		}
		if diff := cmp.Diff([]string{"agent/n1 shop/web csr"}, asked); diff != "" {
			t.Errorf("the signer must be called once, with the caller's token (-want +got):\n%s", diff)
		}
		fail = errors.New("no pod of shop/web on node n1")
		if _, err = c.Sign(t.Context(), "shop", "web", nil); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a refusal is final, got %v", err)
		}
		fail = fmt.Errorf("review: %w", ErrNotChecked)
		if _, err = c.Sign(t.Context(), "shop", "web", nil); status.Code(err) != codes.Unavailable {
			t.Errorf("a check that could not be made may be retried, got %v", err)
		}
		fail = nil
		w.setToken("gateway")
		if _, err = c.Sign(t.Context(), "shop", "web", nil); status.Code(err) != codes.PermissionDenied {
			t.Errorf("a gateway cannot get a certificate, got %v", err)
		}
	})
}

func TestSignWithoutController(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.up.Store(false)
		c := w.client()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if _, err := c.Sign(ctx, "shop", "web", nil); !errors.Is(err, context.DeadlineExceeded) ||
			time.Since(start) != time.Minute {
			t.Errorf("Sign waits for a controller until its context ends; got %v after %v", err,
				time.Since(start))
		}
	})
}

func TestSignRetriesOnTheNextConnection(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		calls := 0
		w.sign = func(ctx context.Context, _, _, _ string, _ []byte) ([][]byte, error) {
			if calls++; calls == 1 {
				grpctls.CloseConn(ctx) // the replica dies under the call
				<-ctx.Done()
			}
			return [][]byte{[]byte("leaf")}, nil
		}
		w.setToken("agent/n1")
		w.publish(Node("n1"))
		w.serve()
		chain, err := w.client().Sign(t.Context(), "shop", "web", nil)
		if err != nil || len(chain) != 1 || calls != 2 {
			t.Errorf("got %v, %v after %d calls, want the second replica's answer", chain, err, calls)
		}
	})
}

// broken is a controller whose streams break in the middle of the snapshot.
type broken struct {
	wire.UnimplementedNodeStreamServer
	watches atomic.Int32
}

// Watch implements wire.NodeStreamServer.
func (b *broken) Watch(_ *wire.WatchRequest, s wire.NodeStream_WatchServer) error {
	b.watches.Add(1)
	_, half, err := encode(upstream("half", "1:1"))
	if err != nil {
		return err
	}
	if err := s.Send(&wire.Update{Upserts: [][]byte{half}}); err != nil {
		return err
	}
	bubble.Pass(time.Second)
	return status.Error(codes.Unavailable, "broken")
}

func TestPartialSnapshotIsNotUsed(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		server, client := grpctlstest.Pair(t, "client")
		w.creds = grpctls.Config{TLS: grpctlstest.Config(client)}
		g := grpc.NewServer(grpc.Creds(grpctls.New(grpctls.Config{
			ALPN: ALPN,
			TLS:  grpctlstest.Config(server),
		})), grpc.WaitForHandlers(true))
		var b broken
		wire.RegisterNodeStreamServer(g, &b)
		w.tasks.Go(func() { _ = g.Serve(w.ln) })
		w.tasks.Go(func() { <-w.ctx.Done(); g.Stop() }) // waits for the handlers
		w.up.Store(true)
		c := w.client()
		bubble.Pass(time.Minute)
		wantState(t, "a partial table would refuse connections that it must admit", c, nil)
		if b.watches.Load() < 5 || c.Age() < time.Minute {
			t.Errorf("after %d broken streams the state must be as old as it is, not %v", b.watches.Load(),
				c.Age())
		}
		if n := lost(c, lostUnreachable); n < 5 {
			t.Errorf("%v of %d broken streams were counted", n, b.watches.Load())
		}
	})
}
