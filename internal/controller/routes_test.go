package controller

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakediscovery "k8s.io/client-go/discovery/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
)

// httpRoute routes requests to the Service parent to backends, all in namespace shop.
func httpRoute(name, parent string, backends ...string) *gatewayv1.HTTPRoute {
	group, kind, port := gatewayv1.Group(""), gatewayv1.Kind("Service"), gatewayv1.PortNumber(80)
	o := &gatewayv1.HTTPRoute{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Generation: 1},
		Spec: gatewayv1.HTTPRouteSpec{
			CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{
				{Group: &group, Kind: &kind, Name: gatewayv1.ObjectName(parent)},
			}},
			Rules: []gatewayv1.HTTPRouteRule{{}},
		},
	}
	for _, b := range backends {
		o.Spec.Rules[0].BackendRefs = append(o.Spec.Rules[0].BackendRefs, gatewayv1.HTTPBackendRef{
			BackendRef: gatewayv1.BackendRef{BackendObjectReference: gatewayv1.BackendObjectReference{
				Name: gatewayv1.ObjectName(b),
				Port: &port,
			}},
		})
	}
	return o
}

// backendsOf returns the backends of the only rule of a mirror's first port; nil: it has
// no rules.
func (r *replica) backendsOf(t *testing.T, mirror string) []string {
	t.Helper()
	f := r.frontend(mirror)
	if f == nil || len(f.GetPorts()) == 0 || len(f.GetPorts()[0].GetRoutes()) == 0 {
		return nil
	}
	out := []string{}
	for _, b := range f.GetPorts()[0].GetRoutes()[0].GetRules()[0].GetBackends() {
		out = append(out, b.GetName())
	}
	return out
}

// routeConditions returns the conditions of Causeway's entries of an HTTPRoute.
func (r *replica) routeConditions(t *testing.T, name string) []string {
	t.Helper()
	var o gatewayv1.HTTPRoute
	r.MustGet(t, "shop", name, &o)
	var out []string
	for _, p := range o.Status.Parents {
		if p.ControllerName != gatewayroutes.ControllerName {
			continue
		}
		for _, c := range p.Conditions {
			out = append(out, c.Type+"="+string(c.Status)+" "+c.Reason)
		}
	}
	return out
}

// routeWrites returns the writes of routes since the last call.
func (r *replica) routeWrites() []string {
	return slices.DeleteFunc(r.Writes(), func(w string) bool { return !strings.Contains(w, "Route") })
}

func TestRoutesReachAgentsAndStatus(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		stream := r.connect("bar", "foo")
		r.settle()
		r.Writes()
		expect := func(why string, backends []string, conditions ...string) {
			t.Helper()
			r.settle()
			if got := r.backendsOf(t, "bar-east"); !slices.Equal(got, backends) {
				t.Errorf("%s: backends %q, want %q", why, got, backends)
			}
			if got := r.routeConditions(t, "a"); !slices.Equal(got, conditions) {
				t.Errorf("%s: conditions %q, want %q", why, got, conditions)
			}
		}
		expect("a backend exists, the other does not", []string{"foo-east", ""}, "Accepted=True Accepted",
			"ResolvedRefs=False BackendNotFound")
		r.settle()
		if got := r.routeWrites(); len(got) > 1 {
			t.Errorf("a status is written once, and not again: %q", got)
		}

		var o gatewayv1.HTTPRoute
		r.MustGet(t, "shop", "a", &o)
		o.Spec.Rules[0].BackendRefs = o.Spec.Rules[0].BackendRefs[:1]
		o.Generation++
		r.update(t, &o)
		expect("the route is corrected", []string{"foo-east"}, "Accepted=True Accepted",
			"ResolvedRefs=True ResolvedRefs")

		stream.Deliver(wire.Delta{Removed: shopKeys("foo")})
		expect("the peer does not export the backend any more", []string{""}, "Accepted=True Accepted",
			"ResolvedRefs=False BackendNotFound")

		r.MustGet(t, "shop", "a", &o)
		o.Spec.ParentRefs[0].Name = "local"
		o.Generation++
		r.update(t, &o)
		expect("the parent is a user's Service", nil, "Accepted=False NotMirror")

		r.delete(t, &o)
		r.settle()
		if p := r.pass(); len(p.views)+len(p.routes) > 0 {
			t.Errorf("a pass without changes decides something: %+v", p)
		}
	}, eastLink(), shop(), exportedLocal(), httpRoute("a", "bar-east", "foo-east", "gone"))
}

// Agents read no requests on a port whose appProtocol is opaque, so a route cannot be
// attached to it.
func TestRoutesOfOpaqueAppProtocol(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		stream := r.connect("bar", "foo")
		bar := offered("bar")
		bar[0].Ports[0].AppProtocol = "https"
		stream.Deliver(wire.Delta{Upserts: bar})
		r.settle()
		r.settle()
		if got := r.routeConditions(t, "a"); len(got) == 0 || got[0] != "Accepted=False UnsupportedProtocol" {
			t.Errorf("got %q", got)
		}
		bar = offered("bar")
		bar[0].Ports[0].AppProtocol = "http"
		stream.Deliver(wire.Delta{Upserts: bar})
		r.settle()
		r.settle()
		if got := r.routeConditions(t, "a"); len(got) == 0 || got[0] != "Accepted=True Accepted" {
			t.Errorf("got %q", got)
		}
	}, eastLink(), shop(), httpRoute("a", "bar-east", "foo-east"))
}

// A follower sends rules to agents and writes nothing. When it leads, it writes what
// differs.
func TestOnlyLeaderWritesRouteStatus(t *testing.T) {
	followByHand(t, func(t *testing.T, r *replica) {
		r.lead()
		r.settle()
		r.connect("bar", "foo")
		r.settle()
		r.leading.Store(false)
		r.Writes()
		r.create(t, httpRoute("a", "bar-east", "foo-east"))
		r.Writes()
		r.settle()
		if got := r.backendsOf(t, "bar-east"); !slices.Equal(got, []string{"foo-east"}) {
			t.Errorf("backends %q", got)
		}
		if got := r.routeWrites(); len(got) > 0 {
			t.Errorf("a follower writes %q", got)
		}
	}, eastLink(), shop())
}

// The entries of other controllers stay, and a conflict is tried again.
func TestRouteStatusKeepsOtherControllers(t *testing.T) {
	route := httpRoute("a", "bar-east", "foo-east")
	other := gatewayv1.RouteParentStatus{
		ParentRef:      gatewayv1.ParentReference{Name: "gateway"},
		ControllerName: "example.com/other",
		Conditions: []metav1.Condition{{
			Type:               "Accepted",
			Status:             metav1.ConditionTrue,
			Reason:             "Accepted",
			LastTransitionTime: metav1.Unix(1000, 0),
		}},
	}
	route.Status.Parents = []gatewayv1.RouteParentStatus{other}
	byHand(t, func(t *testing.T, r *replica) {
		refused := 0
		r.Refuse(func(verb string, o client.Object) error {
			if _, ok := o.(*gatewayv1.HTTPRoute); ok && verb == "patch status" && refused < 2 {
				refused++
				return errors.New("refused")
			}
			return nil
		})
		r.connect("bar", "foo")
		r.settle()
		r.settle()
		var o gatewayv1.HTTPRoute
		r.MustGet(t, "shop", "a", &o)
		if len(o.Status.Parents) != 2 || o.Status.Parents[0].ControllerName != other.ControllerName ||
			!meta.IsStatusConditionTrue(o.Status.Parents[1].Conditions, "Accepted") {
			t.Errorf("got %+v", o.Status.Parents)
		}
	}, eastLink(), shop(), route)
}

// When the only parent is a Gateway now, the entry is removed by an empty list: the field
// is required, and null would remove it.
func TestRouteStatusRemovesLastEntry(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		r.connect("bar", "foo")
		r.settle()
		r.settle()
		var o gatewayv1.HTTPRoute
		r.MustGet(t, "shop", "a", &o)
		if len(o.Status.Parents) != 1 {
			t.Fatalf("got %+v", o.Status.Parents)
		}
		var written []string
		r.Refuse(func(verb string, o client.Object) error {
			if route, ok := o.(*gatewayv1.HTTPRoute); ok && verb == "patch status" {
				text, err := json.Marshal(route.Status)
				written = append(written, string(text))
				return err
			}
			return nil
		})
		o.Spec.ParentRefs[0] = gatewayv1.ParentReference{Name: "gateway"}
		o.Generation++
		r.update(t, &o)
		r.settle()
		r.settle()
		if !slices.Equal(written, []string{`{"parents":[]}`}) {
			t.Errorf("got %q", written)
		}
	}, eastLink(), shop(), httpRoute("a", "bar-east", "foo-east"))
}

// The route of a user's own Service gets Accepted=False until another controller has an
// entry for it, and again once that entry is gone.
func TestRouteStatusYieldsToOtherControllers(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		var o gatewayv1.HTTPRoute
		expect := func(why string, conditions ...string) {
			t.Helper()
			r.settle()
			r.settle()
			if got := r.routeConditions(t, "a"); !slices.Equal(got, conditions) {
				t.Errorf("%s: conditions %q, want %q", why, got, conditions)
			}
			r.MustGet(t, "shop", "a", &o)
		}
		r.connect("bar", "foo")
		expect("no other controller", "Accepted=False NotMirror")
		mesh := o.Status.Parents[0]
		mesh.ControllerName = "example.com/mesh"
		o.Status.Parents = append(o.Status.Parents, mesh)
		if err := r.Status().Update(t.Context(), &o); err != nil {
			t.Fatal(err)
		}
		expect("a mesh has an entry")
		if len(o.Status.Parents) != 1 || o.Status.Parents[0].ControllerName != mesh.ControllerName {
			t.Errorf("got %+v", o.Status.Parents)
		}
		o.Status.Parents = []gatewayv1.RouteParentStatus{}
		if err := r.Status().Update(t.Context(), &o); err != nil {
			t.Fatal(err)
		}
		expect("the mesh is removed", "Accepted=False NotMirror")
	}, eastLink(), shop(), exportedLocal(), httpRoute("a", "local"))
}

// TestContestedRouteStatus: another controller removes all entries but its own at each
// change of the status. The two controllers must not write forever as fast as they can.
func TestContestedRouteStatus(t *testing.T) {
	var log logLines
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		api := newAPI(eastLink(), shop(), exportedLocal(), httpRoute("a", "local"))
		r := newReplicaWith(t, west(), api, func(o *Options) { o.Log = log.logger() })
		r.lead()
		r.during(t, func() {
			contest := func(d time.Duration) (writes int) {
				for begin := time.Now(); time.Since(begin) < d; bubble.Pass(500 * time.Millisecond) {
					var o gatewayv1.HTTPRoute
					r.MustGet(t, "shop", "a", &o)
					if len(o.Status.Parents) == 0 {
						continue
					}
					writes++
					o.Status.Parents = []gatewayv1.RouteParentStatus{}
					if err := r.API.Status().Update(t.Context(), &o); err != nil {
						t.Fatal(err)
					}
				}
				return writes
			}
			if n := contest(30 * time.Minute); n < 5 || n > 12 {
				t.Errorf("%d writes in 30 minutes, want the pauses to grow to 10 minutes", n)
			}
			if n := log.count("another controller removes"); n != 1 {
				t.Errorf("%d warnings, want 1", n)
			}
			var o gatewayv1.HTTPRoute
			r.MustGet(t, "shop", "a", &o)
			o.Generation++
			o.Spec.ParentRefs[0].Name = "gone"
			r.update(t, &o)
			bubble.Pass(5 * time.Second)
			want := []string{"Accepted=False NoMatchingParent"}
			if got := r.routeConditions(t, "a"); !slices.Equal(got, want) {
				t.Errorf("a new status waited for the pause of the previous one: %q", got)
			}
			bubble.Pass(time.Hour)
			if n := contest(10 * time.Second); n < 2 {
				t.Errorf("the entries have stayed for an hour, but %d writes in 10 s", n)
			}
		})
	})
}

// A grant may be deleted while the controller watches no version of its kind. It has no
// effect when the controller watches the kind again.
func TestGrantDeletedUnwatched(t *testing.T) {
	grant := &gatewayv1.ReferenceGrant{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "g"},
		Spec: gatewayv1.ReferenceGrantSpec{
			From: []gatewayv1.ReferenceGrantFrom{{
				Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: "shop",
			}},
			To: []gatewayv1.ReferenceGrantTo{{Kind: "Service"}},
		},
	}
	route := httpRoute("a", "bar-east", "pay-east")
	route.Spec.Rules[0].BackendRefs[0].Namespace = new(gatewayv1.Namespace("bank"))
	byHand(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.inbox.add(func(b *batch) {
			b.grants = changed[gatewayv1.ReferenceGrant]{{Namespace: "bank", Name: "g"}: grant}
		})
		expect := func(why, want string) {
			t.Helper()
			r.settle()
			r.settle()
			if got := r.routeConditions(t, "a"); len(got) < 2 || got[1] != want {
				t.Errorf("%s: %q", why, got)
			}
		}
		expect("the grant exists", "ResolvedRefs=False BackendNotFound")
		keys := func() (map[catalog.Key]bool, error) { return nil, nil }
		retain := func(b *batch, keys map[catalog.Key]bool) { b.retainGateway("ReferenceGrant", keys) }
		if err := r.inbox.list(keys, retain); err != nil {
			t.Fatal(err)
		}
		expect("the list has no grant", "ResolvedRefs=False RefNotPermitted")
	}, eastLink(), shop(), route)
}

// exportedLocal is a user's own Service.
func exportedLocal() *corev1.Service {
	s := exported("local", corev1.ProtocolTCP)
	s.Labels = nil
	return s
}

// TestGatewayKindsRun gives the answers of the cluster one after another, ten seconds
// apart, and records what is done.
func TestGatewayKindsRun(t *testing.T) {
	away := errors.New("away")
	all := map[string]schema.GroupVersion{
		"HTTPRoute":      gatewayV1,
		"GRPCRoute":      gatewayV1,
		"ReferenceGrant": gatewayV1,
	}
	beta := map[string]schema.GroupVersion{"HTTPRoute": gatewayV1, "ReferenceGrant": gatewayV1Beta1}
	type answer struct {
		served map[string]schema.GroupVersion
		err    error
		refuse error  // of watch
		kind   string // the only one that is refused; empty: all are
	}
	cases := map[string]struct {
		why     string
		answers []answer
		want    [][]string
	}{
		"from the start": {
			why:     "what is watched is not watched again",
			answers: []answer{{served: all}, {served: all}},
			want:    [][]string{{"watch ReferenceGrant v1", "watch GRPCRoute v1", "watch HTTPRoute v1"}, nil},
		},
		"installed later": {
			why:     "installing the kinds after Causeway needs no restart",
			answers: []answer{{}, {}, {served: beta}},
			want:    [][]string{nil, nil, {"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"}},
		},
		"newer version": {
			why:     "the grants stay: the new version is read before the old one is left",
			answers: []answer{{served: beta}, {served: all}},
			want: [][]string{
				{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"},
				{"watch ReferenceGrant v1", "leave ReferenceGrant v1beta1", "watch GRPCRoute v1"},
			},
		},
		"removed": {
			why:     "without the kinds there are no routes",
			answers: []answer{{served: beta}, {}, {}, {}},
			want: [][]string{
				{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"},
				nil,
				{"leave ReferenceGrant " +
					"v1beta1", "forget ReferenceGrant", "leave HTTPRoute v1", "forget HTTPRoute"},
				nil,
			},
		},
		"one answer without a kind": {
			why:     "one of several API servers can lag behind",
			answers: []answer{{served: beta}, {}, {served: beta}, {}, {served: beta}},
			want:    [][]string{{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"}, nil, nil, nil, nil},
		},
		"API server away": {
			why:     "an error says nothing about the kinds",
			answers: []answer{{served: beta}, {err: away}, {served: beta}},
			want:    [][]string{{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"}, nil, nil},
		},
		"not readable at first": {
			why:     "it is tried again",
			answers: []answer{{}, {served: beta, refuse: away}, {served: beta}},
			want: [][]string{
				nil,
				{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"},
				{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"},
			},
		},
		"removed before it was readable": {
			why:     "a cache that is still starting would list forever",
			answers: []answer{{}, {served: beta, refuse: away, kind: "HTTPRoute"}, {}, {}, {}},
			want: [][]string{
				nil,
				{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"},
				nil,
				{
					"leave ReferenceGrant v1beta1", "forget ReferenceGrant", "leave HTTPRoute v1",
					"forget HTTPRoute",
				},
				nil,
			},
		},
		"newer version not readable, then removed": {
			why: "both caches are stopped",
			answers: []answer{{served: beta}, {served: all, refuse: away, kind: "ReferenceGrant"},
				{served: beta}, {}, {}},
			want: [][]string{
				{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"},
				{"watch ReferenceGrant v1", "watch GRPCRoute v1"},
				{"leave ReferenceGrant v1"},
				{"leave GRPCRoute v1", "forget GRPCRoute"},
				{
					"leave ReferenceGrant v1beta1", "forget ReferenceGrant", "leave HTTPRoute v1",
					"forget HTTPRoute",
				},
			},
		},
		"one kind not readable": {
			why: "the others are watched",
			answers: []answer{{}, {served: beta, refuse: away, kind: "ReferenceGrant"},
				{served: beta, refuse: away, kind: "ReferenceGrant"}, {served: beta}},
			want: [][]string{
				nil,
				{"watch ReferenceGrant v1beta1", "watch HTTPRoute v1"},
				{"watch ReferenceGrant v1beta1"},
				{"watch ReferenceGrant v1beta1"},
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var now atomic.Pointer[answer]
				now.Store(&c.answers[0])
				var did []string
				g := &gatewayKinds{
					log: discardLog,
					served: func() (map[string]schema.GroupVersion, error) {
						return now.Load().served, now.Load().err
					},
					watch: func(_ context.Context, kind schema.GroupVersionKind) error {
						did = append(did, "watch "+kind.Kind+" "+kind.Version)
						if a := now.Load(); a.kind == "" || a.kind == kind.Kind {
							return a.refuse
						}
						return nil
					},
					leave: func(_ context.Context, kind schema.GroupVersionKind) error {
						did = append(did, "leave "+kind.Kind+" "+kind.Version)
						return nil
					},
					forget: func(kind string) { did = append(did, "forget "+kind) },
					report: func([]string) {},
				}
				g.start(ctx)
				got := [][]string{did}
				done := make(chan struct{})
				go func() { g.run(ctx); close(done) }()
				for i := range c.answers[1:] {
					synctest.Wait()
					did = nil
					now.Store(&c.answers[1+i])
					bubble.Pass(probeInterval)
					got = append(got, did)
				}
				cancel()
				<-done
				if d := gocmp.Diff(c.want, got); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
			})
		})
	}
}

// The first pass does not wait forever for routes.
func TestGatewayKindsStartGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gatewayKinds{
			log:    discardLog,
			served: func() (map[string]schema.GroupVersion, error) { return nil, errors.New("away") },
		}
		begin := time.Now()
		g.start(t.Context())
		if got := g.unread(); !slices.Equal(got, gatewayKindNames) {
			t.Errorf("no kind was read, but only %q are unread", got)
		}
		if took := time.Since(begin); took < maxGatewayWait || took > 2*maxGatewayWait {
			t.Errorf("took %v", took)
		}
	})
}

// TestGatewayKindsUnread gives the answers of the cluster one after another, ten seconds
// apart, and records which kinds are unread.
func TestGatewayKindsUnread(t *testing.T) {
	const http, grpc = "HTTPRoute", "GRPCRoute"
	type answer struct {
		served  []string
		refused string // a kind that cannot be read
	}
	both, none := []string{http, grpc}, []string(nil)
	cases := map[string]struct {
		why     string
		answers []answer
		want    [][]string // after the start and then after each answer; nil: none
	}{
		"readable": {
			why:     "everything was read",
			answers: []answer{{served: both}, {served: both}},
			want:    [][]string{nil, nil},
		},
		"not served": {
			why:     "without the Gateway API there are no routes",
			answers: []answer{{}, {}},
			want:    [][]string{nil, nil},
		},
		"permission comes later": {
			why:     "the kind was read",
			answers: []answer{{both, http}, {both, http}, {both, ""}},
			want:    [][]string{{http}, {http}, nil},
		},
		"unreadable later": {
			why:     "a kind that is installed without permission to read it can have objects",
			answers: []answer{{}, {both, grpc}, {both, ""}},
			want:    [][]string{nil, {grpc}, nil},
		},
		"removed": {
			why:     "a kind that is not served has no objects, but one API server can lag behind",
			answers: []answer{{both, http}, {none, ""}, {none, ""}},
			want:    [][]string{{http}, {http}, nil},
		},
		"lagging answer": {
			why:     "only the second answer in a row counts",
			answers: []answer{{both, http}, {none, ""}, {both, http}, {none, ""}},
			want:    [][]string{{http}, {http}, {http}, {http}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var now atomic.Pointer[answer]
				now.Store(&c.answers[0])
				var reported []string
				g := &gatewayKinds{
					log: discardLog,
					served: func() (map[string]schema.GroupVersion, error) {
						out := make(map[string]schema.GroupVersion)
						for _, kind := range now.Load().served {
							out[kind] = gatewayV1
						}
						return out, nil
					},
					watch: func(_ context.Context, kind schema.GroupVersionKind) error {
						if kind.Kind == now.Load().refused {
							return errors.New("forbidden")
						}
						return nil
					},
					leave:  func(context.Context, schema.GroupVersionKind) error { return nil },
					forget: func(string) {},
					report: func(unread []string) { reported = unread },
				}
				g.start(ctx)
				reported = g.unread()
				got := [][]string{reported}
				done := make(chan struct{})
				go func() { g.run(ctx); close(done) }()
				for i := range c.answers[1:] {
					synctest.Wait()
					now.Store(&c.answers[1+i])
					bubble.Pass(probeInterval)
					got = append(got, reported)
				}
				cancel()
				<-done
				if d := gocmp.Diff(c.want, got); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
			})
		})
	}
}

// TestUnreadKindsReachAgents: while a kind is unread, the frontends name it. They lose
// this mark together with their first rules.
func TestUnreadKindsReachAgents(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		r.setUnread([]string{"ReferenceGrant", "HTTPRoute"})
		r.connect("bar", "foo")
		expect := func(why string, backends []string, unread ...string) {
			t.Helper()
			r.settle()
			f := r.frontend("bar-east")
			if f == nil || len(f.GetPorts()) == 0 {
				t.Fatalf("%s: no frontend", why)
			}
			if got := f.GetPorts()[0].GetUnreadRouteKinds(); !slices.Equal(got, unread) {
				t.Errorf("%s: unread %q, want %q", why, got, unread)
			}
			if got := r.backendsOf(t, "bar-east"); !slices.Equal(got, backends) {
				t.Errorf("%s: backends %q, want %q", why, got, backends)
			}
		}
		expect("routes cannot be read", nil, "HTTPRoute")

		r.inbox.add(func(b *batch) {
			b.httpRoutes = changed[gatewayv1.HTTPRoute]{
				{Namespace: "shop", Name: "a"}: httpRoute("a", "bar-east", "foo-east"),
			}
			b.unreadKinds = &[]string{}
		})
		p := r.pass()
		for _, c := range p.views {
			f := c.Resource.GetFrontend()
			if f.GetName() == "bar-east" && len(f.Ports[0].UnreadRouteKinds)+len(f.Ports[0].Routes) == 0 {
				t.Error("a frontend without rules and without a mark was planned")
			}
		}
		expect("routes were read", []string{"foo-east"})
	}, eastLink(), shop())
}

// TestUnreadGrants: while ReferenceGrants are unread, a route that needs one gets no
// status, and its mirror has the mark.
func TestUnreadGrants(t *testing.T) {
	route := httpRoute("a", "bar-east", "pay-east")
	route.Spec.Rules[0].BackendRefs[0].Namespace = new(gatewayv1.Namespace("bank"))
	byHand(t, func(t *testing.T, r *replica) {
		r.setUnread([]string{"ReferenceGrant"})
		r.connect("bar", "foo")
		r.create(t, route)
		r.settle()
		for name, want := range map[string]int{"bar-east": 1, "foo-east": 0} {
			if got := len(r.frontend(name).GetPorts()[0].GetUnreadRouteKinds()); got != want {
				t.Errorf("%s has %d unread kinds, want %d", name, got, want)
			}
		}
		if got := r.routeConditions(t, "a"); len(got) > 0 {
			t.Errorf("a status was written: %q", got)
		}
		r.inbox.add(func(b *batch) { b.unreadKinds = &[]string{} })
		r.settle()
		if got := r.routeConditions(t, "a"); len(got) < 2 || got[1] != "ResolvedRefs=False RefNotPermitted" {
			t.Errorf("grants were read: %q", got)
		}
	}, eastLink(), shop())
}

func TestServedGatewayKinds(t *testing.T) {
	version := func(v string, kinds ...string) *metav1.APIResourceList {
		out := &metav1.APIResourceList{GroupVersion: "gateway.networking.k8s.io/" + v}
		for _, kind := range kinds {
			out.APIResources = append(out.APIResources, metav1.APIResource{Kind: kind})
		}
		return out
	}
	cases := map[string]struct {
		why   string
		kinds []*metav1.APIResourceList
		want  map[string]schema.GroupVersion
	}{
		"no such group": {why: "many clusters have none", want: map[string]schema.GroupVersion{}},
		"old": {
			why: "ReferenceGrant was v1beta1 for long",
			kinds: []*metav1.APIResourceList{
				version("v1", "Gateway", "HTTPRoute"),
				version("v1beta1", "HTTPRoute", "ReferenceGrant"),
			},
			want: map[string]schema.GroupVersion{"HTTPRoute": gatewayV1, "ReferenceGrant": gatewayV1Beta1},
		},
		"new": {
			why: "v1 has all",
			kinds: []*metav1.APIResourceList{
				version("v1", "HTTPRoute", "GRPCRoute", "ReferenceGrant"),
				version("v1beta1", "HTTPRoute", "ReferenceGrant"),
			},
			want: map[string]schema.GroupVersion{
				"HTTPRoute":      gatewayV1,
				"GRPCRoute":      gatewayV1,
				"ReferenceGrant": gatewayV1,
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			fake := &clienttesting.Fake{Resources: c.kinds}
			got, err := servedGatewayKinds(&fakediscovery.FakeDiscovery{Fake: fake})
			if d := gocmp.Diff(c.want, got); d != "" || err != nil {
				t.Errorf("%s: %v (-want +got):\n%s", c.why, err, d)
			}
		})
	}
}
