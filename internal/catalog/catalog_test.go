package catalog

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// world returns a cluster with one exported Service shop/bar. Its port 80 leads to the
// container port "web" of one ready pod with the ServiceAccount bar. The Link west admits
// it.
func world() cluster {
	return cluster{
		TrustDomain: "east.1",
		Namespace:   "causeway-system",
		Services: []corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop",
				Name:      "bar",
				Labels:    map[string]string{v1alpha1.ExportLabel: "true"},
			},
			Spec: corev1.ServiceSpec{
				Type:      corev1.ServiceTypeClusterIP,
				ClusterIP: "10.96.0.7",
				Selector:  map[string]string{"app": "bar"},
				Ports: []corev1.ServicePort{
					{
						Name:        "http",
						Protocol:    "TCP",
						Port:        80,
						TargetPort:  intstr.FromString("web"),
						AppProtocol: ptr("http"),
					},
				},
			},
		}},
		EndpointSlices: []discoveryv1.EndpointSlice{sliceOf("bar", "uid-1", "10.244.0.5")},
		Pods:           []corev1.Pod{podOf("uid-1", "10.244.0.5")},
		Links:          []v1alpha1.Link{linkTo("west")},
		Agents:         map[string]string{"node-1": "192.168.0.1:4144"},
		Routes: func(namespace, service, port, protocol string) uint32 {
			if namespace+"/"+service+"/"+protocol == "shop/bar/TCP" {
				return map[string]uint32{"http": 1024, "grpc": 1025, "": 1026}[port]
			}
			return 0
		},
	}
}

func podOf(uid, ip string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop",
			Name:      "bar-" + uid,
			UID:       types.UID(uid),
			Labels:    map[string]string{"app": "bar"},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", ServiceAccountName: "bar",
			Containers: []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}},
			},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func sliceOf(service, uid, ip string) discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop",
			Name:      service + "-" + uid,
			Labels:    map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", UID: types.UID(uid)},
		}},
	}
}

func linkTo(name string) v1alpha1.Link {
	l := v1alpha1.Link{ObjectMeta: metav1.ObjectMeta{Name: name}}
	l.Spec.Export = &v1alpha1.ExportRules{Services: v1alpha1.AllServices}
	return l
}

func ptr[T any](v T) *T { return &v }

func TestExport(t *testing.T) {
	got := ptr(world()).build()
	want := []Export{{
		Namespace:  "shop",
		Name:       "bar",
		Ports:      []Port{{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http"}},
		Identities: []string{"spiffe://east.1/ns/shop/sa/bar"},
		Ready:      true,
		Links:      []string{"west"},
		Endpoints: []Endpoint{{
			PodUID:  "uid-1",
			Node:    "node-1",
			IP:      netip.MustParseAddr("10.244.0.5"),
			Ready:   true,
			Serving: true,
			Accepts: true,
			Targets: map[uint16]uint16{80: 8080},
		}},
	}}
	if d := cmp.Diff(want, got.List, compareAddr, cmpopts.EquateEmpty()); d != "" || len(got.Problems) > 0 {
		t.Fatalf("problems %v, exports (-want +got):\n%s", got.Problems, d)
	}
	visible := map[Key]Service{{"shop", "bar"}: {
		Namespace:  "shop",
		Name:       "bar",
		Ports:      []Port{{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: 1024}},
		Identities: []string{"spiffe://east.1/ns/shop/sa/bar"},
		Ready:      true,
	}}
	if d := cmp.Diff(visible, got.For("west")); d != "" {
		t.Errorf("what the peer sees (-want +got):\n%s", d)
	}
	if len(got.For("north")) != 0 {
		t.Error("a Link that does not exist sees a Service")
	}
}

func TestExported(t *testing.T) {
	service := func(change func(*corev1.Service)) func(*cluster) {
		return func(in *cluster) { change(&in.Services[0]) }
	}
	ports := func(ports ...corev1.ServicePort) func(*cluster) {
		return service(func(s *corev1.Service) { s.Spec.Ports = ports })
	}
	var many []corev1.ServicePort
	for i := range MaxPorts + 1 {
		many = append(many, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(1000 + i)})
	}
	cases := map[string]struct {
		why      string
		change   func(*cluster)
		exported bool
		visible  bool // to the peer
		problems []string
	}{
		"labeled": {
			why:      "the owner exports a Service by its label",
			change:   func(*cluster) {},
			exported: true,
			visible:  true,
		},
		"unlabeled": {
			why:    "the owner exports a Service by its label",
			change: service(func(s *corev1.Service) { s.Labels = nil }),
		},
		"label false": {
			why:    "only the value true exports",
			change: service(func(s *corev1.Service) { s.Labels[v1alpha1.ExportLabel] = "false" }),
		},
		"linkerd's label": {
			why: "Services that are labeled for Linkerd are exported without a change",
			change: service(func(s *corev1.Service) {
				s.Labels = map[string]string{v1alpha1.LinkerdExportLabel: "true"}
			}),
			exported: true,
			visible:  true,
		},
		"being deleted": {
			why: "a Service that is being deleted is not exported",
			change: service(func(s *corev1.Service) {
				s.DeletionTimestamp = &metav1.Time{}
				*s.DeletionTimestamp = metav1.Now()
			}),
		},
		"no route yet": {
			why:      "a peer must not see a port that the gateway cannot route",
			change:   func(in *cluster) { in.Routes = nil },
			exported: true,
		},
		"no export rules": {
			why:      "a Link without export rules admits nothing",
			change:   func(in *cluster) { in.Links[0].Spec.Export = nil },
			exported: true,
		},
		"Link being deleted": {
			why:      "a Link that is being deleted admits nothing",
			change:   func(in *cluster) { in.Links[0].DeletionTimestamp = ptr(metav1.Now()) },
			exported: true,
		},
		"mirror": {
			why: "a peer's Service is not exported to other peers",
			change: service(func(s *corev1.Service) {
				s.Labels[v1alpha1.ManagedByLabel], s.Labels[v1alpha1.LinkLabel] = v1alpha1.ManagedBy, "west"
			}), problems: []string{MirrorNotExported},
		},
		"mirror without labels": {
			why: "a tenant who removes the labels cannot export a mirror",
			change: service(func(s *corev1.Service) {
				s.OwnerReferences = []metav1.OwnerReference{
					{APIVersion: "causeway.dev/v1alpha1", Kind: "Link", Name: "west"},
				}
			}), problems: []string{MirrorNotExported},
		},
		"own namespace": {
			why:      "Causeway's own Services are never exported",
			change:   service(func(s *corev1.Service) { s.Namespace = "causeway-system" }),
			problems: []string{OwnNamespace},
		},
		"external name": {
			why:      "the name could lead a peer's callers anywhere",
			change:   service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }),
			problems: []string{ExternalNameUnsupported},
		},
		"no ports": {why: "the Service has nothing to call", change: ports(), problems: []string{NoPorts}},
		"headless": {
			why:      "the importer does not use the Service's address",
			change:   service(func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }),
			exported: true,
			visible:  true,
		},
		"udp alone": {
			why:      "only TCP crosses Links",
			change:   ports(corev1.ServicePort{Protocol: "UDP", Port: 53}),
			problems: []string{NoTCPPort},
		},
		"udp beside tcp": {
			why: "the TCP port is exported, and a problem names the other one",
			change: ports(corev1.ServicePort{
				Name:     "dns",
				Protocol: "UDP",
				Port:     53,
			}, corev1.ServicePort{Name: "http", Protocol: "TCP", Port: 53}),
			exported: true,
			visible:  true,
			problems: []string{ProtocolUnsupported},
		},
		"too many ports": {
			why:      "a peer would refuse the Service",
			change:   ports(many...),
			problems: []string{TooManyPorts},
		},
		"no selector": {
			why:      "without a selector no pod belongs to the Service",
			change:   service(func(s *corev1.Service) { s.Spec.Selector = nil }),
			exported: true,
			visible:  true,
			problems: []string{SelectorMissing},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			c.change(&in)
			got := in.build()
			if (len(got.List) == 1) != c.exported || (len(got.For("west")) == 1) != c.visible {
				t.Errorf("%s: exported %v, visible %v", c.why, got.List, got.For("west"))
			}
			if d := cmp.Diff(c.problems, reasonsOf(got.Problems)); d != "" {
				t.Errorf("%s: problems (-want +got):\n%s", c.why, d)
			}
			for _, s := range got.For("west") {
				if _, problems := s.Validate("east.1"); len(problems) > 0 {
					t.Errorf("a peer would refuse it: %v", problems)
				}
			}
		})
	}
}

func TestServiceExport(t *testing.T) {
	export := func(namespace, name string) metav1.PartialObjectMetadata {
		return metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	}
	going := export("shop", "bar")
	going.DeletionTimestamp = ptr(metav1.Now())
	cases := map[string]struct {
		why      string
		labels   map[string]string
		exports  []metav1.PartialObjectMetadata
		change   func(*cluster)
		visible  bool
		problems []string
	}{
		"neither": {why: "neither a label nor a ServiceExport exports the Service"},
		"a ServiceExport": {
			why:     "a ServiceExport works like the label",
			exports: []metav1.PartialObjectMetadata{export("shop", "bar")},
			visible: true,
		},
		"both": {
			why:     "asking twice changes nothing",
			labels:  map[string]string{v1alpha1.ExportLabel: "true"},
			exports: []metav1.PartialObjectMetadata{export("shop", "bar")},
			visible: true,
		},
		"being deleted": {
			why:     "a ServiceExport that is being deleted does not count",
			exports: []metav1.PartialObjectMetadata{going},
		},
		"being deleted, labeled": {
			why:     "the label still counts",
			labels:  map[string]string{v1alpha1.ExportLabel: "true"},
			exports: []metav1.PartialObjectMetadata{going},
			visible: true,
		},
		"another namespace": {
			why:      "a ServiceExport is for a Service of its own namespace",
			exports:  []metav1.PartialObjectMetadata{export("pay", "bar")},
			problems: []string{ServiceMissing},
		},
		"no Service": {
			why:      "a misspelled name is a problem",
			exports:  []metav1.PartialObjectMetadata{export("shop", "baz")},
			problems: []string{ServiceMissing},
		},
		"a mirror": {
			why:     "the mirror of a peer's Service is never exported",
			exports: []metav1.PartialObjectMetadata{export("shop", "bar")},
			change: func(in *cluster) {
				in.Services[0].Labels = map[string]string{
					v1alpha1.ManagedByLabel: v1alpha1.ManagedBy,
					v1alpha1.LinkLabel:      "west",
				}
			}, problems: []string{MirrorNotExported},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			in.Services[0].Labels, in.ServiceExports = c.labels, c.exports
			if c.change != nil {
				c.change(&in)
			}
			got := in.build()
			if visible := len(got.For("west")) == 1; visible != c.visible {
				t.Errorf("%s: the peer sees it: %v", c.why, visible)
			}
			if d := cmp.Diff(c.problems, reasonsOf(got.Problems), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.problems, reasonsOf(got.LinkProblems["west"]),
				cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: problems of the Link (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func reasonsOf(problems []Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Reason)
		if !slices.Contains(Reasons, p.Reason) {
			out = append(out, "not in the closed list")
		}
	}
	return out
}

func TestEndpoints(t *testing.T) {
	pod := func(change func(*corev1.Pod)) func(*cluster) {
		return func(in *cluster) { change(&in.Pods[0]) }
	}
	endpoint := func(change func(*discoveryv1.Endpoint)) func(*cluster) {
		return func(in *cluster) { change(&in.EndpointSlices[0].Endpoints[0]) }
	}
	own := []string{"spiffe://east.1/ns/shop/sa/bar"}
	cases := map[string]struct {
		why        string
		change     func(*cluster)
		endpoints  []string // UID, and "!" if not ready
		identities []string
		problems   []string
	}{
		"one": {
			why:        "the pod backs the Service",
			change:     func(*cluster) {},
			endpoints:  []string{"uid-1"},
			identities: own,
		},
		"unready": {
			why:        "the pod still backs the Service, and its identity stays valid",
			change:     endpoint(func(e *discoveryv1.Endpoint) { e.Conditions.Ready = ptr(false) }),
			endpoints:  []string{"uid-1!"},
			identities: own,
		},
		"readiness unknown": {
			why:        "without the condition the endpoint is ready",
			change:     endpoint(func(e *discoveryv1.Endpoint) { e.Conditions.Ready = nil }),
			endpoints:  []string{"uid-1"},
			identities: own,
		},
		"no agent": {
			why:    "a pod without a ready agent on its node is unreachable",
			change: func(in *cluster) { in.Agents = nil }, endpoints: []string{"uid-1!"}, identities: own,
		},
		"terminating": {
			why: "a pod that terminates and still serves takes connections while no other pod is " +
				"ready",
			change:     pod(func(p *corev1.Pod) { p.DeletionTimestamp = ptr(metav1.Now()) }),
			endpoints:  []string{"uid-1!"},
			identities: own,
		},
		"finished": {
			why:    "another pod may have the address now",
			change: pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		},
		"failed": {
			why:    "another pod may have the address now",
			change: pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
		},
		"unscheduled": {
			why:    "the pod has no node",
			change: pod(func(p *corev1.Pod) { p.Spec.NodeName = "" }),
		},
		"gone": {
			why:    "an EndpointSlice without the pod proves nothing",
			change: func(in *cluster) { in.Pods = nil },
		},
		"another pod of the name": {
			why:    "pods are identified by UID",
			change: pod(func(p *corev1.Pod) { p.UID = "uid-2" }),
		},
		"another address": {
			why:    "a slice cannot send callers to an address that is not the pod's",
			change: endpoint(func(e *discoveryv1.Endpoint) { e.Addresses = []string{"10.244.0.9"} }),
		},
		"host network": {
			why:      "the pod shares the address of its node",
			change:   pod(func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
			problems: []string{HostNetworkUnsupported},
		},
		"no target": {
			why:      "an address alone does not prove that a pod has it",
			change:   endpoint(func(e *discoveryv1.Endpoint) { e.TargetRef = nil }),
			problems: []string{ForeignEndpoint},
		},
		"a node": {
			why:      "only pods can back a Service",
			change:   endpoint(func(e *discoveryv1.Endpoint) { e.TargetRef.Kind = "Node" }),
			problems: []string{ForeignEndpoint},
		},
		"a pod of another namespace": {
			why: "a slice written by hand exported a neighbor's pod (CVE-2021-25740)",
			change: func(in *cluster) {
				in.Pods[0].Namespace = "payments"
				in.EndpointSlices[0].Endpoints[0].TargetRef.Namespace = "payments"
			}, problems: []string{ForeignEndpoint},
		},
		"a pod of another namespace, called ours": {
			why:      "the pod's namespace counts, not that of the reference",
			change:   pod(func(p *corev1.Pod) { p.Namespace = "payments" }),
			problems: []string{ForeignEndpoint},
		},
		"not selected": {
			why:      "a slice written by hand cannot export another Service's pod",
			change:   pod(func(p *corev1.Pod) { p.Labels["app"] = "vault" }),
			problems: []string{ForeignEndpoint},
		},
		"no account": {
			why:        "Kubernetes uses the ServiceAccount default",
			change:     pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "" }),
			endpoints:  []string{"uid-1"},
			identities: []string{"spiffe://east.1/ns/shop/sa/default"},
		},
		"two accounts, sorted by UID and name": {
			why: "the same objects give the same decision in any order",
			change: func(in *cluster) {
				p := podOf("uid-0", "10.244.0.4")
				p.Spec.ServiceAccountName = "zeta"
				in.Pods = append(in.Pods, p)
				in.EndpointSlices = append(in.EndpointSlices, sliceOf("bar", "uid-0", "10.244.0.4"))
			},
			endpoints:  []string{"uid-0", "uid-1"},
			identities: []string{"spiffe://east.1/ns/shop/sa/bar", "spiffe://east.1/ns/shop/sa/zeta"},
		},
		"two slices": {
			why: "a dual-stack pod is one endpoint",
			change: func(in *cluster) {
				in.Pods[0].Status.PodIPs = append(in.Pods[0].Status.PodIPs, corev1.PodIP{IP: "fd00::5"})
				second := sliceOf("bar", "uid-1", "fd00::5")
				second.Name += "-ipv6"
				in.EndpointSlices = append(in.EndpointSlices, second)
			}, endpoints: []string{"uid-1"}, identities: own,
		},
		"another Service's slice": {
			why:    "the label says which Service a slice belongs to",
			change: func(in *cluster) { in.EndpointSlices[0].Labels[discoveryv1.LabelServiceName] = "foo" },
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			c.change(&in)
			got := in.build()
			var endpoints []string
			ready := false
			for _, e := range got.List[0].Endpoints {
				uid := e.PodUID
				if !e.Ready {
					uid += "!"
				}
				ready = ready || e.Accepts
				endpoints = append(endpoints, uid)
				if !e.IP.Is4() {
					t.Errorf("%s: address %v", c.why, e.IP)
				}
			}
			if d := cmp.Diff(c.endpoints, endpoints); d != "" || got.List[0].Ready != ready {
				t.Errorf("%s: ready %v, endpoints (-want +got):\n%s", c.why, got.List[0].Ready, d)
			}
			if d := cmp.Diff(c.identities, got.List[0].Identities); d != "" {
				t.Errorf("%s: identities (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.problems, reasonsOf(got.Problems)); d != "" {
				t.Errorf("%s: problems (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	sidecar := corev1.Container{
		RestartPolicy: &always,
		Ports:         []corev1.ContainerPort{{Name: "side", ContainerPort: 9090}},
	}
	setup := corev1.Container{Ports: []corev1.ContainerPort{{Name: "setup", ContainerPort: 9091}}}
	cases := map[string]struct {
		why    string
		target intstr.IntOrString
		want   map[uint16]uint16
	}{
		"number": {
			why:    "targetPort is a number",
			target: intstr.FromInt32(8443),
			want:   map[uint16]uint16{80: 8443},
		},
		"absent": {
			why:    "without targetPort the Service port counts",
			target: intstr.IntOrString{},
			want:   map[uint16]uint16{80: 80},
		},
		"name": {
			why:    "targetPort is the name of a container port",
			target: intstr.FromString("web"),
			want:   map[uint16]uint16{80: 8080},
		},
		"sidecar": {
			why:    "an init container that keeps running has ports",
			target: intstr.FromString("side"),
			want:   map[uint16]uint16{80: 9090},
		},
		"setup": {
			why:    "an init container that ends has no ports",
			target: intstr.FromString("setup"),
			want:   map[uint16]uint16{},
		},
		"udp": {
			why:    "a port name belongs to one protocol",
			target: intstr.FromString("udp"),
			want:   map[uint16]uint16{},
		},
		"no such": {
			why:    "the pod has no port of this name",
			target: intstr.FromString("nope"),
			want:   map[uint16]uint16{},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			in.Services[0].Spec.Ports[0].TargetPort = c.target
			in.Pods[0].Spec.InitContainers = []corev1.Container{sidecar, setup}
			in.Pods[0].Spec.Containers[0].Ports = append(in.Pods[0].Spec.Containers[0].Ports,
				corev1.ContainerPort{
					Name:          "udp",
					ContainerPort: 53,
					Protocol:      "UDP",
				})
			in.EndpointSlices[0].Ports = []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(22))}}
			if d := cmp.Diff(c.want, in.build().List[0].Endpoints[0].Targets); d != "" {
				t.Errorf("%s, and the slice's ports are ignored (-want +got):\n%s", c.why, d)
			}
		})
	}
}

func TestTooManyIdentities(t *testing.T) {
	in := world()
	for i := range MaxIdentities {
		uid, ip := fmt.Sprint("x", i), fmt.Sprint("10.244.1.", i)
		p := podOf(uid, ip)
		p.Spec.ServiceAccountName = uid
		in.Pods = append(in.Pods, p)
		in.EndpointSlices = append(in.EndpointSlices, sliceOf("bar", uid, ip))
	}
	got := in.build()
	if n := len(got.List[0].Identities); n != MaxIdentities ||
		!slices.Contains(reasonsOf(got.Problems), TooManyIdentities) {
		t.Errorf("a peer accepts at most %d identities: %d, problems %v", MaxIdentities, n, got.Problems)
	}
}

func TestAffinity(t *testing.T) {
	in := world()
	in.Services[0].Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	if e := in.build().List[0]; e.SessionAffinity != AffinityClientIP || e.SessionAffinitySeconds != 10800 {
		t.Errorf("without a timeout Kubernetes uses three hours: %v", e)
	}
	clientIP := &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(60))}
	in.Services[0].Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: clientIP}
	if e := in.build().List[0]; e.SessionAffinitySeconds != 60 {
		t.Errorf("the configured timeout counts: %v", e)
	}
}

func TestPoliciesAndLinks(t *testing.T) {
	in := world()
	policy := func(namespace, name string, services ...string) v1alpha1.ExportPolicy {
		return v1alpha1.ExportPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec:       v1alpha1.ExportPolicySpec{Services: services},
		}
	}
	in.ExportPolicies = []v1alpha1.ExportPolicy{
		policy("shop", "named", "foo", "bar"),
		policy("shop", "all"),
		policy("shop", "other", "foo"),
		policy("pay", "all"),
	}
	in.Links = []v1alpha1.Link{
		linkTo("west"),
		linkTo("north"),
		{ObjectMeta: metav1.ObjectMeta{Name: "blind"}},
	}
	e := in.build().List[0]
	var names []string
	for _, p := range e.Policies {
		names = append(names, p.Name)
	}
	if d := cmp.Diff([]string{"all", "named"}, names); d != "" {
		t.Errorf("policies of the namespace that select the Service (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"north", "west"}, e.Links); d != "" {
		t.Errorf("Links with export rules, sorted (-want +got):\n%s", d)
	}
}
