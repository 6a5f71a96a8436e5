package mirror

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// pair returns two Links for one peer whose mirrors have the same names.
func pair() (link, standby *v1alpha1.Link) {
	link, standby = eastLink(), eastLink()
	link.Spec.Import.Template, standby.Spec.Import.Template = "{service}-far", "{service}-far"
	standby.Name, standby.UID = "east-new", "link-2"
	return link, standby
}

func TestCanTakeOver(t *testing.T) {
	cases := map[string]struct {
		why    string
		change func(link, standby *v1alpha1.Link)
		want   bool
	}{
		"same rules": {why: "names and namespaces stay", change: func(_, _ *v1alpha1.Link) {}, want: true},
		"no template": {
			why:    "the default names the Link",
			change: func(a, b *v1alpha1.Link) { a.Spec.Import.Template, b.Spec.Import.Template = "", "" },
		},
		"Link in template": {why: "other names", change: func(a, b *v1alpha1.Link) {
			a.Spec.Import.Template, b.Spec.Import.Template = "{link}-{service}", "{link}-{service}"
		}},
		"another template": {
			why:    "other names",
			change: func(_, b *v1alpha1.Link) { b.Spec.Import.Template = "{service}-east" },
		},
		"another peer": {
			why:    "other Services",
			change: func(_, b *v1alpha1.Link) { b.Spec.TrustDomain = "north.1" },
		},
		"other namespaces": {
			why: "other places",
			change: func(_, b *v1alpha1.Link) {
				b.Spec.Import.Namespaces = []v1alpha1.NamespaceRule{
					{Name: "shop"},
				}
			},
		},
		"same place, as": {why: "the default written out", change: func(a, b *v1alpha1.Link) {
			a.Spec.Import.Namespaces, b.Spec.Import.Namespaces = []v1alpha1.NamespaceRule{
				{Name: "shop"},
			}, []v1alpha1.NamespaceRule{{Name: "shop", As: "shop"}}
		}, want: true},
		"another selector": {
			why:    "other places",
			change: func(_, b *v1alpha1.Link) { b.Spec.Import.NamespaceSelector = &metav1.LabelSelector{} },
		},
		"imports no more": {
			why:    "nothing to take over",
			change: func(_, b *v1alpha1.Link) { b.Spec.Import = nil },
		},
		"the very same one": {
			why:    "it cannot follow itself",
			change: func(a, b *v1alpha1.Link) { b.UID = a.UID },
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			link, standby := pair()
			c.change(link, standby)
			if got := CanTakeOver(link, standby); got != c.want {
				t.Errorf("%s: %v", c.why, got)
			}
		})
	}
}

func owners(svc *corev1.Service) []string {
	var out []string
	for _, o := range svc.OwnerReferences {
		out = append(out, fmt.Sprint(o.UID, " ", o.Controller != nil && *o.Controller))
	}
	return out
}

func TestTakeOver(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		link, standby := pair()
		far := wanted("bar", "240.0.0.2")
		far.Entry.MirrorName = "bar-far"
		get := func() *corev1.Service {
			t.Helper()
			synctest.Wait()
			var svc corev1.Service
			if err := c.api.Get(t.Context(), client.ObjectKey{
				Namespace: "shop",
				Name:      "bar-far",
			}, &svc); err != nil {
				t.Fatal(err)
			}
			return &svc
		}
		c.SetLink(link, nil)
		c.set(far)
		before := get()
		if d := cmp.Diff([]string{"link-1 true"}, owners(before)); d != "" {
			t.Fatalf("one Link owns it (-want +got):\n%s", d)
		}
		c.wrote()
		c.SetLink(link, standby)
		c.expect("a standby is added once", "patch *v1.Service shop/bar-far")
		if d := cmp.Diff([]string{"link-1 true", "link-2 false"}, owners(get())); d != "" {
			t.Fatalf("so that the mirror survives the older Link (-want +got):\n%s", d)
		}

		c.RemoveLink("east")
		c.SetLink(standby, nil)
		if s := get(); s.UID != before.UID {
			t.Fatal("the mirror was recreated")
		}
		synctest.Wait()
		if s := c.Status("east-new"); s.Pending != 0 || s.Mirrors != 0 {
			t.Fatalf("an incomplete catalog deletes nothing: %+v", s)
		}
		c.Set("east-new", far.key(), far)
		c.SetComplete("east-new", true)
		c.expect("the new Link takes both objects over", "patch *v1.Service shop/bar-far",
			"patch *v1.EndpointSlice shop/bar-far-causeway")
		after := get()
		if d := cmp.Diff([]string{
			"link-2 true",
		}, owners(after)); d != "" || after.UID != before.UID ||
			after.Labels[v1alpha1.LinkLabel] != "east-new" {
			t.Errorf("the same Service, with its ClusterIP (-want +got):\n%s", d)
		}
		bubble.Pass(resyncPeriod)
		c.expect("and it stays so")
	})
}

func TestStandbyWithOtherNamesIsNoOwner(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.set(wanted("bar", "240.0.0.2"))
		c.wrote()
		standby := eastLink()
		standby.Name, standby.UID = "east-new", "link-2"
		c.SetLink(eastLink(), standby)
		c.expect("its mirrors have other names: these are to go with their Link")
	})
}

func creating(quota int32) *v1alpha1.Link {
	link := eastLink()
	link.Spec.Import.CreateNamespaces = true
	link.Spec.Import.Quotas = &v1alpha1.ImportQuotas{Namespaces: quota}
	return link
}

func inNamespace(w *Want, namespace string) *Want {
	w.Entry.MirrorNamespace = namespace
	return w
}

func TestCreateNamespaces(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.SetLink(creating(0), nil)
		var wants []*Want
		for _, w := range many(10) {
			wants = append(wants, inNamespace(w, "far"))
		}
		c.set(wants...)
		namespaces := 0
		for _, w := range c.wrote() {
			if w == "create *v1.Namespace /far" {
				namespaces++
			}
		}
		c.status("all stand", 10, 0)
		if namespaces != 1 {
			t.Errorf("one namespace for all its mirrors is created once: %d", namespaces)
		}
		c.unset(wants...)
		c.status("all go", 0, 0)
		var ns corev1.Namespace
		if err := c.api.Get(t.Context(), client.ObjectKey{Name: "far"}, &ns); err != nil ||
			len(ns.OwnerReferences) > 0 {
			t.Errorf("a namespace may hold others' things when the last mirror goes: %v, %v",
				ns.OwnerReferences, err)
		}
	})
}

func TestNamespaceQuota(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.SetLink(creating(3), nil)
		var wants []*Want
		for i, w := range many(20) {
			wants = append(wants, inNamespace(w, fmt.Sprintf("x-%d", i)))
		}
		c.set(wants...)
		synctest.Wait()
		var all corev1.NamespaceList
		count := func() int {
			if err := c.api.List(t.Context(), &all); err != nil {
				t.Fatal(err)
			}
			return len(all.Items) - 1 // shop
		}
		s := c.Status("east")
		if n := count(); n != 3 || s.Mirrors != 3 || s.Blocked != 17 || s.Problems[0].Reason != QuotaReached {
			t.Fatalf("a peer makes no more namespaces than its quota, however many workers ask: %d, %+v", n,
				s)
		}
		c.unset(wants...)
		bubble.Pass(time.Minute)
		c.set(inNamespace(wanted("bar", "240.9.0.1"), "y"))
		bubble.Pass(time.Minute)
		if n := count(); n != 3 {
			t.Errorf("also one after the other: what was made counts, not what lives: %d", n)
		}
		c.SetLink(creating(4), nil)
		c.status("the Link's owner may raise it", 1, 0)
	})
}

func TestRefusedNamespace(t *testing.T) {
	inCluster(t, nil, func(c *cluster) {
		c.inject(refusing("create", "shop",
			apierrors.NewForbidden(schema.GroupResource{Resource: "namespaces"}, "shop", nil)))
		c.SetLink(creating(0), nil)
		c.set(many(3)...)
		c.expect("it is tried once for all mirrors, and nothing is written into it",
			"create *v1.Namespace /shop")
		c.status("and reported", 0, 0, Rejected, Rejected, Rejected)
		bubble.Pass(retryRefused - 1)
		c.expect("and not before its time")
		c.inject(nil)
		bubble.Pass(retryRefused)
		c.status("then it is", 3, 0)
	})
}

func TestKeysOf(t *testing.T) {
	meta := func(name string, labels map[string]string, owners ...metav1.OwnerReference) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels, OwnerReferences: owners}
	}
	ours := func(service string) map[string]string {
		return map[string]string{
			v1alpha1.ManagedByLabel:      v1alpha1.ManagedBy,
			v1alpha1.LinkLabel:           "east",
			discoveryv1.LabelServiceName: service,
		}
	}
	key := func(link, name string) LinkKey {
		return LinkKey{Link: link, Key: catalog.Key{Namespace: "shop", Name: name}}
	}
	slice := func(m metav1.ObjectMeta) client.Object { return &discoveryv1.EndpointSlice{ObjectMeta: m} }
	cases := map[string]struct {
		why    string
		object client.Object
		want   []LinkKey
	}{
		"a user's Service": {
			why:    "it may have the name of a mirror",
			object: &corev1.Service{ObjectMeta: meta("web", nil)},
			want:   []LinkKey{key("", "web")},
		},
		"a mirror": {
			why:    "it may not be wanted any more",
			object: &corev1.Service{ObjectMeta: meta("bar-east", nil, linkRef(eastLink(), true))},
			want:   []LinkKey{key("", "bar-east"), key("east", "bar-east")},
		},
		"a user's slice": {
			why:    "most slices belong to no mirror",
			object: slice(meta("web-x7k2p", map[string]string{discoveryv1.LabelServiceName: "web"})),
		},
		"our slice": {
			why:    "its mirror",
			object: slice(meta("bar-east-causeway", ours("bar-east"))),
			want:   []LinkKey{key("east", "bar-east")},
		},
		"our slice, second": {
			why:    "its mirror",
			object: slice(meta("bar-east-causeway-v6", ours("bar-east"))),
			want:   []LinkKey{key("east", "bar-east")},
		},
		"lent to a user's": {
			why:    "both ends",
			object: slice(meta("bar-east-causeway", ours("web"))),
			want:   []LinkKey{key("east", "web"), key("", "bar-east")},
		},
		"our slice, stripped": {
			why:    "its name is left",
			object: slice(meta("bar-east-causeway", nil)),
			want:   []LinkKey{key("", "bar-east")},
		},
		"made by Kubernetes": {
			why:    "pods under a mirror",
			object: slice(meta("bar-east-x7k2p", ours("bar-east"))),
			want:   []LinkKey{key("east", "bar-east")},
		},
		"a namespace": {
			why:    "all mirrors in it",
			object: namespace("shop"),
			want:   []LinkKey{key("", "")},
		},
		"something else": {why: "no mirror", object: &corev1.Pod{ObjectMeta: meta("bar-east", nil)}},
		"a Service that is gone": {
			why:    "its name is enough",
			object: &corev1.Service{ObjectMeta: meta("bar-east", nil)},
			want:   []LinkKey{key("", "bar-east")},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, KeysOf(c.object)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
}
