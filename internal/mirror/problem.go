package mirror

import (
	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// Problem says why one mirror does not stand, wholly or in part. Its reason is one of
// Reasons. Its message stays the same as long as the cause does.
type Problem = v1alpha1.ServiceProblem

// Reasons of a Problem.
const (
	// NameTaken: an object that Causeway did not make has the mirror's name.
	NameTaken = ledger.NameTaken
	// NamespaceMissing: the mirror's namespace does not exist or is being deleted.
	NamespaceMissing = "NamespaceMissing"
	// NamespaceNotAllowed: the rules allow no mirror in that namespace.
	NamespaceNotAllowed = "NamespaceNotAllowed"
	// ProtocolUnsupported: some of the peer's ports are not carried and are left out.
	ProtocolUnsupported = catalog.ProtocolUnsupported
	// NoTCPPort: none of the peer's ports is carried.
	NoTCPPort = catalog.NoTCPPort
	// TooManyPorts: the peer's Service has more ports than the Link's quota allows.
	TooManyPorts = catalog.TooManyPorts
	// Flapping: the source's readiness keeps changing.
	Flapping = "Flapping"
	// ChangesTooOften: the source's ports, labels or annotations keep changing.
	ChangesTooOften = "ChangesTooOften"
	// InvalidSelector: the Link's rules have a selector that cannot be parsed.
	InvalidSelector = catalog.InvalidSelector
	// QuotaReached: the Link's quota allows no further namespace.
	QuotaReached = ledger.QuotaReached
	// ManyServicesInNamespace: a namespace holds so many mirrors that its pods suffer.
	ManyServicesInNamespace = "ManyServicesInNamespace"
	// Rejected: the API server does not accept the mirror.
	Rejected = "Rejected"
)

// Reasons is the closed list of reasons, sorted.
var Reasons = []string{
	ChangesTooOften,
	Flapping,
	InvalidSelector,
	ManyServicesInNamespace,
	NameTaken,
	NamespaceMissing,
	NamespaceNotAllowed,
	NoTCPPort,
	ProtocolUnsupported,
	QuotaReached, Rejected, TooManyPorts,
}

const (
	notAllowed = "nothing is mirrored into kube-* namespaces or Causeway's own namespace, " +
		"unless the Link's import rules list them"
	namespaceMissing = "the namespace does not exist here: create it to get the mirror"
	notChosen        = "the namespace does not exist here, so the Link's namespaceSelector does not choose it"
	noCarriedPort    = "none of the Service's ports is carried: it is not mirrored"
	onlyTCP          = "only the Service's TCP ports are mirrored"
	serviceInTheWay  = "a Service of that name exists and is not Causeway's: " +
		"rename or delete it to get the mirror"
	sliceInTheWay = "an EndpointSlice of that name exists and is not Causeway's: delete it to get the mirror"
	earlierLink   = "a mirror of an earlier Link of this name still exists: " +
		"it is created again once Kubernetes has deleted that one"
	keepsFlapping = "the peer's Service keeps losing its last ready pod: " +
		"the mirror stays not ready for at least 5 s each time"
	keepsChanging = "the peer's Service, or its mirror in this cluster, keeps changing: " +
		"the mirror is updated at most once every 5 s"
)

func problem(k catalog.Key, reason, message string) Problem {
	return Problem{Service: k.String(), Reason: reason, Message: message}
}
