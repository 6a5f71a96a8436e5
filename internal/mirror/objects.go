package mirror

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

// sliceManager is who manages our EndpointSlices, so that no built-in controller does.
const sliceManager = "causeway.dev"

// service returns the mirror as it shall be: have with our own fields set, or a
// new one if have is nil. A difference in the version alone is none, as it tells
// who wrote last.
func (d Desired) service(w Want, have *corev1.Service) *corev1.Service {
	svc := &corev1.Service{}
	if have != nil {
		svc = have.DeepCopy()
	}
	svc.Namespace, svc.Name = w.Entry.MirrorNamespace, w.Entry.MirrorName
	svc.OwnerReferences = []metav1.OwnerReference{linkRef(d.Link)}
	copyMetadata(svc, w)
	setAll(&svc.Labels, map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: d.Link.Name})
	setAll(&svc.Annotations, map[string]string{v1alpha1.SourceAnnotation: w.source().String()})
	delete(svc.Annotations, v1alpha1.HostnameAnnotation)
	if w.Entry.Hostname != "" {
		svc.Annotations[v1alpha1.HostnameAnnotation] = w.Entry.Hostname
	}
	if svc.Annotations[v1alpha1.VersionAnnotation] == "" {
		svc.Annotations[v1alpha1.VersionAnnotation] = d.Version
	}
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	if have == nil && w.lists() {
		svc.Spec.ClusterIP = corev1.ClusterIPNone
	}
	svc.Spec.Selector = nil
	svc.Spec.SessionAffinity = corev1.ServiceAffinityNone // the agent honours the source's
	svc.Spec.SessionAffinityConfig = nil
	svc.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyCluster) // Local finds no endpoint: ours has no node
	if len(w.Entry.VIPs) > 1 && !w.lists() {
		svc.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack) // an address for each slice
	}
	svc.Spec.Ports = w.servicePorts()
	if have == nil || !equality.Semantic.DeepEqual(svc, have) {
		svc.Annotations[v1alpha1.VersionAnnotation] = d.Version
	}
	return svc
}

// newNamespace is a namespace for mirrors. Nobody owns it: others may use it when
// the Link is gone.
func (d Desired) newNamespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: d.Link.Name},
	}}
}

func (w Want) servicePorts() []corev1.ServicePort {
	var out []corev1.ServicePort
	for _, p := range w.offered() {
		out = append(out, corev1.ServicePort{
			Name: p.Name, Protocol: corev1.Protocol(p.Protocol), Port: p.Port, AppProtocol: optional(p.AppProtocol),
			TargetPort: intstr.FromInt32(w.targetPort(p)),
		})
	}
	return out
}

// targetPort is where a connection to p goes: to the VIP's listener, or if the
// mirror is headless to the same port of the mirrors that it lists.
func (w Want) targetPort(p v1alpha1.LedgerMirrorPort) int32 {
	if w.lists() {
		return p.Port
	}
	return ledger.FirstListener + p.Index
}

// lists reports whether the mirror is headless and lists those of named pods.
func (w Want) lists() bool { return w.Entry.Headless && w.Entry.Hostname == "" }

func headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

// clusterIP returns the address of a family that Kubernetes gave svc.
func clusterIP(svc *corev1.Service, v4 bool) (netip.Addr, bool) {
	for _, s := range svc.Spec.ClusterIPs {
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is4() == v4 {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func endpoint(ip netip.Addr, hostname string, ready bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{ip.String()}, Hostname: optional(hostname),
		Conditions: discoveryv1.EndpointConditions{Ready: ptr(ready), Serving: ptr(ready)},
	}
}

// endpointSlice returns the slice of one VIP as it shall be, listing endpoints:
// have with our own fields set, or a new one if have is nil. owner is the mirror's UID, empty if
// the mirror is yet to be made.
func (d Desired) endpointSlice(
	w Want, vip netip.Addr, owner types.UID, endpoints []discoveryv1.Endpoint, have *discoveryv1.EndpointSlice,
) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{}
	if have != nil {
		slice = have.DeepCopy()
	}
	slice.Namespace, slice.Name = w.Entry.MirrorNamespace, sliceName(w.Entry.MirrorName, vip)
	slice.OwnerReferences = []metav1.OwnerReference{serviceRef(w.Entry.MirrorName, owner)}
	setAll(&slice.Labels, map[string]string{
		discoveryv1.LabelServiceName: w.Entry.MirrorName,
		discoveryv1.LabelManagedBy:   sliceManager,
		v1alpha1.ManagedByLabel:      v1alpha1.ManagedBy,
		v1alpha1.LinkLabel:           d.Link.Name,
	})
	slice.AddressType = family(vip)
	slice.Endpoints = endpoints
	slice.Ports = nil
	for _, p := range w.offered() {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
			Name: ptr(p.Name), Protocol: ptr(corev1.Protocol(p.Protocol)), Port: ptr(w.targetPort(p)), AppProtocol: optional(p.AppProtocol),
		})
	}
	return slice
}

// sliceName is a name of its own per family, as a DNS subdomain it may be longer than a label.
func sliceName(mirror string, vip netip.Addr) string {
	if vip.Is4() {
		return mirror + "-causeway"
	}
	return mirror + "-causeway-v6"
}

func family(ip netip.Addr) discoveryv1.AddressType {
	if ip.Is4() {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

// offered returns the ports that the peer offers now, by index.
func (w Want) offered() []v1alpha1.LedgerMirrorPort {
	return slices.DeleteFunc(slices.Clone(w.Entry.Ports), func(p v1alpha1.LedgerMirrorPort) bool { return p.Route == 0 })
}

func (w Want) vips() []netip.Addr {
	var out []netip.Addr
	for _, s := range w.Entry.VIPs {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

func (w Want) key() catalog.Key {
	return catalog.Key{Namespace: w.Entry.MirrorNamespace, Name: w.Entry.MirrorName}
}

func (w Want) source() catalog.Key {
	return catalog.Key{Namespace: w.Entry.Namespace, Name: w.Entry.Service}
}

func linkRef(l *v1alpha1.Link) metav1.OwnerReference {
	return metav1.OwnerReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "Link", Name: l.Name, UID: l.UID,
		Controller: ptr(true), BlockOwnerDeletion: ptr(false),
	}
}

func serviceRef(name string, uid types.UID) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "Service", Name: name, UID: uid, Controller: ptr(true), BlockOwnerDeletion: ptr(false)}
}

// owned reports whether the Link, this one and not an earlier one of its name, owns svc.
func (d Desired) owned(svc *corev1.Service) bool {
	return slices.ContainsFunc(svc.OwnerReferences, func(o metav1.OwnerReference) bool { return isLinkRef(o) && o.UID == d.Link.UID })
}

// left reports whether svc was owned by a Link that is no more, and awaits Kubernetes' collector.
func (d Desired) left(svc *corev1.Service) bool {
	return slices.ContainsFunc(svc.OwnerReferences, func(o metav1.OwnerReference) bool {
		return isLinkRef(o) && o.Name == d.Link.Name && o.UID != d.Link.UID
	})
}

// ours reports whether svc is the mirror that w wants: owned by the Link, or
// bearing all our marks and nobody's reference, as after a tenant took ours away.
func (d Desired) ours(svc *corev1.Service, w Want) bool {
	return d.owned(svc) || len(svc.OwnerReferences) == 0 &&
		marked(svc.Labels, d.Link.Name) && svc.Annotations[v1alpha1.SourceAnnotation] == w.source().String() &&
		svc.Annotations[v1alpha1.HostnameAnnotation] == w.Entry.Hostname
}

func isLinkRef(o metav1.OwnerReference) bool {
	group, _, _ := strings.Cut(o.APIVersion, "/")
	return o.Kind == "Link" && group == v1alpha1.GroupVersion.Group
}

// marked reports whether labels are those of an object of the Link's.
func marked(labels map[string]string, link string) bool {
	return labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy && labels[v1alpha1.LinkLabel] == link
}

// setAll sets pairs in *m, and touches nothing else.
func setAll(m *map[string]string, pairs map[string]string) {
	if *m == nil {
		*m = make(map[string]string, len(pairs)+1)
	}
	for k, v := range pairs {
		(*m)[k] = v
	}
}

func ptr[T any](v T) *T { return &v }

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
