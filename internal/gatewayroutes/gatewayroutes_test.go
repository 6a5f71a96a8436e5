package gatewayroutes

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// fakeServices are mirrors, and Services that are none.
type fakeServices struct {
	mirrors map[string]*Mirror
	own     map[string]bool
}

func (f *fakeServices) Mirror(k catalog.Key) *Mirror { return f.mirrors[k.String()] }

func (f *fakeServices) Exists(k catalog.Key) bool { return f.own[k.String()] }

func newServices() *fakeServices {
	http := Port{Index: 0, Number: 80, Name: "http"}
	return &fakeServices{
		mirrors: map[string]*Mirror{
			"shop/bar-east": {Ports: []Port{
				http,
				{Index: 3, Number: 9090, Name: "admin"},
				{Index: 4, Number: 6379, Name: "redis", Opaque: true},
			}},
			"shop/bar-west":  {Ports: []Port{http}},
			"shop/head-east": {Headless: true, Ports: []Port{http}},
			"bank/pay-east":  {Ports: []Port{http}},
		},
		own: map[string]bool{"shop/local": true},
	}
}

// build returns an Index that has decided about objects in YAML, which are separated by
// lines of three dashes.
func build(t testing.TB, services Services, objects string) *Index {
	t.Helper()
	x := NewIndex(services)
	apply(t, x, objects)
	x.Flush()
	return x
}

func apply(t testing.TB, x *Index, objects string) {
	t.Helper()
	for _, text := range strings.Split(objects, "\n---\n") {
		if strings.TrimSpace(text) == "" {
			continue
		}
		var head struct {
			metav1.TypeMeta
			Metadata metav1.ObjectMeta
		}
		parse(t, text, &head)
		k := catalog.Key{Namespace: head.Metadata.Namespace, Name: head.Metadata.Name}
		switch head.Kind {
		case "HTTPRoute":
			o := &gatewayv1.HTTPRoute{}
			parse(t, text, o)
			x.SetHTTPRoute(k, o)
		case "GRPCRoute":
			o := &gatewayv1.GRPCRoute{}
			parse(t, text, o)
			x.SetGRPCRoute(k, o)
		case "ReferenceGrant":
			o := &gatewayv1.ReferenceGrant{}
			parse(t, text, o)
			x.SetReferenceGrant(k, o)
		default:
			t.Fatalf("kind %q", head.Kind)
		}
	}
}

func parse(t testing.TB, text string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}

// toBar returns a route of namespace shop whose parent is the mirror bar-east.
func toBar(kind, name, spec string) string {
	return routeOf(kind, "shop", name, "{name: bar-east}", spec)
}

func routeOf(kind, namespace, name, parent, spec string) string {
	parent = strings.ReplaceAll(parent, "{", `{group: "", kind: Service, `)
	return fmt.Sprintf("kind: %s\nmetadata: {namespace: %s, name: %s, generation: 7, uid: u}\n"+
		"spec:\n  parentRefs: [%s]\n%s", kind, namespace, name, parent, spec)
}

// show returns the rules of a port, a line for each match.
func show(x *Index, mirror string, port uint32) []string {
	namespace, name, _ := strings.Cut(mirror, "/")
	var out []string
	for _, all := range x.Rules(catalog.Key{Namespace: namespace, Name: name}, port) {
		if all.CallerNamespace != "" {
			out = append(out, "callers of "+all.CallerNamespace)
		}
		for _, m := range all.Matches {
			out = append(out, showMatch(m)+" => "+showRule(all.Rules[m.Rule]))
		}
	}
	return out
}

func showMatch(m *wire.RouteMatch) string {
	var out []string
	switch p := m.Path.(type) {
	case *wire.RouteMatch_PathExact:
		out = append(out, "= "+p.PathExact)
	case *wire.RouteMatch_PathPrefix:
		out = append(out, "^ "+p.PathPrefix)
	case *wire.RouteMatch_PathRegex:
		out = append(out, "~ "+p.PathRegex)
	}
	if m.Method != "" {
		out = append(out, m.Method)
	}
	for what, all := range map[string][]*wire.ValueMatch{"header": m.Headers, "query": m.QueryParams} {
		for _, v := range all {
			if v.GetRegex() != "" {
				out = append(out, what+" "+v.Name+"~"+v.GetRegex())
			} else {
				out = append(out, what+" "+v.Name+"="+v.GetExact())
			}
		}
	}
	if m.Grpc {
		out = append(out, "grpc")
	}
	return strings.Join(out, " ")
}

func showRule(r *wire.RouteRule) string {
	var out []string
	for _, f := range r.Filters {
		out = append(out, fmt.Sprint(f))
	}
	if r.TimeoutMs != nil {
		out = append(out, fmt.Sprint("timeout ", r.GetTimeoutMs()))
	}
	if r.PerTryTimeoutMs != nil {
		out = append(out, fmt.Sprint("try ", r.GetPerTryTimeoutMs()))
	}
	if r.Retry != nil {
		out = append(out, fmt.Sprint("retry ", r.Retry))
	}
	for _, b := range r.Backends {
		to := "500"
		if b.Name != "" {
			to = fmt.Sprintf("%s/%s:%d", b.Namespace, b.Name, b.PortIndex)
		}
		out = append(out, fmt.Sprintf("%d*%s", b.Weight, to))
		for _, f := range b.Filters {
			out = append(out, "with "+fmt.Sprint(f))
		}
	}
	if len(out) == 0 {
		return "500"
	}
	return normal(strings.Join(out, " "))
}

// normal removes the spaces that the text form of messages varies on purpose.
func normal(s string) string { return strings.ReplaceAll(s, "  ", " ") }

// conditions returns the wanted conditions of a route, as TYPE=STATUS REASON: MESSAGE.
func conditions(x *Index, id ID) []string {
	s, _ := x.Status(id, time.Time{})
	var out []string
	for _, p := range s.Parents {
		for _, c := range p.Conditions {
			out = append(out, fmt.Sprintf("%s=%t %s: %s", c.Type, c.True, c.Reason, c.Message))
		}
	}
	return out
}

const toWest = "  rules:\n  - backendRefs: [{name: bar-west, port: 80}]\n"

func TestRules(t *testing.T) {
	cases := map[string]struct {
		why     string
		objects []string
		port    uint32
		want    []string
	}{
		"no matches": {
			why:     "a rule without matches fits every request",
			objects: []string{toBar("HTTPRoute", "a", toWest)},
			want:    []string{"^  => 1*shop/bar-west:0"},
		},
		"every port": {
			why:     "a parentRef without a port names all ports",
			objects: []string{toBar("HTTPRoute", "a", toWest)},
			port:    3,
			want:    []string{"^  => 1*shop/bar-west:0"},
		},
		"another port": {
			why:     "a parentRef can name a port",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 9090}", toWest)},
		},
		"section": {
			why: "a sectionName is the name of a Service port",
			objects: []string{
				routeOf("HTTPRoute", "shop", "a", "{name: bar-east, sectionName: admin, port: 9090}", toWest),
			},
			port: 3,
			want: []string{"^  => 1*shop/bar-west:0"},
		},
		"opaque port": {
			why:     "agents see no requests there",
			objects: []string{toBar("HTTPRoute", "a", toWest)},
			port:    4,
		},
		"precedence": {
			why: "the criteria of the API decide, and not the order of the rules",
			objects: []string{toBar("HTTPRoute", "a", `  rules:
  - matches:
    - path: {value: /}
    - path: {value: /long/prefix/}
    - path: {value: /long, type: PathPrefix}
    - path: {value: "/[a-z]+", type: RegularExpression}
    - path: {value: /e, type: Exact}
    - method: GET
    - headers: [{name: B, value: "1"}, {name: b, value: "2"}, {name: A, value: x.*, type: RegularExpression}]
    - queryParams: [{name: q, value: "1"}]
    - headers: [{name: c, value: "1"}]
    backendRefs: [{name: bar-west, port: 80}]
`)},
			want: []string{
				"= /e => 1*shop/bar-west:0",
				"~ /[a-z]+ => 1*shop/bar-west:0",
				"^ /long/prefix => 1*shop/bar-west:0",
				"^ /long => 1*shop/bar-west:0",
				"^  GET => 1*shop/bar-west:0",
				"^  header b=1 header a~x.* => 1*shop/bar-west:0",
				"^  header c=1 => 1*shop/bar-west:0",
				"^  query q=1 => 1*shop/bar-west:0",
				"^  => 1*shop/bar-west:0",
			},
		},
		"older route": {
			why: "of equal matches the oldest route's comes first, then that of the first name",
			objects: []string{
				strings.Replace(toBar("HTTPRoute", "b", toWest), "uid: u",
					"creationTimestamp: 2026-01-01T00:00:00Z", 1),
				strings.Replace(toBar("HTTPRoute", "z", "  rules: [{backendRefs: [{name: bar-east, "+
					"port: 80}]}]"),
					"uid: u", "creationTimestamp: 2025-01-01T00:00:00Z", 1),
				strings.Replace(toBar("HTTPRoute", "a", "  rules: [{}]"), "uid: u",
					"creationTimestamp: 2026-01-01T00:00:00Z", 1),
			},
			want: []string{"^  => 1*shop/bar-east:0", "^  => 500", "^  => 1*shop/bar-west:0"},
		},
		"path is normalized": {
			why: "agents compare normal paths",
			objects: []string{toBar("HTTPRoute", "a",
				"  rules: [{matches: [{path: {value: /%61/%2a, type: Exact}}]}]")},
			want: []string{"= /a/%2A => 500"},
		},
		"weights and invalid backends": {
			why: "an invalid backend keeps its share",
			objects: []string{toBar("HTTPRoute", "a", `  rules:
  - backendRefs:
    - {name: bar-west, port: 80, weight: 3}
    - {name: bar-east, port: 80, weight: 0}
    - {name: gone, port: 80, weight: 2}
    - {name: local, port: 80}
    - {name: bar-west, port: 81}
    - {name: bar-east, port: 6379}
    - {name: bar-west, kind: Bucket, group: s3.example, port: 80}
    - {name: pay-east, namespace: bank, port: 80}
`)},
			want: []string{"^  => 3*shop/bar-west:0 0*shop/bar-east:0 2*500 1*500 1*500 1*500 1*500 1*500"},
		},
		"granted": {
			why: "a ReferenceGrant admits backends of another namespace",
			objects: []string{
				toBar("HTTPRoute", "a", "  rules: [{backendRefs: [{name: pay-east, namespace: bank, "+
					"port: 80}]}]"),
				`kind: ReferenceGrant
metadata: {namespace: bank, name: g}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: "", kind: Service, name: pay-east}]`,
			},
			want: []string{"^  => 1*bank/pay-east:0"},
		},
		"granted to others": {
			why: "each part of a grant counts",
			objects: []string{
				toBar("HTTPRoute", "a", "  rules: [{backendRefs: [{name: pay-east, namespace: bank, "+
					"port: 80}]}]"),
				`kind: ReferenceGrant
metadata: {namespace: bank, name: g}
spec:
  from: [{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: shop}]
  to: [{group: "", kind: Service}]`,
				`kind: ReferenceGrant
metadata: {namespace: bank, name: h}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: "", kind: Service, name: other}, {group: "", kind: Secret}]`,
			},
			want: []string{"^  => 1*500"},
		},
		"consumer": {
			why: "a route of another namespace is for that namespace, and needs no grant for its own parent",
			objects: []string{
				toBar("HTTPRoute", "a", toWest),
				routeOf("HTTPRoute", "bank", "b", "{name: bar-east, namespace: shop}",
					"  rules: [{backendRefs: [{name: bar-east, namespace: shop, port: 80}]}]"),
			},
			want: []string{
				"^  => 1*shop/bar-west:0",
				"callers of bank",
				"^  => 1*shop/bar-east:0",
			},
		},
		"parent as a grant": {
			why: "a route must not send other namespaces' callers to a namespace without a grant",
			objects: []string{routeOf("HTTPRoute", "shop", "a",
				"{name: bar-east}, {name: pay-east, namespace: bank}",
				"  rules: [{backendRefs: [{name: pay-east, namespace: bank, port: 80}]}]")},
			want: []string{"^  => 1*500"},
		},
		"another kind of parent": {
			why: "a Gateway belongs to another controller",
			objects: []string{
				strings.Replace(toBar("HTTPRoute", "a", toWest), "kind: Service", "kind: Gateway", 1),
			},
		},
		"filters, timeouts and retries": {
			why: "they cross as they are",
			objects: []string{toBar("HTTPRoute", "a", `  rules:
  - matches: [{path: {value: /a}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: X, value: v}], add: [{name: Z, value: z}], remove: [W]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {remove: [V]}
    - {type: URLRewrite, urlRewrite: {hostname: e.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b/}}}
    - {type: RequestMirror, requestMirror: {percent: 5, backendRef: {name: bar-east, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}
    timeouts: {request: 1500us, backendRequest: 0s}
    retry: {attempts: 2, codes: [503], backoff: 10ms}
    backendRefs:
    - name: bar-west
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [U]}}]
  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301}}]
  - filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /c}}}]
`)},
			want: []string{
				`^ /a => request_headers:{set:{name:"X" value:"v"} add:{name:"Z" value:"z"} remove:"W"} ` +
					`response_headers:{remove:"V"} rewrite:{hostname:"e.com" path:{prefix:"/b"}} ` +
					`mirror:{namespace:"shop" name:"bar-east" numerator:5 denominator:100} timeout 2 try 0 ` +
					`retry attempts:2 codes:503 backoff_ms:10 1*shop/bar-west:0 with ` +
					`request_headers:{remove:"U"}`,
				`^  => redirect:{scheme:"https" port:8443 status:301}`,
				`^  => redirect:{path:{full:"/c"} status:302}`,
			},
		},
		"unsupported filter": {
			why: "other rules must not get the requests without the filter",
			objects: []string{toBar("HTTPRoute", "a", `  rules:
  - matches: [{path: {value: /a}}]
    filters: [{type: ExtensionRef, extensionRef: {group: g, kind: K, name: n}}]
    backendRefs: [{name: bar-west, port: 80}]
  - backendRefs: [{name: bar-west, port: 80}]
`)},
			want: []string{"^ /a => 500", "^  => 1*shop/bar-west:0"},
		},
		"unsupported alone": {
			why:     "a route without a usable rule is not accepted",
			objects: []string{toBar("HTTPRoute", "a", "  rules: [{sessionPersistence: {}}]")},
		},
		"invalid match": {
			why: "it cannot be told which requests the rule is for",
			objects: []string{toBar("HTTPRoute", "a",
				toWest+"  - matches: [{path: {value: \"(\", type: RegularExpression}}]\n")},
		},
		"gRPC": {
			why: "methods become paths",
			objects: []string{toBar("GRPCRoute", "a", `  rules:
  - matches:
    - {}
    - method: {service: a.B}
    - method: {method: Get.}
    - method: {service: a.B, method: Get}
    - method: {service: "a.*", method: "G|H", type: RegularExpression}
    - method: {service: a.B}
      headers: [{name: X, value: "1"}]
    backendRefs: [{name: bar-west, port: 80}]
`)},
			want: []string{
				`= /a.B/Get grpc => 1*shop/bar-west:0`,
				`^ /a.B header x=1 grpc => 1*shop/bar-west:0`,
				`^ /a.B grpc => 1*shop/bar-west:0`,
				`~ /[^/]+/Get\. grpc => 1*shop/bar-west:0`,
				`~ /(?:a.*)/(?:G|H) grpc => 1*shop/bar-west:0`,
				`grpc => 1*shop/bar-west:0`,
			},
		},
		"gRPC before HTTP": {
			why:     "a port has routes of one kind",
			objects: []string{toBar("HTTPRoute", "a", toWest), toBar("GRPCRoute", "b", toWest)},
			want:    []string{"grpc => 1*shop/bar-west:0"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			x := build(t, newServices(), strings.Join(c.objects, "\n---\n"))
			if d := cmp.Diff(c.want, show(x, "shop/bar-east", c.port)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	const resolved = "ResolvedRefs=true ResolvedRefs: All"
	cases := map[string]struct {
		why     string
		objects []string // the first one is looked at
		want    []string // prefixes
	}{
		"accepted": {
			why:     "the route works",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}", toWest)},
			want: []string{"Accepted=true Accepted: The route is attached to the mirror " +
				"shop/bar-east.", resolved},
		},
		"some ports": {
			why:     "what works is more important than what does not",
			objects: []string{toBar("HTTPRoute", "a", toWest)},
			want: []string{"Accepted=true Accepted: The route is attached to 2 of 3 ports of the " +
				"mirror", resolved},
		},
		"own Service": {
			why:     "Causeway does not carry such requests",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: local}", toWest)},
			want:    []string{"Accepted=false NotMirror: The Service shop/local is not a mirror."},
		},
		"no Service": {
			why:     "it may come later",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: gone}", toWest)},
			want:    []string{"Accepted=false NoMatchingParent: The Service shop/gone does not exist."},
		},
		"headless": {
			why:     "no caller dials it",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: head-east}", toWest)},
			want:    []string{"Accepted=false NotMirror: The mirror shop/head-east is headless", resolved},
		},
		"no port": {
			why:     "the API has a reason for it",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 81}", toWest)},
			want: []string{"Accepted=false NoMatchingParent: The mirror shop/bar-east has no " +
				"port", resolved},
		},
		"port and section differ": {
			why: "both must fit",
			objects: []string{
				routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80, sectionName: admin}", toWest),
			},
			want: []string{"Accepted=false NoMatchingParent", resolved},
		},
		"opaque": {
			why:     "the exporter decided it",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 6379}", toWest)},
			want: []string{"Accepted=false UnsupportedProtocol: The connections of the port are " +
				"opaque", resolved},
		},
		"conflict": {
			why:     "GRPCRoutes come first",
			objects: []string{toBar("HTTPRoute", "a", toWest), toBar("GRPCRoute", "b", toWest)},
			want:    []string{"Accepted=false Conflicted: A GRPCRoute", resolved},
		},
		"no conflict of audiences": {
			why: "other callers have other rules",
			objects: []string{
				routeOf("HTTPRoute", "bank", "a", "{name: bar-east, namespace: shop, port: 80}",
					"  rules: [{backendRefs: [{name: pay-east, port: 80}]}]"),
				toBar("GRPCRoute", "b", toWest),
			},
			want: []string{"Accepted=true Accepted", resolved},
		},
		"two parents": {
			why: "each has a status of its own",
			objects: []string{routeOf("HTTPRoute", "shop", "a",
				`{name: bar-east, port: 80}, {group: "", kind: Service, name: local}`, toWest)},
			want: []string{"Accepted=true", resolved, "Accepted=false NotMirror"},
		},
		"backend missing": {
			why: "the share gets 500",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: "+
				"80}", strings.ReplaceAll(toWest, "bar-west", "gone"))},
			want: []string{"Accepted=true", "ResolvedRefs=false BackendNotFound: The backend " +
				"shop/gone does not exist."},
		},
		"backend not a mirror, and more": {
			why: "the first one is named, and the rest counted",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}",
				"  rules: [{backendRefs: [{name: local, port: 80}, {name: gone, port: 80}]}]")},
			want: []string{
				"Accepted=true",
				"ResolvedRefs=false NotMirror: The backend shop/local is a Service of this cluster. " +
					"Causeway only " +
					"routes to mirrors. 1 more",
			},
		},
		"kind": {
			why: "the API has a reason for it",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}",
				"  rules: [{backendRefs: [{name: x, kind: Bucket, group: s3.example, port: 80}]}]")},
			want: []string{"Accepted=true", "ResolvedRefs=false InvalidKind: The backend shop/x has the " +
				"kind Bucket.s3.example"},
		},
		"not permitted": {
			why: "no grant",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}",
				"  rules: [{backendRefs: [{name: pay-east, namespace: bank, port: 80}]}]")},
			want: []string{"Accepted=true", "ResolvedRefs=false RefNotPermitted"},
		},
		"opaque backend": {
			why: "no request can be sent there",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}",
				"  rules: [{backendRefs: [{name: bar-east, port: 6379}]}]")},
			want: []string{"Accepted=true", "ResolvedRefs=false UnsupportedProtocol"},
		},
		"mirror of requests": {
			why: "its backend is a reference, too",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}",
				toWest+"    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, "+
					"port: 80}}}]")},
			want: []string{"Accepted=true", "ResolvedRefs=false BackendNotFound"},
		},
		"unsupported rule": {
			why: "the rest of the route works",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}",
				toWest+"  - {name: cors, filters: [{type: CORS, cors: {}}]}")},
			want: []string{
				"Accepted=true",
				resolved,
				"PartiallyInvalid=true UnsupportedValue: Requests to 1 of 2 rules get the status 500. " +
					"Rule 1 (cors): filter CORS is not supported.",
			},
		},
		"invalid regular expression": {
			why: "no rule is used",
			objects: []string{routeOf("HTTPRoute", "shop", "a", "{name: bar-east, port: 80}",
				"  rules: [{matches: [{headers: [{name: X, type: RegularExpression, value: \"(\"}]}]}]")},
			want: []string{"Accepted=false UnsupportedValue: No rule is used. Rule 0: header x: not a " +
				"regular"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			x := build(t, newServices(), strings.Join(c.objects, "\n---\n"))
			namespace := "shop"
			if strings.Contains(c.objects[0], "namespace: bank, name: a") {
				namespace = "bank"
			}
			got := conditions(x, ID{HTTPRoute, catalog.Key{Namespace: namespace, Name: "a"}})
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("%s: got\n%s\nwant\n%s", c.why, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestRejectedValues(t *testing.T) {
	const long = "[a-z]{1000}[a-z]{1000}[a-z]{1000}"
	cases := map[string]struct{ why, rule, want string }{
		"framing header": {
			"a route must not change how a message is read",
			"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: " +
				"Content-Length, value: '1'}]}}]",
			"is not valid: a filter cannot change the field Content-Length",
		},
		"identity header": {
			"only agents set it",
			"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: " +
				"Causeway-Client-ID, value: x}]}}]",
			"cannot change the field Causeway-Client-ID",
		},
		"Host": {
			"there is a filter for it",
			"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: " +
				"x}]}}]",
			"use URLRewrite.hostname instead",
		},
		"header twice": {
			"the API forbids it",
			"filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: " +
				"x}], remove: [a]}}]",
			"names the header a twice",
		},
		"line break in a value": {
			"it would begin another header",
			`filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: A, value: ` +
				`"x\r\nB: y"}]}}]`,
			"a value for the header A that is not valid",
		},
		"line break in a path": {
			"it would begin another line",
			`filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: ` +
				`"/a HTTP/1.1\r\n"}}}]`,
			"it must begin with a slash",
		},
		"query in a path": {
			"it would become a part of the query",
			`filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: ` +
				`"/a?b"}}}]`,
			"neither a query",
		},
		"prefix without a prefix": {
			"there is nothing to replace",
			"matches: [{path: {type: Exact, value: /a}}]\n    filters: [{type: URLRewrite, urlRewrite: " +
				"{path: " +
				"{type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
			"but a match of the rule has none",
		},
		"redirect and rewrite": {
			"they exclude each other",
			"filters: [{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}]",
			"exclude each other",
		},
		"empty filter": {
			"there is nothing to apply",
			"filters: [{type: RequestMirror}]",
			"filter RequestMirror has no value",
		},
		"host": {
			"it would begin another line",
			`filters: [{type: RequestRedirect, requestRedirect: {hostname: "a\r\n"}}]`,
			"a hostname",
		},
		"timeout": {"GEP-2257", "timeouts: {request: soon}", `timeouts.request: "soon" is not a duration`},
		"attempts": {"the agent's bound", "retry: {attempts: 11}", "retry.attempts: 11 is not between 0 " +
			"and 10"},
		"code": {"the API's bound", "retry: {codes: [200]}", "retry.codes: 200"},
		"backend filter": {
			"the share cannot be sent without it",
			"backendRefs: [{name: bar-west, port: 80, filters: [{type: CORS}]}]",
			"backend bar-west: filter CORS is not supported",
		},
		"relative path":  {"no request has one", "matches: [{path: {value: a}}]", "must begin with a slash"},
		"ambiguous path": {"agents refuse such requests", "matches: [{path: {value: /a%2fb}}]", "path"},
		"long expression": {"it costs memory", "matches: [{path: {value: " +
			"'" + strings.Repeat("a", 513) + "', type: RegularExpression}}]", "more than 512 bytes"},
		"large program": {
			"a short expression can be a long program",
			"matches: [{path: {value: '" + long + "', type: RegularExpression}}]",
			"too complex",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			x := build(t, newServices(), toBar("HTTPRoute", "a", "  rules:\n  - "+c.rule+"\n"))
			got := strings.Join(conditions(x, ID{HTTPRoute, catalog.Key{Namespace: "shop", Name: "a"}}), "\n")
			if !strings.Contains(got, "Accepted=false UnsupportedValue") || !strings.Contains(got, c.want) {
				t.Errorf("%s: got %s, want %s", c.why, got, c.want)
			}
			if rules := show(x, "shop/bar-east", 0); rules != nil {
				t.Errorf("%s: got the rules %q", c.why, rules)
			}
		})
	}
}

func TestFlushIsIncremental(t *testing.T) {
	services := newServices()
	x := build(t, services, toBar("HTTPRoute", "a", toWest))
	a := ID{HTTPRoute, catalog.Key{Namespace: "shop", Name: "a"}}
	bar := catalog.Key{Namespace: "shop", Name: "bar-east"}
	west := catalog.Key{Namespace: "shop", Name: "bar-west"}
	steps := []struct {
		why  string
		do   func()
		want Changes
		show []string
	}{
		{
			"nothing changed", func() {},
			Changes{}, []string{"^  => 1*shop/bar-west:0"},
		},
		{
			"a Service that no route " +
				"names", func() { x.TouchService(catalog.Key{Namespace: "shop", Name: "x"}) },
			Changes{}, []string{"^  => 1*shop/bar-west:0"},
		},
		{
			"the same as before", func() { x.TouchService(west) },
			Changes{Routes: []ID{a}}, []string{"^  => 1*shop/bar-west:0"},
		},
		{
			"a backend goes", func() { delete(services.mirrors, "shop/bar-west"); x.TouchService(west) },
			Changes{Mirrors: []catalog.Key{bar}, Routes: []ID{a}}, []string{"^  => 1*500"},
		},
		{
			"the backend comes back", func() {
				services.mirrors["shop/bar-west"] = newServices().mirrors["shop/bar-west"]
				x.TouchService(west)
			},
			Changes{Mirrors: []catalog.Key{bar}, Routes: []ID{a}}, []string{"^  => 1*shop/bar-west:0"},
		},
		{
			"the parent goes", func() { delete(services.mirrors, "shop/bar-east"); x.TouchService(bar) },
			Changes{Mirrors: []catalog.Key{bar}, Routes: []ID{a}}, nil,
		},
		{
			"the parent comes back", func() {
				services.mirrors["shop/bar-east"] = newServices().mirrors["shop/bar-east"]
				x.TouchService(bar)
			},
			Changes{Mirrors: []catalog.Key{bar}, Routes: []ID{a}}, []string{"^  => 1*shop/bar-west:0"},
		},
		{
			"the route goes", func() { x.SetHTTPRoute(a.Key, nil) },
			Changes{Mirrors: []catalog.Key{bar}}, nil,
		},
	}
	for _, s := range steps {
		s.do()
		if d := cmp.Diff(s.want, x.Flush()); d != "" {
			t.Errorf("%s (-want +got):\n%s", s.why, d)
		}
		if d := cmp.Diff(s.show, show(x, "shop/bar-east", 0)); d != "" {
			t.Errorf("%s (-want +got):\n%s", s.why, d)
		}
	}
	if len(x.routes)+len(x.byService)+len(x.byGrants)+len(x.attached) > 0 {
		t.Errorf("something is left: %+v", x)
	}
}

func TestRetain(t *testing.T) {
	x := build(t, newServices(), toBar("HTTPRoute", "a", toWest)+"\n---\n"+routeOf("GRPCRoute", "shop", "b",
		"{name: bar-west}", toWest))
	x.Retain("HTTPRoute", nil)
	x.Retain("ReferenceGrant", nil)
	x.Retain("GRPCRoute", map[catalog.Key]bool{{Namespace: "shop", Name: "b"}: true})
	x.Flush()
	if got := x.Routes(); len(got) != 1 || got[0].Kind != GRPCRoute {
		t.Errorf("got %v", got)
	}
}

// TestLimits attaches more than fits. The oldest routes stay.
func TestLimits(t *testing.T) {
	big := func(matches, bytes int) string {
		rule := "  rules:\n  - matches:\n"
		for i := range matches {
			rule += fmt.Sprintf("    - path: {value: /%d%s}\n", i, strings.Repeat("a", bytes))
		}
		return rule + "    backendRefs: [{name: bar-west, port: 80}]\n"
	}
	// Each expression has about 1,800 instructions.
	complex := func(matches, conditions int) string {
		rule := "  rules:\n  - matches:\n"
		for range matches {
			rule += "    - headers:\n"
			for i := range conditions {
				rule += fmt.Sprintf("      - {name: h%d, type: RegularExpression, "+
					"value: '(?:a*b?){450}'}\n", i)
			}
		}
		return rule + "    backendRefs: [{name: bar-west, port: 80}]\n"
	}
	cases := map[string]struct {
		why    string
		routes int
		spec   string
		want   int // accepted
	}{
		"fits":                    {"256 matches are allowed", 4, big(64, 1), 4},
		"matches":                 {"a 257th match is not", 5, big(64, 1), 4},
		"bytes":                   {"64 KiB are allowed", 3, big(64, 400), 2},
		"regular expressions":     {"4,096 instructions are allowed", 4, complex(1, 1), 2},
		"one expression too many": {"each condition of each match counts", 1, complex(2, 2), 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var objects []string
			for i := range c.routes {
				objects = append(objects, toBar("HTTPRoute", fmt.Sprint("r", i), c.spec))
			}
			x := build(t, newServices(), strings.Join(objects, "\n---\n"))
			accepted := 0
			for i := range c.routes {
				got := conditions(x, ID{HTTPRoute, catalog.Key{Namespace: "shop", Name: fmt.Sprint("r", i)}})
				switch {
				case strings.HasPrefix(got[0], "Accepted=true"):
					accepted++
				case !strings.HasPrefix(got[0], "Accepted=false LimitExceeded"):
					t.Errorf("got %q", got)
				}
			}
			if accepted != c.want {
				t.Errorf("%s: accepted %d, want %d", c.why, accepted, c.want)
			}
		})
	}
}

func TestLimitOfAudiences(t *testing.T) {
	services := newServices()
	var objects []string
	for i := range maxAudiences + 1 {
		objects = append(objects, routeOf("HTTPRoute", fmt.Sprintf("n%02d", i), "a",
			"{name: bar-east, namespace: shop, port: 80}", "  rules: [{}]"))
	}
	x := build(t, services, strings.Join(objects, "\n---\n"))
	if got := len(x.Rules(catalog.Key{Namespace: "shop", Name: "bar-east"}, 0)); got != maxAudiences {
		t.Errorf("got %d", got)
	}
	last := conditions(x, ID{HTTPRoute, catalog.Key{Namespace: "n16", Name: "a"}})
	if !strings.HasPrefix(last[0], "Accepted=false LimitExceeded") {
		t.Errorf("got %q", last)
	}
}

// TestLimitsKeepOldRoutes adds routes of other namespaces to a mirror that already has as
// many routes as fit. They must not displace older routes or routes in the mirror's own
// namespace, by their names or by the order of the ports.
func TestLimitsKeepOldRoutes(t *testing.T) {
	rules := func(backend string) string {
		rule := "  rules:\n  - matches:\n"
		for i := range 60 {
			rule += fmt.Sprintf("    - path: {value: /%d%s}\n", i, strings.Repeat("a", 1000))
		}
		return rule + "    backendRefs: [{name: " + backend + ", namespace: shop, port: 80}]\n"
	}
	const parent = "{name: bar-east, namespace: shop, port: %d}"
	route := func(namespace string, port, day int, spec string) string {
		o := routeOf("HTTPRoute", namespace, "a", fmt.Sprintf(parent, port), spec)
		return strings.Replace(o, "generation: 7", fmt.Sprintf("generation: 7, creationTimestamp: "+
			"2026-01-%02dT00:00:00Z", day), 1)
	}
	accepted := func(t *testing.T, x *Index, namespace string) {
		t.Helper()
		got := conditions(x, ID{HTTPRoute, catalog.Key{Namespace: namespace, Name: "a"}})
		if !strings.HasPrefix(got[0], "Accepted=true") {
			t.Errorf("the route of %s is displaced: %q", namespace, got)
		}
	}
	t.Run("bytes", func(t *testing.T) {
		x := build(t, newServices(), route("m", 80, 1, rules("bar-east")))
		var later []string
		for i := range 9 {
			later = append(later, route(fmt.Sprint("a", i), 80, 2+i, rules("bar-east")))
		}
		apply(t, x, strings.Join(later, "\n---\n"))
		apply(t, x, route("shop", 9090, 20, rules("bar-west")))
		x.Flush()
		accepted(t, x, "m")
		accepted(t, x, "shop")
		all := x.Rules(catalog.Key{Namespace: "shop", Name: "bar-east"}, 0)
		if !slices.IsSortedFunc(all, func(a, b *wire.RouteRules) int {
			return strings.Compare(a.CallerNamespace, b.CallerNamespace)
		}) {
			t.Error("the rules of a port are not in the order of namespaces")
		}
	})
	t.Run("groups of callers", func(t *testing.T) {
		var first []string
		for i := range maxAudiences {
			first = append(first, route(fmt.Sprintf("m%02d", i), 80, 1, "  rules: [{}]"))
		}
		x := build(t, newServices(), strings.Join(first, "\n---\n"))
		apply(t, x, route("a", 80, 2, "  rules: [{}]"))
		x.Flush()
		for i := range maxAudiences {
			accepted(t, x, fmt.Sprintf("m%02d", i))
		}
		apply(t, x, route("shop", 80, 3, "  rules: [{}]"))
		x.Flush()
		accepted(t, x, "shop")
	})
}

// TestMergeOfNothing removes the only entry. The API demands the list.
func TestMergeOfNothing(t *testing.T) {
	merged, changed := (&Status{}).Merge([]gatewayv1.RouteParentStatus{{ControllerName: ControllerName}},
		time.Time{})
	if merged == nil || len(merged) > 0 || !changed {
		t.Errorf("got %#v, %t", merged, changed)
	}
}

// TestOtherControllersOfServices decides about routes of Services that are not mirrors. A
// mesh may be responsible for them. Its entries come and go after those of Causeway.
func TestOtherControllersOfServices(t *testing.T) {
	group, kind := gatewayv1.Group(""), gatewayv1.Kind("Service")
	ref := func(name string) gatewayv1.ParentReference {
		return gatewayv1.ParentReference{Group: &group, Kind: &kind, Name: gatewayv1.ObjectName(name)}
	}
	withPort, explicit, inBank, gateway := ref("local"), ref("local"), ref("local"), ref("local")
	withPort.Port = new(gatewayv1.PortNumber(80))
	explicit.Namespace, inBank.Namespace = new(gatewayv1.Namespace("shop")), new(gatewayv1.Namespace("bank"))
	gateway.Group, gateway.Kind = nil, nil
	cases := map[string]struct {
		why    string
		parent string
		other  gatewayv1.ParentReference
		want   bool // an entry of Causeway
	}{
		"same":              {"the mesh is responsible", "{name: local}", ref("local"), false},
		"namespace":         {"the default is that of the route", "{name: local}", explicit, false},
		"port":              {"the mesh is responsible for a part", "{name: local}", withPort, false},
		"missing":           {"it may be created later", "{name: none}", ref("none"), false},
		"other parent":      {"the user must see it", "{name: local}", ref("bar-east"), true},
		"another namespace": {"it is another Service", "{name: local}", inBank, true},
		"Gateway":           {"it is no Service", "{name: local}", gateway, true},
		"mirror":            {"Causeway is responsible", "{name: bar-east}", ref("bar-east"), true},
		"headless mirror":   {"Causeway is responsible", "{name: head-east}", ref("head-east"), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			x := NewIndex(newServices())
			id := ID{HTTPRoute, catalog.Key{Namespace: "shop", Name: "a"}}
			var o gatewayv1.HTTPRoute
			parse(t, routeOf("HTTPRoute", "shop", "a", c.parent, toWest), &o)
			mesh := gatewayv1.RouteParentStatus{ParentRef: c.other, ControllerName: "example.com/mesh"}
			// decide returns the merged status of the route, which had this one.
			decide := func(present ...gatewayv1.RouteParentStatus) []gatewayv1.RouteParentStatus {
				next := o
				next.Status.Parents = present
				x.SetHTTPRoute(id.Key, &next)
				if got := x.Flush().Routes; len(got) != 1 {
					t.Fatalf("decided about %v", got)
				}
				s, differs := x.Status(id, time.Time{})
				merged, changed := s.Merge(present, time.Time{})
				if changed != differs {
					t.Errorf("differs is %t", differs)
				}
				return merged
			}
			alone := decide()
			if len(alone) != 1 || alone[0].ControllerName != ControllerName {
				t.Fatalf("without another controller: got %+v", alone)
			}
			both := decide(append(alone, mesh)...)
			if got := len(both) == 2; got != c.want || both[0].ControllerName != mesh.ControllerName {
				t.Errorf("%s: got %+v", c.why, both)
			}
			if again := decide(both...); len(again) != len(both) {
				t.Errorf("a second time: got %+v", again)
			}
			if again := decide(); !cmp.Equal(again, alone) {
				t.Errorf("after the other entry: got %+v", again)
			}
		})
	}
}

func TestMerge(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 5, time.UTC)
	early := metav1.NewTime(now.Add(-time.Hour).Truncate(time.Second))
	ref := gatewayv1.ParentReference{Name: "bar-east"}
	want := Status{Generation: 7, Parents: []ParentStatus{{
		Ref:        ref,
		Conditions: []Condition{{Type: "Accepted", True: true, Reason: "Accepted", Message: "m"}},
	}}}
	entry := func(controller, name string, generation int64, status metav1.ConditionStatus,
		at metav1.Time) gatewayv1.RouteParentStatus {
		return gatewayv1.RouteParentStatus{
			ParentRef:      gatewayv1.ParentReference{Name: gatewayv1.ObjectName(name)},
			ControllerName: gatewayv1.GatewayController(controller),
			Conditions: []metav1.Condition{{
				Type:               "Accepted",
				Status:             status,
				Reason:             "Accepted",
				Message:            "m",
				ObservedGeneration: generation,
				LastTransitionTime: at,
			}},
		}
	}
	own, other := string(ControllerName), "example.com/other"
	stamp := metav1.NewTime(now.Truncate(time.Second))
	cases := map[string]struct {
		why           string
		present, want []gatewayv1.RouteParentStatus
		changed       bool
	}{
		"new": {
			why:     "the route has no status",
			want:    []gatewayv1.RouteParentStatus{entry(own, "bar-east", 7, "True", stamp)},
			changed: true,
		},
		"same": {
			why:     "nothing is written",
			present: []gatewayv1.RouteParentStatus{entry(own, "bar-east", 7, "True", early)},
			want:    []gatewayv1.RouteParentStatus{entry(own, "bar-east", 7, "True", early)},
		},
		"generation": {
			why:     "the time of the condition stays",
			present: []gatewayv1.RouteParentStatus{entry(own, "bar-east", 6, "True", early)},
			want:    []gatewayv1.RouteParentStatus{entry(own, "bar-east", 7, "True", early)},
			changed: true,
		},
		"status": {
			why:     "the time of the condition is now",
			present: []gatewayv1.RouteParentStatus{entry(own, "bar-east", 7, "False", early)},
			want:    []gatewayv1.RouteParentStatus{entry(own, "bar-east", 7, "True", stamp)},
			changed: true,
		},
		"others": {
			why: "their entries stay, also one for the same parent",
			present: []gatewayv1.RouteParentStatus{
				entry(own, "bar-east", 7, "True", early),
				entry(other, "bar-east", 1, "False", early),
			},
			want: []gatewayv1.RouteParentStatus{
				entry(other, "bar-east", 1, "False", early),
				entry(own, "bar-east", 7, "True", early),
			},
		},
		"parent removed": {
			why: "its entry goes",
			present: []gatewayv1.RouteParentStatus{
				entry(own, "bar-west", 7, "True", early),
				entry(own, "bar-east", 7, "True", early),
			},
			want:    []gatewayv1.RouteParentStatus{entry(own, "bar-east", 7, "True", early)},
			changed: true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, changed := want.Merge(c.present, now)
			if d := cmp.Diff(c.want, got); d != "" || changed != c.changed {
				t.Errorf("%s: changed is %t (-want +got):\n%s", c.why, changed, d)
			}
		})
	}
}

// FuzzCompile checks that no route makes the Index fail, and that rules stay in their
// bounds.
func FuzzCompile(f *testing.F) {
	f.Add("/a", "PathPrefix", "X", "v", "a.B", "Get", "5s", 3)
	f.Add("(", "RegularExpression", "", "\r\n", "/", "(", "x", -1)
	f.Fuzz(func(t *testing.T, path, kind, header, value, service, method, duration string, number int) {
		pathKind, headerKind := gatewayv1.PathMatchType(kind), gatewayv1.HeaderMatchType(kind)
		methodKind, wait := gatewayv1.GRPCMethodMatchType(kind), gatewayv1.Duration(duration)
		group, service1 := gatewayv1.Group(""), gatewayv1.Kind("Service")
		parents := gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{
			{Group: &group, Kind: &service1, Name: "bar-east"},
		}}
		x := NewIndex(newServices())
		a, b := catalog.Key{Namespace: "shop", Name: "a"}, catalog.Key{Namespace: "bank", Name: "a"}
		x.SetHTTPRoute(a, &gatewayv1.HTTPRoute{Spec: gatewayv1.HTTPRouteSpec{
			CommonRouteSpec: parents,
			Rules: []gatewayv1.HTTPRouteRule{{
				Matches: []gatewayv1.HTTPRouteMatch{{
					Path: &gatewayv1.HTTPPathMatch{Type: &pathKind, Value: &path},
					Headers: []gatewayv1.HTTPHeaderMatch{
						{Type: &headerKind, Name: gatewayv1.HTTPHeaderName(header), Value: value},
					},
				}},
				Filters: []gatewayv1.HTTPRouteFilter{{
					Type: "URLRewrite",
					URLRewrite: &gatewayv1.HTTPURLRewriteFilter{Path: &gatewayv1.HTTPPathModifier{
						Type: "ReplaceFullPath", ReplaceFullPath: &path,
					}},
				}},
				Timeouts: &gatewayv1.HTTPRouteTimeouts{Request: &wait},
				Retry:    &gatewayv1.HTTPRouteRetry{Attempts: &number},
			}},
		}})
		x.SetGRPCRoute(b, &gatewayv1.GRPCRoute{Spec: gatewayv1.GRPCRouteSpec{
			CommonRouteSpec: parents,
			Rules: []gatewayv1.GRPCRouteRule{{Matches: []gatewayv1.GRPCRouteMatch{{
				Method: &gatewayv1.GRPCMethodMatch{Type: &methodKind, Service: &service, Method: &method},
			}}}},
		}})
		x.Flush()
		for _, rules := range x.Rules(catalog.Key{Namespace: "shop", Name: "bar-east"}, 0) {
			for _, m := range rules.Matches {
				if int(m.Rule) >= len(rules.Rules) {
					t.Errorf("rule %d of %d", m.Rule, len(rules.Rules))
				}
				path := m.GetPathExact() + m.GetPathPrefix()
				if len(m.GetPathRegex()) > 512 || strings.ContainsAny(path, "\r\n ?#") {
					t.Errorf("got %v", m)
				}
			}
		}
	})
}
