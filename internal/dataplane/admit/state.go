package admit

import (
	"net/netip"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// State is what decisions are made from. It is immutable; the zero value stands for not having seen a whole
// state yet.
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
}

// Export is an exported Service with pods on this node.
type Export struct {
	Namespace, Service string
	// Ports are the Service's port numbers.
	Ports []uint32
	// Links are the names of the Links whose export rules admit the Service.
	Links []string
	// Policies are those that select the Service. None: whom the export rules admit.
	Policies []Policy
	// Backing are the container ports by Service port, by the UID of a pod on this node.
	Backing map[string]map[uint32]uint32
}

// Policy names who may call. One without callers admits nobody.
type Policy struct {
	Name    string
	Callers []Caller
}

// Caller matches a workload whose every field that is not empty here is equal. The zero value matches nobody.
type Caller struct {
	Link           string
	Namespace      string
	ServiceAccount string
	SPIFFEID       string
}

// Matches reports whether the caller names a workload that comes by a link.
func (c Caller) Matches(link string, n identity.Name) bool {
	if c == (Caller{}) {
		return false
	}
	fits := func(want, got string) bool { return want == "" || want == got }
	return fits(c.Link, link) && fits(c.Namespace, n.Namespace()) &&
		fits(c.ServiceAccount, n.ServiceAccount()) && fits(c.SPIFFEID, n.String())
}

// Pod is a pod of this node.
type Pod struct {
	UID             string
	Namespace, Name string
	IPs             []netip.Addr
	// Live: neither Succeeded nor Failed.
	Live        bool
	Terminating bool
	// Isolated: a NetworkPolicy isolates it for ingress.
	Isolated bool
}

// NewState returns a whole state. It keeps what the slices hold; the caller must not change it afterwards. Of
// two exports of one name, or two pods of one UID, the later holds.
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
