package agent

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// A hopClient plays gateway and far agent to east's agent, well or badly.
type hopClient struct {
	header         route.Header
	key            route.HopKey
	announcedHello []byte // the ClientHello that the header announces; nil: the true one
	plane          identity.Plane
	cred           *identity.Credential // nil: none
}

func (w *harness) newHopClient() *hopClient {
	here := netip.MustParseAddrPort("192.0.2.1:4143")
	return &hopClient{
		header: route.Header{
			Source: here, Destination: here, PodUID: "bar-0", Endpoint: route.EndpointID{1}, Ready: []route.EndpointID{{1}, {2}},
			ReadyCount: 2, Generation: 9, Budget: 4, Time: time.Now(), Link: "west",
		},
		key: w.eastTrust.hop, plane: identity.PlaneTunnel, cred: w.westTrust.credential(w.TB, "shop", "alice"),
	}
}

// dialHop dials east's agent.
func (w *harness) dialHop() *net.TCPConn {
	w.Helper()
	c := must(net.Dial("tcp", w.hop.Addr().String()))(w.TB).(*net.TCPConn)
	c.SetDeadline(time.Now().Add(testTimeout))
	w.Cleanup(func() { transport.Reset(c) })
	return c
}

// dialSession dials east's agent as the gate has it.
func (w *harness) dialSession(g *hopClient) (*tunnel.Conn, error) {
	w.Helper()
	raw := transport.WrapDialed(&headerConn{Conn: w.dialHop(), head: func(hello []byte) []byte {
		if g.announcedHello != nil {
			hello = g.announcedHello
		}
		return must(g.header.Marshal(g.key, hello))(w.TB)
	}})
	var cred func() (*identity.Credential, error)
	if g.cred != nil {
		cred = func() (*identity.Credential, error) { return g.cred, nil }
	}
	tun := tls.Client(raw, identity.ClientTLS(g.plane, "x.causeway.internal", cred,
		identity.VerifyAnyWorkload(func() *identity.Anchors { return w.eastTrust.anchors(w.TB) }, time.Now)))
	err := tun.HandshakeContext(w.Context())
	raw.MarkProven()
	return tunnel.NewConn(tun), err
}

// headerConn writes a header ahead of the first write, which is the ClientHello.
type headerConn struct {
	net.Conn
	head func(hello []byte) []byte
	did  bool
}

func (c *headerConn) Write(b []byte) (int, error) {
	if c.did {
		return c.Conn.Write(b)
	}
	c.did = true
	_, err := c.Conn.Write(append(c.head(b), b...))
	return len(b), err
}

func TestHopPortRefusals(t *testing.T) {
	theirs := tunnel.Hello{Namespace: "shop", Service: "bar", Port: 80}
	cases := map[string]struct {
		why     string
		edit    func(*harness, *hopClient)
		hello   tunnel.Hello
		refused tunnel.Code // by an answer; unspecified: by the end of the connection
		reason  string
	}{
		"wrong MAC": {
			why: "whoever is no gateway of this cluster", reason: "header_bad_mac", hello: theirs,
			edit: func(_ *harness, g *hopClient) { g.key[0]++ },
		},
		"old header": {
			why: "a header that was overheard", reason: "header_stale", hello: theirs,
			edit: func(_ *harness, g *hopClient) { g.header.Time = time.Now().Add(-route.HeaderWindow - time.Second) },
		},
		"another hello": {
			why: "a header that was overheard and put before another hello", reason: "header_hello_mismatch", hello: theirs,
			edit: func(_ *harness, g *hopClient) { g.announcedHello = make([]byte, 1000) },
		},
		"no certificate": {
			why: "nobody calls as nobody", reason: "tls_other", hello: theirs,
			edit: func(_ *harness, g *hopClient) { g.cred = nil },
		},
		"unlinked cluster": {
			why: "its certificate is as good as none", reason: "tls_trust_domain", hello: theirs,
			edit: func(w *harness, g *hopClient) { g.cred = newCluster(w.TB, "north").credential(w.TB, "shop", "alice") },
		},
		"same name, another's root": {
			why: "a trust domain is whose issuers the Link lists", reason: "tls_unknown_authority", hello: theirs,
			edit: func(w *harness, g *hopClient) { g.cred = newCluster(w.TB, "west-1").credential(w.TB, "shop", "alice") },
		},
		"own cluster": {
			why: "our own workloads have no business at this port", reason: "tls_trust_domain", hello: theirs,
			edit: func(w *harness, g *hopClient) { g.cred = w.eastTrust.credential(w.TB, "shop", "alice") },
		},
		"another plane": {
			why: "a catalog's client is not to be made to speak to a tunnel", reason: "tls_other", hello: theirs,
			edit: func(_ *harness, g *hopClient) { g.plane = identity.PlaneCatalog },
		},
		"unknown pod": {
			why: "it may come with newer state, and then it does not", reason: "unknown_pod", hello: theirs,
			edit: func(_ *harness, g *hopClient) { g.header.PodUID = "qux-0" },
		},
		"right label, wrong frame": {
			why: "the frame's name alone decides", reason: "no_export", refused: tunnel.Code_NOT_EXPORTED,
			hello: tunnel.Hello{Namespace: "shop", Service: "secret", Port: 80},
		},
		"wrong port": {
			why: "an export is its ports", reason: "no_port", refused: tunnel.Code_NOT_EXPORTED,
			hello: tunnel.Hello{Namespace: "shop", Service: "bar", Port: 81},
		},
		"terminating": {
			why: "it takes no new connections", reason: "pod_terminating", refused: tunnel.Code_NO_ENDPOINT, hello: theirs,
			edit: func(w *harness, _ *hopClient) {
				w.terminatePod()
				w.push()
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newHarness(t, echo)
			g := w.newHopClient()
			if tc.edit != nil {
				tc.edit(w, g)
			}
			session, err := w.dialSession(g)
			if err == nil {
				_, err = session.Open(t.Context(), tc.hello, 0, []byte("early"))
			}
			var refused *tunnel.Refused
			switch {
			case err == nil:
				t.Errorf("%s: it is served", tc.why)
			case errors.As(err, &refused) != (tc.refused != 0):
				t.Errorf("%s: %v", tc.why, err)
			case refused != nil && refused.Code != tc.refused:
				t.Errorf("%s: answered %v, want %v", tc.why, refused.Code, tc.refused)
			case refused != nil:
				// A reset could overtake the answer on a lossy way: the agent leaves
				// the end to us.
				raw := transport.RawOf(session)
				raw.SetReadDeadline(time.Now().Add(refusalReadTimeout / 10))
				if _, err := raw.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s: after the answer: %v", tc.why, err)
				}
			}
			transport.RawOf(session).Reset()
			w.wantRefusal(w.east, inbound, tc.reason)
			if n := w.dials.Load(); n != 0 {
				t.Errorf("%s: the app was dialled", tc.why)
			}
		})
	}
}

// What is not ours is closed before its TLS is looked at, or waited for.
func TestInvalidHeaderClosesBeforeTLS(t *testing.T) {
	w := newHarness(t, echo)
	g := w.newHopClient()
	wrong := g.key
	wrong[0]++
	hello := make([]byte, 1000)
	for why, bytes := range map[string][]byte{
		"garbage":   make([]byte, 4096),
		"HTTP":      []byte("GET / HTTP/1.1\r\nHost: node\r\n\r\n"),
		"wrong MAC": must(g.header.Marshal(wrong, hello))(t), // the hello behind it is never sent
	} {
		c := w.dialHop()
		c.SetDeadline(time.Now().Add(headerTimeout - time.Second))
		c.Write(bytes)
		got, err := io.ReadAll(c)
		wantReset(t, why, err)
		if len(got) > 0 {
			t.Errorf("%s is answered by %d bytes", why, len(got))
		}
	}
	if tells := w.logs[1].all("connection refused", "level"); len(tells) == 0 || tells[0] != "DEBUG" {
		t.Errorf("strangers are told of at levels %v", tells)
	}
	silent := w.dialHop()
	silent.Write(must(g.header.Marshal(g.key, hello))(t)[:100])
	_, err := io.ReadAll(silent)
	wantReset(t, "half a header", err)
	eventually(t, "it is counted", func() bool { return refusals(w.east, inbound, "header_read_failed") == 1 })
}

func TestHelloAnswerListsEndpoints(t *testing.T) {
	w := newHarness(t, echo)
	g := w.newHopClient()
	session := must(w.dialSession(g))(t)
	got, err := session.Open(t.Context(), barHello, 0, nil)
	want := tunnel.Answer{
		Code: tunnel.Code_OK, Endpoint: g.header.Endpoint, Ready: g.header.Ready, ReadyCount: 2, Generation: 9, Budget: 4,
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v, (-want +got)\n%s", err, diff)
	}
	transport.RawOf(session).Reset()
}

var barHello = tunnel.Hello{Namespace: "shop", Service: "bar", Port: 80}

// exchange says hello in an exchange that is open, and hears the answer.
func exchange(t *testing.T, session *tunnel.Conn) {
	t.Helper()
	if err := tunnel.WriteEmpty(session, tunnel.TypeEnd); err != nil {
		t.Fatal(err)
	}
	reply := ""
	for {
		kind, n, err := session.Next()
		if err != nil {
			t.Fatalf("after %q: %v", reply, err)
		}
		session.ConsumePrefix()
		body := make([]byte, n)
		if _, err := io.ReadFull(session, body); err != nil {
			t.Fatal(err)
		}
		reply += string(body)
		if kind != tunnel.TypeData {
			if kind != tunnel.TypeEnd || reply != "you said hello" {
				t.Errorf("%q and %v", reply, kind)
			}
			session.ReadIdle() // a session that retires says close_notify instead
			return
		}
	}
}

// A session waits for its caller between HELLO and OPEN, and between exchanges: what was
// admitted before is decided on again for each OPEN.
func TestSessionAwaitsOpen(t *testing.T) {
	greeted := func(t *testing.T, w *harness) *tunnel.Conn {
		t.Helper()
		session := must(w.dialSession(w.newHopClient()))(t)
		must(session.ExchangeHello(t.Context(), barHello))(t)
		if n := w.dials.Load(); n != 0 {
			t.Fatal("the app was dialed before OPEN")
		}
		return session
	}
	used := func(t *testing.T, w *harness) *tunnel.Conn {
		t.Helper()
		session := greeted(t, w)
		if err := session.OpenNext(t.Context(), 0, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		exchange(t, session)
		return session
	}
	for name, make := range map[string]func(*testing.T, *harness) *tunnel.Conn{"before the first": greeted, "between exchanges": used} {
		t.Run("opens "+name, func(t *testing.T) {
			w := newHarness(t, echo)
			session := make(t, w)
			for range 3 {
				if err := session.OpenNext(t.Context(), 0, []byte("hello")); err != nil {
					t.Fatal(err)
				}
				exchange(t, session)
			}
			session.Close()
		})
		t.Run("is a lease "+name, func(t *testing.T) {
			w := newHarness(t, echo)
			session := make(t, w)
			eventually(t, "it waits", func() bool { return w.east.waiting.Load() == 1 })
			w.change(&w.eastView, "link/west", nil)
			if _, _, err := session.Next(); err != io.EOF {
				t.Errorf("the Link is gone: %v, want close_notify", err)
			}
			transport.RawOf(session).Reset()
		})
		t.Run("decides again "+name, func(t *testing.T) {
			w := newHarness(t, echo)
			session := make(t, w)
			dials := w.dials.Load()
			w.terminatePod()
			w.push()
			refused := (*tunnel.Refused)(nil)
			if err := session.OpenNext(t.Context(), 0, nil); !errors.As(err, &refused) || refused.Code != tunnel.Code_NO_ENDPOINT {
				t.Errorf("OPEN on a terminating pod: %v", err)
			}
			transport.RawOf(session).Reset()
			w.wantRefusal(w.east, inbound, "pod_terminating")
			if n := w.dials.Load(); n != dials {
				t.Error("the app was dialed")
			}
		})
		t.Run("outlives an application that refuses "+name, func(t *testing.T) {
			w := newHarness(t, echo)
			session := make(t, w)
			port := w.app.Addr().(*net.TCPAddr).Port
			w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[0].Targets = map[uint32]uint32{80: 1} })
			refused := (*tunnel.Refused)(nil)
			if err := session.OpenNext(t.Context(), 0, []byte("hello")); !errors.As(err, &refused) || refused.Code != tunnel.Code_POD_REFUSED || !tunnel.Reusable(err) {
				t.Errorf("OPEN for an application that refuses: %v", err)
			}
			if err := session.ReadIdle(); err != nil {
				t.Fatal(err)
			}
			w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[0].Targets = map[uint32]uint32{80: uint32(port)} })
			if err := session.OpenNext(t.Context(), 0, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			exchange(t, session)
			session.Close()
			w.wantRefusal(w.east, inbound, reasonPodRefused)
		})
	}
}

// An application may listen on one of its pod's addresses alone.
func TestDialPodTriesEachAddress(t *testing.T) {
	const silent = "127.77.2.99" // where nobody listens
	for name, addrs := range map[string][]string{"the first": {bar, silent}, "the second": {silent, bar}} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, echo)
			w.change(&w.eastView, "pod/bar-0", func(r *wire.Resource) { r.GetPod().Ips = addrs })
			if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
				t.Errorf("%q, %v", answer, err)
			}
		})
	}
	w := newHarness(t, echo)
	w.change(&w.eastView, "pod/bar-0", func(r *wire.Resource) { r.GetPod().Ips = []string{silent} })
	_, err := w.call(alice, "hello")
	wantReset(t, "nobody listens", err)
	w.wantRefusal(w.east, inbound, reasonPodRefused)
}

// A server that does not accept for a while is waited for, as within a cluster: its
// backlog is full, and the kernel drops what comes.
func TestDialPodWaitsForFullAcceptQueue(t *testing.T) {
	w := newHarness(t, echo)
	full := newFullQueue(t, bar)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[0].Targets = map[uint32]uint32{80: full.port()} })
	answered := make(chan error, 1)
	go func() {
		answer, err := w.call(alice, "hello")
		if err == nil && answer != "you said hello" {
			err = errors.New(answer)
		}
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("the call came to an end before anybody has accepted it: %v", err)
	case <-time.After(podTimeout + time.Second):
	}
	full.accept(echo)
	if err := <-answered; err != nil {
		t.Errorf("the call: %v", err)
	}
}

// TestOtherEndpointTakesCallsOfFullAcceptQueue: if one of two endpoints does not accept,
// the other one gets its calls.
func TestOtherEndpointTakesCallsOfFullAcceptQueue(t *testing.T) {
	w := newHarness(t, echoLines)
	w.addSecondEndpointThat(echoLines)
	full := newFullQueue(t, bar)
	w.awaitEndpoints(2)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[0].Targets = map[uint32]uint32{80: full.port()} })
	w.callMany(16, func() {})
	if n := refusals(w.east, inbound, reasonPodTimeout); n == 0 {
		t.Error("no call has reached the endpoint that does not accept")
	}
}

// TestFullAcceptQueuesAreWaitedFor: if no endpoint accepts, calls wait for one of them.
func TestFullAcceptQueuesAreWaitedFor(t *testing.T) {
	w := newHarness(t, echoLines)
	w.addSecondEndpointThat(echoLines)
	queues := []*fullQueue{newFullQueue(t, bar), newFullQueue(t, nextToBar)}
	w.awaitEndpoints(2)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		for i, p := range r.GetExport().Pods {
			p.Targets = map[uint32]uint32{80: queues[i].port()}
		}
	})
	w.callMany(16, func() {
		<-time.After(2*shortAppTimeout - time.Second)
		for _, q := range queues {
			q.accept(echoLines)
		}
	})
}

// awaitEndpoints makes calls until west's agent knows how many endpoints there are.
func (w *harness) awaitEndpoints(n int) {
	w.Helper()
	eventually(w.TB, "the endpoints are known", func() bool {
		if err := w.callEcho(alice); err != nil {
			w.Fatal(err)
		}
		set, ok := w.west.endpointCache.lookup(aliceAccount, remotePort{"link-to-east", "shop", "bar", 80})
		return ok && len(set.ready) == n
	})
	eventually(w.TB, "these calls have ended", func() bool {
		return testutil.ToFloat64(w.west.metrics.open.WithLabelValues(outbound)) == 0
	})
}

// callMany makes calls at the same time, which must all be answered, and meanwhile calls
// do.
func (w *harness) callMany(n int, do func()) {
	w.Helper()
	answered := make(chan error, n)
	for range n {
		go func() { answered <- w.callEcho(alice) }()
	}
	do()
	for range n {
		if err := <-answered; err != nil {
			w.Errorf("a call: %v", err)
		}
	}
}

// callEcho calls an application that serves echoLines.
func (w *harness) callEcho(pod string) error {
	c, err := w.tryDial(pod)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, len("hello")))
	return err
}

// A fullQueue is a listener whose accept queue is full.
type fullQueue struct {
	net.Listener
	fill   []net.Conn
	served sync.WaitGroup
}

func newFullQueue(t *testing.T, host string) *fullQueue {
	t.Helper()
	// With a shorter queue the kernel would use SYN cookies for concurrent connections, and
	// reset those whose second segment comes before they are queued.
	q := &fullQueue{Listener: listenBacklog(t, host, 64)}
	t.Cleanup(func() {
		for _, c := range q.fill {
			c.Close()
		}
		q.Close()
		q.served.Wait()
	})
	for {
		c, err := net.DialTimeout("tcp", q.Addr().String(), 300*time.Millisecond)
		if err != nil {
			return q
		}
		q.fill = append(q.fill, c)
	}
}

func (q *fullQueue) port() uint32 { return uint32(q.Addr().(*net.TCPAddr).Port) }

// accept accepts all connections from now on, and has do serve each.
func (q *fullQueue) accept(do func(*net.TCPConn)) {
	q.served.Go(func() {
		for {
			c, err := q.Accept()
			if err != nil {
				return
			}
			q.served.Go(func() { defer c.Close(); c.SetDeadline(time.Now().Add(testTimeout)); do(c.(*net.TCPConn)) })
		}
	})
}

// listenBacklog listens with a queue of a size of its own.
func listenBacklog(t *testing.T, host string, backlog int) net.Listener {
	t.Helper()
	fd := must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	at := netip.MustParseAddr(host).As4()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: at}), unix.Listen(fd, backlog)); err != nil {
		t.Fatal(err)
	}
	return must(net.FileListener(f))(t)
}

// Strangers who say nothing take no room of those who come by a gateway.
func TestSilentConnectionsDoNotBlockGateways(t *testing.T) {
	w := newHarness(t, echo)
	for range 2 * maxHeadersFrom {
		w.dialHop()
	}
	eventually(t, "the oldest of them are reset", func() bool {
		return refusals(w.east, inbound, reasonTooManyHeaders) >= maxHeadersFrom
	})
	if n := testutil.ToFloat64(w.east.metrics.open.WithLabelValues(inbound)); n != 0 {
		t.Errorf("%v of them count as open connections", n)
	}
	if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
		t.Errorf("%q, %v", answer, err)
	}
}

// A stranger that connects without end is refused before its bytes are read, and the port
// still serves gateways.
func TestStrangersConnectAtABoundedRate(t *testing.T) {
	w := newHarness(t, echo)
	stranger := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.77.9.9")}}
	for range headerBurst + 500 {
		c, err := stranger.Dial("tcp", w.hop.Addr().String())
		if errors.Is(err, syscall.ECONNRESET) {
			continue // it was refused before the dial returned
		}
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		transport.Reset(c.(*net.TCPConn))
	}
	eventually(t, "the last of them are refused", func() bool { return refusals(w.east, inbound, reasonHeaderRate) >= 1 })
	if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
		t.Errorf("%q, %v", answer, err)
	}
	for source, want := range map[string]bool{"127.0.0.1/32": true, "127.77.9.9/32": false} {
		if _, got := w.east.headerLimiter.gateways.get(netip.MustParsePrefix(source), gatewayTime); got != want {
			t.Errorf("%s is a gateway: %v, want %v", source, got, want)
		}
	}
}

// Handshakes whose client has gone cost those behind them nothing, and one link none of
// another's turns.
func TestDeadHandshakesDoNotDelayOthers(t *testing.T) {
	w := newHarness(t, echo)
	g := w.newHopClient()
	hello := must(recordHello(t))(t)
	free := w.east.handshakeLimiter
	for range runtime.GOMAXPROCS(0) {
		if !free.Acquire(t.Context(), "busy", func() bool { return true }) {
			t.Fatal("no turn is free")
		}
	}
	var dead []*net.TCPConn
	for range 100 {
		c := w.dialHop()
		c.Write(append(must(g.header.Marshal(g.key, hello))(t), hello...))
		dead = append(dead, c)
	}
	eventually(t, "they wait", func() bool { return free.Waiting() == len(dead) })
	for _, c := range dead {
		transport.Reset(c)
	}
	answered := make(chan error, 1)
	go func() { _, err := w.call(alice, "hello"); answered <- err }()
	for range runtime.GOMAXPROCS(0) {
		free.Release()
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	eventually(t, "they are counted", func() bool { return refusals(w.east, inbound, reasonBusy) == 100 })
}

// A pod that makes connections in a loop is stopped before it costs both nodes their CPU.
func TestCallRate(t *testing.T) {
	t.Run("by pod", func(t *testing.T) {
		w := newHarness(t, echo, func(w *harness) { w.west.rates.pods = budget.NewRates[netip.Addr](0, 3) })
		for i := range 5 {
			answer, err := w.call(alice, "hello")
			if ok := err == nil && answer == "you said hello"; ok != (i < 3) {
				t.Errorf("call %d: %q, %v", i, answer, err)
			}
		}
		if _, err := w.call(bob, "hello"); err != nil {
			t.Errorf("another pod's call: %v", err)
		}
		w.wantRefusal(w.west, outbound, reasonCallRate)
	})
	t.Run("by account", func(t *testing.T) {
		w := newHarness(t, echo, func(w *harness) { w.west.rates.accounts = budget.NewRates[account](0, 0) })
		if _, err := w.call(bob, "hello"); err == nil {
			t.Error("an account beyond its rate is served")
		}
		w.wantRefusal(w.west, outbound, reasonCallRate)
	})
}

// A link that makes sessions in a loop is stopped.
func TestHandshakeRate(t *testing.T) {
	w := newHarness(t, echo, func(w *harness) { w.east.rates.handshakes = budget.NewRates[linkSource](0, 0) })
	_, err := w.call(alice, "hello")
	wantReset(t, "beyond its rate", err)
	w.wantRefusal(w.east, inbound, reasonHandshakeRate)
}

// A caller that makes calls in a loop waits, and is refused in the end.
func TestExchangeRate(t *testing.T) {
	w := newHarness(t, echo, func(w *harness) { w.east.rates.exchanges = budget.NewRates[string](2, 1) })
	for range 2 { // the second one waits for half a second
		if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	w = newHarness(t, echo, func(w *harness) { w.east.rates.exchanges = budget.NewRates[string](0, 0) })
	_, err := w.call(alice, "hello")
	wantReset(t, "beyond its rate", err)
	w.wantRefusal(w.east, inbound, reasonExchangeRate)
}

// Callers who do not go on with their handshake must not keep others from theirs.
func TestSlowHandshakesDoNotDelayOthers(t *testing.T) {
	w := newHarness(t, echo)
	g := w.newHopClient()
	hello := must(recordHello(t))(t)
	for range 2 * runtime.GOMAXPROCS(0) {
		c := w.dialHop()
		c.Write(append(must(g.header.Marshal(g.key, hello))(t), hello...))
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil { // the server's first record: it waits for ours now
			t.Fatal(err)
		}
	}
	start := time.Now()
	if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
		t.Errorf("after %v: %q, %v", time.Since(start), answer, err)
	}
}

// recordHello returns a client's ClientHello.
func recordHello(t *testing.T) ([]byte, error) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	client := tls.Client(near, identity.ClientTLS(identity.PlaneTunnel, "x.causeway.internal", nil,
		func(tls.ConnectionState) error { return nil }))
	done := make(chan error, 1)
	go func() { done <- client.HandshakeContext(t.Context()) }()
	hello, err := transport.ReadClientHello(far, testTimeout)
	far.Close()
	<-done
	return hello.Raw, err
}
