package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// The simulated peers of the importer and of the exporter listen on ports from these on.
const (
	importerPeerPort = 20000
	exporterPeerPort = 21000
)

// A clusterIdentity is the public half of a real cluster, as its ConfigMap has it.
type clusterIdentity struct {
	trustDomain string
	root        *x509.Certificate
	linkPublic  []byte
	gateway     string // host:port
}

func (c *cluster) identity(ctx context.Context) (id clusterIdentity, err error) {
	m, err := c.api.CoreV1().ConfigMaps(system).Get(ctx, "causeway-identity", metav1.GetOptions{})
	if err != nil {
		return id, fmt.Errorf("read the identity of %s: %w", c.Name(), err)
	}
	id.trustDomain, id.gateway = m.Data["trustDomain"], m.Data["gateways"]
	if id.root, err = identity.ParseRootCertificate([]byte(m.Data["root.pem"]), id.trustDomain); err != nil {
		return id, fmt.Errorf("read the root of %s: %w", c.Name(), err)
	}
	if id.linkPublic, err = base64.StdEncoding.DecodeString(m.Data["linkPublicKey"]); err != nil {
		return id, fmt.Errorf("read the link key of %s: %w", c.Name(), err)
	}
	return id, nil
}

// verify checks that a connection's other end is a controller of the cluster.
func (id clusterIdentity) verify(cs tls.ConnectionState) error {
	_, err := identity.VerifyController(cs.PeerCertificates, id.trustDomain, id.root, time.Now())
	return err
}

// peers are simulated clusters that are linked to a real one. Of each, only the controller
// exists: it serves a catalog over TCP and mutual TLS on a port of its own in the lab's
// WAN, and it can subscribe to the real cluster's catalog through that one's gateway.
type peers struct {
	of    *cluster // the real one
	id    clusterIdentity
	wan   string // network namespace
	all   []*peer
	links int // of which Links exist
}

// A peer is one simulated cluster.
type peer struct {
	name        string // of the Link that names it
	trustDomain string
	rootPEM     []byte
	credential  *identity.Credential
	linkKey     identity.LinkKey
	address     string // host:port at which the real cluster reaches it
	board       *wire.Board
	generation  uint64
}

// newPeers makes n peers of a cluster and serves their catalogs, which are empty, until
// life ends. No Link names them yet.
func (b *bench) newPeers(ctx, life context.Context, of *cluster, n, firstPort int) (*peers, error) {
	id, err := of.identity(ctx)
	if err != nil {
		return nil, err
	}
	ps := &peers{of: of, id: id, wan: b.lab.WAN().Netns()}
	for i := range n {
		p, err := newPeer(fmt.Sprintf("peer-%03d", i+1), of.WANAddress(), firstPort+i)
		if err != nil {
			return nil, fmt.Errorf("make simulated peer %d: %w", i+1, err)
		}
		ln, err := listenIn(ps.wan, fmt.Sprintf(":%d", firstPort+i))
		if err != nil {
			return nil, fmt.Errorf("serve simulated peer %d: %w", i+1, err)
		}
		ps.all = append(ps.all, p)
		go p.serve(life, ln, id)
	}
	return ps, nil
}

func newPeer(name, host string, port int) (*peer, error) {
	now := time.Now()
	p := &peer{
		name:        name,
		trustDomain: fmt.Sprintf("%s-%08x", name, port),
		address:     fmt.Sprintf("%s:%d", host, port),
		board:       wire.NewBoard(),
	}
	root, err := identity.NewRoot(p.trustDomain, now)
	if err != nil {
		return nil, err
	}
	if p.rootPEM, _, err = root.MarshalPEM(); err != nil {
		return nil, err
	}
	issuer, err := root.NewIssuer(now)
	if err != nil {
		return nil, err
	}
	issuers, err := root.SignIssuerList(1, []*x509.Certificate{issuer.Certificate()})
	if err != nil {
		return nil, err
	}
	if p.credential, err = controllerCredential(root, now); err != nil {
		return nil, err
	}
	if p.linkKey, err = identity.NewLinkKey(); err != nil {
		return nil, err
	}
	replica := wire.ReplicaID{0: 1}
	p.board.SetFreshness(func() wire.Freshness { return wire.Freshness{Replica: replica} })
	return p, p.board.SetHello(&wire.Hello{
		Version:       "simulated",
		IssuerList:    issuers,
		LinkPublicKey: p.linkKey.Public(),
		Replica:       replica[:],
	})
}

func controllerCredential(root *identity.Root, now time.Time) (*identity.Credential, error) {
	key, err := identity.NewPrivateKey()
	if err != nil {
		return nil, err
	}
	name, err := identity.NewName(root.TrustDomain(), system, identity.ControllerServiceAccount)
	if err != nil {
		return nil, err
	}
	chain, err := root.SignController(key.Public(), name, []string{"causeway-controller"}, now)
	if err != nil {
		return nil, err
	}
	return identity.NewCredential(chain, key)
}

// serve serves the peer's catalog to the controllers of a real cluster until ctx ends.
func (p *peer) serve(ctx context.Context, ln net.Listener, of clusterIdentity) {
	credential := func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.credential, nil }
	creds := grpctls.New(grpctls.Config{
		ALPN: wire.ALPN,
		TLS: func() (*tls.Config, error) {
			return identity.ServerTLS(identity.PlaneCatalog, credential, true, of.verify), nil
		},
		Guard: transport.GuardAccepted,
	})
	identify := func(cs tls.ConnectionState) (string, error) { return realCluster, of.verify(cs) }
	server := wire.NewServer(identify, p.board, ignore{}, wire.ServerOptions{})
	_ = server.Serve(ctx, ln, creds) // if it ends early, the part that needs it says so
}

// realCluster is how simulated peers call the cluster that they are linked to.
const realCluster = "real"

// publish changes the peer's catalog. It is for one goroutine at a time.
func (p *peer) publish(listings ...wire.Listing) error {
	p.generation++
	err := p.board.Publish(listings, wire.Version{Epoch: "simulated", Generation: p.generation})
	p.board.SetReady(realCluster)
	return err
}

// listing is a Service that the peer exports. number makes its route id.
func (p *peer) listing(e export) wire.Listing {
	s := catalog.Service{
		Namespace:  e.namespace,
		Name:       e.name,
		Ready:      true,
		Identities: []string{fmt.Sprintf("spiffe://%s/ns/%s/sa/default", p.trustDomain, e.namespace)},
		Ports: []catalog.Port{{
			Name:     "http",
			Protocol: "TCP",
			Port:     80,
			Route:    catalog.FirstRoute + uint32(e.number),
		}},
	}
	return wire.Listing{Key: s.Key(), Service: &s, Links: []string{realCluster}}
}

// withdrawal says that the peer no longer exports a Service.
func (p *peer) withdrawal(e export) wire.Listing {
	return wire.Listing{Key: catalog.Key{Namespace: e.namespace, Name: e.name}}
}

// export makes the catalogs of all peers hold `services` Services each. It must be called
// once.
func (ps *peers) export(services int) error {
	for _, p := range ps.all {
		var listings []wire.Listing
		for i := range services {
			listings = append(listings, p.listing(exportNumber(i)))
		}
		if err := p.publish(listings...); err != nil {
			return err
		}
	}
	return nil
}

// mirrors returns namespace/name of the mirrors of the first n peers, if each exports
// `services` Services.
func (ps *peers) mirrors(n, services int) []string {
	var out []string
	for _, p := range ps.all[:n] {
		for i := range services {
			out = append(out, exportNumber(i).mirror(p.name))
		}
	}
	return out
}

// link makes Links for the peers that have none, up to n in all. services is the quota of
// each. With exports, the Links admit every export of the cluster.
func (ps *peers) link(ctx context.Context, n, services int, exports bool) error {
	first := ps.links
	ps.links = max(ps.links, n)
	return inParallel(ctx, writers, ps.links-first, func(ctx context.Context, i int) error {
		object, err := ps.all[first+i].link(services, exports)
		if err != nil {
			return err
		}
		_, err = ps.of.dyn.Resource(links).Create(ctx, object, metav1.CreateOptions{})
		return err
	})
}

func (p *peer) link(services int, exports bool) (*unstructured.Unstructured, error) {
	l := &v1alpha1.Link{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Link"},
		ObjectMeta: metav1.ObjectMeta{Name: p.name},
		Spec: v1alpha1.LinkSpec{
			TrustDomain:   p.trustDomain,
			Root:          string(p.rootPEM),
			LinkPublicKey: base64.StdEncoding.EncodeToString(p.linkKey.Public()),
			Gateways:      []string{p.address},
			Import: &v1alpha1.ImportRules{
				Services: v1alpha1.AllServices,
				Quotas:   &v1alpha1.ImportQuotas{Services: int32(services + headroom)},
			},
		},
	}
	if exports {
		l.Spec.Export = &v1alpha1.ExportRules{Services: v1alpha1.AllServices}
	}
	raw, err := runtime.DefaultUnstructuredConverter.ToUnstructured(l)
	return &unstructured.Unstructured{Object: raw}, err
}

// subscribe opens a stream of each peer to the cluster's catalog, through its gateway. The
// streams end with life.
func (ps *peers) subscribe(life context.Context, f *fanout) {
	for i, p := range ps.all {
		subscriber := wire.NewSubscriber(realCluster, ps.id.trustDomain, p.board, f.sink(i),
			wire.SubscriberOptions{Interval: time.Millisecond})
		client := subscriber.NewClient(ignore{},
			func(ctx context.Context) (net.Conn, error) { return dialFrom(ctx, ps.wan, "tcp", ps.id.gateway) },
			func(wire.ReplicaID) (*tls.Config, error) { return p.clientTLS(ps.id) },
			ps.id.verify,
			wire.ClientOptions{Guard: transport.GuardDialed})
		go client.Run(life)
	}
}

// clientTLS seals a label for the catalog of a real cluster.
func (p *peer) clientTLS(of clusterIdentity) (*tls.Config, error) {
	secret, err := identity.LinkSecret(p.linkKey, of.linkPublic)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	day := identity.Day(now)
	key := identity.DayKey(secret, p.trustDomain, of.trustDomain, day)
	sni, err := route.NewSealer(route.DatedKey{Day: day, Key: key}).Seal(route.Catalog, route.AnyEndpoint(), now)
	if err != nil {
		return nil, err
	}
	credential := func() (*identity.Credential, error) { return p.credential, nil }
	return identity.ClientTLS(identity.PlaneCatalog, sni, credential, of.verify), nil
}

// ignore is the wire.Sink of a peer that ignores what it receives.
type ignore struct{}

func (ignore) Hello(string, *wire.Hello, time.Duration) uint64 { return 0 }
func (ignore) IssuersApplied(string, uint64)                   {}
func (ignore) Freshness(string, wire.Freshness)                {}
func (ignore) Disconnected(string, error)                      {}
