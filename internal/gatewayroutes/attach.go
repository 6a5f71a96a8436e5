package gatewayroutes

import (
	"cmp"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Limits of what agents hold. A node has the rules of all mirrors.
const (
	maxMatches = 256
	maxRules   = 128
	// maxBytes is the encoded size of one RouteRules.
	maxBytes = 64 << 10
	// maxAudiences is the number of RouteRules of one port.
	maxAudiences = 16
	// maxMirrorBytes is the encoded size of all RouteRules of one mirror.
	maxMirrorBytes = 512 << 10
	// maxMirrorRegexCost is the cost of the regular expressions of all RouteRules of one
	// mirror. reqroute.MaxRegexCost is that of one RouteRules.
	maxMirrorRegexCost = 8 * reqroute.MaxRegexCost
)

// attachments is what the routes of one mirror come to.
type attachments struct {
	// rules are by index of the port.
	rules map[uint32][]*wire.RouteRules
	// refused are the ports of routes that could not be attached there, with the reason.
	refused map[slot]gatewayv1.RouteConditionReason
}

// slot is one port of a mirror, for one route.
type slot struct {
	route ID
	port  uint32
}

// audience is a port with the callers that rules are for.
type audience struct {
	port uint32
	// namespace of the callers; empty: all others.
	namespace string
}

// group collects the rules and matches of the routes of one audience.
type group struct {
	rules   *wire.RouteRules // attach adds the matches at the end, when it sorts them
	matches []match
	bytes   int // the encoded size of both
	cost    int // of regular expressions
}

// attachment is a request of a route to be attached to one port of a mirror.
type attachment struct {
	audience
	route *route
}

// compare orders attachments by precedence: first those of routes in the mirror's own
// namespace, then older routes before newer ones.
func (a attachment) compare(o attachment) int {
	if own := a.namespace == ""; own != (o.namespace == "") {
		if own {
			return -1
		}
		return 1
	}
	created := a.route.spec.meta.CreationTimestamp.Time.Compare(o.route.spec.meta.CreationTimestamp.Time)
	return cmp.Or(created, a.route.id.Compare(o.route.id), cmp.Compare(a.port, o.port))
}

// attach merges the routes that are attached to a mirror, and reports whether a port has
// other rules now.
func (x *Index) attach(mirror catalog.Key) (changed bool) {
	var all []attachment
	grpc := make(map[audience]bool) // audiences with a GRPCRoute
	for id := range x.routesOf(mirror) {
		r := x.routes[id]
		if r.compiled == nil || r.compiled.invalid != nil {
			continue
		}
		namespace := ""
		if id.Namespace != mirror.Namespace {
			namespace = id.Namespace // a consumer's route
		}
		for port := range r.compiled.portsOf(mirror) {
			a := audience{port, namespace}
			all = append(all, attachment{a, r})
			grpc[a] = grpc[a] || id.Kind == GRPCRoute
		}
	}
	before := x.attached[mirror]
	if len(all) == 0 {
		delete(x.attached, mirror)
		return before != nil && len(before.rules) > 0
	}
	next := &attachments{
		rules:   make(map[uint32][]*wire.RouteRules),
		refused: make(map[slot]gatewayv1.RouteConditionReason),
	}
	groups := make(map[audience]*group)
	audiences := make(map[uint32]int) // by port
	size, cost := 0, 0                // of all groups
	slices.SortFunc(all, attachment.compare)
	for _, a := range all {
		c, g := a.route.compiled, groups[a.audience]
		if grpc[a.audience] && a.route.id.Kind != GRPCRoute {
			// The API does not allow a port to have routes of two kinds.
			next.refused[slot{a.route.id, a.port}] = ReasonConflicted
			continue
		}
		full := g == nil && audiences[a.port] == maxAudiences ||
			size+c.bytes > maxMirrorBytes || cost+c.regexCost > maxMirrorRegexCost
		if g == nil {
			g = &group{rules: &wire.RouteRules{CallerNamespace: a.namespace}}
			g.bytes = proto.Size(g.rules)
		}
		if full || !g.add(c) {
			next.refused[slot{a.route.id, a.port}] = ReasonLimitExceeded
			continue
		}
		if groups[a.audience] == nil {
			groups[a.audience] = g
			audiences[a.port]++
		}
		size, cost = size+c.bytes, cost+c.regexCost
	}
	for _, a := range slices.SortedFunc(maps.Keys(groups), compareAudiences) {
		g := groups[a]
		slices.SortStableFunc(g.matches, match.compare)
		g.rules.Matches = wires(g.matches)
		next.rules[a.port] = append(next.rules[a.port], g.rules)
	}
	x.attached[mirror] = next
	return before == nil && len(next.rules) > 0 || before != nil && !sameRules(before.rules, next.rules)
}

// add adds a route and reports whether it fits. If it does not fit, g stays as it is.
func (g *group) add(c *compiled) bool {
	if len(g.matches)+len(c.matches) > maxMatches || len(g.rules.Rules)+len(c.rules) > maxRules ||
		g.bytes+c.bytes > maxBytes || g.cost+c.regexCost > reqroute.MaxRegexCost {
		return false
	}
	offset := uint32(len(g.rules.Rules))
	added := &wire.RouteRules{Rules: c.rules}
	for _, m := range c.matches {
		m.wire = proto.CloneOf(m.wire)
		m.wire.Rule += offset
		g.matches = append(g.matches, m)
		added.Matches = append(added.Matches, m.wire)
	}
	g.rules.Rules = append(g.rules.Rules, c.rules...)
	g.bytes += proto.Size(added)
	g.cost += c.regexCost
	return true
}

// compareAudiences orders by port. Rules for all callers come first.
func compareAudiences(a, b audience) int {
	return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.namespace, b.namespace))
}

func wires(all []match) []*wire.RouteMatch {
	out := make([]*wire.RouteMatch, len(all))
	for i := range all {
		out[i] = all[i].wire
	}
	return out
}

// portsOf returns the indexes of the ports of a mirror to which a route is attached.
func (c *compiled) portsOf(mirror catalog.Key) map[uint32]bool {
	out := make(map[uint32]bool)
	for i := range c.parents {
		if c.parents[i].key != mirror {
			continue
		}
		for _, port := range c.parents[i].ports {
			if !port.Opaque {
				out[port.Index] = true
			}
		}
	}
	return out
}
