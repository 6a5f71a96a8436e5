package mirror

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// service returns the mirror as it should be: a copy of have with our own fields set, or
// a new one if have is nil.
func (s *Scope) service(w *Want, have *corev1.Service) *corev1.Service {
	svc := &corev1.Service{}
	if have != nil {
		svc = have.DeepCopy()
	}
	svc.Namespace, svc.Name = w.Entry.MirrorNamespace, w.Entry.MirrorName
	svc.OwnerReferences = slices.Clone(s.owners)
	copyMetadata(svc, w)
	setAll(&svc.Labels, map[string]string{
		v1alpha1.ManagedByLabel: v1alpha1.ManagedBy,
		v1alpha1.LinkLabel:      s.Link.Name,
	})
	setAll(&svc.Annotations, map[string]string{
		v1alpha1.SourceAnnotation:  w.source().String(),
		v1alpha1.VersionAnnotation: s.Version,
	})
	delete(svc.Annotations, v1alpha1.HostnameAnnotation)
	if w.Entry.Hostname != "" {
		svc.Annotations[v1alpha1.HostnameAnnotation] = w.Entry.Hostname
	}
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	if have == nil && w.isHeadlessParent() {
		svc.Spec.ClusterIP = corev1.ClusterIPNone
	}
	svc.Spec.Selector = nil
	svc.Spec.SessionAffinity = corev1.ServiceAffinityNone // agents honor the source's
	svc.Spec.SessionAffinityConfig = nil
	// With Local, kube-proxy would find no endpoint, because ours has no node.
	svc.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyCluster)
	if w.dualStack() {
		svc.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyPreferDualStack)
	}
	svc.Spec.Ports = nil
	for _, p := range w.Entry.Ports {
		if p.Route != 0 {
			svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{
				Name:        p.Name,
				Protocol:    corev1.Protocol(p.Protocol),
				Port:        int32(p.Port),
				AppProtocol: optional(p.AppProtocol),
				TargetPort:  intstr.FromInt32(w.targetPort(p)),
			})
		}
	}
	return svc
}

// serviceDiffers reports whether service would change a field of svc. A difference in the
// version alone is none: an upgrade must not write every mirror. It allocates nothing
// unless w copies labels or annotations.
func (s *Scope) serviceDiffers(w *Want, svc *corev1.Service) bool {
	return !slices.EqualFunc(svc.OwnerReferences, s.owners, sameRef) ||
		copiesDiffer(w, svc) ||
		!marked(svc.Labels, s.Link.Name) ||
		annotationsDiffer(w, svc.Annotations) ||
		specDiffers(w, &svc.Spec) ||
		!w.samePorts(svc.Spec.Ports)
}

func annotationsDiffer(w *Want, have map[string]string) bool {
	hostname, named := have[v1alpha1.HostnameAnnotation]
	return !w.isSource(have[v1alpha1.SourceAnnotation]) ||
		hostname != w.Entry.Hostname || named != (w.Entry.Hostname != "") ||
		have[v1alpha1.VersionAnnotation] == ""
}

func specDiffers(w *Want, have *corev1.ServiceSpec) bool {
	return have.Type != corev1.ServiceTypeClusterIP || len(have.Selector) > 0 ||
		have.SessionAffinity != corev1.ServiceAffinityNone || have.SessionAffinityConfig != nil ||
		!is(have.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster) ||
		w.dualStack() && !is(have.IPFamilyPolicy, corev1.IPFamilyPolicyPreferDualStack)
}

// samePorts reports whether have are the ports that the peer offers now, in their order.
func (w *Want) samePorts(have []corev1.ServicePort) bool {
	i := 0
	for _, p := range w.Entry.Ports {
		if p.Route == 0 {
			continue
		}
		if i >= len(have) {
			return false
		}
		h := &have[i]
		i++
		if h.Name != p.Name || string(h.Protocol) != p.Protocol || h.Port != int32(p.Port) ||
			h.NodePort != 0 ||
			h.TargetPort != intstr.FromInt32(w.targetPort(p)) || !sameOptional(h.AppProtocol, p.AppProtocol) {
			return false
		}
	}
	return i == len(have)
}

// sameOptional reports whether p is what optional makes of s.
func sameOptional(p *string, s string) bool {
	if p == nil {
		return s == ""
	}
	return s != "" && *p == s
}

// targetPort is where a connection to p goes: to the listener of the VIP, or for a
// headless mirror to the same port of the mirrors that it lists.
func (w *Want) targetPort(p ledger.MirrorPort) int32 {
	if w.isHeadlessParent() {
		return int32(p.Port)
	}
	return ledger.FirstListener + int32(p.Index)
}

// isHeadlessParent reports whether the mirror is headless and lists the mirrors of named
// pods.
func (w *Want) isHeadlessParent() bool { return w.Entry.Headless && w.Entry.Hostname == "" }

// dualStack reports whether the mirror needs an address for each of its slices.
func (w *Want) dualStack() bool { return len(w.Entry.VIPs) > 1 && !w.isHeadlessParent() }

// key is the name of the mirror.
func (w *Want) key() catalog.Key {
	return catalog.Key{Namespace: w.Entry.MirrorNamespace, Name: w.Entry.MirrorName}
}

// source is the name of the peer's Service.
func (w *Want) source() catalog.Key {
	return catalog.Key{Namespace: w.Entry.Namespace, Name: w.Entry.Service}
}

// isSource reports whether text names the peer's Service.
func (w *Want) isSource(text string) bool {
	namespace, name, ok := strings.Cut(text, "/")
	return ok && namespace == w.Entry.Namespace && name == w.Entry.Service
}

// isHeadless reports whether Kubernetes has given svc no address on purpose.
func isHeadless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

// clusterIP returns the address of a family that Kubernetes has given svc.
func clusterIP(svc *corev1.Service, v4 bool) (netip.Addr, bool) {
	for _, s := range svc.Spec.ClusterIPs {
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is4() == v4 {
			return ip, true
		}
	}
	return netip.Addr{}, false
}
