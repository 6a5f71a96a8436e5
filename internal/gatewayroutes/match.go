package gatewayroutes

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// match is a match with its precedence.
type match struct {
	wire *wire.RouteMatch
	// precedence has the criteria of the API in their order. Greater numbers come first.
	precedence [5]int
	// regexCost is that of all regular expressions of the match.
	regexCost int
}

// compare orders matches by precedence. Matches that are equal keep their order.
func (m match) compare(o match) int {
	for i := range m.precedence {
		if c := cmp.Compare(o.precedence[i], m.precedence[i]); c != 0 {
			return c
		}
	}
	return 0
}

// Forms of a path condition, in the order of their precedence. The API leaves open where
// regular expressions come.
const (
	anyForm = iota
	prefixForm
	regexForm
	exactForm
)

// httpMatch converts a match of an HTTPRoute.
func httpMatch(m *gatewayv1.HTTPRouteMatch) (match, error) {
	out := match{wire: &wire.RouteMatch{Method: string(deref(m.Method))}}
	path, kind := "/", gatewayv1.PathMatchPathPrefix
	if m.Path != nil && m.Path.Value != nil {
		path = *m.Path.Value
	}
	if m.Path != nil && m.Path.Type != nil {
		kind = *m.Path.Type
	}
	form, err := out.setPath(kind, path)
	if err != nil {
		return match{}, err
	}
	headers := make([]condition, len(m.Headers))
	for i, h := range m.Headers {
		headers[i] = condition{strings.ToLower(string(h.Name)), string(deref(h.Type)), h.Value}
	}
	if out.wire.Headers, err = out.values("header", headers); err != nil {
		return match{}, err
	}
	queries := make([]condition, len(m.QueryParams))
	for i, q := range m.QueryParams {
		queries[i] = condition{string(q.Name), string(deref(q.Type)), q.Value}
	}
	if out.wire.QueryParams, err = out.values("query parameter", queries); err != nil {
		return match{}, err
	}
	out.precedence = [5]int{
		form,
		len(path),
		min(len(out.wire.Method), 1),
		len(out.wire.Headers),
		len(out.wire.QueryParams),
	}
	return out, nil
}

// setPath sets the path condition of m, and returns its form.
func (m *match) setPath(kind gatewayv1.PathMatchType, path string) (int, error) {
	switch kind {
	case gatewayv1.PathMatchRegularExpression:
		cost, err := reqroute.RegexCost(path)
		if err != nil {
			return 0, fmt.Errorf("path %q: %w", path, err)
		}
		m.regexCost += cost
		m.wire.Path = &wire.RouteMatch_PathRegex{PathRegex: path}
		return regexForm, nil
	case gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix:
	default:
		return 0, fmt.Errorf("path match type %q is not supported", kind)
	}
	if err := checkPath(path); err != nil {
		return 0, fmt.Errorf("path %q: %w", path, err)
	}
	normal, err := message.NormalizePath(path)
	if err != nil {
		return 0, fmt.Errorf("path %q: %w", path, err)
	}
	if kind == gatewayv1.PathMatchExact {
		m.wire.Path = &wire.RouteMatch_PathExact{PathExact: normal}
		return exactForm, nil
	}
	m.wire.Path = &wire.RouteMatch_PathPrefix{PathPrefix: strings.TrimRight(normal, "/")}
	return prefixForm, nil
}

// condition is a condition on a header or on a query parameter.
type condition struct{ name, kind, value string }

// values converts conditions of m. Of several conditions on one name the first counts, as
// the API demands.
func (m *match) values(what string, all []condition) ([]*wire.ValueMatch, error) {
	var out []*wire.ValueMatch
	seen := make(map[string]bool, len(all))
	for _, c := range all {
		if seen[c.name] {
			continue
		}
		seen[c.name] = true
		v := &wire.ValueMatch{Name: c.name}
		switch c.kind {
		case "", string(gatewayv1.HeaderMatchExact): // each kind of condition has the same names
			v.Match = &wire.ValueMatch_Exact{Exact: c.value}
		case string(gatewayv1.HeaderMatchRegularExpression):
			cost, err := reqroute.RegexCost(c.value)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", what, c.name, err)
			}
			m.regexCost += cost
			v.Match = &wire.ValueMatch_Regex{Regex: c.value}
		default:
			return nil, fmt.Errorf("%s %s: match type %q is not supported", what, c.name, c.kind)
		}
		out = append(out, v)
	}
	return out, nil
}

// grpcMatch converts a match of a GRPCRoute. The path of a gRPC request is
// /SERVICE/METHOD.
func grpcMatch(m *gatewayv1.GRPCRouteMatch) (match, error) {
	out := match{wire: &wire.RouteMatch{Grpc: true}}
	form := anyForm
	if m.Method != nil {
		var err error
		if form, err = out.setMethod(m.Method); err != nil {
			return match{}, err
		}
		out.precedence[1], out.precedence[2] = len(deref(m.Method.Service)), len(deref(m.Method.Method))
	}
	headers := make([]condition, len(m.Headers))
	for i, h := range m.Headers {
		headers[i] = condition{strings.ToLower(string(h.Name)), string(deref(h.Type)), h.Value}
	}
	var err error
	if out.wire.Headers, err = out.values("header", headers); err != nil {
		return match{}, err
	}
	out.precedence[0], out.precedence[3] = form, len(out.wire.Headers)
	return out, nil
}

// setMethod sets the path condition of m, and returns its form.
func (m *match) setMethod(method *gatewayv1.GRPCMethodMatch) (int, error) {
	service, name := deref(method.Service), deref(method.Method)
	if service == "" && name == "" {
		return anyForm, nil
	}
	const anything = "[^/]+"
	switch kind := deref(method.Type); kind {
	case "", gatewayv1.GRPCMethodMatchExact:
		for _, part := range []string{service, name} {
			if strings.Contains(part, "/") {
				return 0, fmt.Errorf("method match %q: a name of gRPC has no slash", part)
			}
		}
		switch {
		case name == "":
			_, err := m.setPath(gatewayv1.PathMatchPathPrefix, "/"+service)
			return exactForm, err
		case service == "":
			_, err := m.setPath(gatewayv1.PathMatchRegularExpression,
				"/"+anything+"/"+regexp.QuoteMeta(name))
			return exactForm, err
		}
		_, err := m.setPath(gatewayv1.PathMatchExact, "/"+service+"/"+name)
		return exactForm, err
	case gatewayv1.GRPCMethodMatchRegularExpression:
		for _, part := range []string{service, name} { // together they could close a group early
			if _, err := reqroute.RegexCost(part); err != nil {
				return 0, fmt.Errorf("method match %q: %w", part, err)
			}
		}
		_, err := m.setPath(gatewayv1.PathMatchRegularExpression,
			"/(?:"+cmp.Or(service, anything)+")/(?:"+cmp.Or(name, anything)+")")
		return regexForm, err
	default:
		return 0, fmt.Errorf("method match type %q is not supported", kind)
	}
}
