package mirror

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// sliceManager is the manager of our EndpointSlices, so that no built-in controller edits
// them.
const sliceManager = "causeway.dev"

// target is one endpoint of a slice: the VIP, or the address of a named pod's mirror.
type target struct {
	ip       netip.Addr
	hostname string
	ready    bool
}

func (t target) endpoint() discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses:  []string{t.ip.String()},
		Hostname:   optional(t.hostname),
		Conditions: discoveryv1.EndpointConditions{Ready: new(t.ready), Serving: new(t.ready)},
	}
}

// is reports whether e is the endpoint of t. It allocates nothing.
func (t target) is(e *discoveryv1.Endpoint) bool {
	if len(e.Addresses) != 1 || !is(e.Conditions.Ready, t.ready) || !is(e.Conditions.Serving, t.ready) ||
		!sameOptional(e.Hostname, t.hostname) {
		return false
	}
	if e.Conditions.Terminating != nil || e.TargetRef != nil || e.NodeName != nil || e.Zone != nil ||
		e.Hints != nil || len(e.DeprecatedTopology) > 0 {
		return false
	}
	var buf [len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255")]byte
	return string(t.ip.AppendTo(buf[:0])) == e.Addresses[0]
}

// slice returns the EndpointSlice of one VIP as it should be: a copy of have with our own
// fields set, or a new one if have is nil. owner is the mirror's UID; it is empty if the
// mirror is yet to be made.
func (s *Scope) slice(
	w *Want, vip netip.Addr, owner types.UID, targets []target, have *discoveryv1.EndpointSlice,
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
		v1alpha1.LinkLabel:           s.Link.Name,
	})
	slice.AddressType = family(vip)
	slice.Endpoints = nil
	for _, t := range targets {
		slice.Endpoints = append(slice.Endpoints, t.endpoint())
	}
	slice.Ports = nil
	for _, p := range w.Entry.Ports {
		if p.Route != 0 {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
				Name:        new(p.Name),
				Protocol:    new(corev1.Protocol(p.Protocol)),
				Port:        new(w.targetPort(p)),
				AppProtocol: optional(p.AppProtocol),
			})
		}
	}
	return slice
}

// sliceDiffers reports whether slice would change a field of have. It allocates nothing.
func (s *Scope) sliceDiffers(
	w *Want, vip netip.Addr, owner types.UID, targets []target, have *discoveryv1.EndpointSlice,
) bool {
	return len(have.OwnerReferences) != 1 ||
		!isServiceRef(&have.OwnerReferences[0], w.Entry.MirrorName, owner) ||
		!marked(have.Labels, s.Link.Name) ||
		have.Labels[discoveryv1.LabelServiceName] != w.Entry.MirrorName ||
		have.Labels[discoveryv1.LabelManagedBy] != sliceManager ||
		have.AddressType != family(vip) ||
		!sameTargets(targets, have.Endpoints) ||
		!w.sameSlicePorts(have.Ports)
}

// isServiceRef reports whether o is what serviceRef makes.
func isServiceRef(o *metav1.OwnerReference, name string, uid types.UID) bool {
	return o.APIVersion == "v1" && o.Kind == "Service" && o.Name == name && o.UID == uid &&
		is(o.Controller, true) && is(o.BlockOwnerDeletion, false)
}

func sameTargets(want []target, have []discoveryv1.Endpoint) bool {
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if !want[i].is(&have[i]) {
			return false
		}
	}
	return true
}

func (w *Want) sameSlicePorts(have []discoveryv1.EndpointPort) bool {
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
		if !is(h.Name, p.Name) || !is(h.Protocol, corev1.Protocol(p.Protocol)) ||
			!is(h.Port, w.targetPort(p)) ||
			!sameOptional(h.AppProtocol, p.AppProtocol) {
			return false
		}
	}
	return i == len(have)
}

const (
	sliceSuffix4 = "-causeway"
	sliceSuffix6 = "-causeway-v6"
)

func sliceSuffix(vip netip.Addr) string {
	if vip.Is4() {
		return sliceSuffix4
	}
	return sliceSuffix6
}

// sliceName is the name of a mirror's slice for the family of vip. It is a DNS subdomain,
// which may be longer than a label.
func sliceName(mirror string, vip netip.Addr) string { return mirror + sliceSuffix(vip) }

// isSliceName reports whether name is sliceName(mirror, vip), without making that.
func isSliceName(name, mirror string, vip netip.Addr) bool {
	rest, ok := strings.CutPrefix(name, mirror)
	return ok && rest == sliceSuffix(vip)
}

func family(ip netip.Addr) discoveryv1.AddressType {
	if ip.Is4() {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

// expects reports whether w has a slice of that name and family.
func (w *Want) expects(slice *discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(w.Entry.VIPs, func(vip netip.Addr) bool {
		return slice.AddressType == family(vip) && isSliceName(slice.Name, w.Entry.MirrorName, vip)
	})
}

// shown returns whether the mirror's slices say ready, and whether there is one at all.
func (w *Want) shown(have []*discoveryv1.EndpointSlice) (ready, stands bool) {
	for _, slice := range have {
		if w.expects(slice) && len(slice.Endpoints) == 1 && slice.Endpoints[0].Conditions.Ready != nil {
			return *slice.Endpoints[0].Conditions.Ready, true
		}
	}
	return false, false
}

// sameMirror reports whether a and b ask for the same objects.
func (w *Want) sameMirror(o *Want) bool {
	if w == nil || o == nil {
		return w == o
	}
	a, b := &w.Entry, &o.Entry
	return a.Source == b.Source && a.MirrorNamespace == b.MirrorNamespace && a.MirrorName == b.MirrorName &&
		a.Headless == b.Headless && slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.Ports, b.Ports) &&
		w.Ready == o.Ready && w.Known == o.Known &&
		maps.Equal(w.Labels, o.Labels) && maps.Equal(w.Annotations, o.Annotations)
}
