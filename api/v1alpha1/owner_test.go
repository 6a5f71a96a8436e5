package v1alpha1

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLinkOwns(t *testing.T) {
	l := &Link{ObjectMeta: metav1.ObjectMeta{Name: "east", UID: "1"}}
	cases := map[string]struct {
		why    string
		change func(*metav1.OwnerReference)
		link   bool // the reference is to a Link
		owns   bool // it is to l
	}{
		"own":           {why: "the reference that l's mirrors hold", change: func(*metav1.OwnerReference) {}, link: true, owns: true},
		"other version": {why: "a mirror outlives an upgrade of the API", change: func(r *metav1.OwnerReference) { r.APIVersion = "causeway.dev/v1" }, link: true, owns: true},
		"earlier Link":  {why: "a Link was deleted and one of its name created", change: func(r *metav1.OwnerReference) { r.UID = "0" }, link: true},
		"other kind":    {why: "a Join owns its Secret", change: func(r *metav1.OwnerReference) { r.Kind = "Join" }},
		"other group":   {why: "another product has Links", change: func(r *metav1.OwnerReference) { r.APIVersion = "example.com/v1alpha1" }},
		"core group":    {why: "a version without a group", change: func(r *metav1.OwnerReference) { r.APIVersion = "v1" }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := l.OwnerReference()
			c.change(&r)
			o := &metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: "Node", UID: "9"}, r}}
			if IsLinkReference(r) != c.link || l.Owns(o) != c.owns {
				t.Errorf("is a Link's: %v, is l's: %v, want %v and %v: %s", IsLinkReference(r), l.Owns(o), c.link, c.owns, c.why)
			}
		})
	}
}
