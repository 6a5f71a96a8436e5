// Package catalog decides what this cluster exports, and what may be believed of a peer's catalog.
//
//	Services, EndpointSlices, Pods, Links, … ──Build──▶ Exports ──For(link)──▶ Services that the peer may see
//	a peer's word ──Service.Validate──▶ Service, problems
//
// What always holds:
//   - It decides from objects in hand: no clock, no network, no cluster.
//   - The same objects in any order give the same Exports, sorted.
//   - A Service crosses only if its owner exports it, by a label or a ServiceExport; a mirror, and whatever
//     lies in Causeway's own namespace, never does.
//   - An endpoint is a live pod of the Service's own namespace that its selector
//     selects, at that pod's own address. An EndpointSlice can name endpoints, it
//     cannot make them.
//   - A peer is shown only what its Link's export rules admit, only ports that
//     have a route, never an address, and no label of Causeway's or Linkerd's.
package catalog

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// ServiceExportKind is the multi-cluster SIG's word for "export the Service of this
// name". Nothing but its metadata is read, so that its CRD need not be there and its
// Go types need not be ours.
var ServiceExportKind = schema.GroupVersionKind{Group: "multicluster.x-k8s.io", Version: "v1alpha1", Kind: "ServiceExport"}

// Inputs are the objects that Build decides from. None is changed or kept.
type Inputs struct {
	// TrustDomain is this cluster's.
	TrustDomain string
	// Namespace is Causeway's own.
	Namespace string

	Services       []corev1.Service
	EndpointSlices []discoveryv1.EndpointSlice
	Pods           []corev1.Pod
	Links          []v1alpha1.Link
	ExportPolicies []v1alpha1.ExportPolicy
	// ServiceExports, of kind ServiceExportKind, export the Services of their names
	// as the label does. Nil where the cluster has no such kind.
	ServiceExports []metav1.PartialObjectMetadata
	// Namespaces are read for their labels alone. Without them no
	// namespaceSelector of a Link matches.
	Namespaces []corev1.Namespace

	// Agents holds the address of the agent of each node that has a ready one.
	Agents map[string]string
	// Routes tells the route id of a port, 0 if it has none yet. Nil: no port has one.
	Routes func(namespace, service, port, protocol string) uint32
}

// Exports is what a cluster exports. The zero value is nothing.
type Exports struct {
	// List is sorted by namespace and name.
	List []Export
	// Problems tells, sorted, what its owner exports and does not cross, wholly or in part.
	Problems []Problem
	// LinkProblems tells, by Link and sorted, what of these its peer would see but
	// for them, and what is wrong with its export rules.
	LinkProblems map[string][]Problem
}

// Export is one exported Service.
type Export struct {
	Namespace, Name string
	// Ports are the TCP ports, sorted by number. A port whose Route is 0 is not offered yet.
	Ports []Port
	// OtherPorts are those of other protocols, which are named and not carried.
	OtherPorts []Port
	// Identities are the SPIFFE IDs of its endpoints, ready or not, sorted.
	Identities []string
	// Ready: at least one endpoint is.
	Ready                  bool
	SessionAffinity        Affinity
	SessionAffinitySeconds uint32
	// Headless: the Service has no address of its own. Hosts are its pods that have
	// a name in DNS, sorted.
	Headless bool
	Hosts    []Host
	// Labels and Annotations are those that peers may see.
	Labels, Annotations map[string]string
	// Links are the names of the Links whose export rules admit it, sorted.
	Links []string
	// Policies are those that select it, sorted by name. None: whom the Links admit.
	Policies []v1alpha1.ExportPolicy
	// Endpoints are sorted by pod UID.
	Endpoints []Endpoint
}

// Key returns the Service's name.
func (e Export) Key() Key { return Key{Namespace: e.Namespace, Name: e.Name} }

// Service returns the export as a peer sees it: a zero Service while no port of
// it has a route.
func (e Export) Service() Service {
	ports := make([]Port, 0, len(e.Ports)+len(e.OtherPorts))
	for _, p := range e.Ports {
		if p.Route != 0 {
			ports = append(ports, p)
		}
	}
	if len(ports) == 0 {
		return Service{}
	}
	ports = append(ports, e.OtherPorts[:min(len(e.OtherPorts), MaxPorts-len(ports))]...)
	slices.SortFunc(ports, comparePorts)
	return Service{
		Namespace: e.Namespace, Name: e.Name, Ports: ports, Identities: e.Identities, Ready: e.Ready,
		SessionAffinity: e.SessionAffinity, SessionAffinitySeconds: e.SessionAffinitySeconds,
		Headless: e.Headless, Hosts: e.Hosts, Labels: e.Labels, Annotations: e.Annotations,
	}
}

// For returns what the peer of a Link may see.
func (x Exports) For(link string) map[Key]Service {
	seen := make(map[Key]Service)
	for _, e := range x.List {
		if _, admitted := slices.BinarySearch(e.Links, link); !admitted {
			continue
		}
		if s := e.Service(); !s.IsZero() {
			seen[s.Key()] = s
		}
	}
	return seen
}

// Build decides what is exported.
func Build(in Inputs) Exports {
	b := newBuilder(in)
	var out Exports
	known := make(map[Key]bool, len(b.exported))
	for i := range in.Services {
		svc := &in.Services[i]
		if k := (Key{svc.Namespace, svc.Name}); b.exported[k] {
			known[k] = true
		}
		if !b.asked(svc) {
			continue
		}
		before := len(b.problems.list)
		if e, ok := b.export(svc); ok {
			out.List = append(out.List, e)
		}
		if told := b.problems.list[before:]; len(told) > 0 {
			for _, link := range b.admitting(svc) {
				b.concern(link, told...)
			}
		}
	}
	b.tellMissing(known)
	slices.SortFunc(out.List, func(a, b Export) int { return a.Key().Compare(b.Key()) })
	out.Problems = b.problems.sorted()
	for link, list := range b.linkProblems {
		ps := problems{list}
		b.linkProblems[link] = ps.sorted()
	}
	out.LinkProblems = b.linkProblems
	return out
}

// tellMissing tells of ServiceExports that name no Service. No selector can match
// what is not there, so it concerns every Link that may see the namespace.
func (b *builder) tellMissing(known map[Key]bool) {
	for k := range b.exported {
		if known[k] {
			continue
		}
		before := len(b.problems.list)
		b.problems.add(k, ServiceMissing, "a ServiceExport of this name stands here and no Service: make the Service or delete the ServiceExport")
		for _, r := range b.rules {
			if r.covers(b.namespaces, k.Namespace) {
				b.concern(r.link, b.problems.list[before:]...)
			}
		}
	}
}

// builder holds the indexes of one Build.
type builder struct {
	Inputs
	slices     map[Key][]*discoveryv1.EndpointSlice
	pods       map[string]*corev1.Pod // by UID
	policies   map[string][]v1alpha1.ExportPolicy
	namespaces map[string]labels.Set
	exported   map[Key]bool // by a ServiceExport
	rules      []linkRules  // sorted by Link
	problems   problems
	// linkProblems are those that concern one Link, by Link.
	linkProblems map[string][]Problem
}

func newBuilder(in Inputs) *builder {
	b := &builder{
		Inputs:     in,
		slices:     make(map[Key][]*discoveryv1.EndpointSlice, len(in.EndpointSlices)),
		pods:       make(map[string]*corev1.Pod, len(in.Pods)),
		policies:   make(map[string][]v1alpha1.ExportPolicy),
		namespaces: make(map[string]labels.Set, len(in.Namespaces)),
		exported:   make(map[Key]bool, len(in.ServiceExports)),
	}
	for i := range in.EndpointSlices {
		s := &in.EndpointSlices[i]
		k := Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		b.slices[k] = append(b.slices[k], s)
	}
	for i := range in.Pods {
		b.pods[string(in.Pods[i].UID)] = &in.Pods[i]
	}
	for _, p := range in.ExportPolicies {
		b.policies[p.Namespace] = append(b.policies[p.Namespace], p)
	}
	for i := range in.Namespaces {
		b.namespaces[in.Namespaces[i].Name] = in.Namespaces[i].Labels
	}
	for i := range in.ServiceExports {
		if x := &in.ServiceExports[i]; x.DeletionTimestamp.IsZero() {
			b.exported[Key{x.Namespace, x.Name}] = true
		}
	}
	b.readRules()
	return b
}

// concern tells a Link of problems.
func (b *builder) concern(link string, told ...Problem) {
	if b.linkProblems == nil {
		b.linkProblems = make(map[string][]Problem)
	}
	b.linkProblems[link] = append(b.linkProblems[link], told...)
}

// asked reports whether svc is to be exported, as far as its owner's word goes.
func (b *builder) asked(svc *corev1.Service) bool {
	asked := svc.Labels[v1alpha1.ExportLabel] == "true" || svc.Labels[v1alpha1.LinkerdExportLabel] == "true" ||
		b.exported[Key{svc.Namespace, svc.Name}]
	return asked && svc.DeletionTimestamp.IsZero()
}

func (b *builder) export(svc *corev1.Service) (Export, bool) {
	e := Export{Namespace: svc.Namespace, Name: svc.Name}
	if reason, message := b.refusal(svc); reason != "" {
		b.problems.add(e.Key(), reason, "%s", message)
		return Export{}, false
	}
	b.addPorts(&e, svc)
	switch {
	case len(e.Ports) == 0:
		b.problems.add(e.Key(), NoTCPPort, "the Service has no TCP port: only TCP is carried")
		return Export{}, false
	case len(e.Ports) > MaxPorts:
		b.problems.add(e.Key(), TooManyPorts, "the Service has more than %d TCP ports: split it into several Services", MaxPorts)
		return Export{}, false
	case len(e.OtherPorts) > 0:
		b.problems.add(e.Key(), ProtocolUnsupported, "only the Service's TCP ports are carried")
	}
	var whole bool
	if e.Labels, e.Annotations, whole = shownMetadata(svc.Labels, svc.Annotations); !whole {
		b.problems.add(e.Key(), MetadataTooLarge, "linked clusters are shown only %d KiB of the Service's labels and annotations: shorten them", maxMetadata>>10)
	}
	e.Links = b.admitting(svc)
	e.Policies = PoliciesFor(svc.Namespace, svc.Name, b.policies[svc.Namespace])
	e.SessionAffinity, e.SessionAffinitySeconds = affinity(svc)
	e.Headless = svc.Spec.ClusterIP == corev1.ClusterIPNone
	b.addEndpoints(&e, svc)
	return e, true
}

// refusal tells why svc cannot be exported at all; no reason: it can.
func (b *builder) refusal(svc *corev1.Service) (reason, message string) {
	switch {
	case isMirror(svc):
		return MirrorNotExported, "the Service is itself a mirror of a peer's: it is not exported again; remove the export label"
	case svc.Namespace == b.Namespace:
		return OwnNamespace, "Services of Causeway's own namespace are never exported: remove the export label"
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return ExternalNameUnsupported, "a Service of type ExternalName has no pods and cannot be exported: make a ClusterIP Service"
	case len(svc.Spec.Ports) == 0:
		return NoPorts, "the Service has no ports: name at least one TCP port"
	}
	return "", ""
}

// isMirror reports whether Causeway made svc for a Link. Either mark is enough,
// so that a tenant who strips one does not send a peer's Service onward.
func isMirror(svc *corev1.Service) bool {
	if svc.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy && svc.Labels[v1alpha1.LinkLabel] != "" {
		return true
	}
	for _, o := range svc.OwnerReferences {
		if o.Kind == "Link" && groupOf(o.APIVersion) == v1alpha1.GroupVersion.Group {
			return true
		}
	}
	return false
}

func (b *builder) addPorts(e *Export, svc *corev1.Service) {
	for _, p := range svc.Spec.Ports {
		port := Port{Name: p.Name, Protocol: string(protocolOf(p)), Port: uint16(p.Port)}
		if p.AppProtocol != nil {
			port.AppProtocol = *p.AppProtocol
		}
		if port.Protocol != string(corev1.ProtocolTCP) {
			e.OtherPorts = append(e.OtherPorts, port)
			continue
		}
		if b.Routes != nil {
			port.Route = b.Routes(svc.Namespace, svc.Name, port.Name, port.Protocol)
		}
		e.Ports = append(e.Ports, port)
	}
	slices.SortFunc(e.Ports, comparePorts)
	slices.SortFunc(e.OtherPorts, comparePorts)
}

func protocolOf(p corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

func affinity(svc *corev1.Service) (Affinity, uint32) {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return AffinityNone, 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return AffinityClientIP, uint32(seconds)
}

func groupOf(apiVersion string) string {
	group, _, _ := strings.Cut(apiVersion, "/")
	return group
}
