package mirror

import (
	"fmt"
	"strings"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// Problem says why one mirror does not stand, wholly or in part. Its reason is
// one of Reasons and its message is the same as long as its cause is.
type Problem = v1alpha1.ServiceProblem

// Reasons of a Problem.
const (
	// NameTaken: an object that Causeway did not make has the mirror's name.
	NameTaken = ledger.NameTaken
	// NamespaceMissing: the mirror's namespace does not exist or is going away.
	NamespaceMissing = "NamespaceMissing"
	// NamespaceNotAllowed: nothing is mirrored into that namespace.
	NamespaceNotAllowed = "NamespaceNotAllowed"
	// ProtocolUnsupported: some of the peer's ports are not carried and left out.
	ProtocolUnsupported = catalog.ProtocolUnsupported
	// NoTCPPort: none of the peer's ports is carried.
	NoTCPPort = catalog.NoTCPPort
	// Rejected: the API server does not accept the mirror.
	Rejected = "Rejected"
)

// Reasons is the closed list of reasons, sorted.
var Reasons = []string{NameTaken, NamespaceMissing, NamespaceNotAllowed, NoTCPPort, ProtocolUnsupported, Rejected}

// Wants decides what a Link's rules make of its peer's catalog: what to ask the
// ledger for, sorted. own is Causeway's namespace. A Link without import rules
// wants nothing, whatever has been heard of the peer.
func Wants(link *v1alpha1.Link, own string, peer Peer) (ledger.Peer, []Problem) {
	out := ledger.Peer{Link: link.Name, TrustDomain: link.Spec.TrustDomain, Complete: complete(link, peer)}
	if !link.Spec.Import.All() {
		return out, nil
	}
	var problems []Problem
	for _, k := range sortedKeys(peer.Services) {
		s := peer.Services[k]
		if !allowed(s.Namespace, own) {
			problems = append(problems, notAllowed(k))
			continue
		}
		w := want(link, s)
		switch {
		case len(w.Ports) == 0:
			problems = append(problems, problem(k, NoTCPPort, "none of the Service's ports is carried: it is not mirrored"))
			continue
		case len(w.Ports) < len(s.Ports):
			problems = append(problems, problem(k, ProtocolUnsupported, "only the Service's TCP ports are mirrored"))
		}
		out.Mirrors = append(out.Mirrors, w)
	}
	return out, problems
}

// complete reports whether what peer lacks shall not stand: its catalog is whole,
// or nothing of it is wanted.
func complete(link *v1alpha1.Link, peer Peer) bool {
	return peer.Complete || !link.Spec.Import.All()
}

func want(link *v1alpha1.Link, s catalog.Service) ledger.MirrorWant {
	w := ledger.MirrorWant{
		Namespace: s.Namespace, Service: s.Name,
		MirrorNamespace: s.Namespace, MirrorName: catalog.MirrorName(s.Name, link.Name),
		Identities: s.Identities,
	}
	for _, p := range s.Ports {
		if p.Carried() {
			w.Ports = append(w.Ports, ledger.PortWant{Name: p.Name, Protocol: p.Protocol, Port: p.Port, AppProtocol: p.AppProtocol, Route: p.Route})
		}
	}
	return w
}

// allowed reports whether mirrors may be made in a namespace. own is Causeway's.
func allowed(namespace, own string) bool {
	return namespace != own && !strings.HasPrefix(namespace, "kube-")
}

func notAllowed(k catalog.Key) Problem {
	return problem(k, NamespaceNotAllowed, "nothing is mirrored into kube-* namespaces or Causeway's own")
}

func problem(k catalog.Key, reason, format string, args ...any) Problem {
	return Problem{Service: k.String(), Reason: reason, Message: fmt.Sprintf(format, args...)}
}
