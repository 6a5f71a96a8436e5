package controller

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	"github.com/causeway-mesh/causeway/internal/peering"
)

const (
	// settle is how long changes are gathered before they are thought over.
	settle = 50 * time.Millisecond
	// retry is how soon a thought that failed is tried again.
	retry = time.Second
	// gatherTimeout bounds the reading of the caches: one whose kind was removed waits for it.
	gatherTimeout = 10 * time.Second
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
	o        Options
	identity *clusterid.Identity
	cache    client.Reader
	hub      *nodestream.Hub
	board    *wire.Board
	peers    *peering.Peers
	catalogs map[string]*catalogCopy
	ranges   []netip.Prefix
	log      *slog.Logger

	leading atomic.Bool
	leader  *leader
	// whole is closed after the first whole thought: from then on there is something to serve.
	whole chan struct{}

	wake      chan struct{}
	builder   view.Builder
	nodes     map[string]bool      // that have a view
	published map[string]bool      // Links that have a catalog
	believed  map[string]belief    // by Link: what is dear to find out, while it stays
	grumbles  map[[2]string]string // last told, by message and subject
	// serviceExports: the cluster has the kind ServiceExport. nil: it has not.
	serviceExports *atomic.Bool
	served         map[types.UID]bool     // agents' pods that have been ready
	asked          atomic.Pointer[wanted] // for who asks
	failing        atomic.Int64           // nodes whose path failed when it was last proved
	again          time.Duration          // when to think again by itself; 0: no need
	inviteKeys     *joinflow.Keys
	expiries       atomic.Pointer[[]clusterid.Expiry]
}

// lastExpiries are the certificates that were known at the last pass.
func (b *brain) lastExpiries() []clusterid.Expiry {
	if all := b.expiries.Load(); all != nil {
		return *all
	}
	return nil
}

// changed asks for a thought. It never blocks.
func (b *brain) changed() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// run thinks whenever something has changed, until ctx ends. It takes at most half
// of a processor's time.
func (b *brain) run(ctx context.Context) {
	for {
		start, next := time.Now(), ponder
		err := b.think(ctx, start)
		took := time.Since(start)
		if ctx.Err() != nil {
			return
		}
		b.grumble("a thought failed and will be tried again", "", err)
		if err != nil {
			next = retry
		}
		if b.again > 0 {
			next = min(next, b.again)
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-b.wake:
		}
		timer.Stop()
		if !backoff.Sleep(ctx, max(settle, min(took, retry))) {
			return
		}
	}
}

// grumble tells of an error once: again only if it reads otherwise, or had gone.
func (b *brain) grumble(message, about string, err error) {
	k := [2]string{message, about}
	if err == nil {
		delete(b.grumbles, k)
		return
	}
	if b.grumbles == nil {
		b.grumbles = make(map[[2]string]string)
	}
	if b.grumbles[k] != err.Error() {
		b.grumbles[k] = err.Error()
		b.log.Warn(message, "about", about, "error", err)
	}
}

// think is one pass over everything.
func (b *brain) think(ctx context.Context, now time.Time) error {
	gathering, cancel := context.WithTimeout(ctx, gatherTimeout)
	snap, err := gather(gathering, b.cache, b.o.Namespace, b.serviceExports != nil && b.serviceExports.Load())
	cancel()
	if err != nil {
		return err
	}
	t := &thought{snapshot: snap, top: snap.topology(b.served, now), now: now}
	b.served, b.again = t.top.served, t.top.again
	judgment := link.Judge(b.ownHalf(), snap.links)
	t.peers, t.faults = judgment.Peers, judgment.Faults
	b.keyed(t)
	b.grumble("this cluster's gateways are not told to peers", "", b.board.SetGateways(t.top.gateways))
	b.peers.Set(ctx, t.wantedPeers(), t.addresses())
	t.known = b.peers.Snapshots()
	b.takeCatalogs(t)
	t.views = b.believe(t)
	t.invited = b.openInvites(t)

	t.book, _ = ledger.Load(snap.ledgers)
	t.exports = b.exports(t)
	leading := b.leading.Load()
	var trouble error
	if leading {
		trouble = b.assign(ctx, t)
	}
	b.asked.Store(b.wanted(t))
	b.failing.Store(int64(snap.failingPaths()))
	// What cannot be stored keeps nobody from what is.
	if err := b.publish(t); err != nil {
		return err
	}
	if b.whole != nil {
		close(b.whole)
		b.whole = nil
	}
	if leading && (trouble == nil || b.leader.books.read) {
		b.lead(ctx, t) // by the last whole book, if this one could not be stored
	}
	return trouble
}

// A thought is what one pass comes to.
type thought struct {
	*snapshot
	now      time.Time
	top      topology
	peers    map[string]link.Peer // valid Links
	faults   map[string]*link.Fault
	known    map[string]*peering.Snapshot
	views    []view.Peer
	invited  []view.Invite
	book     ledger.Book
	exports  catalog.Exports
	problems []ledger.Problem
	clash    *v1alpha1.ServiceProblem // what the range of virtual IPs overlaps
}

// assign brings the leader's books up to date.
func (b *brain) assign(ctx context.Context, t *thought) error {
	wants := b.wants(t)
	if t.clash = overlap(b.ranges, t.snapshot); t.clash != nil {
		wants = onlyGiven(wants, b.leader.books.last(t.ledgers))
	}
	var err error
	t.book, t.problems, err = b.leader.books.assign(ctx, t.ledgers, t.exports.List, wants, t.now)
	t.exports = b.exports(t) // with the route ids just given
	return err
}

// openInvites are the open invites, as gateways must know them.
func (b *brain) openInvites(t *thought) []view.Invite {
	open, recheck := b.inviteKeys.Open(pointers(t.invites), t.now)
	if recheck > 0 && (b.again == 0 || recheck < b.again) {
		b.again = recheck
	}
	out := make([]view.Invite, 0, len(open))
	for _, inv := range open {
		out = append(out, view.Invite{Name: inv.Name, UID: inv.UID, LabelKey: inv.LabelKey, Until: inv.Until})
	}
	return out
}

func pointers[T any](list []T) []*T {
	out := make([]*T, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}

func (b *brain) ownHalf() link.Own {
	key, err := link.ParseKey(b.identity.LinkKey().Public())
	if err != nil {
		panic(fmt.Sprintf("controller: our own link key: %v", err)) // it was parsed before
	}
	return link.Own{TrustDomain: b.identity.TrustDomain(), LinkKey: key}
}

func (b *brain) exports(t *thought) catalog.Exports {
	return catalog.Build(catalog.Inputs{
		TrustDomain: b.identity.TrustDomain(), Namespace: b.o.Namespace,
		Services: t.services, EndpointSlices: t.slices, Pods: t.pods,
		Links: t.links, ExportPolicies: t.policies, Agents: t.top.agents, Routes: t.book.Route,
		Namespaces: t.namespaces, ServiceExports: t.snapshot.serviceExports,
	})
}

// copyOf is our copy of a peer's catalog, for as long as its Link is valid.
func (b *brain) copyOf(name string, peers map[string]link.Peer) mirror.Peer {
	if _, valid := peers[name]; !valid {
		return mirror.Peer{}
	}
	c := b.catalogs[name]
	return mirror.Peer{Services: c.services, Complete: c.complete}
}

// wants is what every Link that exists asks the ledger for.
func (b *brain) wants(t *thought) []ledger.Peer {
	home := t.home(b.o.Namespace)
	var out []ledger.Peer
	for i := range t.links {
		l := &t.links[i]
		if l.DeletionTimestamp == nil {
			want, _ := home.Wants(l, b.copyOf(l.Name, t.peers))
			out = append(out, want)
		}
	}
	return out
}

// publish tells peers their catalogs, and nodes their views.
func (b *brain) publish(t *thought) error {
	catalogs := make(map[string]bool, len(t.peers))
	for name := range t.peers {
		catalogs[name] = true
		b.grumble("a catalog is not whole", name, b.board.Publish(name, t.exports.For(name)))
	}
	for name := range b.published {
		if !catalogs[name] {
			b.board.Withdraw(name)
		}
	}
	b.published = catalogs

	views, err := b.builder.Build(view.Inputs{
		Now: t.now, TrustDomain: b.identity.TrustDomain(), Namespace: b.o.Namespace,
		Issuers: b.identity.Issuers().Certificates(), HopMaster: b.identity.HopMasterKey(), VIPCIDRs: b.o.VIPCIDRs,
		Peers: t.views, Invites: t.invited, Mirrors: t.book.Live(), Exports: t.exports.List,
		Pods: t.pods, Isolation: catalog.NewIsolation(t.networks),
		Controllers: t.top.controllers, Nodes: t.top.nodes, Agents: t.top.agents,
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
	b.grumble("a view is not whole", string(to), b.hub.Publish(to, v))
}

// lead gives the leader's writers their newest work.
func (b *brain) lead(ctx context.Context, t *thought) {
	trusted := make(map[string]bool, len(t.views))
	for _, p := range t.views {
		trusted[p.Name] = len(p.Issuers) > 0
	}
	jobs := make(map[string]job, len(t.links))
	for i := range t.links {
		if l := &t.links[i]; l.DeletionTimestamp == nil {
			jobs[l.Name] = b.job(t, l, trusted[l.Name])
		}
	}
	b.leader.offer(ctx, jobs, house{
		gateways: t.top.gateways, exports: t.exports.Problems, trusts: t.trusts, services: t.services, serviceExports: t.snapshot.serviceExports, links: t.links,
		invites: t.invites, joins: t.joins, expiries: b.lastExpiries(),
	})
	b.leader.joiner.Set(ctx, pointers(t.joins))
}

// job is what a Link's writer is to make true.
func (b *brain) job(t *thought, l *v1alpha1.Link, trusted bool) job {
	known := t.known[l.Name]
	j := job{
		link: l, peer: b.copyOf(l.Name, t.peers), entries: t.book.Link(l.Name),
		seen: link.Observed{Fault: t.faults[l.Name], IssuersKnown: trusted},
	}
	known.Observe(&j.seen)
	if known != nil {
		j.due = known.ReportAt
		j.seen.Unacknowledged = b.identity.Issuers().Unacknowledged(known.Acknowledged, t.now)
		j.seen.Problems = b.catalogs[l.Name].sortedProblems()
	}
	known.MergeReports(&j.seen, t.peers[l.Name], t.keptTrusts()[l.Name], b.o.PodName, t.replicas())
	j.seen.IssuersEnded = b.issuersEnded(l.Name, t.now)
	j.seen.Imports = l.Spec.Import != nil
	if b.believed[l.Name].followed {
		j.seen.RootUntil = t.peers[l.Name].Root.NotAfter
	}
	j.seen.Exports = len(t.exports.For(l.Name))
	j.exported = t.exports.LinkProblems[l.Name]
	_, unwanted := t.home(b.o.Namespace).Wants(l, j.peer)
	j.seen.Problems = slices.Concat(j.seen.Problems, unwanted, j.exported)
	for _, p := range t.problems {
		if p.Link == l.Name {
			j.seen.Problems = append(j.seen.Problems, p.ServiceProblem)
		}
	}
	if t.clash != nil {
		j.seen.Problems = append(j.seen.Problems, *t.clash)
	}
	return j
}
