package nodestream

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// routedFrontend is a frontend with one port, which has a rule of each route. unread are
// the kinds that the controller has not read.
func routedFrontend(name string, routes []string, unread ...string) *wire.Resource {
	port := &wire.FrontendPort{Name: "http", UnreadRouteKinds: unread}
	for _, route := range routes {
		port.Routes = append(port.Routes, &wire.RouteRules{Rules: []*wire.RouteRule{{Route: route}}})
	}
	return &wire.Resource{Key: FrontendKey("shop", name), Body: &wire.Resource_Frontend{
		Frontend: &wire.Frontend{Namespace: "shop", Name: name, Ports: []*wire.FrontendPort{port}}}}
}

// A controller that has not read a kind of route sends frontends without their rules. The
// client keeps the rules that this kind can change.
func TestUnreadRoutesAreKept(t *testing.T) {
	const (
		http, grpc, grant = "HTTPRoute", "GRPCRoute", "ReferenceGrant"
		a, b, g           = "HTTPRoute/shop/a", "HTTPRoute/shop/b", "GRPCRoute/shop/g"
	)
	cases := map[string]struct {
		why        string
		known, got *wire.Resource // known is nil if the client has no such frontend
		want       *wire.Resource
	}{
		"the kind of the rules": {
			why:   "rules must not vanish because a controller cannot read them",
			known: routedFrontend("bar", []string{a}), got: routedFrontend("bar", nil, http, grpc),
			want: routedFrontend("bar", []string{a}),
		},
		"no rules": {
			why:   "it is known that the port had none",
			known: routedFrontend("bar", nil), got: routedFrontend("bar", nil, http, grpc),
			want: routedFrontend("bar", nil),
		},
		"another kind": {
			why:   "a kind that cannot be read does not stop the others",
			known: routedFrontend("bar", []string{a}), got: routedFrontend("bar", []string{b}, grpc),
			want: routedFrontend("bar", []string{b}),
		},
		"both kinds": {
			why:   "GRPCRoutes displace HTTPRoutes, so the HTTPRoute must not take effect",
			known: routedFrontend("bar", []string{g}), got: routedFrontend("bar", []string{b}, grpc),
			want: routedFrontend("bar", []string{g}),
		},
		"grants": {
			why:   "without grants the controller takes backends for not permitted",
			known: routedFrontend("bar", []string{a}), got: routedFrontend("bar", []string{b}, grant),
			want: routedFrontend("bar", []string{a}),
		},
		"first rules while grants are unread": {
			why:   "there is nothing to keep",
			known: routedFrontend("bar", nil), got: routedFrontend("bar", []string{b}, grant),
			want: routedFrontend("bar", []string{b}),
		},
		"new frontend": {
			why: "its routes are not known, so it stays marked",
			got: routedFrontend("bar", nil, http), want: routedFrontend("bar", nil, http),
		},
		"never read": {
			why:   "the frontend was marked before, so its routes are still not known",
			known: routedFrontend("bar", nil, http), got: routedFrontend("bar", nil, http),
			want: routedFrontend("bar", nil, http),
		},
		"read": {
			why:   "the route was deleted",
			known: routedFrontend("bar", []string{a}), got: routedFrontend("bar", nil),
			want: routedFrontend("bar", nil),
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in(t, func(t *testing.T, w *world) {
				w.serve()
				w.setToken("agent/n1")
				marker := upstream("a", "1:1") // a scope without resources is not served
				first := []*wire.Resource{marker}
				if c.known != nil {
					first = append(first, c.known)
				}
				w.publish(Node("n1"), first...)
				client := w.client()
				bubble.Pass(time.Second)
				expect := func(when string) {
					t.Helper()
					synctest.Wait()
					view, _ := client.State()
					if d := cmp.Diff(c.want, view[c.want.Key], protocmp.Transform()); d != "" {
						t.Errorf("%s: %s (-want +got):\n%s", when, c.why, d)
					}
				}
				w.publish(Node("n1"), marker, c.got)
				bubble.Pass(time.Second)
				expect("after a change")

				w.hub.RemoveNode("n1") // ends the stream
				bubble.Pass(10 * time.Second)
				w.publish(Node("n1"), marker, c.got)
				bubble.Pass(10 * time.Second)
				expect("after a new snapshot")
			})
		})
	}
}
