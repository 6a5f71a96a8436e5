package nodestream

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// GrantKind is the kind of ReferenceGrants. It is not a kind of routes, but routes of all
// kinds can depend on its objects.
const GrantKind = "ReferenceGrant"

// RoutesUnread reports whether a port can have routes that are not known.
func RoutesUnread(p *wire.FrontendPort) bool {
	return slices.ContainsFunc(p.UnreadRouteKinds, func(kind string) bool { return kind != GrantKind })
}

// keepRoutes handles the frontends among the upserts of d that come from a controller
// that has not read all routes. It replaces them in view by copies. The ports of a copy
// keep the routes that they have in current, as far as the unread kinds can change these
// routes. view must not be published yet.
func keepRoutes(view View, d delta.Delta[decoded], current View) {
	for _, v := range d.Upserts {
		f := v.resource.GetFrontend()
		if f == nil || !slices.ContainsFunc(f.Ports, isUnread) {
			continue
		}
		known := current[v.resource.Key].GetFrontend()
		kept := proto.CloneOf(v.resource)
		for _, p := range kept.GetFrontend().Ports {
			keepPortRoutes(p, known)
		}
		view[kept.Key] = kept
	}
}

func isUnread(p *wire.FrontendPort) bool { return len(p.UnreadRouteKinds) > 0 }

// keepPortRoutes is keepRoutes for one port. known is the frontend as it was; nil: there
// was none. A port whose routes were not known stays unread.
func keepPortRoutes(p *wire.FrontendPort, known *wire.Frontend) {
	at := slices.IndexFunc(known.GetPorts(), func(o *wire.FrontendPort) bool {
		return o.Index == p.Index && o.Name == p.Name && !isUnread(o)
	})
	if at < 0 || !isUnread(p) {
		return
	}
	before, unread := known.Ports[at].Routes, p.UnreadRouteKinds
	if len(before) > 0 && (slices.Contains(unread, GrantKind) || fromAny(before, unread)) {
		p.Routes = before
	}
	p.UnreadRouteKinds = nil
}

// fromAny reports whether a rule comes from a route of one of the kinds.
func fromAny(routes []*wire.RouteRules, kinds []string) bool {
	for _, r := range routes {
		for _, rule := range r.Rules {
			if kind, _, _ := strings.Cut(rule.Route, "/"); slices.Contains(kinds, kind) {
				return true
			}
		}
	}
	return false
}
