package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tooLong bounds what would hang if the code were wrong.
const tooLong = 20 * time.Second

// harness is a whole Server on loopback, between peers who hold day keys of Links west
// and north, and backends.
type harness struct {
	testing.TB
	server   *Server
	ln       *net.TCPListener
	dials    atomic.Int64
	stop     context.CancelFunc
	serving  sync.WaitGroup
	keys     map[string]route.DatedKey // by Link
	backends []*backend
}

// newHarness returns a rig whose state has routes 1024 for west and 1025 for north,
// both with the endpoints of n backends, in this order. tune may change the Server
// before it serves.
func newHarness(t testing.TB, n int, tune func(*Server)) *harness {
	t.Helper()
	r := &harness{
		TB:     t,
		server: NewServer(slog.New(slog.DiscardHandler), prometheus.NewRegistry()),
		keys:   map[string]route.DatedKey{},
	}
	for i, link := range []string{"west", "north"} {
		r.keys[link] = route.DatedKey{Day: route.Day(time.Now()), Key: route.DayKey{byte(i + 1)}}
	}
	for i := range n {
		r.backends = append(r.backends, newBackend(t, byte(i+1)))
	}
	dial := r.server.dial
	r.server.dial = func(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
		r.dials.Add(1)
		return dial(ctx, to)
	}
	if tune != nil {
		tune(r.server)
	}
	r.ln = must(transport.Listen(t.Context(), "127.0.0.1:0"))(t)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	r.stop = stop
	r.serving.Go(func() {
		if err := r.server.Serve(ctx, r.ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		for _, b := range r.backends {
			b.close()
		}
		r.serving.Wait()
	})
	r.push(r.view())
	return r
}

func noneRevoked(string) bool { return false }

func (r *harness) push(v nodestream.View) {
	r.server.OnState(uplink.State{View: v, Revoked: noneRevoked})
}

// view is what the controller says, with more or other resources.
func (r *harness) view(with ...*wire.Resource) nodestream.View {
	var resources []*wire.Resource
	var endpoints []*wire.Endpoint
	for _, b := range r.backends {
		resources = append(resources, b.resource())
		endpoints = append(endpoints, &wire.Endpoint{Id: b.id[:], PodUid: b.pod, Upstream: b.name})
	}
	for link, key := range r.keys {
		resources = append(resources, &wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{
			Name: link, Uid: "uid-" + link, DayKeys: []*wire.DayKey{{Day: key.Day, Key: key.Key[:]}}}}})
	}
	for id, link := range map[uint32]string{1024: "west", 1025: "north"} {
		resources = append(resources, &wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
			Id: id, Links: []string{link}, Endpoints: endpoints, Generation: 6}}})
	}
	v := must(nodestream.NewView(resources...))(r.TB)
	for key, resource := range must(nodestream.NewView(with...))(r.TB) {
		v[key] = resource
	}
	return v
}

// label seals an SNI by a Link's key.
func (r *harness) label(link string, id uint32, hint route.Hint) string {
	return must(route.NewSealer(r.keys[link]).Seal(id, hint, time.Now()))(r.TB)
}

func (r *harness) dial() *net.TCPConn {
	r.Helper()
	c := must(net.Dial("tcp", r.ln.Addr().String()))(r.TB).(*net.TCPConn)
	c.SetDeadline(time.Now().Add(tooLong))
	r.Cleanup(func() { transport.Reset(c) })
	return c
}

// tryDial is dial, but returns nil if the connection is reset at once.
func (r *harness) tryDial() *net.TCPConn {
	r.Helper()
	c, err := net.Dial("tcp", r.ln.Addr().String())
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	must(c, err)(r.TB)
	r.Cleanup(func() { transport.Reset(c) })
	return c.(*net.TCPConn)
}

// call sends a hello with an SNI.
func (r *harness) call(sni string) *net.TCPConn {
	r.Helper()
	c := r.dial()
	must(c.Write(hello(r.TB, sni)))(r.TB)
	return c
}

// hello returns the ClientHello of an agent that calls with an SNI.
func hello(t testing.TB, sni string) []byte {
	t.Helper()
	near, far := net.Pipe()
	verify := func(tls.ConnectionState) error { return nil }
	client := tls.Client(near, identity.ClientTLS(identity.PlaneTunnel, sni, nil, verify))
	done := make(chan error, 1)
	go func() { done <- client.HandshakeContext(t.Context()) }()
	h, err := transport.ReadClientHello(far, tooLong)
	far.Close()
	<-done
	return must(h, err)(t).Raw
}

// backend plays an agent: it reads header and hello as one does, and then talks:
// what it hears it says again.
type backend struct {
	testing.TB
	name, pod string
	id        route.EndpointID
	key       route.HopKey
	ln        net.Listener
	got       chan receivedConn
	serving   sync.WaitGroup
	// talk goes on with a connection, once header and hello are read.
	talk func(c net.Conn, hello []byte)
}

type receivedConn struct {
	header route.Header
	hello  []byte
	err    error
}

func newBackend(t testing.TB, n byte) *backend {
	b := &backend{
		TB:   t,
		name: "agent/" + string('a'+rune(n)),
		pod:  "pod-" + string('a'+rune(n)),
		id:   route.EndpointID{n},
		key:  route.HopKey{n},
		ln:   must(net.Listen("tcp", "127.0.0.1:0"))(t),
		got:  make(chan receivedConn, 100),
		talk: func(c net.Conn, _ []byte) { io.Copy(c, c) },
	}
	b.serving.Go(func() {
		for {
			c, err := b.ln.Accept()
			if err != nil {
				return
			}
			b.serving.Go(func() { b.serve(c) })
		}
	})
	return b
}

func (b *backend) serve(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(tooLong))
	var a receivedConn
	if a.header, a.err = route.ReadHeader(c, b.key, time.Now()); a.err == nil {
		a.hello, a.err = a.header.ReadHello(c)
	}
	b.got <- a
	if a.err == nil {
		b.talk(c, a.hello)
	}
}

func (b *backend) close() { b.ln.Close(); b.serving.Wait() }

func (b *backend) resource() *wire.Resource {
	return upstream(b.name, b.ln.Addr().String(), b.key[:])
}

func upstream(name, address string, key []byte) *wire.Resource {
	return &wire.Resource{Body: &wire.Resource_Upstream{
		Upstream: &wire.Upstream{Name: name, Address: address, HopKey: key},
	}}
}

func (b *backend) next() receivedConn {
	b.Helper()
	select {
	case a := <-b.got:
		return a
	case <-time.After(tooLong):
		b.Fatal("nothing arrives")
		return receivedConn{}
	}
}

func wantEcho(t testing.TB, c net.Conn) {
	t.Helper()
	var got [5]byte
	if _, err := io.WriteString(c, "alive"); err != nil {
		t.Fatalf("send: %v", err)
	}
	if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != "alive" {
		t.Fatalf("received %q, %v", got, err)
	}
}

// must returns v, or ends the test: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestServeHandsOverHeaderAndHello(t *testing.T) {
	r := newHarness(t, 3, nil)
	sni := r.label("west", 1024, route.ForEndpoint(r.backends[1].id))
	raw := hello(t, sni)
	c := r.dial()
	// As a network may deliver it, with the next flight close behind.
	must(c.Write(raw[:7]))(t)
	must(c.Write(append(raw[7:len(raw):len(raw)], "alive"...)))(t)
	got := r.backends[1].next()
	if got.err != nil || string(got.hello) != string(raw) {
		t.Fatalf("hello of %d bytes, %v, want the %d sent", len(got.hello), got.err, len(raw))
	}
	slices.SortFunc(got.header.Ready, func(a, b route.EndpointID) int { return slices.Compare(a[:], b[:]) })
	want := route.Header{
		Source:      addrOf(c.LocalAddr()),
		Destination: addrOf(c.RemoteAddr()),
		PodUID:      r.backends[1].pod,
		Endpoint:    r.backends[1].id,
		Ready:       []route.EndpointID{{1}, {2}, {3}},
		ReadyCount:  3,
		Generation:  6,
		Link:        "west",
		Budget:      uint32(Limits{}.resolve(budget.Connections).ConnectionsPerLink),
		HelloLen:    uint16(len(raw)),
		HelloSum:    got.header.HelloSum,
		Time:        got.header.Time,
	}
	sameAddress := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(want, got.header, sameAddress); diff != "" {
		t.Errorf("header (-want +got)\n%s", diff)
	}
	var early [5]byte
	if _, err := io.ReadFull(c, early[:]); err != nil || string(early[:]) != "alive" {
		t.Errorf("what came behind the hello: %q, %v", early, err)
	}
	wantEcho(t, c)
	c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("the backend's end: %q, %v", rest, err)
	}
	r.stop()
	r.serving.Wait()
	for name, c := range map[string]prometheus.Collector{
		"spliced": r.server.metrics.spliced.WithLabelValues("west"),
		"ended":   r.server.metrics.ended.WithLabelValues("ended"),
	} {
		if n := testutil.ToFloat64(c); n != 1 {
			t.Errorf("%s: %v counted", name, n)
		}
	}
	if n := testutil.ToFloat64(r.server.metrics.bytes.WithLabelValues("west", "in")); n != 10 {
		t.Errorf("%v bytes counted, want those behind the hello", n)
	}
}

func TestServeSpreadsOverEndpoints(t *testing.T) {
	r := newHarness(t, 3, nil)
	reached := map[int]bool{}
	for range 60 {
		c := r.call(r.label("west", 1024, route.Hint{}))
		for i, b := range r.backends {
			select {
			case <-b.got:
				reached[i] = true
			default:
			}
		}
		wantEcho(t, c)
		c.Close()
	}
	if len(reached) < 3 {
		t.Errorf("60 connections reached %d of 3 endpoints", len(reached))
	}
}

func TestServeTriesNextEndpoint(t *testing.T) {
	r := newHarness(t, 2, nil)
	r.backends[0].close()
	for range 8 {
		wantEcho(t, r.call(r.label("west", 1024, route.ForEndpoint(r.backends[0].id))))
		if got := r.backends[1].next(); got.err != nil || got.header.PodUID != r.backends[1].pod {
			t.Fatalf("header for %q, %v, want one for the endpoint that took it", got.header.PodUID, got.err)
		}
	}
	if n := testutil.ToFloat64(r.server.metrics.backendFail); n != failuresToEject {
		t.Errorf("%v failures of backends counted, want %d, after which it is ejected", n, failuresToEject)
	}
}

// alert is the answer to a TLS client that is refused: unrecognized_name, fatal.
var alert = []byte{21, 3, 3, 0, 2, 2, 112}

func TestRefusals(t *testing.T) {
	unknown := route.DatedKey{Day: route.Day(time.Now()), Key: route.DayKey{99}}
	cases := map[string]struct {
		why    string
		tune   func(*Server)
		do     func(*harness) *net.TCPConn
		answer []byte
		reset  bool
		reason string
	}{
		"no SNI of ours": {
			why: "scanners and browsers", reason: "not_a_label", answer: alert,
			do: func(r *harness) *net.TCPConn { return r.call("bar.shop.svc") },
		},
		"unknown key": {
			why: "a peer that was never linked, or no longer is", reason: "unknown_key", answer: alert,
			do: func(r *harness) *net.TCPConn {
				return r.call(must(route.NewSealer(unknown).Seal(1024, route.Hint{}, time.Now()))(r.TB))
			},
		},
		"stale": {
			why: "a label that was overheard", reason: "stale", answer: alert,
			do: func(r *harness) *net.TCPConn {
				old := time.Now().Add(-20 * time.Minute)
				day := route.DatedKey{Day: route.Day(old), Key: route.DayKey{1}}
				r.keys["west"] = day
				r.push(r.view())
				return r.call(must(route.NewSealer(day).Seal(1024, route.Hint{}, old))(r.TB))
			},
		},
		"no route": {
			why: "an export that is gone", reason: "no_route", answer: alert,
			do: func(r *harness) *net.TCPConn { return r.call(r.label("west", 2000, route.Hint{})) },
		},
		"not for link": {
			why: "what another peer may reach looks like nothing", reason: "not_for_link", answer: alert,
			do: func(r *harness) *net.TCPConn { return r.call(r.label("west", 1025, route.Hint{})) },
		},
		"no ready endpoint": {
			why: "there is no endpoint to hand it to", reason: "no_ready_endpoint", answer: alert,
			do: func(r *harness) *net.TCPConn {
				bare := &wire.Route{Id: 1024, Links: []string{"west"}}
				r.push(r.view(&wire.Resource{Body: &wire.Resource_Route{Route: bare}}))
				return r.call(r.label("west", 1024, route.Hint{}))
			},
		},
		"no agent": {
			why: "nobody could answer the probe", reason: "no_agent", answer: alert,
			do: func(r *harness) *net.TCPConn {
				v := r.view()
				for _, b := range r.backends {
					delete(v, "upstream/"+b.name)
				}
				r.push(v)
				return r.call(r.label("west", route.Probe, route.Hint{}))
			},
		},
		"no pod of that name": {
			why: "a hint for a named pod is for that pod", reason: "no_ready_endpoint", answer: alert,
			do: func(r *harness) *net.TCPConn { return r.call(r.label("west", 1024, route.ForHost("bar-7"))) },
		},
		"garbage": {
			why: "an alert would mean nothing to it", reason: "not_tls", reset: true,
			do: func(r *harness) *net.TCPConn {
				c := r.dial()
				must(c.Write([]byte("GET / HTTP/1.1\r\n\r\n")))(r.TB)
				return c
			},
		},
		"hello too long": {
			why: "it is bounded", reason: "hello_too_long", answer: alert,
			do: func(r *harness) *net.TCPConn {
				c := r.dial()
				must(c.Write([]byte{22, 3, 1, 0xff, 0xff}))(r.TB)
				return c
			},
		},
		"slow hello": {
			why: "an alert would blame the label, but packets may be lost", reason: "hello_timeout", reset: true,
			do: func(r *harness) *net.TCPConn {
				c := r.dial()
				must(c.Write(hello(r.TB, r.label("west", 1024, route.Hint{}))[:100]))(r.TB)
				return c
			},
		},
		"closed": {
			why: "health checks and port scans", reason: "closed", answer: alert,
			do: func(r *harness) *net.TCPConn {
				c := r.dial()
				c.CloseWrite()
				return c
			},
		},
		"too many hellos from one source": {
			why: "slow sources must leave room for others", reason: reasonTooManyHellosFrom, reset: true,
			tune: func(s *Server) { s.hellos = budget.NewPending(1, 0) },
			do:   (*harness).tryDial,
		},
		"too many hellos": {
			why: "an attacker may have many sources", reason: reasonTooManyHellos, reset: true,
			tune: func(s *Server) { s.hellos = budget.NewPending(0, 1) },
			do:   (*harness).tryDial,
		},
		"connects too fast": {
			why: "even an accept costs something", reason: reasonAcceptRate, reset: true,
			tune: func(s *Server) { s.accepts = budget.NewRates[netip.Prefix](0, 0) },
			do:   (*harness).tryDial,
		},
		"unproven too fast": {
			why: "each costs an agent a handshake", reason: reasonUnprovenRate, answer: alert,
			tune: func(s *Server) { s.unproven.unknownRate = budget.NewRates[string](0, 0) },
			do:   func(r *harness) *net.TCPConn { return r.call(r.label("west", 1024, route.Hint{})) },
		},
		"expired": {
			why: "the controller has been away for a day", reason: reasonNotReady, answer: alert,
			do: func(r *harness) *net.TCPConn {
				r.server.OnState(uplink.State{View: r.view(), Expired: true, Revoked: noneRevoked})
				return r.call(r.label("west", 1024, route.Hint{}))
			},
		},
		"link revoked": {
			why: "seen deleted, though the controller still lists it", reason: "unknown_key", answer: alert,
			do: func(r *harness) *net.TCPConn {
				revoked := func(uid string) bool { return uid == "uid-west" }
				r.server.OnState(uplink.State{View: r.view(), Revoked: revoked})
				return r.call(r.label("west", 1024, route.Hint{}))
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newHarness(t, 1, tc.tune)
			var got []byte
			var err error = syscall.ECONNRESET
			if c := tc.do(r); c != nil {
				got, err = io.ReadAll(c)
			}
			if tc.reset != errors.Is(err, syscall.ECONNRESET) && (tc.reset || err != nil) {
				t.Errorf("%s: %v, want a reset: %v", tc.why, err, tc.reset)
			}
			if string(got) != string(tc.answer) {
				t.Errorf("%s: answered % x, want % x", tc.why, got, tc.answer)
			}
			r.stop()
			r.serving.Wait()
			wantRefused(t, r.server, tc.reason, 1)
			if n := r.dials.Load(); n != 0 {
				t.Errorf("%s: %d backends were dialed", tc.why, n)
			}
		})
	}
}

// wantRefused asserts that a reason and no other was counted.
func wantRefused(t testing.TB, s *Server, reason string, n float64) {
	t.Helper()
	if got := testutil.ToFloat64(s.metrics.refused.WithLabelValues(reason)); got != n {
		t.Errorf("%s was counted %v times, want %v", reason, got, n)
	}
	for _, other := range slices.Concat(route.Reasons(), transport.HelloReasons(), ownReasons) {
		if got := testutil.ToFloat64(s.metrics.refused.WithLabelValues(other)); other != reason && got != 0 {
			t.Errorf("%s was counted too, %v times", other, got)
		}
	}
}

// wantAlert asserts that a connection gets the answer that every refused one gets.
func wantAlert(t testing.TB, c net.Conn) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || string(got) != string(alert) {
		t.Errorf("answered % x, %v, want the alert of every refusal", got, err)
	}
}

func TestServeRefusesWithoutBackend(t *testing.T) {
	r := newHarness(t, maxEndpointsTried+2, nil)
	for _, b := range r.backends {
		b.close()
	}
	wantAlert(t, r.call(r.label("west", 1024, route.Hint{})))
	r.stop()
	r.serving.Wait()
	wantRefused(t, r.server, reasonBackend, 1)
	if n := r.dials.Load(); n != maxEndpointsTried {
		t.Errorf("%d endpoints were tried, want %d", n, maxEndpointsTried)
	}
}

func TestServeRefusesWithoutState(t *testing.T) {
	r := newHarness(t, 0, nil)
	r.server.state.Store(nil)
	if err := r.server.ready(t.Context()); err == nil {
		t.Error("ready without a state")
	}
	wantAlert(t, r.call(r.label("west", 1024, route.Hint{})))
	r.stop()
	r.serving.Wait()
	wantRefused(t, r.server, reasonNotReady, 1)
}

// A connection whose hello was read no longer counts in the pool of pending ones.
func TestReadHelloLeavesPendingPool(t *testing.T) {
	r := newHarness(t, 1, func(s *Server) { s.hellos = budget.NewPending(1, 1) })
	for range 5 {
		wantEcho(t, r.call(r.label("west", 1024, route.Hint{})))
	}
	silent := r.dial()
	eventually(t, "the silent one is pending", func() bool { return r.server.hellos.Count() == 1 })
	wantEcho(t, r.call(r.label("west", 1024, route.Hint{})))
	wantEnded(t, "the older one, which sent no hello", silent)
}

// Connections that send no hello take no room from those that do.
func TestHalfOpenConnectionsDoNotBlockPeers(t *testing.T) {
	r := newHarness(t, 1, func(s *Server) {
		s.hellos = budget.NewPending(8, 8)
		s.shares = budget.New(8)
	})
	for range 100 {
		r.tryDial()
	}
	for range 4 {
		wantEcho(t, r.call(r.label("west", 1024, route.Hint{})))
	}
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(tooLong); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: has not happened", what)
		}
	}
}

// A connection keeps the state that it was routed by, as long as its Link lives.
func TestNewStateKeepsOpenConnections(t *testing.T) {
	r := newHarness(t, 1, nil)
	west, north := r.call(r.label("west", 1024, route.Hint{})), r.call(r.label("north", 1025, route.Hint{}))
	wantEcho(t, west)
	wantEcho(t, north)

	bare := &wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{Id: 1024}}}
	r.push(r.view(bare))
	wantEcho(t, west)
	if got, _ := io.ReadAll(r.call(r.label("west", 1024, route.Hint{}))); string(got) != string(alert) {
		t.Error("a new connection is routed by the old state")
	}

	view := r.view(upstream("agent/broken", "node-7:4144", make([]byte, 32)))
	delete(view, "link/west")
	r.push(view)
	if _, err := west.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("its Link is gone, even if something else of the view is broken: %v, want a reset", err)
	}
	wantEcho(t, north)

	r.server.OnState(uplink.State{View: view, Expired: true, Revoked: noneRevoked})
	wantEcho(t, north)
	if err := r.server.ready(t.Context()); err == nil {
		t.Error("ready by an expired state")
	}
	revoked := func(uid string) bool { return uid == "uid-north" }
	r.server.OnState(uplink.State{View: view, Expired: true, Revoked: revoked})
	if _, err := north.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("its Link was deleted while the state is expired: %v, want a reset", err)
	}
}

// A Link that is deleted and created again under its name is another Link.
func TestRecreatedLinkCutsOldConnections(t *testing.T) {
	r := newHarness(t, 1, nil)
	c := r.call(r.label("west", 1024, route.Hint{}))
	wantEcho(t, c)
	r.push(r.view(&wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{Name: "west", Uid: "another"}}}))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

func TestServePassesResets(t *testing.T) {
	r := newHarness(t, 1, nil)
	c := r.call(r.label("west", 1024, route.Hint{}))
	wantEcho(t, c)
	transport.Reset(c)
	eventually(t, "counted as a reset", func() bool {
		return testutil.ToFloat64(r.server.metrics.ended.WithLabelValues("reset")) == 1
	})
}

func TestServeDrains(t *testing.T) {
	r := newHarness(t, 1, nil)
	c := r.call(r.label("west", 1024, route.Hint{}))
	wantEcho(t, c)
	r.stop()
	eventually(t, "new connections are refused", func() bool {
		late, err := net.Dial("tcp", r.ln.Addr().String())
		if err == nil {
			late.Close()
		}
		return err != nil
	})
	wantEcho(t, c) // it is let to its end
	done := make(chan struct{})
	go func() { defer close(done); r.serving.Wait() }()
	select {
	case <-done:
		t.Error("Serve returned before its last connection ended")
	default:
	}
	c.Close()
	<-done
	if n := len(r.server.routed); n != 0 {
		t.Errorf("connections of %d links are kept", n)
	}
}

// When the drain time is over, what is still open is reset, and the gateway logs how many
// connections these were, because Prometheus cannot read the metrics of a process that has
// ended.
func TestDrainTimesOut(t *testing.T) {
	var log bytes.Buffer
	r := newHarness(t, 1, func(s *Server) {
		s.drain = 100 * time.Millisecond
		s.log = slog.New(slog.NewTextHandler(&log, nil))
	})
	c := r.call(r.label("west", 1024, route.Hint{}))
	wantEcho(t, c)
	r.stop()
	wantEnded(t, "a connection that outlasts the drain", c)
	r.serving.Wait()
	if n := testutil.ToFloat64(r.server.metrics.ended.WithLabelValues("drained")); n != 1 {
		t.Errorf("%v connections are counted as drained, want 1", n)
	}
	if want := `msg="drain period is over, open connections were reset" connections=1`; !strings.Contains(log.String(), want) {
		t.Errorf("the log is %q, want %s", log.String(), want)
	}
}

func TestServeReportsListenerError(t *testing.T) {
	r := newHarness(t, 1, nil)
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t).(*net.TCPListener)
	ln.Close()
	if err := r.server.Serve(t.Context(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want the listener's error", err)
	}
}

func TestReady(t *testing.T) {
	s := NewServer(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if s.ready(t.Context()) == nil {
		t.Error("ready without a state")
	}
	s.OnState(uplink.State{View: nodestream.View{}, Revoked: noneRevoked})
	if err := s.ready(t.Context()); err != nil {
		t.Errorf("not ready by a whole state: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if s.ready(ctx) == nil {
		t.Error("ready while draining")
	}
}

// A connection that has ended gives back all that counted it, however it ended: what
// leaks would lock a Link out for good.
func TestEndedConnectionsReleaseBudgets(t *testing.T) {
	r := newTLSHarness(t, nil)
	tunnel := r.tunnel()
	wantEcho(t, tunnel)
	replayed := r.call(r.label("west", 1024, route.Hint{}))
	eventually(t, "it is handed over", func() bool { return r.server.shares.Count("uid-west") == 2 })
	refused := r.call(r.label("west", 1024, route.ForHost("bar-7")))
	io.Copy(io.Discard, refused)
	tunnel.NetConn().Close()
	transport.Reset(replayed)
	eventually(t, "the link's share is given back", func() bool {
		return r.server.shares.Count("uid-west") == 0
	})
	eventually(t, "none is pending or to be proven", func() bool {
		return r.server.hellos.Count() == 0 && r.server.unproven.len() == 0
	})
	eventually(t, "none is open", func() bool {
		r.server.mu.Lock()
		defer r.server.mu.Unlock()
		return len(r.server.routed) == 0 && testutil.ToFloat64(r.server.metrics.open) == 0
	})
}

// A Link that is deleted after the label was opened and before the connection is bound
// would never cut that connection.
func TestBindRejectsDeletedLink(t *testing.T) {
	r := newHarness(t, 1, nil)
	bind := func(uid string) bool { return r.server.bind(&conn{}, uid, func(error) {}) }
	if !bind("uid-west") {
		t.Error("a Link that is there is taken for gone")
	}
	view := r.view()
	delete(view, "link/west")
	r.push(view)
	if bind("uid-west") {
		t.Error("a connection is bound to a Link that is gone")
	}
}

// One peer's connections leave room for another's.
func TestLinkShares(t *testing.T) {
	r := newHarness(t, 1, func(s *Server) { s.shares = budget.New(8) })
	for range 4 {
		wantEcho(t, r.call(r.label("west", 1024, route.Hint{})))
	}
	wantAlert(t, r.call(r.label("west", 1024, route.Hint{}))) // more than half of all
	wantEcho(t, r.call(r.label("north", 1025, route.Hint{})))
	wantRefused(t, r.server, reasonLinkShare, 1)
}
