package agent

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// oneMirror is a cluster with the mirror shop/bar-east and nothing else.
type oneMirror struct{}

var barEast = catalog.Key{Namespace: "shop", Name: "bar-east"}

func (oneMirror) Mirror(k catalog.Key) *gatewayroutes.Mirror {
	if k != barEast {
		return nil
	}
	return &gatewayroutes.Mirror{Ports: []gatewayroutes.Port{{Number: 80}}}
}

func (oneMirror) Exists(k catalog.Key) bool { return k == barEast }

// compileHTTPRoute compiles a route as the controller does, and then as an agent does what the
// controller sends. accepted means that the status of the route reports no problem.
func compileHTTPRoute(rules ...gatewayv1.HTTPRouteRule) (accepted bool, err error) {
	service := gatewayv1.Kind("Service")
	route := &gatewayv1.HTTPRoute{}
	route.Namespace, route.Name = "shop", "a"
	route.Spec.ParentRefs = []gatewayv1.ParentReference{{
		Group: new(gatewayv1.Group), Kind: &service, Name: "bar-east",
	}}
	route.Spec.Rules = rules
	index := gatewayroutes.NewIndex(oneMirror{})
	key := catalog.Key{Namespace: "shop", Name: "a"}
	index.SetHTTPRoute(key, route)
	index.Flush()
	status, _ := index.Status(gatewayroutes.ID{Kind: gatewayroutes.HTTPRoute, Key: key}, time.Time{})
	accepted = true
	for _, c := range status.Parents[0].Conditions {
		accepted = accepted && c.True == (c.Type != gatewayv1.RouteConditionPartiallyInvalid)
	}
	for _, rules := range index.Rules(barEast, 0) {
		if _, err := compileRoutes(rules); err != nil {
			return accepted, fmt.Errorf("the agent does not accept %v: %w", rules, err)
		}
	}
	return accepted, nil
}

// headerFilter changes request headers: NAME=VALUE sets a header, NAME removes one.
func headerFilter(change string) []gatewayv1.HTTPRouteFilter {
	out := &gatewayv1.HTTPHeaderFilter{}
	if name, value, set := strings.Cut(change, "="); set {
		out.Set = []gatewayv1.HTTPHeader{{Name: gatewayv1.HTTPHeaderName(name), Value: value}}
	} else {
		out.Remove = []string{name}
	}
	return []gatewayv1.HTTPRouteFilter{{Type: "RequestHeaderModifier", RequestHeaderModifier: out}}
}

// TestControllerRefusesWhatAgentsRefuse compiles routes that agents cannot use.
func TestControllerRefusesWhatAgentsRefuse(t *testing.T) {
	regex := gatewayv1.PathMatchRegularExpression
	redirect := gatewayv1.HTTPRouteFilter{
		Type:            "RequestRedirect",
		RequestRedirect: &gatewayv1.HTTPRequestRedirectFilter{},
	}
	backend := func(filters ...gatewayv1.HTTPRouteFilter) []gatewayv1.HTTPBackendRef {
		b := gatewayv1.HTTPBackendRef{Filters: filters}
		b.Name, b.Port = "bar-east", new(gatewayv1.PortNumber(80))
		return []gatewayv1.HTTPBackendRef{b}
	}
	for name, rule := range map[string]gatewayv1.HTTPRouteRule{
		"agents answer Expect": {Filters: headerFilter("Expect")},
		"HTTP2-Settings":       {Filters: headerFilter("HTTP2-Settings=x")},
		"underscores":          {Filters: headerFilter("transfer_encoding=chunked")},
		"claim of Causeway":    {Filters: headerFilter("causeway_client_id=x")},
		"space after a value":  {Filters: headerFilter("X-Team=a ")},
		"open quotation": {Matches: []gatewayv1.HTTPRouteMatch{{
			Path: &gatewayv1.HTTPPathMatch{Type: &regex, Value: new(`/\Qa`)},
		}}},
		"redirect of a backend": {BackendRefs: backend(redirect)},
	} {
		rule.BackendRefs = append(rule.BackendRefs, backend()...)
		if accepted, err := compileHTTPRoute(rule); accepted || err != nil {
			t.Errorf("%s: accepted is %t, %v", name, accepted, err)
		}
		ordinary := gatewayv1.HTTPRouteRule{BackendRefs: backend(headerFilter("X-A=b")...)}
		if _, err := compileHTTPRoute(rule, ordinary); err != nil {
			t.Errorf("%s, besides a rule that is valid: %v", name, err)
		}
	}
}

// FuzzRoutesOfController checks that agents compile all that the controller sends.
func FuzzRoutesOfController(f *testing.F) {
	f.Add("/a", "PathPrefix", "X-A=b", "X-B", "v[0-9]+", "a.example", "/x", 50)
	f.Add("/\\Qa", "RegularExpression", "Expect", "X-A= b", "\\Q", "", "/ ", 101)
	f.Add("/", "Exact", "a_b=c", "content_length", "a)|(b", "A", "", -1)
	f.Fuzz(func(t *testing.T, path, kind, rule, backend, value, host, replace string, percent int) {
		pathKind, headerKind := gatewayv1.PathMatchType(kind), gatewayv1.HeaderMatchType(kind)
		hostname := gatewayv1.PreciseHostname(host)
		b := gatewayv1.HTTPBackendRef{Filters: headerFilter(backend)}
		b.Name, b.Port = "bar-east", new(gatewayv1.PortNumber(80))
		b.Filters = append(b.Filters, gatewayv1.HTTPRouteFilter{
			Type: "URLRewrite",
			URLRewrite: &gatewayv1.HTTPURLRewriteFilter{Hostname: &hostname, Path: &gatewayv1.HTTPPathModifier{
				Type: "ReplacePrefixMatch", ReplacePrefixMatch: &replace,
			}},
		})
		matches := []gatewayv1.HTTPRouteMatch{{
			Path:    &gatewayv1.HTTPPathMatch{Type: &pathKind, Value: &path},
			Headers: []gatewayv1.HTTPHeaderMatch{{Type: &headerKind, Name: "x", Value: value}},
		}}
		redirect := gatewayv1.HTTPRouteFilter{
			Type: "RequestRedirect",
			RequestRedirect: &gatewayv1.HTTPRequestRedirectFilter{
				Hostname: &hostname, StatusCode: &percent, Path: &gatewayv1.HTTPPathModifier{
					Type: "ReplaceFullPath", ReplaceFullPath: &replace,
				}},
		}
		copies := gatewayv1.HTTPRouteFilter{
			Type: "RequestMirror",
			RequestMirror: &gatewayv1.HTTPRequestMirrorFilter{
				BackendRef: b.BackendObjectReference, Percent: new(int32(percent)),
			},
		}
		_, err := compileHTTPRoute(
			gatewayv1.HTTPRouteRule{
				Matches: matches, Filters: headerFilter(rule), BackendRefs: []gatewayv1.HTTPBackendRef{b},
			},
			gatewayv1.HTTPRouteRule{
				Matches: matches, Filters: append(headerFilter(backend), redirect, copies),
			},
			gatewayv1.HTTPRouteRule{BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: b.BackendRef}}},
		)
		if err != nil {
			t.Error(err)
		}
	})
}

// TestRoutesOfNewerController adds a field that this version does not know to each message of
// the rules. Requests get an error, since what the field says must not be left out.
func TestRoutesOfNewerController(t *testing.T) {
	path := &wire.PathModifier{Modifier: &wire.PathModifier_Full{Full: "/a"}}
	field := &wire.HeaderField{Name: "X-A", Value: "b"}
	filters := []*wire.RouteFilter{
		{Filter: &wire.RouteFilter_RequestHeaders{RequestHeaders: &wire.HeaderModifier{Set: []*wire.HeaderField{field}}}},
		{Filter: &wire.RouteFilter_Rewrite{Rewrite: &wire.URLRewrite{Path: path}}},
		{Filter: &wire.RouteFilter_Mirror{Mirror: &wire.RequestMirror{Name: "a", Numerator: 1, Denominator: 1}}},
	}
	redirect := &wire.RouteFilter{Filter: &wire.RouteFilter_Redirect{Redirect: &wire.RequestRedirect{Status: 302}}}
	value := &wire.ValueMatch{Name: "x-a", Match: &wire.ValueMatch_Exact{Exact: "b"}}
	backend := &wire.RouteBackend{Name: "a", Weight: 1, Filters: filters}
	newRules := func() *wire.RouteRules {
		return proto.CloneOf(&wire.RouteRules{
			Matches: []*wire.RouteMatch{{
				Path:    &wire.RouteMatch_PathPrefix{PathPrefix: "/a"},
				Headers: []*wire.ValueMatch{value},
			}, {Rule: 1}},
			Rules: []*wire.RouteRule{
				{Filters: filters, Backends: []*wire.RouteBackend{backend}, Retry: &wire.RouteRetry{}},
				{Filters: []*wire.RouteFilter{redirect}},
			},
		})
	}
	heads := []*message.Head{
		{Version: message.HTTP2, Method: "GET", Target: "/a", Fields: []message.Field{{Name: "x-a", Value: "b"}}},
		{Version: message.HTTP2, Method: "GET", Target: "/b"},
	}
	// failures returns how many of the requests get an error.
	failures := func(w *wire.RouteRules) (n int) {
		rules, _ := compileRoutes(w)
		for _, h := range heads {
			if _, err := rules.Match(h); err == reqroute.ErrNoBackend {
				n++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	if n := failures(newRules()); n != 0 {
		t.Fatalf("without an unknown field %d requests fail", n)
	}
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 9000, protowire.VarintType), 1)
	for what, in := range map[string]func(w *wire.RouteRules) proto.Message{
		"rules":           func(w *wire.RouteRules) proto.Message { return w },
		"match":           func(w *wire.RouteRules) proto.Message { return w.Matches[0] },
		"condition":       func(w *wire.RouteRules) proto.Message { return w.Matches[0].Headers[0] },
		"rule":            func(w *wire.RouteRules) proto.Message { return w.Rules[0] },
		"retry":           func(w *wire.RouteRules) proto.Message { return w.Rules[0].Retry },
		"filter":          func(w *wire.RouteRules) proto.Message { return w.Rules[0].Filters[0] },
		"header modifier": func(w *wire.RouteRules) proto.Message { return w.Rules[0].Filters[0].GetRequestHeaders() },
		"header": func(w *wire.RouteRules) proto.Message {
			return w.Rules[0].Filters[0].GetRequestHeaders().Set[0]
		},
		"rewrite":           func(w *wire.RouteRules) proto.Message { return w.Rules[0].Filters[1].GetRewrite() },
		"path":              func(w *wire.RouteRules) proto.Message { return w.Rules[0].Filters[1].GetRewrite().Path },
		"copy":              func(w *wire.RouteRules) proto.Message { return w.Rules[0].Filters[2].GetMirror() },
		"backend":           func(w *wire.RouteRules) proto.Message { return w.Rules[0].Backends[0] },
		"filter of backend": func(w *wire.RouteRules) proto.Message { return w.Rules[0].Backends[0].Filters[1] },
		"redirect":          func(w *wire.RouteRules) proto.Message { return w.Rules[1].Filters[0].GetRedirect() },
	} {
		w := newRules()
		in(w).ProtoReflect().SetUnknown(unknown)
		if n := failures(w); n == 0 {
			t.Errorf("%s: no request fails", what)
		}
	}
}

// TestBadRoutesAreNamedOnce makes states with a route that is not valid. The controller's
// state is consistent, and only the first state names the route.
func TestBadRoutesAreNamedOnce(t *testing.T) {
	view := maps.Clone(largeView(t))
	for key, r := range view {
		if r.GetFrontend().GetName() == "bar-0-link-0" {
			bad := proto.CloneOf(r)
			bad.GetFrontend().Ports[0].Routes = []*wire.RouteRules{{
				Matches: []*wire.RouteMatch{{Path: &wire.RouteMatch_PathRegex{PathRegex: "("}}},
				Rules:   []*wire.RouteRule{{}},
			}}
			view[key] = bad
		}
	}
	first, err := newState(view, noneRevoked, nil)
	if err != nil || len(first.badRoutes) != 1 || !strings.Contains(first.badRoutes[0].Error(), "bar-0-link-0") {
		t.Errorf("got %v, %v", first.badRoutes, err)
	}
	second, err := newState(view, noneRevoked, first)
	if err != nil || len(second.badRoutes) > 0 {
		t.Errorf("a second time: got %v, %v", second.badRoutes, err)
	}
}
