package controller

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
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
	// frozen: the range of virtual IPs overlaps this cluster's own addresses, so no
	// new mirror is allocated.
	frozen bool
}

// importLink is one Link in force.
type importLink struct {
	link     *v1alpha1.Link
	standby  *v1alpha1.Link // takes over when link is deleted; may be nil
	domain   string
	rules    *mirror.Rules
	fault    *catalog.Problem                // of the rules; nil: none
	services map[catalog.Key]catalog.Service // the peer's catalog, as far as it was applied
	// whole: services is the peer's whole catalog. Until then what the ledger holds
	// of the peer stays as it is.
	whole   bool
	version wire.Version
	sources map[catalog.Key][]ledger.Source // what each Service asked the ledger for
	wants   map[ledger.Source]ledger.MirrorWant
	// placed is where each stored entry's mirror is, and which frontend it has.
	placed   map[ledger.Source]catalog.Key
	problems map[catalog.Key]catalog.Problem   // of Services that the rules leave out
	left     map[catalog.Key][]catalog.Problem // of Services that the peer described wrongly
}

func newImporter(own string, book *ledger.Book) *importer {
	return &importer{
		own: own, book: book, namespaces: make(mirror.Namespaces),
		links: make(map[string]*importLink), byDomain: make(map[string]*importLink),
	}
}

// sourceKey names a source of one peer.
type sourceKey struct {
	domain string
	ledger.Source
}

// setLinks makes links those in force. A Link that is new or whose rules changed
// decides about its whole catalog again.
func (m *importer) setLinks(peers map[string]link.Peer, links map[string]*v1alpha1.Link, standby map[string]*v1alpha1.Link, now time.Time, p *plan) {
	for name, l := range m.links {
		if peer, ok := peers[name]; ok && peer.UID == string(l.link.UID) {
			continue
		}
		m.removeLink(name, peers, links, now, p)
	}
	for name, peer := range peers {
		m.setLink(links[name], standby[name], peer, now, p)
	}
}

// removeLink forgets a Link that is not in force any more. Entries of a Link that
// still exists stay as they are: it may be in force again in a moment.
func (m *importer) removeLink(name string, peers map[string]link.Peer, links map[string]*v1alpha1.Link, now time.Time, p *plan) {
	l := m.links[name]
	delete(m.links, name)
	delete(m.byDomain, l.domain)
	for _, key := range l.placed {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Agents, Removed: view.FrontendKey(key)})
	}
	p.links = append(p.links, linkChange{name: name})
	p.statusOf(name)
	if exists := links[name]; exists != nil && exists.UID == l.link.UID && exists.DeletionTimestamp == nil {
		return // a fault: its entries are kept
	}
	for _, peer := range peers {
		if peer.TrustDomain == l.domain {
			return // another Link of the same peer takes over
		}
	}
	m.book.RemovePeer(l.domain, now)
}

func (m *importer) setLink(obj, standby *v1alpha1.Link, peer link.Peer, now time.Time, p *plan) {
	l := m.links[obj.Name]
	if l == nil {
		l = &importLink{
			domain: peer.TrustDomain, services: make(map[catalog.Key]catalog.Service),
			sources: make(map[catalog.Key][]ledger.Source), wants: make(map[ledger.Source]ledger.MirrorWant),
			placed: make(map[ledger.Source]catalog.Key), problems: make(map[catalog.Key]catalog.Problem),
			left: make(map[catalog.Key][]catalog.Problem),
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
	m.releaseUnwanted(l, now)
	for _, source := range m.book.Sources(l.domain) {
		m.emit(l, source, p)
	}
}

func sameStandby(a, b *v1alpha1.Link) bool {
	return (a == nil) == (b == nil) && (a == nil || a.UID == b.UID && a.Generation == b.Generation)
}

// change tells the mirror writer what the Link is now.
func (l *importLink) change() linkChange {
	return linkChange{name: l.link.Name, link: l.link, standby: l.standby, complete: l.complete()}
}

// complete reports whether what the peer's catalog lacks must not stand: the
// catalog is whole, or the Link imports nothing.
func (l *importLink) complete() bool { return l.whole || l.link.Spec.Import == nil }

// setNamespace takes in a namespace of this cluster; nil: it is gone. Services whose
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
func (m *importer) applyCatalog(name string, d wire.Delta, now time.Time, p *plan) {
	l := m.links[name]
	if l == nil {
		return
	}
	for _, s := range d.Upserts {
		l.services[s.Key()] = s
		m.decideAndEmit(l, s.Key(), now, p)
	}
	for _, key := range d.Removed {
		delete(l.services, key)
		delete(l.left, key)
		m.decideAndEmit(l, key, now, p)
	}
	for key, problems := range d.Problems {
		if len(problems) == 0 {
			delete(l.left, key)
		} else {
			l.left[key] = problems
		}
	}
	if d.Whole {
		l.version = d.Version
		m.book.SetApplied(l.domain, d.Version.Epoch, d.Version.Generation)
		if !l.whole {
			l.whole = true
			m.releaseUnwanted(l, now)
			p.links = append(p.links, l.change())
		}
	}
	p.statusOf(name)
}

// releaseUnwanted releases the entries of a peer that nothing wants any more, once
// the whole catalog is known.
func (m *importer) releaseUnwanted(l *importLink, now time.Time) {
	if !l.complete() {
		return
	}
	for _, source := range m.book.Sources(l.domain) {
		if _, wanted := l.wants[source]; !wanted {
			m.book.Unwant(l.domain, source, now)
		}
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

// decide asks the ledger for what one Service of the peer becomes here.
func (m *importer) decide(l *importLink, key catalog.Key, now time.Time) {
	var wants []ledger.MirrorWant
	var problem *catalog.Problem
	if s, ok := l.services[key]; ok {
		wants, problem = l.rules.Wants(s, m.namespaces)
	}
	if problem != nil {
		l.problems[key] = *problem
	} else {
		delete(l.problems, key)
	}
	before := l.sources[key]
	after := make([]ledger.Source, 0, len(wants))
	for _, w := range wants {
		source := w.Source
		if _, stored := m.book.Mirror(l.domain, source); m.frozen && !stored {
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

// emit tells agents and the mirror writer what one source has become, if the
// ledger has stored an entry for it.
func (m *importer) emit(l *importLink, source ledger.Source, p *plan) {
	entry, stored := m.book.Mirror(l.domain, source)
	before, placed := l.placed[source]
	after := catalog.Key{Namespace: entry.MirrorNamespace, Name: entry.MirrorName}
	if placed && (!stored || before != after) {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Agents, Removed: view.FrontendKey(before)})
		p.mirrors = append(p.mirrors, mirrorChange{l.link.Name, before, nil})
		delete(l.placed, source)
	}
	if !stored {
		return
	}
	l.placed[source] = after
	if want, ok := l.wants[source]; ok {
		entry = withContent(entry, want)
	}
	var said *catalog.Service
	if s, ok := l.services[catalog.Key{Namespace: source.Namespace, Name: source.Service}]; ok {
		said = &s
	}
	w := l.rules.Want(entry, said)
	if !(entry.Headless && source.Hostname == "") { // a headless mirror lists others: nobody dials it
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Agents, Resource: view.Frontend(l.link.Name, entry, w.Ready)})
	}
	p.mirrors = append(p.mirrors, mirrorChange{l.link.Name, after, w})
	p.statusOf(l.link.Name)
}

// withContent returns entry with the content that the peer's catalog has now: the
// stored copy may lag behind, because its writes are rationed.
func withContent(entry ledger.Mirror, w ledger.MirrorWant) ledger.Mirror {
	entry.Identities, entry.AffinitySeconds = w.Identities, w.AffinitySeconds
	entry.Ports = slices.Clone(entry.Ports)
	for i := range entry.Ports {
		port := &entry.Ports[i]
		at := slices.IndexFunc(w.Ports, func(o ledger.PortWant) bool { return o.Name == port.Name && o.Protocol == port.Protocol })
		if at < 0 {
			port.Route = 0
			continue
		}
		port.Port, port.AppProtocol, port.Route = w.Ports[at].Port, w.Ports[at].AppProtocol, w.Ports[at].Route
	}
	return entry
}

// stored emits the entries that the ledger has stored or dropped.
func (m *importer) stored(changes []ledger.MirrorChange, p *plan) {
	for _, c := range changes {
		if l := m.byDomain[c.TrustDomain]; l != nil {
			m.emit(l, c.Source, p)
			p.statusOf(l.link.Name)
		}
	}
}

// problemsOf are the problems of one Link's imports, sorted.
func (m *importer) problemsOf(name string) []catalog.Problem {
	l := m.links[name]
	if l == nil {
		return nil
	}
	out := slices.Concat(slices.Collect(maps.Values(l.problems)), m.book.Problems(l.domain))
	if l.fault != nil {
		out = append(out, *l.fault)
	}
	for _, problems := range l.left {
		out = append(out, problems...)
	}
	catalog.SortProblems(out)
	return slices.Compact(out)
}

// replay tells a writer that has just begun to write everything that stands in the ledger.
func (m *importer) replay(p *plan) {
	for _, l := range m.links {
		p.links = append(p.links, l.change())
		for source := range l.placed {
			m.emit(l, source, p)
		}
	}
}

// redecide decides one Service of a peer's catalog again, and reports whether that
// changed what it asks the ledger for.
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
