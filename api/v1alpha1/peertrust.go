package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PeerTrust stores what the controllers have learned about one peer: its issuers, its
// gateway addresses and the reports of the controller replicas. It is separate from the
// Link, which a user writes, so that applying an old Link again does not restore old
// issuers. It has the name of the Link. Only controllers write it, in the namespace of
// Causeway, by compare-and-swap.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=causeway
type PeerTrust struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what the controllers have learned about the peer.
	Spec PeerTrustSpec `json:"spec"`
}

// PeerTrustSpec is what the controllers have learned about one peer.
type PeerTrustSpec struct {
	// LinkUID is the UID of the Link that this object belongs to. The controllers ignore
	// the object if the Link of that name has another UID.
	LinkUID string `json:"linkUID"`
	// IssuerList is the newest list of issuers that the peer has sent, signed by its root
	// and encoded in DER. The controllers verify it at each use.
	// +optional
	IssuerList []byte `json:"issuerList,omitempty"`
	// Gateways lists the addresses, as IP:port, at which this cluster has authenticated a
	// controller of the peer. They come from DNS or from the peer. Addresses in the Link
	// are not listed.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	Gateways []string `json:"gateways,omitempty"`
	// Replicas lists reports of controller replicas to the leader. A replica that has a
	// stream to a gateway of the peer is not listed.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Replicas []ReplicaReport `json:"replicas,omitempty"`
}

// ReplicaReport is what a controller replica without a stream to a gateway of the peer
// reports to the leader.
type ReplicaReport struct {
	// Name is the name of the replica's pod.
	Name string `json:"name"`
	// Connected is true if the peer has a stream to this replica.
	Connected bool `json:"connected"`
	// PeerVersion is the version of Causeway that the peer's controller reports to the
	// replica.
	// +optional
	PeerVersion string `json:"peerVersion,omitempty"`
	// Message is the reason why the replica has no stream to a gateway of the peer. It is
	// empty if the replica knows no gateway address.
	// +optional
	Message string `json:"message,omitempty"`
}

// PeerTrustList contains a list of PeerTrusts.
//
// +kubebuilder:object:root=true
type PeerTrustList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PeerTrust `json:"items"`
}
