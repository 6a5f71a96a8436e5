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

// attach merges the routes that are attached to a mirror, and reports whether a port has
// other rules now.
func (x *Index) attach(mirror catalog.Key) (changed bool) {
	groups := make(map[audience][]*route)
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
			groups[a] = append(groups[a], r)
		}
	}
	before := x.attached[mirror]
	if len(groups) == 0 {
		delete(x.attached, mirror)
		return before != nil && len(before.rules) > 0
	}
	next := &attachments{
		rules:   make(map[uint32][]*wire.RouteRules),
		refused: make(map[slot]gatewayv1.RouteConditionReason),
	}
	size, mirrorCost := 0, 0
	for _, a := range slices.SortedFunc(maps.Keys(groups), compareAudiences) {
		routes := next.resolveConflicts(a, groups[a])
		rules := &wire.RouteRules{CallerNamespace: a.namespace}
		var matches []match
		portCost := 0
		for _, r := range routes {
			full := len(next.rules[a.port]) == maxAudiences ||
				len(matches)+len(r.compiled.matches) > maxMatches ||
				len(rules.Rules)+len(r.compiled.rules) > maxRules
			bytes, cost := r.compiled.size(), r.compiled.regexCost()
			full = full || portCost+cost > reqroute.MaxRegexCost || mirrorCost+cost > maxMirrorRegexCost
			if full || proto.Size(rules)+bytes > maxBytes || size+bytes > maxMirrorBytes {
				next.refused[slot{r.id, a.port}] = ReasonLimitExceeded
				continue
			}
			size, portCost, mirrorCost = size+bytes, portCost+cost, mirrorCost+cost
			offset := uint32(len(rules.Rules))
			rules.Rules = append(rules.Rules, r.compiled.rules...)
			for _, m := range r.compiled.matches {
				m.wire = proto.CloneOf(m.wire)
				m.wire.Rule += offset
				matches = append(matches, m)
			}
			// They count in the size before they are sorted.
			rules.Matches = append(rules.Matches, wires(matches[len(matches)-len(r.compiled.matches):])...)
		}
		if refusedAll(next, routes, a.port) {
			continue
		}
		slices.SortStableFunc(matches, match.compare)
		rules.Matches = wires(matches)
		next.rules[a.port] = append(next.rules[a.port], rules)
	}
	x.attached[mirror] = next
	return before == nil && len(next.rules) > 0 || before != nil && !sameRules(before.rules, next.rules)
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

func refusedAll(a *attachments, routes []*route, port uint32) bool {
	return !slices.ContainsFunc(routes, func(r *route) bool { return a.refused[slot{r.id, port}] == "" })
}

// resolveConflicts returns the routes of the kind that has precedence, the oldest first.
// The API does not allow a port to have routes of two kinds.
func (a *attachments) resolveConflicts(at audience, routes []*route) []*route {
	grpc := slices.ContainsFunc(routes, func(r *route) bool { return r.id.Kind == GRPCRoute })
	var out []*route
	for _, r := range routes {
		if grpc && r.id.Kind != GRPCRoute {
			a.refused[slot{r.id, at.port}] = ReasonConflicted
			continue
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *route) int {
		created := a.spec.meta.CreationTimestamp.Time.Compare(b.spec.meta.CreationTimestamp.Time)
		return cmp.Or(created, a.id.Compare(b.id))
	})
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

// size is the encoded size of a route's rules and matches.
func (c *compiled) size() int {
	return proto.Size(&wire.RouteRules{Rules: c.rules, Matches: wires(c.matches)})
}

// regexCost is the cost of the regular expressions of a route.
func (c *compiled) regexCost() int {
	sum := 0
	for i := range c.matches {
		sum += c.matches[i].regexCost
	}
	return sum
}
