package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/gateway"
	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds what would hang if the code were wrong.
const testTimeout = 20 * time.Second

// The pods of the world. All of 127.0.0.0/8 is this machine's, so each has an
// address of its own, and so has the mirror.
const (
	alice = "127.77.1.1" // of account alice in west
	bob   = "127.77.1.2" // of account bob in west
	vip   = "127.78.0.2"
	bar   = "127.77.2.1" // a pod of Service shop/bar in east
	foo   = "127.77.2.2" // another pod of that node, of account foo
	// nextToBar is another pod of Service shop/bar; see addSecondEndpoint.
	nextToBar = "127.77.2.3"
)

const bridge = 7 // the interface that every pod is found at

// cluster is one trust domain and what it takes to mint certificates.
type cluster struct {
	root   *identity.Root
	issuer *identity.Issuer
	hop    [32]byte
	age    atomic.Int64 // in nanoseconds, of the certificates that it signs
}

// newCluster returns a cluster that is two days old.
func newCluster(t testing.TB, trustDomain string) *cluster {
	then := time.Now().Add(-48 * time.Hour)
	root := must(identity.NewRoot(trustDomain, then))(t)
	return &cluster{root: root, issuer: must(root.NewIssuer(then))(t), hop: [32]byte{1, byte(len(trustDomain))}}
}

// sign is a signFunc.
func (c *cluster) sign(_ context.Context, namespace, serviceAccount string, csr []byte) ([][]byte, error) {
	pub, err := identity.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	name, err := identity.NewName(c.root.TrustDomain(), namespace, serviceAccount)
	if namespace == "" && serviceAccount == "" {
		name, err = identity.ProbeName(c.root.TrustDomain())
	}
	if err != nil {
		return nil, err
	}
	return c.issuer.SignWorkload(pub, name, time.Now().Add(-time.Duration(c.age.Load())))
}

func (c *cluster) credential(t testing.TB, namespace, serviceAccount string) *identity.Credential {
	t.Helper()
	key := must(identity.NewPrivateKey())(t)
	csr := must(identity.NewCSR(key))(t)
	return must(identity.NewCredential(must(c.sign(t.Context(), namespace, serviceAccount, csr))(t), key))(t)
}

func (c *cluster) issuers() [][]byte { return [][]byte{c.issuer.Certificate().Raw} }

// anchors list the cluster's issuer, and others of its trust domain.
func (c *cluster) anchors(t testing.TB, others ...*x509.Certificate) *identity.Anchors {
	issuers := append([]*x509.Certificate{c.issuer.Certificate()}, others...)
	return must(identity.NewAnchors(map[string][]*x509.Certificate{c.root.TrustDomain(): issuers}))(t)
}

// harness is a call's whole way in one process:
//
//	caller ─▶ west's agent ─▶ east's gateway ─▶ east's agent ─▶ app
//
// Only the node's network is played: which interface a pod is at.
type harness struct {
	testing.TB
	westTrust, eastTrust *cluster
	west, east           *Agent
	gateway              *gateway.Server

	mirror, hop, peers net.Listener // of west's agent, east's agent, the gateway
	app                net.Listener
	dials              atomic.Int64  // of the app
	logs               [2]*logBuffer // west's, east's
	nodes              [2]node       // likewise
	clientFirst        atomic.Bool   // of learnClientFirst

	mu                              sync.Mutex // guards what follows
	westView, eastView, gatewayView nodestream.View
	revoked                         map[string]bool

	stop, cut context.CancelFunc
	reset     [2]context.CancelCauseFunc // resets the connections of west's agent, of east's
	accepting sync.WaitGroup             // for agents
	serving   sync.WaitGroup
	open      sync.WaitGroup // which grows as long as agents accept
}

// node is what an agent asks the kernel for.
type node struct {
	find      atomic.Value // func(netip.Addr) (podid.Attachment, error), for every pod
	ingressOf atomic.Value // func(*net.TCPConn) (int, error)
	check     atomic.Value // callerCheck
}

// newHarness returns a world in which alice and bob may call bar, and do serves
// the app's connections, which it need not close. tune changes it before it begins.
func newHarness(t testing.TB, do func(*net.TCPConn), tune ...func(*harness)) *harness {
	t.Helper()
	w := &harness{
		TB: t, westTrust: newCluster(t, "west-1"), eastTrust: newCluster(t, "east-12"), revoked: map[string]bool{},
		mirror: listen(t, vip), hop: listen(t, "127.0.0.1"), peers: listen(t, "127.0.0.1"), app: listen(t, bar),
	}
	life, cut := context.WithCancel(context.WithoutCancel(t.Context()))
	ctx, stop := context.WithCancel(life)
	w.stop, w.cut = stop, cut
	w.west = w.newAgent(life, 0, w.westTrust)
	w.east = w.newAgent(life, 1, w.eastTrust)
	w.gateway = gateway.NewServer(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	for _, edit := range tune {
		edit(w)
	}
	var connections [2]context.Context
	for i := range connections {
		connections[i], w.reset[i] = context.WithCancelCause(life)
	}
	w.accepting.Go(func() {
		w.fail(w.west.serve(ctx, connections[0], w.mirror, &w.open, outbound, func(ctx context.Context, c *net.TCPConn) { w.west.serveOutbound(ctx, c, 0) }))
	})
	w.accepting.Go(func() { w.fail(w.east.serve(ctx, connections[1], w.hop, &w.open, inbound, w.east.serveInbound)) })
	w.serving.Go(func() { w.fail(w.gateway.Serve(ctx, w.peers.(*net.TCPListener))) })
	w.serving.Go(func() { w.serveApp(do) })
	t.Cleanup(w.close)
	w.buildViews()
	w.push()
	return w
}

func (w *harness) fail(err error) {
	if err != nil {
		w.Error(err)
	}
}

func (w *harness) newAgent(life context.Context, i int, c *cluster) *Agent {
	w.logs[i] = &logBuffer{}
	a := New(life, c.sign, slog.New(slog.NewJSONHandler(w.logs[i], &slog.HandlerOptions{Level: slog.LevelDebug})), prometheus.NewRegistry())
	w.nodes[i].find.Store(foundAt(bridge))
	w.nodes[i].ingressOf.Store(func(*net.TCPConn) (int, error) { return bridge, nil })
	a.ingressOf = func(c *net.TCPConn) (int, error) {
		if i == 0 && w.clientFirst.Load() {
			transport.AwaitReadable(c, testTimeout)
		}
		return w.nodes[i].ingressOf.Load().(func(*net.TCPConn) (int, error))(c)
	}
	w.nodes[i].check.Store(freshCheck)
	a.check = callerCheck{
		lastReceived: func(c *net.TCPConn) (time.Time, error) {
			return w.nodes[i].check.Load().(callerCheck).lastReceived(c)
		},
		awaitSegment: func(ctx context.Context, c *net.TCPConn, after time.Time) error {
			return w.nodes[i].check.Load().(callerCheck).awaitSegment(ctx, c, after)
		},
	}
	a.podTable = podid.New(finder(func(addr netip.Addr) (podid.Attachment, error) {
		return w.nodes[i].find.Load().(func(netip.Addr) (podid.Attachment, error))(addr)
	}))
	return a
}

// freshCheck finds that every connection is younger than the record of its pod. Most
// tests call at once after they have changed the state.
var freshCheck = callerCheck{
	lastReceived: func(*net.TCPConn) (time.Time, error) { return time.Now(), nil },
	awaitSegment: func(context.Context, *net.TCPConn, time.Time) error { return nil },
}

// finder is a podid.Finder.
type finder func(netip.Addr) (podid.Attachment, error)

func (f finder) Find(addr netip.Addr) (podid.Attachment, error) { return f(addr) }
func (f finder) Solicit(netip.Addr)                             {}

func foundAt(iface int) func(netip.Addr) (podid.Attachment, error) {
	return func(netip.Addr) (podid.Attachment, error) { return podid.Attachment{Iface: iface}, nil }
}

// close lets what is open go on, until it has ended by itself.
func (w *harness) close() {
	w.stop()
	w.accepting.Wait()
	for _, a := range []*Agent{w.west, w.east} {
		a.stopAccepting()
		a.requests.close()
		a.sessions.Close()
	}
	w.app.Close()
	drained := make(chan struct{})
	go func() { defer close(drained); w.open.Wait() }()
	select {
	case <-drained:
	case <-time.After(testTimeout):
		w.Error("connections are open long after their ends have closed")
	}
	w.cut()
	<-drained
	w.serving.Wait()
	w.west.svids.wait()
	w.east.svids.wait()
	w.west.renewals.close()
	w.east.renewals.close()
	w.wantNoLeftovers()
}

// wantNoLeftovers: what leaks of a connection would add up, and lock others out.
func (w *harness) wantNoLeftovers() {
	for _, a := range []*Agent{w.west, w.east} {
		a.leases.mu.Lock()
		n := len(a.leases.open)
		a.leases.mu.Unlock()
		if n > 0 {
			w.Errorf("%d leases are kept of sessions and calls that have ended", n)
		}
		if n := a.waiting.Load(); n != 0 {
			w.Errorf("%d sessions are counted as waiting", n)
		}
		for _, key := range []string{alice, bob, "shop/alice", "shop/bob", "link-to-east", "link-to-west",
			"spiffe://west-1/ns/shop/sa/alice", "spiffe://west-1/ns/shop/sa/bob"} {
			for _, shares := range []*budget.Shares{a.shares.sources, a.shares.outboundAccounts, a.shares.outboundLinks, a.shares.inboundCallers, a.shares.inboundLinks} {
				if n := shares.Count(key); n != 0 {
					w.Errorf("%s has %d of a budget after all connections have ended", key, n)
				}
			}
		}
	}
	if n := len(w.west.sessions.Idle()); n != 0 {
		w.Errorf("%d sessions are idle after the agent has stopped", n)
	}
}

func (w *harness) serveApp(do func(*net.TCPConn)) {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := w.app.Accept()
		if err != nil {
			return
		}
		w.dials.Add(1)
		conns.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(testTimeout))
			do(c.(*net.TCPConn))
		})
	}
}

// buildViews makes what the two controllers say at first.
func (w *harness) buildViews() {
	now := time.Now()
	var keys []*wire.DayKey
	for day := identity.Day(now) - 1; day <= identity.Day(now)+1; day++ {
		key := identity.DayKey([32]byte{5}, "west-1", "east-12", day)
		keys = append(keys, &wire.DayKey{Day: day, Key: key[:]})
	}
	pod := func(uid, account, ip string) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Pod{Pod: &wire.Pod{
			Uid: uid, Namespace: "shop", Name: uid, ServiceAccount: account, Ips: []string{ip}, Live: true}}}
	}
	w.westView = w.view(
		&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
			TrustDomain: "west-1", Issuers: w.westTrust.issuers(), HopKey: w.westTrust.hop[:], VipCidrs: []string{"127.78.0.0/16"}}}},
		&wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{
			Name: "east", Uid: "link-to-east", TrustDomain: "east-12", Issuers: w.eastTrust.issuers(), DayKeys: keys,
			Gateways: []*wire.GatewayAddress{{Address: w.peers.Addr().String(), Healthy: true}}}}},
		&wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
			Namespace: "shop", Name: "bar-east", Vips: []string{vip},
			Ports: []*wire.FrontendPort{{Index: 0, Name: "http"}},
			Tiers: []*wire.Tier{{Backends: []*wire.Backend{{
				Link: "east", Namespace: "shop", Service: "bar",
				Ports:      []*wire.BackendPort{{Index: 0, Port: 80, Route: 1024}},
				Identities: []string{"spiffe://east-12/ns/shop/sa/bar"}}}}}}}},
		pod("alice-0", "alice", alice), pod("bob-0", "bob", bob),
	)
	appPort := uint32(w.app.Addr().(*net.TCPAddr).Port)
	w.eastView = w.view(
		&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
			TrustDomain: "east-12", Issuers: w.eastTrust.issuers(), HopKey: w.eastTrust.hop[:]}}},
		&wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{
			Name: "west", Uid: "link-to-west", TrustDomain: "west-1", Issuers: w.westTrust.issuers()}}},
		&wire.Resource{Body: &wire.Resource_Export{Export: &wire.Export{
			Namespace: "shop", Service: "bar", Links: []string{"west"}, Ports: []*wire.ExportPort{{Port: 80, Name: "http"}},
			Pods: []*wire.ExportPod{{Uid: "bar-0", Ready: true, Accepts: true, Targets: map[uint32]uint32{80: appPort}}}}}},
		pod("bar-0", "bar", bar), pod("foo-0", "foo", foo),
	)
	w.gatewayView = w.view(
		&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{TrustDomain: "east-12"}}},
		&wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{Name: "west", Uid: "link-to-west", TrustDomain: "west-1", DayKeys: keys}}},
		&wire.Resource{Body: &wire.Resource_Upstream{Upstream: &wire.Upstream{
			Name: "agent/node", Address: w.hop.Addr().String(), HopKey: w.eastTrust.hop[:]}}},
		&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
			Id: 1024, Links: []string{"west"}, Generation: 3,
			Endpoints: []*wire.Endpoint{{Id: []byte("endpoint"), PodUid: "bar-0", Upstream: "agent/node"}}}}},
	)
}

// terminatePod makes bar-0 a terminating pod that takes no new connections.
func (w *harness) terminatePod() {
	w.edit(&w.eastView, "pod/bar-0", func(r *wire.Resource) { r.GetPod().Terminating = true })
	w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[0].Accepts = false })
}

// backendOf returns the backend of a frontend.
func backendOf(r *wire.Resource) *wire.Backend { return r.GetFrontend().Tiers[0].Backends[0] }

func (w *harness) view(resources ...*wire.Resource) nodestream.View {
	return must(nodestream.NewView(resources...))(w.TB)
}

// push gives everybody the views as they are.
func (w *harness) push() {
	w.mu.Lock()
	defer w.mu.Unlock()
	revoked := maps.Clone(w.revoked)
	at := func(v nodestream.View) uplink.State {
		return uplink.State{View: v, Revoked: func(uid string) bool { return revoked[uid] }}
	}
	w.gateway.OnState(at(w.gatewayView))
	w.east.onState(at(w.eastView))
	w.west.onState(at(w.westView))
}

// change edits one resource of a view, or with a nil edit removes it, and pushes.
func (w *harness) change(v *nodestream.View, key string, edit func(*wire.Resource)) {
	w.Helper()
	w.edit(v, key, edit)
	w.push()
}

func (w *harness) edit(v *nodestream.View, key string, edit func(*wire.Resource)) {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	old := (*v)[key]
	if old == nil {
		w.Fatalf("the view has no %q", key)
	}
	*v = maps.Clone(*v)
	delete(*v, key)
	if edit != nil {
		r := proto.Clone(old).(*wire.Resource)
		edit(r)
		(*v)[must(nodestream.KeyOf(r))(w.TB)] = r
	}
}

// dial calls the mirror from a pod.
func (w *harness) dial(pod string) *net.TCPConn {
	w.Helper()
	return must(w.tryDial(pod))(w.TB)
}

// tryDial fails if the call is reset before the dial has returned.
func (w *harness) tryDial(pod string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(pod)}}
	conn, err := d.DialContext(w.Context(), "tcp", w.mirror.Addr().String())
	if err != nil {
		return nil, err
	}
	c := conn.(*net.TCPConn)
	c.SetDeadline(time.Now().Add(testTimeout))
	w.Cleanup(func() { transport.Reset(c) })
	return c, nil
}

// call dials, asks, and returns the whole answer.
func (w *harness) call(pod, say string) (string, error) {
	c, err := w.tryDial(pod)
	if err != nil {
		return "", err
	}
	return ask(c, say)
}

// ask sends what a caller says, ends its direction and returns the whole answer.
func ask(c *net.TCPConn, say string) (string, error) {
	if _, err := io.WriteString(c, say); err != nil {
		return "", err
	}
	// If c was reset meanwhile it is not connected, and reading reports the reset.
	if err := c.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// wantRefusal waits until an agent has counted a refusal.
func (w *harness) wantRefusal(a *Agent, direction, reason string) {
	w.Helper()
	if !slices.Contains(reasons(direction), reason) {
		w.Fatalf("%q is not on the closed list of %s reasons", reason, direction)
	}
	eventually(w.TB, direction+" refusal "+reason, func() bool { return refusals(a, direction, reason) > 0 })
	for _, other := range reasons(direction) {
		if n := refusals(a, direction, other); other != reason && n > 0 {
			w.Errorf("%s refusal %s is counted too: %v", direction, other, n)
		}
	}
}

func refusals(a *Agent, direction, reason string) float64 {
	return testutil.ToFloat64(a.metrics.refused.WithLabelValues(direction, reason))
}

// eventually waits for what another goroutine is about to do.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(testTimeout); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: has not happened", what)
		}
	}
}

func wantReset(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) &&
		!errors.Is(err, syscall.ENOTCONN) { // of shutdown after a reset
		t.Errorf("%s: %v, want a reset", what, err)
	}
}

// logBuffer keeps what an agent logs.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// all returns the values of a key in the records with a message.
func (l *logBuffer) all(message, key string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for line := range strings.Lines(l.buf.String()) {
		var record map[string]any
		if json.Unmarshal([]byte(line), &record) == nil && record["msg"] == message {
			value := record[key]
			if value == nil {
				value = ""
			}
			out = append(out, fmt.Sprint(value))
		}
	}
	return out
}

func listen(t testing.TB, host string) net.Listener {
	t.Helper()
	return must(net.Listen("tcp", net.JoinHostPort(host, "0")))(t)
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
