package admit

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// State is what decisions are made from. It is immutable. The zero value means that no complete
// state has arrived yet.
type State struct {
	whole   bool
	links   map[string][]Link // by trust domain
	exports map[serviceName]Export
	pods    map[string]Pod // by UID
}

type serviceName struct{ namespace, name string }

// Link is a linked peer.
type Link struct {
	Name, UID   string
	TrustDomain string
	// Suspended: no new connections are admitted; open ones go on.
	Suspended bool
	// DefaultDeny: without an ExportPolicy no caller of the Link is admitted.
	DefaultDeny bool
}

// Export is an exported Service whose namespace has pods on this node.
type Export struct {
	Namespace, Service string
	// Ports are the Service's port numbers.
	Ports []uint32
	// Links are the names of the Links whose export rules admit the Service.
	Links []string
	// Policies are those that select the Service. If there is none, the Link's default decides.
	Policies []Policy
	// Backing holds the container ports by Service port, by the UID of a pod on this node.
	Backing map[string]map[uint32]uint32
	// Accepts holds the pods, by UID, that take new connections: those that are ready, or that
	// are terminating and still serve while none is ready (KEP-1669).
	Accepts map[string]bool
	// Isolated holds, by the UID of a pod, the Service ports that NetworkPolicies do not open to
	// every source.
	Isolated map[string][]uint32
}

// Policy names who may call. A policy without callers and request rules admits no caller.
type Policy struct {
	Name string
	// Callers may make every call.
	Callers []Caller
	// Requests name callers that may make certain requests and no other call.
	Requests []RequestRule
}

// RequestRule admits the requests of a caller whose method and path both match. It admits
// no opaque connection, even if it has neither methods nor paths.
type RequestRule struct {
	Caller Caller
	// Methods are the methods, case-sensitive; empty: all.
	Methods []string
	// Paths are the paths; empty: all, also those without a normal form.
	Paths []Path
}

// matches reports whether the rule admits a request of a caller that it names. The path
// is in normal form; empty: it has none.
func (r *RequestRule) matches(method, path string) bool {
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, method) {
		return false
	}
	return len(r.Paths) == 0 || slices.ContainsFunc(r.Paths, func(p Path) bool { return p.Matches(path) })
}

// Path matches paths in normal form. Exactly one field is set. The zero value matches no
// path.
type Path struct {
	// Exact is the whole path.
	Exact string
	// Prefix is the path's first segments. A slash at its end has no meaning.
	Prefix string
}

// Matches reports whether p matches a path in normal form. It matches no empty path.
func (p Path) Matches(path string) bool {
	switch {
	case path == "" || path[0] != '/':
		return false
	case p.Exact != "":
		return path == p.Exact
	case p.Prefix == "":
		return false
	}
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(p.Prefix, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// Caller matches a workload that equals it in every field that is not empty. The zero value
// matches no workload.
type Caller struct {
	Link           string
	Namespace      string
	ServiceAccount string
	SPIFFEID       string
}

// Matches reports whether c names the workload n that comes by link.
func (c Caller) Matches(link string, n identity.Name) bool {
	if c == (Caller{}) {
		return false
	}
	fits := func(want, got string) bool { return want == "" || want == got }
	return fits(c.Link, link) && fits(c.Namespace, n.Namespace()) &&
		fits(c.ServiceAccount, n.ServiceAccount()) &&
		(c.SPIFFEID == "" || c.SPIFFEID == n.String()) // String allocates
}

// Pod is a pod of this node.
type Pod struct {
	UID             string
	Namespace, Name string
	IPs             []netip.Addr
	// Live: neither Succeeded nor Failed.
	Live        bool
	Terminating bool
}

// NewState returns a complete state. It keeps what the slices hold, so the caller must not change
// it afterwards. Of two exports of one name, or two pods of one UID, the later one counts.
func NewState(links []Link, exports []Export, pods []Pod) *State {
	s := &State{
		whole:   true,
		links:   make(map[string][]Link, len(links)),
		exports: make(map[serviceName]Export, len(exports)),
		pods:    make(map[string]Pod, len(pods)),
	}
	for _, l := range links {
		s.links[l.TrustDomain] = append(s.links[l.TrustDomain], l)
	}
	for _, e := range exports {
		s.exports[serviceName{e.Namespace, e.Service}] = e
	}
	for _, p := range pods {
		s.pods[p.UID] = p
	}
	return s
}
