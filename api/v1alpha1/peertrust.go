package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PeerTrust keeps what controllers have learnt of one peer, its issuers above
// all, apart from the Link that a person writes, so that an old Link applied
// again brings no old trust back. Its name is the Link's. Only controllers write it, in
// Causeway's own namespace, by compare-and-swap.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=causeway
type PeerTrust struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec PeerTrustSpec `json:"spec"`
}

// PeerTrustSpec is the newest list of issuers seen from a peer, where its
// gateways were found, and what replicas must tell the leader.
type PeerTrustSpec struct {
	// LinkUID is the UID of the Link that it was learnt under; for another
	// Link of the same name it means nothing.
	LinkUID string `json:"linkUID"`
	// IssuerList is the list as the peer sent it: a signed
	// identity.IssuerList in DER, verified again at each use.
	// +optional
	IssuerList []byte `json:"issuerList,omitempty"`
	// Gateways are addresses, IP:port, beside those of the Link, at which the
	// peer's controller has been authenticated: DNS or the peer said them.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	Gateways []string `json:"gateways,omitempty"`
	// Replicas are the controller replicas whose streams with the peer are not
	// as the leader would think them to be.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Replicas []ReplicaReport `json:"replicas,omitempty"`
}

// ReplicaReport is what a controller replica tells the leader of one Link. A
// replica that has a stream to a gateway of the peer says nothing.
type ReplicaReport struct {
	// Name is the replica's pod.
	Name string `json:"name"`
	// Connected: the peer has dialled this replica.
	Connected bool `json:"connected"`
	// PeerVersion is the version that the peer's controller reports to it.
	// +optional
	PeerVersion string `json:"peerVersion,omitempty"`
	// Message says why the replica has no stream to a gateway of the peer; empty
	// where no address of one is known.
	// +optional
	Message string `json:"message,omitempty"`
}

// PeerTrustList is a list of PeerTrusts.
//
// +kubebuilder:object:root=true
type PeerTrustList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PeerTrust `json:"items"`
}
