//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// A simulatedPeer is a peer of a cluster that is a catalog server in the WAN and nothing
// else. It says whatever a test wants, and the test holds its keys.
type simulatedPeer struct {
	name, trustDomain string
	of                *cluster // whose peer it is
	root              *identity.Root
	issuer            *identity.Issuer
	linkKey           identity.LinkKey
	board             *wire.Board
	generation        uint64
}

// simulatedAddress is where it listens.
const simulatedAddress = "198.18.200.1"

// peerSink is what a simulated peer makes of what west says.
type peerSink struct {
	root        *x509.Certificate
	trustDomain string
}

func (s peerSink) Hello(_ string, h *wire.Hello, _ time.Duration) uint64 {
	list, err := identity.VerifyIssuerList(s.root, s.trustDomain, h.GetIssuerList())
	if err != nil {
		return 0
	}
	return list.Number
}
func (peerSink) IssuersApplied(string, uint64)    {}
func (peerSink) Freshness(string, wire.Freshness) {}
func (peerSink) Disconnected(string, error)       {}

// newSimulatedPeer links west with a peer that does not exist otherwise. The Link and the
// peer are gone when the test ends.
func newSimulatedPeer(t *testing.T, name string) *simulatedPeer { return simulatePeer(t, west, name) }

// simulatePeer links a cluster with a peer that does not exist otherwise. The peer also
// lists the issuers that its root signed at the times in also. The Link and the peer are
// gone when the test ends.
func simulatePeer(t *testing.T, of *cluster, name string, also ...time.Time) *simulatedPeer {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	p := &simulatedPeer{
		name:        name,
		of:          of,
		trustDomain: name + "-0123abcd",
		board:       wire.NewBoard(),
		generation:  uint64(now.UnixMilli()),
	}
	p.root = have(identity.NewRoot(p.trustDomain, slices.MinFunc(append(also, now), time.Time.Compare)))(t)
	p.issuer = have(p.root.NewIssuer(now))(t)
	p.linkKey = have(identity.NewLinkKey())(t)
	issuers := []*x509.Certificate{p.issuer.Certificate()}
	for _, at := range also {
		issuers = append(issuers, have(p.root.NewIssuer(at))(t).Certificate())
	}
	key := have(identity.NewPrivateKey())(t)
	own := have(identity.NewName(p.trustDomain, system, identity.ControllerServiceAccount))(t)
	chain := have(p.root.SignController(key.Public(), own, []string{"simulated"}, now))(t)
	controller := have(identity.NewCredential(chain, key))(t)
	must(t, p.board.SetHello(&wire.Hello{
		Version:       "v0.0.0-simulated",
		IssuerList:    have(p.root.SignIssuerList(1, issuers))(t),
		LinkPublicKey: p.linkKey.Public(),
	}))
	p.board.SetFreshness(func() wire.Freshness { return wire.Freshness{Replica: wire.ReplicaID{1}} })
	p.publish(t)
	p.board.SetReady(of.Name())

	domain := have(of.trustDomain(ctx))(t)
	identities := have(of.api.CoreV1().ConfigMaps(system).Get(ctx, "causeway-identity", getOptions))(t).Data
	ofRoot := have(identity.ParseRootCertificate([]byte(identities["root.pem"]), domain))(t)
	verify := func(cs tls.ConnectionState) error {
		_, err := identity.VerifyController(cs.PeerCertificates, domain, ofRoot, time.Now())
		return err
	}
	serverTLS := func() (*tls.Config, error) {
		credential := func(*tls.ClientHelloInfo) (*identity.Credential, error) { return controller, nil }
		return identity.ServerTLS(identity.PlaneCatalog, credential, true, verify), nil
	}

	wan := of.lab.WAN()
	_, err := output(wan.Command(ctx, "ip", "addr", "replace", simulatedAddress+"/32", "dev", "lo"))
	must(t, err)
	ln := have(inside(wan.Netns(), func() (net.Listener, error) {
		return net.Listen("tcp", net.JoinHostPort(simulatedAddress, "4143"))
	}))(t)
	serving, stop := context.WithCancel(background())
	var ended sync.WaitGroup
	server := wire.NewServer(func(tls.ConnectionState) (string, error) { return of.Name(), nil }, p.board,
		peerSink{ofRoot, domain}, wire.ServerOptions{})
	ended.Go(func() {
		creds := grpctls.Config{ALPN: wire.ALPN, TLS: serverTLS, Guard: transport.GuardAccepted}
		_ = server.Serve(serving, ln, grpctls.New(creds))
	})
	t.Cleanup(func() {
		if err := of.kubectl(background(), "", "delete", "link", name, "--ignore-not-found"); err != nil {
			t.Error(err)
		}
		must(t, poll(background(), time.Minute, func() error { return of.mirrorsOf(background(), name) }))
		stop()
		ended.Wait()
		_, _ = output(wan.Command(background(), "ip", "addr", "del", simulatedAddress+"/32", "dev", "lo"))
	})

	rootPEM, _, err := p.root.MarshalPEM()
	must(t, err)
	link := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(),
		"kind":       "Link",
		"metadata":   map[string]any{"name": name},
		"spec": map[string]any{
			"trustDomain":   p.trustDomain,
			"root":          string(rootPEM),
			"linkPublicKey": base64.StdEncoding.EncodeToString(p.linkKey.Public()),
			"gateways":      []any{net.JoinHostPort(simulatedAddress, "4143")},
			"import":        map[string]any{"services": "All"},
		},
	}}
	have(of.dyn.Resource(links).Create(ctx, link, metav1.CreateOptions{}))(t)
	return p
}

// publish changes what the peer exports.
func (p *simulatedPeer) publish(t *testing.T, services ...catalog.Service) {
	t.Helper()
	p.generation++
	listings := make([]wire.Listing, len(services))
	for i := range services {
		listings[i] = wire.Listing{Key: services[i].Key(), Service: &services[i], Links: []string{p.of.Name()}}
	}
	must(t, p.board.Publish(listings, wire.Version{Epoch: "simulated", Generation: p.generation}))
}

// export is a Service of the peer's namespace shop with one port and some identities.
func (p *simulatedPeer) export(name string, route uint32, accounts ...string) catalog.Service {
	s := catalog.Service{
		Namespace: "shop",
		Name:      name,
		Ready:     true,
		Ports:     []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: route}},
	}
	for _, account := range accounts {
		s.Identities = append(s.Identities, "spiffe://"+p.trustDomain+"/ns/shop/sa/"+account)
	}
	slices.Sort(s.Identities)
	return s
}

// twoLetters returns a name of n random letters, of which there are two.
func twoLetters(n int) string {
	var b strings.Builder
	for range n {
		b.WriteByte("ab"[rand.IntN(2)])
	}
	return b.String()
}

// ledgerState is what west's ledger holds in all.
type ledgerState struct {
	objects, bytes, largest int
}

func readLedger(ctx context.Context, c *cluster) (s ledgerState, err error) {
	list, err := c.dyn.Resource(ledgers).Namespace(system).List(ctx, listOptions)
	if err != nil {
		return s, err
	}
	for _, u := range list.Items {
		var l v1alpha1.Ledger
		if err := convert(u.Object, &l); err != nil {
			return s, err
		}
		s.objects++
		s.bytes += len(l.Data)
		s.largest = max(s.largest, len(l.Data))
	}
	return s, nil
}

// ledgerWrites counts west's writes of its ledger since the audit log ended at from.
func ledgerWrites(t *testing.T, from int64) (n int) {
	t.Helper()
	for _, w := range have(west.writes(from))(t) {
		if w.ObjectRef.Resource == "ledgers" {
			n++
		}
	}
	return n
}

// mirrorLatency exports Services from east one after another, and returns the median time
// until west's mirror has an EndpointSlice.
func mirrorLatency(t *testing.T, prefix string, n int) time.Duration {
	t.Helper()
	ctx := t.Context()
	var took []time.Duration
	for i := range n {
		name := fmt.Sprintf("%s-%d", prefix, i)
		manifest := service(name, exported, httpPort)
		start := time.Now()
		must(t, east.kubectl(ctx, manifest, "apply", "-f", "-"))
		must(t, poll(ctx, 30*time.Second, func() error {
			s, err := west.slices(ctx, name+"-east")
			if err == nil && len(s) == 0 {
				err = errNotYet
			}
			return err
		}))
		took = append(took, time.Since(start))
		must(t, east.kubectl(ctx, manifest, "delete", "--wait=false", "-f", "-"))
		must(t, gone(t, name+"-east"))
	}
	slices.Sort(took)
	t.Logf("%s: %d exports took %v to %v, median %v", prefix, n, took[0], took[n-1], took[n/2])
	return took[n/2]
}

// TestManyLongIdentities has a peer export 90 Services whose names and identities are as
// long as they may be, of two letters in random order. All stand, each object of the
// ledger stays within its bound, and another Link's exports are mirrored as before.
func TestManyLongIdentities(t *testing.T) {
	ctx := t.Context()
	before := mirrorLatency(t, "identities-before", 3)
	p := newSimulatedPeer(t, "north")
	mark := have(west.auditEnd())(t)
	var exports []catalog.Service
	for i := range 90 {
		accounts := make([]string, catalog.MaxIdentities)
		for j := range accounts {
			accounts[j] = twoLetters(253)
		}
		exports = append(exports, p.export(twoLetters(56), uint32(2000+i), accounts...))
	}
	p.publish(t, exports...)
	within(t, 30*time.Second, "all 90 are mirrored", func() error {
		selector := metav1.ListOptions{LabelSelector: v1alpha1.LinkLabel + "=north"}
		list, err := west.api.DiscoveryV1().EndpointSlices("shop").List(ctx, selector)
		if err == nil && len(list.Items) != len(exports) {
			err = fmt.Errorf("%d mirrors have an EndpointSlice", len(list.Items))
		}
		return err
	})
	state := have(readLedger(ctx, west))(t)
	t.Logf("%d ledger writes; the ledger has %d objects of %d bytes in all, the largest has %d",
		ledgerWrites(t, mark), state.objects, state.bytes, state.largest)
	if state.largest > 256<<10 {
		t.Errorf("an object of the ledger has %d bytes, want at most 256 KiB", state.largest)
	}
	if n := ledgerWrites(t, mark); n > 90 {
		t.Errorf("the ledger was written %d times for 90 new mirrors", n)
	}
	during := mirrorLatency(t, "identities-during", 3)
	if most := 3*before + 500*time.Millisecond; during > most {
		t.Errorf("another Link's exports took %v beside that peer's, want at most %v", during, most)
	}
	must(t, answers(ctx, "bar-east"))
}

// TestFlippingPeer has a peer change what it says of its Services ten times a second for
// a minute. The importer writes its ledger no more often than the peer's budget allows,
// and each mirror no more often than the limit of its content. Its ledger does not grow,
// the mirrors show the last content, and another Link's exports are mirrored as before.
func TestFlippingPeer(t *testing.T) {
	long(t)
	ctx := t.Context()
	const samples = 7
	p := newSimulatedPeer(t, "north")
	flipped := func(i int) []catalog.Service {
		out := make([]catalog.Service, 10)
		for j := range out {
			out[j] = p.export(fmt.Sprintf("flip-%d", j), uint32(2000+j),
				fmt.Sprintf("account-%d", i), twoLetters(200))
			out[j].Ports[0].AppProtocol = fmt.Sprintf("example.org/p%d", i)
		}
		return out
	}
	p.publish(t, flipped(0)...)
	within(t, 30*time.Second, "its Services are mirrored", func() error {
		s, err := west.slices(ctx, "flip-9-north")
		if err == nil && len(s) == 0 {
			err = errNotYet
		}
		return err
	})
	before := mirrorLatency(t, "flip-before", samples)
	first, mark, start := have(readLedger(ctx, west))(t), have(west.auditEnd())(t), time.Now()
	flipping, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	flips := make(chan int, 1)
	go func() {
		n := 0
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ; flipping.Err() == nil; <-tick.C {
			n++
			p.publish(t, flipped(n)...)
		}
		flips <- n
	}()
	during := mirrorLatency(t, "flip-during", samples)
	n := <-flips
	took, writes, last := time.Since(start), ledgerWrites(t, mark), have(readLedger(ctx, west))(t)
	mirrorWrites := 0
	for _, w := range have(west.writes(mark))(t) {
		if strings.HasPrefix(w.ObjectRef.Name, "flip-") && strings.Contains(w.ObjectRef.Name, "-north") {
			mirrorWrites++
		}
	}
	t.Logf("%d flips in %.0f s: %d ledger writes, %d writes of mirrors, %d bytes in the ledger before and %d after",
		n, took.Seconds(), writes, mirrorWrites, first.bytes, last.bytes)
	if n < 500 {
		t.Errorf("the peer flipped %d times only: the test shows nothing", n)
	}
	// The budget of content is a burst of 20 writes and one more every 30 s. Beside that
	// each export of east's is added and removed. That makes two changes of allocations
	// and two of the version that was applied last.
	if most := 20 + int(took/(30*time.Second)) + 1 + 4*samples; writes > most {
		t.Errorf("the ledger was written %d times, want at most %d", writes, most)
	}
	// The limit of a mirror's content is a burst of 4 and then one change every 5 s. Each
	// change is a write of the Service and of a slice per family.
	if most := 10 * 3 * (4 + int(took/(5*time.Second)) + 1); mirrorWrites > most {
		t.Errorf("10 mirrors were written %d times, want at most %d", mirrorWrites, most)
	}
	within(t, 10*time.Second, "the mirrors show the last content", func() error {
		for j := range 10 {
			svc, err := west.api.CoreV1().Services("shop").Get(ctx, fmt.Sprintf("flip-%d-north", j), getOptions)
			if err != nil {
				return err
			}
			if got := svc.Spec.Ports[0].AppProtocol; got == nil || *got != fmt.Sprintf("example.org/p%d", n) {
				return errNotYet
			}
		}
		return nil
	})
	if grown := last.bytes - first.bytes; grown > 10*4<<10 {
		t.Errorf("the ledger has grown by %d bytes, want at most the 4 KiB that each entry may have", grown)
	}
	if most := 3*before + 500*time.Millisecond; during > most {
		t.Errorf("another Link's exports took %v while the peer flipped, want at most %v", during, most)
	}
}
