package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Link connects this cluster to one peer cluster. It contains the peer's public keys and
// addresses, and the rules for which Services are visible across the clusters.
//
// The name of a Link is the local name of the peer and, by default, the suffix of the
// names of its mirrors. Each of two linked clusters has a Link for the other. Deleting a
// Link revokes the peer: all connections to and from the peer are closed, and Kubernetes
// garbage-collects the mirrors, which the Link owns.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=causeway
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Trust Domain",type=string,JSONPath=`.spec.trustDomain`
// +kubebuilder:printcolumn:name="Connected",type=string,JSONPath=`.status.conditions[?(@.type=="Connected")].status`
// +kubebuilder:printcolumn:name="Trusted",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Trusted")].status`
// +kubebuilder:printcolumn:name="Synced",type=string,JSONPath=`.status.conditions[?(@.type=="Synced")].status`
// +kubebuilder:printcolumn:name="Gateway Reachable",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="GatewayReachable")].status`
// +kubebuilder:printcolumn:name="Mirrors",type=integer,JSONPath=`.status.mirrors`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 32",message="a Link's name becomes the suffix of Service names: use at most 32 lowercase letters, digits and dashes, beginning with a letter"
type Link struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec describes the peer and the rules for it.
	Spec LinkSpec `json:"spec"`
	// Status is the most recently observed state of the link. Only the controller
	// writes it.
	Status LinkStatus `json:"status,omitempty"`
}

// LinkSpec describes the peer and this cluster's rules for it. The command
// "causeway identity", run in the peer, prints trustDomain, root and linkPublicKey.
type LinkSpec struct {
	// TrustDomain is the SPIFFE trust domain of the peer. It must be unique among Links
	// and differ from this cluster's trust domain. It is immutable.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a Link's trustDomain cannot change: delete the Link and create a new one"
	TrustDomain string `json:"trustDomain"`

	// Root is the peer's root certificate in PEM. It authenticates the peer's
	// controllers, and the list of issuers that the peer sends. The issuers in turn sign
	// the peer's workload certificates.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=8192
	Root string `json:"root"`

	// LinkPublicKey is the peer's X25519 public key, 32 bytes in base64. Both clusters
	// derive from it the daily keys that encrypt connection labels.
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9+/]{43}=$`
	LinkPublicKey string `json:"linkPublicKey"`

	// Gateways lists addresses of the peer's gateways as host:port, where host is an IP
	// address or a DNS name. The controller also uses the addresses that the peer
	// advertises. If empty, this cluster reaches the peer only at advertised addresses,
	// or waits for the peer to connect.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MaxLength=262
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^([0-9A-Za-z]([-0-9A-Za-z._]*[0-9A-Za-z])?[.]?|\\\\[[0-9A-Fa-f:.]+\\\\]):([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$')",message="a gateway address is host:port, such as 198.51.100.7:4143, [2001:db8::7]:4143 or gateway.east.example:4143"
	Gateways []string `json:"gateways,omitempty"`

	// GatewayCIDRs restricts the gateway addresses that come from DNS or from the peer.
	// An address outside these ranges is not used. An address inside them is used even
	// if this cluster uses the same range. If empty, every address is used except this
	// cluster's own ranges. Loopback, link-local, multicast and reserved addresses are
	// never used. IP addresses in gateways are not restricted.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self)",message="gatewayCIDRs are ranges such as 198.51.100.0/24"
	GatewayCIDRs []string `json:"gatewayCIDRs,omitempty"`

	// Suspend stops new connections in both directions. Open connections continue,
	// mirrors remain, and the catalog stays up to date. Defaults to false.
	// +optional
	Suspend bool `json:"suspend,omitempty"`

	// Export selects the exported Services of this cluster that the peer may see and
	// call. If not set, the peer sees none.
	// +optional
	Export *ExportRules `json:"export,omitempty"`

	// Import selects the exported Services of the peer that are mirrored in this
	// cluster. If not set, none is mirrored.
	// +optional
	Import *ImportRules `json:"import,omitempty"`
}

// Condition types of a Link.
const (
	// LinkReady is True once the first sync of the Link is complete. It becomes False
	// only if the owner of the Link must change something. An outage does not change it,
	// because LinkConnected and LinkGatewayReachable report outages.
	LinkReady = "Ready"
	// LinkConnected is True while a catalog stream with the peer's controller is open.
	LinkConnected = "Connected"
	// LinkTrusted is True if the public keys in the Link are valid and unique, and this
	// cluster has the peer's list of issuers, signed by the root of the Link.
	LinkTrusted = "Trusted"
	// LinkSynced is True if the peer's whole catalog was received and all mirrors are
	// up to date.
	LinkSynced = "Synced"
	// LinkGatewayReachable is True if at least one gateway address of the peer answers.
	LinkGatewayReachable = "GatewayReachable"
)

// LinkStatus is the observed state of a Link. It contains no measurements, so it changes
// only when something changes that an operator may act on.
type LinkStatus struct {
	// Conditions are the current conditions of the link: Ready, Connected, Trusted,
	// Synced and GatewayReachable.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// ObservedGeneration is the metadata.generation of the Link that this status
	// describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Mirrors is the number of Services mirrored from the peer. If only the counts
	// change, they are written after up to 30 s.
	// +optional
	Mirrors int32 `json:"mirrors"`

	// Exports is the number of Services of this cluster that the peer sees. If only the
	// counts change, they are written after up to 30 s.
	// +optional
	Exports int32 `json:"exports"`

	// PeerVersion is the version of Causeway that the peer's controller reports.
	// +optional
	PeerVersion string `json:"peerVersion,omitempty"`

	// Problems lists Services that could not be mirrored or exported, with the reason
	// and a remedy. The list is sorted and has at most 32 items.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Problems []ServiceProblem `json:"problems,omitempty"`
}

// ServiceProblem describes why one Service is not mirrored or exported.
type ServiceProblem struct {
	// Service is the namespace/name of the source Service. If the problem is a conflict
	// over a mirror's name, it is the namespace/name of the mirror.
	Service string `json:"service"`
	// Reason is a machine-readable reason in CamelCase, such as NameTaken or
	// NamespaceMissing.
	Reason string `json:"reason"`
	// Message is a human-readable explanation with a remedy.
	Message string `json:"message"`
}

// LinkList contains a list of Links.
//
// +kubebuilder:object:root=true
type LinkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Link `json:"items"`
}
