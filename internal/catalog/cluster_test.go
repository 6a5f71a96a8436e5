package catalog

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// cluster holds the objects of a cluster.
type cluster struct {
	TrustDomain     string
	Namespace       string
	Services        []corev1.Service
	EndpointSlices  []discoveryv1.EndpointSlice
	Pods            []corev1.Pod
	Links           []v1alpha1.Link
	ExportPolicies  []v1alpha1.ExportPolicy
	NetworkPolicies []networkingv1.NetworkPolicy
	ServiceExports  []metav1.PartialObjectMetadata
	Namespaces      []corev1.Namespace
	Agents          map[string]string
	Routes          func(namespace, service, port, protocol string) uint32
}

// exports are the decisions about a cluster.
type exports struct {
	List         []Export
	Problems     []Problem
	LinkProblems map[string][]Problem
	routes       func(namespace, service, port, protocol string) uint32
}

func keyOf(o metav1.Object) Key { return Key{Namespace: o.GetNamespace(), Name: o.GetName()} }

// index returns an Index of the cluster's objects, not flushed yet.
func (c *cluster) index() *Index {
	x := NewIndex(Config{TrustDomain: c.TrustDomain, Namespace: c.Namespace})
	x.SetAgents(c.Agents)
	each(c.Services, func(o *corev1.Service) { x.SetService(keyOf(o), o) })
	each(c.EndpointSlices, func(o *discoveryv1.EndpointSlice) { x.SetEndpointSlice(keyOf(o), o) })
	each(c.Pods, func(o *corev1.Pod) { x.SetPod(keyOf(o), o) })
	each(c.Links, func(o *v1alpha1.Link) { x.SetLink(o.Name, o) })
	each(c.ExportPolicies, func(o *v1alpha1.ExportPolicy) { x.SetExportPolicy(keyOf(o), o) })
	each(c.NetworkPolicies, func(o *networkingv1.NetworkPolicy) { x.SetNetworkPolicy(keyOf(o), o) })
	each(c.ServiceExports, func(o *metav1.PartialObjectMetadata) { x.SetServiceExport(keyOf(o), o) })
	each(c.Namespaces, func(o *corev1.Namespace) { x.SetNamespace(o.Name, o) })
	return x
}

func each[T any](list []T, visit func(*T)) {
	for i := range list {
		visit(&list[i])
	}
}

// build decides what the cluster exports.
func (c *cluster) build() exports {
	x := c.index()
	out := exports{routes: c.Routes}
	for _, change := range x.Flush() {
		if change.Export != nil {
			out.List = append(out.List, *change.Export)
		}
		out.Problems = append(out.Problems, change.Problems...)
	}
	for _, l := range c.Links {
		if list, _ := x.LinkProblems(l.Name); len(list) > 0 {
			if out.LinkProblems == nil {
				out.LinkProblems = make(map[string][]Problem)
			}
			out.LinkProblems[l.Name] = list
		}
	}
	return out
}

// For returns what the peer of a Link sees.
func (x exports) For(link string) map[Key]Service {
	out := make(map[Key]Service)
	for _, e := range x.List {
		s := e.Service(func(name, protocol string) uint32 {
			if x.routes == nil {
				return 0
			}
			return x.routes(e.Namespace, e.Name, name, protocol)
		})
		if slices.Contains(e.Links, link) && !s.IsZero() {
			out[s.Key()] = s
		}
	}
	return out
}
