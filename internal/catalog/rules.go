package catalog

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// SelectServices returns what the rules of a Link choose among Services by their
// labels. What cannot be read chooses nothing, and is an error for the operator.
func SelectServices(services v1alpha1.ServiceSelection, selector *metav1.LabelSelector) (labels.Selector, error) {
	switch services {
	case v1alpha1.AllServices:
		return labels.Everything(), nil
	case v1alpha1.SelectedServices:
		return readSelector("selector", selector)
	}
	return labels.Nothing(), fmt.Errorf("services is %q: it must be All or Selected", clip(string(services)))
}

// SelectNamespaces returns what a namespaceSelector chooses; nil chooses every namespace.
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

// linkRules are the export rules of one Link, read once for many Services.
type linkRules struct {
	link       string
	services   labels.Selector
	names      []string // of namespaces; nil: those that namespaces chooses
	namespaces labels.Selector
}

// readRules reads the export rules of every Link that has some. Rules that cannot
// be read let nothing cross.
func (b *builder) readRules() {
	for i := range b.Links {
		l := &b.Links[i]
		if !l.DeletionTimestamp.IsZero() || l.Spec.Export == nil {
			continue
		}
		r := linkRules{link: l.Name, names: l.Spec.Export.Namespaces}
		var err, second error
		r.services, err = SelectServices(l.Spec.Export.Services, l.Spec.Export.Selector)
		r.namespaces, second = SelectNamespaces(l.Spec.Export.NamespaceSelector)
		if err == nil {
			err = second
		}
		if err != nil {
			b.concern(l.Name, Problem{Reason: InvalidSelector, Message: fmt.Sprintf("the Link's export rules let nothing cross: %v", err)})
			continue
		}
		b.rules = append(b.rules, r)
	}
	slices.SortFunc(b.rules, func(x, y linkRules) int { return strings.Compare(x.link, y.link) })
}

// admitting returns the names of the Links whose rules admit svc, sorted.
func (b *builder) admitting(svc *corev1.Service) []string {
	var out []string
	for _, r := range b.rules {
		if r.covers(b.namespaces, svc.Namespace) && r.services.Matches(labels.Set(svc.Labels)) {
			out = append(out, r.link)
		}
	}
	return out
}

// covers reports whether the rules let Services of a namespace cross.
func (r linkRules) covers(known map[string]labels.Set, namespace string) bool {
	return (len(r.names) == 0 || slices.Contains(r.names, namespace)) && r.matchesNamespace(known, namespace)
}

// matchesNamespace reports whether the rules choose a namespace. One whose labels
// are not known is chosen by no selector that asks for any.
func (r linkRules) matchesNamespace(known map[string]labels.Set, namespace string) bool {
	set, seen := known[namespace]
	return r.namespaces.Empty() || seen && r.namespaces.Matches(set)
}
