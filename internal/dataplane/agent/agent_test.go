package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func idleAgent(t *testing.T) *Agent {
	return New(t.Context(), failing, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

// script is a listener that gives what it is told to, and then waits to be closed.
type script struct {
	net.Listener // nil: nothing else is called
	next         []func() (net.Conn, error)
	closed       chan struct{}
	once         sync.Once
}

func (s *script) Accept() (net.Conn, error) {
	if len(s.next) == 0 {
		<-s.closed
		return nil, net.ErrClosed
	}
	step := s.next[0]
	s.next = s.next[1:]
	return step()
}

func (s *script) Close() error { s.once.Do(func() { close(s.closed) }); return nil }

func tcpPair(t *testing.T) (dialed, accepted net.Conn) {
	t.Helper()
	ln := listen(t, "127.0.0.1")
	defer ln.Close()
	dialed = must(net.Dial("tcp", ln.Addr().String()))(t)
	accepted = must(ln.Accept())(t)
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	return dialed, accepted
}

func TestServe(t *testing.T) {
	_, accepted := tcpPair(t)
	broken := errors.New("broken")
	accept := func() (net.Conn, error) { return accepted, nil }
	cases := map[string]struct {
		why    string
		steps  func(stop func()) []func() (net.Conn, error)
		served int
		err    error
	}{
		"accepted while stopping": {
			why: "it was in the queue: an upgrade loses none, and a clean end would look like an answer",
			steps: func(stop func()) []func() (net.Conn, error) {
				return []func() (net.Conn, error){func() (net.Conn, error) { stop(); return accept() }}
			},
			served: 1,
		},
		"out of descriptors": {
			why: "some will close",
			steps: func(stop func()) []func() (net.Conn, error) {
				return []func() (net.Conn, error){
					func() (net.Conn, error) { return nil, syscall.EMFILE }, accept,
					func() (net.Conn, error) { stop(); return nil, net.ErrClosed },
				}
			},
			served: 1,
		},
		"broken": {
			why: "a listener that is broken is told of",
			steps: func(func()) []func() (net.Conn, error) {
				return []func() (net.Conn, error){func() (net.Conn, error) { return nil, broken }}
			},
			err: broken,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			a := idleAgent(t)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var open sync.WaitGroup
			served := 0
			ln := &script{next: tc.steps(stop), closed: make(chan struct{})}
			err := a.serve(ctx, t.Context(), ln, &open, inbound, func(context.Context, *net.TCPConn) { served++ })
			open.Wait()
			if !errors.Is(err, tc.err) || served != tc.served {
				t.Errorf("%s: served %d, %v", tc.why, served, err)
			}
			if n := testutil.ToFloat64(a.metrics.open.WithLabelValues(inbound)); n != 0 {
				t.Errorf("%v connections are counted as open", n)
			}
		})
	}
}

func TestTooManyConnections(t *testing.T) {
	a := idleAgent(t)
	for range defaultLimits.Connections {
		if !a.metrics.acquire(inbound) {
			t.Fatal("refused below the bound")
		}
	}
	if a.metrics.acquire(inbound) {
		t.Error("not refused beyond the bound")
	}
	if !a.metrics.acquire(outbound) {
		t.Error("one way takes the other's room")
	}
	a.metrics.release(inbound)
	if !a.metrics.acquire(inbound) {
		t.Error("refused though one has left")
	}
}

// Whatever can be counted is there from the start, so that its first time is a rise.
func TestReasonsAreCountedFromZero(t *testing.T) {
	a := idleAgent(t)
	want := len(reasons(inbound)) + len(reasons(outbound))
	if n := testutil.CollectAndCount(a.metrics.refused); n != want {
		t.Errorf("%d series of refusals at the start, want %d, each reason once", n, want)
	}
}

// The probe's answer is what would become of a connection.
func TestReady(t *testing.T) {
	a := idleAgent(t)
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.serveAdmin(ctx, filepath.Join(dir, adminSocket), prometheus.NewRegistry()) }()
	if Ready(t.Context(), dir) == nil {
		t.Error("ready without a state")
	}
	cluster := &wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{TrustDomain: "west-1", HopKey: make([]byte, 32)}}}
	h := uplink.State{View: must(nodestream.NewView(cluster))(t), Revoked: noneRevoked}
	a.onState(h)
	if Ready(t.Context(), dir) == nil {
		t.Error("ready before callers are accepted")
	}
	a.serving.Store(true)
	eventually(t, "ready", func() bool { return Ready(t.Context(), dir) == nil })
	h.Expired = true
	a.onState(h)
	if Ready(t.Context(), dir) == nil {
		t.Error("ready by an expired state")
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A new agent takes over from an old one, which has its certificates: it must not
// before it has some itself, nor wait for ever for the one that never comes.
func TestAgentAwaitsCertificates(t *testing.T) {
	all, some, none := func(account) bool { return true }, func(a account) bool { return a.name == "a" }, func(account) bool { return false }
	cases := map[string]struct {
		why   string
		held  func(account) bool
		after time.Duration
		want  bool
	}{
		"all":         {"with every certificate there is nothing to wait for", all, 0, true},
		"some, early": {"the others may come any moment", some, certificateTimeout - 1, false},
		"some, late":  {"one pod that is refused must not keep the others from being served", some, certificateTimeout, true},
		"none, late":  {"an agent without any would refuse every call", none, time.Hour, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				a := idleAgent(t)
				cluster := newCluster(t, "west-1")
				s := &state{pods: map[string]*pod{}}
				for _, sa := range []string{"a", "b"} {
					s.pods[sa] = &pod{uid: sa, namespace: "shop", serviceAccount: sa}
					if who := (account{"shop", sa}); c.held(who) {
						a.svids.current[who] = cluster.credential(t, "shop", sa)
					}
				}
				a.state.Store(s)
				done := make(chan bool, 1)
				go func() { done <- a.awaitState(ctx, certificateTimeout) }()
				bubble.Pass(c.after)
				select {
				case got := <-done:
					if !c.want || !got {
						t.Errorf("goes on after %v: %s", c.after, c.why)
					}
					stop()
				default:
					if c.want {
						t.Errorf("still waits after %v: %s", c.after, c.why)
					}
					stop()
					<-done
				}
			})
		})
	}
}
