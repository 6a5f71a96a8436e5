package v1alpha1

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const linkKind = "Link"

// OwnerReference returns the reference that a mirror of l holds. Kubernetes deletes the
// mirror after l is deleted. Deleting l does not wait for its mirrors.
func (l *Link) OwnerReference() metav1.OwnerReference {
	controller, block := true, false
	return metav1.OwnerReference{
		APIVersion:         GroupVersion.String(),
		Kind:               linkKind,
		Name:               l.Name,
		UID:                l.UID,
		Controller:         &controller,
		BlockOwnerDeletion: &block,
	}
}

// Owns reports whether o has an owner reference to l, as opposed to an earlier Link of
// the same name.
func (l *Link) Owns(o metav1.Object) bool {
	return slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
		return IsLinkReference(r) && r.UID == l.UID
	})
}

// IsLinkReference reports whether r refers to a Link, in any version of the API.
func IsLinkReference(r metav1.OwnerReference) bool {
	group, _, _ := strings.Cut(r.APIVersion, "/")
	return r.Kind == linkKind && group == GroupVersion.Group
}
