package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of all kinds in this package.
var GroupVersion = schema.GroupVersion{Group: "causeway.dev", Version: "v1alpha1"}

// AddToScheme registers all kinds in this package with s. The error is always nil.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&Link{}, &LinkList{},
		&ExportPolicy{}, &ExportPolicyList{},
		&Ledger{}, &LedgerList{},
		&PeerTrust{}, &PeerTrustList{},
		&Invite{}, &InviteList{},
		&Join{}, &JoinList{},
		&Tap{}, &TapList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
