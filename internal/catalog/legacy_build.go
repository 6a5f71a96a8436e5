package catalog

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// This file keeps the old, non-incremental API until its last callers use Index.

// ServiceExportKind is the older version of the kind.
var ServiceExportKind = ServiceExportV1Alpha1

// Inputs are the objects that Build decides from.
type Inputs struct {
	TrustDomain    string
	Namespace      string
	Services       []corev1.Service
	EndpointSlices []discoveryv1.EndpointSlice
	Pods           []corev1.Pod
	Links          []v1alpha1.Link
	ExportPolicies []v1alpha1.ExportPolicy
	ServiceExports []metav1.PartialObjectMetadata
	Namespaces     []corev1.Namespace
	Agents         map[string]string
	Routes         func(namespace, service, port, protocol string) uint32
}

// Exports is the result of Build.
type Exports struct {
	List         []Export
	Problems     []Problem
	LinkProblems map[string][]Problem
}

// For returns the Services that the peer of a Link may see.
func (x Exports) For(link string) map[Key]Service {
	visible := make(map[Key]Service)
	for _, e := range x.List {
		if _, admitted := slices.BinarySearch(e.Links, link); !admitted {
			continue
		}
		s := e.Service(func(name, protocol string) uint32 {
			for _, p := range e.Ports {
				if p.Name == name && p.Protocol == protocol {
					return p.Route
				}
			}
			return 0
		})
		if !s.IsZero() {
			visible[s.Key()] = s
		}
	}
	return visible
}

// Build decides everything from the beginning.
func Build(in Inputs) Exports {
	x := NewIndex(Config{TrustDomain: in.TrustDomain, Namespace: in.Namespace})
	key := func(o metav1.Object) Key { return Key{Namespace: o.GetNamespace(), Name: o.GetName()} }
	x.SetAgents(in.Agents)
	for i := range in.Links {
		x.SetLink(in.Links[i].Name, &in.Links[i])
	}
	for i := range in.Namespaces {
		x.SetNamespace(in.Namespaces[i].Name, &in.Namespaces[i])
	}
	for i := range in.ExportPolicies {
		x.SetExportPolicy(key(&in.ExportPolicies[i]), &in.ExportPolicies[i])
	}
	for i := range in.ServiceExports {
		x.SetServiceExport(key(&in.ServiceExports[i]), &in.ServiceExports[i])
	}
	for i := range in.Pods {
		x.SetPod(key(&in.Pods[i]), &in.Pods[i])
	}
	for i := range in.EndpointSlices {
		x.SetEndpointSlice(key(&in.EndpointSlices[i]), &in.EndpointSlices[i])
	}
	for i := range in.Services {
		x.SetService(key(&in.Services[i]), &in.Services[i])
	}
	var out Exports
	for _, c := range x.Flush() {
		out.Problems = append(out.Problems, c.Problems...)
		if c.Export == nil {
			continue
		}
		e := *c.Export
		e.Ports = slices.Clone(e.Ports)
		for i, p := range e.Ports {
			if in.Routes != nil {
				e.Ports[i].Route = in.Routes(e.Namespace, e.Name, p.Name, p.Protocol)
			}
		}
		out.List = append(out.List, e)
	}
	SortProblems(out.Problems)
	for i := range in.Links {
		if list := x.LinkProblems(in.Links[i].Name); len(list) > 0 {
			if out.LinkProblems == nil {
				out.LinkProblems = make(map[string][]Problem)
			}
			out.LinkProblems[in.Links[i].Name] = list
		}
	}
	return out
}

// Isolation knows which pods NetworkPolicies isolate for ingress.
type Isolation struct {
	byNamespace map[string][]labels.Selector
}

// NewIsolation reads policies once, for many pods.
func NewIsolation(policies []networkingv1.NetworkPolicy) Isolation {
	iso := Isolation{byNamespace: make(map[string][]labels.Selector)}
	for i := range policies {
		if p := readIngressPolicy(&policies[i]); p != nil {
			iso.byNamespace[policies[i].Namespace] = append(iso.byNamespace[policies[i].Namespace], p.selector)
		}
	}
	return iso
}

// Isolated reports whether a NetworkPolicy of the pod's namespace isolates it.
func (iso Isolation) Isolated(pod *corev1.Pod) bool {
	return slices.ContainsFunc(iso.byNamespace[pod.Namespace], func(s labels.Selector) bool {
		return s.Matches(labels.Set(pod.Labels))
	})
}
