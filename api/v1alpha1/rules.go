package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ServiceSelection chooses among the Services that their owners export.
// +kubebuilder:validation:Enum=All;Selected
type ServiceSelection string

const (
	// AllServices selects every exported Service.
	AllServices ServiceSelection = "All"
	// SelectedServices selects the exported Services that match the selector field.
	SelectedServices ServiceSelection = "Selected"
)

// ExportRules select the exported Services of this cluster that a peer may see and call.
// A Service that its owner does not export is never visible to a peer.
//
// +kubebuilder:validation:XValidation:rule="(self.services == 'Selected') == has(self.selector)",message="selector is required if services is Selected, and must not be set if services is All"
// +kubebuilder:validation:XValidation:rule="!(has(self.namespaces) && has(self.namespaceSelector))",message="namespaces and namespaceSelector are mutually exclusive"
type ExportRules struct {
	// Services is All, for every exported Service, or Selected, for the exported Services
	// that match selector.
	Services ServiceSelection `json:"services"`

	// Selector matches the labels of Services. It is required if services is Selected.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// Namespaces lists the namespaces whose Services the peer may see. If empty, all
	// namespaces are selected.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`

	// NamespaceSelector matches the labels of the namespaces whose Services the peer may
	// see. It must not be set together with namespaces. If neither is set, all namespaces
	// are selected.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// Default applies to Services that no ExportPolicy selects. Allow admits all callers
	// of the peer. Deny admits no caller until an ExportPolicy lists callers. Defaults
	// to Allow.
	// +optional
	Default ExportDefault `json:"default,omitempty"`
}

// ExportDefault is the decision about callers of a Service that no ExportPolicy selects.
// +kubebuilder:validation:Enum=Allow;Deny
type ExportDefault string

const (
	// ExportAllow admits all callers of the peer. It is the default.
	ExportAllow ExportDefault = "Allow"
	// ExportDeny admits no caller.
	ExportDeny ExportDefault = "Deny"
)

// All reports whether r selects every exported Service. It returns false if r is nil,
// because a Link without export rules exports nothing.
func (r *ExportRules) All() bool {
	return r != nil && r.Services == AllServices && len(r.Namespaces) == 0 && r.NamespaceSelector == nil
}

// ImportRules select the exported Services of a peer that are mirrored in this cluster,
// and determine the namespaces and names of the mirrors.
//
// +kubebuilder:validation:XValidation:rule="(self.services == 'Selected') == has(self.selector)",message="selector is required if services is Selected, and must not be set if services is All"
// +kubebuilder:validation:XValidation:rule="!(has(self.namespaces) && has(self.namespaceSelector))",message="namespaces and namespaceSelector are mutually exclusive"
type ImportRules struct {
	// Services is All, for every Service that the peer exports, or Selected, for those
	// that match selector.
	Services ServiceSelection `json:"services"`

	// Selector matches the labels of the peer's Services. It is required if services is
	// Selected.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// Namespaces lists the namespaces of the peer whose Services are mirrored, and the
	// local namespaces of the mirrors. If empty, all namespaces of the peer are mirrored
	// to the local namespaces of the same names, except kube-* namespaces and the
	// namespace of Causeway, which must be listed.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Namespaces []NamespaceRule `json:"namespaces,omitempty"`

	// NamespaceSelector matches the labels of the local namespaces in which mirrors may
	// be created. It must not be set together with namespaces. It never selects kube-*
	// namespaces or the namespace of Causeway.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// CreateNamespaces makes the controller create the local namespaces that mirrors
	// need. These namespaces are not deleted when the mirrors are deleted. Defaults to
	// false: a mirror waits until its namespace exists.
	// +optional
	CreateNamespaces bool `json:"createNamespaces,omitempty"`

	// Template is the template of the names of mirrors. It may contain {service} and
	// {namespace}, the name and namespace of the source Service, and {link}, the name of
	// this Link. A name of more than 63 characters is truncated and ends in a stable
	// hash. Defaults to {service}-{link}.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^([a-z]|\{service\}|\{link\})([-a-z0-9]|\{service\}|\{link\}|\{namespace\})*$`
	// +kubebuilder:validation:XValidation:rule="self.contains('{service}') && !self.endsWith('-')",message="a template must contain {service} and must not end in a dash"
	Template string `json:"template,omitempty"`

	// CopyLabels lists the keys of the labels that are copied from the peer's Services to
	// their mirrors. The item All selects every key except keys that control the behavior
	// of other controllers, which must be listed. Keys that start with causeway.dev/ or
	// mirror.linkerd.io/ are never copied. If empty, no label is copied.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('causeway.dev/') && !k.startsWith('mirror.linkerd.io/'))",message="causeway.dev/ and mirror.linkerd.io/ keys are never copied"
	CopyLabels []string `json:"copyLabels,omitempty"`

	// CopyAnnotations lists the keys of the annotations that are copied, by the same
	// rules as copyLabels. If empty, no annotation is copied.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=317
	// +kubebuilder:validation:XValidation:rule="self.all(k, !k.startsWith('causeway.dev/') && !k.startsWith('mirror.linkerd.io/'))",message="causeway.dev/ and mirror.linkerd.io/ keys are never copied"
	CopyAnnotations []string `json:"copyAnnotations,omitempty"`

	// Callers selects the local namespaces whose pods may call the mirrors. If not set,
	// the pods of all namespaces may call them.
	// +optional
	Callers *CallerRules `json:"callers,omitempty"`

	// Defaults apply to calls of the mirrors. A traffic setting of the exported Service
	// has precedence over them.
	// +optional
	Defaults *ImportDefaults `json:"defaults,omitempty"`

	// Quotas limits the mirrors that the peer can cause in this cluster. When a limit is
	// reached, existing mirrors are kept and further Services are not mirrored.
	// +optional
	Quotas *ImportQuotas `json:"quotas,omitempty"`
}

// ImportDefaults are the traffic settings of a Link's mirrors where the exported Service
// sets nothing.
type ImportDefaults struct {
	// Timeout is the time for a request with all its attempts, from 1ms to 24h. If not
	// set, there is no timeout.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+([.][0-9]+)?(h|m|s|ms))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1ms') && duration(self) <= duration('24h')",message="a timeout is between 1ms and 24h"
	Timeout *metav1.Duration `json:"timeout,omitempty"`
	// Retries is the maximum number of attempts after the first. If not set, the agents
	// choose it.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10
	Retries *int32 `json:"retries,omitempty"`
	// RetryOn lists the conditions under which a request is retried. If empty, they are
	// connect-failure and reset.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=6
	RetryOn []RetryCondition `json:"retryOn,omitempty"`
	// ProtocolDetection says whether the first bytes of a connection decide about its
	// protocol, if neither the causeway.dev/protocol annotation of the exported Service
	// nor the appProtocol of the port does. If Disabled, such connections are opaque TCP.
	// Defaults to Enabled.
	// +optional
	ProtocolDetection ProtocolDetection `json:"protocolDetection,omitempty"`
}

// RetryCondition is a condition under which a request is retried, as in the annotation
// causeway.dev/retry-on.
// +kubebuilder:validation:Enum=connect-failure;reset;gateway-error;"5xx";unavailable;idempotent
type RetryCondition string

const (
	// RetryOnConnectFailure: the request did not reach the application.
	RetryOnConnectFailure RetryCondition = "connect-failure"
	// RetryOnReset: the connection ended before the response.
	RetryOnReset RetryCondition = "reset"
	// RetryOnGatewayError: the application answered 502, 503 or 504.
	RetryOnGatewayError RetryCondition = "gateway-error"
	// RetryOn5xx: the application answered 500 to 599.
	RetryOn5xx RetryCondition = "5xx"
	// RetryOnUnavailable: a gRPC application answered UNAVAILABLE in a Trailers-Only
	// response.
	RetryOnUnavailable RetryCondition = "unavailable"
	// RetryOnIdempotent: PUT and DELETE are retried like GET, HEAD and OPTIONS.
	RetryOnIdempotent RetryCondition = "idempotent"
)

// ProtocolDetection turns the detection of protocols on or off.
// +kubebuilder:validation:Enum=Enabled;Disabled
type ProtocolDetection string

const (
	// ProtocolDetectionEnabled is the default.
	ProtocolDetectionEnabled ProtocolDetection = "Enabled"
	// ProtocolDetectionDisabled makes connections opaque whose protocol is not declared.
	ProtocolDetectionDisabled ProtocolDetection = "Disabled"
)

// CallerRules select the local namespaces whose pods may call the mirrors of a Link.
//
// +kubebuilder:validation:XValidation:rule="has(self.namespaces) != has(self.namespaceSelector)",message="exactly one of namespaces and namespaceSelector is required"
type CallerRules struct {
	// Namespaces lists the namespaces whose pods may call the mirrors.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespaces []string `json:"namespaces,omitempty"`

	// NamespaceSelector matches the labels of the namespaces whose pods may call the
	// mirrors.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
}

// ImportQuotas limits the mirrors of one Link.
type ImportQuotas struct {
	// Services is the maximum number of Services that are created for the Link,
	// including the mirrors of named pods. Defaults to 1000.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	Services int32 `json:"services,omitempty"`
	// ServicesPerNamespace is the maximum number of Services that are created for the
	// Link in one local namespace. It exists because the kubelet passes the Services of a
	// namespace to each container as environment variables. Defaults to 500.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	ServicesPerNamespace int32 `json:"servicesPerNamespace,omitempty"`
	// Ports is the maximum number of ports of a Service. A Service with more ports is not
	// mirrored. Defaults to 16, which is also the upper limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	Ports int32 `json:"ports,omitempty"`
	// Hostnames is the maximum number of named pods that are mirrored for one headless
	// Service. Defaults to 64.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=256
	Hostnames int32 `json:"hostnames,omitempty"`
	// VIPPercent is the maximum share, in percent, of the virtual IP range that the Link
	// may use. Released virtual IPs count until they can be reused. Defaults to 10.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	VIPPercent int32 `json:"vipPercent,omitempty"`
	// Namespaces is the maximum number of namespaces that createNamespaces may create for
	// the Link. Existing namespaces with the label of the Link count. The controller
	// never deletes a namespace. Defaults to 20.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	Namespaces int32 `json:"namespaces,omitempty"`
}

// Defaults of ImportQuotas: the controller uses them for fields that are zero.
const (
	DefaultQuotaServices             = 1000
	DefaultQuotaServicesPerNamespace = 500
	DefaultQuotaPorts                = 16
	DefaultQuotaHostnames            = 64
	DefaultQuotaVIPPercent           = 10
	DefaultQuotaNamespaces           = 20
)

// NamespaceRule maps a namespace of the peer to a local namespace.
type NamespaceRule struct {
	// Name is the namespace of the peer.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
	// As is the local namespace of the mirrors. Defaults to name.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	As string `json:"as,omitempty"`
}

// CopyAll is the item of CopyLabels and CopyAnnotations that selects every key, except
// the keys that control the behavior of other controllers.
const CopyAll = "All"

// DefaultTemplate is the value that the controller uses if Template is empty.
const DefaultTemplate = "{service}-{link}"
