package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Link names one peer cluster, in public material only, and says what may cross.
//
// Its name is the local name of the peer and the suffix of the peer's mirrors.
// Each of two linked clusters holds a Link for the other. Deleting it revokes
// the peer: tunnels end, and Kubernetes collects the mirrors, which it owns.
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
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 32",message="a Link's name becomes the suffix of Service names: use at most 32 lower-case letters, digits and dashes, beginning with a letter"
type Link struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   LinkSpec   `json:"spec"`
	Status LinkStatus `json:"status,omitempty"`
}

// LinkSpec is the peer's public half, as `causeway identity` prints it there,
// and this cluster's rules for it.
type LinkSpec struct {
	// TrustDomain is the SPIFFE trust domain of the peer, unique among Links
	// and different from this cluster's own. It cannot be changed.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a Link's trustDomain cannot change: delete the Link and make a new one"
	TrustDomain string `json:"trustDomain"`

	// Root is the PEM certificate of the peer's root. It authenticates the
	// peer's controllers and, through the list that they send, its issuers.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=8192
	Root string `json:"root"`

	// LinkPublicKey is the peer's X25519 public key, 32 bytes in base64, from
	// which both clusters derive the keys of the day that seal labels.
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9+/]{43}=$`
	LinkPublicKey string `json:"linkPublicKey"`

	// Gateways are the peer's gateway addresses, host:port, where host is an IP
	// or a name in DNS. Those that the peer says itself are used beside them.
	// None means that the peer dials us, unless an address that it says works.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:items:MaxLength=262
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^([0-9A-Za-z]([-0-9A-Za-z._]*[0-9A-Za-z])?[.]?|\\\\[[0-9A-Fa-f:.]+\\\\]):([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$')",message="a gateway address is host:port, such as 198.51.100.7:4143, [2001:db8::7]:4143 or gateway.east.example:4143"
	Gateways []string `json:"gateways,omitempty"`

	// GatewayCIDRs bound the addresses that DNS or the peer says: none outside
	// them is used, and one inside them is, though this cluster may use the
	// range, too. Absent: any but this cluster's own. Loopback, link-local,
	// multicast and reserved addresses are never used. What Gateways name by IP
	// is used in any case.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self)",message="gatewayCIDRs are ranges such as 198.51.100.0/24"
	GatewayCIDRs []string `json:"gatewayCIDRs,omitempty"`

	// Suspend stops new connections in both directions. Open connections go on,
	// mirrors stay, and the catalog is kept up to date. If absent, it is false.
	// +optional
	Suspend bool `json:"suspend,omitempty"`

	// Export says which of this cluster's exported Services the peer may see
	// and call. Absent: none.
	// +optional
	Export *ExportRules `json:"export,omitempty"`

	// Import says which of the peer's exports are mirrored here. Absent: none.
	// +optional
	Import *ImportRules `json:"import,omitempty"`
}

// Condition types of a Link. Each is True only once it truly works.
const (
	// LinkReady: the first sync that the Link asks for is complete. It turns False
	// only for what the Link's owner must change, never for an outage, which
	// Connected and GatewayReachable show.
	LinkReady = "Ready"
	// LinkConnected: a catalog stream with the peer's controller is up.
	LinkConnected = "Connected"
	// LinkTrusted: the Link's public material is valid and unique, and the
	// peer's list of issuers is known and signed by the Link's root.
	LinkTrusted = "Trusted"
	// LinkSynced: the peer's whole catalog has arrived and all mirrors stand.
	LinkSynced = "Synced"
	// LinkGatewayReachable: at least one of the peer's gateway addresses answers.
	LinkGatewayReachable = "GatewayReachable"
)

// LinkStatus holds states, never measurements: what it says changes only when
// something a person would act on has changed.
type LinkStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// ObservedGeneration is the generation of the Link that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Mirrors is the number of Services mirrored from the peer.
	// +optional
	Mirrors int32 `json:"mirrors"`

	// Exports is the number of this cluster's Services offered to the peer.
	// +optional
	Exports int32 `json:"exports"`

	// PeerVersion is the version that the peer's controller reports.
	// +optional
	PeerVersion string `json:"peerVersion,omitempty"`

	// Problems lists, sorted and at most 32, the Services that could not be
	// mirrored or exported, each with the reason and what to do.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Problems []ServiceProblem `json:"problems,omitempty"`
}

// ServiceProblem says why one Service does not cross.
type ServiceProblem struct {
	// Service is namespace/name: of the mirror for a clash, of the source otherwise.
	Service string `json:"service"`
	// Reason is a word from a closed list, such as NameTaken or NamespaceMissing.
	Reason string `json:"reason"`
	// Message is a sentence for the operator.
	Message string `json:"message"`
}

// LinkList is a list of Links.
//
// +kubebuilder:object:root=true
type LinkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Link `json:"items"`
}
