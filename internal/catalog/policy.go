package catalog

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// PoliciesFor returns the ExportPolicies that select a Service, sorted by name.
// None means that the Links' export rules alone decide.
func PoliciesFor(namespace, service string, policies []v1alpha1.ExportPolicy) []v1alpha1.ExportPolicy {
	var out []v1alpha1.ExportPolicy
	for _, p := range policies {
		if p.Namespace == namespace && (len(p.Spec.Services) == 0 || slices.Contains(p.Spec.Services, service)) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b v1alpha1.ExportPolicy) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Isolation knows which pods NetworkPolicies isolate for ingress. The zero value isolates none.
type Isolation struct {
	byNamespace map[string][]labels.Selector
}

// NewIsolation reads policies once, for many pods.
func NewIsolation(policies []networkingv1.NetworkPolicy) Isolation {
	iso := Isolation{byNamespace: make(map[string][]labels.Selector)}
	for i := range policies {
		p := &policies[i]
		if !governsIngress(p) {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			selector = labels.Everything() // what cannot be read isolates all: then a policy must name the callers
		}
		iso.byNamespace[p.Namespace] = append(iso.byNamespace[p.Namespace], selector)
	}
	return iso
}

// governsIngress: the API server fills in policyTypes; without them a policy is for ingress.
func governsIngress(p *networkingv1.NetworkPolicy) bool {
	return len(p.Spec.PolicyTypes) == 0 || slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
}

// Isolated reports whether a NetworkPolicy of the pod's namespace isolates it for ingress.
func (iso Isolation) Isolated(pod *corev1.Pod) bool {
	return slices.ContainsFunc(iso.byNamespace[pod.Namespace], func(s labels.Selector) bool {
		return s.Matches(labels.Set(pod.Labels))
	})
}
