package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Problem says why a Service, or a part of it, does not cross a Link. Its reason is one
// of Reasons. Its message stays the same while its cause does.
type Problem = v1alpha1.ServiceProblem

// Reasons of a Problem on the exporting side.
const (
	// ExternalNameUnsupported: a Service of type ExternalName has no pods.
	ExternalNameUnsupported = "ExternalNameUnsupported"
	// NoPorts: the Service has no port.
	NoPorts = "NoPorts"
	// NoTCPPort: the Service has ports, but no TCP port.
	NoTCPPort = "NoTCPPort"
	// ProtocolUnsupported: some ports are not TCP and are left out.
	ProtocolUnsupported = "ProtocolUnsupported"
	// TooManyPorts: the Service has more than MaxPorts TCP ports.
	TooManyPorts = "TooManyPorts"
	// SelectorMissing: the Service has no selector, and its owner did not opt in to
	// endpoints that EndpointSlices name.
	SelectorMissing = "SelectorMissing"
	// ForeignEndpoint: an EndpointSlice names an endpoint that is not the Service's own.
	ForeignEndpoint = "ForeignEndpoint"
	// HostNetworkUnsupported: pods on the host network are left out.
	HostNetworkUnsupported = "HostNetworkUnsupported"
	// MirrorNotExported: a label or a ServiceExport exports a mirror.
	MirrorNotExported = "MirrorNotExported"
	// ServiceMissing: a ServiceExport names a Service that does not exist.
	ServiceMissing = "ServiceMissing"
	// TooManyHostnames: the headless Service has more than MaxHosts named pods.
	TooManyHostnames = "TooManyHostnames"
	// MetadataTooLarge: the Service has more labels and annotations than peers see.
	MetadataTooLarge = "MetadataTooLarge"
	// OwnNamespace: a label or a ServiceExport exports a Service in Causeway's namespace.
	OwnNamespace = "OwnNamespace"
	// InvalidTrafficSettings: an annotation of the Service with traffic settings cannot
	// be parsed.
	InvalidTrafficSettings = "InvalidTrafficSettings"
	// IdentityForgeable: the application receives its callers' identities, and no
	// NetworkPolicy keeps pods of its own cluster from claiming one.
	IdentityForgeable = "IdentityForgeable"
	// NetworkPolicyIsolates: NetworkPolicies isolate ports of the Service's pods, and no
	// ExportPolicy names the callers from linked clusters.
	NetworkPolicyIsolates = "NetworkPolicyIsolates"
)

// Reasons of a Problem on either side.
const (
	// TooManyIdentities: more than MaxIdentities ServiceAccounts back the Service.
	TooManyIdentities = "TooManyIdentities"
	// InvalidSelector: the rules of a Link have an invalid selector.
	InvalidSelector = "InvalidSelector"
)

// Reasons of a Problem on the importing side.
const (
	// InvalidName: the peer's Service has a name that no Service can have.
	InvalidName = "InvalidName"
	// InvalidPorts: the peer's Service has ports that no Service can have.
	InvalidPorts = "InvalidPorts"
	// InvalidAffinity: the peer's Service has an unknown session affinity.
	InvalidAffinity = "InvalidAffinity"
	// InvalidHostnames: the peer's Service has named pods that no Service can have.
	InvalidHostnames = "InvalidHostnames"
	// InvalidMetadata: the peer's Service has labels or annotations that Kubernetes
	// refuses.
	InvalidMetadata = "InvalidMetadata"
	// ForeignIdentity: the peer names identities for which it cannot vouch.
	ForeignIdentity = "ForeignIdentity"
)

// Reasons lists every reason of a Problem of this package, sorted.
var Reasons = []string{
	ExternalNameUnsupported, ForeignEndpoint, ForeignIdentity, HostNetworkUnsupported,
	IdentityForgeable,
	InvalidAffinity, InvalidHostnames, InvalidMetadata, InvalidName, InvalidPorts, InvalidSelector,
	InvalidTrafficSettings,
	MetadataTooLarge, MirrorNotExported, NetworkPolicyIsolates, NoPorts, NoTCPPort, OwnNamespace,
	ProtocolUnsupported, SelectorMissing, ServiceMissing, TooManyHostnames, TooManyIdentities, TooManyPorts,
}

// problems collects Problems. The zero value is empty.
type problems struct {
	list []Problem
}

func (ps *problems) add(k Key, reason, format string, args ...any) {
	ps.list = append(ps.list, Problem{
		Service: clip(k.Namespace) + "/" + clip(k.Name),
		Reason:  reason,
		Message: fmt.Sprintf(format, args...),
	})
}

// sorted returns the Problems in order, each once.
func (ps *problems) sorted() []Problem {
	SortProblems(ps.list)
	return slices.Compact(ps.list)
}

// SortProblems orders list by service, reason and message, in place.
func SortProblems(list []Problem) {
	slices.SortFunc(list, func(a, b Problem) int {
		return cmp.Or(
			strings.Compare(a.Service, b.Service),
			strings.Compare(a.Reason, b.Reason),
			strings.Compare(a.Message, b.Message),
		)
	})
}

// clip makes text from a peer fit for a status: printable ASCII, no longer than a DNS
// label.
func clip(s string) string {
	const most = 63
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
	return s
}
