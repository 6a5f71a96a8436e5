package catalog

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

func matching(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

func TestExportRules(t *testing.T) {
	invalid := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "a", Operator: "in", Values: []string{"b"}},
	}}
	cases := map[string]struct {
		why      string
		rules    v1alpha1.ExportRules
		unknown  bool // the Index does not know the namespace
		visible  bool
		problems []string
	}{
		"all": {
			why:     "the Link admits every exported Service",
			rules:   v1alpha1.ExportRules{Services: "All"},
			visible: true,
		},
		"selected": {
			why:     "the selector matches the Service's labels",
			rules:   v1alpha1.ExportRules{Services: "Selected", Selector: matching("tier", "front")},
			visible: true,
		},
		"not selected": {
			why:   "the selector does not match the Service's labels",
			rules: v1alpha1.ExportRules{Services: "Selected", Selector: matching("tier", "back")},
		},
		"by the export label": {
			why: "a selector can match the export label",
			rules: v1alpha1.ExportRules{
				Services: "Selected",
				Selector: matching(v1alpha1.ExportLabel, "true"),
			},
			visible: true,
		},
		"no selector": {
			why:   "an absent selector selects nothing",
			rules: v1alpha1.ExportRules{Services: "Selected"},
		},
		"unknown selection": {
			why:      "invalid rules admit nothing",
			rules:    v1alpha1.ExportRules{Services: "Some"},
			problems: []string{InvalidSelector},
		},
		"invalid": {
			why:      "the API server does not validate selectors of custom resources",
			rules:    v1alpha1.ExportRules{Services: "Selected", Selector: invalid},
			problems: []string{InvalidSelector},
		},
		"invalid, of namespaces": {
			why:      "the API server does not validate selectors of custom resources",
			rules:    v1alpha1.ExportRules{Services: "All", NamespaceSelector: invalid},
			problems: []string{InvalidSelector},
		},
		"namespace listed": {
			why:     "the list names the namespace",
			rules:   v1alpha1.ExportRules{Services: "All", Namespaces: []string{"other", "shop"}},
			visible: true,
		},
		"namespace not listed": {
			why:   "the list does not name the namespace",
			rules: v1alpha1.ExportRules{Services: "All", Namespaces: []string{"other"}},
		},
		"both must hold": {
			why: "each rule narrows the others",
			rules: v1alpha1.ExportRules{
				Services:   "Selected",
				Selector:   matching("tier", "back"),
				Namespaces: []string{"shop"},
			},
		},
		"namespace selected": {
			why:     "the namespace's labels match",
			rules:   v1alpha1.ExportRules{Services: "All", NamespaceSelector: matching("team", "a")},
			visible: true,
		},
		"namespace not selected": {
			why:   "the namespace's labels do not match",
			rules: v1alpha1.ExportRules{Services: "All", NamespaceSelector: matching("team", "b")},
		},
		"namespace unknown": {
			why:     "labels that are unknown do not match",
			unknown: true,
			rules:   v1alpha1.ExportRules{Services: "All", NamespaceSelector: matching("team", "a")},
		},
		"namespace unknown, selected by absence": {
			why: "a namespace that is unknown is not known to lack a label", unknown: true,
			rules: v1alpha1.ExportRules{Services: "All", NamespaceSelector: &metav1.LabelSelector{
				MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: "secret", Operator: metav1.LabelSelectorOpDoesNotExist},
				}}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			in.Services[0].Labels["tier"] = "front"
			in.Links[0].Spec.Export = &c.rules
			in.Links = append(in.Links, linkTo("north"))
			if !c.unknown {
				in.Namespaces = []corev1.Namespace{
					{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "a"}}},
				}
			}
			got := in.build()
			if visible := len(got.For("west")) == 1; visible != c.visible {
				t.Errorf("%s: the peer sees it: %v", c.why, visible)
			}
			if len(got.For("north")) != 1 {
				t.Errorf("the rules of one Link concern another")
			}
			if d := cmp.Diff(c.problems, reasonsOf(got.LinkProblems["west"]),
				cmpopts.EquateEmpty()); d != "" || len(got.LinkProblems["north"]) > 0 {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func TestLinkProblems(t *testing.T) {
	in := world()
	in.Services[0].Spec.Ports = append(in.Services[0].Spec.Ports, corev1.ServicePort{
		Name:     "dns",
		Protocol: "UDP",
		Port:     53,
	})
	hidden := linkTo("north")
	hidden.Spec.Export.Namespaces = []string{"pay"}
	in.Links = append(in.Links, hidden)
	got := in.build()
	if d := cmp.Diff([]string{ProtocolUnsupported}, reasonsOf(got.Problems)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string][]Problem{"west": got.Problems}, got.LinkProblems); d != "" {
		t.Errorf("a Link has the problems of Services that it admits, and no others (-want +got):\n%s", d)
	}
}

func TestCopied(t *testing.T) {
	source := map[string]string{
		"team": "a", "example.com/owner": "b",
		"causeway.dev/export": "true", "mirror.linkerd.io/exported": "true", lastApplied: "{}",
		"getambassador.io/config":                           "x",
		"external-dns.alpha.kubernetes.io/hostname":         "x",
		"app.kubernetes.io/instance":                        "x",
		"argocd.argoproj.io/tracking-id":                    "x",
		"meta.helm.sh/release-name":                         "x",
		"service.kubernetes.io/service-proxy-name":          "x",
		"prometheus.io/scrape":                              "x",
		"service.beta.kubernetes.io/aws-load-balancer-type": "x",
		"tailscale.com/expose":                              "x",
		"kustomize.toolkit.fluxcd.io/name":                  "x",
		"traefik.ingress.kubernetes.io/service.sticky":      "x",
		"cloud.google.com/neg":                              "x",
		"networking.istio.io/exportTo":                      "x",
		"config.linkerd.io/opaque-ports":                    "x",
		"olm.operators.coreos.com/x":                        "x",
	}
	cases := map[string]struct {
		why  string
		list []string
		want []string
	}{
		"none":   {why: "mirrors copy nothing by default"},
		"one":    {why: "the list names the key", list: []string{"team"}, want: []string{"team"}},
		"absent": {why: "the list names a key that the Service lacks", list: []string{"absent"}},
		"all": {
			why:  "All leaves out keys that instruct other controllers",
			list: []string{v1alpha1.CopyAll},
			want: []string{"example.com/owner", "team"},
		},
		"instructing, named": {
			why:  "the importer named the key",
			list: []string{"prometheus.io/scrape"},
			want: []string{"prometheus.io/scrape"},
		},
		"all and one": {
			why:  "the importer named the key",
			list: []string{v1alpha1.CopyAll, "prometheus.io/scrape"},
			want: []string{"example.com/owner", "prometheus.io/scrape", "team"},
		},
		"never": {
			why:  "the keys never cross, even if the API server accepted them in the list",
			list: []string{"causeway.dev/export", "mirror.linkerd.io/exported", lastApplied},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			want := map[string]string{}
			for _, k := range c.want {
				want[k] = source[k]
			}
			if d := cmp.Diff(want, Copied(source, c.list)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func TestCommands(t *testing.T) {
	for key, want := range map[string]bool{
		"kubernetes.io/x":           true,
		"a.b.kubernetes.io/x":       true,
		"notkubernetes.io/x":        false,
		"kubernetes.io":             false,
		"example.com/kubernetes.io": false, "team": false,
	} {
		if got := commands(key); got != want {
			t.Errorf("commands(%s) is %v: a domain includes its subdomains and nothing else", key, got)
		}
	}
}

func TestShownMetadata(t *testing.T) {
	big := strings.Repeat("x", maxMetadata-4)
	cases := map[string]struct {
		why                 string
		labels, annotations map[string]string
		shown, shownNotes   map[string]string
		problems            []string
	}{
		"plain": {
			why:         "peers see the labels, and the importer's Link selects among them",
			labels:      map[string]string{"team": "a"},
			annotations: map[string]string{"note": "b"},
			shown:       map[string]string{"team": "a"}, shownNotes: map[string]string{"note": "b"},
		},
		"ours, Linkerd's, kubectl's": {
			why: "these keys never cross a Link",
			labels: map[string]string{
				"causeway.dev/export":        "true",
				"mirror.linkerd.io/exported": "true",
			},
			annotations: map[string]string{lastApplied: `{"spec":{"clusterIP":"10.96.0.7"}}`},
		},
		"too large": {
			why:         "labels come first, so that a large annotation cannot displace them",
			labels:      map[string]string{"team": "a"},
			annotations: map[string]string{"note": big, "short": "b"},
			shown:       map[string]string{"team": "a"},
			shownNotes:  map[string]string{"short": "b"},
			problems:    []string{MetadataTooLarge},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			for k, v := range c.labels {
				in.Services[0].Labels[k] = v
			}
			in.Services[0].Annotations = c.annotations
			got := in.build()
			s := got.For("west")[Key{"shop", "bar"}]
			if d := cmp.Diff(c.shown, s.Labels, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: labels (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.shownNotes, s.Annotations, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: annotations (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.problems, reasonsOf(got.Problems), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: problems (-want +got):\n%s", c.why, d)
			}
		})
	}
}

// Annotations and trafficDistribution of a Service become typed settings, and a problem
// names what is not valid.
func TestTrafficSettings(t *testing.T) {
	in := world()
	in.Services[0].Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferSameZone)
	in.Services[0].Annotations = map[string]string{
		v1alpha1.ProtocolAnnotation:        "80=http2",
		v1alpha1.TimeoutAnnotation:         "3s",
		v1alpha1.RetriesAnnotation:         "0",
		v1alpha1.MaxRequestsAnnotation:     "many",
		v1alpha1.ForwardIdentityAnnotation: "header",
	}
	got := in.build()
	want := trafficsettings.Settings{
		Timeout:        3 * time.Second,
		Retries:        trafficsettings.None,
		PreferSameZone: true,
	}
	e := got.List[0]
	if e.Settings != want || e.ForwardIdentity != trafficsettings.ForwardHeader ||
		e.Ports[0].Declared != trafficsettings.HTTP2 || e.Ports[0].AppProtocol != "http" {
		t.Errorf("the export has %+v, %v, %+v", e.Settings, e.ForwardIdentity, e.Ports[0])
	}
	s := got.For("west")[Key{"shop", "bar"}]
	if s.Settings != want || s.Declared()[80] != trafficsettings.HTTP2 || len(s.Annotations) > 0 {
		t.Errorf("peers see %+v, %v, annotations %v", s.Settings, s.Ports, s.Annotations)
	}
	if d := cmp.Diff([]string{IdentityForgeable, InvalidTrafficSettings}, reasonsOf(got.Problems)); d != "" ||
		!strings.Contains(got.Problems[1].Message, v1alpha1.MaxRequestsAnnotation) {
		t.Errorf("problems are %v", got.Problems)
	}
}

func TestValidateMetadata(t *testing.T) {
	cases := map[string]struct {
		why                 string
		labels, annotations map[string]string
		want                map[string]string
		reason              string
	}{
		"good": {
			why:    "the labels are valid",
			labels: map[string]string{"team": "a"},
			want:   map[string]string{"team": "a"},
		},
		"bad value": {
			why:    "the API server would refuse the mirror",
			labels: map[string]string{"team": "a b", "tier": "x"},
			want:   map[string]string{"tier": "x"},
			reason: InvalidMetadata,
		},
		"bad key": {
			why:         "the API server would refuse the mirror",
			annotations: map[string]string{"a b": "x"},
			reason:      InvalidMetadata,
		},
		"own labels": {
			why:    "a peer cannot set Causeway's own labels",
			labels: map[string]string{v1alpha1.LinkLabel: "north"},
		},
		"too large": {
			why:         "a peer cannot fill the API server",
			annotations: map[string]string{"a": strings.Repeat("x", maxMetadata)},
			reason:      InvalidMetadata,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := advertised()
			s.Labels, s.Annotations = c.labels, c.annotations
			got, problems := s.Validate("east.1")
			if d := cmp.Diff(c.want, got.Labels, cmpopts.EquateEmpty()); d != "" || len(got.Annotations) > 0 {
				t.Errorf("%s (-want +got):\n%s%v", c.why, d, got.Annotations)
			}
			if reasons := strings.Join(reasonsOf(problems), ","); reasons != c.reason {
				t.Errorf("%s: problems %s, want %s", c.why, reasons, c.reason)
			}
		})
	}
}
