package catalog

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/internal/kube"
)

// podIndex holds pods by UID, by name and by node. A podState exists while its pod does
// or while an exported Service refers to it.
type podIndex struct {
	byUID  map[types.UID]*podState
	byName map[Key]*podState
	byNode map[string]map[Key]*podState // the podStates are those of byName
}

// podState is a pod that exists, or that EndpointSlices refer to, or both. Every pod has
// two, one by UID and one by name, because an EndpointSlice can refer to a pod by either.
type podState struct {
	uid types.UID // zero in byName
	key Key       // zero in byUID
	pod *corev1.Pod
	// referrers are the exported Services whose EndpointSlices refer to the pod.
	referrers []*entry
	// ingress is what NetworkPolicies say of the pod; nil: not computed yet.
	ingress *ingress
	// visit is the number of the last decision that came across the pod.
	visit uint64
}

func newPodIndex() podIndex {
	return podIndex{
		byUID:  make(map[types.UID]*podState),
		byName: make(map[Key]*podState),
		byNode: make(map[string]map[Key]*podState),
	}
}

// set records a pod, or its absence, and calls changed for every podState that differs
// in what decisions depend on.
func (x *podIndex) set(k Key, p *corev1.Pod, changed func(*podState)) {
	named := x.byName[k]
	var old *corev1.Pod
	if named != nil {
		old = named.pod
	}
	if old == nil && p == nil {
		return
	}
	if old != nil && p != nil && samePod(old, p) {
		named.pod = p
		x.refer(p.UID, k).pod = p
		return
	}
	if named == nil {
		named = x.refer("", k)
	}
	x.move(named, old, p)
	bind := func(s *podState, p *corev1.Pod) {
		s.pod, s.ingress = p, nil
		changed(s)
		x.collect(s)
	}
	if old != nil && (p == nil || p.UID != old.UID) {
		if s := x.byUID[old.UID]; s != nil {
			bind(s, nil)
		}
	}
	if p != nil {
		bind(x.refer(p.UID, k), p)
	}
	bind(named, p)
}

// move keeps byNode right when the pod named s changes from old to p.
func (x *podIndex) move(s *podState, old, p *corev1.Pod) {
	node := func(p *corev1.Pod) string {
		if p == nil {
			return ""
		}
		return p.Spec.NodeName
	}
	from, to := node(old), node(p)
	if from == to {
		return
	}
	if pods := x.byNode[from]; pods != nil {
		delete(pods, s.key)
		if len(pods) == 0 {
			delete(x.byNode, from)
		}
	}
	if to == "" {
		return
	}
	if x.byNode[to] == nil {
		x.byNode[to] = make(map[Key]*podState)
	}
	x.byNode[to][s.key] = s
}

// eachOn calls visit for every podState of the pods on a node.
func (x *podIndex) eachOn(node string, visit func(*podState)) {
	for _, s := range x.byNode[node] {
		visit(s)
		visit(x.refer(s.pod.UID, s.key))
	}
}

// refer returns the podState by UID, or by name if the UID is empty.
func (x *podIndex) refer(uid types.UID, k Key) *podState {
	if uid == "" {
		s := x.byName[k]
		if s == nil {
			s = &podState{key: k}
			x.byName[k] = s
		}
		return s
	}
	s := x.byUID[uid]
	if s == nil {
		s = &podState{uid: uid}
		x.byUID[uid] = s
	}
	return s
}

// collect removes a podState that nothing needs.
func (x *podIndex) collect(s *podState) {
	if s.pod != nil || len(s.referrers) > 0 {
		return
	}
	if s.uid != "" {
		delete(x.byUID, s.uid)
	} else {
		delete(x.byName, s.key)
	}
}

// relate makes e a referrer of exactly the pods in next; visit marks these.
func (x *podIndex) relate(e *entry, next []*podState, visit uint64) {
	d := e.decision
	if slices.Equal(d.pods, next) {
		return
	}
	for _, s := range d.pods {
		if s.visit == visit {
			continue
		}
		if i := slices.Index(s.referrers, e); i >= 0 {
			s.referrers = slices.Delete(s.referrers, i, i+1)
		}
		if len(s.referrers) == 0 {
			s.ingress = nil // SetNetworkPolicy does not find it any more
			x.collect(s)
		}
	}
	for _, s := range next {
		if !slices.Contains(s.referrers, e) {
			s.referrers = append(s.referrers, e)
		}
	}
	d.pods = slices.Clone(next)
}

// samePod reports whether two versions of a pod are the same in all that decisions
// depend on. Most updates of a pod change only other fields.
func samePod(a, b *corev1.Pod) bool {
	return a.UID == b.UID && a.DeletionTimestamp.IsZero() == b.DeletionTimestamp.IsZero() &&
		kube.PodFinished(a) == kube.PodFinished(b) && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) &&
		maps.Equal(a.Labels, b.Labels) && a.Spec.NodeName == b.Spec.NodeName &&
		a.Spec.HostNetwork == b.Spec.HostNetwork && a.Spec.Hostname == b.Spec.Hostname &&
		a.Spec.Subdomain == b.Spec.Subdomain && account(a) == account(b) &&
		slices.EqualFunc(a.Spec.Containers, b.Spec.Containers, samePorts) &&
		slices.EqualFunc(a.Spec.InitContainers, b.Spec.InitContainers, samePorts)
}

func samePorts(a, b corev1.Container) bool {
	return keepsRunning(&a) == keepsRunning(&b) && slices.Equal(a.Ports, b.Ports)
}

// ownAddress returns the first of the addresses that is the pod's own.
func ownAddress(pod *corev1.Pod, addresses []string) (string, bool) {
	for _, a := range addresses {
		for _, own := range pod.Status.PodIPs {
			if own.IP == a {
				return a, true
			}
		}
	}
	return "", false
}

// account returns the name of the pod's ServiceAccount.
func account(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}

// hostOf returns the name that DNS has for a pod below a headless Service, as pods of a
// StatefulSet have one. The pod decides; an EndpointSlice's hostname is not used.
func hostOf(svc *corev1.Service, pod *corev1.Pod) string {
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
	if headless && pod.Spec.Subdomain == svc.Name && isLabel(pod.Spec.Hostname) {
		return pod.Spec.Hostname
	}
	return ""
}

// namedPort finds a TCP port by name as Kubernetes does: in containers, then in init
// containers that keep running.
func namedPort(pod *corev1.Pod, name string) (uint16, bool) {
	for i := range pod.Spec.Containers {
		if port, ok := containerPort(&pod.Spec.Containers[i], name); ok {
			return port, true
		}
	}
	for i := range pod.Spec.InitContainers {
		if !keepsRunning(&pod.Spec.InitContainers[i]) {
			continue
		}
		if port, ok := containerPort(&pod.Spec.InitContainers[i], name); ok {
			return port, true
		}
	}
	return 0, false
}

func keepsRunning(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func containerPort(c *corev1.Container, name string) (uint16, bool) {
	for _, p := range c.Ports {
		if p.Name == name && (p.Protocol == corev1.ProtocolTCP || p.Protocol == "") {
			return uint16(p.ContainerPort), true
		}
	}
	return 0, false
}
