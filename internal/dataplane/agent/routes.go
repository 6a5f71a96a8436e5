package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// portRoutes are the rules for the requests to a port, by the namespace of their caller.
// Those of "" are for callers of namespaces that have none.
type portRoutes map[string]*reqroute.Rules

// addRoutes compiles the routes of a frontend's ports. What is not valid stays there, as a
// rule whose requests get an error, and the error names it.
func (m *mirror) addRoutes(f *wire.Frontend) error {
	var errs []error
	for _, p := range f.Ports {
		port, ok := m.ports[int(p.Index)]
		if !ok || len(p.Routes)+len(p.UnreadRouteKinds) == 0 {
			continue
		}
		byNamespace := make(portRoutes, len(p.Routes))
		for _, routes := range p.Routes {
			rules, err := compileRoutes(routes)
			if err != nil {
				errs = append(errs, fmt.Errorf("frontend %s, port %d: routes: %w", m.name, p.Index, err))
			}
			if nodestream.RoutesUnread(p) {
				rules = rules.WithUnread()
			}
			byNamespace[routes.CallerNamespace] = rules
			m.addTargets(routes)
		}
		if byNamespace[""] == nil && nodestream.RoutesUnread(p) {
			byNamespace[""] = reqroute.Unread() // routes may exist, so no request may bypass them
		}
		port.routes = &byNamespace
		m.ports[int(p.Index)] = port
	}
	return errors.Join(errs...)
}

// addTargets adds the mirrors that get requests by rules to routedTo.
func (m *mirror) addTargets(routes *wire.RouteRules) {
	for _, rule := range routes.Rules {
		for _, b := range rule.Backends {
			to := mirrorRef{b.Namespace, b.Name}
			if b.Weight > 0 && !slices.Contains(m.routedTo, to) {
				m.routedTo = append(m.routedTo, to)
			}
		}
	}
}

// routesFor returns the rules for requests of callers of a namespace, or nil.
func (p mirrorPort) routesFor(namespace string) *reqroute.Rules {
	if p.routes == nil {
		return nil
	}
	if rules, ok := (*p.routes)[namespace]; ok {
		return rules
	}
	return (*p.routes)[""]
}

// routesFor returns the rules for the requests of a connection in s, or nil.
func (s *state) routesFor(c *outboundConn) *reqroute.Rules {
	m := s.mirrors[c.vip]
	if m == nil {
		return nil
	}
	return m.ports[c.index].routesFor(c.caller.namespace)
}

// frontend returns the mirror of a Service of this cluster, and one of its virtual IPs.
// ok is false if it is not served.
func (s *state) frontend(namespace, name string) (m *mirror, vip netip.Addr, ok bool) {
	parsed := s.parsed.frontends[s.view[nodestream.FrontendKey(namespace, name)]]
	if parsed == nil || parsed.err != nil || len(parsed.vips) == 0 || s.mirrors[parsed.vips[0]] != parsed.mirror {
		return nil, netip.Addr{}, false
	}
	return parsed.mirror, parsed.vips[0], true
}

// checkUnrouted returns why the caller may make no connection to the peer. It returns nil
// if the port has routes for the caller, whose requests may go to other peers; then the
// check follows for each request, and for a connection that is opaque.
func (c *outboundConn) checkUnrouted() error {
	if c.port.routesFor(c.caller.namespace) != nil {
		return nil
	}
	return c.peer.checkNamespace(c.caller.namespace)
}

func compileRoutes(w *wire.RouteRules) (*reqroute.Rules, error) {
	matches := make([]reqroute.Match, 0, len(w.Matches))
	newer := len(w.ProtoReflect().GetUnknown()) > 0 // each match and rule tells for itself
	for _, m := range w.Matches {
		match := routeMatchOf(m)
		match.Unknown = match.Unknown || newer
		matches = append(matches, match)
	}
	rules := make([]reqroute.Rule, 0, len(w.Rules))
	for _, r := range w.Rules {
		rules = append(rules, routeRuleOf(r))
	}
	return reqroute.Compile(matches, rules)
}

// isFromNewer reports that a message, or one in it, has fields that this version does not
// know.
func isFromNewer(m proto.Message) bool {
	newer := false
	err := protorange.Range(m.ProtoReflect(), func(at protopath.Values) error {
		if in, ok := at.Index(-1).Value.Interface().(protoreflect.Message); ok && len(in.GetUnknown()) > 0 {
			newer = true
			return protorange.Terminate
		}
		return nil
	})
	return newer || err != nil
}

func routeMatchOf(w *wire.RouteMatch) reqroute.Match {
	m := reqroute.Match{Rule: int(w.Rule), Method: w.Method, GRPC: w.Grpc, Unknown: isFromNewer(w)}
	switch path := w.Path.(type) {
	case *wire.RouteMatch_PathExact:
		m.PathKind, m.Path = reqroute.ExactPath, path.PathExact
	case *wire.RouteMatch_PathPrefix:
		m.PathKind, m.Path = reqroute.PathPrefix, path.PathPrefix
	case *wire.RouteMatch_PathRegex:
		m.PathKind, m.Path = reqroute.PathRegex, path.PathRegex
	}
	values := func(list []*wire.ValueMatch) (out []reqroute.ValueMatch) {
		for _, w := range list {
			v := reqroute.ValueMatch{Name: w.Name}
			switch match := w.Match.(type) {
			case *wire.ValueMatch_Exact:
				v.Value = match.Exact
			case *wire.ValueMatch_Regex:
				v.Value, v.Regex = match.Regex, true
			default:
				m.Unknown = true
			}
			out = append(out, v)
		}
		return out
	}
	m.Headers, m.Query = values(w.Headers), values(w.QueryParams)
	return m
}

func routeRuleOf(w *wire.RouteRule) reqroute.Rule {
	r := reqroute.Rule{
		Name:           w.Route,
		Filters:        routeFiltersOf(w.Filters),
		Timeout:        millisecondsOf(w.TimeoutMs),
		BackendTimeout: millisecondsOf(w.PerTryTimeoutMs),
	}
	r.Filters.Unknown = r.Filters.Unknown || isFromNewer(w)
	for _, b := range w.Backends {
		r.Backends = append(r.Backends, reqroute.Backend{
			Ref:     reqroute.Ref{Namespace: b.Namespace, Name: b.Name, Index: int(b.PortIndex)},
			Weight:  b.Weight,
			Filters: routeFiltersOf(b.Filters),
		})
	}
	if w.Retry != nil {
		r.Retry = &reqroute.Retry{Backoff: time.Duration(w.Retry.BackoffMs) * time.Millisecond}
		if w.Retry.Attempts != nil {
			r.Retry.Attempts = new(int(min(*w.Retry.Attempts, maxRouteRetries)))
		}
		for _, code := range w.Retry.Codes {
			r.Retry.Codes = append(r.Retry.Codes, int(code))
		}
	}
	return r
}

// maxRouteRetries bounds the retries that a route asks for.
const maxRouteRetries = 10

func millisecondsOf(ms *uint32) *time.Duration {
	if ms == nil {
		return nil
	}
	return new(time.Duration(*ms) * time.Millisecond)
}

func routeFiltersOf(list []*wire.RouteFilter) (f reqroute.Filters) {
	for _, w := range list {
		switch filter := w.Filter.(type) {
		case *wire.RouteFilter_RequestHeaders:
			f.Request = append(f.Request, fieldChangesOf(filter.RequestHeaders))
		case *wire.RouteFilter_ResponseHeaders:
			f.Response = append(f.Response, fieldChangesOf(filter.ResponseHeaders))
		case *wire.RouteFilter_Redirect:
			r := filter.Redirect
			f.Redirect = &reqroute.Redirect{
				Scheme:   r.Scheme,
				Hostname: r.Hostname,
				Port:     uint16(min(r.Port, 1<<16-1)),
				Path:     pathChangeOf(r.Path),
				Status:   int(r.Status),
			}
		case *wire.RouteFilter_Rewrite:
			f.Rewrite = &reqroute.Rewrite{Hostname: filter.Rewrite.Hostname, Path: pathChangeOf(filter.Rewrite.Path)}
		case *wire.RouteFilter_Mirror:
			m := filter.Mirror
			f.Mirrors = append(f.Mirrors, reqroute.Mirror{
				To:          reqroute.Ref{Namespace: m.Namespace, Name: m.Name, Index: int(m.PortIndex)},
				Numerator:   m.Numerator,
				Denominator: m.Denominator,
			})
		default:
			f.Unknown = true
		}
	}
	return f
}

func fieldChangesOf(w *wire.HeaderModifier) (c reqroute.FieldChanges) {
	fields := func(list []*wire.HeaderField) (out []message.Field) {
		for _, f := range list {
			out = append(out, message.Field{Name: f.Name, Value: f.Value})
		}
		return out
	}
	return reqroute.FieldChanges{Set: fields(w.GetSet()), Add: fields(w.GetAdd()), Remove: w.GetRemove()}
}

func pathChangeOf(w *wire.PathModifier) reqroute.PathChange {
	switch modifier := w.GetModifier().(type) {
	case *wire.PathModifier_Full:
		return reqroute.PathChange{Kind: reqroute.ReplacePath, Value: modifier.Full}
	case *wire.PathModifier_Prefix:
		return reqroute.PathChange{Kind: reqroute.ReplacePrefix, Value: modifier.Prefix}
	}
	return reqroute.PathChange{}
}
