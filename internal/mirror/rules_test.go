package mirror

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

func TestImportRules(t *testing.T) {
	home := Home{Own: "causeway-system", Namespaces: map[string]map[string]string{
		"shop": {"far": "yes"}, "far-shop": {}, "pay": {}, "kube-system": {"far": "yes"}, "causeway-system": {},
	}}
	matching := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	unreadable := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "in", Values: []string{"b"}}}}
	listed := func(rules ...v1alpha1.NamespaceRule) v1alpha1.ImportRules {
		return v1alpha1.ImportRules{Services: "All", Namespaces: rules}
	}
	cases := map[string]struct {
		why      string
		rules    v1alpha1.ImportRules
		mirrors  []string
		problems []string
	}{
		"all": {
			why: "what is Kubernetes' or Causeway's own must be listed", rules: v1alpha1.ImportRules{Services: "All"},
			mirrors: []string{"pay/till-east", "shop/bar-east"}, problems: []string{NamespaceNotAllowed},
		},
		"selected": {
			why: "by the labels that they have in the peer", rules: v1alpha1.ImportRules{Services: "Selected", Selector: matching("tier", "front")},
			mirrors: []string{"shop/bar-east"},
		},
		"selected without a selector": {why: "who selects nothing gets nothing", rules: v1alpha1.ImportRules{Services: "Selected"}},
		"unreadable":                  {why: "the API server does not check selectors for us", rules: v1alpha1.ImportRules{Services: "Selected", Selector: unreadable}, problems: []string{InvalidSelector}},
		"listed":                      {why: "a list is all there is", rules: listed(v1alpha1.NamespaceRule{Name: "shop"}), mirrors: []string{"shop/bar-east"}},
		"mapped": {
			why: "the importer says where", rules: listed(v1alpha1.NamespaceRule{Name: "shop", As: "far-shop"}),
			mirrors: []string{"far-shop/bar-east"},
		},
		"two into one": {
			why: "the ledger settles names", rules: listed(v1alpha1.NamespaceRule{Name: "shop", As: "far"}, v1alpha1.NamespaceRule{Name: "pay", As: "far"}),
			mirrors: []string{"far/till-east", "far/bar-east"},
		},
		"kube-system, listed": {
			why: "by name alone, and then it is meant", rules: listed(v1alpha1.NamespaceRule{Name: "kube-system"}), mirrors: []string{"kube-system/dns-east"},
		},
		"into kube-system": {
			why: "by name alone, and then it is meant", rules: listed(v1alpha1.NamespaceRule{Name: "shop", As: "kube-system"}), mirrors: []string{"kube-system/bar-east"},
		},
		"selected namespaces": {
			why: "a label makes no place of Kubernetes' own one for mirrors", rules: v1alpha1.ImportRules{Services: "All", NamespaceSelector: matching("far", "yes")},
			mirrors: []string{"shop/bar-east"}, problems: []string{NamespaceNotAllowed},
		},
		"unreadable, of namespaces": {
			why: "the API server does not check selectors for us", rules: v1alpha1.ImportRules{Services: "All", NamespaceSelector: unreadable}, problems: []string{InvalidSelector},
		},
		"template": {
			why: "the importer says under which names", rules: v1alpha1.ImportRules{Services: "All", Template: "{link}-{namespace}-{service}", Namespaces: []v1alpha1.NamespaceRule{{Name: "shop", As: "pay"}}},
			mirrors: []string{"pay/east-shop-bar"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			peer := Peer{Services: map[catalog.Key]catalog.Service{}}
			for _, s := range []catalog.Service{
				{Namespace: "shop", Name: "bar", Labels: map[string]string{"tier": "front"}}, {Namespace: "pay", Name: "till"}, {Namespace: "kube-system", Name: "dns"},
			} {
				s.Ports = []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}}
				peer.Services[s.Key()] = s
			}
			link := eastLink()
			link.Spec.Import = &c.rules
			got, problems := home.Wants(link, peer)
			var mirrors []string
			for _, m := range got.Mirrors {
				mirrors = append(mirrors, m.MirrorNamespace+"/"+m.MirrorName)
			}
			if d := cmp.Diff(c.mirrors, mirrors); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.problems, reasons(problems)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
	t.Run("a namespace that is not here", func(t *testing.T) {
		link := eastLink()
		link.Spec.Import.NamespaceSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: metav1.LabelSelectorOpDoesNotExist}}}
		peer := peerWith(true, "bar")
		got, problems := Home{Own: "causeway-system"}.Wants(link, peer)
		if d := cmp.Diff([]string{NamespaceMissing}, reasons(problems)); d != "" || len(got.Mirrors) > 0 {
			t.Errorf("nothing is let in for want of knowledge:\n%s", d)
		}
	})
}

func TestPlanInListedNamespaces(t *testing.T) {
	d := desired(entry("bar", "240.0.0.2"))
	d.Mirrors[0].Entry.MirrorNamespace = "kube-system"
	d.Link.Spec.Import.Namespaces = []v1alpha1.NamespaceRule{{Name: "shop", As: "kube-system"}}
	changes, problems := Plan(d, standing(desired()))
	if diff := cmp.Diff([]string{"create service kube-system/bar-east", "create slice kube-system/bar-east-causeway"}, texts(changes)); diff != "" || len(problems) > 0 {
		t.Errorf("what the Link lists by name is meant: %v\n%s", problems, diff)
	}
}

func TestCreateNamespaces(t *testing.T) {
	cases := map[string]struct {
		why      string
		create   bool
		have     func(*Have)
		changes  []string
		problems []string
	}{
		"not asked for": {why: "namespaces are not ours to create", have: func(*Have) {}, problems: []string{NamespaceMissing, NamespaceMissing}},
		"asked for": {
			why: "one namespace for all its mirrors", create: true, have: func(*Have) {},
			changes: []string{
				"create namespace far", "create service far/bar-east", "create slice far/bar-east-causeway", "create service far/foo-east", "create slice far/foo-east-causeway",
			},
		},
		"there already": {
			why: "a namespace of others is used and not touched", create: true, have: func(h *Have) { h.Namespaces["far"] = true },
			changes: []string{"create service far/bar-east", "create slice far/bar-east-causeway", "create service far/foo-east", "create slice far/foo-east-causeway"},
		},
		"going away": {
			why: "it is made anew once it is gone, and not tried until then", create: true, have: func(h *Have) { h.Leaving = map[string]bool{"far": true} },
			problems: []string{NamespaceMissing, NamespaceMissing},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := desired(entry("bar", "240.0.0.2"), entry("foo", "240.0.0.3"))
			d.Link.Spec.Import.CreateNamespaces = c.create
			for i := range d.Mirrors {
				d.Mirrors[i].Entry.MirrorNamespace = "far"
			}
			h := standing(desired())
			c.have(&h)
			changes, problems := Plan(d, h)
			if diff := cmp.Diff(c.changes, texts(changes)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
			if diff := cmp.Diff(c.problems, reasons(problems)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

func TestNamespaceIsMadeOnce(t *testing.T) {
	c := newCluster(t)
	link := eastLink()
	link.Spec.Import.CreateNamespaces = true
	for range 2 {
		if _, err := c.Reconcile(t.Context(), link, peerWith(true, "bar"), []v1alpha1.LedgerMirror{entry("bar", "240.0.0.2")}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"create *v1.Namespace /shop", "create *v1.Service shop/bar-east", "create *v1.EndpointSlice shop/bar-east-causeway"}
	if d := cmp.Diff(want, c.wrote()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := c.Reconcile(t.Context(), link, peerWith(true), nil); err != nil {
		t.Fatal(err)
	}
	var ns corev1.Namespace
	if err := c.Get(t.Context(), client.ObjectKey{Name: "shop"}, &ns); err != nil || len(ns.OwnerReferences) > 0 {
		t.Errorf("a namespace may hold others' things when the last mirror goes: %v, %v", ns.OwnerReferences, err)
	}
}

func TestCopyMetadata(t *testing.T) {
	note := func(text string) map[string]string { return map[string]string{v1alpha1.CopiedAnnotation: text} }
	cases := map[string]struct {
		why                       string
		labels, annotations       map[string]string // on the mirror
		want                      Want
		wantLabels, wantAnnotated map[string]string
	}{
		"first": {
			why:        "what was taken over is noted, so that it can be taken back",
			want:       Want{Heard: true, Labels: map[string]string{"team": "a"}, Annotations: map[string]string{"note": "x"}},
			wantLabels: map[string]string{"team": "a"}, wantAnnotated: map[string]string{
				"note": "x", v1alpha1.CopiedAnnotation: `{"labels":["team"],"annotations":["note"]}`},
		},
		"beside others'": {
			why: "a user's own labels survive", labels: map[string]string{"mine": "1"}, annotations: map[string]string{"also": "mine"},
			want: Want{Heard: true, Labels: map[string]string{"team": "a"}}, wantLabels: map[string]string{"mine": "1", "team": "a"},
			wantAnnotated: map[string]string{"also": "mine", v1alpha1.CopiedAnnotation: `{"labels":["team"]}`},
		},
		"gone": {
			why: "what the source lost, or the list, the mirror loses", labels: map[string]string{"mine": "1", "team": "a"}, annotations: note(`{"labels":["team"]}`),
			want: Want{Heard: true}, wantLabels: map[string]string{"mine": "1"},
		},
		"not heard": {
			why: "silence takes nothing away", labels: map[string]string{"team": "a"}, annotations: note(`{"labels":["team"]}`),
			wantLabels: map[string]string{"team": "a"}, wantAnnotated: note(`{"labels":["team"]}`),
		},
		"note spoilt": {
			why: "a tenant may edit it: then what was taken over stays", labels: map[string]string{"team": "a"}, annotations: note(`x`),
			want: Want{Heard: true}, wantLabels: map[string]string{"team": "a"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Labels: c.labels, Annotations: c.annotations}}
			copyMetadata(svc, c.want)
			if d := cmp.Diff(c.wantLabels, svc.Labels, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: labels (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.wantAnnotated, svc.Annotations, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: annotations (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func TestCopiesOfALiveMirror(t *testing.T) {
	c := newCluster(t, namespace("shop"))
	link := eastLink()
	link.Spec.Import.CopyLabels = []string{v1alpha1.CopyAll, v1alpha1.ManagedByLabel}
	peer := peerWith(true, "bar")
	k := catalog.Key{Namespace: "shop", Name: "bar"}
	s := peer.Services[k]
	s.Labels = map[string]string{"team": "a", "prometheus.io/scrape": "x", v1alpha1.ManagedByLabel: "Helm"}
	peer.Services[k] = s
	look := func(peer Peer) map[string]string {
		t.Helper()
		if _, err := c.Reconcile(t.Context(), link, peer, []v1alpha1.LedgerMirror{entry("bar", "240.0.0.2")}); err != nil {
			t.Fatal(err)
		}
		var svc corev1.Service
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "bar-east"}, &svc); err != nil {
			t.Fatal(err)
		}
		return svc.Labels
	}
	ours := map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east"}
	with := map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east", "team": "a"}
	if d := cmp.Diff(with, look(peer)); d != "" {
		t.Errorf("what the Link lists, and our own marks above all (-want +got):\n%s", d)
	}
	c.wrote()
	if look(peer); len(c.wrote()) != 0 {
		t.Error("a second look writes nothing")
	}
	if d := cmp.Diff(with, look(Peer{})); d != "" || len(c.wrote()) != 0 {
		t.Errorf("a peer that has not been heard of takes nothing away:\n%s", d)
	}
	link.Spec.Import.CopyLabels = nil
	if d := cmp.Diff(ours, look(peer)); d != "" || len(c.wrote()) != 1 {
		t.Errorf("a list made shorter takes back (-want +got):\n%s", d)
	}
}

func TestQuotaDefaults(t *testing.T) {
	link, peer := eastLink(), peerWith(true, "bar")
	got, _ := Home{Own: "causeway-system"}.Wants(link, peer)
	if want := (ledger.Quotas{Mirrors: 1000, PerNamespace: 500, Hostnames: 64, VIPPercent: 10}); got.Quotas != want {
		t.Errorf("a Link without quotas has %+v, want %+v", got.Quotas, want)
	}
	link.Spec.Import.Quotas = &v1alpha1.ImportQuotas{Services: 7, VIPPercent: 100}
	got, _ = Home{Own: "causeway-system"}.Wants(link, peer)
	if want := (ledger.Quotas{Mirrors: 7, PerNamespace: 500, Hostnames: 64, VIPPercent: 100}); got.Quotas != want {
		t.Errorf("what is not set is as ever: %+v, want %+v", got.Quotas, want)
	}
}

func TestQuotaOfPorts(t *testing.T) {
	k := catalog.Key{Namespace: "shop", Name: "bar"}
	s := catalog.Service{Namespace: "shop", Name: "bar", Ports: []catalog.Port{
		{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}, {Name: "grpc", Protocol: "TCP", Port: 81, Route: 2001}, {Name: "dns", Protocol: "UDP", Port: 53},
	}}
	for most, problems := range map[int32][]string{1: {TooManyPorts}, 2: {ProtocolUnsupported}} {
		link := eastLink()
		link.Spec.Import.Quotas = &v1alpha1.ImportQuotas{Ports: most}
		got, told := Home{Own: "causeway-system"}.Wants(link, Peer{Services: map[catalog.Key]catalog.Service{k: s}})
		if d := cmp.Diff(problems, reasons(told)); d != "" || (len(got.Mirrors) == 0) != (most == 1) {
			t.Errorf("%d ports: half a Service would mislead its callers (-want +got):\n%s", most, d)
		}
	}
}
