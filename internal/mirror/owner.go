package mirror

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Scope is what PlanMirror knows of the Link that a mirror belongs to. It is immutable.
type Scope struct {
	// Link is the Link in force. It owns the mirrors.
	Link *v1alpha1.Link
	// Standby is a Link that takes the mirrors over when Link is deleted; nil: none.
	Standby *v1alpha1.Link
	// Rules are those of Link.
	Rules *Rules
	// Version is Causeway's, for the annotation.
	Version string
	// Complete: a mirror that is not wanted is deleted. Otherwise it stays.
	Complete bool

	owners []metav1.OwnerReference // what every mirror has
}

// NewScope returns the Scope of a Link. A standby that could not take the mirrors over
// under their names is left out.
func NewScope(link, standby *v1alpha1.Link, rules *Rules, version string, complete bool) *Scope {
	if standby != nil && !CanTakeOver(link, standby) {
		standby = nil
	}
	s := &Scope{Link: link, Standby: standby, Rules: rules, Version: version, Complete: complete}
	s.owners = append(s.owners, linkRef(link, true))
	if standby != nil {
		s.owners = append(s.owners, linkRef(standby, false))
	}
	return s
}

// CanTakeOver reports whether the mirrors of a Link keep their names and namespaces when
// standby, a newer Link for the same peer, replaces it. A template that contains {link}
// gives other names.
func CanTakeOver(link, standby *v1alpha1.Link) bool {
	a, b := link.Spec.Import, standby.Spec.Import
	if a == nil || b == nil || link.UID == standby.UID || link.Spec.TrustDomain != standby.Spec.TrustDomain {
		return false
	}
	return a.Template != "" && a.Template == b.Template && !strings.Contains(a.Template, "{link}") &&
		maps.Equal(targetsOf(a), targetsOf(b)) &&
		equality.Semantic.DeepEqual(a.NamespaceSelector, b.NamespaceSelector)
}

func targetsOf(r *v1alpha1.ImportRules) map[string]string {
	out := make(map[string]string, len(r.Namespaces))
	for _, n := range r.Namespaces {
		out[n.Name] = n.Name
		if n.As != "" {
			out[n.Name] = n.As
		}
	}
	return out
}

func linkRef(l *v1alpha1.Link, controller bool) metav1.OwnerReference {
	ref := metav1.OwnerReference{
		APIVersion:         v1alpha1.GroupVersion.String(),
		Kind:               "Link",
		Name:               l.Name,
		UID:                l.UID,
		BlockOwnerDeletion: new(false),
	}
	if controller {
		ref.Controller = new(true)
	}
	return ref
}

func serviceRef(name string, uid types.UID) metav1.OwnerReference {
	return metav1.OwnerReference{
		APIVersion:         "v1",
		Kind:               "Service",
		Name:               name,
		UID:                uid,
		Controller:         new(true),
		BlockOwnerDeletion: new(false),
	}
}

// owned reports whether the Link, by its UID, owns svc.
func (s *Scope) owned(svc *corev1.Service) bool {
	return slices.ContainsFunc(svc.OwnerReferences, func(o metav1.OwnerReference) bool {
		return o.UID == s.Link.UID && isLinkRef(o)
	})
}

// left reports whether svc is owned by a deleted Link of the same name, so that
// Kubernetes is going to collect it.
func (s *Scope) left(svc *corev1.Service) bool {
	return slices.ContainsFunc(svc.OwnerReferences, func(o metav1.OwnerReference) bool {
		return isLinkRef(o) && o.Name == s.Link.Name && o.UID != s.Link.UID
	})
}

// ours reports whether svc is the mirror that w wants: the Link owns it, or it bears all
// our marks and no owner reference, as after a tenant has removed the reference. w may be
// nil.
func (s *Scope) ours(svc *corev1.Service, w *Want) bool {
	if s.owned(svc) {
		return true
	}
	return w != nil && len(svc.OwnerReferences) == 0 && marked(svc.Labels, s.Link.Name) &&
		w.isSource(svc.Annotations[v1alpha1.SourceAnnotation]) &&
		svc.Annotations[v1alpha1.HostnameAnnotation] == w.Entry.Hostname
}

// isLinkRef reports whether a reference is to a Link, of any version of its kind.
func isLinkRef(o metav1.OwnerReference) bool {
	group, _, _ := strings.Cut(o.APIVersion, "/")
	return o.Kind == "Link" && group == v1alpha1.GroupVersion.Group
}

// marked reports whether labels are those of an object of the Link.
func marked(labels map[string]string, link string) bool {
	return labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy && labels[v1alpha1.LinkLabel] == link
}

// ownedByService reports whether the Service of that UID owns slice.
func ownedByService(slice *discoveryv1.EndpointSlice, uid types.UID) bool {
	return uid != "" && slices.ContainsFunc(slice.OwnerReferences, func(o metav1.OwnerReference) bool {
		return o.Kind == "Service" && o.UID == uid
	})
}

func sameRef(a, b metav1.OwnerReference) bool {
	return a.APIVersion == b.APIVersion && a.Kind == b.Kind && a.Name == b.Name && a.UID == b.UID &&
		samePtr(a.Controller, b.Controller) && samePtr(a.BlockOwnerDeletion, b.BlockOwnerDeletion)
}

// samePtr reports whether two pointers point to equal values or both are nil.
func samePtr[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// is reports whether p points to v.
func is[T comparable](p *T, v T) bool { return p != nil && *p == v }

// optional returns nil for the zero value.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// setAll sets pairs in *m and touches nothing else.
func setAll(m *map[string]string, pairs map[string]string) {
	if *m == nil {
		*m = make(map[string]string, len(pairs)+1)
	}
	maps.Copy(*m, pairs)
}
