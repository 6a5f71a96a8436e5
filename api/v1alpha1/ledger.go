package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Ledger is one object of the controller's ledger. The ledger records which virtual
// IPs and listener ports each mirror has, and which route ids each exported Service
// has. It is an input of the data path; the mirrors in tenants' namespaces are outputs.
//
// There are three kinds of object: "directory", "mirrors-BLOCK", which holds one block
// of virtual IPs, and "exports-NUMBER". `causeway ledger` prints what they hold.
//
// Only controllers write Ledgers, all of them in Causeway's own namespace. They have no
// owner, because released entries outlive their Link, and they are never deleted.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="Owner",type=string,JSONPath=`.owner`
// +kubebuilder:printcolumn:name="Block",type=integer,JSONPath=`.block`
// +kubebuilder:printcolumn:name="Entries",type=integer,JSONPath=`.entries`
// +kubebuilder:printcolumn:name="Generation",type=integer,JSONPath=`.generation`,priority=1
type Ledger struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Owner is the trust domain of the peer that the block of virtual IPs belongs to.
	// It is empty in the directory, in exports, and in a block that belongs to nobody.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Owner string `json:"owner,omitempty"`

	// Block is the number of the block of virtual IPs, or of the exports object.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Block int32 `json:"block,omitempty"`

	// Generation increases with each write by a controller. The generations of all
	// exports objects form one sequence: the highest is that of the export list.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation,omitempty"`

	// Epoch names the export list that generations count, in the directory and in exports.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Epoch string `json:"epoch,omitempty"`

	// Applied is the version of the peer's export list that was applied last.
	// Only the first block of a peer has it.
	// +optional
	Applied *LedgerApplied `json:"applied,omitempty"`

	// Entries counts the entries of Data, for people.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Entries int32 `json:"entries,omitempty"`

	// Data is compressed JSON (DEFLATE) of at most 256 KiB.
	// +optional
	// +kubebuilder:validation:MaxLength=360000
	Data []byte `json:"data,omitempty"`
}

// LedgerApplied is a version of an export list.
type LedgerApplied struct {
	// +kubebuilder:validation:MaxLength=64
	Epoch string `json:"epoch"`
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation"`
}

// LedgerList is a list of Ledgers.
//
// +kubebuilder:object:root=true
type LedgerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Ledger `json:"items"`
}
