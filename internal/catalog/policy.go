package catalog

import (
	"maps"
	"reflect"
	"slices"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// selectsService reports whether a policy selects a Service of its namespace. A nil
// policy selects none.
func selectsService(p *v1alpha1.ExportPolicy, service string) bool {
	return p != nil && (len(p.Spec.Services) == 0 || slices.Contains(p.Spec.Services, service))
}

func sameSpec(a, b *v1alpha1.ExportPolicy) bool {
	return a == b || a != nil && b != nil && reflect.DeepEqual(a.Spec, b.Spec)
}

// setExportPolicy records a policy, or its absence, and returns the one that it replaces.
func (n *namespace) setExportPolicy(name string, p *v1alpha1.ExportPolicy) (old *v1alpha1.ExportPolicy) {
	old = n.exportPolicies[name]
	n.sortedPolicies = nil
	if p == nil {
		delete(n.exportPolicies, name)
		return old
	}
	if n.exportPolicies == nil {
		n.exportPolicies = make(map[string]*v1alpha1.ExportPolicy)
	}
	n.exportPolicies[name] = p
	return old
}

// policiesFor returns the policies that select a Service, sorted by name. Services that
// every policy of the namespace selects share one slice.
func (n *namespace) policiesFor(service string) []v1alpha1.ExportPolicy {
	if len(n.exportPolicies) == 0 {
		return nil
	}
	if n.sortedPolicies == nil {
		for _, name := range slices.Sorted(maps.Keys(n.exportPolicies)) {
			n.sortedPolicies = append(n.sortedPolicies, *n.exportPolicies[name])
		}
	}
	var out []v1alpha1.ExportPolicy
	for i := range n.sortedPolicies {
		if selectsService(&n.sortedPolicies[i], service) {
			out = append(out, n.sortedPolicies[i])
		}
	}
	if len(out) == len(n.sortedPolicies) {
		return n.sortedPolicies
	}
	return out
}
