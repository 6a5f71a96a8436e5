package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
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
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/grpctls/grpctlstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type services = map[catalog.Key]catalog.Service

// memory is a Sink that remembers.
type memory struct {
	mu       sync.Mutex // guards all below
	hellos   []*Hello
	skews    []time.Duration
	catalogs []services
	ends     []error
	number   uint64
	trusts   []uint64
	slow     func()
}

func (m *memory) Hello(_ string, h *Hello, skew time.Duration) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hellos, m.skews = append(m.hellos, h), append(m.skews, skew)
	return m.number
}

func (m *memory) Trusts(_ string, number uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trusts = append(m.trusts, number)
}

func (m *memory) Catalog(_ string, s services) {
	if m.slow != nil {
		m.slow()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.catalogs = append(m.catalogs, s)
}

func (m *memory) Disconnected(_ string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends = append(m.ends, err)
}

// counts returns how often each method was called.
func (m *memory) counts() (hellos, catalogs, ends int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.hellos), len(m.catalogs), len(m.ends)
}

func (m *memory) newest() services {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.catalogs) == 0 {
		return nil
	}
	return m.catalogs[len(m.catalogs)-1]
}

func (m *memory) lastEnd() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ends) == 0 {
		return nil
	}
	return m.ends[len(m.ends)-1]
}

// world is east, who serves, and west, who dials, in a bubble of fake time. East
// calls west "west", west calls east "east".
type world struct {
	t          *testing.T
	east, west Board
	atEast     memory // what east learns
	atWest     memory
	so         ServerOptions
	co         ClientOptions
	dial       func(context.Context) (net.Conn, error) // instead of ln's
	strangers  atomic.Bool                             // east knows nobody
	server     *Server
	tlsW       *tls.Config
	ln         *bufconn.Listener
	up         atomic.Bool
	tasks      sync.WaitGroup
	ctx        context.Context
	end        context.CancelFunc
	stop       context.CancelFunc // of east's server alone
	serverImpl CatalogServer      // instead of the real one
	metricsS   *Metrics
	metricsC   *Metrics
}

func hello(version string) *Hello {
	return &Hello{Version: version, LinkPublicKey: make([]byte, linkKeyBytes), IssuerList: []byte("list of " + version)}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, ln: bufconn.Listen(1 << 10), metricsS: NewMetrics(nil), metricsC: NewMetrics(nil)}
	w.ctx, w.end = context.WithCancel(t.Context())
	for b, v := range map[*Board]string{&w.east: "east", &w.west: "west"} {
		if err := b.SetHello(hello(v)); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) serve() {
	serverTLS, clientTLS := grpctlstest.Pair(w.t, "west")
	w.tlsW = clientTLS
	w.so.Metrics, w.co.Metrics = w.metricsS, w.metricsC
	creds := grpctls.New(grpctls.Config{ALPN: ALPN, TLS: grpctlstest.Config(serverTLS)})
	w.up.Store(true)
	if w.serverImpl != nil {
		g := grpc.NewServer(grpc.Creds(creds), grpc.MaxSendMsgSize(1<<30))
		RegisterCatalogServer(g, w.serverImpl)
		w.tasks.Go(func() { _ = g.Serve(w.ln) })
		context.AfterFunc(w.ctx, g.Stop)
		return
	}
	peer := func(cs tls.ConnectionState) (string, error) {
		if w.strangers.Load() {
			return "", errors.New("no Link has this root")
		}
		return cs.PeerCertificates[0].Subject.CommonName, nil
	}
	w.server = NewServer(peer, &w.east, &w.atEast, w.so)
	var serving context.Context
	serving, w.stop = context.WithCancel(w.ctx)
	w.tasks.Go(func() {
		if err := w.server.Serve(serving, w.ln, creds); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) client() { w.clientFor(w.ctx) }

func (w *world) clientFor(ctx context.Context) {
	dial := func(ctx context.Context) (net.Conn, error) {
		if w.dial != nil {
			return w.dial(ctx)
		}
		if !w.up.Load() {
			return nil, errors.New("no route")
		}
		return w.ln.DialContext(ctx)
	}
	c := NewClient("east", &w.west, &w.atWest, dial, grpctlstest.Config(w.tlsW), w.co)
	w.tasks.Go(func() {
		if err := c.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) close() {
	w.end()
	w.tasks.Wait()
}

func in(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		f(t, w)
	})
}

// service is one with a filler of about size bytes.
func service(name string, size int) catalog.Service {
	return catalog.Service{
		Namespace: "shop", Name: name, Ready: true,
		Ports:      []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: 1024}},
		Identities: []string{"spiffe://east/ns/shop/sa/" + strings.Repeat("x", size)},
	}
}

func catalogOf(list ...catalog.Service) services {
	m := services{}
	for _, s := range list {
		m[s.Key()] = s
	}
	return m
}

func (w *world) publish(s services) services {
	w.t.Helper()
	if err := w.east.Publish("west", s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) wantCatalog(why string, want services) {
	w.t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, w.atWest.newest()); diff != "" {
		w.t.Fatalf("%s: catalog (-want +got):\n%s", why, diff)
	}
}

func (w *world) ended(m *Metrics, direction, why string) float64 {
	return testutil.ToFloat64(m.ended.WithLabelValues(direction, why))
}

func TestConversation(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.atWest.number = 7
		w.serve()
		w.client()
		time.Sleep(time.Minute)
		if h, c, e := w.atWest.counts(); h != 1 || c != 0 || e != 0 {
			t.Errorf("an idle stream lives, and nothing is said before the catalog is known: %d hellos, %d catalogs, %d ends", h, c, e)
		}
		if h, _, _ := w.atEast.counts(); h != 1 || w.atEast.hellos[0].GetVersion() != "west" || string(w.atEast.hellos[0].GetIssuerList()) != "list of west" {
			t.Errorf("either side tells who it is, east learnt %v", w.atEast.hellos)
		}
		w.atEast.mu.Lock()
		if !slices.Equal(w.atEast.trusts, []uint64{7}) {
			t.Errorf("east learns once which list of its issuers west has: %v", w.atEast.trusts)
		}
		w.atEast.mu.Unlock()
		w.wantCatalog("first", w.publish(catalogOf(service("bar", 1), service("foo", 1))))
		w.wantCatalog("change", w.publish(catalogOf(service("bar", 2))))
		w.wantCatalog("all unexported", w.publish(catalogOf()))
		if err := w.east.Publish("north", catalogOf(service("secret", 1))); err != nil {
			t.Fatal(err)
		}
		w.wantCatalog("another's catalog", catalogOf())
		if err := w.east.SetHello(hello("east-2")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if h, _, _ := w.atWest.counts(); h != 2 || w.atWest.hellos[1].GetVersion() != "east-2" {
			t.Errorf("a new hello is said on open streams, west learnt %v", w.atWest.hellos)
		}
	})
}

func TestEveryFieldCrosses(t *testing.T) {
	want := catalog.Service{
		Namespace: "shop", Name: "bar", Identities: []string{"spiffe://east/ns/shop/sa/a", "spiffe://east/ns/shop/sa/b"},
		Ready: true, SessionAffinity: catalog.AffinityClientIP, SessionAffinitySeconds: 60,
		Headless: true, Hosts: []catalog.Host{{Name: "bar-0", Ready: true}, {Name: "bar-1"}},
		Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"note": "b"},
		Ports: []catalog.Port{
			{Name: "dns", Protocol: "UDP", Port: 53},
			{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "kubernetes.io/h2c", Route: 1024}},
	}
	if diff := cmp.Diff(want, decode(encode(want))); diff != "" {
		t.Errorf("what a Service says must cross (-want +got):\n%s", diff)
	}
	if got := decode(&Service{Ports: []*Port{{Port: 65536 + 80}}}).Ports[0].Port; got != 0 {
		t.Errorf("a port past 65535 became %d: it must not be taken for another", got)
	}
}

func TestLargeCatalog(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		var list []catalog.Service
		for i := range 500 {
			list = append(list, service(fmt.Sprint("s", i), 2<<10))
		}
		want := w.publish(catalogOf(list...))
		w.serve()
		w.client()
		w.wantCatalog("1 MiB in chunks", want)
		if _, c, _ := w.atWest.counts(); c != 1 {
			t.Errorf("only a whole catalog may be seen: the sink saw %d, want 1", c)
		}
	})
}

func TestRandomSlowSink(t *testing.T) {
	for seed := range uint64(6) {
		in(t, func(t *testing.T, w *world) {
			slow, rnd := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
			w.atWest.slow = func() { time.Sleep(time.Duration(slow.IntN(9000)) * time.Millisecond) }
			w.serve()
			w.client()
			var offered []services
			for range 30 {
				s := services{}
				for i := range 20 {
					if rnd.IntN(3) > 0 {
						one := service(fmt.Sprint("s", i), rnd.IntN(20<<10))
						s[one.Key()] = one
					}
				}
				offered = append(offered, w.publish(s))
				if rnd.IntN(8) == 0 {
					w.cutAll()
				}
				time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
			}
			time.Sleep(2 * time.Minute)
			w.wantCatalog(fmt.Sprintf("seed %d: however slow, the copy ends equal to the last catalog", seed), offered[len(offered)-1])
			for _, got := range w.atWest.catalogs {
				found := false
				for _, o := range offered {
					found = found || maps.EqualFunc(o, got, catalog.Service.Equal)
				}
				if !found {
					t.Fatalf("seed %d: the sink was handed a catalog that never was", seed)
				}
			}
			for _, err := range w.atWest.ends {
				if errors.Is(err, ErrSilent) || errors.Is(err, ErrProtocol) {
					t.Errorf("seed %d: a slow sink is not a fault of the peer: %v", seed, err)
				}
			}
		})
	}
}

// cutAll makes east end all streams, by knowing nobody for a moment.
func (w *world) cutAll() {
	w.strangers.Store(true)
	time.Sleep(3 * time.Second)
	w.strangers.Store(false)
}

func TestUnlinking(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		want := w.publish(catalogOf(service("bar", 1)))
		w.serve()
		w.client()
		w.wantCatalog("linked", want)
		w.strangers.Store(true)
		time.Sleep(3 * time.Second)
		if err := w.atWest.lastEnd(); reason(err) != endedNotLinked {
			t.Errorf("a stream outlives its Link by a heartbeat at most; west saw %v", err)
		}
		if err := w.atEast.lastEnd(); !errors.Is(err, ErrNotLinked) {
			t.Errorf("east must know that its peer has no stream: %v", err)
		}
		w.wantCatalog("the mirror's business is not decided here", want)
	})
}

func TestSilence(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.Heartbeat, w.so.Silence = time.Hour, time.Hour // east hangs
		want := w.publish(catalogOf(service("bar", 1)))
		w.serve()
		w.client()
		w.wantCatalog("first", want)
		time.Sleep(6*time.Second - 1)
		synctest.Wait()
		if _, _, ends := w.atWest.counts(); ends != 0 {
			t.Errorf("given up before 6 s of silence")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if err := w.atWest.lastEnd(); !errors.Is(err, ErrSilent) {
			t.Errorf("6 s of silence end the stream, got %v", err)
		}
		w.wantCatalog("an outage freezes the copy", want)
	})
}

func TestServerHearsSilence(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.co.Heartbeat, w.co.Silence = time.Hour, time.Hour // west hangs
		w.serve()
		w.client()
		time.Sleep(6*time.Second + time.Millisecond)
		synctest.Wait()
		if n := w.ended(w.metricsS, inbound, endedSilent); n != 1 {
			t.Errorf("east must end the silent stream, %v ended so", n)
		}
	})
}

func TestOutage(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.publish(catalogOf(service("bar", 1), service("foo", 1)))
		w.serve()
		w.client()
		synctest.Wait()
		w.up.Store(false)
		w.cutAll()
		time.Sleep(time.Hour)
		_, _, ends := w.atWest.counts()
		if ends < 200 || ends > 2000 {
			t.Errorf("an hour's outage made %d attempts: want about one in 5 s", ends)
		}
		want := w.publish(catalogOf(service("bar", 9)))
		w.up.Store(true)
		time.Sleep(11 * time.Second)
		w.wantCatalog("what went away meanwhile is gone", want)
	})
}

func TestSkew(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serverImpl = script(func(s Catalog_SyncServer) error {
			send := func(m *Message) { _ = s.Send(m) }
			h := hello("east")
			h.TimeMs = time.Now().Add(-3 * time.Minute).UnixMilli()
			send(&Message{Body: &Message_Hello{Hello: h}})
			for _, skew := range []time.Duration{-3 * time.Minute, -3*time.Minute + 9*time.Second, time.Second} {
				time.Sleep(2 * time.Second)
				send(&Message{Body: &Message_Heartbeat{Heartbeat: &Heartbeat{TimeMs: time.Now().Add(skew).UnixMilli()}}})
			}
			<-s.Context().Done()
			return nil
		})
		w.serve()
		w.client()
		time.Sleep(10 * time.Second)
		want := []time.Duration{-3 * time.Minute, time.Second}
		w.atWest.mu.Lock()
		defer w.atWest.mu.Unlock()
		if diff := cmp.Diff(want, w.atWest.skews); diff != "" {
			t.Errorf("skew is told at first and when it moved (-want +got):\n%s", diff)
		}
	})
}

// script is a peer that says what a test wants.
type scripted struct {
	UnimplementedCatalogServer
	f func(Catalog_SyncServer) error
}

func script(f func(Catalog_SyncServer) error) CatalogServer { return scripted{f: f} }

func (s scripted) Sync(stream Catalog_SyncServer) error { return s.f(stream) }

func update(revision uint64, complete bool, list ...*Service) *Message {
	return &Message{Body: &Message_Update{Update: &Update{Revision: revision, Upserts: list, Complete: complete}}}
}

func TestHostilePeer(t *testing.T) {
	greet := &Message{Body: &Message_Hello{Hello: hello("east")}}
	many := func(n, size int) (ms []*Message) {
		for i := range n {
			ms = append(ms, update(uint64(i+1), false, encode(service(fmt.Sprint("s", i), size))))
		}
		return ms
	}
	var crowd []*Message
	for i := range 101 {
		var list []*Service
		for j := range 100 {
			list = append(list, encode(service(fmt.Sprint("s", i, "-", j), 1)))
		}
		crowd = append(crowd, update(uint64(i+1), false, list...))
	}
	bar := encode(service("bar", 1))
	cases := map[string]struct {
		why    string
		say    []*Message
		want   error // nil: told by reason alone
		reason string
	}{
		"no hello":       {"who speaks?", []*Message{update(1, true)}, ErrProtocol, endedProtocol},
		"short key":      {"a key is 32 bytes", []*Message{{Body: &Message_Hello{Hello: &Hello{LinkPublicKey: []byte("x")}}}}, ErrProtocol, endedProtocol},
		"odd version":    {"it is shown to operators", []*Message{{Body: &Message_Hello{Hello: &Hello{Version: "a\nb", LinkPublicKey: make([]byte, 32)}}}}, ErrProtocol, endedProtocol},
		"revision lost":  {"the copies have drifted apart", []*Message{greet, update(2, true)}, ErrProtocol, endedProtocol},
		"duplicate":      {"which one is it?", []*Message{greet, update(1, true, bar, bar)}, delta.ErrDuplicate, endedProtocol},
		"slash":          {"a/b + c and a + b/c have one key", []*Message{greet, update(1, true, &Service{Namespace: "a/b", Name: "c"})}, ErrProtocol, endedProtocol},
		"nameless":       {"nothing can be made of it", []*Message{greet, update(1, true, &Service{})}, ErrProtocol, endedProtocol},
		"ack of nothing": {"nothing was sent", []*Message{greet, {Body: &Message_Ack{Ack: &Ack{Revision: 1}}}}, ErrProtocol, endedProtocol},
		"huge service":   {"a Service is small", append([]*Message{greet}, update(1, false, encode(service("s", maxService)))), delta.ErrTooLarge, endedLimit},
		"huge message":   {"memory is bounded before anything is read", append([]*Message{greet}, update(1, false, encode(service("s", maxMessage)))), nil, endedLimit},
		"too many":       {"a peer must not fill our memory", append([]*Message{greet}, crowd...), delta.ErrTooMany, endedLimit},
		"too much":       {"a peer must not fill our memory", append([]*Message{greet}, many(600, 60<<10)...), delta.ErrTooLarge, endedLimit},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				calls := 0
				w.serverImpl = script(func(s Catalog_SyncServer) error {
					calls++
					for _, m := range tc.say {
						if err := s.Send(m); err != nil {
							return err
						}
					}
					<-s.Context().Done()
					return nil
				})
				w.serve()
				w.client()
				time.Sleep(2 * time.Minute)
				err := w.atWest.lastEnd()
				if tc.want != nil && !errors.Is(err, tc.want) || reason(err) != tc.reason {
					t.Errorf("%s: ended with %v (%s), want %v (%s)", tc.why, err, reason(err), tc.want, tc.reason)
				}
				if calls != 1 || w.ended(w.metricsC, outbound, tc.reason) != 1 {
					t.Errorf("%s: such a peer is left alone for minutes and counted once, it was called %d times", tc.why, calls)
				}
				if _, c, _ := w.atWest.counts(); c != 0 {
					t.Errorf("%s: the sink was handed %d catalogs of it", tc.why, c)
				}
			})
		})
	}
}

func TestHostileClient(t *testing.T) {
	greet := &Message{Body: &Message_Hello{Hello: hello("west")}}
	subscribe := &Message{Body: &Message_Subscribe{Subscribe: &Subscribe{}}}
	cases := map[string]struct {
		why string
		say []*Message
	}{
		"catalog unasked":  {"a server asks for no catalog", []*Message{greet, update(1, true)}},
		"subscribes first": {"who speaks?", []*Message{subscribe}},
		"subscribes twice": {"one catalog is enough", []*Message{greet, subscribe, subscribe}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.serve()
				s := w.rawStream()
				for _, m := range tc.say {
					_ = s.Send(m)
				}
				var err error
				for err == nil {
					_, err = s.Recv()
				}
				if reason(err) != endedProtocol || w.ended(w.metricsS, inbound, endedProtocol) != 1 {
					t.Errorf("%s: ended with %v", tc.why, err)
				}
			})
		})
	}
}

// rawStream is a stream to east without a client around it.
func (w *world) rawStream(opts ...grpc.DialOption) Catalog_SyncClient {
	w.t.Helper()
	opts = append(opts,
		grpc.WithTransportCredentials(grpctls.New(grpctls.Config{ALPN: ALPN, TLS: grpctlstest.Config(w.tlsW)})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.ln.DialContext(ctx) }))
	conn, err := grpc.NewClient("passthrough:///east", opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := NewCatalogClient(conn).Sync(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	context.AfterFunc(w.ctx, func() { conn.Close() })
	return s
}

func TestWindow(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		var list []catalog.Service
		for i := range 100 {
			list = append(list, service(fmt.Sprint("s", i), 20<<10))
		}
		w.publish(catalogOf(list...))
		w.serve()
		s := w.rawStream()
		_ = s.Send(&Message{Body: &Message_Hello{Hello: hello("west")}})
		_ = s.Send(&Message{Body: &Message_Subscribe{Subscribe: &Subscribe{}}})
		seen, acked := 0, false
		for {
			m, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if u := m.GetUpdate(); u != nil {
				seen++
			}
			if m.GetHeartbeat() != nil && !acked {
				if seen != window {
					t.Fatalf("%d Updates are out without an Ack, want %d", seen, window)
				}
				acked = true
				_ = s.Send(&Message{Body: &Message_Ack{Ack: &Ack{Revision: 3}}})
			} else if m.GetHeartbeat() != nil {
				break
			}
		}
		if seen != window+3 {
			t.Errorf("three Acks make room for three Updates, %d came", seen-window)
		}
	})
}

func TestSlowPeerIsCut(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.Silence = time.Hour
		var list []catalog.Service
		for i := range 100 {
			list = append(list, service(fmt.Sprint("s", i), 20<<10))
		}
		w.publish(catalogOf(list...))
		w.serve()
		s := w.rawStream(grpc.WithStaticStreamWindowSize(64 << 10))
		_ = s.Send(&Message{Body: &Message_Hello{Hello: hello("west")}})
		_ = s.Send(&Message{Body: &Message_Subscribe{Subscribe: &Subscribe{}}})
		time.Sleep(29 * time.Second) // and takes nothing
		if n := w.ended(w.metricsS, inbound, endedSlow); n != 0 {
			t.Error("a peer has 30 s")
		}
		time.Sleep(2 * time.Second)
		if n := w.ended(w.metricsS, inbound, endedSlow); n != 1 {
			t.Error("a peer that takes nothing for 30 s must be cut and counted")
		}
	})
}

func TestConnectFailures(t *testing.T) {
	refused := errors.New("not this one")
	cases := map[string]struct {
		why    string
		set    func(*world)
		want   error
		reason string
	}{
		"dial fails": {"the operator must see the reason", func(w *world) {
			w.dial = func(context.Context) (net.Conn, error) { return nil, refused }
		}, refused, endedUnreachable},
		"dial hangs": {"an attempt is bounded", func(w *world) {
			w.dial = func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}, context.DeadlineExceeded, endedUnreachable},
		"gateway says nothing": {"a handshake is bounded", func(w *world) {
			w.dial = func(ctx context.Context) (net.Conn, error) {
				near, far := net.Pipe()
				context.AfterFunc(w.ctx, func() { far.Close() })
				w.tasks.Go(func() { _, _ = io.Copy(io.Discard, far) })
				return near, nil
			}
		}, context.DeadlineExceeded, endedHandshake},
		"peer not believed": {"a wrong certificate is told from a missing one", func(w *world) {
			w.tlsW.VerifyConnection = func(tls.ConnectionState) error { return refused }
		}, refused, endedHandshake},
		"turned away": {"a gateway says no more than this", func(w *world) {
			w.dial = func(ctx context.Context) (net.Conn, error) {
				near, far := net.Pipe()
				w.tasks.Go(func() {
					_, _ = far.Read(make([]byte, 1<<14))
					_, _ = far.Write([]byte{21, 3, 3, 0, 2, 2, 112}) // unrecognized_name
					far.Close()
				})
				return near, nil
			}
		}, errTurnedAway, endedTurnedAway},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.serve()
				tc.set(w)
				w.client()
				time.Sleep(12 * time.Second)
				err := w.atWest.lastEnd()
				if !errors.Is(err, tc.want) || reason(err) != tc.reason {
					t.Errorf("%s: got %v (%s), want %v (%s)", tc.why, err, reason(err), tc.want, tc.reason)
				}
			})
		})
	}
}

func TestHowStreamsAreLost(t *testing.T) {
	ends := func(err error) CatalogServer {
		return script(func(Catalog_SyncServer) error { return asStatus(err) })
	}
	cases := map[string]struct {
		why  string
		east CatalogServer // instead of the real one
		lose func(w *world, conn net.Conn)
		want string
		says string
	}{
		"stops": {"a replica that is rolled is no outage", nil, func(w *world, _ net.Conn) { w.stop() }, endedOrderly, "in good order"},
		"dies": {"what was there and is lost is not what never answered", nil,
			func(_ *world, c net.Conn) { c.Close() }, endedBroken, "the connection broke"},
		"not ready": {"to come again is all there is to do", ends(errNotReady), nil, endedNotReady, "is starting"},
		"full":      {"firewalls have nothing to do with it", ends(errStreams), nil, endedStreams, "too many streams"},
		"cut off": {"in TLS 1.3 who is not believed learns it after the handshake",
			script(func(s Catalog_SyncServer) error { grpctls.Cut(s.Context()); return nil }), nil, endedHandshake, "both clocks"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.serverImpl = tc.east
				w.serve()
				var first net.Conn
				w.dial = func(ctx context.Context) (net.Conn, error) {
					if first != nil {
						return nil, errors.New("no route") // what is dialled anew says nothing of what was lost
					}
					var err error
					first, err = w.ln.DialContext(ctx)
					return first, err
				}
				w.client()
				if synctest.Wait(); tc.lose != nil {
					tc.lose(w, first)
					synctest.Wait()
				}
				w.atWest.mu.Lock()
				defer w.atWest.mu.Unlock()
				if len(w.atWest.ends) == 0 {
					t.Fatalf("%s: the stream has not ended", tc.why)
				}
				err := w.atWest.ends[0]
				if err == nil {
					err = ErrEnded
				}
				if got := reason(err); got != tc.want || !strings.Contains(Explain(err), tc.says) {
					t.Errorf("%s: ended with %v (%s), which says %q; want %s", tc.why, err, got, Explain(err), tc.want)
				}
			})
		})
	}
}

func TestServerLimits(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.MaxStreamsPerLink = 2
		w.serve()
		for range 3 {
			w.client()
		}
		time.Sleep(time.Second)
		if n := testutil.ToFloat64(w.metricsS.open.WithLabelValues(inbound)); n != 2 {
			t.Errorf("a Link may have 2 streams, it has %v", n)
		}
		if w.ended(w.metricsS, inbound, endedStreams) == 0 {
			t.Error("the third must be counted")
		}
	})
}

func TestServerTellsOnlyTheLastEnd(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serve()
		w.client()
		ctx, cancel := context.WithCancel(w.ctx)
		w.clientFor(ctx)
		synctest.Wait()
		cancel()
		time.Sleep(time.Second)
		if h, _, ends := w.atEast.counts(); h != 2 || ends != 0 {
			t.Errorf("one of two streams ended, and the peer is still there: %d hellos, %d ends", h, ends)
		}
		w.cutAll()
		if _, _, ends := w.atEast.counts(); ends != 1 {
			t.Errorf("now no stream is left: %d ends, want 1", ends)
		}
	})
}

func TestBoard(t *testing.T) {
	var b Board
	if err := b.SetHello(&Hello{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("a hello that no peer takes must be refused here, got %v", err)
	}
	good, bad := service("good", 1), service("bad", maxService)
	if err := b.Publish("west", catalogOf(good, bad)); !errors.Is(err, delta.ErrTooLarge) {
		t.Errorf("what cannot cross must be named, got %v", err)
	}
	west, _, _ := b.catalogs.Read("west")
	if len(west) != 1 {
		t.Errorf("one bad Service must not keep the others back: %v", west)
	}
	if err := b.Publish("north", catalogOf(good)); err != nil {
		t.Error(err)
	}
	north, _, _ := b.catalogs.Read("north")
	if north["shop/good"] != west["shop/good"] {
		t.Error("Links that may see the same share it")
	}
}

func FuzzHear(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c := newConversation(true)
		if _, err := c.hear(&Message{Body: &Message_Hello{Hello: hello("x")}}); err != nil {
			t.Fatal(err)
		}
		for _, raw := range [][]byte{first, second} {
			m := &Message{}
			if proto.Unmarshal(raw, m) != nil {
				return
			}
			n, err := c.hear(m)
			if err != nil {
				return
			}
			for key, s := range n.view {
				if k := decode(s).Key(); k.String() != key {
					t.Errorf("Service %v is filed under %q", k, key)
				}
			}
		}
	})
}

func TestBoardJoinsHelloAndGateways(t *testing.T) {
	var b Board
	if err := b.SetGateways([]string{"198.51.100.7:4143"}); err != nil || b.Hello() != nil {
		t.Fatalf("gateways alone are no hello: %v, %v", b.Hello(), err)
	}
	if err := b.SetHello(hello("east")); err != nil {
		t.Fatal(err)
	}
	first := b.Hello()
	if err := b.SetGateways([]string{"198.51.100.7:4143"}); err != nil || b.Hello() != first {
		t.Errorf("the same gateways again are said again: %v", err)
	}
	many := make([]string, 3*MaxGateways)
	for i := range many {
		many[i] = fmt.Sprintf("198.51.100.%d:4143", i)
	}
	if err := b.SetGateways(many); err != nil || len(b.Hello().GetGateways()) != MaxGateways {
		t.Errorf("of %d gateways %d are said, want %d: %v", len(many), len(b.Hello().GetGateways()), MaxGateways, err)
	}
	if err := b.SetHello(hello("east-2")); err != nil || len(b.Hello().GetGateways()) != MaxGateways || b.Hello().GetVersion() != hello("east-2").GetVersion() {
		t.Errorf("a new hello keeps the gateways: %v, %v", b.Hello(), err)
	}
}

func TestHelloWithHostileGateways(t *testing.T) {
	for why, gateways := range map[string][]string{
		"more than any cluster says": make([]string, MaxGateways+1),
		"longer than any name":       {strings.Repeat("a", maxGateway+1)},
		"text for terminals":         {"198.51.100.7:4143\x1b[2J"},
	} {
		h := hello("east")
		h.Gateways = gateways
		if err := checkHello(h); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", why, err)
		}
	}
}
