package controller

import (
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	nodewire "github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// exporter decides what this cluster's exported Services become: entries of the export
// list, listings for peers, rows of the gateways' table, and what the agents of the pods'
// nodes must know. It belongs to the reconciler's goroutine.
//
//	objects ─▶ catalog.Index ─▶ Book.Export ─▶ (stored) ─▶ listing for peers
//	                        └───────────────────────────┴▶ routes, exports of nodes
//
// Which Services a peer sees, and under which route ids, comes from the stored export
// list alone, so that all replicas agree. The content of each Service comes from the
// caches of this replica. The data path follows the caches at once: agents and gateways
// reject calls to a withdrawn export before the export list changes.
type exporter struct {
	index *catalog.Index
	book  *ledger.Book
	rows  *rowTable
	// hasAgent reports whether a node has an agent: the others have no node stream.
	hasAgent func(node string) bool
	// nodesOf yields the nodes that have pods of a namespace.
	nodesOf func(namespace string) iter.Seq[string]

	members map[catalog.Key]*ledger.Member // of the stored export list
	// missing are members whose Service is not in this replica's caches yet. The version
	// is not announced until they are.
	missing map[catalog.Key]bool
	version wire.Version // last announced
	// nodes are those whose agents know an export. byNode are the exports by node, and
	// byNamespace by namespace.
	nodes       map[catalog.Key]map[string]bool
	byNode      map[string]map[catalog.Key]bool
	byNamespace map[string]map[catalog.Key]bool
	routes      map[catalog.Key][]uint32
	// reported are problems that have had an Event.
	reported map[catalog.Key][]catalog.Problem
	// counts are the members of each Link. ready are the Links whose members were all
	// stored once since they came into force, waiting the others, and since when.
	counts  map[string]int
	ready   map[string]bool
	waiting map[string]time.Time
}

// storeTimeout is how long the catalog of a new Link waits for the export list to hold
// everything that the Link admits. Some exports never get in, such as those beyond a cap.
const storeTimeout = time.Minute

func newExporter(index *catalog.Index, book *ledger.Book, rows *rowTable,
	hasAgent func(node string) bool, nodesOf func(namespace string) iter.Seq[string]) *exporter {
	return &exporter{
		index:       index,
		book:        book,
		rows:        rows,
		hasAgent:    hasAgent,
		nodesOf:     nodesOf,
		members:     make(map[catalog.Key]*ledger.Member),
		missing:     make(map[catalog.Key]bool),
		nodes:       make(map[catalog.Key]map[string]bool),
		byNode:      make(map[string]map[catalog.Key]bool),
		byNamespace: make(map[string]map[catalog.Key]bool),
		routes:      make(map[catalog.Key][]uint32),
		reported:    make(map[catalog.Key][]catalog.Problem),
		counts:      make(map[string]int),
		ready:       make(map[string]bool),
		waiting:     make(map[string]time.Time),
	}
}

// decide takes in one changed decision of the index.
func (x *exporter) decide(c catalog.Change, now time.Time, p *plan) {
	if c.Export != nil && len(c.Export.Links) > 0 {
		x.book.Export(exportWant(c.Export), now)
	} else {
		x.book.Unexport(ledger.ExportKey{Namespace: c.Key.Namespace, Service: c.Key.Name}, now)
	}
	x.emit(c.Key, now, p)
}

func exportWant(e *catalog.Export) ledger.ExportWant {
	w := ledger.ExportWant{Namespace: e.Namespace, Service: e.Name, Links: e.Links}
	for _, port := range e.Ports {
		w.Ports = append(w.Ports, ledger.ExportPort{Name: port.Name, Protocol: port.Protocol})
	}
	return w
}

// stored takes in what the ledger has stored of the export list.
func (x *exporter) stored(changes []ledger.ExportChange, now time.Time, p *plan) {
	for _, c := range changes {
		key := catalog.Key{Namespace: c.Key.Namespace, Name: c.Key.Service}
		x.count(x.members[key], -1)
		x.count(c.Member, +1)
		setOrDelete(x.members, key, c.Member)
		x.emit(key, now, p)
	}
}

func (x *exporter) count(m *ledger.Member, sign int) {
	if m == nil {
		return
	}
	for _, name := range m.Links {
		if x.counts[name] += sign; x.counts[name] == 0 {
			delete(x.counts, name)
		}
	}
}

// readyLinks returns which of the Links in force, which are sorted, have a complete
// catalog. A peer would delete mirrors if it received a catalog before the export list is
// complete. first means the first pass, in which a Link with members is complete, even if
// it will get further ones.
func (x *exporter) readyLinks(inForce []string, first bool, now time.Time, p *plan) []string {
	out := make([]string, 0, len(inForce))
	for _, name := range inForce {
		if !x.ready[name] {
			since, waits := x.waiting[name]
			if !waits {
				since = now
			}
			stored := x.counts[name] >= x.index.Exported(name) || first && x.counts[name] > 0
			if due := since.Add(storeTimeout); !stored && now.Before(due) {
				x.waiting[name] = since
				p.dueAt(due)
				continue
			}
			delete(x.waiting, name)
			x.ready[name] = true
		}
		out = append(out, name)
	}
	if len(x.ready)+len(x.waiting) > len(inForce) {
		notInForce := func(name string) bool {
			_, found := slices.BinarySearch(inForce, name)
			return !found
		}
		maps.DeleteFunc(x.ready, func(name string, _ bool) bool { return notInForce(name) })
		maps.DeleteFunc(x.waiting, func(name string, _ time.Time) bool { return notInForce(name) })
	}
	return out
}

// emit adds the changes of one Service, for peers, gateways and nodes, to the plan.
func (x *exporter) emit(k catalog.Key, now time.Time, p *plan) {
	e, _ := x.index.Get(k)
	member := x.members[k]
	p.conditionsOf(k)
	x.emitListing(k, e, member, p)
	x.emitRoutes(k, e, member, now, p)
	x.emitNodes(k, e, p)
}

// emitListing decides what peers see of a Service.
func (x *exporter) emitListing(k catalog.Key, e *catalog.Export, member *ledger.Member, p *plan) {
	delete(x.missing, k)
	switch {
	case member == nil:
		p.listings = append(p.listings, wire.Listing{Key: k})
	case e == nil:
		x.missing[k] = true // the caches lag, or the leader is about to drop it: the last listing stays
	default:
		s := e.Service(routeOf(member))
		if len(s.Ports) == 0 {
			return // the ledger has yet to store the ids of new ports: the last listing stays
		}
		p.listings = append(p.listings, wire.Listing{Key: k, Service: &s, Links: member.Links})
	}
}

func routeOf(m *ledger.Member) func(name, protocol string) uint32 {
	return func(name, protocol string) uint32 {
		return m.Routes[ledger.ExportPort{
			Name:     name,
			Protocol: protocol,
		}]
	}
}

// emitRoutes decides the rows that lead to a Service's ports.
func (x *exporter) emitRoutes(k catalog.Key, e *catalog.Export, member *ledger.Member, now time.Time,
	p *plan) {
	var after []uint32
	if member != nil && e != nil {
		for _, row := range x.rows.at(now).Export(e, routeOf(member)) {
			after = append(after, row.GetRoute().GetId())
			x.rows.put(row, p)
		}
	}
	for _, id := range x.routes[k] {
		if !slices.Contains(after, id) {
			x.rows.remove(id, p)
		}
	}
	if len(after) == 0 {
		delete(x.routes, k)
	} else {
		x.routes[k] = after
	}
}

// emitNodes decides what the agents of a namespace's nodes must know of a Service.
func (x *exporter) emitNodes(k catalog.Key, e *catalog.Export, p *plan) {
	var resources map[string]*nodewire.Resource
	if e != nil {
		resources = view.Exports(e, x.nodesOf(k.Namespace))
		add(x.byNamespace, k.Namespace, k)
	} else {
		remove(x.byNamespace, k.Namespace, k)
	}
	for node, resource := range resources {
		x.tell(k, node, resource, p)
	}
	for node := range x.nodes[k] {
		if resources[node] == nil {
			x.untell(k, node, p)
		}
	}
}

// nodeMoved takes in that a node has its first pod of a namespace, or has lost the last
// one.
func (x *exporter) nodeMoved(namespace, node string, has bool, p *plan) {
	for k := range x.byNamespace[namespace] {
		if e, _ := x.index.Get(k); has && e != nil {
			x.tell(k, node, view.ExportAt(e, node), p)
		} else {
			x.untell(k, node, p)
		}
	}
}

// tell tells a node's agent of an export.
func (x *exporter) tell(k catalog.Key, node string, resource *nodewire.Resource, p *plan) {
	add(x.nodes, k, node)
	add(x.byNode, node, k)
	if x.hasAgent(node) {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Node(node), Resource: resource})
	}
}

// untell takes an export from a node's agent.
func (x *exporter) untell(k catalog.Key, node string, p *plan) {
	remove(x.nodes, k, node)
	remove(x.byNode, node, k)
	if x.hasAgent(node) {
		p.views = append(p.views, nodestream.Change{
			Scope:   nodestream.Node(node),
			Removed: nodestream.ExportKey(k.Namespace, k.Name),
		})
	}
}

// add puts b into the set of a.
func add[A, B comparable](sets map[A]map[B]bool, a A, b B) {
	if sets[a] == nil {
		sets[a] = make(map[B]bool)
	}
	sets[a][b] = true
}

// remove takes b out of the set of a, and an empty set out of sets.
func remove[A, B comparable](sets map[A]map[B]bool, a A, b B) {
	if delete(sets[a], b); len(sets[a]) == 0 {
		delete(sets, a)
	}
}

// nodeExports returns what the agent of a node must know of exports.
func (x *exporter) nodeExports(node string) []*nodewire.Resource {
	var out []*nodewire.Resource
	for k := range x.byNode[node] {
		if e, _ := x.index.Get(k); e != nil {
			out = append(out, view.ExportAt(e, node))
		}
	}
	return out
}

// announce sets the version that peers may rely on: the stored one, once this replica's
// caches hold every member.
func (x *exporter) announce(p *plan) {
	if len(x.missing) == 0 {
		epoch, generation := x.book.Version()
		x.version = wire.Version{Epoch: epoch, Generation: generation}
	}
	p.version = x.version
}

// rowTable holds the rows of the gateways' table as they were last sent, from which their
// generations follow.
type rowTable struct {
	cluster view.Cluster
	last    map[uint32]*nodewire.Route
}

// at returns the maker of rows at now.
func (t *rowTable) at(now time.Time) view.Rows {
	return view.Rows{
		Cluster: t.cluster,
		Now:     now,
		Last:    func(id uint32) *nodewire.Route { return t.last[id] },
	}
}

func (t *rowTable) put(row *nodewire.Resource, p *plan) {
	t.last[row.GetRoute().GetId()] = row.GetRoute()
	p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: row})
}

func (t *rowTable) remove(id uint32, p *plan) {
	if t.last[id] != nil {
		delete(t.last, id)
		p.views = append(p.views, nodestream.Change{
			Scope:   nodestream.Gateways,
			Removed: nodestream.RouteKey(id),
		})
	}
}
