package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ExportPolicy says which callers of linked clusters may call exported Services
// of its namespace.
//
// A Service that no policy selects admits every workload of a peer whom the
// Link's export rules admit. A Service that policies select admits a caller that
// any of them names. Pods isolated by a NetworkPolicy for ingress admit only
// callers that a policy names.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ExportPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ExportPolicySpec `json:"spec"`
}

// ExportPolicySpec names Services and their callers.
type ExportPolicySpec struct {
	// Services are names of Services of this namespace. Empty: all of them.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	Services []string `json:"services,omitempty"`

	// Callers are those who may call. Empty: nobody.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Callers []Caller `json:"callers,omitempty"`
}

// Caller matches a workload of a linked cluster. Every field that is set must
// match; at least one must be set.
//
// +kubebuilder:validation:XValidation:rule="has(self.link) || has(self.namespace) || has(self.serviceAccount) || has(self.spiffeID)",message="a caller must name at least one of link, namespace, serviceAccount, spiffeID"
type Caller struct {
	// Link is the name of the Link that the caller comes by.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Link string `json:"link,omitempty"`
	// Namespace is the caller's namespace in its own cluster.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// ServiceAccount is the caller's ServiceAccount name in its own cluster.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// SPIFFEID is the caller's whole SPIFFE ID.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	SPIFFEID string `json:"spiffeID,omitempty"`
}

// ExportPolicyList is a list of ExportPolicies.
//
// +kubebuilder:object:root=true
type ExportPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ExportPolicy `json:"items"`
}
