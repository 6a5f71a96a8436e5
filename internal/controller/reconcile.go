package controller

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/canary"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
)

const (
	// debounce is the least time between two passes, so that a burst of events
	// becomes a few passes. A single event starts one at once.
	debounce = 2 * time.Millisecond
	// maxPause bounds the pause after a pass, which is as long as the pass took.
	maxPause = 100 * time.Millisecond
	// resyncInterval is the duration of a full pass, which decides everything again.
	resyncInterval = 10 * time.Minute
	// sweepInterval is how often the full pass decides some keys again.
	sweepInterval = 5 * time.Second
)

// reconciler owns every decision of the control plane. One goroutine runs it:
//
//	informers, peers, ledger writes ──▶ inbox ──▶ plan ──▶ apply ──▶ logs, ledger, mirrors, status
//
// What always holds:
//   - A pass uses only its batch and the state of earlier passes. It reads no cache, does
//     not call the API server, and takes no lock that is held for long.
//   - The cost of a pass depends on its batch and not on the size of the cluster.
//   - Every replica decides. Only the leader writes to the API server.
type reconciler struct {
	o        Options
	identity *clusterid.Identity
	log      *slog.Logger
	metrics  *reconcilerMetrics

	inbox *inbox
	hub   *nodestream.Hub
	board *wire.Board
	peers *peering.Peers

	leading atomic.Bool
	leader  *leader
	// ready is closed after the first pass, when the replica has data to serve.
	ready chan struct{}

	index      *catalog.Index
	book       *ledger.Book
	links      *linkState
	exports    *exporter
	imports    *importer
	nodes      *nodeViews
	components *components
	top        *topology
	overlaps   *overlaps
	addresses  peering.AddressIndex
	apiServer  map[catalog.Key][]string // IPs by EndpointSlice of the Service kubernetes
	listed     *listedAddresses
	keys       *joinflow.Keys
	freshness  *peering.Freshness
	announced  atomic.Pointer[wire.Version]
	joins      map[catalog.Key]*v1alpha1.Join
	invites    map[catalog.Key]*v1alpha1.Invite
	canary     *corev1.Service
	// serviceExports are the existing ServiceExports. conditionsKind is the version in
	// which they have conditions, or the zero value if they have none. conditionsReplayed
	// means that the writer of conditions has received all ServiceExports.
	serviceExports     map[catalog.Key]*metav1.PartialObjectMetadata
	conditionsKind     schema.GroupVersionKind
	conditionsReplayed bool
	linksInForce       []string // at the last call of planConditions
	// routes decides about Gateway API routes. routesReplayed means that the writer of
	// their statuses has received all that differ.
	routes         *gatewayroutes.Index
	routesReplayed bool
	// openInvites are invites that gateways let through, as of the last time that one
	// changed; invitesDue is when the clock alone changes them.
	openInvites []joinflow.OpenInvite
	invitesDue  time.Time
	// controllersDirty means that the routes to this cluster's controllers must be
	// decided again.
	controllersDirty bool
	first            bool     // no pass was made yet
	readyLinks       []string // as the board knows them
	lastPass         time.Time
	reviewDue        time.Time
	warnings         clusterid.ExpiryWarnings
	// replayed means that the mirror writer has received everything. Before the ledger
	// was read live, the writer receives nothing, because it would delete mirrors whose
	// entries are missing in the cache.
	replayed  bool
	trustDue  map[string]time.Time // when to decide about a PeerTrust again
	snapshots map[string]*peering.Snapshot
	sweep     sweeper
	expiries  atomic.Pointer[[]clusterid.Expiry]
}

// run makes a pass whenever something has changed, until ctx ends.
func (r *reconciler) run(ctx context.Context) {
	first := true
	for {
		start := time.Now()
		p := r.plan(r.inbox.take(), start)
		r.apply(ctx, p)
		if first {
			r.hub.SetReady()
			close(r.ready)
			first = false
		}
		took := time.Since(start)
		r.metrics.passes.Observe(took.Seconds())
		if !backoff.Sleep(ctx, min(max(debounce, took), maxPause)) || !r.wait(ctx, p.recheck) {
			return
		}
	}
}

// announcedVersion is the newest version of the export list that this replica announced.
func (r *reconciler) announcedVersion() wire.Version {
	if v := r.announced.Load(); v != nil {
		return *v
	}
	return wire.Version{}
}

// wait returns when there is something to do; false: ctx has ended.
func (r *reconciler) wait(ctx context.Context, recheck time.Time) bool {
	next := sweepInterval
	if !recheck.IsZero() {
		next = min(next, time.Until(recheck))
	}
	timer := time.NewTimer(max(next, 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-r.inbox.wake:
	}
	return true
}

// plan decides what follows from a batch.
func (r *reconciler) plan(b *batch, now time.Time) *plan {
	p := &plan{}
	r.snapshots = r.peers.Snapshots()
	r.takeLedger(b, now)
	r.takeObjects(b, now, p)
	r.takeTopology(now, p)
	r.takeLinks(b, now, p)
	r.takeCatalogs(b, now, p)
	for _, c := range r.index.Flush() {
		r.exports.decide(c, now, p)
		r.reportExport(c, p)
	}
	first := r.first
	if first {
		r.first = false
		r.book.ExportsComplete(now) // the caches were complete before the first pass
	}
	for _, name := range r.index.LinksChanged() {
		p.statusOf(name)
	}
	r.sweepSome(now, p)
	p.dueAt(r.book.Tick(now))
	changes := r.book.Changes()
	r.imports.stored(changes.Mirrors, p)
	r.planRoutes(b.unreadKinds, now, p)
	r.exports.stored(changes.Exports, now, p)
	r.exports.announce(p)
	p.readyLinks = r.exports.readyLinks(r.links.inForce(), first, now, p)
	if r.leading.Load() && r.leader.ledgerRead {
		p.writes = r.book.Writes(now)
	}
	for name := range b.mirrors {
		p.statusOf(name)
	}
	r.planConditions(b, p)
	r.reviewStatus(now, p)
	for _, call := range b.calls {
		call()
	}
	r.lastPass = now
	return p
}

// reviewInterval is the interval in which the parts of statuses that depend on the clock
// are decided again.
const reviewInterval = 10 * time.Second

// reviewStatus decides again what depends on the clock: statuses, and which certificates
// end soon.
func (r *reconciler) reviewStatus(now time.Time, p *plan) {
	if now.Before(r.reviewDue) {
		p.dueAt(r.reviewDue)
		return
	}
	r.reviewDue = now.Add(reviewInterval)
	p.dueAt(r.reviewDue)
	for name := range r.links.links {
		p.statusOf(name)
	}
	if !r.leading.Load() {
		return
	}
	for _, e := range r.warnings.Due(r.links.expiries(), now) {
		about := runtime.Object(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			Namespace: r.o.Namespace,
			Name:      clusterinfo.IdentityConfigMap,
		}})
		if l := r.links.links[e.Link]; l != nil {
			about = l
		}
		r.log.Warn("certificate ends soon", "certificate", e.Kind, "link", e.Link, "notAfter", e.NotAfter)
		p.events = append(p.events, event{
			about:   about,
			owner:   e.Link,
			reason:  "CertificateEndsSoon",
			action:  "Rotating",
			message: e.Warning(now),
		})
	}
}

// takeLedger takes in what the ledger has stored.
func (r *reconciler) takeLedger(b *batch, now time.Time) {
	for _, s := range b.stored {
		r.book.Done(s.write, s.object, s.err, now)
	}
	for k, o := range b.ledgers {
		if o == nil {
			r.book.Unload(k.Name)
			continue
		}
		r.logLedger(r.book.Load(o))
	}
	if b.ledgerListed {
		for i := range b.ledgerList {
			r.logLedger(r.book.Load(&b.ledgerList[i]))
		}
		r.leader.ledgerRead = true
	}
}

func (r *reconciler) logLedger(problems []ledger.Problem) {
	for _, p := range problems {
		r.log.Warn("ledger entry ignored", "link", p.Link, "service", p.Service, "reason", p.Reason)
	}
}

// takeObjects files the changed objects in the indexes that are about them.
func (r *reconciler) takeObjects(b *batch, now time.Time, p *plan) {
	for k, o := range b.namespaces {
		r.index.SetNamespace(k.Name, o)
		r.imports.setNamespace(k.Name, o, now, p)
	}
	for node, zone := range b.zones {
		r.nodes.setZone(node, zone, p)
	}
	for k, o := range b.services {
		r.addresses.Replace(serviceAddresses(r.index.Service(k)), serviceAddresses(o))
		r.index.SetService(k, o)
		r.components.setService(k, o)
		r.overlaps.setService(k, o)
		r.routes.TouchService(k)
		if k == (catalog.Key{Namespace: r.o.Namespace, Name: canary.Service}) {
			r.canary, p.housekeeping = o, true
		}
	}
	for k, o := range b.slices {
		r.index.SetEndpointSlice(k, o)
		r.listed.set(k, o, r.book)
		r.useAPIServerAddresses(k, o)
	}
	for k, o := range b.pods {
		r.addresses.Replace(podAddresses(r.index.Pod(k)), podAddresses(o))
		r.index.SetPod(k, o)
		r.components.setPod(k, o)
		r.nodes.setPod(k, o, p)
		r.overlaps.setPod(k, o)
	}
	for k, o := range b.networks {
		r.index.SetNetworkPolicy(k, o)
	}
	for k, o := range b.policies {
		r.index.SetExportPolicy(k, o)
	}
	for k := range r.serviceExports {
		if b.serviceExportKeys != nil && !b.serviceExportKeys[k] && b.serviceExports[k] == nil {
			r.setServiceExport(k, nil, p)
		}
	}
	for k, o := range b.serviceExports {
		r.setServiceExport(k, o, p)
	}
	r.takeRoutes(b)
	for k, o := range b.invites {
		setOrDelete(r.invites, k, o)
		p.housekeeping = true
	}
	for k, o := range b.joins {
		setOrDelete(r.joins, k, o)
		p.housekeeping = true
	}
}

// The addresses of this cluster's own objects: a peer must not make us dial them.

func serviceAddresses(s *corev1.Service) []string {
	if s == nil {
		return nil
	}
	return s.Spec.ClusterIPs
}

func podAddresses(pod *corev1.Pod) []string {
	if pod == nil {
		return nil
	}
	ips := make([]string, 0, len(pod.Status.PodIPs)+max(1, len(pod.Status.HostIPs)))
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(pod.Status.HostIPs) == 0 {
		return append(ips, pod.Status.HostIP)
	}
	for _, ip := range pod.Status.HostIPs {
		ips = append(ips, ip.IP)
	}
	return ips
}

// useAPIServerAddresses records the IPs in a slice of the Service kubernetes.
func (r *reconciler) useAPIServerAddresses(k catalog.Key, s *discoveryv1.EndpointSlice) {
	if k.Namespace != metav1.NamespaceDefault {
		return
	}
	var ips []string
	if s != nil && s.Labels[discoveryv1.LabelServiceName] == "kubernetes" {
		for _, e := range s.Endpoints {
			ips = append(ips, e.Addresses...)
		}
	}
	r.addresses.Replace(r.apiServer[k], ips)
	if r.apiServer[k] = ips; len(ips) == 0 {
		delete(r.apiServer, k)
	}
}

func (r *reconciler) setServiceExport(k catalog.Key, o *metav1.PartialObjectMetadata, p *plan) {
	setOrDelete(r.serviceExports, k, o)
	r.index.SetServiceExport(k, o)
	p.conditionsOf(k)
}

// takeTopology decides again where Causeway's own processes run, if one of them changed.
func (r *reconciler) takeTopology(now time.Time, p *plan) {
	if !r.components.dirty && (r.top == nil || r.top.recheck.IsZero() || now.Before(r.top.recheck)) {
		if r.top != nil {
			p.dueAt(r.top.recheck)
		}
		return
	}
	before := r.top
	r.top = r.components.topology(now)
	p.dueAt(r.top.recheck)
	r.metrics.failingPaths.Set(float64(r.top.failingPaths))
	if r.top.same(before) {
		return
	}
	r.index.SetAgents(r.top.agents)
	r.nodes.setTopology(r.top, r.exports.nodeExports, p)
	p.gateways = &r.top.gateways
	p.housekeeping = true
	r.controllersDirty = true
	for name := range r.links.links {
		p.statusOf(name)
	}
}

// takeLinks decides which Links are in force and what is believed of their peers.
func (r *reconciler) takeLinks(b *batch, now time.Time, p *plan) {
	dirty := make(map[string]bool)
	for k, o := range b.trusts {
		setOrDelete(r.links.trusts, k.Name, o)
		dirty[k.Name], p.housekeeping = true, true
		for name, standby := range r.links.judged.Standbys {
			if standby.Name == k.Name {
				dirty[name] = true // planTrust may have to store the list again
			}
		}
	}
	trusts := make(map[string]bool) // Links for which planTrust is called
	for name := range b.peers {
		dirty[name] = true
	}
	for name, due := range r.trustDue {
		if !now.Before(due) {
			trusts[name] = true
		} else {
			p.dueAt(due)
		}
	}
	if b.identity {
		r.nodes.setIdentity(p)
		p.housekeeping = true
	}
	if day := identity.Day(now); b.identity || day != r.links.day {
		r.links.day = day
		for name := range r.links.links {
			dirty[name] = true
		}
	}
	judge := r.first || b.ledgerListed // the ledger may have peers without a Link
	for k, o := range b.links {
		if !sameLink(r.links.links[k.Name], o) {
			dirty[k.Name], judge = true, true
		}
		setOrDelete(r.links.links, k.Name, o)
		p.statusOf(k.Name)
	}
	if judge {
		r.judgeLinks(dirty, now, p)
	}
	p.dueAt(nextDay(now))
	for name := range r.links.ended(r.lastPass, now, p) {
		dirty[name] = true
	}
	if len(b.namespaces) > 0 {
		for name, l := range r.links.links {
			if selectsCallers(l) {
				dirty[name] = true
			}
		}
	}
	for name := range dirty {
		r.links.resolve(name, r.snapshots[name])
		r.links.emit(name, r.imports.namespaces, p)
		trusts[name] = true
	}
	for name := range trusts {
		r.planTrust(name, now, p)
		p.statusOf(name)
	}
	if len(trusts) > 0 {
		p.storedIssuers = r.links.storedIssuers()
	}
	if len(dirty) > 0 {
		r.controllersDirty = true
		p.peers = r.links.wanted()
		expiries := r.links.expiries()
		r.expiries.Store(&expiries)
	}
	r.takeInvites(b, now, p)
	if r.controllersDirty {
		r.controllersDirty = false
		r.nodes.setControllers(r.top, r.links.inForce(), r.openInvites, now, p)
	}
}

// sameLink reports whether a Link is unchanged except for its status. Each status write
// comes back as a change, and judging all Links for each of them would have quadratic
// cost.
func sameLink(old, next *v1alpha1.Link) bool {
	return old != nil && next != nil && old.UID == next.UID &&
		(old.DeletionTimestamp == nil) == (next.DeletionTimestamp == nil) &&
		equality.Semantic.DeepEqual(old.Spec, next.Spec)
}

// planTrust decides what this replica writes to the PeerTrust of a Link in force. If this
// replica leads, planTrust also decides whether to store the peer's issuer list for the
// Link that takes over next.
func (r *reconciler) planTrust(name string, now time.Time, p *plan) {
	resolved, ok := r.links.resolved[name]
	if !ok || r.snapshots[name] == nil { // its streams begin after this pass
		delete(r.trustDue, name)
		return
	}
	change, recheck := peering.PlanTrust(peering.TrustInputs{
		Peer:           resolved.peer,
		Snapshot:       r.snapshots[name],
		Stored:         r.links.trusts[name],
		Replica:        r.o.PodName,
		Leader:         r.leading.Load(),
		ControllerPods: r.top.controllerPods,
		Now:            now,
	})
	if change != nil {
		p.trusts = append(p.trusts, trustWrite{name, change})
	}
	standby, ok := r.links.judged.Standbys[name]
	if ok && r.leading.Load() && resolved.peer.Root.Equal(standby.Root) {
		known, _ := peering.StoredIssuers(standby, r.links.trusts[standby.Name])
		if known.Number < resolved.view.IssuerNumber {
			p.handovers = append(p.handovers, handover{from: name, to: standby, list: resolved.list})
		}
	}
	if recheck > 0 {
		r.trustDue[name] = now.Add(recheck)
	} else {
		delete(r.trustDue, name)
	}
}

// takeInvites decides which invites gateways let through.
func (r *reconciler) takeInvites(b *batch, now time.Time, p *plan) {
	if len(b.invites) > 0 || b.inviteKeys || !r.invitesDue.IsZero() && !now.Before(r.invitesDue) {
		open, recheck := r.keys.Open(sortedObjects(r.invites), now)
		r.openInvites, r.invitesDue = open, time.Time{}
		if recheck > 0 {
			r.invitesDue = now.Add(recheck)
		}
		r.controllersDirty, p.housekeeping = true, true
	}
	p.dueAt(r.invitesDue)
}

// judgeLinks decides which Links are in force after one changed, and updates everything
// that depends on it. It adds the names of Links that came into or went out of force to
// dirty.
func (r *reconciler) judgeLinks(dirty map[string]bool, now time.Time, p *plan) {
	was := r.links.judged
	r.links.judge()
	for name, peer := range r.links.judged.Peers {
		if old, ok := was.Peers[name]; !ok || !old.Same(peer) {
			dirty[name] = true
		}
	}
	for name := range was.Peers {
		if _, ok := r.links.judged.Peers[name]; !ok {
			dirty[name] = true
		}
	}
	for name := range r.links.judged.Faults {
		if was.Faults[name] == nil {
			dirty[name] = true
		}
	}
	for name := range dirty {
		// A Link that is not in force keeps its place in the export list, because its
		// peer must not take a short fault for the end of all exports. Nothing reaches
		// the peer meanwhile: neither gateways nor agents know the Link.
		obj := r.links.links[name]
		if obj != nil && obj.DeletionTimestamp != nil {
			obj = nil
		}
		r.index.SetLink(name, obj)
	}
	standbys := make(map[string]*v1alpha1.Link, len(r.links.judged.Standbys))
	for name, standby := range r.links.judged.Standbys {
		standbys[name] = r.links.links[standby.Name]
		dirty[name] = true // so that planTrust stores the issuer list for the standby
	}
	r.imports.setLinks(r.links.judged.Peers, r.links.links, standbys, now, p)
	p.housekeeping = true
}

func setOrDelete[K comparable, T any](m map[K]*T, k K, o *T) {
	if o == nil {
		delete(m, k)
		return
	}
	m[k] = o
}

// nextDay is when day keys change next.
func nextDay(now time.Time) time.Time {
	return now.UTC().Truncate(24 * time.Hour).Add(24*time.Hour + time.Second)
}

// takeCatalogs takes in what the catalogs of peers changed.
func (r *reconciler) takeCatalogs(b *batch, now time.Time, p *plan) {
	if problem := r.overlaps.problem(); (problem != nil) != r.imports.frozen {
		r.imports.freeze(problem != nil, now, p)
	}
	begins := r.leading.Load() && r.leader.ledgerRead && !r.replayed
	if begins { // the ledger tells which versions the last leader has applied
		r.replayed = true
		r.imports.replay(p)
		p.housekeeping = true
		for name := range r.links.links {
			p.statusOf(name)
		}
	}
	for name, l := range r.imports.links {
		if l.since.Equal(now) {
			continue // its streams begin after this pass: what there is came from another peer
		}
		if !begins && !b.peers[name] && !b.catalogs[name] && (l.recheck.IsZero() || now.Before(l.recheck)) {
			p.dueAt(l.recheck)
			continue
		}
		epoch, generation := r.book.Applied(l.domain)
		applied := wire.Version{Epoch: epoch, Generation: generation}
		r.imports.applyCatalog(name, r.peers.TakeCatalog(name, applied, now), now, p)
	}
}

// reportExport emits an Event for each problem of an export that is new.
func (r *reconciler) reportExport(c catalog.Change, p *plan) {
	before := r.exports.reported[c.Key]
	if len(c.Problems) == 0 {
		delete(r.exports.reported, c.Key)
		return
	}
	r.exports.reported[c.Key] = c.Problems
	for _, problem := range c.Problems {
		if slices.Contains(before, problem) || r.first && r.isReported(problem) {
			continue
		}
		if about := r.exporterOf(c.Key, problem.Reason); about != nil {
			p.events = append(p.events, event{
				about:   about,
				owner:   c.Key.Namespace,
				reason:  problem.Reason,
				action:  "Exporting",
				message: problem.Message,
			})
		}
	}
}

// isReported reports whether a Link's status has a problem, so that an earlier leader
// emitted its Event.
func (r *reconciler) isReported(problem catalog.Problem) bool {
	for _, l := range r.links.links {
		if slices.Contains(l.Status.Problems, problem) {
			return true
		}
	}
	return false
}

// apply carries a plan out. It returns without waiting for the API server.
func (r *reconciler) apply(ctx context.Context, p *plan) {
	for _, node := range p.nodesAdded {
		r.hub.AddNode(node)
	}
	r.warn("some resources for agents or gateways are not valid", r.hub.Apply(p.views...))
	for _, node := range p.nodesRemoved {
		r.hub.RemoveNode(node)
	}
	r.warn("some exports are not valid", r.board.Publish(p.listings, p.version))
	if !slices.Equal(p.readyLinks, r.readyLinks) {
		r.readyLinks = p.readyLinks
		r.board.SetReady(p.readyLinks...)
	}
	r.announced.Store(&p.version)
	r.freshness.SetReplicas(r.top.otherReplicas(r.o.PodName))
	if p.gateways != nil {
		r.warn("gateway addresses not advertised", r.board.SetGateways(*p.gateways))
	}
	if p.peers != nil {
		r.peers.Set(ctx, p.peers, &r.addresses)
	}
	if p.storedIssuers != nil {
		r.peers.RestoreLost(p.storedIssuers)
	}
	for _, w := range p.trusts {
		r.peers.WriteTrust(w.link, w.change)
	}
	if !r.leading.Load() {
		return
	}
	for _, h := range p.handovers {
		r.peers.HandOver(h.from, h.to, h.list)
	}
	l := r.leader
	l.start(ctx)
	for _, w := range p.writes {
		l.store(ctx, w)
	}
	if r.replayed {
		l.applyMirrors(p)
	}
	l.emit(p.events, time.Now())
	if p.housekeeping {
		l.keep(r.chores())
		l.joiner.Set(ctx, sortedObjects(r.joins))
	}
	l.forgetLinks(r.links.links)
	if !r.replayed {
		return // the mirrors that stand are not known yet
	}
	l.applyConditions(p)
	l.routes.set(p.routes, time.Now())
	for name := range p.status {
		if obj := r.links.links[name]; obj != nil && obj.DeletionTimestamp == nil {
			l.writeStatus(ctx, name, r.statusJob(obj, time.Now()))
		}
	}
}

func (r *reconciler) warn(message string, err error) {
	if err != nil {
		r.log.Warn(message, "error", err)
	}
}
