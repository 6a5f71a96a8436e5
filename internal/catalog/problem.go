package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Problem says why one Service, or a part of it, does not cross. Its reason is
// one of Reasons and its message is the same as long as its cause is.
type Problem = v1alpha1.ServiceProblem

// Reasons of a Problem on the exporting side.
const (
	// ExternalNameUnsupported: a Service of type ExternalName has no pods.
	ExternalNameUnsupported = "ExternalNameUnsupported"
	// NoPorts: the Service has no port.
	NoPorts = "NoPorts"
	// NoTCPPort: the Service has ports, but none that is TCP.
	NoTCPPort = "NoTCPPort"
	// ProtocolUnsupported: some ports are not TCP and are left out.
	ProtocolUnsupported = "ProtocolUnsupported"
	// TooManyPorts: the Service has more than MaxPorts TCP ports.
	TooManyPorts = "TooManyPorts"
	// SelectorMissing: without a selector no pod is the Service's own.
	SelectorMissing = "SelectorMissing"
	// ForeignEndpoint: an EndpointSlice names something that is no pod of the Service's own.
	ForeignEndpoint = "ForeignEndpoint"
	// HostNetworkUnsupported: pods on the host network are left out.
	HostNetworkUnsupported = "HostNetworkUnsupported"
	// MirrorNotExported: a mirror was labelled for export.
	MirrorNotExported = "MirrorNotExported"
	// ServiceMissing: a ServiceExport names no Service.
	ServiceMissing = "ServiceMissing"
	// TooManyHostnames: the headless Service has more than MaxHosts named pods.
	TooManyHostnames = "TooManyHostnames"
	// MetadataTooLarge: the Service has more labels and annotations than peers are shown.
	MetadataTooLarge = "MetadataTooLarge"
	// OwnNamespace: a Service of Causeway's own namespace was labelled for export.
	OwnNamespace = "OwnNamespace"
)

// Reasons of a Problem on either side.
const (
	// TooManyIdentities: more than MaxIdentities ServiceAccounts back the Service.
	TooManyIdentities = "TooManyIdentities"
	// InvalidSelector: the rules of a Link have a selector that cannot be read.
	InvalidSelector = "InvalidSelector"
)

// Reasons of a Problem on the importing side.
const (
	// InvalidName: the peer's Service has a name that none can have.
	InvalidName = "InvalidName"
	// InvalidPorts: the peer's Service has ports that none can have.
	InvalidPorts = "InvalidPorts"
	// InvalidAffinity: the peer's Service has an unknown session affinity.
	InvalidAffinity = "InvalidAffinity"
	// InvalidHostnames: the peer's Service has named pods that none can have.
	InvalidHostnames = "InvalidHostnames"
	// InvalidMetadata: the peer's Service has labels or annotations that none can have.
	InvalidMetadata = "InvalidMetadata"
	// ForeignIdentity: the peer names identities that it cannot vouch for.
	ForeignIdentity = "ForeignIdentity"
)

// Reasons is the closed list of what a Problem of this package may be, sorted.
var Reasons = []string{
	ExternalNameUnsupported, ForeignEndpoint, ForeignIdentity, HostNetworkUnsupported,
	InvalidAffinity, InvalidHostnames, InvalidMetadata, InvalidName, InvalidPorts, InvalidSelector, MetadataTooLarge, MirrorNotExported,
	NoPorts, NoTCPPort, OwnNamespace, ProtocolUnsupported, SelectorMissing, ServiceMissing, TooManyHostnames, TooManyIdentities, TooManyPorts,
}

// problems gathers Problems. The zero value is empty.
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
		return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message))
	})
}

// clip makes a stranger's word fit for a status: printable and at most as long as a DNS label.
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
