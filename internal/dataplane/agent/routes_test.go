package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
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
