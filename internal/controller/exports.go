package controller

import (
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
)

// exporter decides what this cluster's exported Services become: entries of the
// export ledger, listings for peers, rows of the gateways' table, and what the
// agents of the pods' nodes must know. It belongs to the reconciler's goroutine.
//
//	objects ─▶ catalog.Index ─▶ Book.Export ─▶ (stored) ─▶ listing for peers
//	                        └───────────────────────────┴▶ routes, exports of nodes
//
// Which Services a peer sees, and under which route ids, comes from the stored
// ledger alone, so that all replicas say the same; what is said of each comes from
// this replica's caches. The data path follows the caches at once: an export that is
// withdrawn is refused before the ledger says so.
type exporter struct {
	index       *catalog.Index
	book        *ledger.Book
	endpointKey [32]byte

	// missing are stored members whose Service this replica's caches do not hold yet.
	// The version is not announced before they do.
	missing map[catalog.Key]bool
	version wire.Version // last announced
	nodes   map[catalog.Key][]string
	routes  map[catalog.Key][]view.RouteRow
	// reported are problems that have had an Event.
	reported map[catalog.Key][]catalog.Problem
}

func newExporter(index *catalog.Index, book *ledger.Book, hopMasterKey [32]byte) *exporter {
	return &exporter{
		index: index, book: book, endpointKey: identity.EndpointKey(hopMasterKey),
		missing: make(map[catalog.Key]bool), nodes: make(map[catalog.Key][]string),
		routes: make(map[catalog.Key][]view.RouteRow), reported: make(map[catalog.Key][]catalog.Problem),
	}
}

// decide takes in one changed decision of the index.
func (x *exporter) decide(c catalog.Change, now time.Time, p *plan) {
	if c.Export != nil && len(c.Export.Links) > 0 {
		x.book.Export(exportWant(c.Export), now)
	} else {
		x.book.Unexport(c.Key, now)
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

// emit tells peers, gateways and nodes what one Service has become.
func (x *exporter) emit(k catalog.Key, now time.Time, p *plan) {
	e, _ := x.index.Get(k)
	member, stored := x.book.Member(k)
	x.list(k, e, member, stored, p)
	x.emitRoutes(k, e, member, stored, now, p)
	x.emitNodes(k, e, p)
}

// list decides the listing of a Service for peers.
func (x *exporter) list(k catalog.Key, e *catalog.Export, member ledger.Member, stored bool, p *plan) {
	delete(x.missing, k)
	switch {
	case !stored:
		p.listings = append(p.listings, wire.Listing{Key: k})
	case e == nil:
		x.missing[k] = true // the caches lag, or the leader is about to drop it: the last listing stays
	default:
		p.listings = append(p.listings, wire.Listing{Key: k, Service: e.Service(member.Route), Links: member.Links})
	}
}

// emitRoutes decides the rows that lead to a Service's ports.
func (x *exporter) emitRoutes(k catalog.Key, e *catalog.Export, member ledger.Member, stored bool, now time.Time, p *plan) {
	before := x.routes[k]
	var after []view.RouteRow
	if stored && e != nil {
		after = view.Routes(x.endpointKey, e, member.Route, before, now)
	}
	for _, row := range after {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: row.Resource()})
	}
	for _, row := range before {
		if !slices.ContainsFunc(after, func(r view.RouteRow) bool { return r.ID == row.ID }) {
			p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Removed: view.RouteKey(row.ID)})
		}
	}
	if len(after) == 0 {
		delete(x.routes, k)
	} else {
		x.routes[k] = after
	}
}

// emitNodes decides what the agents of the Service's pods must know of it.
func (x *exporter) emitNodes(k catalog.Key, e *catalog.Export, p *plan) {
	var nodes []string
	if e != nil {
		for node, resource := range view.Exports(e) {
			nodes = append(nodes, node)
			p.views = append(p.views, nodestream.Change{Scope: nodestream.Node(node), Resource: resource})
		}
	}
	for _, node := range x.nodes[k] {
		if !slices.Contains(nodes, node) {
			p.views = append(p.views, nodestream.Change{Scope: nodestream.Node(node), Removed: view.ExportKey(k)})
		}
	}
	if len(nodes) == 0 {
		delete(x.nodes, k)
	} else {
		x.nodes[k] = nodes
	}
}

// stored emits the members that the ledger has stored or dropped.
func (x *exporter) stored(changes []ledger.ExportChange, now time.Time, p *plan) {
	for _, c := range changes {
		x.emit(c.Key, now, p)
	}
}

// announce sets the version that peers may rely on: the stored one, once this
// replica's caches hold every member.
func (x *exporter) announce(p *plan) {
	if len(x.missing) == 0 {
		epoch, generation := x.book.Version()
		x.version = wire.Version{Epoch: epoch, Generation: generation}
	}
	p.version = x.version
}
