// Package view makes the resources of the node stream.
//
//	peers, ledger entries, pods, exports, keys ──one function per kind──▶ Resources
//
// The caller decides when to make a resource again, and in which scope it belongs. The
// hub drops a resource that is equal to the last one.
//
// What always holds:
//   - The functions are pure: equal arguments give equal resources, in every replica.
//   - An agent gets its own hop key and day keys for labels to peers. It gets pods of its
//     own node, exports of those pods' namespaces, and of an export only the pods on its
//     node.
//   - A gateway gets day keys for labels from peers and those of open invites. It gets no
//     frontend, no policy, and neither name nor address of a pod that is not Causeway's.
//   - A pod of Causeway's own namespace is not in the stream, except canaries.
package view

import (
	"cmp"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/kube"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// The days whose keys are distributed, relative to today. An agent's clock may be behind
// the controller's around midnight, and so may a peer's.
const (
	daysBehind = 1
	daysAhead  = 2
)

const catalogRouteID = 0

// Cluster is this cluster itself.
type Cluster struct {
	TrustDomain string
	// Issuers are DER.
	Issuers  [][]byte
	VIPCIDRs []string
	// HopMaster is the key from which hop keys and endpoint ids are derived.
	HopMaster [32]byte
}

// ForAgent returns the Cluster resource of a node's agent, which has the node's hop key
// and its zone. The zone is empty if it is not known.
func (c Cluster) ForAgent(node, zone string) *wire.Resource {
	key := identity.HopKey(c.HopMaster, AgentUpstream(node))
	r := c.resource(key[:])
	r.GetCluster().Zone = zone
	return r
}

// ForGateways returns the Cluster resource of the gateways, which has no hop key.
func (c Cluster) ForGateways() *wire.Resource { return c.resource(nil) }

func (c Cluster) resource(hopKey []byte) *wire.Resource {
	return &wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
		TrustDomain: c.TrustDomain, Issuers: c.Issuers, VipCidrs: c.VIPCIDRs, HopKey: hopKey,
	}}}
}

// Peer is one linked cluster.
type Peer struct {
	Name, UID, TrustDomain string
	// Issuers are DER; none are known before the first catalog stream.
	Issuers      [][]byte
	IssuerNumber uint64
	Gateways     []Gateway
	// Secret is the link secret, from which day keys are derived.
	Secret [32]byte
	// Suspended, DefaultDeny, CallersRestricted and CallerNamespaces are the fields of
	// wire.Link. CallerNamespaces may have any order.
	Suspended, DefaultDeny bool
	CallersRestricted      bool
	CallerNamespaces       []string
}

// Gateway is one address of a peer's gateway.
type Gateway struct {
	Address string
	Healthy bool
}

// LinkForAgents returns the Link resource of agents: with addresses to dial, and day keys
// for labels from the cluster ownDomain to the peer. today is identity.Day of now.
func LinkForAgents(p Peer, ownDomain string, today uint32) *wire.Resource {
	l := linkOf(p)
	for _, g := range p.Gateways {
		l.Gateways = append(l.Gateways, &wire.GatewayAddress{Address: g.Address, Healthy: g.Healthy})
	}
	l.DayKeys = dayKeys(p.Secret, ownDomain, p.TrustDomain, today)
	return &wire.Resource{Body: &wire.Resource_Link{Link: l}}
}

// LinkForGateways returns the Link resource of gateways: with day keys for labels from
// the peer to the cluster ownDomain. today is identity.Day of now.
func LinkForGateways(p Peer, ownDomain string, today uint32) *wire.Resource {
	l := linkOf(p)
	l.DayKeys = dayKeys(p.Secret, p.TrustDomain, ownDomain, today)
	return &wire.Resource{Body: &wire.Resource_Link{Link: l}}
}

func linkOf(p Peer) *wire.Link {
	return &wire.Link{
		Name:              p.Name,
		Uid:               p.UID,
		TrustDomain:       p.TrustDomain,
		Issuers:           p.Issuers,
		IssuerNumber:      p.IssuerNumber,
		Suspended:         p.Suspended,
		DefaultDeny:       p.DefaultDeny,
		CallersRestricted: p.CallersRestricted,
		CallerNamespaces:  slices.Sorted(slices.Values(p.CallerNamespaces)),
	}
}

// dayKeys returns the keys of the days around today for labels from one cluster to
// another.
func dayKeys(secret [32]byte, from, to string, today uint32) []*wire.DayKey {
	var keys []*wire.DayKey
	for day := today - daysBehind; day <= today+daysAhead; day++ {
		key := identity.DayKey(secret, from, to, day)
		keys = append(keys, &wire.DayKey{Day: day, Key: key[:]})
	}
	return keys
}

// Frontend returns the resource of a mirror Service of a Link's peer: one tier with one
// backend. ready reports whether the peer has ready endpoints. The defaults apply to what
// the Service's owner leaves open. It returns nil for a headless Service as such: clients
// dial the mirrors of its named pods.
func Frontend(link string, m ledger.Mirror, ready bool, defaults trafficsettings.Defaults) *wire.Resource {
	if m.Headless && m.Hostname == "" {
		return nil
	}
	backend := &wire.Backend{
		Link:       link,
		Namespace:  m.Namespace,
		Service:    m.Service,
		Hostname:   m.Hostname,
		Ready:      ready,
		Identities: m.Identities,
		Settings:   settingsOf(m.Settings, defaults),
	}
	f := &wire.Frontend{
		Namespace:              m.MirrorNamespace,
		Name:                   m.MirrorName,
		SessionAffinitySeconds: m.AffinitySeconds,
		Tiers:                  []*wire.Tier{{Backends: []*wire.Backend{backend}}},
	}
	for _, vip := range m.VIPs {
		f.Vips = append(f.Vips, vip.String())
	}
	for _, p := range m.Ports {
		if p.Route == 0 {
			continue // the peer does not offer it now
		}
		index := uint32(p.Index)
		f.Ports = append(f.Ports, &wire.FrontendPort{
			Index:       index,
			Name:        p.Name,
			AppProtocol: p.AppProtocol,
			Declared:    wire.Protocol(defaults.Protocol(p.Declared, p.AppProtocol)),
		})
		backend.Ports = append(backend.Ports, &wire.BackendPort{
			Index: index,
			Port:  uint32(p.Port),
			Route: p.Route,
		})
	}
	return &wire.Resource{Body: &wire.Resource_Frontend{Frontend: f}}
}

// Pod returns the resource of a pod for the agent of its node, p.Spec.NodeName. namespace
// is Causeway's own. It returns nil for a pod that no agent needs: one without a node,
// one that has finished, and one of Causeway's own that is not a canary.
func Pod(p *corev1.Pod, namespace string) *wire.Resource {
	own := p.Namespace == namespace
	canary := own && p.Labels[clusterinfo.ComponentLabel] == clusterinfo.ComponentCanary
	if p.Spec.NodeName == "" || own && !canary || kube.PodFinished(p) {
		return nil
	}
	pod := &wire.Pod{
		Uid:            string(p.UID),
		Namespace:      p.Namespace,
		Name:           p.Name,
		ServiceAccount: p.Spec.ServiceAccountName,
		HostNetwork:    p.Spec.HostNetwork,
		Live:           true,
		Terminating:    p.DeletionTimestamp != nil,
		Canary:         canary,
	}
	for _, ip := range p.Status.PodIPs {
		pod.Ips = append(pod.Ips, ip.IP)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReadyToStartContainers && !c.LastTransitionTime.IsZero() {
			pod.SandboxTimeNs = c.LastTransitionTime.UnixNano()
		}
	}
	return &wire.Resource{Body: &wire.Resource_Pod{Pod: pod}}
}

// Exports returns the resource of an export for each of the nodes that have pods of its
// namespace, by node. It has all of the node's pods that back the Service, ready or not.
// A node without such pods gets it, too: a pod there may have backed the Service until
// its selector changed, and connections that are open to it stay open.
func Exports(e *catalog.Export, nodes iter.Seq[string]) map[string]*wire.Resource {
	out := make(map[string]*wire.Resource)
	at := func(node string) *wire.Export {
		r := out[node]
		if r == nil {
			r = exportOf(e)
			out[node] = r
		}
		return r.GetExport()
	}
	for node := range nodes {
		at(node)
	}
	for i := range e.Endpoints {
		x := at(e.Endpoints[i].Node)
		x.Pods = append(x.Pods, exportPodOf(&e.Endpoints[i]))
	}
	return out
}

// ExportAt returns the resource of an export for one node.
func ExportAt(e *catalog.Export, node string) *wire.Resource {
	r := exportOf(e)
	for i := range e.Endpoints {
		if e.Endpoints[i].Node == node {
			r.GetExport().Pods = append(r.GetExport().Pods, exportPodOf(&e.Endpoints[i]))
		}
	}
	return r
}

func exportPodOf(ep *catalog.Endpoint) *wire.ExportPod {
	pod := &wire.ExportPod{
		Uid:     ep.PodUID,
		Ready:   ep.Ready,
		Accepts: ep.Accepts,
		Targets: make(map[uint32]uint32, len(ep.Targets)),
	}
	for port, target := range ep.Targets {
		pod.Targets[uint32(port)] = uint32(target)
	}
	for _, port := range ep.Isolated {
		pod.IsolatedPorts = append(pod.IsolatedPorts, uint32(port))
	}
	return pod
}

// exportOf returns the resource of an export without pods.
func exportOf(e *catalog.Export) *wire.Resource {
	x := &wire.Export{
		Namespace:       e.Namespace,
		Service:         e.Name,
		Links:           e.Links,
		ForwardIdentity: wire.ForwardIdentity(e.ForwardIdentity),
	}
	for _, p := range e.Ports {
		x.Ports = append(x.Ports, &wire.ExportPort{
			Port:        uint32(p.Port),
			Name:        p.Name,
			AppProtocol: p.AppProtocol,
			Declared:    wire.Protocol(p.Declared),
		})
	}
	for i := range e.Policies {
		x.Policies = append(x.Policies, policyOf(&e.Policies[i]))
	}
	return &wire.Resource{Body: &wire.Resource_Export{Export: x}}
}

func policyOf(p *v1alpha1.ExportPolicy) *wire.Policy {
	out := &wire.Policy{Name: p.Name}
	for i := range p.Spec.Callers {
		c := &p.Spec.Callers[i]
		caller := &wire.Caller{
			Link:           c.Link,
			Namespace:      c.Namespace,
			ServiceAccount: c.ServiceAccount,
			SpiffeId:       c.SPIFFEID,
		}
		if len(c.Methods) == 0 && len(c.Paths) == 0 {
			out.Callers = append(out.Callers, caller)
			continue
		}
		out.RequestCallers = append(out.RequestCallers, &wire.RequestCaller{
			Caller: caller, Methods: c.Methods, Paths: pathsOf(c.Paths),
		})
	}
	return out
}

func pathsOf(paths []v1alpha1.PathMatch) []*wire.PathMatch {
	var out []*wire.PathMatch
	for _, p := range paths {
		if p.Exact != "" {
			out = append(out, &wire.PathMatch{Match: &wire.PathMatch_Exact{Exact: string(p.Exact)}})
		} else {
			out = append(out, &wire.PathMatch{Match: &wire.PathMatch_Prefix{Prefix: string(p.Prefix)}})
		}
	}
	return out
}

// AgentUpstream names the agent of a node, in upstreams and for hop keys.
func AgentUpstream(node string) string { return route.AgentPrefix + node }

// ControllerUpstream names a controller replica, in upstreams and for hop keys.
func ControllerUpstream(pod string) string { return "controller/" + pod }

// Controller is a ready controller replica, to which gateways splice catalog streams.
type Controller struct {
	PodName, PodUID string
	// Address is an IP address.
	Address string
}

// Agent is the ready agent of a node.
type Agent struct {
	Node string
	// Address is an IP address.
	Address string
	// Zone is the zone of the node; empty: not known.
	Zone string
	// ReadsZones reports that the agent can read hop headers that have zones.
	ReadsZones bool
}

// Agent returns the Upstream of an agent.
func (c Cluster) Agent(a Agent) *wire.Resource {
	r := c.upstream(AgentUpstream(a.Node), a.Address, clusterinfo.AgentPort)
	r.GetUpstream().Zone, r.GetUpstream().ReadsZones = a.Zone, a.ReadsZones
	return r
}

// Controller returns the Upstream of a controller replica.
func (c Cluster) Controller(r Controller) *wire.Resource {
	return c.upstream(ControllerUpstream(r.PodName), r.Address, clusterinfo.CatalogPort)
}

func (c Cluster) upstream(name, address string, port int) *wire.Resource {
	key := identity.HopKey(c.HopMaster, name)
	address = net.JoinHostPort(address, strconv.Itoa(port))
	if a, err := netip.ParseAddrPort(address); err == nil {
		address = a.String() // IPv6 addresses have several notations
	}
	return &wire.Resource{Body: &wire.Resource_Upstream{
		Upstream: &wire.Upstream{Name: name, Address: address, HopKey: key[:]},
	}}
}

// Rows makes the rows of the gateways' table.
type Rows struct {
	Cluster Cluster
	// Now becomes the generation of a row whose endpoints changed, in milliseconds, so
	// that generations rise across replicas and restarts.
	Now time.Time
	// Last returns the row that was last sent with an id; nil: none. Its generation
	// stays while the endpoints are equal.
	Last func(id uint32) *wire.Route
}

// Export returns the rows of an export, one per port for which routeID returns an id
// other than 0. A row has the endpoints that accept new connections and have the port.
func (r Rows) Export(e *catalog.Export, routeID func(name, protocol string) uint32) []*wire.Resource {
	key := identity.EndpointKey(r.Cluster.HopMaster)
	var out []*wire.Resource
	for _, p := range e.Ports {
		id := routeID(p.Name, p.Protocol)
		if id == 0 {
			continue
		}
		row := &wire.Route{Id: id, Links: e.Links, Zones: e.Settings.PreferSameZone}
		for i := range e.Endpoints {
			ep := &e.Endpoints[i]
			if _, has := ep.Targets[p.Port]; !has || !ep.Accepts {
				continue
			}
			id := identity.EndpointID(key, e.Key().String(), ep.PodUID)
			endpoint := &wire.Endpoint{Id: id[:], PodUid: ep.PodUID, Upstream: AgentUpstream(ep.Node)}
			if ep.Host != "" {
				hash := route.HostHash(ep.Host)
				endpoint.Host = hash[:]
			}
			row.Endpoints = append(row.Endpoints, endpoint)
		}
		out = append(out, r.resource(row))
	}
	return out
}

// Catalog returns the row of the catalog streams: every Link may use it, and it leads to
// the controllers. Both may have any order.
func (r Rows) Catalog(links []string, controllers []Controller) *wire.Resource {
	return r.resource(&wire.Route{
		Id: catalogRouteID, Links: slices.Sorted(slices.Values(links)), Endpoints: r.controllers(controllers),
	})
}

// Invites returns the resources of open invites: their keys, and the row that leads their
// holders to the controllers. Without an invite there is no row; the caller removes it.
func (r Rows) Invites(invites []Invite, controllers []Controller) []*wire.Resource {
	if len(invites) == 0 {
		return nil
	}
	row := &wire.Route{Id: route.Join, Endpoints: r.controllers(controllers)}
	var out []*wire.Resource
	for _, i := range invites {
		row.Links = append(row.Links, route.InviteName(i.Name))
		out = append(out, &wire.Resource{Body: &wire.Resource_Invite{
			Invite: &wire.Invite{
				Name:     i.Name,
				Uid:      i.UID,
				LabelKey: i.LabelKey[:],
				UntilMs:  i.Until.UnixMilli(),
			},
		}})
	}
	slices.Sort(row.Links)
	return append(out, r.resource(row))
}

// Invite is an open invite. Its holder reaches a controller and nothing else.
type Invite struct {
	Name, UID string
	LabelKey  [32]byte
	Until     time.Time
}

func (r Rows) controllers(controllers []Controller) []*wire.Endpoint {
	key := identity.EndpointKey(r.Cluster.HopMaster)
	var out []*wire.Endpoint
	for _, c := range controllers {
		id := identity.EndpointID(key, "causeway/catalog", c.PodUID)
		out = append(out, &wire.Endpoint{
			Id:       id[:],
			PodUid:   c.PodUID,
			Upstream: ControllerUpstream(c.PodName),
		})
	}
	slices.SortFunc(out, func(a, b *wire.Endpoint) int { return cmp.Compare(a.PodUid, b.PodUid) })
	return out
}

// resource gives row its generation: the last one while its endpoints are equal, else Now
// in milliseconds, or the last one plus 1 if the clock is behind it.
func (r Rows) resource(row *wire.Route) *wire.Resource {
	row.Generation = uint64(r.Now.UnixMilli())
	switch last := r.Last(row.Id); {
	case last == nil:
	case slices.EqualFunc(last.Endpoints, row.Endpoints, equalEndpoints):
		row.Generation = last.Generation
	default:
		row.Generation = max(row.Generation, last.Generation+1)
	}
	return &wire.Resource{Body: &wire.Resource_Route{Route: row}}
}

func equalEndpoints(a, b *wire.Endpoint) bool { return proto.Equal(a, b) }
