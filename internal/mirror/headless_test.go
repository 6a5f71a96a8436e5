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
	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

// statefulSet is the ledger's entries of the headless Service db and its named pods.
func statefulSet(hosts ...string) []v1alpha1.LedgerMirror {
	db := entry("db", "240.0.0.9")
	db.Headless = true
	out := []v1alpha1.LedgerMirror{db}
	for i, h := range hosts {
		e := entry("db", fmt.Sprintf("240.0.0.1%d", i))
		e.Hostname, e.MirrorName = h, h+"-east"
		out = append(out, e)
	}
	return out
}

// addressed gives every Service that has no address one, as the API server does.
func addressed(h Have) Have {
	for i, k := range sortedKeys(h.Services) {
		if s := h.Services[k]; s.Spec.ClusterIP == "" {
			s.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", 10+i)
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		}
	}
	return h
}

// settled is what stands once d has been made true.
func settled(d Desired) Have {
	h := addressed(standing(d))
	for {
		changes, _ := Plan(d, h)
		if len(changes) == 0 {
			return h
		}
		for _, c := range changes {
			h.Slices[keyOf(c.Slice)] = c.Slice
		}
	}
}

var dbSlice = catalog.Key{Namespace: "shop", Name: "db-east-causeway"}

func listed(s *discoveryv1.EndpointSlice) []string {
	var out []string
	for _, e := range s.Endpoints {
		out = append(out, fmt.Sprintf("%s %s %v", *e.Hostname, e.Addresses[0], *e.Conditions.Ready))
	}
	return out
}

func TestHeadlessObjects(t *testing.T) {
	d := desired(statefulSet("db-0", "db-1")...)
	d.Mirrors[2].Ready = false
	h := settled(d)
	svc, slice := h.Services[catalog.Key{Namespace: "shop", Name: "db-east"}], h.Slices[dbSlice]
	if svc.Spec.ClusterIP != corev1.ClusterIPNone || svc.Spec.Ports[0].TargetPort.IntVal != 80 {
		t.Errorf("the mirror is headless, and connections keep their port: %v", svc.Spec)
	}
	if d := cmp.Diff([]string{"db-0 10.96.0.10 true", "db-1 10.96.0.11 false"}, listed(slice)); d != "" || *slice.Ports[0].Port != 80 {
		t.Errorf("it lists the addresses of the pods' mirrors, sorted (-want +got):\n%s", d)
	}
	one := h.Services[catalog.Key{Namespace: "shop", Name: "db-0-east"}]
	if one.Spec.ClusterIP == corev1.ClusterIPNone || one.Spec.Ports[0].TargetPort.IntVal != 4200 ||
		one.Annotations[v1alpha1.SourceAnnotation] != "shop/db" || one.Annotations[v1alpha1.HostnameAnnotation] != "db-0" {
		t.Errorf("a pod's mirror is an ordinary one that names its pod: %v %v", one.ObjectMeta, one.Spec)
	}
	if e := h.Slices[catalog.Key{Namespace: "shop", Name: "db-0-east-causeway"}].Endpoints; len(e) != 1 || e[0].Addresses[0] != "240.0.0.10" || e[0].Hostname != nil {
		t.Errorf("with a VIP of its own: %v", e)
	}
}

func TestPlanHeadless(t *testing.T) {
	svc := func(name string, change func(*corev1.Service)) func(*Have) {
		return func(h *Have) { change(h.Services[catalog.Key{Namespace: "shop", Name: name}]) }
	}
	cases := map[string]struct {
		why     string
		want    func(*Desired)
		have    func(*Have)
		changes []string
		lists   []string
	}{
		"nothing differs": {why: "nothing is written when nothing changed"},
		"one not ready": {
			why: "its own slice says so, and DNS", want: func(d *Desired) { d.Mirrors[1].Ready = false },
			changes: []string{"update slice shop/db-0-east-causeway", "update slice shop/db-east-causeway"},
			lists:   []string{"db-0 10.96.0.10 false", "db-1 10.96.0.11 true"},
		},
		"scaled down": {
			why: "DNS forgets a pod before its address goes", want: func(d *Desired) { d.Mirrors = d.Mirrors[:2] },
			changes: []string{"update slice shop/db-east-causeway", "delete service shop/db-1-east"}, lists: []string{"db-0 10.96.0.10 true"},
		},
		"scaled to zero": {
			why: "the headless mirror stays", want: func(d *Desired) { d.Mirrors = d.Mirrors[:1] },
			changes: []string{"update slice shop/db-east-causeway", "delete service shop/db-0-east", "delete service shop/db-1-east"},
		},
		"scaled up": {
			why: "the new one is listed once it has an address", want: func(d *Desired) { *d = desired(statefulSet("db-0", "db-1", "db-2")...) },
			changes: []string{"create service shop/db-2-east", "create slice shop/db-2-east-causeway"},
		},
		"made anew": {
			why: "another address", have: svc("db-0-east", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.96.0.99"} }),
			changes: []string{"update slice shop/db-east-causeway"}, lists: []string{"db-0 10.96.0.99 true", "db-1 10.96.0.11 true"},
		},
		"of another family": {
			why: "a slice has one family", have: svc("db-0-east", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"fd00::99"} }),
			changes: []string{"update slice shop/db-east-causeway"}, lists: []string{"db-1 10.96.0.11 true"},
		},
		"going": {
			why: "no new caller is sent there", have: svc("db-0-east", func(s *corev1.Service) { s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }),
			changes: []string{"update slice shop/db-east-causeway"}, lists: []string{"db-1 10.96.0.11 true"},
		},
		"a user's in the way": {
			why:     "DNS sends nobody of ours to a user's Service",
			have:    svc("db-0-east", func(s *corev1.Service) { s.OwnerReferences, s.Annotations = nil, nil }),
			changes: []string{"delete slice shop/db-0-east-causeway", "update slice shop/db-east-causeway"}, lists: []string{"db-1 10.96.0.11 true"},
		},
		"another pod's": {
			why: "without our reference it must name the very pod",
			have: svc("db-0-east", func(s *corev1.Service) {
				s.OwnerReferences, s.Annotations[v1alpha1.HostnameAnnotation] = nil, "db-1"
			}),
			changes: []string{"delete slice shop/db-0-east-causeway", "update slice shop/db-east-causeway"}, lists: []string{"db-1 10.96.0.11 true"},
		},
		"was an ordinary one": {
			why: "Kubernetes turns no Service headless: it is made anew", have: svc("db-east", func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.5" }),
			changes: []string{"delete service shop/db-east"},
		},
		"is an ordinary one now": {
			why: "nor back", want: func(d *Desired) { *d = desired(entry("db", "240.0.0.9")) },
			changes: []string{"delete service shop/db-east", "delete service shop/db-0-east", "delete service shop/db-1-east"},
		},
		"list edited": {
			why: "a tenant's edit is repaired", have: func(h *Have) { h.Slices[dbSlice].Endpoints[0].Addresses[0] = "10.9.9.9" },
			changes: []string{"update slice shop/db-east-causeway"}, lists: []string{"db-0 10.96.0.10 true", "db-1 10.96.0.11 true"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := desired(statefulSet("db-0", "db-1")...)
			h := settled(d)
			if c.have != nil {
				c.have(&h)
			}
			if c.want != nil {
				c.want(&d)
			}
			changes, _ := Plan(d, h)
			if diff := cmp.Diff(c.changes, texts(changes)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
			for _, change := range changes {
				if change.Op == Update && keyOf(change.Object()) == dbSlice {
					if diff := cmp.Diff(c.lists, listed(change.Slice)); diff != "" {
						t.Errorf("%s (-want +got):\n%s", c.why, diff)
					}
				}
			}
		})
	}
}

func TestWantsOfAStatefulSet(t *testing.T) {
	s := catalog.Service{
		Namespace: "shop", Name: "db", Headless: true, SessionAffinity: catalog.AffinityClientIP, SessionAffinitySeconds: 60,
		Ports: []catalog.Port{{Name: "sql", Protocol: "TCP", Port: 5432, Route: 2000}}, Hosts: []catalog.Host{{Name: "db-0", Ready: true}, {Name: "db-1"}},
	}
	port := []ledger.PortWant{{Name: "sql", Protocol: "TCP", Port: 5432, Route: 2000}}
	want := []ledger.MirrorWant{
		{Namespace: "shop", Service: "db", MirrorNamespace: "shop", MirrorName: "db-east", Ports: port, Headless: true, Named: true, AffinitySeconds: 60},
		{Namespace: "shop", Service: "db", Hostname: "db-0", MirrorNamespace: "shop", MirrorName: "db-0-east", Ports: port},
		{Namespace: "shop", Service: "db", Hostname: "db-1", MirrorNamespace: "shop", MirrorName: "db-1-east", Ports: port},
	}
	got, _ := Home{Own: "causeway-system"}.Wants(eastLink(), Peer{Services: map[catalog.Key]catalog.Service{s.Key(): s}})
	if d := cmp.Diff(want, got.Mirrors); d != "" {
		t.Errorf("the Service and each of its pods (-want +got):\n%s", d)
	}
}

func TestLifeOfAStatefulSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		k := catalog.Key{Namespace: "shop", Name: "db"}
		peer := func(hosts ...catalog.Host) Peer {
			return Peer{Complete: true, Services: map[catalog.Key]catalog.Service{k: {Namespace: "shop", Name: "db", Ready: true, Headless: true, Hosts: hosts}}}
		}
		list := func() []string {
			t.Helper()
			var s discoveryv1.EndpointSlice
			if err := c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "db-east-causeway"}, &s); err != nil {
				t.Fatal(err)
			}
			return listed(&s)
		}
		both := peer(catalog.Host{Name: "db-0", Ready: true}, catalog.Host{Name: "db-1", Ready: true})
		r := c.reconcile(t, both, statefulSet("db-0", "db-1")...)
		if r.Pending != 2 || r.RecheckAfter != retryWeather {
			t.Fatalf("it is not done until both are listed: %+v", r)
		}
		time.Sleep(r.RecheckAfter)
		if r = c.reconcile(t, both, statefulSet("db-0", "db-1")...); r.Pending != 0 || r.Mirrors != 3 {
			t.Fatalf("now it is: %+v", r)
		}
		if d := cmp.Diff([]string{"db-0 10.96.0.1 true", "db-1 10.96.0.3 true"}, list()); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		c.wrote()
		if c.reconcile(t, both, statefulSet("db-0", "db-1")...); len(c.wrote()) != 0 {
			t.Fatal("a second look writes nothing")
		}

		killed := peer(catalog.Host{Name: "db-1", Ready: true}) // the ledger keeps db-0 for a while
		r = c.reconcile(t, killed, statefulSet("db-0", "db-1")...)
		time.Sleep(r.RecheckAfter)
		c.reconcile(t, killed, statefulSet("db-0", "db-1")...)
		if d := cmp.Diff([]string{"db-0 10.96.0.1 false", "db-1 10.96.0.3 true"}, list()); d != "" {
			t.Fatalf("a pod that was killed is not ready (-want +got):\n%s", d)
		}
		c.reconcile(t, both, statefulSet("db-0", "db-1")...)
		if d := cmp.Diff([]string{"db-0 10.96.0.1 true", "db-1 10.96.0.3 true"}, list()); d != "" {
			t.Fatalf("and back at the same address (-want +got):\n%s", d)
		}
		c.reconcile(t, Peer{Complete: true}, nil...)
		var left corev1.ServiceList
		if err := c.List(t.Context(), &left); err != nil || len(left.Items) != 0 {
			t.Fatalf("unexported, all of it goes: %v, %v", left.Items, err)
		}
	})
}

func TestOrdinaryBecomesHeadless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		db := statefulSet("db-0")
		db[0].Headless = false
		c.reconcile(t, peerWith(true, "db"), db[0])
		db[0].Headless = true
		for range 4 {
			r := c.reconcile(t, peerWith(true, "db"), db...)
			time.Sleep(max(r.RecheckAfter, time.Second))
		}
		var svc corev1.Service
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "db-east"}, &svc); err != nil || svc.Spec.ClusterIP != corev1.ClusterIPNone {
			t.Errorf("it is made anew, headless: %v, %v", svc.Spec, err)
		}
	})
}
