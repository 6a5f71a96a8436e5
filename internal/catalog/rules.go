package catalog

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// SelectServices returns a selector of Services by their labels, as the rules of a Link
// state it. If the rules are invalid, the selector selects nothing and the error says
// why.
func SelectServices(
	services v1alpha1.ServiceSelection, selector *metav1.LabelSelector,
) (labels.Selector, error) {
	switch services {
	case v1alpha1.AllServices:
		return labels.Everything(), nil
	case v1alpha1.SelectedServices:
		return readSelector("selector", selector)
	}
	return labels.Nothing(), fmt.Errorf("services is %q, but must be All or Selected", clip(string(services)))
}

// SelectNamespaces returns the selector of a namespaceSelector; nil selects every
// namespace.
func SelectNamespaces(selector *metav1.LabelSelector) (labels.Selector, error) {
	if selector == nil {
		return labels.Everything(), nil
	}
	return readSelector("namespaceSelector", selector)
}

func readSelector(field string, selector *metav1.LabelSelector) (labels.Selector, error) {
	out, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return labels.Nothing(), fmt.Errorf("%s: %w", field, err)
	}
	return out, nil
}

// linkRules are the export rules of one Link, parsed once. A nil linkRules admits
// nothing.
type linkRules struct {
	link       string
	services   labels.Selector
	names      []string // of namespaces; empty: those that namespaces selects
	namespaces labels.Selector
}

func readRules(link string, spec *v1alpha1.ExportRules) (*linkRules, error) {
	services, err := SelectServices(spec.Services, spec.Selector)
	if err != nil {
		return nil, err
	}
	namespaces, err := SelectNamespaces(spec.NamespaceSelector)
	if err != nil {
		return nil, err
	}
	return &linkRules{link: link, services: services, names: spec.Namespaces, namespaces: namespaces}, nil
}

// covers reports whether the rules can admit Services of a namespace. A namespaceSelector
// that is not empty never selects a namespace whose labels are unknown.
func (r *linkRules) covers(n *namespace) bool {
	if r == nil || len(r.names) > 0 && !slices.Contains(r.names, n.name) {
		return false
	}
	return r.namespaces.Empty() || n.known && r.namespaces.Matches(n.labels)
}

// admits reports whether the rules admit a Service of a namespace that they cover. A
// Service that does not exist has no labels to select by, so its Problem concerns all
// Links that cover the namespace.
func (r *linkRules) admits(svc *corev1.Service) bool {
	return svc == nil || r.services.Matches(labels.Set(svc.Labels))
}
