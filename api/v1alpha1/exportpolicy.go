package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ExportPolicy lists the callers in linked clusters that may call exported Services in
// its namespace.
//
// If no ExportPolicy selects a Service, spec.export.default of the Link decides whether
// the peer's workloads may call it. If one or more select it, a caller is admitted if any
// of them lists it. Pods that a NetworkPolicy isolates for ingress admit only callers
// that an ExportPolicy lists.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ExportPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec selects Services and lists their callers.
	Spec ExportPolicySpec `json:"spec"`
}

// ExportPolicySpec selects Services and lists their callers.
type ExportPolicySpec struct {
	// Services lists the names of Services in the namespace of the policy. If empty, all
	// Services in the namespace are selected.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	Services []string `json:"services,omitempty"`

	// Callers lists the callers that are admitted. If empty, no caller is admitted by
	// this policy.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Callers []Caller `json:"callers,omitempty"`
}

// Caller matches workloads of linked clusters, and optionally their requests. At least
// one of link, namespace, serviceAccount and spiffeID must be set. A workload matches if
// all of these that are set match.
//
// +kubebuilder:validation:XValidation:rule="has(self.link) || has(self.namespace) || has(self.serviceAccount) || has(self.spiffeID)",message="at least one of link, namespace, serviceAccount and spiffeID is required"
type Caller struct {
	// Link is the name of the Link for the caller's cluster.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Link string `json:"link,omitempty"`
	// Namespace is the namespace of the caller in its cluster.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// ServiceAccount is the name of the caller's ServiceAccount in its cluster.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// SPIFFEID is the complete SPIFFE ID of the caller.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	SPIFFEID string `json:"spiffeID,omitempty"`

	// Methods lists the HTTP methods that the caller may use, such as GET. A gRPC call
	// has the method POST. If empty, every method is admitted.
	//
	// If methods or paths is set, the caller may make HTTP and gRPC requests that match
	// both. Other connections of the caller are refused.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:Pattern=`^[A-Z]+(-[A-Z]+)*$`
	Methods []string `json:"methods,omitempty"`
	// Paths lists the paths that the caller may request. A request must match at least
	// one of them. If empty, every path is admitted. The path of a gRPC call is
	// /package.Service/Method.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Paths []PathMatch `json:"paths,omitempty"`
}

// PathMatch matches the path of a request, without the query. Before the comparison the
// path is brought into a normal form, without dot segments and repeated slashes. A
// request whose path has no such form matches nothing.
//
// +kubebuilder:validation:XValidation:rule="has(self.exact) != has(self.prefix)",message="exactly one of exact and prefix is required"
type PathMatch struct {
	// Exact is the whole path.
	// +optional
	Exact NormalPath `json:"exact,omitempty"`
	// Prefix is one or more whole segments at the beginning of the path: /api matches
	// /api and /api/v1, and does not match /apis. A slash at its end has no meaning.
	// +optional
	Prefix NormalPath `json:"prefix,omitempty"`
}

// NormalPath is an absolute path in normal form: without percent-encoding, query, dot
// segments and repeated slashes.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
// +kubebuilder:validation:Pattern=`^(/[-A-Za-z0-9._~!$&'()*+,=:@]+)*/?$`
// +kubebuilder:validation:XValidation:rule="!self.matches('/[.][.]?(/|$)')",message="a path must not contain the segments . and .."
type NormalPath string

// ExportPolicyList contains a list of ExportPolicies.
//
// +kubebuilder:object:root=true
type ExportPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ExportPolicy `json:"items"`
}
