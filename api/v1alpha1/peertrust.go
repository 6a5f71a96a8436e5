package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PeerTrust keeps what the controller has learnt of one peer's issuers, apart
// from the Link that a person writes, so that an old Link applied again brings
// no old trust back. Its name is the Link's. Only controllers write it, in
// Causeway's own namespace, by compare-and-swap.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=causeway
type PeerTrust struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PeerTrustSpec `json:"spec"`
}

// PeerTrustSpec is the newest list of issuers seen from a peer.
type PeerTrustSpec struct {
	// LinkUID is the UID of the Link that it was learnt under; for another
	// Link of the same name it means nothing.
	LinkUID string `json:"linkUID"`
	// IssuerList is the list as the peer sent it: a signed
	// identity.IssuerList in DER, verified again at each use.
	IssuerList []byte `json:"issuerList"`
}

// PeerTrustList is a list of PeerTrusts.
//
// +kubebuilder:object:root=true
type PeerTrustList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PeerTrust `json:"items"`
}
