package mirror

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

func eastLink() *v1alpha1.Link {
	l := &v1alpha1.Link{ObjectMeta: metav1.ObjectMeta{Name: "east", UID: "link-1"}}
	l.Spec.TrustDomain = "east.1"
	l.Spec.Import = &v1alpha1.ImportRules{Services: v1alpha1.AllServices}
	return l
}

func rulesOf(l *v1alpha1.Link) *Rules {
	r, _ := NewRules(l, "causeway-system")
	return r
}

func eastScope(complete bool) *Scope {
	return NewScope(eastLink(), nil, rulesOf(eastLink()), "v1", complete)
}

func entry(service, vip string) ledger.Mirror {
	return ledger.Mirror{
		Source:          ledger.Source{Namespace: "shop", Service: service},
		MirrorNamespace: "shop",
		MirrorName:      service + "-east",
		VIPs:            []netip.Addr{netip.MustParseAddr(vip)},
		Ports: []ledger.MirrorPort{
			{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: 2000},
		},
		Identities: []string{"spiffe://east.1/ns/shop/sa/" + service},
	}
}

func wanted(service, vip string) *Want {
	return &Want{Entry: entry(service, vip), Ready: true, Known: true}
}

// standing is what stands after w was made in an empty cluster.
func standing(s *Scope, w *Want) Have {
	h := Have{NamespaceExists: true}
	changes, _ := PlanMirror(s, w.key(), w, w.Ready, h)
	for _, c := range changes {
		if c.Service != nil {
			c.Service.UID, c.Service.ResourceVersion = "service-1", "1"
			h.Service = c.Service
		} else {
			c.Slice.OwnerReferences[0].UID, c.Slice.ResourceVersion = "service-1", "1"
			h.Slices = append(h.Slices, c.Slice)
		}
	}
	return h
}

var barKey = catalog.Key{Namespace: "shop", Name: "bar-east"}

// planCase is what stands after bar was mirrored, changed, and what is planned then.
type planCase struct {
	why      string
	unwanted bool
	want     func(*Want)
	scope    func(*Scope)
	have     func(*Have)
	changes  []string
	problems []string // reasons
}

func TestPlanMirror(t *testing.T) {
	service := func(change func(*corev1.Service)) func(*Have) {
		return func(h *Have) { change(h.Service) }
	}
	slice := func(change func(*discoveryv1.EndpointSlice)) func(*Have) {
		return func(h *Have) { change(h.Slices[0]) }
	}
	empty := func(h *Have) { h.Service, h.Slices = nil, nil }
	foreign := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop",
		Name:      "bar-east",
		UID:       "user",
	}}
	second := netip.MustParseAddr("fd00::2")

	cases := map[string]planCase{
		"nothing differs": {why: "nothing is written when nothing changed"},
		"first": {
			why:     "the Service comes first: the slice is owned by it",
			have:    empty,
			changes: []string{"create service shop/bar-east", "create slice shop/bar-east-causeway"},
		},
		"another version": {
			why:   "an upgrade must not write every mirror of the cluster",
			scope: func(s *Scope) { s.Version = "v2" },
		},
		"others' marks": {
			why: "labels and annotations of others survive",
			have: service(func(s *corev1.Service) {
				s.Labels["team"], s.Annotations["note"] = "a", "b"
			}),
		},
		"label stripped": {
			why:     "the Link's reference says that it is ours all the same",
			have:    service(func(s *corev1.Service) { s.Labels = nil }),
			changes: []string{"update service shop/bar-east"},
		},
		"reference stripped": {
			why: "an object with all our labels and without an owner is ours: it would outlive the " +
				"Link without a reference",
			have:    service(func(s *corev1.Service) { s.OwnerReferences = nil }),
			changes: []string{"update service shop/bar-east"},
		},
		"reference and source stripped": {
			why:     "nothing proves that it is ours: it is left alone, and our VIP is taken from it",
			have:    service(func(s *corev1.Service) { s.OwnerReferences, s.Annotations = nil, nil }),
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"unwanted, without our reference": {
			why:      "without our reference nothing is deleted that may be a user's",
			unwanted: true,
			have:     service(func(s *corev1.Service) { s.OwnerReferences = nil }),
			changes:  []string{"delete slice shop/bar-east-causeway"},
		},
		"source edited": {
			why: "a tenant's edit is repaired",
			have: service(func(s *corev1.Service) {
				s.Annotations[v1alpha1.SourceAnnotation] = "shop/other"
			}),
			changes: []string{"update service shop/bar-east"},
		},
		"selector added": {
			why:     "a selector would mix a tenant's pods under the mirror",
			have:    service(func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "x"} }),
			changes: []string{"update service shop/bar-east"},
		},
		"local traffic only": {
			why: "our endpoint has no node: Local would hang callers",
			have: service(func(s *corev1.Service) {
				s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
			}),
			changes: []string{"update service shop/bar-east"},
		},
		"second reference": {
			why: "another owner would keep the mirror alive after the Link",
			have: service(func(s *corev1.Service) {
				s.OwnerReferences = append(s.OwnerReferences, metav1.OwnerReference{
					APIVersion: "v1",
					Kind:       "ConfigMap",
					Name:       "x",
					UID:        "x",
				})
			}),
			changes: []string{"update service shop/bar-east"},
		},
		"endpoint edited": {
			why:     "a tenant's edit is repaired",
			have:    slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "10.0.0.1" }),
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"slice label stripped": {
			why:     "its Service's reference says that it is ours all the same",
			have:    slice(func(s *discoveryv1.EndpointSlice) { delete(s.Labels, v1alpha1.LinkLabel) }),
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"slice gone": {
			why:     "a deletion by hand is repaired",
			have:    func(h *Have) { h.Slices = nil },
			changes: []string{"create slice shop/bar-east-causeway"},
		},
		"Service gone, slice left": {
			why:  "until the Service is back anyone could take its name, and our VIP with it",
			have: func(h *Have) { h.Service = nil },
			changes: []string{
				"delete slice shop/bar-east-causeway",
				"create service shop/bar-east",
				"create slice shop/bar-east-causeway",
			},
		},
		"a user's Service in the way": {
			why:     "what Causeway did not make is never touched, and gets no VIP of ours",
			have:    func(h *Have) { h.Service = foreign },
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"slice lent to a user's Service": {
			why: "the label that joins slice and Service is a tenant's to edit",
			have: slice(func(s *discoveryv1.EndpointSlice) {
				s.Labels[discoveryv1.LabelServiceName] = "web"
			}),
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"slices that Kubernetes made for a mirror": {
			why:     "a tenant gave the mirror a selector for a moment: the pods behind it must not stay",
			have:    func(h *Have) { addSlice(h, "bar-east-x7k2p", "bar-east", h.Service.Labels) },
			changes: []string{"delete slice shop/bar-east-x7k2p"},
		},
		"a user's slice in the way": {
			why:      "what Causeway did not make is never touched",
			have:     slice(func(s *discoveryv1.EndpointSlice) { s.Labels, s.OwnerReferences = nil, nil }),
			problems: []string{NameTaken},
		},
		"a slice of the earlier Service": {
			why:     "the Service was made again: its slice must not be collected with the old one",
			have:    slice(func(s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].UID = "old" }),
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"of an earlier Link": {
			why:     "Kubernetes collects it; two writers would fight over it",
			have:    service(func(s *corev1.Service) { s.OwnerReferences[0].UID = "link-0" }),
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"of another Link": {
			why: "each Link keeps to its own",
			have: service(func(s *corev1.Service) {
				s.OwnerReferences[0].UID, s.OwnerReferences[0].Name = "link-9", "north"
				s.Labels[v1alpha1.LinkLabel] = "north"
			}),
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"unexported": {
			why:      "the mirror goes, and its slices with it",
			unwanted: true,
			changes:  []string{"delete service shop/bar-east"},
		},
		"catalog not complete": {
			why:      "only a complete catalog deletes",
			unwanted: true,
			scope:    func(s *Scope) { s.Complete = false },
		},
		"already going": {
			why:      "once is enough",
			unwanted: true,
			have: service(func(s *corev1.Service) {
				s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1,
					0)}
			}),
		},
		"going, and wanted again": {
			why: "it is made again once it is gone",
			have: service(func(s *corev1.Service) {
				s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1,
					0)}
			}),
		},
		"no namespace": {
			why:      "namespaces are not ours to create",
			have:     func(h *Have) { *h = Have{} },
			problems: []string{NamespaceMissing},
		},
		"namespace created": {
			why:   "the Link's owner asks for it",
			have:  func(h *Have) { *h = Have{} },
			scope: func(s *Scope) { s.Rules.createNamespaces = true },
			changes: []string{
				"create namespace shop",
				"create service shop/bar-east",
				"create slice shop/bar-east-causeway",
			},
		},
		"namespace going": {
			why:      "it is created again once it is gone, and not tried until then",
			have:     func(h *Have) { *h = Have{NamespaceTerminating: true} },
			scope:    func(s *Scope) { s.Rules.createNamespaces = true },
			problems: []string{NamespaceMissing},
		},
		"not ready": {
			why:     "the slice alone says so",
			want:    func(w *Want) { w.Ready = false },
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"another port": {
			why: "Service and slice have the same ports",
			want: func(w *Want) {
				w.Entry.Ports = append(w.Entry.Ports, ledger.MirrorPort{
					Name:     "grpc",
					Protocol: "TCP",
					Port:     81,
					Index:    1,
					Route:    2001,
				})
			},
			changes: []string{"update service shop/bar-east", "update slice shop/bar-east-causeway"},
		},
		"a port not offered": {
			why: "a remembered port is not shown",
			want: func(w *Want) {
				w.Entry.Ports = append(w.Entry.Ports, ledger.MirrorPort{
					Name:     "grpc",
					Protocol: "TCP",
					Port:     81,
					Index:    1,
				})
			},
		},
		"a second family": {
			why:     "a slice has one family, so a second family needs a second slice",
			want:    func(w *Want) { w.Entry.VIPs = append(w.Entry.VIPs, second) },
			changes: []string{"update service shop/bar-east", "create slice shop/bar-east-causeway-v6"},
		},
		"another family": {
			why:  "a slice of a VIP that is gone leads nowhere",
			want: func(w *Want) { w.Entry.VIPs = []netip.Addr{second} },
			changes: []string{
				"delete slice shop/bar-east-causeway",
				"create slice shop/bar-east-causeway-v6",
			},
		},
		"was headless": {
			why:     "Kubernetes turns no Service headless or back",
			have:    service(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }),
			changes: []string{"delete service shop/bar-east"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, w := eastScope(true), wanted("bar", "240.0.0.2")
			h := standing(s, w)
			if c.have != nil {
				c.have(&h)
			}
			if c.scope != nil {
				c.scope(s)
			}
			if c.want != nil {
				c.want(w)
			}
			ready := w.Ready
			if c.unwanted {
				w = nil
			}
			before := snapshot(h)
			changes, problems := PlanMirror(s, barKey, w, ready, h)
			if diff := cmp.Diff(c.changes, texts(changes)); diff != "" {
				t.Errorf("%s: changes (-want +got):\n%s", c.why, diff)
			}
			if diff := cmp.Diff(c.problems, reasons(problems)); diff != "" {
				t.Errorf("%s: problems (-want +got):\n%s", c.why, diff)
			}
			if diff := cmp.Diff(before, snapshot(h)); diff != "" {
				t.Errorf("what stands is the cache's and must not be changed:\n%s", diff)
			}
		})
	}
}

// A slice with our labels that names another Service belongs to that Service's key.
func TestPlanStraySlices(t *testing.T) {
	labels := map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east"}
	web := catalog.Key{Namespace: "shop", Name: "web"}
	user := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop",
		Name:      "web",
		UID:       "user",
		Labels:    labels,
	}}
	cases := map[string]struct {
		why     string
		service *corev1.Service
		manager string
		changes []string
	}{
		"lent to a user's Service": {
			why:     "the label that joins them is a tenant's to edit",
			service: user,
			manager: sliceManager,
			changes: []string{"delete slice shop/stray"},
		},
		"lent, and its manager's mark stripped": {
			why:     "that mark, too, is a tenant's to edit",
			service: user,
			changes: []string{"delete slice shop/stray"},
		},
		"without a Service": {
			why:     "anyone could take the name, and our VIP with it",
			manager: sliceManager,
			changes: []string{"delete slice shop/stray"},
		},
		"of a user's Service that has our labels": {
			why: "Kubernetes copies a Service's labels to its slices: a copy of a mirror must keep " +
				"its endpoints",
			service: user,
			manager: "endpointslice-controller.k8s.io",
		},
		"of a user's Service that is gone": {
			why:     "Kubernetes collects what it has made",
			manager: "endpointslice-controller.k8s.io",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := Have{Service: c.service, NamespaceExists: true}
			addSlice(&h, "stray", "web", labels)
			h.Slices[0].Labels[discoveryv1.LabelManagedBy] = c.manager
			changes, _ := PlanMirror(eastScope(false), web, nil, false, h)
			if diff := cmp.Diff(c.changes, texts(changes)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

func TestPlanInListedNamespaces(t *testing.T) {
	k := catalog.Key{Namespace: "kube-system", Name: "bar-east"}
	cases := map[string]struct {
		why      string
		listed   []v1alpha1.NamespaceRule
		changes  int
		problems []string
	}{
		"not listed": {
			why:      "a peer makes nothing where the cluster lives",
			problems: []string{NamespaceNotAllowed},
		},
		"listed": {
			why:     "what the Link lists by name is meant",
			listed:  []v1alpha1.NamespaceRule{{Name: "shop", As: "kube-system"}},
			changes: 2,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			link, w := eastLink(), wanted("bar", "240.0.0.2")
			link.Spec.Import.Namespaces = c.listed
			w.Entry.MirrorNamespace = "kube-system"
			changes, problems := PlanMirror(NewScope(link, nil, rulesOf(link), "v1", true), k, w, true,
				Have{NamespaceExists: true})
			if diff := cmp.Diff(c.problems, reasons(problems)); diff != "" || len(changes) != c.changes {
				t.Errorf("%s: %v (-want +got):\n%s", c.why, texts(changes), diff)
			}
		})
	}
}

// addSlice adds a slice as Kubernetes' own controller makes it for a Service with labels.
func addSlice(h *Have, name, service string, labels map[string]string) {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop",
		Name:      name,
		Labels: map[string]string{
			discoveryv1.LabelServiceName: service,
			discoveryv1.LabelManagedBy:   "endpointslice-controller.k8s.io",
		},
	}}
	setAll(&s.Labels, labels)
	h.Slices = append(h.Slices, s)
}

func texts(changes []Change) []string {
	var out []string
	for _, c := range changes {
		out = append(out, c.String())
	}
	return out
}

func reasons(problems []Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Reason)
	}
	return out
}

func snapshot(h Have) []any {
	out := []any{h.Service.DeepCopy()}
	for _, s := range h.Slices {
		out = append(out, s.DeepCopy())
	}
	for _, c := range h.Companions {
		out = append(out, c.Service.DeepCopy())
	}
	return out
}

func TestObjects(t *testing.T) {
	h := standing(eastScope(true), wanted("bar", "240.0.0.2"))
	svc, slice := h.Service, h.Slices[0]
	if svc.Spec.ClusterIP != "" || len(svc.Spec.Selector) != 0 ||
		svc.Spec.Type != corev1.ServiceTypeClusterIP ||
		svc.Spec.SessionAffinity != corev1.ServiceAffinityNone {
		t.Errorf("the mirror is a plain ClusterIP Service without a selector: %v", svc.Spec)
	}
	ports := []corev1.ServicePort{
		{
			Name:        "http",
			Protocol:    "TCP",
			Port:        80,
			AppProtocol: new("http"),
			TargetPort:  intstr.FromInt32(4200),
		},
	}
	if d := cmp.Diff(ports, svc.Spec.Ports); d != "" {
		t.Errorf("ports are the source's, to the VIP's listeners:\n%s", d)
	}
	if o := svc.OwnerReferences; len(o) != 1 || o[0].UID != "link-1" ||
		o[0].APIVersion != "causeway.dev/v1alpha1" || !*o[0].Controller || *o[0].BlockOwnerDeletion {
		t.Errorf("the Link alone owns the mirror: %v", o)
	}
	if o := slice.OwnerReferences; len(o) != 1 || o[0].UID != svc.UID || o[0].Kind != "Service" {
		t.Errorf("the mirror alone owns its slice: %v", o)
	}
	want := map[string]string{
		"kubernetes.io/service-name": "bar-east", "endpointslice.kubernetes.io/managed-by": "causeway.dev",
		"app.kubernetes.io/managed-by": "causeway", "causeway.dev/link": "east",
	}
	if d := cmp.Diff(want, slice.Labels); d != "" {
		t.Errorf("the slice's labels keep built-in controllers off (-want +got):\n%s", d)
	}
	e := slice.Endpoints[0]
	if len(slice.Endpoints) != 1 || e.Addresses[0] != "240.0.0.2" || !*e.Conditions.Ready ||
		!*e.Conditions.Serving ||
		e.Conditions.Terminating != nil || *slice.Ports[0].Port != 4200 {
		t.Errorf("one endpoint, the VIP: %v", slice)
	}
}

func TestUpdateWritesTheVersion(t *testing.T) {
	s, w := eastScope(true), wanted("bar", "240.0.0.2")
	h := standing(s, w)
	s.Version = "v2"
	h.Service.Labels = nil
	changes, _ := PlanMirror(s, barKey, w, true, h)
	if got := changes[0].Service.Annotations[v1alpha1.VersionAnnotation]; got != "v2" {
		t.Errorf("the annotation tells which version wrote last: %q", got)
	}
}

// The comparison field by field must agree with a comparison of whole objects.
func TestDiffersAgreesWithDeepEqual(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(options ...func()) {
		if random.IntN(3) > 0 {
			options[random.IntN(len(options))]()
		}
	}
	different := 0
	for range 5000 {
		s, w := eastScope(true), wanted("bar", "240.0.0.2")
		pick(func() { w.Labels = map[string]string{"team": "a", v1alpha1.ManagedByLabel: "Helm"} },
			func() { w.Entry.VIPs = append(w.Entry.VIPs, netip.MustParseAddr("fd00::2")) },
			func() { w.Entry.Headless = true }, func() { w.Entry.Hostname = "db-0" },
			func() { w.Known = false },
			func() { w.Annotations = map[string]string{"note": "x"} },
			func() { w.Entry.Ports[0].AppProtocol = "" })
		h := standing(s, w)
		svc, slice := h.Service, h.Slices[0]
		pick(func() { svc.Labels["team"] = "b" }, func() { delete(svc.Labels, "team") },
			func() { svc.Labels["mine"] = "1" },
			func() { svc.Labels = nil }, func() { svc.Annotations["note"] = "y" },
			func() { svc.Annotations["also"] = "mine" },
			func() { svc.Annotations[v1alpha1.CopiedAnnotation] = "" },
			func() { delete(svc.Annotations, v1alpha1.CopiedAnnotation) },
			func() { svc.Annotations[v1alpha1.CopiedAnnotation] = `{"labels":["team","x"]}` },
			func() { svc.Annotations[v1alpha1.SourceAnnotation] = "shop" },
			func() { svc.Annotations[v1alpha1.HostnameAnnotation] = "" },
			func() { svc.Annotations[v1alpha1.HostnameAnnotation] = "db-1" },
			func() { svc.OwnerReferences = nil },
			func() { svc.OwnerReferences[0].Controller = nil },
			func() { svc.OwnerReferences[0].BlockOwnerDeletion = new(true) },
			func() { svc.OwnerReferences = append(svc.OwnerReferences, metav1.OwnerReference{}) },
			func() { svc.Spec.Ports[0].NodePort = 30000 },
			func() { svc.Spec.Ports[0].AppProtocol = new("h2c") },
			func() { svc.Spec.Ports[0].AppProtocol = new("") }, func() { svc.Spec.Ports[0].Port++ },
			func() { svc.Spec.Ports[0].TargetPort = intstr.FromString("http") },
			func() { svc.Spec.Ports = nil },
			func() { svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{}) },
			func() { svc.Spec.Type = "" },
			func() { svc.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicySingleStack) },
			func() { svc.Spec.InternalTrafficPolicy = nil },
			func() { svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP },
			func() { svc.Spec.Selector = map[string]string{} },
			func() { svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{} },
			func() { svc.Spec.ClusterIP = "10.96.0.1" })
		pick(func() { slice.Labels[v1alpha1.LinkLabel] = "west" }, func() { slice.Labels["mine"] = "1" },
			func() { slice.Labels = nil },
			func() { slice.OwnerReferences = nil }, func() { slice.OwnerReferences[0].UID = "x" },
			func() { slice.OwnerReferences[0].Kind = "Pod" },
			func() { slice.AddressType = discoveryv1.AddressTypeFQDN }, func() { slice.Endpoints = nil },
			func() { slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{}) },
			func() { slice.Ports = nil },
			func() { slice.Ports[0].Name = nil }, func() { slice.Ports[0].Port = new(int32(1)) },
			func() { slice.Ports[0].AppProtocol = new("x") },
			func() { slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{}) },
			func() { slice.Annotations = map[string]string{"a": "b"} },
			func() { mutateEndpoint(random, slice) })
		full := s.service(w, svc)
		if svc.Annotations[v1alpha1.VersionAnnotation] != "" {
			full.Annotations[v1alpha1.VersionAnnotation] = svc.Annotations[v1alpha1.VersionAnnotation]
		}
		if got, want := s.serviceDiffers(w, svc), !equality.Semantic.DeepEqual(full, svc); got != want {
			t.Fatalf("Service differs: %v, whole objects say %v:\n%s", got, want, cmp.Diff(svc, full))
		}
		targets := []target{{ip: w.Entry.VIPs[0], ready: true}}
		fullSlice := s.slice(w, w.Entry.VIPs[0], "service-1", targets, slice)
		got, want := s.sliceDiffers(w, w.Entry.VIPs[0], "service-1", targets,
			slice), !equality.Semantic.DeepEqual(fullSlice, slice)
		if got != want {
			t.Fatalf("slice differs: %v, whole objects say %v:\n%s", got, want, cmp.Diff(slice, fullSlice))
		}
		if got {
			different++
		}
	}
	if different < 1000 {
		t.Errorf("the random objects hardly ever differ: %d", different)
	}
}

func mutateEndpoint(random *rand.Rand, slice *discoveryv1.EndpointSlice) {
	if len(slice.Endpoints) == 0 {
		return
	}
	e := &slice.Endpoints[0]
	mutations := []func(){
		func() { e.Addresses = nil },
		func() { e.Addresses = []string{"10.0.0.1"} },
		func() { e.Hostname = new("db-0") },
		func() { e.Conditions.Ready = nil },
		func() { e.Conditions.Serving = new(false) },
		func() { e.Conditions.Terminating = new(false) },
		func() { e.NodeName = new("n") },
		func() { e.Zone = new("z") },
		func() { e.Hints = &discoveryv1.EndpointHints{} },
		func() { e.TargetRef = &corev1.ObjectReference{} },
		func() { e.DeprecatedTopology = map[string]string{} },
	}
	mutations[random.IntN(len(mutations))]()
}

func TestUnchangedPlanAllocatesNothing(t *testing.T) {
	s, w := eastScope(true), wanted("bar", "240.0.0.2")
	h := standing(s, w)
	if n := testing.AllocsPerRun(100, func() { PlanMirror(s, barKey, w, true, h) }); n > 0 {
		t.Errorf("a mirror that is as it should be costs %v allocations", n)
	}
}

func BenchmarkPlanMirrorUnchanged(b *testing.B) {
	s, w := eastScope(true), wanted("bar", "240.0.0.2")
	h := standing(s, w)
	b.ReportAllocs()
	for b.Loop() {
		PlanMirror(s, barKey, w, true, h)
	}
}

func TestReasons(t *testing.T) {
	for name, list := range map[string][]string{"mirror": Reasons, "catalog": catalog.Reasons} {
		if !slices.IsSorted(list) || strings.Contains(strings.Join(list, ""), " ") {
			t.Errorf("the reasons of %s are words, sorted: %v", name, list)
		}
	}
}

func TestFirstRoute(t *testing.T) {
	if catalog.FirstRoute != ledger.FirstRoute {
		t.Error("the catalog must accept every route id that the ledger assigns")
	}
}
