package mirror

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

func TestImportRules(t *testing.T) {
	home := Namespaces{
		"shop":            {"far": "yes"},
		"far-shop":        {},
		"pay":             {},
		"kube-system":     {"far": "yes"},
		"causeway-system": {},
	}
	matching := func(key, value string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
	unreadable := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "a", Operator: "in", Values: []string{"b"}},
	}}
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
			why:     "what is Kubernetes' or Causeway's own must be listed",
			rules:   v1alpha1.ImportRules{Services: "All"},
			mirrors: []string{"pay/till-east", "shop/bar-east"}, problems: []string{NamespaceNotAllowed},
		},
		"selected": {
			why:     "by the labels that they have in the peer",
			rules:   v1alpha1.ImportRules{Services: "Selected", Selector: matching("tier", "front")},
			mirrors: []string{"shop/bar-east"},
		},
		"selected without a selector": {
			why:   "who selects nothing gets nothing",
			rules: v1alpha1.ImportRules{Services: "Selected"},
		},
		"unreadable": {
			why:      "the API server does not check selectors for us",
			rules:    v1alpha1.ImportRules{Services: "Selected", Selector: unreadable},
			problems: []string{InvalidSelector},
		},
		"listed": {
			why:     "a list is all there is",
			rules:   listed(v1alpha1.NamespaceRule{Name: "shop"}),
			mirrors: []string{"shop/bar-east"},
		},
		"mapped": {
			why:     "the importer says where",
			rules:   listed(v1alpha1.NamespaceRule{Name: "shop", As: "far-shop"}),
			mirrors: []string{"far-shop/bar-east"},
		},
		"two into one": {
			why: "the ledger settles names",
			rules: listed(v1alpha1.NamespaceRule{
				Name: "shop",
				As:   "far",
			}, v1alpha1.NamespaceRule{Name: "pay", As: "far"}),
			mirrors: []string{"far/till-east", "far/bar-east"},
		},
		"kube-system, listed": {
			why:     "by name alone, and then it is meant",
			rules:   listed(v1alpha1.NamespaceRule{Name: "kube-system"}),
			mirrors: []string{"kube-system/dns-east"},
		},
		"into kube-system": {
			why:     "by name alone, and then it is meant",
			rules:   listed(v1alpha1.NamespaceRule{Name: "shop", As: "kube-system"}),
			mirrors: []string{"kube-system/bar-east"},
		},
		"selected namespaces": {
			why:     "a label makes no place of Kubernetes' own one for mirrors",
			rules:   v1alpha1.ImportRules{Services: "All", NamespaceSelector: matching("far", "yes")},
			mirrors: []string{"shop/bar-east"}, problems: []string{NamespaceNotAllowed},
		},
		"unreadable, of namespaces": {
			why:      "the API server does not check selectors for us",
			rules:    v1alpha1.ImportRules{Services: "All", NamespaceSelector: unreadable},
			problems: []string{InvalidSelector},
		},
		"template": {
			why: "the importer says under which names",
			rules: v1alpha1.ImportRules{
				Services:   "All",
				Template:   "{link}-{namespace}-{service}",
				Namespaces: []v1alpha1.NamespaceRule{{Name: "shop", As: "pay"}},
			},
			mirrors: []string{"pay/east-shop-bar"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			link := eastLink()
			link.Spec.Import = &c.rules
			rules, invalid := NewRules(link, "causeway-system")
			var mirrors []string
			var problems []Problem
			if invalid != nil {
				problems = append(problems, *invalid)
			}
			for _, s := range []catalog.Service{
				{Namespace: "kube-system", Name: "dns"}, {Namespace: "pay", Name: "till"},
				{Namespace: "shop", Name: "bar", Labels: map[string]string{"tier": "front"}},
			} {
				s.Ports = []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}}
				wants, problem := rules.Wants(s, home)
				for _, m := range wants {
					mirrors = append(mirrors, m.MirrorNamespace+"/"+m.MirrorName)
				}
				if problem != nil {
					problems = append(problems, *problem)
				}
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
		type requirement = metav1.LabelSelectorRequirement
		link.Spec.Import.NamespaceSelector = &metav1.LabelSelector{MatchExpressions: []requirement{
			{Key: "a", Operator: metav1.LabelSelectorOpDoesNotExist},
		}}
		s := catalog.Service{
			Namespace: "shop",
			Name:      "bar",
			Ports:     []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}},
		}
		wants, problem := rulesOf(link).Wants(s, nil)
		if problem == nil || problem.Reason != NamespaceMissing || len(wants) > 0 {
			t.Errorf("nothing is let in for want of knowledge: %v, %v", wants, problem)
		}
	})
}

func TestWants(t *testing.T) {
	tcp := catalog.Port{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}
	udp := catalog.Port{Name: "dns", Protocol: "UDP", Port: 53}
	service := func(namespace, name string, ports ...catalog.Port) catalog.Service {
		return catalog.Service{Namespace: namespace, Name: name, Ports: ports, SessionAffinitySeconds: 600}
	}
	cases := map[string]struct {
		why     string
		link    func(*v1alpha1.ImportRules)
		none    bool // no import rules
		service catalog.Service
		mirror  string
		problem string
	}{
		"plain": {
			why:     "name and Link make the name",
			service: service("shop", "bar", tcp),
			mirror:  "shop/bar-east",
		},
		"udp beside tcp": {
			why:     "what is carried is mirrored, the rest is reported",
			service: service("shop", "bar", tcp, udp),
			mirror:  "shop/bar-east",
			problem: ProtocolUnsupported,
		},
		"udp alone": {
			why:     "a mirror needs a port",
			service: service("shop", "bar", udp),
			problem: NoTCPPort,
		},
		"kube-system": {
			why:     "no VIP is spent on what is never made",
			service: service("kube-system", "dns", tcp),
			problem: NamespaceNotAllowed,
		},
		"Causeway's own": {
			why:     "no VIP is spent on what is never made",
			service: service("causeway-system", "x", tcp),
			problem: NamespaceNotAllowed,
		},
		"no import rules": {
			why:     "absent rules let nothing cross",
			none:    true,
			service: service("shop", "bar", tcp),
		},
		"too many ports": {
			why:  "half a Service would mislead its callers",
			link: func(r *v1alpha1.ImportRules) { r.Quotas = &v1alpha1.ImportQuotas{Ports: 1} },
			service: service("shop", "bar", tcp, catalog.Port{
				Name:     "grpc",
				Protocol: "TCP",
				Port:     81,
				Route:    2001,
			}),
			problem: TooManyPorts,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			link := eastLink()
			if c.none {
				link.Spec.Import = nil
			}
			if c.link != nil {
				c.link(link.Spec.Import)
			}
			wants, problem := rulesOf(link).Wants(c.service, nil)
			got, reason := "", ""
			for _, m := range wants {
				got += m.MirrorNamespace + "/" + m.MirrorName
				if len(m.Ports) != 1 || m.Ports[0].Route != 2000 || m.AffinitySeconds != 600 {
					t.Errorf("%s: %+v", c.why, m)
				}
			}
			if problem != nil {
				reason = problem.Reason
			}
			if got != c.mirror || reason != c.problem {
				t.Errorf("%s: mirrors %q, problem %q", c.why, got, reason)
			}
		})
	}
}

func TestQuotaDefaults(t *testing.T) {
	link := eastLink()
	if got, want := rulesOf(link).Quotas(), (ledger.Quotas{
		Mirrors:      1000,
		PerNamespace: 500,
		Hostnames:    64,
		VIPPercent:   10,
	}); got != want {
		t.Errorf("a Link without quotas has %+v, want %+v", got, want)
	}
	link.Spec.Import.Quotas = &v1alpha1.ImportQuotas{Services: 7, VIPPercent: 100}
	if got, want := rulesOf(link).Quotas(), (ledger.Quotas{
		Mirrors:      7,
		PerNamespace: 500,
		Hostnames:    64,
		VIPPercent:   100,
	}); got != want {
		t.Errorf("what is not set has its default: %+v, want %+v", got, want)
	}
}

func TestNamesTooLong(t *testing.T) {
	long := strings.Repeat("a", 63)
	names := map[string]bool{}
	for i, s := range []catalog.Service{
		{Name: long},
		{Name: long[:62] + "b"},
		{Name: "db", Headless: true, Hosts: []catalog.Host{{Name: strings.Repeat("h", 63)}}},
	} {
		s.Namespace = "shop"
		s.Ports = []catalog.Port{{Name: strings.Repeat("p", 15), Protocol: "TCP", Port: 80, Route: 2000}}
		wants, _ := rulesOf(eastLink()).Wants(s, nil)
		for j, m := range wants {
			w := wanted("x", fmt.Sprintf("240.0.%d.%d", i, j))
			w.Entry.MirrorName, w.Entry.Headless, w.Entry.Hostname = m.MirrorName, m.Headless, m.Hostname
			changes, _ := PlanMirror(eastScope(true), w.key(), w, true, Have{NamespaceExists: true})
			names[changes[0].Service.Name] = true
			if errs := validation.IsDNS1035Label(changes[0].Service.Name); len(errs) > 0 {
				t.Errorf("no Service can have the name %s: %v", changes[0].Service.Name, errs)
			}
			if errs := validation.IsDNS1123Subdomain(changes[1].Slice.Name); len(errs) > 0 {
				t.Errorf("no slice can have the name %s: %v", changes[1].Slice.Name, errs)
			}
			for key, value := range changes[1].Slice.Labels {
				if errs := validation.IsValidLabelValue(value); len(errs) > 0 {
					t.Errorf("%s cannot be %s: %v", key, value, errs)
				}
			}
		}
	}
	if len(names) != 4 {
		t.Errorf("each source has a name of its own: %v", names)
	}
}

func TestPorts(t *testing.T) {
	w := wanted("bar", "240.0.0.2")
	w.Entry.Ports = []ledger.MirrorPort{
		{Name: "http", Protocol: "TCP", Port: 8080, AppProtocol: "http", Route: 2000},
		{Name: "old", Protocol: "TCP", Port: 70, Index: 1},
		{Name: "grpc", Protocol: "TCP", Port: 90, Index: 2, AppProtocol: "kubernetes.io/h2c", Route: 2001},
	}
	h := standing(eastScope(true), w)
	var got []string
	for i, p := range h.Service.Spec.Ports {
		s := h.Slices[0].Ports[i]
		got = append(got, fmt.Sprintf("%s %d→%d %s", p.Name, p.Port, p.TargetPort.IntVal, *p.AppProtocol))
		if *s.Name != p.Name || *s.Port != p.TargetPort.IntVal || *s.AppProtocol != *p.AppProtocol {
			t.Errorf("Service and slice disagree on port %s", p.Name)
		}
	}
	if d := cmp.Diff([]string{"http 8080→4200 http", "grpc 90→4202 kubernetes.io/h2c"}, got); d != "" {
		t.Errorf("a port leads to the listener of its index, and a port that is not offered is not shown "+
			"(-want +got):\n%s", d)
	}
	if got := h.Service.Spec.SessionAffinity; got != corev1.ServiceAffinityNone {
		t.Errorf("a mirror has one endpoint, so kube-proxy has no affinity to honor: %s", got)
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
			why: "what was taken over is noted, so that it can be taken back",
			want: Want{
				Known:       true,
				Labels:      map[string]string{"team": "a"},
				Annotations: map[string]string{"note": "x"},
			},
			wantLabels: map[string]string{"team": "a"}, wantAnnotated: map[string]string{
				"note": "x", v1alpha1.CopiedAnnotation: `{"labels":["team"],"annotations":["note"]}`},
		},
		"beside others'": {
			why:         "a user's own labels survive",
			labels:      map[string]string{"mine": "1"},
			annotations: map[string]string{"also": "mine"},
			want:        Want{Known: true, Labels: map[string]string{"team": "a"}},
			wantLabels:  map[string]string{"mine": "1", "team": "a"},
			wantAnnotated: map[string]string{
				"also":                    "mine",
				v1alpha1.CopiedAnnotation: `{"labels":["team"]}`,
			},
		},
		"gone": {
			why:         "what the source lost, or the list, the mirror loses",
			labels:      map[string]string{"mine": "1", "team": "a"},
			annotations: note(`{"labels":["team"]}`),
			want:        Want{Known: true}, wantLabels: map[string]string{"mine": "1"},
		},
		"not known": {
			why:         "silence takes nothing away",
			labels:      map[string]string{"team": "a"},
			annotations: note(`{"labels":["team"]}`),
			wantLabels:  map[string]string{"team": "a"}, wantAnnotated: note(`{"labels":["team"]}`),
		},
		"note spoilt": {
			why:         "a tenant may edit it: then what was taken over stays",
			labels:      map[string]string{"team": "a"},
			annotations: note(`x`),
			want:        Want{Known: true}, wantLabels: map[string]string{"team": "a"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
				Labels:      c.labels,
				Annotations: c.annotations,
			}}
			differs := copiesDiffer(&c.want, svc)
			before := svc.DeepCopy()
			copyMetadata(svc, &c.want)
			if differs == equality.Semantic.DeepEqual(before, svc) {
				t.Errorf("%s: a difference is seen: %v", c.why, differs)
			}
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
	inCluster(t, shop, func(c *cluster) {
		link := eastLink()
		link.Spec.Import.CopyLabels = []string{v1alpha1.CopyAll, v1alpha1.ManagedByLabel}
		s := &catalog.Service{Namespace: "shop", Name: "bar", Ready: true, Labels: map[string]string{
			"team": "a", "prometheus.io/scrape": "x", v1alpha1.ManagedByLabel: "Helm",
		}}
		look := func(s *catalog.Service) map[string]string {
			c.SetLink(link, nil)
			c.Set("east", barKey, rulesOf(link).Want(entry("bar", "240.0.0.2"), s))
			return c.bar().Labels
		}
		ours := map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east"}
		with := map[string]string{
			v1alpha1.ManagedByLabel: v1alpha1.ManagedBy,
			v1alpha1.LinkLabel:      "east",
			"team":                  "a",
		}
		if d := cmp.Diff(with, look(s)); d != "" {
			t.Errorf("what the Link lists, and our own marks above all (-want +got):\n%s", d)
		}
		c.wrote()
		if d := cmp.Diff(with, look(nil)); d != "" || len(c.wrote()) != 0 {
			t.Errorf("a peer that has said nothing takes nothing away:\n%s", d)
		}
		link = link.DeepCopy()
		link.Spec.Import.CopyLabels = nil
		if d := cmp.Diff(ours, look(s)); d != "" || len(c.wrote()) != 1 {
			t.Errorf("a list made shorter takes back (-want +got):\n%s", d)
		}
	})
}
