// Package admit decides whether a caller of a linked cluster may reach a pod of this
// node. Decide decides each new session and exchange; DecideRequest decides each HTTP
// request; Keep decides the sessions and exchanges that are open, again whenever the state
// changes.
//
//	verified identity, name in HELLO, pod in header ─┐
//	                                                 ├─▶ Decide, Keep ─▶ Decision: a target, or a reason and a code
//	Links, exports, policies, pods (State) ──────────┘
//
// What always holds:
//   - They are pure: they use no clock and no network, and equal arguments give equal
//     decisions.
//   - A rule with methods or paths admits only requests that DecideRequest was asked
//     about. Decide admits a session of requests if some request could be admitted, and
//     no opaque exchange on account of such a rule.
//   - What Decide admits, Keep keeps. Keep asks only what must end an open connection:
//     the Link, whether the Service is still exported to it, whether the pod has ended,
//     and policies. It asks neither selectors nor ports nor readiness, so that an open
//     connection survives what it would survive within a cluster. The isolation of a pod
//     that no longer backs the Service counts as it was at last.
//   - The default is deny: the zero State and the zero Request are refused.
//   - The name in HELLO alone says what is called, and the verified identity alone says
//     who calls. The label and the header have no say; the header's pod must fit the
//     name.
//   - Every refusal has a Reason of a closed list, for the operator, and a Code, for
//     the peer. The Code does not distinguish a hidden Service from one that does not
//     exist.
package admit

import (
	"slices"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// Request is one question: may this caller reach this pod as this service?
type Request struct {
	// Caller is the identity proven in the handshake, never one merely claimed.
	Caller identity.Name
	// Namespace, Service and Port are HELLO's.
	Namespace, Service string
	Port               uint32
	// PodUID is the header's.
	PodUID string
	// HTTP: what is asked for carries HTTP requests, and DecideRequest decides each of
	// them. Otherwise it is opaque.
	HTTP bool
	// WasIsolated is what Isolated reported when the pod last backed the Service with the
	// port. Only Keep uses it, once the pod does so no more.
	WasIsolated bool
}

// Decision is the answer. The zero value is a refusal.
type Decision struct {
	Allowed bool
	Reason  Reason
	// Code is what the peer receives: Code_OK if Allowed.
	Code tunnel.Code
	// Link is the caller's link, for logs and leases; the zero value if it is not known.
	Link Link
	// Policy names the policy that admits the caller; empty if none was needed.
	Policy string
	// Pod and Target, its container port, are where to dial. Only if Allowed.
	Pod    Pod
	Target uint32
}

// Reason is the reason of a decision. The list is closed.
type Reason uint8

// The reasons, in the order in which Decide checks them.
const (
	// NoState: no complete state has arrived yet.
	NoState Reason = iota
	// NoLink: no Link has the caller's trust domain.
	NoLink
	// CallerIsProbe: the caller is a peer's agent that tests the path, and no workload.
	CallerIsProbe
	// AmbiguousLink: two Links have it, so neither may vouch for it.
	AmbiguousLink
	// LinkSuspended: the Link's owner stopped new connections.
	LinkSuspended
	// NoExport: the service is not exported, or its namespace has no pods on this node.
	NoExport
	// LinkNotAdmitted: the Link's export rules do not admit the service.
	LinkNotAdmitted
	// NoPort: the exported service has no such port.
	NoPort
	// NoPod: the pod is not known on this node.
	NoPod
	// PodDead: the pod has finished.
	PodDead
	// PodForeign: the pod is not in the service's own namespace.
	PodForeign
	// PodNotBacking: the pod does not back the service with this port.
	PodNotBacking
	// PodTerminating: the pod takes no new connections.
	PodTerminating
	// PolicyDenies: policies select the service and none names the caller.
	PolicyDenies
	// RequestsOnly: the caller asks for an opaque connection, but policies admit only
	// certain requests of it, or the application gets identities in a field of requests.
	RequestsOnly
	// RequestDenied: policies admit only certain requests of the caller, and not this one.
	RequestDenied
	// PodIsolated: NetworkPolicies isolate the port of the pod, and no ExportPolicy
	// names the caller.
	PodIsolated
	// DefaultDenies: the Link denies by default, and no ExportPolicy selects the service.
	DefaultDenies
	// Admitted: the caller may.
	Admitted
)

var reasons = [...]struct {
	name string
	code tunnel.Code
}{
	NoState:         {"no_state", tunnel.Code_NOT_READY},
	NoLink:          {"no_link", tunnel.Code_NOT_EXPORTED},
	CallerIsProbe:   {"caller_is_probe", tunnel.Code_DENIED},
	AmbiguousLink:   {"ambiguous_link", tunnel.Code_NOT_EXPORTED},
	LinkSuspended:   {"link_suspended", tunnel.Code_DENIED},
	NoExport:        {"no_export", tunnel.Code_NOT_EXPORTED},
	LinkNotAdmitted: {"link_not_admitted", tunnel.Code_NOT_EXPORTED},
	NoPort:          {"no_port", tunnel.Code_NOT_EXPORTED},
	NoPod:           {"no_pod", tunnel.Code_NO_ENDPOINT},
	PodDead:         {"pod_dead", tunnel.Code_NO_ENDPOINT},
	PodForeign:      {"pod_foreign", tunnel.Code_NO_ENDPOINT},
	PodNotBacking:   {"pod_not_backing", tunnel.Code_NO_ENDPOINT},
	PodTerminating:  {"pod_terminating", tunnel.Code_NO_ENDPOINT},
	PolicyDenies:    {"policy_denies", tunnel.Code_DENIED},
	RequestsOnly:    {"requests_only", tunnel.Code_DENIED},
	RequestDenied:   {"request_denied", tunnel.Code_DENIED},
	PodIsolated:     {"pod_isolated", tunnel.Code_DENIED},
	DefaultDenies:   {"default_denies", tunnel.Code_DENIED},
	Admitted:        {"admitted", tunnel.Code_OK},
}

// String names the reason, as a metric's label.
func (r Reason) String() string { return reasons[r].name }

// Reasons returns all reasons, Admitted last, so that metrics can count each from zero.
func Reasons() []Reason {
	all := make([]Reason, len(reasons))
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// Decide answers a request from a state. A nil or zero state refuses everything. If r.HTTP
// is set, it admits the caller if some HTTP request of it could be admitted.
func Decide(r Request, s *State) Decision {
	d := Decision{}
	return d.withReason(d.decide(r, askedOf(r), s))
}

// DecideRequest answers for one HTTP request, with or without r.HTTP. normalPath is its
// path in normal form, as policies compare it; empty: it has none, so that no rule with
// paths admits it. What DecideRequest admits, Decide admits for a session of requests.
func DecideRequest(r Request, method, normalPath string, s *State) Decision {
	d := Decision{}
	return d.withReason(d.decide(r, asked{what: oneRequest, method: method, path: normalPath}, s))
}

// asked is what a caller asks for, as far as rules for requests are concerned.
type asked struct {
	what         askedKind
	method, path string // of oneRequest
}

type askedKind uint8

const (
	opaqueExchange askedKind = iota
	someRequest              // a session of requests
	oneRequest
)

func askedOf(r Request) asked {
	if r.HTTP {
		return asked{what: someRequest}
	}
	return asked{what: opaqueExchange}
}

// by decides on what is asked for by a rule that names the caller.
func (a *asked) by(rule *RequestRule) Reason {
	switch {
	case a.what == someRequest, a.what == oneRequest && rule.matches(a.method, a.path):
		return Admitted
	case a.what == oneRequest:
		return RequestDenied
	}
	return RequestsOnly
}

// Keep decides whether a connection that Decide has admitted may stay open. Its Decision
// has no Pod and no Target.
//
// A NetworkPolicy isolates ports of a pod. Which one the Service's port was is known only
// while the pod backs the Service. After that its isolation counts as it was at last, so
// that an ExportPolicy which is deleted ends the connection in both cases.
func Keep(r Request, s *State) Decision {
	d := Decision{}
	return d.withReason(d.keep(r, askedOf(r), s))
}

// Isolated reports whether NetworkPolicies isolate the port of the pod. It returns false
// for ok if the pod does not back the Service with the port, because then nothing is
// known.
func Isolated(r Request, s *State) (isolated, ok bool) {
	if s == nil {
		return false, false
	}
	export := s.exports[serviceName{r.Namespace, r.Service}]
	return export.isolates(r), export.backs(r)
}

func (e *Export) isolates(r Request) bool { return slices.Contains(e.Isolated[r.PodUID], r.Port) }

func (e *Export) backs(r Request) bool { return e.Backing[r.PodUID][r.Port] != 0 }

// withReason returns the decision with a reason.
func (d Decision) withReason(r Reason) Decision {
	d.Reason = r
	d.Allowed = d.Reason == Admitted
	d.Code = reasons[d.Reason].code
	if !d.Allowed {
		d.Policy, d.Pod, d.Target = "", Pod{}, 0
	}
	return d
}

// decide returns the reason, and fills in what it finds on the way.
func (d *Decision) decide(r Request, a asked, s *State) Reason {
	export, reason := d.findExport(r, s)
	switch {
	case d.Link.Suspended:
		return LinkSuspended
	case reason != Admitted:
		return reason
	case !slices.Contains(export.Ports, r.Port):
		return NoPort
	}
	// Policies come first: whom they refuse must not learn about endpoints.
	if reason := d.checkPolicies(r, a, export); reason != Admitted {
		return reason
	}
	return d.findPod(r, s, export)
}

// keep returns the reason.
func (d *Decision) keep(r Request, a asked, s *State) Reason {
	export, reason := d.findExport(r, s)
	if reason != Admitted {
		return reason
	}
	switch pod, ok := s.pods[r.PodUID]; {
	case !ok:
		return NoPod
	case !pod.Live:
		return PodDead
	}
	return d.checkPolicies(r, a, export)
}

// findExport finds the caller's Link, and the Service if it is exported to it.
func (d *Decision) findExport(r Request, s *State) (Export, Reason) {
	if s == nil || !s.whole {
		return Export{}, NoState
	}
	links := s.links[r.Caller.TrustDomain()]
	switch {
	case r.Caller.IsZero() || len(links) == 0:
		return Export{}, NoLink
	case r.Caller.IsProbe():
		return Export{}, CallerIsProbe
	case len(links) > 1:
		return Export{}, AmbiguousLink
	}
	d.Link = links[0]
	export, ok := s.exports[serviceName{r.Namespace, r.Service}]
	switch {
	case !ok:
		return Export{}, NoExport
	case !slices.Contains(export.Links, d.Link.Name):
		return Export{}, LinkNotAdmitted
	}
	return export, Admitted
}

// findPod checks whether the pod may stand for the service here and now.
func (d *Decision) findPod(r Request, s *State, export Export) Reason {
	pod, ok := s.pods[r.PodUID]
	switch {
	case !ok:
		return NoPod
	case !pod.Live:
		return PodDead
	case pod.Namespace != r.Namespace:
		return PodForeign
	}
	target, ok := export.Backing[r.PodUID][r.Port]
	switch {
	case !ok || target == 0:
		return PodNotBacking
	case pod.Terminating && !export.Accepts[r.PodUID]:
		return PodTerminating
	}
	d.Pod, d.Target = pod, target
	return Admitted
}

// checkPolicies checks whether an ExportPolicy must name the caller, and whether one
// does.
func (d *Decision) checkPolicies(r Request, a asked, export Export) Reason {
	refused := PolicyDenies
	for i := range export.Policies {
		p := &export.Policies[i]
		for _, c := range p.Callers {
			if c.Matches(d.Link.Name, r.Caller) {
				d.Policy = p.Name
				return Admitted
			}
		}
		for j := range p.Requests {
			if !p.Requests[j].Caller.Matches(d.Link.Name, r.Caller) {
				continue
			}
			if refused = a.by(&p.Requests[j]); refused == Admitted {
				d.Policy = p.Name
				return Admitted
			}
		}
	}
	switch {
	case len(export.Policies) > 0:
		return refused
	case export.isolates(r), r.WasIsolated && !export.backs(r):
		return PodIsolated
	case d.Link.DefaultDeny:
		return DefaultDenies
	}
	return Admitted
}
