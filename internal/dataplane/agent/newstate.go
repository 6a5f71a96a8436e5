package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// parsedResources holds what a state has parsed from the resources of its view, by the
// resource's address. Views share the resources that have not changed, and no resource
// is ever modified, so the next state parses only what is new.
type parsedResources struct {
	links     map[*wire.Resource]*parsedLink
	frontends map[*wire.Resource]*parsedFrontend
	exports   map[*wire.Resource]admit.Export
}

type parsedLink struct {
	*peer
	err error // the peer's issuers are not valid
}

type parsedFrontend struct {
	link *peer // whose trust domain the identities were checked against
	*mirror
	vips []netip.Addr
	err  error // mirror and vips are not valid
}

var errNoCluster = errors.New("the controller's view has no resource for this cluster")

// newState makes a state from a view. It leaves out Links that revoked reports. It also
// leaves out what is not consistent, and the error names that. The state is nil only if
// the view has no valid Cluster. It uses what was, which may be nil, has parsed already.
func newState(view nodestream.View, revoked func(uid string) bool, was *state) (*state, error) {
	cluster := view["cluster"].GetCluster()
	if cluster == nil {
		return nil, errNoCluster
	}
	if was == nil {
		was = &state{}
	}
	b := &stateBuilder{was: was, state: &state{
		links: make(map[string]*peer), mirrors: make(map[netip.Addr]*mirror, len(view)),
		pods: make(map[string]*pod), podsByAddr: make(map[netip.Addr][]*pod),
		accepting: make(map[backingKey]bool), exportedPorts: make(map[exportedPortKey]exportedPort),
		parsed: parsedResources{
			links:     make(map[*wire.Resource]*parsedLink),
			frontends: make(map[*wire.Resource]*parsedFrontend, len(view)),
			exports:   make(map[*wire.Resource]admit.Export),
		},
	}}
	if err := b.addCluster(cluster); err != nil {
		return nil, err
	}
	b.view, b.revokedDropped = withoutRevoked(view, revoked)
	for key, r := range b.view {
		if l := r.GetLink(); l != nil {
			b.report(key, b.addLink(r, l))
		}
	}
	var exports []admit.Export
	var pods []admit.Pod
	for key, r := range b.view {
		switch body := r.Body.(type) {
		case *wire.Resource_Frontend:
			b.report(key, b.addFrontend(r, body.Frontend))
		case *wire.Resource_Pod:
			b.addPod(body.Pod)
			pods = append(pods, podOf(body.Pod))
		case *wire.Resource_Export:
			exports = append(exports, b.addExport(r, body.Export))
		}
	}
	b.callers = b.accounts()
	b.report("", b.addAnchors())
	b.admission = admit.NewState(b.admitLinks(), exports, pods)
	return b.state, b.problems()
}

type stateBuilder struct {
	*state
	was    *state
	errors map[string]error        // by resource
	shared map[netip.Addr][]string // frontends, by the virtual IP that they have in common
}

// report records the error of a resource, if there is one.
func (b *stateBuilder) report(key string, err error) {
	if err == nil {
		return
	}
	if b.errors == nil {
		b.errors = make(map[string]error)
	}
	b.errors[key] = err
}

// addBadRoutes records why the routes of a frontend are not valid, if they are not. The
// mirror is served nevertheless.
func (b *stateBuilder) addBadRoutes(err error) {
	if err != nil {
		b.badRoutes = append(b.badRoutes, err)
	}
}

// problems returns all errors, in an order that does not depend on that of maps.
func (b *stateBuilder) problems() error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(b.errors)) {
		errs = append(errs, b.errors[key])
	}
	for _, vip := range slices.SortedFunc(maps.Keys(b.shared), netip.Addr.Compare) {
		names := slices.Sorted(slices.Values(b.shared[vip]))
		errs = append(errs, fmt.Errorf("frontends %s have the same virtual IP %v: none of them is served",
			strings.Join(names, ", "), vip))
	}
	return errors.Join(errs...)
}

// withoutRevoked returns a view without the Links that revoked reports, and whether there
// are any.
func withoutRevoked(view nodestream.View, revoked func(uid string) bool) (nodestream.View, bool) {
	gone := func(_ string, r *wire.Resource) bool {
		return r.GetLink() != nil && revoked(r.GetLink().Uid)
	}
	for key, r := range view {
		if gone(key, r) {
			view = maps.Clone(view)
			maps.DeleteFunc(view, gone)
			return view, true
		}
	}
	return view, false
}

func (b *stateBuilder) addCluster(c *wire.Cluster) error {
	if len(c.HopKey) != len(b.hopKey) {
		return fmt.Errorf("this cluster: its hop key has %d bytes", len(c.HopKey))
	}
	b.trustDomain, b.hopKey, b.issuers = c.TrustDomain, route.HopKey(c.HopKey), c.Issuers
	b.zone = c.Zone
	for _, cidr := range c.VipCidrs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return fmt.Errorf("this cluster: its range of virtual IPs: %w", err)
		}
		b.vips = append(b.vips, p)
	}
	return nil
}

func (b *stateBuilder) addLink(r *wire.Resource, l *wire.Link) error {
	parsed := b.was.parsed.links[r]
	if parsed == nil {
		parsed = parseLink(l)
	}
	b.parsed.links[r] = parsed
	b.links[l.Name] = parsed.peer
	return parsed.err
}

func parseLink(l *wire.Link) *parsedLink {
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
	if len(l.Issuers) == 0 {
		return &parsedLink{peer: p} // not known before the first catalog stream
	}
	issuers, err := identity.ParseIssuers(l.TrustDomain, l.Issuers)
	if err != nil {
		return &parsedLink{p, fmt.Errorf("link %q: %w", l.Name, err)}
	}
	p.issuers = issuers
	return &parsedLink{peer: p}
}

// addFrontend adds the mirror of a frontend. This version uses frontends that have
// exactly one tier with one backend.
func (b *stateBuilder) addFrontend(r *wire.Resource, f *wire.Frontend) error {
	if len(f.Tiers) != 1 || len(f.Tiers[0].Backends) != 1 {
		return fmt.Errorf("frontend %s/%s: this version supports one tier with one backend only",
			f.Namespace, f.Name)
	}
	link := b.links[f.Tiers[0].Backends[0].Link]
	if link == nil {
		return nil // it was deleted
	}
	parsed := b.was.parsed.frontends[r]
	if parsed == nil || parsed.link != link {
		parsed = &parsedFrontend{link: link}
		parsed.mirror, parsed.vips, parsed.err = parseFrontend(f, link)
		if parsed.err == nil {
			b.addBadRoutes(parsed.mirror.addRoutes(f))
		}
	}
	b.parsed.frontends[r] = parsed
	for _, vip := range parsed.vips {
		other, taken := b.mirrors[vip]
		if !taken {
			b.mirrors[vip] = parsed.mirror
			continue
		}
		// Neither is served, because the order of frontends has no meaning.
		b.mirrors[vip] = nil
		if b.shared == nil {
			b.shared = make(map[netip.Addr][]string)
		}
		if other != nil {
			b.shared[vip] = append(b.shared[vip], other.name)
		}
		b.shared[vip] = append(b.shared[vip], parsed.mirror.name)
	}
	return parsed.err
}

func parseFrontend(f *wire.Frontend, link *peer) (*mirror, []netip.Addr, error) {
	name, b := f.Namespace+"/"+f.Name, f.Tiers[0].Backends[0]
	out := &mirror{
		name: name, link: b.Link, namespace: b.Namespace, service: b.Service, hostname: b.Hostname,
		affinity: time.Duration(f.SessionAffinitySeconds) * time.Second, ports: make(map[int]mirrorPort),
	}
	for _, id := range b.Identities {
		identity, err := identity.ParseName(id)
		if err != nil {
			return nil, nil, fmt.Errorf("frontend %s: %w", name, err)
		}
		if identity.TrustDomain() != link.trustDomain {
			return nil, nil, fmt.Errorf("frontend %s: Link %s cannot vouch for %s", name, b.Link, identity)
		}
		out.identities = append(out.identities, identity)
	}
	dialed := make(map[uint32]*wire.FrontendPort, len(f.Ports))
	for _, p := range f.Ports {
		dialed[p.Index] = p
	}
	settings := settingsOf(b.Settings)
	for _, p := range b.Ports {
		app := dialed[p.Index].GetAppProtocol()
		out.ports[int(p.Index)] = mirrorPort{
			number:      p.Port,
			route:       p.Route,
			appProtocol: app,
			protocol:    protocolOf(dialed[p.Index].GetDeclared(), app),
			settings:    settings,
		}
	}
	var vips []netip.Addr
	for _, vip := range f.Vips {
		addr, err := netip.ParseAddr(vip)
		if err != nil {
			return nil, nil, fmt.Errorf("frontend %s: %w", name, err)
		}
		vips = append(vips, addr)
	}
	return out, vips, nil
}

func (b *stateBuilder) addPod(w *wire.Pod) {
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
	b.pods[p.uid] = p
	if p.hostNetwork {
		return
	}
	for _, addr := range p.addrs {
		b.podsByAddr[addr] = append(b.podsByAddr[addr], p)
	}
}

// addExport records the ports of an export and which pods accept new connections, and
// returns the export for admission.
func (b *stateBuilder) addExport(r *wire.Resource, e *wire.Export) admit.Export {
	for _, p := range e.Pods {
		if p.Accepts {
			b.accepting[backingKey{e.Namespace, e.Service, p.Uid}] = true
		}
	}
	for _, p := range e.Ports {
		b.exportedPorts[exportedPortKey{e.Namespace, e.Service, p.Port}] = exportedPort{
			appProtocol:     p.AppProtocol,
			protocol:        protocolOf(p.Declared, p.AppProtocol),
			forwardIdentity: forwardIdentityOf(e.ForwardIdentity),
		}
	}
	export, ok := b.was.parsed.exports[r]
	if !ok {
		export = exportOf(e)
	}
	b.parsed.exports[r] = export
	return export
}

// addAnchors makes the set of issuers that sign peers' workload certificates. A trust
// domain that two Links claim has no issuers.
func (b *stateBuilder) addAnchors() error {
	if b.was.anchors != nil && b.was.trustDomain == b.trustDomain && maps.Equal(b.was.links, b.links) {
		b.anchors = b.was.anchors
		return nil
	}
	issuers := make(map[string][]*x509.Certificate)
	claimed := make(map[string]int)
	for _, p := range b.links {
		claimed[p.trustDomain]++
		if len(p.issuers) > 0 {
			issuers[p.trustDomain] = p.issuers
		}
	}
	for domain, n := range claimed {
		if n > 1 || domain == b.trustDomain {
			delete(issuers, domain)
		}
	}
	anchors, err := identity.NewAnchors(issuers)
	if err != nil {
		return err
	}
	b.anchors = anchors
	return nil
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
