package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
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
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/grpctls/grpctlstest"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type services = map[catalog.Key]catalog.Service

// recorder is a Sink and a CatalogSink that keeps what it receives.
type recorder struct {
	mu        sync.Mutex // guards all below
	hellos    []*Hello
	skews     []time.Duration
	deltas    []Delta
	times     []time.Time // of deltas
	services  services    // after the last Delta
	catalogs  []services  // after each Delta
	problems  map[catalog.Key][]catalog.Problem
	ends      []error
	number    uint64
	applied   []uint64
	freshness []Freshness
	slow      func()
}

func (r *recorder) Hello(_ string, h *Hello, skew time.Duration) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hellos, r.skews = append(r.hellos, h), append(r.skews, skew)
	return r.number
}

func (r *recorder) IssuersApplied(_ string, number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = append(r.applied, number)
}

func (r *recorder) Freshness(_ string, f Freshness) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.freshness = append(r.freshness, f)
}

func (r *recorder) Catalog(_ string, d Delta) {
	if r.slow != nil {
		r.slow()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.services == nil {
		r.services, r.problems = services{}, map[catalog.Key][]catalog.Problem{}
	}
	r.deltas, r.times = append(r.deltas, d), append(r.times, time.Now())
	for _, s := range d.Upserts {
		r.services[s.Key()] = s
		delete(r.problems, s.Key())
	}
	for _, k := range d.Removed {
		delete(r.services, k)
		delete(r.problems, k)
	}
	maps.Copy(r.problems, d.Problems)
	r.catalogs = append(r.catalogs, maps.Clone(r.services))
}

func (r *recorder) Disconnected(_ string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends = append(r.ends, err)
}

// counts returns how often each method was called.
func (r *recorder) counts() (hellos, deltas, ends int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.hellos), len(r.deltas), len(r.ends)
}

// newest returns the services that the sink holds; nil: it was never called.
func (r *recorder) newest() services {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.services)
}

func (r *recorder) lastDelta() Delta {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.deltas) == 0 {
		return Delta{}
	}
	return r.deltas[len(r.deltas)-1]
}

func (r *recorder) lastEnd() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ends) == 0 {
		return nil
	}
	return r.ends[len(r.ends)-1]
}

// world has east, which serves, and west, which dials, in a bubble of fake time. East
// knows west as "west", and west knows east as "east".
type world struct {
	t          *testing.T
	east, west *Board
	published  services // by east to west
	atEast     recorder // what east receives
	atWest     recorder
	so         ServerOptions
	co         ClientOptions
	dial       func(context.Context) (net.Conn, error) // instead of ln's
	strangers  atomic.Bool                             // east knows no peer
	distrust   atomic.Bool                             // west accepts east's certificate no more
	mu         sync.Mutex                              // guards hints
	hints      []ReplicaID                             // of west's handshakes
	server     *Server
	tlsW       *tls.Config
	ln         *bufconn.Listener
	up         atomic.Bool
	tasks      sync.WaitGroup
	ctx        context.Context
	end        context.CancelFunc
	stop       context.CancelFunc // of east's server alone
	serverImpl CatalogServer      // instead of the real one
	subscriber *Subscriber        // of west
	metricsS   *Metrics
	metricsC   *Metrics
}

func hello(version string) *Hello {
	return &Hello{
		Version:       version,
		LinkPublicKey: make([]byte, linkKeyBytes),
		IssuerList:    []byte("list of " + version),
	}
}

func newWorld(t *testing.T) *world {
	w := &world{
		t:        t,
		east:     NewBoard(),
		west:     NewBoard(),
		ln:       bufconn.Listen(1 << 10),
		metricsS: NewMetrics(nil),
		metricsC: NewMetrics(nil),
	}
	w.ctx, w.end = context.WithCancel(t.Context())
	w.subscriber = NewSubscriber("east", "east", w.west, &w.atWest, SubscriberOptions{})
	for b, v := range map[*Board]string{w.east: "east", w.west: "west"} {
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
	identify := func(cs tls.ConnectionState) (string, error) {
		if w.strangers.Load() {
			return "", errors.New("no Link has this root")
		}
		return cs.PeerCertificates[0].Subject.CommonName, nil
	}
	w.server = NewServer(identify, w.east, &w.atEast, w.so)
	var serving context.Context
	serving, w.stop = context.WithCancel(w.ctx)
	w.tasks.Go(func() {
		if err := w.server.Serve(serving, w.ln, creds); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) client() *Client { return w.clientFor(w.ctx) }

func (w *world) clientFor(ctx context.Context) *Client {
	return w.clientTo(ctx, &w.atWest, func(ctx context.Context) (net.Conn, error) {
		if w.dial != nil {
			return w.dial(ctx)
		}
		if !w.up.Load() {
			return nil, errors.New("no route")
		}
		return w.ln.DialContext(ctx)
	})
}

// clientTo runs a Client of west for one address until ctx ends.
func (w *world) clientTo(ctx context.Context, sink Sink,
	dial func(context.Context) (net.Conn, error)) *Client {
	config := func(hint ReplicaID) (*tls.Config, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.hints = append(w.hints, hint)
		return w.tlsW, nil
	}
	verify := func(tls.ConnectionState) error {
		if w.distrust.Load() {
			return errors.New("the certificate has expired")
		}
		return nil
	}
	c := w.subscriber.NewClient(sink, dial, config, verify, w.co)
	w.tasks.Go(func() {
		if err := c.Run(ctx); err != nil {
			w.t.Error(err)
		}
	})
	return c
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

// service returns a valid Service with a filler of size bytes.
func service(name string, size int) catalog.Service {
	s := catalog.Service{
		Namespace: "shop", Name: name, Ready: true,
		Ports: []catalog.Port{
			{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: 1024},
		},
		Identities: []string{"spiffe://east/ns/shop/sa/bar"},
	}
	if size > 0 {
		s.Annotations = map[string]string{"filler": strings.Repeat("x", size)}
	}
	return s
}

// What a Service asks for its traffic comes back as it was sent, and what no exporter
// sends stays within bounds after Validate.
func TestSettingsCross(t *testing.T) {
	sent := service("bar", 0)
	sent.Ports[0].Declared = trafficsettings.TCP
	sent.Settings = trafficsettings.Settings{
		Timeout:            trafficsettings.None,
		PerTryTimeout:      time.Second,
		Retries:            3,
		RetryOn:            trafficsettings.Retry5xx,
		MaxConnections:     1,
		MaxPendingRequests: 2,
		MaxRequests:        3,
		SlowStart:          time.Minute,
		PreferSameZone:     true,
	}
	raw, err := marshalService(sent)
	if err != nil {
		t.Fatal(err)
	}
	read := func(raw []byte) catalog.Service {
		m, err := unmarshalService(raw)
		if err != nil {
			t.Fatal(err)
		}
		return decode(m)
	}
	if got := read(raw); !got.Equal(sent) {
		t.Errorf("(-want +got):\n%s", cmp.Diff(sent, got))
	}
	m := encode(sent)
	m.Ports[0].Declared = 256 + Protocol_TCP
	m.Settings = &TrafficSettings{
		TimeoutMs: new(uint32(math.MaxUint32)), Retries: new(uint32(math.MaxUint32)), RetryOn: math.MaxUint32,
		SlowStartMs: math.MaxUint32, MaxRequests: math.MaxUint32,
	}
	if raw, err = proto.Marshal(m); err != nil {
		t.Fatal(err)
	}
	got, problems := read(raw).Validate("east")
	if got.Settings != got.Settings.Clamp() || got.Settings.Retries != trafficsettings.MaxRetries ||
		got.Settings.Timeout != trafficsettings.MaxDuration ||
		got.Ports[0].Declared != trafficsettings.Detect || len(problems) > 0 {
		t.Errorf("settings %+v, port %+v, problems %v", got.Settings, got.Ports[0], problems)
	}
}

func catalogOf(list ...catalog.Service) services {
	m := services{}
	for _, s := range list {
		m[s.Key()] = s
	}
	return m
}

// publish makes s the catalog of west.
func (w *world) publish(s services) services {
	w.t.Helper()
	if err := w.east.Publish(difference(w.published, s, "west"), Version{}); err != nil {
		w.t.Fatal(err)
	}
	w.east.SetReady("west")
	w.published = s
	return s
}

// difference returns the Listings, by key, that turn old into next.
func difference(old, next services, links ...string) (changes []Listing) {
	for k := range old {
		if _, stays := next[k]; !stays {
			changes = append(changes, Listing{Key: k})
		}
	}
	for k, s := range next {
		if was, ok := old[k]; !ok || !was.Equal(s) {
			changes = append(changes, Listing{Key: k, Service: &s, Links: links})
		}
	}
	slices.SortFunc(changes, func(a, b Listing) int { return a.Key.Compare(b.Key) })
	return changes
}

func (w *world) wantCatalog(why string, want services) {
	w.t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, w.atWest.newest(), cmpopts.EquateEmpty()); diff != "" {
		w.t.Fatalf("%s: catalog (-want +got):\n%s", why, diff)
	}
}

func (w *world) ended(m *Metrics, direction, why string) float64 {
	return testutil.ToFloat64(m.ended.WithLabelValues(direction, why))
}

func TestStream(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.atWest.number = 7
		w.serve()
		w.client()
		bubble.Pass(time.Minute)
		if h, d, e := w.atWest.counts(); h != 1 || d != 0 || e != 0 {
			t.Errorf("an idle stream must live, and a catalog that is not ready must not be sent: "+
				"%d hellos, %d deltas, %d ends", h, d, e)
		}
		if h, _, _ := w.atEast.counts(); h != 1 || w.atEast.hellos[0].GetVersion() != "west" ||
			string(w.atEast.hellos[0].GetIssuerList()) != "list of west" {
			t.Errorf("either side must identify itself, east received %v", w.atEast.hellos)
		}
		w.atEast.mu.Lock()
		if !slices.Equal(w.atEast.applied, []uint64{7}) {
			t.Errorf("east must learn once which list of its issuers west has applied: %v", w.atEast.applied)
		}
		w.atEast.mu.Unlock()
		w.wantCatalog("first", w.publish(catalogOf(service("bar", 1), service("foo", 1))))
		bubble.Pass(time.Second)
		w.wantCatalog("change", w.publish(catalogOf(service("bar", 2))))
		bubble.Pass(time.Second)
		w.wantCatalog("all unexported", w.publish(catalogOf()))
		bubble.Pass(time.Second)
		secret := service("secret", 1)
		if err := w.east.Publish([]Listing{
			{secret.Key(), &secret, []string{"north"}},
		}, Version{}); err != nil {
			t.Fatal(err)
		}
		bubble.Pass(time.Second)
		w.wantCatalog("a Service for another Link", catalogOf())
		if err := w.east.SetHello(hello("east-2")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if h, _, _ := w.atWest.counts(); h != 2 || w.atWest.hellos[1].GetVersion() != "east-2" {
			t.Errorf("a new hello must be sent on open streams, west received %v", w.atWest.hellos)
		}
	})
}

func TestEveryFieldCrosses(t *testing.T) {
	want := catalog.Service{
		Namespace:  "shop",
		Name:       "bar",
		Identities: []string{"spiffe://east/ns/shop/sa/a", "spiffe://east/ns/shop/sa/b"},
		Ready:      true, SessionAffinity: catalog.AffinityClientIP, SessionAffinitySeconds: 60,
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
		if _, d, _ := w.atWest.counts(); d != 1 {
			t.Errorf("only a complete catalog may be handed over: the sink received %d deltas, want 1", d)
		}
	})
}

func TestRandomSlowSink(t *testing.T) {
	for seed := range uint64(6) {
		in(t, func(t *testing.T, w *world) {
			slow, rnd := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
			w.atWest.slow = func() { <-time.After(time.Duration(slow.IntN(9000)) * time.Millisecond) }
			w.serve()
			w.client()
			var offered []services
			for range 30 {
				s := services{}
				for i := range 20 {
					if rnd.IntN(3) > 0 {
						one := service(fmt.Sprint("s", i), rnd.IntN(15<<10))
						s[one.Key()] = one
					}
				}
				offered = append(offered, w.publish(s))
				if rnd.IntN(8) == 0 {
					w.cutAll()
				}
				bubble.Pass(time.Duration(rnd.IntN(4000)) * time.Millisecond)
			}
			bubble.Pass(2 * time.Minute)
			why := fmt.Sprintf("seed %d: however slow the sink is, the copy ends equal to the last catalog",
				seed)
			w.wantCatalog(why, offered[len(offered)-1])
			for _, got := range w.atWest.catalogs {
				found := false
				for _, o := range offered {
					found = found || cmp.Equal(o, got, cmpopts.EquateEmpty())
				}
				if !found {
					t.Fatalf("seed %d: the sink was handed a catalog that never existed", seed)
				}
			}
			for _, err := range w.atWest.ends {
				if errors.Is(err, ErrSilent) || errors.Is(err, ErrProtocol) {
					t.Errorf("seed %d: a slow sink is not the fault of the peer: %v", seed, err)
				}
			}
		})
	}
}

// seenHints returns the replicas that west's handshakes asked for.
func (w *world) seenHints() []ReplicaID {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.hints)
}

func (w *world) lastHint() ReplicaID {
	all := w.seenHints()
	return all[len(all)-1]
}

// cutAll makes east end all streams: for a moment it knows no peer.
func (w *world) cutAll() {
	w.strangers.Store(true)
	bubble.Pass(3 * time.Second)
	w.strangers.Store(false)
}

func TestUnlinking(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		want := w.publish(catalogOf(service("bar", 1)))
		w.serve()
		w.client()
		w.wantCatalog("linked", want)
		w.strangers.Store(true)
		bubble.Pass(3 * time.Second)
		if err := w.atWest.lastEnd(); reason(err) != endedNotLinked {
			t.Errorf("a stream may outlive its Link by a heartbeat at most; west saw %v", err)
		}
		if err := w.atEast.lastEnd(); !errors.Is(err, ErrNotLinked) {
			t.Errorf("east must learn that its peer has no stream: %v", err)
		}
		w.wantCatalog("the end of a stream removes nothing", want)
	})
}

func TestSilence(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.Heartbeat, w.so.Silence = time.Hour, time.Hour // east hangs
		want := w.publish(catalogOf(service("bar", 1)))
		w.serve()
		w.client()
		w.wantCatalog("first", want)
		bubble.Pass(6*time.Second - 1)
		if _, _, ends := w.atWest.counts(); ends != 0 {
			t.Errorf("the stream ended before 6 s of silence")
		}
		bubble.Pass(time.Nanosecond)
		if err := w.atWest.lastEnd(); !errors.Is(err, ErrSilent) {
			t.Errorf("6 s of silence must end the stream, got %v", err)
		}
		w.wantCatalog("an outage freezes the copy", want)
	})
}

func TestServerEndsSilentStreams(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.co.Heartbeat, w.co.Silence = time.Hour, time.Hour // west hangs
		w.serve()
		w.client()
		bubble.Pass(6*time.Second + time.Millisecond)
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
		bubble.Pass(time.Hour)
		_, _, ends := w.atWest.counts()
		if ends < 200 || ends > 2000 {
			t.Errorf("an hour's outage made %d attempts: want about one in 5 s", ends)
		}
		want := w.publish(catalogOf(service("bar", 9)))
		w.up.Store(true)
		bubble.Pass(11 * time.Second)
		w.wantCatalog("what was unexported meanwhile is removed", want)
	})
}

func TestSkew(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.serverImpl = script(func(s Catalog_SyncServer) error {
			send := func(m *Message) { _ = s.Send(m) }
			h := hello("east")
			h.TimeMs = time.Now().Add(-3 * time.Minute).UnixMilli()
			send(&Message{Body: &Message_Hello{Hello: h}})
			for _, skew := range []time.Duration{
				-3 * time.Minute,
				-3*time.Minute + 9*time.Second,
				time.Second,
			} {
				bubble.Pass(2 * time.Second)
				beat := &Heartbeat{TimeMs: time.Now().Add(skew).UnixMilli()}
				send(&Message{Body: &Message_Heartbeat{Heartbeat: beat}})
			}
			<-s.Context().Done()
			return nil
		})
		w.serve()
		w.client()
		bubble.Pass(10 * time.Second)
		want := []time.Duration{-3 * time.Minute, time.Second}
		w.atWest.mu.Lock()
		defer w.atWest.mu.Unlock()
		if diff := cmp.Diff(want, w.atWest.skews); diff != "" {
			t.Errorf("the sink must learn the skew at first and when it has moved (-want +got):\n%s", diff)
		}
	})
}

// scripted is a peer that sends what a test wants.
type scripted struct {
	UnimplementedCatalogServer
	f func(Catalog_SyncServer) error
}

func script(f func(Catalog_SyncServer) error) CatalogServer { return scripted{f: f} }

func (s scripted) Sync(stream Catalog_SyncServer) error { return s.f(stream) }

func update(revision uint64, complete bool, list ...*Service) *Message {
	u := &Update{Revision: revision, Complete: complete}
	for _, s := range list {
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
		if err != nil {
			panic(err)
		}
		u.Upserts = append(u.Upserts, raw)
	}
	return &Message{Body: &Message_Update{Update: u}}
}

func TestHostilePeer(t *testing.T) {
	greet := &Message{Body: &Message_Hello{Hello: hello("east")}}
	many := func(n, size int) (ms []*Message) {
		for i := range n {
			ms = append(ms, update(uint64(i+1), i == n-1, encode(service(fmt.Sprint("s", i), size))))
		}
		return ms
	}
	crowd := func(updates int) (ms []*Message) {
		for i := range updates {
			var list []*Service
			for j := range 10 {
				list = append(list, encode(service(fmt.Sprint("s", i, "-", j), 1)))
			}
			ms = append(ms, update(uint64(i+1), i == updates-1, list...))
		}
		return ms
	}
	bar := encode(service("bar", 1))
	garbage := update(1, true)
	garbage.GetUpdate().Upserts = [][]byte{{0xff}}
	unknown := update(1, true)
	unknown.GetUpdate().Removed = []string{"shop/bar"}
	epoch := update(1, true)
	epoch.GetUpdate().Version = &Update_Version{Epoch: "a\nb"}
	replica := hello("east")
	replica.Replica = []byte("short")
	heartbeat := &Heartbeat{Freshness: &Heartbeat_Freshness{Fresher: []byte("short")}}
	cases := map[string]struct {
		why    string
		say    []*Message
		want   error // nil: told by reason alone
		reason string
	}{
		"no hello": {"the sender is unknown", []*Message{update(1, true)}, ErrProtocol, endedProtocol},
		"short key": {
			"a key is 32 bytes",
			[]*Message{{Body: &Message_Hello{Hello: &Hello{LinkPublicKey: []byte("x")}}}},
			ErrProtocol,
			endedProtocol,
		},
		"odd version": {
			"operators see it",
			[]*Message{
				{Body: &Message_Hello{Hello: &Hello{Version: "a\nb", LinkPublicKey: make([]byte, 32)}}},
			},
			ErrProtocol,
			endedProtocol,
		},
		"revision lost": {
			"the copies differ",
			[]*Message{greet, update(2, true)},
			ErrProtocol,
			endedProtocol,
		},
		"duplicate": {
			"it is not clear which one counts",
			[]*Message{greet, update(1, true, bar, bar)},
			delta.ErrDuplicate,
			endedProtocol,
		},
		"slash": {
			"a/b + c and a + b/c have the same key",
			[]*Message{greet, update(1, true, &Service{Namespace: "a/b", Name: "c"})},
			ErrProtocol,
			endedProtocol,
		},
		"nameless": {
			"it has no key",
			[]*Message{greet, update(1, true, &Service{})},
			ErrProtocol,
			endedProtocol,
		},
		"ack of nothing": {
			"nothing was sent",
			[]*Message{greet, {Body: &Message_Ack{Ack: &Ack{Revision: 1}}}},
			ErrProtocol,
			endedProtocol,
		},
		"not a service": {"its key is unknown", []*Message{greet, garbage}, ErrProtocol, endedProtocol},
		"unknown key": {
			"the copies differ",
			[]*Message{greet, unknown},
			delta.ErrUnknownKey,
			endedProtocol,
		},
		"odd epoch": {"operators see it", []*Message{greet, epoch}, ErrProtocol, endedProtocol},
		"short replica": {
			"an endpoint id has 8 bytes",
			[]*Message{{Body: &Message_Hello{Hello: replica}}},
			ErrProtocol,
			endedProtocol,
		},
		"short fresher": {
			"an endpoint id has 8 bytes",
			[]*Message{greet, {Body: &Message_Heartbeat{Heartbeat: heartbeat}}},
			ErrProtocol,
			endedProtocol,
		},
		"huge service": {
			"a Service is small",
			append([]*Message{greet}, update(1, false, encode(service("s", DefaultBounds.ServiceBytes)))),
			delta.ErrTooLarge,
			endedLimit,
		},
		"huge message": {
			"memory is bounded before anything is read",
			append([]*Message{greet}, update(1, false, encode(service("s", maxMessage)))),
			nil,
			endedLimit,
		},
		"too many": {
			"a peer must not fill our memory",
			append([]*Message{greet}, crowd(11)...),
			delta.ErrTooMany,
			endedLimit,
		},
		"never complete": {
			"a peer must not fill our memory",
			append([]*Message{greet}, crowd(31)[:25]...),
			delta.ErrTooMany,
			endedLimit,
		},
		"too much": {
			"a peer must not fill our memory",
			append([]*Message{greet}, many(20, 60<<10)...),
			delta.ErrTooLarge,
			endedLimit,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				small := hello("west")
				small.Bounds = Bounds{Services: 100, Bytes: 1 << 20}.message()
				if err := w.west.SetHello(small); err != nil {
					t.Fatal(err)
				}
				calls := 0
				w.serverImpl = script(func(s Catalog_SyncServer) error {
					calls++
					if err := s.Send(tc.say[0]); err != nil {
						return err
					}
					for m := (*Message)(nil); tc.say[0] == greet && m.GetSubscribe() == nil; {
						var err error
						if m, err = s.Recv(); err != nil {
							return err
						}
					}
					for _, m := range tc.say[1:] {
						if err := s.Send(m); err != nil {
							return err
						}
					}
					<-s.Context().Done()
					return nil
				})
				w.serve()
				w.client()
				bubble.Pass(2 * time.Minute)
				err := w.atWest.lastEnd()
				if tc.want != nil && !errors.Is(err, tc.want) || reason(err) != tc.reason {
					t.Errorf("%s: ended with %v (%s), want %v (%s)", tc.why, err, reason(err), tc.want,
						tc.reason)
				}
				if calls != 1 || w.ended(w.metricsC, outbound, tc.reason) != 1 {
					t.Errorf("%s: such a peer must be counted once and not dialed for minutes, it was "+
						"dialed %d times",
						tc.why, calls)
				}
				if _, c, _ := w.atWest.counts(); c != 0 {
					t.Errorf("%s: the sink received %d deltas", tc.why, c)
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
		"catalog unasked":  {"a server does not subscribe", []*Message{greet, update(1, true)}},
		"subscribes first": {"the sender is unknown", []*Message{subscribe}},
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

// rawStream opens a stream to east without a Client.
func (w *world) rawStream(opts ...grpc.DialOption) Catalog_SyncClient {
	w.t.Helper()
	opts = append(opts,
		grpc.WithTransportCredentials(grpctls.New(grpctls.Config{
			ALPN: ALPN,
			TLS:  grpctlstest.Config(w.tlsW),
		})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return w.ln.DialContext(ctx)
		}))
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
					t.Fatalf("%d Updates are unacknowledged, want %d", seen, window)
				}
				acked = true
				_ = s.Send(&Message{Body: &Message_Ack{Ack: &Ack{Revision: 3}}})
			} else if m.GetHeartbeat() != nil {
				break
			}
		}
		if seen != window+3 {
			t.Errorf("three Acks must make room for three Updates, %d came", seen-window)
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
		bubble.Pass(29 * time.Second) // without reading
		if n := w.ended(w.metricsS, inbound, endedSlow); n != 0 {
			t.Error("a peer has 30 s")
		}
		bubble.Pass(2 * time.Second)
		if n := w.ended(w.metricsS, inbound, endedSlow); n != 1 {
			t.Error("a peer that does not read for 30 s must be cut off and counted")
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
		}, context.DeadlineExceeded, endedUnanswered},
		"gateway resets": {"a middlebox may drop long hellos", func(w *world) {
			w.dial = func(ctx context.Context) (net.Conn, error) {
				near, far := net.Pipe()
				w.tasks.Go(func() {
					_, _ = far.Read(make([]byte, 1<<14))
					far.Close()
				})
				return near, nil
			}
		}, errUnanswered, endedUnanswered},
		"peer not trusted": {"a wrong certificate must not look like a missing one", func(w *world) {
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
				bubble.Pass(12 * time.Second)
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
		"stops": {
			"the rollout of a replica is not an outage",
			nil,
			func(w *world, _ net.Conn) { w.stop() },
			endedOrderly,
			"in good order",
		},
		"dies": {"a lost stream is not one that never worked", nil,
			func(_ *world, c net.Conn) { c.Close() }, endedBroken, "the connection broke"},
		"not ready": {
			"dialing again is all there is to do",
			ends(errNotReady),
			nil,
			endedNotReady,
			"is starting",
		},
		"full": {
			"firewalls have nothing to do with it",
			ends(errStreams),
			nil,
			endedStreams,
			"too many streams",
		},
		"cut off": {"in TLS 1.3 a rejected client learns it after its handshake",
			script(func(s Catalog_SyncServer) error { grpctls.CloseConn(s.Context()); return nil }),
			nil,
			endedHandshake,
			"both clocks"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.serverImpl = tc.east
				w.serve()
				var first net.Conn
				w.dial = func(ctx context.Context) (net.Conn, error) {
					if first != nil {
						// Further attempts would hide the reason of the first failure.
						return nil, errors.New("no route")
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
					t.Errorf("%s: ended with %v (%s), which says %q; want %s", tc.why, err, got,
						Explain(err), tc.want)
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
		bubble.Pass(time.Second)
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
		bubble.Pass(time.Second)
		if h, _, ends := w.atEast.counts(); h != 2 || ends != 0 {
			t.Errorf("one of two streams ended, so the peer is still connected: %d hellos, %d ends", h, ends)
		}
		w.cutAll()
		if _, _, ends := w.atEast.counts(); ends != 1 {
			t.Errorf("now no stream is left: %d ends, want 1", ends)
		}
	})
}

func TestBoardJoinsHelloAndGateways(t *testing.T) {
	b := NewBoard()
	if err := b.SetGateways([]string{"198.51.100.7:4143"}); err != nil || b.Hello() != nil {
		t.Fatalf("gateways alone are not a hello: %v, %v", b.Hello(), err)
	}
	if err := b.SetHello(hello("east")); err != nil {
		t.Fatal(err)
	}
	first := b.Hello()
	if err := b.SetGateways([]string{"198.51.100.7:4143"}); err != nil || b.Hello() != first {
		t.Errorf("the same gateways must not be sent again: %v", err)
	}
	many := make([]string, 3*MaxGateways)
	for i := range many {
		many[i] = fmt.Sprintf("198.51.100.%d:4143", i)
	}
	if err := b.SetGateways(many); err != nil || len(b.Hello().GetGateways()) != MaxGateways {
		t.Errorf("of %d gateways %d are sent, want %d: %v", len(many), len(b.Hello().GetGateways()),
			MaxGateways, err)
	}
	if err := b.SetHello(hello("east-2")); err != nil || len(b.Hello().GetGateways()) != MaxGateways ||
		b.Hello().GetVersion() != hello("east-2").GetVersion() {
		t.Errorf("a new hello must keep the gateways: %v, %v", b.Hello(), err)
	}
}

func TestHelloWithHostileGateways(t *testing.T) {
	for why, gateways := range map[string][]string{
		"more than any cluster has": make([]string, MaxGateways+1),
		"longer than any name":      {strings.Repeat("a", maxGateway+1)},
		"control characters":        {"198.51.100.7:4143\x1b[2J"},
	} {
		h := hello("east")
		h.Gateways = gateways
		if err := checkHello(h); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", why, err)
		}
	}
}
