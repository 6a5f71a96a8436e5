package peering

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// outbound is our stream to one gateway address.
type outbound struct {
	cancel context.CancelFunc
	err    error // nil: connected
	// age is how long ago the replica at the other end read its API server, as of its
	// last heartbeat; negative: it has not said.
	age time.Duration
}

var errConnecting = errors.New("connecting")

// noAnswerYet is the reason of a stream whose first attempt has not ended.
const noAnswerYet = "no answer yet"

func (o *outbound) state() StreamState {
	switch o.err {
	case nil:
		return StreamState{Connected: true}
	case errConnecting:
		return StreamState{Reason: noAnswerYet}
	}
	return StreamState{Reason: wire.Explain(o.err)}
}

// syncStreams makes the streams of s those to addresses. The Subscriber subscribes on one
// of them; the others exchange hellos and heartbeats only. The caller holds mu.
func (p *Peers) syncStreams(s *peer, addresses []string) {
	for address, stream := range s.streams {
		if !slices.Contains(addresses, address) {
			stream.cancel()
			delete(s.streams, address)
		}
	}
	for _, address := range addresses {
		if _, ok := s.streams[address]; ok {
			continue
		}
		life, cancel := context.WithCancel(s.life)
		s.streams[address] = &outbound{cancel: cancel, err: errConnecting, age: -1}
		client := s.subscriber.NewClient(&outboundSink{p: p, s: s, address: address, life: life},
			func(ctx context.Context) (net.Conn, error) { return p.c.Dial(ctx, address) },
			func(hint wire.ReplicaID) (*tls.Config, error) { return p.clientTLS(s.link, hint) },
			func(cs tls.ConnectionState) error { return p.verifyController(cs, s.link) },
			wire.ClientOptions{
				Guard:   transport.GuardDialed,
				Log:     p.c.Log.With("gateway", address),
				Metrics: p.c.Metrics,
			})
		p.running.Go(func() { client.Run(life) })
	}
}

// verifyController verifies a peer's controller again on an open stream: its
// certificate may have expired.
func (p *Peers) verifyController(cs tls.ConnectionState, peer link.Peer) error {
	return p.verifier.verify(cs.PeerCertificates, peer.TrustDomain, peer.Root, time.Now())
}

// clientTLS seals a fresh label for the catalog route of a peer, by the day of our clock.
// hint is the replica that the label asks for; zero: any.
func (p *Peers) clientTLS(peer link.Peer, hint wire.ReplicaID) (*tls.Config, error) {
	id := p.c.Identity
	secret, err := identity.LinkSecret(id.LinkKey(), peer.LinkKey.Bytes())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	day := identity.Day(now)
	key := identity.DayKey(secret, id.TrustDomain(), peer.TrustDomain, day)
	endpoint := route.AnyEndpoint()
	if !hint.IsZero() {
		endpoint = route.ForEndpoint(route.EndpointID(hint))
	}
	sni, err := route.NewSealer(route.DatedKey{Day: day, Key: key}).Seal(route.Catalog, endpoint, now)
	if err != nil {
		return nil, err
	}
	verify := identity.VerifyPeerController(peer.TrustDomain, peer.Root, time.Now)
	return p.c.KeyExchange.Limit(identity.ClientTLS(identity.PlaneCatalog, sni, id.Credential, verify)), nil
}

// ServerTLS authenticates this replica to peers' controllers, and them to it.
func (p *Peers) ServerTLS() (*tls.Config, error) {
	credential := func(*tls.ClientHelloInfo) (*identity.Credential, error) {
		return p.c.Identity.Credential()
	}
	return identity.ServerTLS(identity.PlaneCatalog, credential, true, func(cs tls.ConnectionState) error {
		_, err := p.Identify(cs)
		return err
	}), nil
}

// Identify returns the Link whose peer's controller presented the certificates of a
// connection. The trust domain that a certificate claims selects the one root against
// which it is verified. A catalog server calls it with each heartbeat of each stream.
func (p *Peers) Identify(cs tls.ConnectionState) (string, error) {
	name, domain, root, err := p.claimed(cs.PeerCertificates)
	if err != nil {
		return "", err
	}
	if err := p.verifier.verify(cs.PeerCertificates, domain, root, time.Now()); err != nil {
		return "", err
	}
	return name, nil
}

// claimed finds the Link of the trust domain that certificates claim.
func (p *Peers) claimed(certs []*x509.Certificate) (name, domain string, root *x509.Certificate, err error) {
	if len(certs) == 0 || len(certs[0].URIs) != 1 {
		return "", "", nil, errors.New("the certificate has no SPIFFE ID")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.links {
		if s.link.TrustDomain == certs[0].URIs[0].Host {
			return name, s.link.TrustDomain, s.link.Root, nil
		}
	}
	return "", "", nil, errors.New("no Link names the certificate's trust domain")
}

// receiveHello takes in a Hello and calls connected with mu held. It returns the number
// of the peer's newest list of issuers that is stored.
func (p *Peers) receiveHello(s *peer, h *wire.Hello, skew time.Duration, connected func()) uint64 {
	number := p.receiveIssuers(s, h.GetIssuerList())
	p.update(s, func() {
		s.notify = !slices.Equal(s.hello.GetGateways(), h.GetGateways()) || s.hello == nil
		s.hello, s.skew = h, steadySkew(s.skew, skew)
		connected()
	})
	return number
}

// skewStep is by how much a clock must move before the reported skew changes.
const skewStep = time.Minute

// steadySkew keeps the reported skew until the measured one differs by skewStep.
func steadySkew(reported, measured time.Duration) time.Duration {
	if (measured - reported).Abs() < skewStep {
		return reported
	}
	return measured
}

// outboundSink receives what one of our streams delivers, until its life ends.
type outboundSink struct {
	p       *Peers
	s       *peer
	address string
	life    context.Context
}

// Hello implements wire.Sink.
func (o *outboundSink) Hello(_ string, h *wire.Hello, skew time.Duration) uint64 {
	return o.p.receiveHello(o.s, h, skew, func() {
		o.set(nil)
		o.s.addresses.authenticated[o.address] = true
	})
}

// set records the state of the stream, unless the stream was ended by us. The caller
// holds mu.
func (o *outboundSink) set(err error) {
	if stream, ok := o.s.streams[o.address]; ok && o.life.Err() == nil {
		stream.err, stream.age = err, -1
	}
}

// Freshness implements wire.Sink.
func (o *outboundSink) Freshness(_ string, f wire.Freshness) {
	o.p.update(o.s, func() {
		o.s.catalog.observe(f.Version, time.Now())
		o.s.catalog.confirm(f, time.Now())
		if stream, ok := o.s.streams[o.address]; ok && o.life.Err() == nil {
			stream.age = f.Age
		}
	})
}

// Disconnected implements wire.Sink.
func (o *outboundSink) Disconnected(_ string, err error) {
	if err == nil {
		err = wire.ErrEnded
	}
	o.p.update(o.s, func() { o.set(err) })
}

// IssuersApplied implements wire.Sink.
func (o *outboundSink) IssuersApplied(_ string, number uint64) {
	o.p.receiveAcknowledgement(o.s, number)
}

// catalogSink receives the differences between a peer's catalogs from its Subscriber.
type catalogSink struct {
	p *Peers
	s *peer
}

// Catalog implements wire.CatalogSink.
func (c catalogSink) Catalog(_ string, d wire.Delta) {
	c.p.update(c.s, func() {
		c.s.catalog.receive(d, time.Now())
		c.s.catalogChanged = true
	})
}

// receiveAcknowledgement takes in which list of our issuers a peer has applied.
func (p *Peers) receiveAcknowledgement(s *peer, number uint64) {
	p.update(s, func() { s.acknowledged = max(s.acknowledged, number) })
}

// Inbound returns the sink of the streams that peers open to us. They carry no catalog in
// this direction.
func (p *Peers) Inbound() wire.Sink { return inboundSink{p} }

type inboundSink struct{ p *Peers }

// Hello implements wire.Sink.
func (i inboundSink) Hello(link string, h *wire.Hello, skew time.Duration) uint64 {
	i.p.mu.Lock()
	s := i.p.links[link]
	if s != nil {
		g := i.p.dialed[link]
		g.link, g.hello, g.skew = s.link, h, skew
		i.p.dialed[link] = g
	}
	i.p.mu.Unlock()
	if s == nil {
		return 0
	}
	return i.p.receiveHello(s, h, skew, func() { s.inbound = true })
}

// Freshness implements wire.Sink.
func (i inboundSink) Freshness(link string, f wire.Freshness) {
	i.p.mu.Lock()
	defer i.p.mu.Unlock()
	if s := i.p.links[link]; s != nil {
		s.catalog.observe(f.Version, time.Now())
		s.catalog.confirm(f, time.Now())
	}
}

// Disconnected implements wire.Sink.
func (i inboundSink) Disconnected(link string, _ error) {
	i.p.mu.Lock()
	delete(i.p.dialed, link)
	s := i.p.links[link]
	i.p.mu.Unlock()
	if s != nil {
		i.p.update(s, func() { s.inbound = false })
	}
}

// IssuersApplied implements wire.Sink.
func (i inboundSink) IssuersApplied(link string, number uint64) {
	i.p.mu.Lock()
	s := i.p.links[link]
	if g, ok := i.p.dialed[link]; ok {
		g.acknowledged = max(g.acknowledged, number)
		i.p.dialed[link] = g
	}
	i.p.mu.Unlock()
	if s != nil {
		i.p.receiveAcknowledgement(s, number)
	}
}
