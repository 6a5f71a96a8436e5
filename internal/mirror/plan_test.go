package mirror

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

func eastLink() *v1alpha1.Link {
	l := &v1alpha1.Link{ObjectMeta: metav1.ObjectMeta{Name: "east", UID: "link-1"}}
	l.Spec.TrustDomain = "east.1"
	l.Spec.Import = &v1alpha1.ImportRules{Services: v1alpha1.AllServices}
	return l
}

func entry(service, vip string) v1alpha1.LedgerMirror {
	return v1alpha1.LedgerMirror{
		Link: "east", Namespace: "shop", Service: service, MirrorNamespace: "shop", MirrorName: service + "-east",
		VIPs:       []string{vip},
		Ports:      []v1alpha1.LedgerMirrorPort{{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: 2000}},
		Identities: []string{"spiffe://east.1/ns/shop/sa/" + service},
	}
}

func desired(entries ...v1alpha1.LedgerMirror) Desired {
	d := Desired{Link: eastLink(), Own: "causeway-system", Version: "v1", Complete: true}
	for _, e := range entries {
		d.Mirrors = append(d.Mirrors, Want{Entry: e, Ready: true})
	}
	return d
}

// standing is what stands after d was made in an empty cluster.
func standing(d Desired) Have {
	h := Have{
		Services:   map[catalog.Key]*corev1.Service{},
		Slices:     map[catalog.Key]*discoveryv1.EndpointSlice{},
		Namespaces: map[string]bool{"shop": true, "kube-system": true, "causeway-system": true},
	}
	changes, _ := Plan(d, h)
	for _, c := range changes {
		if c.Service != nil {
			c.Service.UID = "service-" + c.Service.UID
			c.Service.ResourceVersion = "1"
			h.Services[keyOf(c.Service)] = c.Service
		} else {
			c.Slice.OwnerReferences[0].UID = h.Services[catalog.Key{Namespace: c.Slice.Namespace, Name: c.Slice.OwnerReferences[0].Name}].UID
			h.Slices[keyOf(c.Slice)] = c.Slice
		}
	}
	return h
}

var (
	barKey   = catalog.Key{Namespace: "shop", Name: "bar-east"}
	barSlice = catalog.Key{Namespace: "shop", Name: "bar-east-causeway"}
)

// planCase is what stands after bar was mirrored, changed, and what is planned then.
type planCase struct {
	why      string
	want     func(*Desired)
	have     func(*Have)
	changes  []string
	problems []string // reasons
}

func TestPlan(t *testing.T) {
	service := func(change func(*corev1.Service)) func(*Have) {
		return func(h *Have) { change(h.Services[barKey]) }
	}
	slice := func(change func(*discoveryv1.EndpointSlice)) func(*Have) {
		return func(h *Have) { change(h.Slices[barSlice]) }
	}
	unwanted := func(d *Desired) { d.Mirrors = nil }
	foreign := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east", UID: "user"}}

	cases := map[string]planCase{
		"nothing differs": {why: "nothing is written when nothing changed"},
		"first": {
			why:     "the Service comes first: the slice is owned by it",
			have:    func(h *Have) { clear(h.Services); clear(h.Slices) },
			changes: []string{"create service shop/bar-east", "create slice shop/bar-east-causeway"},
		},
		"another version": {
			why:  "an upgrade must not write every mirror of the cluster",
			want: func(d *Desired) { d.Version = "v2" },
		},
		"others' marks": {
			why: "labels and annotations of others survive",
			have: service(func(s *corev1.Service) {
				s.Labels["team"], s.Annotations["note"] = "a", "b"
			}),
		},
		"label stripped": {
			why:     "the Link's reference tells that it is ours all the same",
			have:    service(func(s *corev1.Service) { s.Labels = nil }),
			changes: []string{"update service shop/bar-east"},
		},
		"reference stripped": {
			why:     "bearing all our marks and nobody's reference it can only be ours: without the reference it would outlive the Link",
			have:    service(func(s *corev1.Service) { s.OwnerReferences = nil }),
			changes: []string{"update service shop/bar-east"},
		},
		"reference and source stripped": {
			why:     "nothing proves that it is ours: it is left alone, and our VIP is taken from it",
			have:    service(func(s *corev1.Service) { s.OwnerReferences, s.Annotations = nil, nil }),
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"unwanted, without our reference": {
			why:     "without our reference nothing is deleted that may be a user's",
			want:    unwanted,
			have:    service(func(s *corev1.Service) { s.OwnerReferences = nil }),
			changes: []string{"delete slice shop/bar-east-causeway"},
		},
		"source edited": {
			why:     "a tenant's edit is repaired",
			have:    service(func(s *corev1.Service) { s.Annotations[v1alpha1.SourceAnnotation] = "shop/other" }),
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
				s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
			}),
			changes: []string{"update service shop/bar-east"},
		},
		"second reference": {
			why: "another owner would keep the mirror alive after the Link",
			have: service(func(s *corev1.Service) {
				s.OwnerReferences = append(s.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "x", UID: "x"})
			}),
			changes: []string{"update service shop/bar-east"},
		},
		"endpoint edited": {
			why:     "a tenant's edit is repaired",
			have:    slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses[0] = "10.0.0.1" }),
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"slice label stripped": {
			why:     "its Service's reference tells that it is ours all the same",
			have:    slice(func(s *discoveryv1.EndpointSlice) { delete(s.Labels, v1alpha1.LinkLabel) }),
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"slice gone": {
			why:     "a deletion by hand is repaired",
			have:    func(h *Have) { delete(h.Slices, barSlice) },
			changes: []string{"create slice shop/bar-east-causeway"},
		},
		"Service gone, slice left": {
			why:     "until the Service is back anyone could take its name, and our VIP with it",
			have:    func(h *Have) { delete(h.Services, barKey) },
			changes: []string{"delete slice shop/bar-east-causeway", "create service shop/bar-east", "create slice shop/bar-east-causeway"},
		},
		"a user's Service in the way": {
			why:     "what Causeway did not make is never touched, and gets no VIP of ours",
			have:    func(h *Have) { h.Services[barKey] = foreign },
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"slice lent to a user's Service": {
			why: "the label that joins slice and Service is a tenant's to edit",
			have: func(h *Have) {
				h.Slices[barSlice].Labels[discoveryv1.LabelServiceName] = "web"
				h.Services[catalog.Key{Namespace: "shop", Name: "web"}] = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "user"}}
			},
			changes: []string{"delete slice shop/bar-east-causeway", "create slice shop/bar-east-causeway"},
		},
		"slices of a user's Service that bears our labels": {
			why: "Kubernetes copies a Service's labels to its slices: a copy of a mirror, with a selector of its own, must keep its endpoints",
			have: func(h *Have) {
				labels := map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east"}
				k := catalog.Key{Namespace: "shop", Name: "copy"}
				h.Services[k] = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name, UID: "user", Labels: labels}}
				addSlice(h, "copy-x7k2p", "copy", labels)
			},
		},
		"slices of a user's Service that is gone": {
			why: "Kubernetes collects what it has made",
			have: func(h *Have) {
				addSlice(h, "copy-x7k2p", "copy", map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east"})
			},
		},
		"slices that Kubernetes made for a mirror": {
			why:     "a tenant gave the mirror a selector for a moment: the pods behind it must not stay",
			have:    func(h *Have) { addSlice(h, "bar-east-x7k2p", "bar-east", h.Services[barKey].Labels) },
			changes: []string{"delete slice shop/bar-east-x7k2p"},
		},
		"slice lent to a user's Service, and its manager's mark stripped": {
			why: "that mark, too, is a tenant's to edit",
			have: func(h *Have) {
				delete(h.Slices[barSlice].Labels, discoveryv1.LabelManagedBy)
				h.Slices[barSlice].Labels[discoveryv1.LabelServiceName] = "web"
			},
			changes: []string{"delete slice shop/bar-east-causeway", "create slice shop/bar-east-causeway"},
		},
		"a user's slice in the way": {
			why:      "what Causeway did not make is never touched",
			have:     slice(func(s *discoveryv1.EndpointSlice) { s.Labels, s.OwnerReferences = nil, nil }),
			problems: []string{NameTaken},
		},
		"a slice of the earlier Service": {
			why:     "the Service was made anew: its slice must not be collected with the old one",
			have:    slice(func(s *discoveryv1.EndpointSlice) { s.OwnerReferences[0].UID = "old" }),
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"of an earlier Link": {
			why:     "Kubernetes collects it; two hands on it would fight",
			have:    service(func(s *corev1.Service) { s.OwnerReferences[0].UID = "link-0" }),
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"of another Link": {
			why: "each Link keeps to its own",
			have: service(func(s *corev1.Service) {
				s.OwnerReferences[0].UID, s.OwnerReferences[0].Name, s.Labels[v1alpha1.LinkLabel] = "link-9", "north", "north"
			}),
			changes: []string{"delete slice shop/bar-east-causeway"}, problems: []string{NameTaken},
		},
		"unexported": {
			why:     "the mirror goes, and its slices with it",
			want:    unwanted,
			changes: []string{"delete service shop/bar-east"},
		},
		"not heard of": {
			why:  "only a complete catalog deletes",
			want: func(d *Desired) { d.Mirrors, d.Complete = nil, false },
		},
		"already going": {
			why:  "once is enough",
			want: unwanted,
			have: service(func(s *corev1.Service) { s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }),
		},
		"going, and wanted again": {
			why:  "it is made anew once it is gone",
			have: service(func(s *corev1.Service) { s.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }),
		},
		"no namespace": {
			why:      "namespaces are not ours to create",
			have:     func(h *Have) { clear(h.Services); clear(h.Slices); h.Namespaces["shop"] = false },
			problems: []string{NamespaceMissing},
		},
		"kube-system": {
			why:      "a peer's word makes nothing where the cluster lives",
			want:     func(d *Desired) { d.Mirrors[0].Entry.MirrorNamespace = "kube-system" },
			changes:  []string{"delete service shop/bar-east"},
			problems: []string{NamespaceNotAllowed},
		},
		"Causeway's own": {
			why:      "a peer's word makes nothing where Causeway lives",
			want:     func(d *Desired) { d.Mirrors[0].Entry.MirrorNamespace = "causeway-system" },
			changes:  []string{"delete service shop/bar-east"},
			problems: []string{NamespaceNotAllowed},
		},
		"not ready": {
			why:     "the slice alone says so",
			want:    func(d *Desired) { d.Mirrors[0].Ready = false },
			changes: []string{"update slice shop/bar-east-causeway"},
		},
		"another port": {
			why: "Service and slice tell the same ports",
			want: func(d *Desired) {
				d.Mirrors[0].Entry.Ports = append(d.Mirrors[0].Entry.Ports, v1alpha1.LedgerMirrorPort{Name: "grpc", Protocol: "TCP", Port: 81, Index: 1, Route: 2001})
			},
			changes: []string{"update service shop/bar-east", "update slice shop/bar-east-causeway"},
		},
		"a port not offered": {
			why: "a remembered port is not shown",
			want: func(d *Desired) {
				d.Mirrors[0].Entry.Ports = append(d.Mirrors[0].Entry.Ports, v1alpha1.LedgerMirrorPort{Name: "grpc", Protocol: "TCP", Port: 81, Index: 1})
			},
		},
		"a second family": {
			why:     "a slice has one family, and without an address of the second nobody would call it",
			want:    func(d *Desired) { d.Mirrors[0].Entry.VIPs = append(d.Mirrors[0].Entry.VIPs, "fd00::2") },
			changes: []string{"update service shop/bar-east", "create slice shop/bar-east-causeway-v6"},
		},
		"another family": {
			why:     "a slice of a VIP that is no more leads nowhere",
			want:    func(d *Desired) { d.Mirrors[0].Entry.VIPs = []string{"fd00::2"} },
			changes: []string{"delete slice shop/bar-east-causeway", "create slice shop/bar-east-causeway-v6"},
		},
		"renamed": {
			why:     "the new name is made before the old one goes",
			want:    func(d *Desired) { d.Mirrors[0].Entry.MirrorName = "b-east" },
			changes: []string{"create service shop/b-east", "create slice shop/b-east-causeway", "delete service shop/bar-east"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := desired(entry("bar", "240.0.0.2"))
			h := standing(d)
			if c.have != nil {
				c.have(&h)
			}
			if c.want != nil {
				c.want(&d)
			}
			before := snapshot(h)
			changes, problems := Plan(d, h)
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

// addSlice adds a slice as Kubernetes' own controller makes it for a Service with labels.
func addSlice(h *Have, name, service string, labels map[string]string) {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{
		discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io",
	}}}
	setAll(&s.Labels, labels)
	h.Slices[keyOf(s)] = s
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
	var out []any
	for _, k := range sortedKeys(h.Services) {
		out = append(out, h.Services[k].DeepCopy())
	}
	for _, k := range sortedKeys(h.Slices) {
		out = append(out, h.Slices[k].DeepCopy())
	}
	return out
}

func TestObjects(t *testing.T) {
	h := standing(desired(entry("bar", "240.0.0.2")))
	svc, slice := h.Services[barKey], h.Slices[barSlice]
	if svc.Spec.ClusterIP != "" || len(svc.Spec.Selector) != 0 || svc.Spec.Type != corev1.ServiceTypeClusterIP || svc.Spec.SessionAffinity != corev1.ServiceAffinityNone {
		t.Errorf("the mirror is a plain ClusterIP Service without a selector: %v", svc.Spec)
	}
	ports := []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: ptr("http"), TargetPort: svc.Spec.Ports[0].TargetPort}}
	if d := cmp.Diff(ports, svc.Spec.Ports); d != "" || svc.Spec.Ports[0].TargetPort.IntVal != 4200 {
		t.Errorf("ports are the source's, to the VIP's listeners:\n%s", d)
	}
	if o := svc.OwnerReferences; len(o) != 1 || o[0].UID != "link-1" || o[0].APIVersion != "causeway.dev/v1alpha1" || !*o[0].Controller || *o[0].BlockOwnerDeletion {
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
	if len(slice.Endpoints) != 1 || e.Addresses[0] != "240.0.0.2" || !*e.Conditions.Ready || !*e.Conditions.Serving || e.Conditions.Terminating != nil || *slice.Ports[0].Port != 4200 {
		t.Errorf("one endpoint, the VIP: %v", slice)
	}
}

func TestUpdateWritesTheVersion(t *testing.T) {
	d := desired(entry("bar", "240.0.0.2"))
	h := standing(d)
	d.Version = "v2"
	h.Services[barKey].Labels = nil
	changes, _ := Plan(d, h)
	if got := changes[0].Service.Annotations[v1alpha1.VersionAnnotation]; got != "v2" {
		t.Errorf("the annotation tells which version wrote last: %q", got)
	}
}

func TestWants(t *testing.T) {
	tcp := catalog.Port{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}
	udp := catalog.Port{Name: "dns", Protocol: "UDP", Port: 53}
	service := func(namespace, name string, ports ...catalog.Port) catalog.Service {
		return catalog.Service{Namespace: namespace, Name: name, Ports: ports}
	}
	cases := map[string]struct {
		why      string
		link     func(*v1alpha1.Link)
		service  catalog.Service
		mirrors  []string
		problems []string
	}{
		"plain":           {why: "name and Link make the name", service: service("shop", "bar", tcp), mirrors: []string{"shop/bar-east"}},
		"udp beside tcp":  {why: "what is carried is mirrored, the rest is told", service: service("shop", "bar", tcp, udp), mirrors: []string{"shop/bar-east"}, problems: []string{ProtocolUnsupported}},
		"udp alone":       {why: "a mirror without ports is none", service: service("shop", "bar", udp), problems: []string{NoTCPPort}},
		"kube-system":     {why: "no VIP is spent on what is never made", service: service("kube-system", "dns", tcp), problems: []string{NamespaceNotAllowed}},
		"Causeway's own":  {why: "no VIP is spent on what is never made", service: service("causeway-system", "x", tcp), problems: []string{NamespaceNotAllowed}},
		"no import rules": {why: "absent rules let nothing cross", link: func(l *v1alpha1.Link) { l.Spec.Import = nil }, service: service("shop", "bar", tcp)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			link := eastLink()
			if c.link != nil {
				c.link(link)
			}
			got, problems := Home{Own: "causeway-system"}.Wants(link, Peer{Services: map[catalog.Key]catalog.Service{c.service.Key(): c.service}})
			var mirrors []string
			for _, m := range got.Mirrors {
				mirrors = append(mirrors, m.MirrorNamespace+"/"+m.MirrorName)
				if len(m.Ports) != 1 || m.Ports[0].Route != 2000 {
					t.Errorf("%s: ports %v", c.why, m.Ports)
				}
			}
			if d := cmp.Diff(c.mirrors, mirrors); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.problems, reasons(problems)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if got.Complete != (link.Spec.Import == nil) {
				t.Errorf("complete is %v: a Link that imports nothing needs no catalog to know so", got.Complete)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	for room, list := range map[string][]string{"mirror": Reasons, "catalog": catalog.Reasons} {
		if !slices.IsSorted(list) || strings.Contains(strings.Join(list, ""), " ") {
			t.Errorf("the reasons of %s are words, sorted: %v", room, list)
		}
	}
}

func TestFirstRoute(t *testing.T) {
	if catalog.FirstRoute != ledger.FirstRoute {
		t.Error("what the ledger gives a peer's catalog must believe")
	}
}

func TestFlap(t *testing.T) {
	now := time.Unix(10_000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	cases := map[string]struct {
		why          string
		flap         flap
		shown, ready bool
		show         bool
		next         flap
		again        time.Duration
	}{
		"up":              {why: "nothing to decide", shown: true, ready: true, show: true},
		"just down":       {why: "a rollout may have one ready pod again in a moment", shown: true, show: true, next: flap{since: now}, again: downAfter},
		"almost too long": {why: "not yet", flap: flap{since: ago(downAfter - 1)}, shown: true, show: true, next: flap{since: ago(downAfter - 1)}, again: 1},
		"too long":        {why: "callers are told", flap: flap{since: ago(downAfter)}, shown: true, next: flap{moved: now}, again: calm},
		"up again":        {why: "good news need not wait the first time", flap: flap{moved: ago(time.Second)}, ready: true, show: true, next: flap{moved: now}, again: calm},
		"up, unknown":     {why: "a new controller knows of no flapping", ready: true, show: true, next: flap{moved: now}, again: calm},
		"only a moment":   {why: "what came back in time was never away", flap: flap{since: ago(time.Second)}, shown: true, ready: true, show: true},
		"second time": {
			why:  "from now on it must hold before it is believed",
			flap: flap{since: ago(downAfter), moved: ago(time.Minute)}, shown: true, next: flap{moved: now, hold: holdFirst}, again: calm,
		},
		"third time": {
			why:  "the hold doubles",
			flap: flap{since: ago(downAfter), moved: ago(time.Minute), hold: holdFirst}, shown: true, next: flap{moved: now, hold: 2 * holdFirst}, again: calm,
		},
		"hundredth time": {
			why:  "five minutes are enough for anyone",
			flap: flap{since: ago(downAfter), moved: ago(time.Minute), hold: holdMost}, shown: true, next: flap{moved: now, hold: holdMost}, again: calm,
		},
		"after a calm": {
			why:  "once in a while is no flapping",
			flap: flap{since: ago(downAfter), moved: ago(calm), hold: holdMost}, shown: true, next: flap{moved: now}, again: calm,
		},
		"held down": {
			why: "not yet", flap: flap{since: ago(time.Minute), moved: ago(2 * time.Minute), hold: holdMost}, ready: true,
			next: flap{since: ago(time.Minute), moved: ago(2 * time.Minute), hold: holdMost}, again: holdMost - time.Minute,
		},
		"held long enough": {
			why: "now", flap: flap{since: ago(holdMost), moved: ago(holdMost), hold: holdMost}, ready: true, show: true,
			next: flap{moved: now, hold: holdMost}, again: calm,
		},
		"held, and down again": {
			why: "the time begins anew", flap: flap{since: ago(time.Minute), moved: ago(time.Minute), hold: holdMost},
			next: flap{moved: now, hold: holdMost}, again: calm,
		},
		"forgiven": {why: "calm for long enough", flap: flap{moved: ago(calm), hold: holdMost}, shown: true, ready: true, show: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			show, next, again := c.flap.settle(c.shown, c.ready, now)
			if show != c.show || next != c.next || again != c.again {
				t.Errorf("%s: shows %v, remembers %+v, again after %v", c.why, show, next, again)
			}
		})
	}
}

func TestFlappingSourceIsNotWrittenAllTheTime(t *testing.T) {
	var f flap
	shown, writes := true, 0
	now := time.Unix(10_000, 0)
	for tick := range 3600 { // an hour of 3 s up, 3 s down
		show, next, _ := f.settle(shown, tick/3%2 == 0, now.Add(time.Duration(tick)*time.Second))
		if show != shown {
			writes++
		}
		shown, f = show, next
	}
	if writes > 10 {
		t.Errorf("a source that flaps for an hour is written %d times", writes)
	}
	for tick := range 600 {
		shown, f, _ = f.settle(shown, true, now.Add(time.Hour+time.Duration(tick)*time.Second))
	}
	if !shown {
		t.Error("once it is steady it is shown")
	}
}
