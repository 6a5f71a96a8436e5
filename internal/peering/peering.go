// Package peering keeps the catalog streams to linked peers and holds what this replica
// knows about each peer: which gateway addresses answer, what the peer's catalog
// contains, and which issuers it has.
//
//	reconciler ──Set──▶ Peers ──streams──▶ gateways of peers ═▶ their controllers
//	                      ▲ DNS, hellos, heartbeats, catalogs
//	reconciler ◀─OnChange─┴─Snapshots, TakeCatalog
//	PeerTrusts ◀─issuer lists, PlanTrust, WriteTrust
//
// What always holds:
//   - A Snapshot is immutable. A peer's Snapshot is replaced only when its content
//     changed.
//   - A peer is authenticated by the root of its Link on every connection and again with
//     every heartbeat. A trust domain that a certificate claims only selects that root.
//   - Agents are given an address only if a person wrote it into the Link or if the peer
//     was authenticated there.
//   - A list of issuers with a lower number than the stored one is never stored.
//   - Another Link of the same name, or for another peer, starts with nothing that was
//     learned before.
//   - One stream per peer carries its catalog; streams to other addresses carry
//     heartbeats.
//   - A removal counts only if the catalog that lacks the Service is not older than the
//     one applied last.
//   - Every goroutine ends with the context that Set was given; Wait waits for them.
package peering

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// Config holds what Peers needs. Fields are required unless they say otherwise.
type Config struct {
	Identity *clusterid.Identity
	// Board holds what this cluster sends to its peers.
	Board *wire.Board
	// Client reads PeerTrusts without a cache: learning is rare and must not go back.
	Client client.Client
	// Namespace is Causeway's own namespace, which holds PeerTrusts.
	Namespace string
	// Ranges are this cluster's own ranges: virtual IPs, pods, Services. Addresses inside
	// them are dialed only if a Link's gatewayCIDRs contain them.
	Ranges []netip.Prefix
	// OnCatalog is called with a Link's name, instead of OnChange, if only the peer's
	// catalog has changed. Nil means OnChange.
	OnCatalog func(link string)
	// OnChange is called with a Link's name after something changed that the reconciler
	// reads: the Snapshot, the catalog, or an input of Set. It must not block, and may be
	// called by several goroutines at once.
	OnChange func(link string)
	Log      *slog.Logger
	Metrics  *wire.Metrics
	// Budgets are shared with the catalog server; nil means separate ones.
	Budgets *wire.Budgets
	// KeyExchange is what this replica offers to peers.
	KeyExchange identity.KeyExchange
	// Dial opens a connection to a gateway address; nil means TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Lookup resolves a name; nil means the resolver of the operating system.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Peers holds the state of all peers. Make it with New. Set, Snapshots, TakeCatalog,
// RestoreLost, WriteTrust and HandOver are for one caller, the reconciler; all else is
// safe for concurrent use.
type Peers struct {
	c        Config
	trust    trustStore
	running  sync.WaitGroup
	verifier verifier

	mu     sync.Mutex // guards what follows and all that is in it
	links  map[string]*peer
	dialed map[string]greeting // peers that have a stream to us, by Link
}

// New returns Peers that knows no peer and starts nothing until Set.
func New(c Config) *Peers {
	if c.Dial == nil {
		c.Dial = dialTCP
	}
	if c.Lookup == nil {
		c.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if c.OnCatalog == nil {
		c.OnCatalog = c.OnChange
	}
	if c.Budgets == nil {
		c.Budgets = wire.NewBudgets()
	}
	return &Peers{
		c:      c,
		trust:  trustStore{client: c.Client, namespace: c.Namespace},
		links:  make(map[string]*peer),
		dialed: make(map[string]greeting),
	}
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	c, _, err := transport.Dialer{}.DialFirst(ctx, address)
	return c, err
}

// Want is a peer that a Link in force names.
type Want struct {
	link.Peer
	// StoredGateways are addresses at which an earlier controller authenticated the peer:
	// those of the PeerTrust, if that belongs to this very Link.
	StoredGateways []string
}

// Set makes the peers those of want, by Link. It starts and ends streams; a peer whose
// gateway addresses change keeps its state and only moves its streams. addresses says
// which IPs this cluster uses itself. Set does not block. Everything that it starts ends
// with ctx, which must be the same in every call.
func (p *Peers) Set(ctx context.Context, want map[string]Want, addresses ClusterAddresses) {
	now := time.Now()
	var changed []string
	p.mu.Lock()
	for name, have := range p.links {
		if w, ok := want[name]; !ok || !have.link.Same(w.Peer) {
			have.cancel()
			delete(p.links, name)
		}
	}
	if ctx.Err() == nil {
		for name, w := range want {
			s := p.links[name]
			if s == nil {
				s = p.newPeer(ctx, w.Peer)
				p.links[name] = s
			}
			if p.syncAddresses(s, w, addresses, now) {
				changed = append(changed, name)
			}
		}
	}
	p.mu.Unlock()
	for _, name := range changed {
		p.c.OnChange(name)
	}
}

// Snapshots returns what is known of each peer now. The map belongs to the caller.
func (p *Peers) Snapshots() map[string]*Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]*Snapshot, len(p.links))
	for name, s := range p.links {
		out[name] = s.snapshot
	}
	return out
}

// Wait blocks until everything that Set started has ended. Call it after the context of
// Set ended.
func (p *Peers) Wait() { p.running.Wait() }

// Acknowledged returns, by Link, the newest list of this cluster's issuers that each peer
// reports to have applied.
func (p *Peers) Acknowledged() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]uint64, len(p.links))
	for name, s := range p.links {
		out[name] = s.acknowledged
	}
	return out
}

// update changes the state of a peer, unless that was replaced meanwhile, and calls
// OnChange if the reconciler can see a difference.
func (p *Peers) update(s *peer, change func()) {
	p.mu.Lock()
	changed := p.links[s.link.Name] == s && s.apply(time.Now(), change)
	catalog := p.links[s.link.Name] == s && s.catalogChanged
	s.catalogChanged = false
	p.mu.Unlock()
	switch {
	case changed:
		p.c.OnChange(s.link.Name)
	case catalog:
		p.c.OnCatalog(s.link.Name)
	}
}

// greeting is what a peer that dialed us sent in its Hello, for as long as its stream is
// open. The peer sends it once, so a new Link for the same peer starts from it.
type greeting struct {
	link         link.Peer
	hello        *wire.Hello
	skew         time.Duration
	acknowledged uint64
}

// peer is the state of one peer. Peers.mu guards it, except link, life and cancel, which
// do not change.
type peer struct {
	link   link.Peer // its gateway addresses apart, which are in addresses
	life   context.Context
	cancel context.CancelFunc

	subscriber *wire.Subscriber
	addresses  gatewayAddresses
	streams    map[string]*outbound // by gateway address
	inbound    bool                 // the peer has a stream to us
	hello      *wire.Hello          // the newest; nil: none yet
	skew       time.Duration
	catalog    catalogState
	issuers    issuerLists
	// acknowledged is the newest list of our issuers that the peer reports to have.
	acknowledged uint64
	// degradedSince is when something was last lost, if not all is well; zero: all is.
	degradedSince time.Time
	writingTrust  bool // a goroutine writes the peer's PeerTrust
	handingOver   bool // a goroutine stores the issuer list for the next Link

	snapshot       *Snapshot // of all the above; never nil
	catalogChanged bool      // TakeCatalog has changes that were not reported yet
	notify         bool      // a change that is not in the snapshot concerns the reconciler
}

// newPeer returns the state of a new peer. The caller holds mu.
func (p *Peers) newPeer(ctx context.Context, l link.Peer) *peer {
	life, cancel := context.WithCancel(ctx)
	s := &peer{
		link:          l,
		life:          life,
		cancel:        cancel,
		addresses:     newGatewayAddresses(),
		streams:       make(map[string]*outbound),
		catalog:       newCatalogState(),
		issuers:       newIssuerLists(),
		degradedSince: time.Now(),
	}
	if g, ok := p.dialed[l.Name]; ok && g.link.TrustDomain == l.TrustDomain && g.link.Root.Equal(l.Root) {
		s.inbound, s.hello, s.skew, s.acknowledged = true, g.hello, g.skew, g.acknowledged
		s.issuers.judge(s.link, g.hello.GetIssuerList()) // RestoreLost stores it
	}
	s.subscriber = wire.NewSubscriber(l.Name, l.TrustDomain, p.c.Board, catalogSink{p, s},
		wire.SubscriberOptions{Budgets: p.c.Budgets})
	s.snapshot = s.newSnapshot()
	return s
}

// apply changes s and renews its snapshot. It reports whether the reconciler can see a
// difference. The caller holds mu.
func (s *peer) apply(now time.Time, change func()) bool {
	before := s.working()
	change()
	s.trackLoss(before, now)
	changed := s.notify
	s.notify = false
	if next := s.newSnapshot(); !next.equal(s.snapshot) {
		s.snapshot = next
		changed = true
	}
	return changed
}

// working is the set of what works with the peer.
func (s *peer) working() map[string]bool {
	up := make(map[string]bool, len(s.streams)+2)
	for address, stream := range s.streams {
		if stream.err == nil {
			up[address] = true
		}
	}
	if s.inbound {
		up["inbound"] = true
	}
	if s.catalog.complete {
		up["catalog"] = true
	}
	return up
}

// trackLoss records when something stopped working that worked before. A loss within the
// grace period of an earlier one does not extend that period.
func (s *peer) trackLoss(before map[string]bool, now time.Time) {
	if s.isWell() {
		s.degradedSince = time.Time{}
		return
	}
	after := s.working()
	maps.DeleteFunc(before, func(what string, _ bool) bool { return after[what] })
	if len(before) > 0 && now.Sub(s.degradedSince) >= LossGrace {
		s.degradedSince = now
	}
}

// isWell reports whether there is nothing to wait for.
func (s *peer) isWell() bool {
	for _, stream := range s.streams {
		if stream.err != nil {
			return false
		}
	}
	return s.inbound && len(s.streams) == 0 || s.catalog.complete
}
