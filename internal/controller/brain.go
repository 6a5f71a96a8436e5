package controller

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
)

const (
	// settle is how long changes are gathered before they are thought over.
	settle = 50 * time.Millisecond
	// retry is how soon a thought that failed is tried again.
	retry = time.Second
	// ponder is how often everything is thought over though nothing changed: day
	// keys turn, rests end.
	ponder = 5 * time.Minute
)

// brain turns what the caches and the peers say into what everybody must know. It
// holds no state of its own but the leader's books: each thought starts anew.
//
//	caches, peers ─▶ think ─▶ catalogs for peers, views for nodes     (every replica)
//	                      └─▶ ledger, mirrors, status, Events          (the leader)
type brain struct {
	o      Options
	own    *own
	cache  client.Reader
	hub    *nodestream.Hub
	board  *wire.Board
	peers  *peers
	ranges []netip.Prefix
	log    *slog.Logger

	leading atomic.Bool
	leader  *leader
	// whole is closed after the first whole thought: from then on there is something to serve.
	whole chan struct{}

	wake      chan struct{}
	builder   view.Builder
	nodes     map[string]bool // that have a view
	published map[string]bool // Links that have a catalog
}

// changed asks for a thought. It never blocks.
func (b *brain) changed() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// run thinks whenever something has changed, until ctx ends.
func (b *brain) run(ctx context.Context) {
	for {
		next := ponder
		if err := b.think(ctx, time.Now()); err != nil {
			if ctx.Err() != nil {
				return
			}
			b.log.Warn("a thought failed and will be tried again", "error", err)
			next = retry
		} else if b.whole != nil {
			close(b.whole)
			b.whole = nil
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-b.wake:
		}
		timer.Stop()
		if !backoff.Sleep(ctx, settle) {
			return
		}
	}
}

// think is one pass over everything.
func (b *brain) think(ctx context.Context, now time.Time) error {
	snap, err := gather(ctx, b.cache, b.o.Namespace)
	if err != nil {
		return err
	}
	top := snap.topology()
	peers, faults := link.Judge(b.ownHalf(), snap.links)
	b.peers.set(ctx, peers)

	book, _ := ledger.Load(snap.ledgers)
	var problems []ledger.Problem
	exports := b.exports(snap, top, book)
	if b.leading.Load() {
		book, problems, err = b.leader.books.assign(ctx, snap.ledgers, exports.List, b.wants(snap, peers), now)
		if err != nil {
			return err
		}
		exports = b.exports(snap, top, book) // with the route ids just given
	}
	if err := b.publish(snap, top, peers, book, exports, now); err != nil {
		return err
	}
	if b.leading.Load() {
		b.lead(ctx, snap, top, peers, faults, book, exports, problems)
	}
	return nil
}

func (b *brain) ownHalf() link.Own {
	key, err := link.ParseKey(b.own.linkKey.Public())
	if err != nil {
		panic(fmt.Sprintf("controller: our own link key: %v", err)) // it was parsed before
	}
	return link.Own{TrustDomain: b.own.trustDomain, LinkKey: key}
}

func (b *brain) exports(snap *snapshot, top topology, book ledger.Book) catalog.Exports {
	return catalog.Build(catalog.Inputs{
		TrustDomain: b.own.trustDomain, Namespace: b.o.Namespace,
		Services: snap.services, EndpointSlices: snap.slices, Pods: snap.pods,
		Links: snap.links, ExportPolicies: snap.policies, Agents: top.agents, Routes: book.Route,
	})
}

// copyOf is our copy of a peer's catalog, for as long as its Link is valid.
func (b *brain) copyOf(name string, peers map[string]link.Peer) mirror.Peer {
	if _, valid := peers[name]; !valid {
		return mirror.Peer{}
	}
	h := b.peers.heard(name)
	return mirror.Peer{Services: h.services, Complete: h.complete}
}

// wants is what every Link that exists asks the ledger for.
func (b *brain) wants(snap *snapshot, peers map[string]link.Peer) []ledger.Peer {
	var out []ledger.Peer
	for i := range snap.links {
		l := &snap.links[i]
		if l.DeletionTimestamp == nil {
			want, _ := mirror.Wants(l, b.o.Namespace, b.copyOf(l.Name, peers))
			out = append(out, want)
		}
	}
	return out
}

// publish tells peers their catalogs, and nodes their views.
func (b *brain) publish(snap *snapshot, top topology, peers map[string]link.Peer, book ledger.Book, exports catalog.Exports, now time.Time) error {
	catalogs := make(map[string]bool, len(peers))
	for name := range peers {
		catalogs[name] = true
		if err := b.board.Publish(name, exports.For(name)); err != nil {
			b.log.Warn("a catalog is not whole", "error", err)
		}
	}
	for name := range b.published {
		if !catalogs[name] {
			b.board.Withdraw(name)
		}
	}
	b.published = catalogs

	views, err := b.builder.Build(view.Inputs{
		Now: now, TrustDomain: b.own.trustDomain, Namespace: b.o.Namespace,
		Issuers: [][]byte{b.own.issuer.Certificate().Raw}, HopMaster: b.own.hopMaster, VIPCIDRs: b.o.VIPCIDRs,
		Peers: b.viewPeers(snap, peers), Mirrors: book.Live(), Exports: exports.List,
		Pods: snap.pods, Isolation: catalog.NewIsolation(snap.networks),
		Controllers: top.controllers, Nodes: top.nodes, Agents: top.agents,
	})
	if err != nil {
		return fmt.Errorf("build the views of agents and gateways: %w", err)
	}
	b.show(nodestream.Gateway, views.Gateway)
	nodes := make(map[string]bool, len(views.Agents))
	for node, v := range views.Agents {
		nodes[node] = true
		b.show(nodestream.Agent(node), v)
	}
	for node := range b.nodes {
		if !nodes[node] {
			b.hub.Withdraw(nodestream.Agent(node))
		}
	}
	b.nodes = nodes
	return nil
}

// show publishes a view if it differs from the last one.
func (b *brain) show(to nodestream.Recipient, v nodestream.View) {
	if old, ok, _ := b.hub.Read(to); ok && view.Same(old, v) {
		return
	}
	if err := b.hub.Publish(to, v); err != nil {
		b.log.Error("a view is not whole", "error", err)
	}
}

// viewPeers are the valid Links' peers, with what is known of their issuers.
func (b *brain) viewPeers(snap *snapshot, peers map[string]link.Peer) []view.Peer {
	kept := make(map[string]*v1alpha1.PeerTrust, len(snap.trusts))
	for i := range snap.trusts {
		kept[snap.trusts[i].Name] = &snap.trusts[i]
	}
	var out []view.Peer
	for name, p := range peers {
		secret, err := identity.LinkSecret(b.own.linkKey, p.LinkKey.Bytes())
		if err != nil {
			b.log.Warn("no link secret", "link", name, "error", err)
			continue
		}
		v := view.Peer{Name: name, UID: p.UID, TrustDomain: p.TrustDomain, Secret: secret}
		if t := kept[name]; t != nil {
			if list, ok := applied(p, t); ok {
				v.IssuerNumber = list.Number
				for _, c := range list.Issuers {
					v.Issuers = append(v.Issuers, c.Raw)
				}
			}
		}
		healthy := b.peers.heard(name).healthy
		for _, address := range p.Gateways {
			v.Gateways = append(v.Gateways, view.Gateway{Address: address, Healthy: healthy[address]})
		}
		out = append(out, v)
	}
	return out
}

// lead gives the leader's writers their newest work.
func (b *brain) lead(ctx context.Context, snap *snapshot, top topology, peers map[string]link.Peer, faults map[string]*link.Fault, book ledger.Book, exports catalog.Exports, problems []ledger.Problem) {
	trusted := make(map[string]bool, len(peers))
	for _, p := range b.viewPeers(snap, peers) {
		trusted[p.Name] = len(p.Issuers) > 0
	}
	jobs := make(map[string]job, len(snap.links))
	for i := range snap.links {
		l := &snap.links[i]
		if l.DeletionTimestamp != nil {
			continue
		}
		h := b.peers.heard(l.Name)
		j := job{
			link: l, peer: b.copyOf(l.Name, peers), entries: book.Link(l.Name),
			seen: h.seen(faults[l.Name], trusted[l.Name]),
		}
		j.seen.Gateways = len(l.Spec.Gateways)
		j.seen.Exports = len(exports.For(l.Name))
		_, unwanted := mirror.Wants(l, b.o.Namespace, j.peer)
		j.seen.Problems = append(j.seen.Problems, unwanted...)
		j.seen.Problems = append(j.seen.Problems, exports.Problems...)
		for _, p := range problems {
			if p.Link == l.Name {
				j.seen.Problems = append(j.seen.Problems, p.ServiceProblem)
			}
		}
		jobs[l.Name] = j
	}
	b.leader.offer(ctx, jobs, house{gateways: top.gateways, exports: exports.Problems, trusts: snap.trusts, services: snap.services})
}
