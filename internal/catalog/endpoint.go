package catalog

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Endpoint is one pod that backs an Export.
type Endpoint struct {
	PodUID string
	Node   string
	// Host is the pod's name below the Service in DNS; empty: it has none.
	Host string
	// IP is the address that the Service's EndpointSlice and the pod agree on.
	IP netip.Addr
	// Ready: Kubernetes says so, the pod is not going away, and its node has a ready agent.
	Ready bool
	// Targets holds the container port by Service port number, without ports that the pod lacks.
	Targets map[uint16]uint16
}

// backing gathers the pods behind one Export.
type backing struct {
	svc      *corev1.Service
	selector labels.Selector
	found    map[string]Endpoint // by pod UID
	accounts map[string]bool
}

// addEndpoints fills in what e's pods decide: endpoints, identities, readiness.
func (b *builder) addEndpoints(e *Export, svc *corev1.Service) {
	if len(svc.Spec.Selector) == 0 {
		b.problems.add(e.Key(), SelectorMissing, "the Service has no selector, so no pod is its own: callers in linked clusters are refused")
		return
	}
	pods := backing{
		svc:      svc,
		selector: labels.SelectorFromValidatedSet(svc.Spec.Selector),
		found:    make(map[string]Endpoint),
		accounts: make(map[string]bool),
	}
	for _, s := range b.slices[e.Key()] {
		for i := range s.Endpoints {
			b.addEndpoint(&pods, &s.Endpoints[i])
		}
	}
	e.Endpoints = slices.SortedFunc(maps.Values(pods.found), func(x, y Endpoint) int { return strings.Compare(x.PodUID, y.PodUID) })
	e.Ready = slices.ContainsFunc(e.Endpoints, func(x Endpoint) bool { return x.Ready })
	if e.Headless {
		b.addHosts(e)
	}
	for name := range pods.accounts {
		e.Identities = append(e.Identities, "spiffe://"+b.TrustDomain+"/ns/"+svc.Namespace+"/sa/"+name)
	}
	slices.Sort(e.Identities)
	if len(e.Identities) > MaxIdentities {
		b.problems.add(e.Key(), TooManyIdentities, "the Service is backed by more than %d ServiceAccounts: calls to pods of the others will fail", MaxIdentities)
		e.Identities = e.Identities[:MaxIdentities]
	}
}

func (b *builder) addEndpoint(pods *backing, ep *discoveryv1.Endpoint) {
	key := Key{Namespace: pods.svc.Namespace, Name: pods.svc.Name}
	ref := ep.TargetRef
	if ref == nil || ref.Kind != "Pod" || (ref.Namespace != "" && ref.Namespace != key.Namespace) {
		b.foreign(key)
		return
	}
	pod := b.pods[string(ref.UID)]
	if pod == nil {
		return // not seen yet, or gone: either way the next look knows better
	}
	if pod.Namespace != key.Namespace || !pods.selector.Matches(labels.Set(pod.Labels)) {
		b.foreign(key)
		return
	}
	if pod.Spec.HostNetwork {
		b.problems.add(key, HostNetworkUnsupported, "pods on the host network share their node's address and are not served to linked clusters")
		return
	}
	ip, own := ownAddress(pod, ep.Addresses)
	if !own || pod.Spec.NodeName == "" || finished(pod) {
		return
	}
	x := Endpoint{PodUID: string(pod.UID), Node: pod.Spec.NodeName, Host: hostOf(pods.svc, pod), IP: ip, Targets: targets(pods.svc, pod)}
	_, agent := b.Agents[x.Node]
	x.Ready = agent && (ep.Conditions.Ready == nil || *ep.Conditions.Ready) && pod.DeletionTimestamp.IsZero()
	if y, twice := pods.found[x.PodUID]; twice { // as in a dual-stack Service's two slices
		x.Ready = x.Ready || y.Ready
		x.IP = slices.MinFunc([]netip.Addr{x.IP, y.IP}, netip.Addr.Compare)
	}
	pods.found[x.PodUID] = x
	pods.accounts[account(pod)] = true
}

// hostOf is the name that DNS has for a pod below a headless Service, as the pods
// of a StatefulSet have one. It is the pod's own word: an EndpointSlice's is not asked.
func hostOf(svc *corev1.Service, pod *corev1.Pod) string {
	if svc.Spec.ClusterIP != corev1.ClusterIPNone || pod.Spec.Subdomain != svc.Name || !isLabel(pod.Spec.Hostname) {
		return ""
	}
	return pod.Spec.Hostname
}

// addHosts fills in the names of e's endpoints. Of two pods of one name, as when
// one is going and the next has come, a ready one speaks for both.
func (b *builder) addHosts(e *Export) {
	ready := make(map[string]bool)
	for _, x := range e.Endpoints {
		if x.Host != "" {
			ready[x.Host] = ready[x.Host] || x.Ready
		}
	}
	names := slices.Sorted(maps.Keys(ready))
	if len(names) > MaxHosts {
		b.problems.add(e.Key(), TooManyHostnames, "the Service has more than %d named pods: the others cannot be called by name", MaxHosts)
		names = names[:MaxHosts]
	}
	for _, name := range names {
		e.Hosts = append(e.Hosts, Host{Name: name, Ready: ready[name]})
	}
}

func (b *builder) foreign(k Key) {
	b.problems.add(k, ForeignEndpoint, "an EndpointSlice of the Service names something that is no pod of its own namespace and selector: it is ignored")
}

// ownAddress returns the address among addresses that is the pod's own.
func ownAddress(pod *corev1.Pod, addresses []string) (netip.Addr, bool) {
	for _, a := range addresses {
		for _, own := range pod.Status.PodIPs {
			if own.IP == a {
				ip, err := netip.ParseAddr(a)
				return ip, err == nil
			}
		}
	}
	return netip.Addr{}, false
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func account(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}

// targets resolves the Service's TCP ports in the pod, from the Service and the
// pod themselves: what an EndpointSlice says of ports is not believed.
func targets(svc *corev1.Service, pod *corev1.Pod) map[uint16]uint16 {
	out := make(map[uint16]uint16, len(svc.Spec.Ports))
	for _, p := range svc.Spec.Ports {
		if protocolOf(p) != corev1.ProtocolTCP {
			continue
		}
		if port, ok := target(p, pod); ok {
			out[uint16(p.Port)] = port
		}
	}
	return out
}

func target(p corev1.ServicePort, pod *corev1.Pod) (uint16, bool) {
	switch {
	case p.TargetPort.Type == intstr.String:
		return namedPort(pod, p.TargetPort.StrVal)
	case p.TargetPort.IntVal == 0:
		return uint16(p.Port), true
	}
	return uint16(p.TargetPort.IntVal), true
}

// namedPort finds a TCP port by name, as Kubernetes does: in containers, then in
// init containers that keep running.
func namedPort(pod *corev1.Pod, name string) (uint16, bool) {
	for _, c := range pod.Spec.Containers {
		if port, ok := containerPort(c, name); ok {
			return port, true
		}
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if port, ok := containerPort(c, name); ok {
			return port, true
		}
	}
	return 0, false
}

func containerPort(c corev1.Container, name string) (uint16, bool) {
	for _, p := range c.Ports {
		if p.Name == name && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") {
			return uint16(p.ContainerPort), true
		}
	}
	return 0, false
}
