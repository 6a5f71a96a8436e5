package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Ledger is one object of the controller's ledger. The ledger records the virtual IPs and
// listener ports of each mirror, and the route ids of each exported Service. The data
// path reads the ledger. It does not read the mirrors in tenants' namespaces.
//
// There are three kinds of object: "directory", "mirrors-BLOCK", which holds one block of
// virtual IPs, and "exports-NUMBER". The command "causeway ledger" prints their content.
//
// Only controllers write Ledgers, in the namespace of Causeway. A Ledger has no owner
// reference, because released entries outlive their Link. Ledgers are never deleted.
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

	// Owner is the trust domain of the peer that the block of virtual IPs belongs to. It
	// is empty in the directory, in exports objects, and in a free block.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Owner string `json:"owner,omitempty"`

	// Block is the number of the block of virtual IPs, or of the exports object.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Block int32 `json:"block,omitempty"`

	// Generation increases with each write by a controller. The generations of all
	// exports objects form one sequence. The highest is the generation of the export
	// list.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation,omitempty"`

	// Epoch identifies the export list that generations count. It is set in the directory
	// and in exports objects.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Epoch string `json:"epoch,omitempty"`

	// Applied is the version of the peer's export list that this cluster applied last.
	// It is set only in the first block of a peer.
	// +optional
	Applied *LedgerApplied `json:"applied,omitempty"`

	// Entries is the number of entries in data, for display.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Entries int32 `json:"entries,omitempty"`

	// Data is JSON compressed with DEFLATE, at most 256 KiB.
	// +optional
	// +kubebuilder:validation:MaxLength=360000
	Data []byte `json:"data,omitempty"`
}

// LedgerApplied is a version of an export list.
type LedgerApplied struct {
	// Epoch identifies the export list.
	// +kubebuilder:validation:MaxLength=64
	Epoch string `json:"epoch"`
	// Generation is the generation of the export list.
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation"`
}

// LedgerList contains a list of Ledgers.
//
// +kubebuilder:object:root=true
type LedgerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Ledger `json:"items"`
}
