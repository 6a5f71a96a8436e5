package agent

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// state is one whole view from the controller without the Links that were deleted. It is
// immutable: a new view makes a new state. The new one shares what was parsed from
// resources that have not changed.
type state struct {
	// expired: it admits no new connection.
	expired bool
	// held: it comes from an earlier process, and no controller has answered since.
	held bool
	// view is what it was made of, without deleted Links. revokedDropped: there
	// were deleted Links.
	view           nodestream.View
	revokedDropped bool
	trustDomain    string
	issuers        [][]byte // of this cluster's own workloads, DER
	zone           string   // of this node; empty: not known
	hopKey         route.HopKey
	vips           []netip.Prefix
	links          map[string]*peer
	mirrors        map[netip.Addr]*mirror // nil: two frontends have the address
	pods           map[string]*pod        // by UID
	podsByAddr     map[netip.Addr][]*pod  // without those on the host network
	callers        map[account]bool       // those of live pods that can call or be called
	accepting      map[backingKey]bool    // pods that take new connections
	exportedPorts  map[exportedPortKey]exportedPort
	anchors        *identity.Anchors
	admission      *admit.State
	parsed         parsedResources
	// badRoutes are the routes that are not valid, of frontends that were not yet parsed.
	badRoutes []error
}

// peer is a linked cluster.
type peer struct {
	name, uid   string
	trustDomain string
	gateways    []string // the first healthy ones are
	healthy     int
	sealer      *route.Sealer
	issuers     []*x509.Certificate
	// suspended: the Link's owner stopped new connections; open ones go on.
	suspended bool
	// defaultDeny: without an ExportPolicy no caller of the peer is admitted here.
	defaultDeny bool
	// callers holds the local namespaces that may call; nil: every namespace may.
	callers map[string]bool
}

// checkNamespace returns why a pod of a local namespace may not open a new connection
// to the peer; nil if it may.
func (p *peer) checkNamespace(namespace string) error {
	switch {
	case p.suspended:
		return &refusal{reason: reasonSuspended, final: true, err: fmt.Errorf("Link %s is suspended", p.name)}
	case p.callers != nil && !p.callers[namespace]:
		return &refusal{reason: reasonCallerNotAllowed, final: true,
			err: fmt.Errorf("spec.import.callers of Link %s does not include namespace %s", p.name,
				namespace)}
	}
	return nil
}

// mirror is a peer's Service, or one named pod of it, that local pods call.
type mirror struct {
	name               string // namespace/name of the Service made here
	link               string
	namespace, service string // in the peer
	hostname           string // the one pod that callers want; empty: any
	identities         []identity.Name
	ports              map[int]mirrorPort // by listener index
	// affinity is how long a calling pod stays with the endpoint that it last had; 0:
	// not at all.
	affinity time.Duration
	// routedTo are the mirrors to which the routes of the ports send requests.
	routedTo []mirrorRef
}

// mirrorRef names a mirror of this cluster.
type mirrorRef struct{ namespace, name string }

// sameTarget reports whether m, which may be nil, stands for the same Service of the
// same peer as other.
func (m *mirror) sameTarget(other *mirror) bool {
	return m != nil && m.link == other.link && m.namespace == other.namespace &&
		m.service == other.service && m.hostname == other.hostname
}

type mirrorPort struct {
	number uint32
	route  uint32
	// appProtocol is what the exporter declares; it is for information.
	appProtocol string
	// protocol is what the exporter declares by an annotation, or else by appProtocol.
	protocol trafficsettings.Protocol
	// settings are those of the peer's Service, with this cluster's defaults.
	settings trafficsettings.Settings
	// routes are the rules for requests; nil: there are none.
	routes *portRoutes
}

// samePort reports whether p and q are the same port of the peer's Service.
func (p mirrorPort) samePort(q mirrorPort) bool { return p.number == q.number && p.route == q.route }

// exportedPort is a port of an exported Service whose namespace has pods on this node.
type exportedPort struct {
	appProtocol string
	// protocol is what the owner declares by an annotation, or else by appProtocol.
	protocol trafficsettings.Protocol
	// forwardIdentity is how the application learns who calls it.
	forwardIdentity trafficsettings.ForwardIdentity
}

// exportedPortKey names an exportedPort.
type exportedPortKey struct {
	namespace, service string
	port               uint32
}

// pod is a live pod of this node.
type pod struct {
	uid             string
	namespace, name string
	serviceAccount  string
	addrs           []netip.Addr
	hostNetwork     bool
	canary          bool // has no identity
	sandbox         int64
}

func (p *pod) account() account { return account{p.namespace, p.serviceAccount} }

// backingKey is a pod that backs a Service.
type backingKey struct{ namespace, service, pod string }

// linkOf returns the Link whose peer has a trust domain; nil if there is none, or more
// than one.
func (s *state) linkOf(trustDomain string) *peer {
	var found *peer
	for _, p := range s.links {
		if p.trustDomain == trustDomain {
			if found != nil {
				return nil
			}
			found = p
		}
	}
	return found
}

// isVIP reports whether addr is in a range of virtual IPs.
func (s *state) isVIP(addr netip.Addr) bool {
	for _, p := range s.vips {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
