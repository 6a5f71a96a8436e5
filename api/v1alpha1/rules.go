package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ServiceSelection is a choice among Services that their owners export.
// +kubebuilder:validation:Enum=All;Selected
type ServiceSelection string

const (
	// AllServices chooses every one.
	AllServices ServiceSelection = "All"
	// SelectedServices chooses those whose labels the selector beside it matches.
	SelectedServices ServiceSelection = "Selected"
)

// ExportRules say which of this cluster's exported Services a peer may see and
// call. What a Service's owner does not export never crosses, whatever they say.
//
// +kubebuilder:validation:XValidation:rule="(self.services == 'Selected') == has(self.selector)",message="services: Selected needs a selector, and services: All takes none"
// +kubebuilder:validation:XValidation:rule="!(has(self.namespaces) && has(self.namespaceSelector))",message="give namespaces or a namespaceSelector, not both"
type ExportRules struct {
	// Services is All, or Selected: those that selector matches.
	Services ServiceSelection `json:"services"`

	// Selector matches the labels of Services.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// Namespaces are those whose Services may cross. Absent: every namespace.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`

	// NamespaceSelector matches the labels of the namespaces whose Services may cross.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// Default decides about callers of a Service that no ExportPolicy selects. Allow
	// admits every caller of the peer; Deny admits none until an ExportPolicy names
	// callers. If empty, it is Allow.
	// +optional
	Default ExportDefault `json:"default,omitempty"`
}

// ExportDefault decides about callers where no ExportPolicy does.
// +kubebuilder:validation:Enum=Allow;Deny
type ExportDefault string

const (
	// ExportAllow admits every caller of the peer. It is the default.
	ExportAllow ExportDefault = "Allow"
	// ExportDeny admits no caller.
	ExportDeny ExportDefault = "Deny"
)

// All reports whether r narrows nothing. A nil r lets nothing cross.
func (r *ExportRules) All() bool {
	return r != nil && r.Services == AllServices && len(r.Namespaces) == 0 && r.NamespaceSelector == nil
}

// ImportRules say which of a peer's exports are mirrored here, where, and under
// which names.
//
// +kubebuilder:validation:XValidation:rule="(self.services == 'Selected') == has(self.selector)",message="services: Selected needs a selector, and services: All takes none"
// +kubebuilder:validation:XValidation:rule="!(has(self.namespaces) && has(self.namespaceSelector))",message="give namespaces or a namespaceSelector, not both"
type ImportRules struct {
	// Services is All, or Selected: those that selector matches.
	Services ServiceSelection `json:"services"`

	// Selector matches the labels that the peer's Services have there.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// Namespaces lists the peer's namespaces whose Services are mirrored, and where
	// to. Absent: every one, into the namespace of the same name here, except kube-*
	// namespaces and Causeway's own, which must be listed.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Namespaces []NamespaceRule `json:"namespaces,omitempty"`

	// NamespaceSelector matches the labels, here, of the namespaces that mirrors
	// may be made in: kube-* namespaces and Causeway's own are never among them.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// CreateNamespaces makes namespaces that mirrors need and this cluster lacks.
	// They stay when the mirrors go. Absent: such a mirror waits for its namespace.
	// +optional
	CreateNamespaces bool `json:"createNamespaces,omitempty"`

	// Template makes a mirror's name of {service}, {link} and {namespace}, the
	// peer's. Absent: {service}-{link}. A name over 63 characters is shortened and
	// ends in a hash that stays the same.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^([a-z]|\{service\}|\{link\})([-a-z0-9]|\{service\}|\{link\}|\{namespace\})*$`
	// +kubebuilder:validation:XValidation:rule="self.contains('{service}') && !self.endsWith('-')",message="a template must contain {service} and must not end in a dash"
	Template string `json:"template,omitempty"`

	// CopyLabels are keys of labels that mirrors take over from the peer's
	// Services. All: every one but those that command other controllers, which
	// must be named beside it. Absent: none. causeway.dev/ and mirror.linkerd.io/
	// never cross.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('causeway.dev/') && !k.startsWith('mirror.linkerd.io/'))",message="causeway.dev/ and mirror.linkerd.io/ keys never cross a Link"
	CopyLabels []string `json:"copyLabels,omitempty"`

	// CopyAnnotations are keys of annotations, as CopyLabels are of labels.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('causeway.dev/') && !k.startsWith('mirror.linkerd.io/'))",message="causeway.dev/ and mirror.linkerd.io/ keys never cross a Link"
	CopyAnnotations []string `json:"copyAnnotations,omitempty"`

	// Callers says which of this cluster's namespaces may call the mirrors. If absent,
	// every namespace may.
	// +optional
	Callers *CallerRules `json:"callers,omitempty"`

	// Quotas bound what the peer can make this cluster hold. Of what is beyond
	// them the mirrors that were here first stay.
	// +optional
	Quotas *ImportQuotas `json:"quotas,omitempty"`
}

// CallerRules choose the local namespaces whose pods may call the mirrors of a Link.
//
// +kubebuilder:validation:XValidation:rule="has(self.namespaces) != has(self.namespaceSelector)",message="give namespaces or a namespaceSelector, not both and not neither"
type CallerRules struct {
	// Namespaces lists the namespaces that may call.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`

	// NamespaceSelector matches the labels of the namespaces that may call.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
}

// ImportQuotas bound the mirrors of one Link.
type ImportQuotas struct {
	// Services that are made here for the Link, those of named pods among them.
	// Absent: 1000.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	Services int32 `json:"services,omitempty"`
	// ServicesPerNamespace of ours: the kubelet tells every container of each
	// Service of its namespace. Absent: 500.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	ServicesPerNamespace int32 `json:"servicesPerNamespace,omitempty"`
	// Ports of a Service; one with more is not mirrored. Absent: 16, the most.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	Ports int32 `json:"ports,omitempty"`
	// Hostnames of a headless Service's pods. Absent: 64.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=256
	Hostnames int32 `json:"hostnames,omitempty"`
	// VIPPercent is the share of the range of virtual IPs that the Link's mirrors
	// may hold, those that rest among them. Absent: 10.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	VIPPercent int32 `json:"vipPercent,omitempty"`
	// Namespaces that createNamespaces may make for the Link, counted over those that
	// bear its label. Namespaces are never deleted, so the count never falls without
	// a person. If absent, it is 20.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	Namespaces int32 `json:"namespaces,omitempty"`
}

// What ImportQuotas that are absent are.
const (
	DefaultQuotaServices             = 1000
	DefaultQuotaServicesPerNamespace = 500
	DefaultQuotaPorts                = 16
	DefaultQuotaHostnames            = 64
	DefaultQuotaVIPPercent           = 10
	DefaultQuotaNamespaces           = 20
)

// NamespaceRule lets the Services of one of the peer's namespaces in.
type NamespaceRule struct {
	// Name is the peer's namespace.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// As is the namespace of their mirrors here. Absent: Name.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	As string `json:"as,omitempty"`
}

// CopyAll, in CopyLabels or CopyAnnotations, stands for every key that commands
// no other controller.
const CopyAll = "All"

// DefaultTemplate is the Template of ImportRules that have none.
const DefaultTemplate = "{service}-{link}"
