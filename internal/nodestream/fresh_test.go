package nodestream

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/grpctls/grpctlstest"
)

// replica is a controller replica whose knowledge has an age.
type replica struct {
	hub  *Hub
	ln   *bufconn.Listener
	up   atomic.Bool
	seen atomic.Int64 // when its API server was last in reach, Unix nanoseconds; 0: always
	// streams counts connections.
	streams atomic.Int32
}

func (r *replica) age() time.Duration {
	if seen := r.seen.Load(); seen != 0 {
		return time.Since(time.Unix(0, seen))
	}
	return 0
}

// loseAPI makes the replica's API server unreachable since a time ago.
func (r *replica) loseAPI(since time.Duration) { r.seen.Store(time.Now().Add(-since).UnixNano()) }

// replicas starts one replica per name, each with an upstream of that name, and returns a
// function that starts a client of all.
func replicas(t *testing.T, w *world, names ...string) (map[string]*replica, func() *Client) {
	t.Helper()
	server, client := grpctlstest.Pair(t, "client")
	all := make(map[string]*replica)
	var addresses []string
	for _, name := range names {
		r := &replica{hub: NewHub(), ln: bufconn.Listen(1 << 16)}
		if err := r.hub.Apply(Change{Scope: Gateways, Resource: upstream(name, "1:1")}); err != nil {
			t.Fatal(err)
		}
		r.hub.SetReady()
		r.up.Store(true)
		o := w.so
		o.Age = r.age
		s := NewServer(w, r.hub, nil, o)
		w.tasks.Go(func() {
			creds := grpctls.New(grpctls.Config{ALPN: ALPN, TLS: grpctlstest.Config(server)})
			if err := s.Serve(w.ctx, r.ln, creds); err != nil {
				t.Error(err)
			}
		})
		all[name+":1"] = r
		addresses = append(addresses, name+":1")
	}
	w.co.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		r := all[address]
		if !r.up.Load() {
			return nil, errors.New("no route")
		}
		r.streams.Add(1)
		return r.ln.DialContext(ctx)
	}
	return all, func() *Client {
		c, err := NewClient(addresses, grpctlstest.Config(client), w.token, w.co)
		if err != nil {
			t.Fatal(err)
		}
		w.tasks.Go(func() {
			if err := c.Run(w.ctx); err != nil {
				t.Error(err)
			}
		})
		return c
	}
}

// stateFrom returns the address of the replica that c's state comes from.
func stateFrom(c *Client) string {
	synctest.Wait()
	view, _ := c.State()
	for _, r := range view {
		return r.GetUpstream().GetName() + ":1"
	}
	return ""
}

func other(name string) string {
	if name == "a:1" {
		return "b:1"
	}
	return "a:1"
}

func TestAgeIsThatOfTheKnowledge(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		all, start := replicas(t, w, "a")
		all["a:1"].loseAPI(20 * time.Minute)
		c := start()
		bubble.Pass(time.Minute)
		if got := c.Age().Round(time.Second); got != 21*time.Minute {
			t.Errorf("the state is as old as what the replica knows, got %v, want 21m", got)
		}
		all["a:1"].seen.Store(0)
		bubble.Pass(6 * time.Second)
		if got := c.Age(); got > 6*time.Second {
			t.Errorf("the replica's API server is back, but the state is still %v old", got)
		}
	})
}

func TestClientMovesToAFresherReplica(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		all, start := replicas(t, w, "a", "b")
		states := 0
		w.co.OnState = func(View) { states++ }
		c := start()
		bubble.Pass(time.Second)
		first := stateFrom(c)
		all[first].loseAPI(0)
		bubble.Pass(29 * time.Second)
		if all[other(first)].streams.Load() != 0 {
			t.Error("a replica whose state is up to 30 s old is good enough")
		}
		// Attempts start within 15 s, and every second one goes to the other replica.
		bubble.Pass(90 * time.Second)
		if got := stateFrom(c); got != other(first) {
			t.Errorf("the client must move to the fresher replica; its state is from %q", got)
		}
		if c.Age() > 5*time.Second {
			t.Errorf("the state is %v old after the move", c.Age())
		}
		if states != 2 || lost(c, lostReplaced) != 1 || lost(c, lostUnreachable) != 0 {
			t.Errorf("one move must publish one state and lose no stream: %d states, %v moves",
				states, lost(c, lostReplaced))
		}
		before := all[first].streams.Load()
		bubble.Pass(10 * time.Minute)
		if n := all[first].streams.Load() - before; n != 0 {
			t.Errorf("a client with fresh state must not look for another replica, it did %d times", n)
		}
	})
}

func TestNoReplicaIsFresher(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		all, start := replicas(t, w, "a", "b")
		all["a:1"].loseAPI(0)
		all["b:1"].loseAPI(-4 * time.Second) // fresher, but by less than 5 s
		w.so.MaxAge = 24 * time.Hour
		c := start()
		bubble.Pass(10 * time.Minute)
		if n := lost(c, lostReplaced); n != 0 {
			t.Errorf("the client moved %v times between replicas that are equally old", n)
		}
		if n := all["a:1"].streams.Load() + all["b:1"].streams.Load(); n < 8 || n > 60 {
			t.Errorf("there were %d streams in 10 min, want an attempt every 10 to 60 s", n)
		}
		if stateFrom(c) == "" {
			t.Error("an old state must not be dropped")
		}
	})
}

func TestOlderStateDoesNotReplaceAFresherOne(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		all, start := replicas(t, w, "a", "b")
		all["a:1"].up.Store(false)
		c := start()
		bubble.Pass(10 * time.Second)
		if got := stateFrom(c); got != "b:1" {
			t.Fatalf("the only replica is b, the state is from %q", got)
		}
		all["a:1"].loseAPI(time.Hour)
		all["a:1"].up.Store(true)
		all["b:1"].up.Store(false)
		w.setToken("unknown")         // streams end within 30 min, and no new one is accepted
		bubble.Pass(31 * time.Minute) // the state ages
		w.setToken("gateway")         // b is unreachable
		bubble.Pass(10 * time.Second) // a has accepted a stream
		if got := stateFrom(c); got != "b:1" {
			t.Errorf("a replica that knows less must not replace what the client has; the state is from %q",
				got)
		}
		if got := c.Age(); got < 30*time.Second || got > 32*time.Minute {
			t.Errorf("the state is as old as it was, got %v", got)
		}
		all["a:1"].loseAPI(0)
		bubble.Pass(10 * time.Second)
		if got := stateFrom(c); got != "a:1" {
			t.Errorf("the replica is fresh now; the state is from %q", got)
		}
	})
}

func TestExpiryCountsTheTrueAge(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.co.Expiry = 10 * time.Minute
		all, start := replicas(t, w, "a")
		all["a:1"].loseAPI(0)
		c := start()
		bubble.Pass(10*time.Minute - 10*time.Second)
		if stateFrom(c) == "" {
			t.Error("the state expired early")
		}
		bubble.Pass(20 * time.Second)
		if stateFrom(c) != "" {
			t.Error("a live stream must not keep a state that is older than Expiry")
		}
		all["a:1"].seen.Store(0)
		bubble.Pass(6 * time.Second)
		if stateFrom(c) != "a:1" {
			t.Error("the state must come back with the API server, even though no resource changed")
		}
	})
}

func TestSignUsesTheNewStreamAfterAMove(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		all, start := replicas(t, w, "a", "b")
		c := start()
		bubble.Pass(time.Second)
		first := stateFrom(c)
		all[first].loseAPI(time.Minute)
		bubble.Pass(2 * time.Minute)
		all[first].up.Store(false)
		if got := stateFrom(c); got != other(first) {
			t.Fatalf("the state is from %q", got)
		}
		if _, err := c.Sign(t.Context(), "shop", "web", nil); status.Code(err) != codes.PermissionDenied {
			t.Errorf("the replica must answer that a gateway gets no certificate, got %v", err)
		}
	})
}
