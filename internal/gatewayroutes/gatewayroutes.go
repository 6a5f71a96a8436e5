// Package gatewayroutes decides what Gateway API routes do to the requests to mirrors:
// which rules each port of a mirror has, and what the status of each route says.
//
//	routes, ReferenceGrants ─┐            ┌─▶ RouteRules of each mirror's ports
//	Services and mirrors ────┴─▶ Index ───┴─▶ wanted status of each route
//
// A route is compiled on its own: its references are resolved, its values are checked,
// and its matches get their precedence. Then all routes that are attached to a mirror are
// merged, port by port.
//
// What always holds:
//   - The package does no I/O. Equal inputs give equal rules in every replica.
//   - The cost of Flush depends on what has changed since the last call.
//   - A rule that cannot be applied as it is written answers 500 to the requests that it
//     matches. Its filters are never left out.
//   - What is sent to agents is bounded. A route that does not fit is not accepted.
package gatewayroutes

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Kind is a kind of route.
type Kind string

// The kinds of routes.
const (
	HTTPRoute Kind = "HTTPRoute"
	GRPCRoute Kind = "GRPCRoute"
)

// ID names a route.
type ID struct {
	Kind Kind
	catalog.Key
}

// String returns KIND/NAMESPACE/NAME.
func (id ID) String() string { return string(id.Kind) + "/" + id.Key.String() }

// Compare orders IDs by kind, namespace and name.
func (id ID) Compare(o ID) int {
	return cmp.Or(strings.Compare(string(id.Kind), string(o.Kind)), id.Key.Compare(o.Key))
}

// Mirror is what the Index needs to know of a mirror Service.
type Mirror struct {
	// Headless: callers dial the mirrors of named pods, and not this one.
	Headless bool
	Ports    []Port
}

// Port is a port of a mirror.
type Port struct {
	// Index is the index of the FrontendPort.
	Index uint32
	// Number and Name are those of the Service port.
	Number uint16
	Name   string
	// Opaque: the connections of the port carry no requests that agents read.
	Opaque bool
}

// Services looks up Services of this cluster. TouchService tells the Index that the
// result for a Service may have changed.
type Services interface {
	// Mirror returns a mirror; nil: the Service is not a mirror, or does not exist.
	Mirror(catalog.Key) *Mirror
	// Exists reports whether the Service exists.
	Exists(catalog.Key) bool
}

// Index holds routes and decides about them. It is not safe for concurrent use.
type Index struct {
	services Services
	routes   map[ID]*route
	grants   map[catalog.Key]*gatewayv1.ReferenceGrant
	// inNamespace are the names of the grants of a namespace.
	inNamespace map[string]map[string]bool
	// byService are the routes that refer to a Service, as a parent or as a backend, and
	// byGrants those that need a grant of a namespace.
	byService map[catalog.Key]map[ID]bool
	byGrants  map[string]map[ID]bool
	// attached are the routes that are attached to a mirror, by mirror.
	attached map[catalog.Key]*attachments

	dirty       map[ID]bool
	dirtyMirror map[catalog.Key]bool
}

// route is a route and what was decided about it. spec is nil if the route does not exist
// any more.
type route struct {
	id       ID
	spec     *spec
	compiled *compiled
	services map[catalog.Key]bool // as in byService
	granters map[string]bool      // as in byGrants
	wanted   []ParentStatus
}

// NewIndex returns an Index without routes.
func NewIndex(services Services) *Index {
	return &Index{
		services:    services,
		routes:      make(map[ID]*route),
		grants:      make(map[catalog.Key]*gatewayv1.ReferenceGrant),
		inNamespace: make(map[string]map[string]bool),
		byService:   make(map[catalog.Key]map[ID]bool),
		byGrants:    make(map[string]map[ID]bool),
		attached:    make(map[catalog.Key]*attachments),
		dirty:       make(map[ID]bool),
		dirtyMirror: make(map[catalog.Key]bool),
	}
}

// SetHTTPRoute records an HTTPRoute; nil: it does not exist. The Index keeps o and does
// not change it.
func (x *Index) SetHTTPRoute(k catalog.Key, o *gatewayv1.HTTPRoute) {
	var s *spec
	if o != nil {
		s = httpSpec(o)
	}
	x.set(ID{HTTPRoute, k}, s)
}

// SetGRPCRoute is SetHTTPRoute for a GRPCRoute.
func (x *Index) SetGRPCRoute(k catalog.Key, o *gatewayv1.GRPCRoute) {
	var s *spec
	if o != nil {
		s = grpcSpec(o)
	}
	x.set(ID{GRPCRoute, k}, s)
}

func (x *Index) set(id ID, s *spec) {
	r := x.routes[id]
	if r == nil {
		if s == nil {
			return
		}
		r = &route{id: id}
		x.routes[id] = r
	}
	r.spec = s
	x.dirty[id] = true
}

// SetReferenceGrant records a ReferenceGrant; nil: it does not exist.
func (x *Index) SetReferenceGrant(k catalog.Key, o *gatewayv1.ReferenceGrant) {
	if o == nil {
		delete(x.grants, k)
		remove(x.inNamespace, k.Namespace, k.Name)
	} else {
		x.grants[k] = o
		add(x.inNamespace, k.Namespace, k.Name)
	}
	for id := range x.byGrants[k.Namespace] {
		x.dirty[id] = true
	}
}

// Retain records that only the objects of a kind with these keys exist, and removes the
// others. It ignores other kinds than HTTPRoute, GRPCRoute and ReferenceGrant.
func (x *Index) Retain(kind string, keys map[catalog.Key]bool) {
	for id := range x.routes {
		if string(id.Kind) == kind && !keys[id.Key] {
			x.set(id, nil)
		}
	}
	if kind == "ReferenceGrant" {
		for _, k := range slices.Collect(maps.Keys(x.grants)) {
			if !keys[k] {
				x.SetReferenceGrant(k, nil)
			}
		}
	}
}

// TouchService decides again about all routes that refer to a Service.
func (x *Index) TouchService(k catalog.Key) {
	for id := range x.byService[k] {
		x.dirty[id] = true
	}
}

// Routes returns the existing routes in no particular order.
func (x *Index) Routes() []ID {
	out := make([]ID, 0, len(x.routes))
	for id := range x.routes {
		out = append(out, id)
	}
	return out
}

// Changes are the results of Flush, both sorted.
type Changes struct {
	// Mirrors are mirrors with a port that has other rules now.
	Mirrors []catalog.Key
	// Routes are existing routes whose status may differ from the wanted one.
	Routes []ID
}

// Flush decides about what has changed since the last call.
func (x *Index) Flush() Changes {
	if len(x.dirty) == 0 {
		return Changes{}
	}
	touched := make(map[ID]bool, len(x.dirty))
	for id := range x.dirty {
		x.compile(x.routes[id])
		touched[id] = true
	}
	var out Changes
	for k := range x.dirtyMirror {
		for id := range x.routesOf(k) {
			touched[id] = true
		}
		if x.attach(k) {
			out.Mirrors = append(out.Mirrors, k)
		}
	}
	for id := range touched {
		r := x.routes[id]
		if r.spec == nil {
			delete(x.routes, id)
			continue
		}
		r.wanted = x.statusOf(r)
		out.Routes = append(out.Routes, id)
	}
	clear(x.dirty)
	clear(x.dirtyMirror)
	slices.SortFunc(out.Mirrors, catalog.Key.Compare)
	slices.SortFunc(out.Routes, ID.Compare)
	return out
}

// compile compiles a route again, and marks the mirrors to which it is or was attached.
func (x *Index) compile(r *route) {
	if r.compiled != nil {
		for i := range r.compiled.parents {
			x.dirtyMirror[r.compiled.parents[i].key] = true
		}
	}
	for k := range r.services {
		remove(x.byService, k, r.id)
	}
	for ns := range r.granters {
		remove(x.byGrants, ns, r.id)
	}
	if r.spec == nil {
		r.compiled, r.services, r.granters = nil, nil, nil
		return
	}
	c := compiler{index: x, id: r.id, services: make(map[catalog.Key]bool), granters: make(map[string]bool)}
	r.compiled = c.compile(r.spec)
	r.services, r.granters = c.services, c.granters
	for k := range r.services {
		add(x.byService, k, r.id)
	}
	for ns := range r.granters {
		add(x.byGrants, ns, r.id)
	}
	for i := range r.compiled.parents {
		x.dirtyMirror[r.compiled.parents[i].key] = true
	}
}

// routesOf returns the routes that have a Service as a parent or backend.
func (x *Index) routesOf(k catalog.Key) map[ID]bool { return x.byService[k] }

// Rules returns the rules of a mirror's port. The caller must not change them.
func (x *Index) Rules(mirror catalog.Key, port uint32) []*wire.RouteRules {
	a := x.attached[mirror]
	if a == nil {
		return nil
	}
	return a.rules[port]
}

// NeedsGrants reports whether a route refers to a backend that needs a ReferenceGrant,
// whether the grant exists or not.
func (x *Index) NeedsGrants(id ID) bool { return x.routes[id] != nil && len(x.routes[id].granters) > 0 }

// MirrorNeedsGrants reports whether NeedsGrants is true for any route of a mirror.
func (x *Index) MirrorNeedsGrants(mirror catalog.Key) bool {
	for id := range x.routesOf(mirror) {
		if x.NeedsGrants(id) {
			return true
		}
	}
	return false
}

// A Status is what the status of a route shall be.
type Status struct {
	ID ID
	// UID and Generation are those of the route that was decided about.
	UID        string
	Generation int64
	Parents    []ParentStatus
}

// Status returns the wanted status of a route, and whether the status that the route has
// differs from it. The Status of a route that does not exist has no ID.
func (x *Index) Status(id ID, now time.Time) (Status, bool) {
	r := x.routes[id]
	if r == nil || r.spec == nil {
		return Status{}, false
	}
	s := Status{ID: id, UID: string(r.spec.meta.UID), Generation: r.spec.meta.Generation, Parents: r.wanted}
	_, differs := s.Merge(r.spec.status, now)
	return s, differs
}

func add[K, V comparable](m map[K]map[V]bool, k K, v V) {
	if m[k] == nil {
		m[k] = make(map[V]bool)
	}
	m[k][v] = true
}

func remove[K, V comparable](m map[K]map[V]bool, k K, v V) {
	if delete(m[k], v); len(m[k]) == 0 {
		delete(m, k)
	}
}

// sameRules reports whether all ports have equal rules.
func sameRules(a, b map[uint32][]*wire.RouteRules) bool {
	return maps.EqualFunc(a, b, func(a, b []*wire.RouteRules) bool {
		return slices.EqualFunc(a, b, func(a, b *wire.RouteRules) bool { return proto.Equal(a, b) })
	})
}
