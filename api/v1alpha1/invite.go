package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Invite lets one cluster that nobody here has met make a Link with this one,
// once and soon. Its name is the Link that will be made, and so the local name of
// the peer. `causeway invite` makes it, in Causeway's own namespace, with a Secret
// beside it that only controllers read.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Joined",type=string,JSONPath=`.status.joined.trustDomain`
// +kubebuilder:printcolumn:name="Refused",type=string,JSONPath=`.status.refusals[*].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 32",message="an Invite's name becomes a Link's: use at most 32 lower-case letters, digits and dashes, beginning with a letter"
type Invite struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   InviteSpec   `json:"spec"`
	Status InviteStatus `json:"status,omitempty"`
}

// InviteSpec says for how long it is good, and the rules of the Link to be made.
type InviteSpec struct {
	// ValidSeconds is for how long after its creation it may be used.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=900
	ValidSeconds int32 `json:"validSeconds"`
	// Export is the Link's rule of that name. Absent: nothing is exported.
	// +optional
	Export *ExportRules `json:"export,omitempty"`
	// Import is the Link's rule of that name. Absent: nothing is imported.
	// +optional
	Import *ImportRules `json:"import,omitempty"`
}

// States of an Invite, in the order in which they follow each other; Expired
// follows Open and Joining.
const (
	// InviteOpen: nobody has used it. An empty state is Open, too.
	InviteOpen = "Open"
	// InviteJoining: it belongs to the cluster in Joined, and to no other any more.
	InviteJoining = "Joining"
	// InviteLinked: the Link stands, or stood.
	InviteLinked = "Linked"
	// InviteExpired: its time ran out.
	InviteExpired = "Expired"
)

// InviteStatus says who has used it and who was refused. Controllers write it by
// compare-and-swap.
type InviteStatus struct {
	// +optional
	// +kubebuilder:validation:Enum=Open;Joining;Linked;Expired
	State string `json:"state,omitempty"`
	// Joined is the cluster that the Invite belongs to from its first use on.
	// +optional
	Joined *Joiner `json:"joined,omitempty"`
	// Refusals tell who was refused and why: the first ones, each once.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	Refusals []InviteRefusal `json:"refusals,omitempty"`
}

// Joiner is a cluster that has used an Invite.
type Joiner struct {
	TrustDomain string `json:"trustDomain"`
	// RootHash is the SHA-256 of its root's certificate, in hex.
	RootHash string `json:"rootHash"`
	// Address is where it called from, as our gateway saw it.
	Address string `json:"address"`
}

// InviteRefusal is a cluster that was refused.
type InviteRefusal struct {
	Joiner `json:",inline"`
	// Reason is a word from a closed list, such as Used or WrongName.
	Reason string `json:"reason"`
}

// InviteList is a list of Invites.
//
// +kubebuilder:object:root=true
type InviteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Invite `json:"items"`
}

// Join uses a token that another cluster's Invite came with. Its name is the Link
// that will be made here for that cluster. `causeway join` makes it, in Causeway's
// own namespace, with a Secret beside it that only controllers read.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 32",message="a Join's name becomes a Link's: use at most 32 lower-case letters, digits and dashes, beginning with a letter"
type Join struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   JoinSpec   `json:"spec"`
	Status JoinStatus `json:"status,omitempty"`
}

// JoinSpec says who we are to the inviter, and the rules of the Link to be made.
type JoinSpec struct {
	// As is the name that this cluster was invited under.
	// +kubebuilder:validation:Pattern=`^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$`
	As string `json:"as"`
	// Export is the Link's rule of that name. Absent: nothing is exported.
	// +optional
	Export *ExportRules `json:"export,omitempty"`
	// Import is the Link's rule of that name. Absent: nothing is imported.
	// +optional
	Import *ImportRules `json:"import,omitempty"`
}

// States of a Join.
const (
	// JoinPending: the controller tries. An empty state is Pending, too.
	JoinPending = "Pending"
	// JoinLinked: the Link stands.
	JoinLinked = "Linked"
	// JoinRefused: it will not be tried again.
	JoinRefused = "Refused"
)

// JoinStatus says how far it is.
type JoinStatus struct {
	// +optional
	// +kubebuilder:validation:Enum=Pending;Linked;Refused
	State string `json:"state,omitempty"`
	// Reason is a word from a closed list, if it is refused.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message is a sentence for whoever waits.
	// +optional
	Message string `json:"message,omitempty"`
}

// JoinList is a list of Joins.
//
// +kubebuilder:object:root=true
type JoinList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Join `json:"items"`
}
