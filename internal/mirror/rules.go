package mirror

import (
	"cmp"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// rules are the import rules of one Link, read once for many Services.
type rules struct {
	services   labels.Selector
	namespaces labels.Selector
	listed     map[string]string // our namespaces by the peer's; nil: namespaces decides
	into       map[string]bool   // our namespaces that are listed
	template   string
}

// readRules reads the rules of a Link. Those that cannot be read let nothing in.
func readRules(r *v1alpha1.ImportRules) (rules, error) {
	out := rules{template: cmp.Or(r.Template, v1alpha1.DefaultTemplate)}
	var err, second error
	out.services, err = catalog.SelectServices(r.Services, r.Selector)
	out.namespaces, second = catalog.SelectNamespaces(r.NamespaceSelector)
	if len(r.Namespaces) > 0 {
		out.listed, out.into = make(map[string]string, len(r.Namespaces)), make(map[string]bool, len(r.Namespaces))
	}
	for _, n := range r.Namespaces {
		here := cmp.Or(n.As, n.Name)
		out.listed[n.Name], out.into[here] = here, true
	}
	return out, cmp.Or(err, second)
}

// allowed reports whether mirrors may be made in one of our namespaces. own is
// Causeway's. It and those of Kubernetes itself must be listed.
func (r rules) allowed(namespace, own string) bool {
	return r.into[namespace] || namespace != own && !strings.HasPrefix(namespace, "kube-")
}

// here returns our namespace for mirrors of the peer's; false: the rules leave it out.
func (r rules) here(namespace string) (string, bool) {
	if r.listed == nil {
		return namespace, true
	}
	to, ok := r.listed[namespace]
	return to, ok
}

// targets tells which of our namespaces the Link lists by name.
func targets(link *v1alpha1.Link) rules {
	if link.Spec.Import == nil {
		return rules{}
	}
	r, _ := readRules(link.Spec.Import)
	return r
}
