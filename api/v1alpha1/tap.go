package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Tap permits its creator to read the live requests that concern its namespace, through
// the agents of this cluster, for one hour or until it is deleted. A Tap in the namespace
// of Causeway permits to read those of all namespaces. The command "causeway tap" creates
// and deletes it. Its name is the hash of a key that only the command has. To allow
// a user to tap a namespace, grant the verbs create and delete on taps there.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories=causeway
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Tap struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
}

// TapList contains a list of Taps.
//
// +kubebuilder:object:root=true
type TapList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Tap `json:"items"`
}
