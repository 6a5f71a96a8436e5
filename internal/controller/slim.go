package controller

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/internal/check"
)

const (
	// maxShared is the largest number of strings that a slimmer remembers.
	maxShared = 4096
	// maxSharedLen is the length of the longest string that a slimmer interns.
	maxSharedLen = 128
	// maxSharedLists is the largest number of container lists that a slimmer remembers.
	// It interns a list only if that has at most maxSharedContainers containers, and an
	// encoding of at most maxSharedBytes. Together the lists take at most 15 MB.
	maxSharedLists      = 1024
	maxSharedContainers = 8
	maxSharedBytes      = 512
)

// slimmer reduces the memory for the objects in the informers' caches, because a cluster
// has tens of thousands of objects. It drops the fields that Causeway does not read. It
// also interns values that many objects have in common, such as the names of labels and
// the containers of one workload. Interned values are shared, which is safe because
// nothing may change an object in a cache. A slimmer is safe for concurrent use, by many
// informers.
type slimmer struct {
	mu         sync.Mutex
	strings    map[string]string
	containers map[string][]corev1.Container // by their encoding
}

func newSlimmer() *slimmer {
	return &slimmer{strings: make(map[string]string), containers: make(map[string][]corev1.Container)}
}

// object slims an object of any kind. It is an informer's transform.
func (s *slimmer) object(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.metadata(m)
	}
	return o, nil
}

// endpointSlice slims an EndpointSlice. It is an informer's transform.
func (s *slimmer) endpointSlice(o any) (any, error) {
	slice, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return o, nil
	}
	for i := range slice.Endpoints {
		slice.Endpoints[i].Hints, slice.Endpoints[i].DeprecatedTopology = nil, nil
	}
	return s.object(o)
}

// pod slims a pod. It is an informer's transform.
func (s *slimmer) pod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.OwnerReferences, p.GenerateName, p.Annotations = nil, "", slimAnnotations(p.Annotations)
	s.metadata(p)
	p.Spec = corev1.PodSpec{
		NodeName:           s.string(p.Spec.NodeName),
		ServiceAccountName: s.string(p.Spec.ServiceAccountName),
		HostNetwork:        p.Spec.HostNetwork,
		Hostname:           p.Spec.Hostname,
		Subdomain:          s.string(p.Spec.Subdomain),
		Containers:         s.slimContainers(p.Spec.Containers),
		InitContainers:     s.slimContainers(p.Spec.InitContainers),
	}
	for i := range p.Status.HostIPs {
		p.Status.HostIPs[i].IP = s.string(p.Status.HostIPs[i].IP)
	}
	p.Status = corev1.PodStatus{
		Phase:      p.Status.Phase,
		PodIP:      p.Status.PodIP,
		PodIPs:     p.Status.PodIPs,
		HostIP:     s.string(p.Status.HostIP),
		HostIPs:    p.Status.HostIPs,
		Conditions: slimConditions(p.Status.Conditions),
	}
	return p, nil
}

// metadata drops the managed fields and interns the strings that many objects have in
// common. The caller holds mu, as it does for all methods below.
func (s *slimmer) metadata(o metav1.Object) {
	o.SetManagedFields(nil)
	o.SetNamespace(s.string(o.GetNamespace()))
	o.SetLabels(s.texts(o.GetLabels()))
	o.SetAnnotations(s.texts(o.GetAnnotations()))
	owners := o.GetOwnerReferences()
	for i := range owners {
		ref := &owners[i]
		ref.APIVersion, ref.Kind = s.string(ref.APIVersion), s.string(ref.Kind)
	}
	o.SetOwnerReferences(owners)
}

// texts interns the keys and the values of m.
func (s *slimmer) texts(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[s.string(k)] = s.string(v)
	}
	return out
}

// string interns v: it returns an equal string that other objects may share.
func (s *slimmer) string(v string) string {
	if v == "" || len(v) > maxSharedLen {
		return v
	}
	if known, ok := s.strings[v]; ok {
		return known
	}
	if len(s.strings) >= maxShared {
		clear(s.strings)
	}
	s.strings[v] = v
	return v
}

// slimContainers keeps the fields of a pod's containers that Causeway reads, and interns
// the list.
func (s *slimmer) slimContainers(all []corev1.Container) []corev1.Container {
	if len(all) == 0 {
		return nil
	}
	kept := make([]corev1.Container, len(all))
	for i, c := range all {
		kept[i] = corev1.Container{
			Name:            c.Name,
			Ports:           c.Ports,
			RestartPolicy:   c.RestartPolicy,
			SecurityContext: slimSecurity(c.SecurityContext),
		}
	}
	if len(kept) > maxSharedContainers {
		return kept
	}
	encoded, err := (&corev1.PodSpec{Containers: kept}).Marshal()
	if err != nil || len(encoded) > maxSharedBytes {
		return kept
	}
	if known, ok := s.containers[string(encoded)]; ok {
		return known
	}
	if len(s.containers) >= maxSharedLists {
		clear(s.containers)
	}
	s.containers[string(encoded)] = kept
	return kept
}

// slimConditions keeps the conditions that Causeway reads, without their texts.
func slimConditions(all []corev1.PodCondition) []corev1.PodCondition {
	kept := make([]corev1.PodCondition, 0, 2) // most pods have these two
	for _, c := range all {
		switch c.Type {
		case corev1.PodReady, corev1.PodReadyToStartContainers, check.PathProved:
			kept = append(kept, corev1.PodCondition{
				Type:               c.Type,
				Status:             c.Status,
				LastTransitionTime: c.LastTransitionTime,
			})
		}
	}
	return kept
}

// slimAnnotations keeps the annotation that marks the mirror pod of a static pod.
func slimAnnotations(all map[string]string) map[string]string {
	if v, ok := all[corev1.MirrorPodAnnotationKey]; ok {
		return map[string]string{corev1.MirrorPodAnnotationKey: v}
	}
	return nil
}
