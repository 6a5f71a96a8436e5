package controller

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// importer decides what peers' catalogs become here: ledger entries, frontends for
// agents, and mirrors. It belongs to the reconciler's goroutine.
//
//	catalog delta ─▶ Rules.Wants ─▶ Book.Want ─▶ (stored) ─▶ Frontend for agents
//	                                                     └─▶ mirror.Want for the writer
//
// An entry reaches agents and the writer only once the ledger has stored it.
type importer struct {
	own        string // Causeway's namespace
	book       *ledger.Book
	namespaces mirror.Namespaces
	links      map[string]*importLink // Links in force, by name
	byDomain   map[string]*importLink
	// former are Links that were in force last, by the peer's trust domain. Their wants
	// in the ledger stay until the catalog of the next Link is complete.
	former map[string]*importLink
	// frozen: the range of virtual IPs overlaps this cluster's own addresses, so no
	// new mirror is allocated.
	frozen bool
	// entries are what the ledger has stored, by the peer's trust domain.
	entries map[string]map[ledger.Source]*ledger.Mirror
	// placedAt is the reverse of the placed of all Links.
	placedAt map[catalog.Key]placement
	routes   *gatewayroutes.Index
	// unread lists the kinds of the Gateway API that the controller has not read yet.
	unread []string
}

// placement is the source of a mirror.
type placement struct {
	link   *importLink
	source ledger.Source
}

// importLink is one Link in force.
type importLink struct {
	link     *v1alpha1.Link
	standby  *v1alpha1.Link // takes over when link is deleted; may be nil
	peer     link.Peer
	domain   string    // the peer's trust domain
	since    time.Time // when it came into force
	rules    *mirror.Rules
	fault    *catalog.Problem                // of the rules; nil: none
	services map[catalog.Key]catalog.Service // the peer's catalog, as far as it was applied
	// whole: services is the peer's whole catalog. Until then what the ledger holds
	// of the peer stays as it is.
	whole bool
	// stale is the reason why the peer's catalog is out of date, if it is.
	stale   link.Staleness
	recheck time.Time                       // when stale may end by the clock alone; zero: not
	sources map[catalog.Key][]ledger.Source // what each Service wants in the ledger
	wants   map[ledger.Source]ledger.MirrorWant
	// placed is where each stored entry's mirror is, and which frontend it has.
	placed map[ledger.Source]catalog.Key
	// inNamespace counts placed by namespace.
	inNamespace map[string]int
	problems    map[catalog.Key]catalog.Problem   // of Services that the rules leave out
	left        map[catalog.Key][]catalog.Problem // of Services that the peer described wrongly
}

func newImporter(own string, book *ledger.Book) *importer {
	return &importer{
		own: own, book: book, namespaces: make(mirror.Namespaces),
		links:    make(map[string]*importLink),
		byDomain: make(map[string]*importLink),
		former:   make(map[string]*importLink),
		entries:  make(map[string]map[ledger.Source]*ledger.Mirror),
		placedAt: make(map[catalog.Key]placement),
	}
}

// setLinks makes links those in force. A Link that is new or whose rules changed
// decides about its whole catalog again.
func (m *importer) setLinks(peers map[string]link.Peer, links map[string]*v1alpha1.Link,
	standby map[string]*v1alpha1.Link, now time.Time, p *plan) {
	for name, l := range m.links {
		if peer, ok := peers[name]; ok && peer.Same(l.peer) {
			continue
		}
		m.removeLink(name, p)
	}
	for name, peer := range peers {
		m.setLink(links[name], standby[name], peer, now, p)
	}
	m.removePeers(links, now)
}

// removeLink forgets a Link that is not in force any more.
func (m *importer) removeLink(name string, p *plan) {
	l := m.links[name]
	delete(m.links, name)
	delete(m.byDomain, l.domain)
	m.former[l.domain] = l
	for _, key := range l.placed {
		m.displace(l, key)
		p.views = append(p.views, nodestream.Change{
			Scope:   nodestream.Agents,
			Removed: nodestream.FrontendKey(key.Namespace, key.Name),
		})
	}
	p.links = append(p.links, linkChange{name: name})
	p.statusOf(name)
}

// removePeers releases the entries of peers that no Link names any more. Those of a Link
// that is not in force stay: it may be in force again in a moment.
func (m *importer) removePeers(links map[string]*v1alpha1.Link, now time.Time) {
	named := make(map[string]bool, len(links))
	for _, l := range links {
		if l.DeletionTimestamp == nil {
			named[l.Spec.TrustDomain] = true
		}
	}
	for _, domain := range m.book.Peers() {
		if !named[domain] {
			m.book.RemovePeer(domain, now)
			delete(m.former, domain)
		}
	}
}

func (m *importer) setLink(obj, standby *v1alpha1.Link, peer link.Peer, now time.Time, p *plan) {
	l := m.links[obj.Name]
	if l == nil {
		l = &importLink{
			peer: peer, domain: peer.TrustDomain, services: make(map[catalog.Key]catalog.Service),
			sources: make(map[catalog.Key][]ledger.Source), wants: make(map[ledger.Source]ledger.MirrorWant),
			placed:      make(map[ledger.Source]catalog.Key),
			inNamespace: make(map[string]int),
			problems:    make(map[catalog.Key]catalog.Problem),
			left:        make(map[catalog.Key][]catalog.Problem), since: now,
		}
		if former := m.former[l.domain]; former != nil {
			l.sources, l.wants = former.sources, former.wants
			delete(m.former, l.domain)
		}
		m.links[obj.Name], m.byDomain[peer.TrustDomain] = l, l
	} else if l.link.Generation == obj.Generation && sameStandby(l.standby, standby) {
		l.link = obj
		return
	}
	l.link, l.standby = obj, standby
	l.rules, l.fault = mirror.NewRules(obj, m.own)
	m.book.SetPeer(ledger.Peer{TrustDomain: l.domain, Link: obj.Name, Quotas: l.rules.Quotas()})
	p.links = append(p.links, l.change())
	p.statusOf(obj.Name)
	for key := range l.services {
		m.decide(l, key, now)
	}
	m.settle(l, now)
	for source := range m.entries[l.domain] {
		m.emit(l, source, p)
	}
}

func sameStandby(a, b *v1alpha1.Link) bool {
	return (a == nil) == (b == nil) && (a == nil || a.UID == b.UID && a.Generation == b.Generation)
}

// change returns the state of the Link for the mirror writer.
func (l *importLink) change() linkChange {
	return linkChange{name: l.link.Name, link: l.link, standby: l.standby, complete: l.complete()}
}

// complete reports whether mirrors that are not in the peer's catalog must be deleted:
// the catalog is complete, or the Link imports nothing.
func (l *importLink) complete() bool { return l.whole || l.link.Spec.Import == nil }

// setNamespace records a namespace of this cluster; nil: it was deleted. Services whose
// mirrors belong there are decided again.
func (m *importer) setNamespace(name string, ns *corev1.Namespace, now time.Time, p *plan) {
	before, existed := m.namespaces[name]
	switch {
	case ns == nil && !existed, ns != nil && existed && maps.Equal(before, ns.Labels):
		return
	case ns == nil:
		delete(m.namespaces, name)
	default:
		m.namespaces[name] = ns.Labels
	}
	for _, l := range m.links {
		for key := range l.services {
			if here, ok := l.rules.Target(key.Namespace); ok && here == name {
				m.decideAndEmit(l, key, now, p)
			}
		}
		p.statusOf(l.link.Name)
	}
}

// applyCatalog takes in what a peer's catalog changed.
func (m *importer) applyCatalog(name string, c peering.CatalogChange, now time.Time, p *plan) {
	l := m.links[name]
	if l == nil {
		return
	}
	if c.Whole {
		c.Removed = append(c.Removed, l.lacking(c.Upserts)...)
	}
	for _, key := range c.Removed {
		delete(l.services, key)
		delete(l.left, key)
		m.decideAndEmit(l, key, now, p)
	}
	for _, s := range c.Upserts {
		delete(l.left, s.Key())
		l.services[s.Key()] = s
		m.decideAndEmit(l, s.Key(), now, p)
	}
	for key, problems := range c.Problems {
		l.left[key] = problems
	}
	if c.Complete && !l.whole {
		l.whole = true
		for key := range l.sources {
			if _, ok := l.services[key]; !ok { // wanted by the Link that was in force before
				m.decideAndEmit(l, key, now, p)
			}
		}
		m.settle(l, now)
		p.links = append(p.links, l.change())
	}
	if c.Stale != "" && l.whole { // another leader has applied a newer catalog
		l.whole = false
		m.book.Incomplete(l.domain)
		p.links = append(p.links, l.change())
	}
	l.stale = c.Stale
	l.recheck = time.Time{}
	if c.Recheck > 0 {
		l.recheck = now.Add(c.Recheck)
		p.dueAt(l.recheck)
	}
	if c.Complete && c.Version != (wire.Version{}) {
		m.book.SetApplied(l.domain, c.Version.Epoch, c.Version.Generation)
	}
	p.statusOf(name)
}

// lacking are the Services that were applied and are not among all.
func (l *importLink) lacking(all []catalog.Service) []catalog.Key {
	if len(l.services) == 0 {
		return nil
	}
	there := make(map[catalog.Key]bool, len(all))
	for i := range all {
		there[all[i].Key()] = true
	}
	var out []catalog.Key
	for key := range l.services {
		if !there[key] {
			out = append(out, key)
		}
	}
	return out
}

// settle lets the ledger release what nothing wants, once the whole catalog is known.
func (m *importer) settle(l *importLink, now time.Time) {
	if l.complete() {
		m.book.Complete(l.domain, now)
	}
}

func (m *importer) decideAndEmit(l *importLink, key catalog.Key, now time.Time, p *plan) {
	before := l.sources[key]
	m.decide(l, key, now)
	for _, source := range before {
		m.emit(l, source, p)
	}
	for _, source := range l.sources[key] {
		if !slices.Contains(before, source) {
			m.emit(l, source, p)
		}
	}
}

// decide updates the wants in the ledger for one Service of the peer.
func (m *importer) decide(l *importLink, key catalog.Key, now time.Time) {
	var wants []ledger.MirrorWant
	var problem *catalog.Problem
	if s, ok := l.services[key]; ok {
		wants, problem = l.rules.Wants(s, m.namespaces)
	}
	if problem == nil {
		problem = isolated(key, l.services[key])
	}
	if problem != nil {
		l.problems[key] = *problem
	} else {
		delete(l.problems, key)
	}
	before := l.sources[key]
	after := make([]ledger.Source, 0, len(wants))
	for _, w := range wants {
		source := w.Source()
		if m.frozen && m.entries[l.domain][source] == nil {
			continue
		}
		after = append(after, source)
		l.wants[source] = w
		m.book.Want(l.domain, w, now)
	}
	for _, source := range before {
		if !slices.Contains(after, source) {
			delete(l.wants, source)
			m.book.Unwant(l.domain, source, now)
		}
	}
	if len(after) == 0 {
		delete(l.sources, key)
	} else {
		l.sources[key] = after
	}
}

// isolated is the problem of a Service that the peer's NetworkPolicies keep calls from;
// nil: it has none.
func isolated(key catalog.Key, s catalog.Service) *catalog.Problem {
	if !slices.ContainsFunc(s.Ports, func(p catalog.Port) bool { return p.Isolated }) {
		return nil
	}
	return &catalog.Problem{
		Service: key.String(),
		Reason:  catalog.NetworkPolicyIsolates,
		Message: "NetworkPolicies in the peer's cluster isolate the Service, " +
			"so calls to it are refused: ask there for an ExportPolicy that names the callers",
	}
}

// unplace withdraws the mirror of one source, if the ledger has stored another name for
// it, or none.
func (m *importer) unplace(l *importLink, source ledger.Source, p *plan) {
	before, placed := l.placed[source]
	stored := m.entries[l.domain][source]
	if !placed || stored != nil && before == mirrorKey(stored) {
		return
	}
	p.views = append(p.views, nodestream.Change{
		Scope:   nodestream.Agents,
		Removed: nodestream.FrontendKey(before.Namespace, before.Name),
	})
	p.mirrors = append(p.mirrors, mirrorChange{l.link.Name, before, nil})
	delete(l.placed, source)
	m.displace(l, before)
	if l.inNamespace[before.Namespace]--; l.inNamespace[before.Namespace] == 0 {
		delete(l.inNamespace, before.Namespace)
	}
}

func mirrorKey(m *ledger.Mirror) catalog.Key {
	return catalog.Key{Namespace: m.MirrorNamespace, Name: m.MirrorName}
}

// emit adds the changes of one source, for agents and the mirror writer, to the plan, if
// the ledger has stored an entry for it.
func (m *importer) emit(l *importLink, source ledger.Source, p *plan) {
	m.unplace(l, source, p)
	stored := m.entries[l.domain][source]
	if stored == nil {
		return
	}
	after := mirrorKey(stored)
	if _, placed := l.placed[source]; !placed { // at another name it was unplaced
		l.inNamespace[after.Namespace]++
	}
	l.placed[source] = after
	m.placedAt[after] = placement{l, source}
	m.routes.TouchService(after)
	w := m.emitSource(l, source, stored, p)
	p.mirrors = append(p.mirrors, mirrorChange{l.link.Name, after, w})
	p.statusOf(l.link.Name)
}

// displace records that a Link has no mirror at key.
func (m *importer) displace(l *importLink, key catalog.Key) {
	if m.placedAt[key].link == l {
		delete(m.placedAt, key)
	}
	m.routes.TouchService(key)
}

// emitFrontend adds the frontend of a mirror to the plan, because its routes changed.
func (m *importer) emitFrontend(key catalog.Key, p *plan) {
	at, ok := m.placedAt[key]
	if !ok {
		return
	}
	if stored := m.entries[at.link.domain][at.source]; stored != nil {
		m.emitSource(at.link, at.source, stored, p)
	}
}

// emitFrontends adds the frontends of all mirrors to the plan.
func (m *importer) emitFrontends(p *plan) {
	for key := range m.placedAt {
		m.emitFrontend(key, p)
	}
}

// unreadFor returns the unread kinds that can change the rules of a mirror.
// ReferenceGrants can change them only if a route of the mirror needs one.
func (m *importer) unreadFor(mirror catalog.Key) []string {
	if !slices.Contains(m.unread, nodestream.GrantKind) || m.routes.MirrorNeedsGrants(mirror) {
		return m.unread
	}
	return slices.DeleteFunc(slices.Clone(m.unread),
		func(kind string) bool { return kind == nodestream.GrantKind })
}

// emitSource adds the frontend of a stored entry to the plan, and returns its mirror.
func (m *importer) emitSource(l *importLink, source ledger.Source, stored *ledger.Mirror,
	p *plan) *mirror.Want {
	entry := *stored
	if want, ok := l.wants[source]; ok {
		entry = withContent(entry, want)
	}
	var described *catalog.Service
	if s, ok := l.services[catalog.Key{Namespace: source.Namespace, Name: source.Service}]; ok {
		described = &s
	}
	w := l.rules.Want(entry, described)
	if resource := view.Frontend(l.link.Name, entry, w.Ready, l.rules.Defaults()); resource != nil {
		unread := m.unreadFor(mirrorKey(stored))
		for _, port := range resource.GetFrontend().GetPorts() {
			port.Routes = m.routes.Rules(mirrorKey(stored), port.GetIndex())
			port.UnreadRouteKinds = unread
		}
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Agents, Resource: resource})
	}
	return w
}

// mirrorFor returns what routes need to know of a mirror; nil: there is none.
func (m *importer) mirrorFor(key catalog.Key) *gatewayroutes.Mirror {
	at, ok := m.placedAt[key]
	if !ok {
		return nil
	}
	l := at.link
	stored := m.entries[l.domain][at.source]
	if stored == nil {
		return nil
	}
	entry := *stored
	if want, ok := l.wants[at.source]; ok {
		entry = withContent(entry, want)
	}
	defaults := l.rules.Defaults()
	out := &gatewayroutes.Mirror{Headless: entry.Headless && entry.Hostname == ""}
	for _, p := range entry.Ports {
		out.Ports = append(out.Ports, gatewayroutes.Port{
			Index:  uint32(p.Index),
			Number: p.Port,
			Name:   p.Name,
			Opaque: defaults.IsOpaque(p.Declared, p.AppProtocol),
		})
	}
	return out
}

// withContent returns entry with the content that the peer's catalog has now: the
// stored copy may lag behind, because its writes are rationed.
func withContent(entry ledger.Mirror, w ledger.MirrorWant) ledger.Mirror {
	entry.Identities, entry.AffinitySeconds, entry.Settings = w.Identities, w.AffinitySeconds, w.Settings
	entry.Ports = slices.Clone(entry.Ports)
	for i := range entry.Ports {
		port := &entry.Ports[i]
		at := slices.IndexFunc(w.Ports,
			func(o ledger.PortWant) bool { return o.Name == port.Name && o.Protocol == port.Protocol })
		if at < 0 {
			port.Route = 0
			continue
		}
		port.Port, port.AppProtocol, port.Route = w.Ports[at].Port, w.Ports[at].AppProtocol, w.Ports[at].Route
		port.Declared = w.Ports[at].Declared
	}
	return entry
}

// stored takes in what the ledger has stored of mirrors.
func (m *importer) stored(changes []ledger.MirrorChange, p *plan) {
	for _, c := range changes {
		entries := m.entries[c.TrustDomain]
		if entries == nil {
			entries = make(map[ledger.Source]*ledger.Mirror)
			m.entries[c.TrustDomain] = entries
		}
		if setOrDelete(entries, c.Source, c.Mirror); len(entries) == 0 {
			delete(m.entries, c.TrustDomain)
		}
	}
	// All names are withdrawn first: another source may have been given one of them.
	for _, c := range changes {
		if l := m.byDomain[c.TrustDomain]; l != nil {
			m.unplace(l, c.Source, p)
		}
	}
	for _, c := range changes {
		if l := m.byDomain[c.TrustDomain]; l != nil {
			m.emit(l, c.Source, p)
			p.statusOf(l.link.Name)
		}
	}
}

// freeze stops new allocations while the range of virtual IPs overlaps the cluster's own
// addresses, or allows them again.
func (m *importer) freeze(frozen bool, now time.Time, p *plan) {
	m.frozen = frozen
	for name, l := range m.links {
		for key := range l.services {
			m.decideAndEmit(l, key, now, p)
		}
		p.statusOf(name)
	}
}

// pending counts the wanted mirrors that the ledger has no entry for, apart from those
// that a problem keeps out.
func (m *importer) pending(l *importLink) int {
	missing := len(l.wants) - len(l.placed)
	return max(0, missing-len(m.book.Problems(l.domain)))
}

// problemsOf are the problems of one Link's imports, sorted.
func (m *importer) problemsOf(name string) []catalog.Problem {
	l := m.links[name]
	if l == nil {
		return nil
	}
	out := slices.Collect(maps.Values(l.problems))
	for _, p := range m.book.Problems(l.domain) {
		out = append(out, p.ServiceProblem)
	}
	if l.fault != nil {
		out = append(out, *l.fault)
	}
	for _, problems := range l.left {
		out = append(out, problems...)
	}
	catalog.SortProblems(out)
	return slices.Compact(out)
}

// replay adds everything in the ledger to the plan, for a mirror writer that has just
// started.
func (m *importer) replay(p *plan) {
	for _, l := range m.links {
		p.links = append(p.links, l.change())
		for source := range m.entries[l.domain] {
			m.emit(l, source, p)
		}
	}
}

// redecide decides one Service of a peer's catalog again, and reports whether that
// changed its wants in the ledger.
func (m *importer) redecide(name string, key catalog.Key, now time.Time, p *plan) bool {
	l := m.links[name]
	if l == nil {
		return false
	}
	before := slices.Clone(l.sources[key])
	m.decideAndEmit(l, key, now, p)
	return !slices.Equal(before, l.sources[key])
}

// keys are the Services of the peer's catalog, for the full pass.
func (l *importLink) keys() []catalog.Key {
	return slices.SortedFunc(maps.Keys(l.services), catalog.Key.Compare)
}
