package controller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/dataplane/home"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// peers keeps a catalog stream to every gateway address of every peer, hears the
// peers that dial us, and remembers what each has said.
type peers struct {
	identity *clusterid.Identity
	trusts   trusts
	board    *wire.Board
	metrics  *wire.Metrics
	changed  func() // something was learnt
	reach    func(ctx context.Context, address string) (net.Conn, error)
	lookup   func(ctx context.Context, host string) ([]netip.Addr, error)
	ranges   []netip.Prefix // this cluster's own
	log      *slog.Logger

	running sync.WaitGroup // streams, names being resolved, and what is being kept
	around  around         // of the goroutine that calls set

	mu     sync.Mutex // guards what follows and all that is in it
	links  map[string]*peerState
	dialed map[string]greeting // peers that have a stream to us, by Link
}

// greeting is what a peer that dialled us has said, for as long as its stream is
// up. It says so once, so that a Link made anew for the same peer starts from it.
type greeting struct {
	peer  link.Peer
	hello *wire.Hello
	skew  time.Duration
	// trusts is the number of the newest list of our issuers that it says to have.
	trusts uint64
}

// peerState is what is known of one peer. For another Link of the name there is
// another peerState; other addresses only begin and end streams.
type peerState struct {
	peer    link.Peer // where it is apart
	life    context.Context
	cancel  context.CancelFunc
	places  places
	streams map[string]outbound // by gateway address
	inbound bool                // the peer has a stream to us
	hello   *wire.Hello
	skew    time.Duration
	// services are validated; complete says that they are all.
	services map[catalog.Key]catalog.Service
	complete bool
	problems []catalog.Problem
	// troubled is when something was last lost, if not all is well; zero: all is.
	troubled time.Time
	issuers  issuers
	trusts   uint64 // number of the newest list of our issuers that the peer says to have
	amending bool   // a goroutine amends the peer's PeerTrust
}

// outbound is our stream to one address.
type outbound struct {
	end context.CancelFunc
	err error // nil: connected
}

var errConnecting = errors.New("connecting")

// set makes the peers those of valid Links, starting and ending streams.
func (p *peers) set(ctx context.Context, want map[string]link.Peer) {
	candidates := p.admit(ctx, want)
	if candidates == nil {
		return
	}
	own := p.around.owns(candidates)
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range want {
		p.aim(p.links[name], own, time.Now())
	}
}

// admit ends what is known of peers that are none any more, and begins with new
// ones. It returns the IPs that are found of all; nil: ctx has ended.
func (p *peers) admit(ctx context.Context, want map[string]link.Peer) map[netip.Addr]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, have := range p.links {
		if w, ok := want[name]; !ok || !same(have.peer, w) {
			have.cancel()
			delete(p.links, name)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	candidates := make(map[netip.Addr]bool)
	for name, peer := range want {
		s := p.links[name]
		if s == nil {
			s = p.meet(ctx, peer)
			p.links[name] = s
		}
		s.places.gateways, s.places.allow = peer.Gateways, peer.Allow
		s.places.hear(s.hello, p.around.stored[name], time.Now())
		maps.Copy(candidates, s.places.book.Candidates(peer.Gateways))
	}
	return candidates
}

// meet returns the state of a new peer. The caller holds mu.
func (p *peers) meet(ctx context.Context, peer link.Peer) *peerState {
	life, cancel := context.WithCancel(ctx)
	s := &peerState{peer: peer, life: life, cancel: cancel, streams: make(map[string]outbound), troubled: time.Now(), issuers: newIssuers(), places: newPlaces()}
	if g, ok := p.dialed[peer.Name]; ok && g.peer.TrustDomain == peer.TrustDomain && g.peer.Root.Equal(peer.Root) {
		s.inbound, s.hello, s.skew, s.trusts = true, g.hello, g.skew, g.trusts
		s.issuers.sent(s.peer, g.hello.GetIssuerList())
	}
	return s
}

// dial makes the streams of s those to addresses. The caller holds mu.
func (p *peers) dial(s *peerState, addresses []string) {
	for address, stream := range s.streams {
		if !slices.Contains(addresses, address) {
			stream.end()
			delete(s.streams, address)
		}
	}
	for _, address := range addresses {
		if _, ok := s.streams[address]; ok {
			continue
		}
		life, end := context.WithCancel(s.life)
		s.streams[address] = outbound{end, errConnecting}
		client := wire.NewClient(s.peer.Name, p.board, &outboundSink{p, s, address, life},
			func(ctx context.Context) (net.Conn, error) { return p.reach(ctx, address) },
			func() (*tls.Config, error) { return p.clientTLS(s.peer) },
			wire.ClientOptions{Guard: home.Guard, Log: p.log.With("gateway", address), Metrics: p.metrics})
		p.running.Go(func() { client.Run(life) })
	}
}

// same reports whether two Links of one name are one Link for one peer, wherever
// that is.
func same(a, b link.Peer) bool {
	return a.UID == b.UID && a.TrustDomain == b.TrustDomain && a.Root.Equal(b.Root) && a.LinkKey.Equal(b.LinkKey)
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	c, _, err := transport.Dialer{}.First(ctx, address)
	return c, err
}

// clientTLS seals a fresh label for the peer's catalog route.
func (p *peers) clientTLS(peer link.Peer) (*tls.Config, error) {
	secret, err := identity.LinkSecret(p.identity.LinkKey(), peer.LinkKey.Bytes())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	day := identity.Day(now)
	key := identity.DayKey(secret, p.identity.TrustDomain(), peer.TrustDomain, day)
	sni, err := route.NewSealer(route.DatedKey{Day: day, Key: key}).Seal(route.Catalog, route.Wish{}, now)
	if err != nil {
		return nil, err
	}
	return identity.ClientTLS(identity.PlaneCatalog, sni, p.identity.Credential, identity.VerifyPeerController(peer.TrustDomain, peer.Root, time.Now)), nil
}

// serverTLS proves us to peers' controllers, and them to us.
func (p *peers) serverTLS() (*tls.Config, error) {
	return identity.ServerTLS(identity.PlaneCatalog,
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.identity.Credential() },
		true, func(cs tls.ConnectionState) error { _, err := p.who(cs); return err }), nil
}

// who returns the Link whose peer's controller the certificates are. It is asked
// with each heartbeat of each stream: the trust domain that a certificate claims
// chooses the one root that it is verified against.
func (p *peers) who(cs tls.ConnectionState) (string, error) {
	name, domain, root, err := p.claimed(cs.PeerCertificates)
	if err != nil {
		return "", err
	}
	_, err = identity.VerifyController(cs.PeerCertificates, domain, root, time.Now())
	if err != nil {
		return "", err
	}
	return name, nil
}

// claimed finds the Link whose peer the certificates claim to be of.
func (p *peers) claimed(certs []*x509.Certificate) (name, domain string, root *x509.Certificate, err error) {
	if len(certs) == 0 || len(certs[0].URIs) != 1 {
		return "", "", nil, errors.New("its certificate has no SPIFFE ID")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.links {
		if s.peer.TrustDomain == certs[0].URIs[0].Host {
			return name, s.peer.TrustDomain, s.peer.Root, nil
		}
	}
	return "", "", nil, errors.New("no Link names its trust domain")
}

// note runs do on a peer's state, unless that has been replaced, and tells of the change.
func (p *peers) note(s *peerState, do func()) {
	p.mu.Lock()
	current := p.links[s.peer.Name] == s
	if current {
		had := s.standing()
		do()
		s.judge(had, time.Now())
	}
	p.mu.Unlock()
	if current {
		p.changed()
	}
}

// hello takes in what a peer says of itself.
func (p *peers) hello(s *peerState, h *wire.Hello, skew time.Duration, connected func()) uint64 {
	number := p.learn(s, h.GetIssuerList())
	p.note(s, func() { s.hello, s.skew = h, settled(s.skew, skew); connected() })
	return number
}

// skewStep is by how much a clock has to move before another skew is told.
const skewStep = time.Minute

// settled keeps a skew still until it has moved for good.
func settled(was, now time.Duration) time.Duration {
	if (now - was).Abs() < skewStep {
		return was
	}
	return now
}

// outboundSink hears one stream that we have dialled, until its life ends.
type outboundSink struct {
	p       *peers
	s       *peerState
	address string
	life    context.Context
}

func (o *outboundSink) Hello(_ string, h *wire.Hello, skew time.Duration) uint64 {
	return o.p.hello(o.s, h, skew, func() {
		o.became(nil)
		o.s.places.met[o.address] = true
	})
}

// became notes the stream's state, unless it has been ended. The caller holds mu.
func (o *outboundSink) became(err error) {
	if stream, ok := o.s.streams[o.address]; ok && o.life.Err() == nil {
		stream.err = err
		o.s.streams[o.address] = stream
	}
}

func (o *outboundSink) Catalog(_ string, services map[catalog.Key]catalog.Service) {
	valid := make(map[catalog.Key]catalog.Service, len(services))
	var problems []catalog.Problem
	for key, s := range services {
		v, ps := s.Validate(o.s.peer.TrustDomain)
		problems = append(problems, ps...)
		if !v.IsZero() {
			valid[key] = v
		}
	}
	catalog.SortProblems(problems)
	o.p.note(o.s, func() {
		if o.life.Err() == nil {
			o.s.services, o.s.complete, o.s.problems = valid, true, problems
		}
	})
}

func (o *outboundSink) Disconnected(_ string, err error) {
	if err == nil {
		err = wire.ErrEnded
	}
	o.p.note(o.s, func() { o.became(err) })
}

// inboundSink hears the streams that peers have dialled. They carry no catalog to us.
type inboundSink struct{ p *peers }

func (i inboundSink) Hello(link string, h *wire.Hello, skew time.Duration) uint64 {
	i.p.mu.Lock()
	s := i.p.links[link]
	if s != nil {
		if i.p.dialed == nil {
			i.p.dialed = make(map[string]greeting)
		}
		i.p.dialed[link] = greeting{s.peer, h, skew, i.p.dialed[link].trusts}
	}
	i.p.mu.Unlock()
	if s == nil {
		return 0
	}
	return i.p.hello(s, h, skew, func() { s.inbound = true })
}

func (inboundSink) Catalog(string, map[catalog.Key]catalog.Service) {}

func (i inboundSink) Disconnected(link string, _ error) {
	i.p.mu.Lock()
	delete(i.p.dialed, link)
	s := i.p.links[link]
	i.p.mu.Unlock()
	if s != nil {
		i.p.note(s, func() { s.inbound = false })
	}
}

// acks are the numbers of the newest lists of our issuers that peers say to have, by Link.
func (p *peers) acks() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]uint64, len(p.links))
	for name, s := range p.links {
		out[name] = s.trusts
	}
	return out
}

// acked takes in what a peer says to have of our issuers.
func (p *peers) acked(s *peerState, number uint64) {
	p.mu.Lock()
	known := number <= s.trusts
	p.mu.Unlock()
	if !known {
		p.note(s, func() { s.trusts = max(s.trusts, number) })
	}
}

// Trusts implements wire.Sink.
func (o *outboundSink) Trusts(_ string, number uint64) { o.p.acked(o.s, number) }

// Trusts implements wire.Sink.
func (i inboundSink) Trusts(link string, number uint64) {
	i.p.mu.Lock()
	s := i.p.links[link]
	if g, ok := i.p.dialed[link]; ok {
		g.trusts = max(g.trusts, number)
		i.p.dialed[link] = g
	}
	i.p.mu.Unlock()
	if s != nil {
		i.p.acked(s, number)
	}
}
