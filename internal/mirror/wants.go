package mirror

import (
	"cmp"
	"fmt"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
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
	// TooManyPorts: the peer's Service has more than the Link's quota of ports.
	TooManyPorts = catalog.TooManyPorts
	// Flapping: the source's readiness keeps changing.
	Flapping = "Flapping"
	// InvalidSelector: the Link's rules have a selector that cannot be read.
	InvalidSelector = catalog.InvalidSelector
	// Rejected: the API server does not accept the mirror.
	Rejected = "Rejected"
)

// Reasons is the closed list of reasons, sorted.
var Reasons = []string{
	Flapping, InvalidSelector, NameTaken, NamespaceMissing, NamespaceNotAllowed, NoTCPPort, ProtocolUnsupported, Rejected, TooManyPorts,
}

// Home is what of this cluster decides on what is mirrored.
type Home struct {
	// Own is Causeway's namespace.
	Own string
	// Namespaces holds the labels of every namespace, by its name. Without them a
	// Link's namespaceSelector chooses none.
	Namespaces map[string]map[string]string
}

// Wants decides what a Link's rules make of its peer's catalog: what to ask the
// ledger for, sorted. A Link without import rules wants nothing, whatever has been
// heard of the peer.
func (h Home) Wants(link *v1alpha1.Link, peer Peer) (ledger.Peer, []Problem) {
	out := ledger.Peer{Link: link.Name, TrustDomain: link.Spec.TrustDomain, Complete: complete(link, peer)}
	if link.Spec.Import == nil {
		return out, nil
	}
	r, err := readRules(link.Spec.Import)
	if err != nil {
		return out, []Problem{{Reason: InvalidSelector, Message: fmt.Sprintf("the Link's import rules let nothing in: %v", err)}}
	}
	quotas := quotasOf(link.Spec.Import.Quotas)
	out.Quotas = ledger.Quotas{
		Mirrors: int(quotas.Services), PerNamespace: int(quotas.ServicesPerNamespace), Hostnames: int(quotas.Hostnames), VIPPercent: int(quotas.VIPPercent),
	}
	var problems []Problem
	for _, k := range sortedKeys(peer.Services) {
		s := peer.Services[k]
		namespace, listed := r.here(s.Namespace)
		if !listed || !r.services.Matches(labels.Set(s.Labels)) {
			continue
		}
		if reason, message := h.refusal(r, namespace); reason != "" {
			if message != "" {
				problems = append(problems, problem(k, reason, "%s", message))
			}
			continue
		}
		w := want(link, r, namespace, s)
		switch {
		case len(w.Ports) == 0:
			problems = append(problems, problem(k, NoTCPPort, "none of the Service's ports is carried: it is not mirrored"))
			continue
		case len(w.Ports) > int(quotas.Ports):
			problems = append(problems, problem(k, TooManyPorts, "the Service has more TCP ports than the Link's import quota of %d: it is not mirrored", quotas.Ports))
			continue
		case len(w.Ports) < len(s.Ports):
			problems = append(problems, problem(k, ProtocolUnsupported, "only the Service's TCP ports are mirrored"))
		}
		out.Mirrors = append(append(out.Mirrors, w), companions(link, r, w, s)...)
	}
	return out, problems
}

// quotasOf returns the quotas that hold where q sets none.
func quotasOf(q *v1alpha1.ImportQuotas) v1alpha1.ImportQuotas {
	if q == nil {
		q = &v1alpha1.ImportQuotas{}
	}
	return v1alpha1.ImportQuotas{
		Services:             cmp.Or(q.Services, v1alpha1.DefaultQuotaServices),
		ServicesPerNamespace: cmp.Or(q.ServicesPerNamespace, v1alpha1.DefaultQuotaServicesPerNamespace),
		Ports:                cmp.Or(q.Ports, v1alpha1.DefaultQuotaPorts),
		Hostnames:            cmp.Or(q.Hostnames, v1alpha1.DefaultQuotaHostnames),
		VIPPercent:           cmp.Or(q.VIPPercent, v1alpha1.DefaultQuotaVIPPercent),
	}
}

// refusal tells why nothing is mirrored into one of our namespaces; no reason: it
// may be. Without a message the Link's rules mean it so.
func (h Home) refusal(r rules, namespace string) (reason, message string) {
	known, exists := h.Namespaces[namespace]
	switch {
	case !r.allowed(namespace, h.Own):
		return NamespaceNotAllowed, notAllowed
	case r.namespaces.Empty():
		return "", ""
	case !exists:
		return NamespaceMissing, "the namespace does not exist here, so the Link's namespaceSelector does not choose it"
	case !r.namespaces.Matches(labels.Set(known)):
		return NamespaceNotAllowed, ""
	}
	return "", ""
}

// complete reports whether what peer lacks shall not stand: its catalog is whole,
// or nothing of it is wanted.
func complete(link *v1alpha1.Link, peer Peer) bool {
	return peer.Complete || link.Spec.Import == nil
}

func want(link *v1alpha1.Link, r rules, namespace string, s catalog.Service) ledger.MirrorWant {
	w := ledger.MirrorWant{
		Namespace: s.Namespace, Service: s.Name,
		MirrorNamespace: namespace, MirrorName: catalog.MirrorName(r.template, s.Namespace, s.Name, link.Name),
		Identities: s.Identities, Headless: s.Headless, Named: len(s.Hosts) > 0, AffinitySeconds: s.SessionAffinitySeconds,
	}
	for _, p := range s.Ports {
		if p.Carried() {
			w.Ports = append(w.Ports, ledger.PortWant{Name: p.Name, Protocol: p.Protocol, Port: p.Port, AppProtocol: p.AppProtocol, Route: p.Route})
		}
	}
	return w
}

// companions are the mirrors of a headless Service's named pods. Each is an
// ordinary mirror, whose name the pod's makes as a Service's would; w is the
// mirror that lists them.
func companions(link *v1alpha1.Link, r rules, w ledger.MirrorWant, s catalog.Service) []ledger.MirrorWant {
	out := make([]ledger.MirrorWant, 0, len(s.Hosts))
	w.Headless, w.Named, w.AffinitySeconds = false, false, 0
	for _, h := range s.Hosts {
		w.Hostname, w.MirrorName = h.Name, catalog.MirrorName(r.template, s.Namespace, h.Name, link.Name)
		out = append(out, w)
	}
	return out
}

const notAllowed = "nothing is mirrored into kube-* namespaces or Causeway's own, unless the Link's import rules list them"

const namespaceMissing = "the namespace does not exist here: the mirror appears when it does"

func problem(k catalog.Key, reason, format string, args ...any) Problem {
	return Problem{Service: k.String(), Reason: reason, Message: fmt.Sprintf(format, args...)}
}
