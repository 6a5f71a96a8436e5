package controller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/dataplane/home"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// peers keeps a catalog stream to every gateway address of every peer, hears the
// peers that dial us, and remembers what each has said.
type peers struct {
	own        *own
	credential func() (*identity.Credential, error)
	trusts     trusts
	board      *wire.Board
	metrics    *wire.Metrics
	changed    func() // something was learnt
	log        *slog.Logger

	running sync.WaitGroup // streams

	mu    sync.Mutex // guards what follows and all that is in it
	links map[string]*peerState
}

// peerState is what is known of one peer. For another Link of the name, or one
// with other addresses, there is another peerState.
type peerState struct {
	peer    link.Peer
	cancel  context.CancelFunc
	streams map[string]error // by gateway address; nil: connected
	inbound bool             // the peer has a stream to us
	hello   *wire.Hello
	skew    time.Duration
	// services are validated; complete says that they are all.
	services map[catalog.Key]catalog.Service
	complete bool
	problems []catalog.Problem
}

// heard is a copy of what is known of a peer.
type heard struct {
	peerState
	healthy map[string]bool // by gateway address
}

var errConnecting = errors.New("connecting")

// set makes the peers those of valid Links, starting and ending streams.
func (p *peers) set(ctx context.Context, want map[string]link.Peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, have := range p.links {
		if w, ok := want[name]; !ok || !same(have.peer, w) {
			have.cancel()
			delete(p.links, name)
		}
	}
	for name, peer := range want {
		if _, ok := p.links[name]; ok || ctx.Err() != nil {
			continue
		}
		life, cancel := context.WithCancel(ctx)
		s := &peerState{peer: peer, cancel: cancel, streams: make(map[string]error)}
		p.links[name] = s
		for _, address := range peer.Gateways {
			s.streams[address] = errConnecting
			client := wire.NewClient(name, p.board, &outboundSink{p, s, address},
				func(ctx context.Context) (net.Conn, error) { return dial(ctx, address) },
				func() (*tls.Config, error) { return p.clientTLS(peer) },
				wire.ClientOptions{Guard: home.Guard, Log: p.log.With("gateway", address), Metrics: p.metrics})
			p.running.Go(func() { client.Run(life) })
		}
	}
}

func same(a, b link.Peer) bool {
	return a.UID == b.UID && a.TrustDomain == b.TrustDomain && a.Root.Equal(b.Root) && a.LinkKey.Equal(b.LinkKey) && slices.Equal(a.Gateways, b.Gateways)
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	c, _, err := transport.Dialer{}.First(ctx, address)
	return c, err
}

// clientTLS seals a fresh label for the peer's catalog route.
func (p *peers) clientTLS(peer link.Peer) (*tls.Config, error) {
	secret, err := identity.LinkSecret(p.own.linkKey, peer.LinkKey.Bytes())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	day := identity.Day(now)
	key := identity.DayKey(secret, p.own.trustDomain, peer.TrustDomain, day)
	sni, err := route.NewSealer(route.DatedKey{Day: day, Key: key}).Seal(route.Catalog, route.Wish{}, now)
	if err != nil {
		return nil, err
	}
	return identity.ClientTLS(identity.PlaneCatalog, sni, p.credential, identity.VerifyPeerController(peer.Root, time.Now)), nil
}

// serverTLS proves us to peers' controllers, and them to us.
func (p *peers) serverTLS() (*tls.Config, error) {
	return identity.ServerTLS(identity.PlaneCatalog,
		func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.credential() },
		true, func(cs tls.ConnectionState) error { _, err := p.who(cs); return err }), nil
}

// who returns the Link whose peer's controller the certificates are.
func (p *peers) who(cs tls.ConnectionState) (string, error) {
	p.mu.Lock()
	roots := make(map[string]*x509.Certificate, len(p.links))
	for name, s := range p.links {
		roots[name] = s.peer.Root
	}
	p.mu.Unlock()
	err := errors.New("no Link names its root")
	for _, name := range slices.Sorted(maps.Keys(roots)) {
		if _, verr := identity.VerifyController(cs.PeerCertificates, roots[name], time.Now()); verr == nil {
			return name, nil
		} else if len(roots) == 1 {
			err = verr
		}
	}
	return "", err
}

// heard returns what is known of a peer; nothing, if it is none.
func (p *peers) heard(name string) heard {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[name]
	if s == nil {
		return heard{}
	}
	h := heard{peerState: *s, healthy: make(map[string]bool, len(s.streams))}
	h.streams = maps.Clone(s.streams)
	for address, err := range s.streams {
		h.healthy[address] = err == nil
	}
	return h
}

// note runs do on a peer's state, unless that has been replaced, and tells of the change.
func (p *peers) note(s *peerState, do func()) {
	p.mu.Lock()
	current := p.links[s.peer.Name] == s
	if current {
		do()
	}
	p.mu.Unlock()
	if current {
		p.changed()
	}
}

// hello takes in what a peer says of itself.
func (p *peers) hello(s *peerState, h *wire.Hello, skew time.Duration, connected func()) uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	number, err := p.trusts.learn(ctx, s.peer, h.GetIssuerList())
	if err != nil {
		p.log.Warn("a peer's list of issuers was not applied", "link", s.peer.Name, "error", err)
	}
	p.note(s, func() { s.hello, s.skew = h, skew; connected() })
	return number
}

// outboundSink hears one stream that we have dialled.
type outboundSink struct {
	p       *peers
	s       *peerState
	address string
}

func (o *outboundSink) Hello(_ string, h *wire.Hello, skew time.Duration) uint64 {
	return o.p.hello(o.s, h, skew, func() { o.s.streams[o.address] = nil })
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
	o.p.note(o.s, func() { o.s.services, o.s.complete, o.s.problems = valid, true, problems })
}

func (o *outboundSink) Disconnected(_ string, err error) {
	if err == nil {
		err = errConnecting
	}
	o.p.note(o.s, func() { o.s.streams[o.address] = err })
}

// inboundSink hears the streams that peers have dialled. They carry no catalog to us.
type inboundSink struct{ p *peers }

func (i inboundSink) find(link string) *peerState {
	i.p.mu.Lock()
	defer i.p.mu.Unlock()
	return i.p.links[link]
}

func (i inboundSink) Hello(link string, h *wire.Hello, skew time.Duration) uint64 {
	if s := i.find(link); s != nil {
		return i.p.hello(s, h, skew, func() { s.inbound = true })
	}
	return 0
}

func (inboundSink) Catalog(string, map[catalog.Key]catalog.Service) {}

func (i inboundSink) Disconnected(link string, _ error) {
	if s := i.find(link); s != nil {
		i.p.note(s, func() { s.inbound = false })
	}
}

// worstSkew is how far a peer's clock may be off before it is said.
const worstSkew = 2 * time.Minute

// seen is what a Link's status says of h.
func (h heard) seen(fault *link.Fault, issuersKnown bool) link.Seen {
	s := link.Seen{
		Fault: fault, IssuersKnown: issuersKnown, Complete: h.complete,
		Gateways: len(h.peer.Gateways), Connected: h.inbound, PeerVersion: h.hello.GetVersion(),
	}
	for _, address := range slices.Sorted(maps.Keys(h.streams)) {
		if err := h.streams[address]; err == nil {
			s.Reachable++
			s.Connected = true
		} else if s.ConnectError == "" && err != errConnecting {
			s.ConnectError = fmt.Sprintf("gateway %s: %s", address, wire.Explain(err))
		}
	}
	if h.skew.Abs() > worstSkew {
		s.Skew = h.skew
	}
	s.Problems = append([]v1alpha1.ServiceProblem(nil), h.problems...)
	return s
}
