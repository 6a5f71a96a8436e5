package v1alpha1

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLinkOwns(t *testing.T) {
	l := &Link{ObjectMeta: metav1.ObjectMeta{Name: "east", UID: "1"}}
	type reference = metav1.OwnerReference
	cases := map[string]struct {
		why    string
		change func(*reference)
		link   bool // the reference is to a Link
		owns   bool // the reference is to l
	}{
		"unchanged": {
			why:    "the mirrors of l have this reference",
			change: func(*reference) {},
			link:   true,
			owns:   true,
		},
		"other version": {
			why:    "a mirror outlives an upgrade of the API",
			change: func(r *reference) { r.APIVersion = "causeway.dev/v1" },
			link:   true,
			owns:   true,
		},
		"earlier Link": {
			why:    "a Link was deleted and another one of the same name created",
			change: func(r *reference) { r.UID = "0" },
			link:   true,
		},
		"other kind": {
			why:    "a Join owns its Secret",
			change: func(r *reference) { r.Kind = "Join" },
		},
		"other group": {
			why:    "the API of another product has a kind Link",
			change: func(r *reference) { r.APIVersion = "example.com/v1alpha1" },
		},
		"core group": {
			why:    "the version of a core kind has no group",
			change: func(r *reference) { r.APIVersion = "v1" },
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := l.OwnerReference()
			c.change(&r)
			o := &metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: "Node", UID: "9"}, r}}
			if got := IsLinkReference(r); got != c.link {
				t.Errorf("IsLinkReference = %v, want %v: %s", got, c.link, c.why)
			}
			if got := l.Owns(o); got != c.owns {
				t.Errorf("Owns = %v, want %v: %s", got, c.owns, c.why)
			}
		})
	}
}
