package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Invite lets one other cluster establish a Link with this one, once and for a limited
// time. The holder of the invite's token proves the right to join. The controller gives
// the new Link the name of the Invite, which is the local name of the peer. The command
// "causeway invite" creates the Invite in the namespace of Causeway, together with a
// Secret that only controllers read.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Joined",type=string,JSONPath=`.status.joined.trustDomain`
// +kubebuilder:printcolumn:name="Refused",type=string,JSONPath=`.status.refusals[*].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 32",message="an Invite's name becomes a Link's: use at most 32 lowercase letters, digits and dashes, beginning with a letter"
type Invite struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the validity of the invite and the rules of the Link to be created.
	Spec InviteSpec `json:"spec"`
	// Status is the progress of the invite. Only controllers write it.
	Status InviteStatus `json:"status,omitempty"`
}

// InviteSpec is the validity of an Invite and the rules of the Link to be created.
type InviteSpec struct {
	// ValidSeconds is the number of seconds after its creation during which the invite
	// can be used.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=900
	ValidSeconds int32 `json:"validSeconds"`
	// Export becomes spec.export of the Link. If not set, the peer sees no Service.
	// +optional
	Export *ExportRules `json:"export,omitempty"`
	// Import becomes spec.import of the Link. If not set, no Service is mirrored.
	// +optional
	Import *ImportRules `json:"import,omitempty"`
}

// States of an Invite. They follow each other in the order Open, Joining, Linked. Expired
// may follow Open or Joining.
const (
	// InviteOpen is the state of an Invite that no cluster has used. An empty state means
	// the same.
	InviteOpen = "Open"
	// InviteJoining is the state of an Invite that is bound to the cluster in Joined. No
	// other cluster can use it.
	InviteJoining = "Joining"
	// InviteLinked is the final state of an Invite whose Link was created.
	InviteLinked = "Linked"
	// InviteExpired is the final state of an Invite that expired before its Link was
	// created.
	InviteExpired = "Expired"
)

// InviteStatus is the progress of an Invite. Controllers write it by compare-and-swap.
type InviteStatus struct {
	// State is Open, Joining, Linked or Expired. Empty means Open.
	// +optional
	// +kubebuilder:validation:Enum=Open;Joining;Linked;Expired
	State string `json:"state,omitempty"`
	// Joined is the first cluster that used the invite. The invite is bound to it.
	// +optional
	Joined *Joiner `json:"joined,omitempty"`
	// Refusals lists the first clusters that were refused, without duplicates.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	Refusals []InviteRefusal `json:"refusals,omitempty"`
}

// Joiner is a cluster that has used an Invite.
type Joiner struct {
	// TrustDomain is the SPIFFE trust domain of the cluster.
	TrustDomain string `json:"trustDomain"`
	// RootHash is the SHA-256 of the cluster's root certificate, in hex.
	RootHash string `json:"rootHash"`
	// Address is the IP address that the cluster connected from, as seen by the gateway
	// of this cluster.
	Address string `json:"address"`
}

// InviteRefusal is a cluster that was refused.
type InviteRefusal struct {
	Joiner `json:",inline"`
	// Reason is a machine-readable reason in CamelCase, such as Used or WrongName.
	Reason string `json:"reason"`
}

// InviteList contains a list of Invites.
//
// +kubebuilder:object:root=true
type InviteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Invite `json:"items"`
}

// Join accepts the Invite of another cluster. The controller gives the new Link the name
// of the Join, which is the local name of the inviter. The command "causeway join"
// creates the Join in the namespace of Causeway, together with a Secret for the token
// that only controllers read.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 32",message="a Join's name becomes a Link's: use at most 32 lowercase letters, digits and dashes, beginning with a letter"
type Join struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is the name of this cluster at the inviter and the rules of the Link to be
	// created.
	Spec JoinSpec `json:"spec"`
	// Status is the progress of the join. Only controllers write it.
	Status JoinStatus `json:"status,omitempty"`
}

// JoinSpec is the name of this cluster at the inviter and the rules of the Link to be
// created.
type JoinSpec struct {
	// As is the name of the Invite, which is the name of this cluster at the inviter.
	// +kubebuilder:validation:Pattern=`^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$`
	As string `json:"as"`
	// Export becomes spec.export of the Link. If not set, the peer sees no Service.
	// +optional
	Export *ExportRules `json:"export,omitempty"`
	// Import becomes spec.import of the Link. If not set, no Service is mirrored.
	// +optional
	Import *ImportRules `json:"import,omitempty"`
}

// States of a Join.
const (
	// JoinPending is the state of a Join that the controller is working on. An empty
	// state means the same.
	JoinPending = "Pending"
	// JoinLinked is the final state of a Join whose Link was created.
	JoinLinked = "Linked"
	// JoinRefused is the final state of a Join that failed. The controller does not
	// retry.
	JoinRefused = "Refused"
)

// JoinStatus is the progress of a Join.
type JoinStatus struct {
	// State is Pending, Linked or Refused. Empty means Pending.
	// +optional
	// +kubebuilder:validation:Enum=Pending;Linked;Refused
	State string `json:"state,omitempty"`
	// Reason is a machine-readable reason in CamelCase. It is set if state is Refused.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message is a human-readable description of the progress or of the failure.
	// +optional
	Message string `json:"message,omitempty"`
}

// JoinList contains a list of Joins.
//
// +kubebuilder:object:root=true
type JoinList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Join `json:"items"`
}
