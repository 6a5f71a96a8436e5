package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// state is one whole view from the controller without the Links that were deleted. It is
// immutable: a new view makes a new state, in time proportional to the view.
type state struct {
	// expired: it admits no new connection.
	expired bool
	// held: it comes from an earlier process, and no controller has answered since.
	held bool
	// view is what it was made of, without deleted Links; less: there were deleted Links.
	view        nodestream.View
	less        bool
	trustDomain string
	issuers     [][]byte // of this cluster's own workloads, DER
	hopKey      route.HopKey
	vips        []netip.Prefix
	links       map[string]*peer
	mirrors     map[netip.Addr]*mirror // nil: two frontends have the address
	pods        map[string]*pod        // by UID
	podsByAddr  map[netip.Addr][]*pod  // without those on the host network
	callers     map[account]bool       // those of live pods that can call or be called
	accepting   map[backingKey]bool    // pods that take new connections
	anchors     *identity.Anchors
	admission   *admit.State
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

// admits returns why a pod of a local namespace may not open a new connection to the
// peer; nil if it may.
func (p *peer) admits(namespace string) error {
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
}

// means reports whether m, which may be nil, stands for the same Service of the same peer
// as other.
func (m *mirror) means(other *mirror) bool {
	return m != nil && m.link == other.link && m.namespace == other.namespace &&
		m.service == other.service && m.hostname == other.hostname
}

type mirrorPort struct {
	number uint32
	route  uint32
	// appProtocol is what the exporter declares; it is for information.
	appProtocol string
}

// leadsTo reports whether p and q are the same port of the peer's Service.
func (p mirrorPort) leadsTo(q mirrorPort) bool { return p.number == q.number && p.route == q.route }

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

var errNoCluster = errors.New("the controller's view has no resource for this cluster")

// newState makes a state from a view. It leaves out Links that revoked reports. It also
// leaves out what is not consistent, and the error names that. The state is nil only if
// the view has no valid Cluster.
func newState(view map[string]*wire.Resource, revoked func(uid string) bool) (*state, error) {
	s := &state{
		links: make(map[string]*peer), mirrors: make(map[netip.Addr]*mirror),
		pods: make(map[string]*pod), podsByAddr: make(map[netip.Addr][]*pod),
	}
	cluster := view["cluster"].GetCluster()
	if cluster == nil {
		return nil, errNoCluster
	}
	if err := s.addCluster(cluster); err != nil {
		return nil, err
	}
	var errs []error
	inOrder := slices.Sorted(maps.Keys(view)) // so that the same view gives the same error
	for _, key := range inOrder {
		if l := view[key].GetLink(); l != nil && !revoked(l.Uid) {
			errs = append(errs, s.addLink(l))
		}
	}
	for _, key := range inOrder {
		switch body := view[key].Body.(type) {
		case *wire.Resource_Frontend:
			errs = append(errs, s.addFrontend(body.Frontend))
		case *wire.Resource_Pod:
			s.addPod(body.Pod)
		}
	}
	s.callers, s.accepting = s.accounts(), acceptingIn(view)
	errs = append(errs, s.addAnchors())
	s.admission = admission(s, view)
	return s, errors.Join(errs...)
}

// without returns a view without the Links that revoked reports, and whether there are
// any.
func without(view nodestream.View, revoked func(uid string) bool) (nodestream.View, bool) {
	out := maps.Clone(view)
	maps.DeleteFunc(out, func(_ string, r *wire.Resource) bool {
		return r.GetLink() != nil && revoked(r.GetLink().Uid)
	})
	return out, len(out) < len(view)
}

func (s *state) addCluster(c *wire.Cluster) error {
	if len(c.HopKey) != len(s.hopKey) {
		return fmt.Errorf("this cluster: its hop key has %d bytes", len(c.HopKey))
	}
	s.trustDomain, s.hopKey, s.issuers = c.TrustDomain, route.HopKey(c.HopKey), c.Issuers
	for _, cidr := range c.VipCidrs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return fmt.Errorf("this cluster: its range of virtual IPs: %w", err)
		}
		s.vips = append(s.vips, p)
	}
	return nil
}

func (s *state) addLink(l *wire.Link) error {
	p := &peer{
		name:        l.Name,
		uid:         l.Uid,
		trustDomain: l.TrustDomain,
		suspended:   l.Suspended,
		defaultDeny: l.DefaultDeny,
	}
	if l.CallersRestricted {
		p.callers = make(map[string]bool, len(l.CallerNamespaces))
		for _, namespace := range l.CallerNamespaces {
			p.callers[namespace] = true
		}
	}
	var unhealthy []string
	for _, g := range l.Gateways {
		if g.Healthy {
			p.gateways = append(p.gateways, g.Address)
		} else {
			unhealthy = append(unhealthy, g.Address)
		}
	}
	p.healthy = len(p.gateways)
	p.gateways = append(p.gateways, unhealthy...)
	var keys []route.DatedKey
	for _, k := range l.DayKeys {
		if len(k.Key) == len(route.DayKey{}) {
			keys = append(keys, route.DatedKey{Day: k.Day, Key: route.DayKey(k.Key)})
		}
	}
	p.sealer = route.NewSealer(keys...)
	s.links[l.Name] = p
	if len(l.Issuers) == 0 {
		return nil // not known before the first catalog stream
	}
	issuers, err := identity.ParseIssuers(l.TrustDomain, l.Issuers)
	if err != nil {
		return fmt.Errorf("link %q: %w", l.Name, err)
	}
	p.issuers = issuers
	return nil
}

// addFrontend adds the mirror of a frontend. This version uses frontends that have
// exactly one tier with one backend.
func (s *state) addFrontend(f *wire.Frontend) error {
	name := f.Namespace + "/" + f.Name
	if len(f.Tiers) != 1 || len(f.Tiers[0].Backends) != 1 {
		return fmt.Errorf("frontend %s: this version supports one tier with one backend only", name)
	}
	b := f.Tiers[0].Backends[0]
	peer := s.links[b.Link]
	if peer == nil {
		return nil // its Link is revoked
	}
	out := &mirror{
		name: name, link: b.Link, namespace: b.Namespace, service: b.Service, hostname: b.Hostname,
		affinity: time.Duration(f.SessionAffinitySeconds) * time.Second, ports: make(map[int]mirrorPort),
	}
	for _, id := range b.Identities {
		identity, err := identity.ParseName(id)
		if err != nil {
			return fmt.Errorf("frontend %s: %w", name, err)
		}
		if identity.TrustDomain() != peer.trustDomain {
			return fmt.Errorf("frontend %s: Link %s cannot vouch for %s", name, b.Link, identity)
		}
		out.identities = append(out.identities, identity)
	}
	protocols := make(map[uint32]string, len(f.Ports))
	for _, p := range f.Ports {
		protocols[p.Index] = p.AppProtocol
	}
	for _, p := range b.Ports {
		out.ports[int(p.Index)] = mirrorPort{number: p.Port, route: p.Route, appProtocol: protocols[p.Index]}
	}
	for _, vip := range f.Vips {
		addr, err := netip.ParseAddr(vip)
		if err != nil {
			return fmt.Errorf("frontend %s: %w", name, err)
		}
		if _, taken := s.mirrors[addr]; taken {
			s.mirrors[addr] = nil // used by neither, because the order of frontends has no meaning
			return fmt.Errorf("frontend %s: another frontend has its virtual IP %v too", name, addr)
		}
		s.mirrors[addr] = out
	}
	return nil
}

func (s *state) addPod(w *wire.Pod) {
	if !w.Live {
		return
	}
	p := &pod{
		uid: w.Uid, namespace: w.Namespace, name: w.Name, serviceAccount: w.ServiceAccount,
		hostNetwork: w.HostNetwork, canary: w.Canary, sandbox: w.SandboxTimeNs,
	}
	for _, ip := range w.Ips {
		if addr, err := netip.ParseAddr(ip); err == nil {
			p.addrs = append(p.addrs, addr.Unmap())
		}
	}
	s.pods[p.uid] = p
	if p.hostNetwork {
		return
	}
	for _, addr := range p.addrs {
		s.podsByAddr[addr] = append(s.podsByAddr[addr], p)
	}
}

// addAnchors makes the set of issuers that sign peers' workload certificates. A trust
// domain that two Links claim has no issuers.
func (s *state) addAnchors() error {
	issuers := make(map[string][]*x509.Certificate)
	claimed := make(map[string]int)
	for _, p := range s.links {
		claimed[p.trustDomain]++
		if len(p.issuers) > 0 {
			issuers[p.trustDomain] = p.issuers
		}
	}
	for domain, n := range claimed {
		if n > 1 || domain == s.trustDomain {
			delete(issuers, domain)
		}
	}
	anchors, err := identity.NewAnchors(issuers)
	if err != nil {
		return err
	}
	s.anchors = anchors
	return nil
}

// backingKey is a pod that backs a Service.
type backingKey struct{ namespace, service, pod string }

// acceptingIn returns the pods that take new connections for the Services that they back.
func acceptingIn(view map[string]*wire.Resource) map[backingKey]bool {
	out := make(map[backingKey]bool)
	for _, r := range view {
		e := r.GetExport()
		for _, p := range e.GetPods() {
			if p.Accepts {
				out[backingKey{e.Namespace, e.Service, p.Uid}] = true
			}
		}
	}
	return out
}

// accounts returns the ServiceAccounts of the live pods that can call or be called.
func (s *state) accounts() map[account]bool {
	out := make(map[account]bool)
	for _, p := range s.pods {
		if !p.hostNetwork && !p.canary {
			out[p.account()] = true
		}
	}
	return out
}

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
