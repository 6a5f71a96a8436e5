package mirror

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// statefulSet is the headless mirror of db and the mirrors of its named pods.
func statefulSet(hosts ...string) []*Want {
	db := wanted("db", "240.0.0.9")
	db.Entry.Headless = true
	out := []*Want{db}
	for i, h := range hosts {
		w := wanted("db", fmt.Sprintf("240.0.0.1%d", i))
		w.Entry.Hostname, w.Entry.MirrorName = h, h+"-east"
		out = append(out, w)
	}
	return out
}

var dbKey = catalog.Key{Namespace: "shop", Name: "db-east"}

// standingSet is what stands of a headless mirror whose named pods' mirrors stand.
func standingSet(s *Scope, wants []*Want) Have {
	h := Have{NamespaceExists: true}
	for i, w := range wants[1:] {
		svc := standing(s, w).Service
		svc.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 10+i)
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
		h.Companions = append(h.Companions, Companion{Want: w, Service: svc, Ready: w.Ready})
	}
	changes, _ := PlanMirror(s, dbKey, wants[0], true, h)
	h.Service, h.Slices = changes[0].Service, []*discoveryv1.EndpointSlice{changes[1].Slice}
	h.Service.UID, h.Slices[0].OwnerReferences[0].UID = "service-1", "service-1"
	return h
}

func listed(s *discoveryv1.EndpointSlice) []string {
	var out []string
	for _, e := range s.Endpoints {
		out = append(out, fmt.Sprintf("%s %s %v", *e.Hostname, e.Addresses[0], *e.Conditions.Ready))
	}
	return out
}

func TestHeadlessObjects(t *testing.T) {
	s, wants := eastScope(true), statefulSet("db-0", "db-1")
	wants[2].Ready = false
	h := standingSet(s, wants)
	if h.Service.Spec.ClusterIP != corev1.ClusterIPNone || h.Service.Spec.Ports[0].TargetPort.IntVal != 80 {
		t.Errorf("the mirror is headless, and connections keep their port: %v", h.Service.Spec)
	}
	if d := cmp.Diff([]string{
		"db-0 10.96.0.10 true",
		"db-1 10.96.0.11 false",
	}, listed(h.Slices[0])); d != "" || *h.Slices[0].Ports[0].Port != 80 {
		t.Errorf("it lists the addresses of the pods' mirrors, sorted (-want +got):\n%s", d)
	}
	one := h.Companions[0].Service
	if one.Spec.Ports[0].TargetPort.IntVal != 4200 ||
		one.Annotations[v1alpha1.SourceAnnotation] != "shop/db" ||
		one.Annotations[v1alpha1.HostnameAnnotation] != "db-0" {
		t.Errorf("a pod's mirror is an ordinary one that names its pod: %v %v", one.ObjectMeta, one.Spec)
	}
	if e := standing(s, wants[1]).Slices[0].Endpoints; len(e) != 1 || e[0].Addresses[0] != "240.0.0.10" ||
		e[0].Hostname != nil {
		t.Errorf("with a VIP of its own: %v", e)
	}
}

func TestPlanHeadless(t *testing.T) {
	first := func(change func(*corev1.Service)) func(*Have) {
		return func(h *Have) { change(h.Companions[0].Service) }
	}
	update := []string{"update slice shop/db-east-causeway"}
	cases := map[string]struct {
		why     string
		have    func(*Have)
		changes []string
		lists   []string
	}{
		"nothing differs": {why: "nothing is written when nothing changed", have: func(*Have) {}},
		"one not ready": {
			why:     "DNS says so",
			have:    func(h *Have) { h.Companions[0].Ready = false },
			changes: update,
			lists:   []string{"db-0 10.96.0.10 false", "db-1 10.96.0.11 true"},
		},
		"scaled down": {
			why:     "DNS drops a pod that is gone",
			have:    func(h *Have) { h.Companions = h.Companions[:1] },
			changes: update,
			lists:   []string{"db-0 10.96.0.10 true"},
		},
		"scaled to zero": {
			why:     "the headless mirror stays",
			have:    func(h *Have) { h.Companions = nil },
			changes: update,
		},
		"not made yet": {
			why:     "a pod is listed once its mirror has an address",
			have:    func(h *Have) { h.Companions[0].Service = nil },
			changes: update,
			lists:   []string{"db-1 10.96.0.11 true"},
		},
		"made again": {
			why:     "another address",
			have:    first(func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.0.99"} }),
			changes: update, lists: []string{"db-0 10.96.0.99 true", "db-1 10.96.0.11 true"},
		},
		"of another family": {
			why:     "a slice has one family",
			have:    first(func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"fd00::99"} }),
			changes: update, lists: []string{"db-1 10.96.0.11 true"},
		},
		"going": {
			why: "no new caller is sent there",
			have: first(func(s *corev1.Service) {
				s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1,
					0)}
			}),
			changes: update, lists: []string{"db-1 10.96.0.11 true"},
		},
		"a user's in the way": {
			why:     "the DNS of a mirror never lists a user's Service",
			have:    first(func(s *corev1.Service) { s.OwnerReferences, s.Annotations = nil, nil }),
			changes: update, lists: []string{"db-1 10.96.0.11 true"},
		},
		"another pod's": {
			why: "without our reference it must name the very pod",
			have: first(func(s *corev1.Service) {
				s.OwnerReferences, s.Annotations[v1alpha1.HostnameAnnotation] = nil, "db-1"
			}),
			changes: update, lists: []string{"db-1 10.96.0.11 true"},
		},
		"was an ordinary one": {
			why:     "Kubernetes turns no Service headless: it is made again",
			have:    func(h *Have) { h.Service.Spec.ClusterIP = "10.96.0.5" },
			changes: []string{"delete service shop/db-east"},
		},
		"list edited": {
			why:     "a tenant's edit is repaired",
			have:    func(h *Have) { h.Slices[0].Endpoints[0].Addresses[0] = "10.9.9.9" },
			changes: update, lists: []string{"db-0 10.96.0.10 true", "db-1 10.96.0.11 true"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, wants := eastScope(true), statefulSet("db-0", "db-1")
			h := standingSet(s, wants)
			c.have(&h)
			changes, _ := PlanMirror(s, dbKey, wants[0], true, h)
			if d := cmp.Diff(c.changes, texts(changes)); d != "" {
				t.Fatalf("%s (-want +got):\n%s", c.why, d)
			}
			if len(changes) > 0 && changes[0].Slice != nil {
				if d := cmp.Diff(c.lists, listed(changes[0].Slice)); d != "" {
					t.Errorf("%s (-want +got):\n%s", c.why, d)
				}
			}
		})
	}
}

func TestWantsOfAStatefulSet(t *testing.T) {
	s := catalog.Service{
		Namespace:              "shop",
		Name:                   "db",
		Headless:               true,
		SessionAffinity:        catalog.AffinityClientIP,
		SessionAffinitySeconds: 60,
		Ports:                  []catalog.Port{{Name: "sql", Protocol: "TCP", Port: 5432, Route: 2000}},
		Hosts:                  []catalog.Host{{Name: "db-0", Ready: true}, {Name: "db-1"}},
	}
	port := []ledger.PortWant{{Name: "sql", Protocol: "TCP", Port: 5432, Route: 2000}}
	want := []ledger.MirrorWant{
		{
			Namespace:       "shop",
			Service:         "db",
			MirrorNamespace: "shop",
			MirrorName:      "db-east",
			Ports:           port,
			Headless:        true,
			Named:           true,
			AffinitySeconds: 60,
		},
		{
			Namespace:       "shop",
			Service:         "db",
			Hostname:        "db-0",
			MirrorNamespace: "shop",
			MirrorName:      "db-0-east",
			Ports:           port,
		},
		{
			Namespace:       "shop",
			Service:         "db",
			Hostname:        "db-1",
			MirrorNamespace: "shop",
			MirrorName:      "db-1-east",
			Ports:           port,
		},
	}
	got, _ := rulesOf(eastLink()).Wants(s, nil)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the Service and each of its pods (-want +got):\n%s", d)
	}
	for i, ready := range []bool{true, false} {
		w := rulesOf(eastLink()).Want(ledger.Mirror{Source: ledger.Source{Hostname: s.Hosts[i].Name}}, &s)
		if w.Ready != ready || !w.Known {
			t.Errorf("each mirror shows its own pod: %+v", w)
		}
	}
}

func TestLifeOfAStatefulSet(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		list := func() []string {
			t.Helper()
			synctest.Wait()
			var s discoveryv1.EndpointSlice
			if err := c.api.Get(t.Context(), client.ObjectKey{
				Namespace: "shop",
				Name:      "db-east-causeway",
			}, &s); err != nil {
				t.Fatal(err)
			}
			return listed(&s)
		}
		c.inject(func(_ string, o client.Object) error { // addresses that do not depend on the order
			if svc, is := o.(*corev1.Service); is && svc.Spec.ClusterIP == "" {
				svc.Spec.ClusterIP = map[string]string{
					"db-0-east": "10.96.0.1",
					"db-1-east": "10.96.0.3",
				}[svc.Name]
				svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
			}
			return nil
		})
		wants := statefulSet("db-0", "db-1")
		c.set(wants...)
		if n := len(c.wrote()); n != 6 {
			t.Fatalf("three Services and three slices, each written once: %d writes", n)
		}
		c.status("all stand", 3, 0)
		both := []string{"db-0 10.96.0.1 true", "db-1 10.96.0.3 true"}
		if d := cmp.Diff(both, list()); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}

		c.set(down(wants[1])) // the pod was killed; the ledger keeps its mirror for a while
		bubble.Pass(downAfter)
		if d := cmp.Diff([]string{"db-0 10.96.0.1 false", "db-1 10.96.0.3 true"}, list()); d != "" {
			t.Fatalf("a pod that was killed is not ready (-want +got):\n%s", d)
		}
		c.set(wants[1])
		if d := cmp.Diff(both, list()); d != "" {
			t.Fatalf("and back at the same address (-want +got):\n%s", d)
		}

		c.wrote()
		c.unset(wants[2])
		c.expect("DNS drops a pod before its address goes", "patch *v1.EndpointSlice shop/db-east-causeway",
			"delete *v1.Service shop/db-1-east")
		c.unset(wants...)
		c.status("unexported, all of it goes", 0, 0)
		if n := len(c.links["east"].groups); n != 0 {
			t.Errorf("nothing is remembered: %d", n)
		}
	})
}

// A new leader is given the mirrors of a StatefulSet that stands. It must not shorten the
// list of the headless one.
func TestRestartWithAStatefulSet(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		wants := statefulSet("db-0", "db-1", "db-2")
		for _, w := range wants {
			w.Known = false
		}
		c.set(wants...)
		c.status("all stand", 4, 0)
		c.wrote()
		for range 10 {
			c.RemoveLink("east")
			c.SetLink(eastLink(), nil)
			c.set(wants...)
			c.expect("nothing differs")
		}
	})
}

func TestOrdinaryBecomesHeadless(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		db := statefulSet("db-0")
		c.set(wanted("db", "240.0.0.9"))
		c.wrote()
		c.set(db...)
		bubble.Pass(retryConflict)
		var svc corev1.Service
		if err := c.api.Get(t.Context(), client.ObjectKey{
			Namespace: "shop",
			Name:      "db-east",
		}, &svc); err != nil || svc.Spec.ClusterIP != corev1.ClusterIPNone {
			t.Errorf("it is made again, headless: %v, %v", svc.Spec, err)
		}
	})
}
