// Package view decides what each agent and gateway must know.
//
//	exports, ledger, peers, pods, keys ──Builder.Build──▶ a View for the gateways, one for each node's agent
//
// What always holds:
//   - An agent is told of the pods of its own node alone, and of exports that
//     these pods back; it gets its own hop key and outbound day keys.
//   - A gateway gets inbound day keys, those of open invites, and no pod, mirror or policy.
//   - A peer whose Link is not valid is in nobody's view.
//   - A resource that did not change is the same pointer as in the last Build.
package view

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Ports of Causeway's own processes inside a cluster.
const (
	AgentPort   = 4144
	CatalogPort = 4145
)

// The days whose keys are handed out, relative to today.
const (
	outboundAhead  = 2
	outboundBehind = 1 // an agent's clock may be behind ours over midnight
	inboundAhead   = 2
	inboundBehind  = 1
	catalogRouteID = 0
)

// Peer is one linked cluster.
type Peer struct {
	Name, UID, TrustDomain string
	// Issuers are DER; none are known before the first catalog stream.
	Issuers      [][]byte
	IssuerNumber uint64
	Gateways     []Gateway
	// Secret is the link secret, from which day keys are derived.
	Secret [32]byte
}

// Gateway is one address of a peer's gateway.
type Gateway struct {
	Address string
	Healthy bool
}

// Inputs are what Build decides from. None is changed; the Views may share it.
type Inputs struct {
	Now         time.Time
	TrustDomain string
	// Namespace is Causeway's own, whose pods have no identity to give.
	Namespace string
	Issuers   [][]byte
	HopMaster [32]byte
	VIPCIDRs  []string

	Peers     []Peer
	Invites   []Invite
	Mirrors   []v1alpha1.LedgerMirror
	Exports   []catalog.Export
	Pods      []corev1.Pod
	Isolation catalog.Isolation
	// Controllers are the pods of ready controller replicas, by address.
	Controllers []Controller
	// Nodes are those that run an agent, ready or not; Agents the addresses of
	// the nodes with a ready one.
	Nodes  []string
	Agents map[string]string
}

// Invite is an open invite, whose holder reaches a controller and nothing else.
type Invite struct {
	Name, UID string
	LabelKey  [32]byte
	Until     time.Time
}

// Controller is a replica that catalog streams can be spliced to.
type Controller struct {
	PodName, PodUID string
	Address         string
}

// Views are everything there is to publish.
type Views struct {
	Gateway nodestream.View
	Agents  map[string]nodestream.View // by node
}

// AgentBackend names the agent of a node, for backends and hop keys.
func AgentBackend(node string) string { return "agent/" + node }

// ControllerBackend names a controller replica, for backends and hop keys.
func ControllerBackend(pod string) string { return "controller/" + pod }

// Builder remembers the last Views, so that what did not change is shared. The
// zero value is ready. It is not safe for concurrent use.
type Builder struct {
	last, next map[string]*wire.Resource // by recipient kind and key
}

// Build returns the Views of in, and problems worth a log line.
func (b *Builder) Build(in Inputs) (Views, error) {
	b.next = make(map[string]*wire.Resource, len(b.last))
	gateway, err := nodestream.NewView(b.gateway(in)...)
	if err != nil {
		return Views{}, err
	}
	v := Views{Gateway: gateway, Agents: make(map[string]nodestream.View, len(in.Nodes))}
	shared := b.shared(in)
	local := b.local(in)
	for _, node := range in.Nodes {
		resources := append(slices.Clone(shared), local[node]...)
		resources = append(resources, b.cluster(in, AgentBackend(node)))
		view, err := nodestream.NewView(resources...)
		if err != nil {
			return Views{}, err
		}
		v.Agents[node] = view
	}
	b.last, b.next = b.next, nil
	return v, nil
}

// keep returns the last Build's resource instead of r if they say the same. The
// scope tells apart resources of one key in different views.
func (b *Builder) keep(scope string, r *wire.Resource) *wire.Resource {
	key, err := nodestream.KeyOf(r)
	if err != nil {
		panic("view: a resource without a body")
	}
	r.Key = key
	key = scope + " " + key
	if old := b.last[key]; old != nil && proto.Equal(old, r) {
		r = old
	}
	b.next[key] = r
	return r
}

// shared is what every agent is told.
func (b *Builder) shared(in Inputs) []*wire.Resource {
	var out []*wire.Resource
	today := identity.Day(in.Now)
	known := make(map[string]bool, len(in.Peers))
	for _, p := range in.Peers {
		known[p.Name] = true
		l := linkOf(p)
		for _, g := range p.Gateways {
			l.Gateways = append(l.Gateways, &wire.GatewayAddress{Address: g.Address, Healthy: g.Healthy})
		}
		for day := today - outboundBehind; day <= today+outboundAhead; day++ {
			key := identity.DayKey(p.Secret, in.TrustDomain, p.TrustDomain, day)
			l.DayKeys = append(l.DayKeys, &wire.DayKey{Day: day, Key: key[:]})
		}
		out = append(out, b.keep("agent", &wire.Resource{Body: &wire.Resource_Link{Link: l}}))
	}
	for _, m := range in.Mirrors {
		if m.RestingSince == nil && known[m.Link] && !lists(m) {
			out = append(out, b.keep("agent", &wire.Resource{Body: &wire.Resource_Mirror{Mirror: mirrorOf(m)}}))
		}
	}
	return out
}

func linkOf(p Peer) *wire.Link {
	return &wire.Link{Name: p.Name, Uid: p.UID, TrustDomain: p.TrustDomain, Issuers: p.Issuers, IssuerNumber: p.IssuerNumber}
}

// lists reports whether m is a headless mirror, which leads to others: nobody
// connects to its own VIP.
func lists(m v1alpha1.LedgerMirror) bool { return m.Headless && m.Hostname == "" }

func mirrorOf(m v1alpha1.LedgerMirror) *wire.Mirror {
	out := &wire.Mirror{
		Link: m.Link, Namespace: m.Namespace, Service: m.Service, Vips: m.VIPs, Identities: m.Identities,
		Mirror: m.MirrorNamespace + "/" + m.MirrorName, Hostname: m.Hostname, SessionAffinitySeconds: uint32(m.SessionAffinitySeconds),
	}
	for _, p := range m.Ports {
		if p.Route == 0 {
			continue
		}
		out.Ports = append(out.Ports, &wire.MirrorPort{
			Index: uint32(p.Index), Port: uint32(p.Port), Name: p.Name, Route: uint32(p.Route), AppProtocol: p.AppProtocol,
		})
	}
	return out
}

// local is what concerns one node, by node: its pods, and the exports that they back.
func (b *Builder) local(in Inputs) map[string][]*wire.Resource {
	out := make(map[string][]*wire.Resource, len(in.Nodes))
	for i := range in.Pods {
		if p := &in.Pods[i]; p.Spec.NodeName != "" && (p.Namespace != in.Namespace || isCanary(p)) && live(p) {
			pod := podOf(p, in.Isolation.Isolated(p))
			pod.Canary = p.Namespace == in.Namespace
			out[p.Spec.NodeName] = append(out[p.Spec.NodeName], b.keep("agent", &wire.Resource{Body: &wire.Resource_Pod{Pod: pod}}))
		}
	}
	for _, e := range in.Exports {
		for node, export := range exportsOf(e) {
			out[node] = append(out[node], b.keep(AgentBackend(node), &wire.Resource{Body: &wire.Resource_Export{Export: export}}))
		}
	}
	return out
}

// isCanary tells, of a pod of Causeway's own namespace, whether it proves a node's path.
func isCanary(p *corev1.Pod) bool { return p.Labels["app.kubernetes.io/component"] == "canary" }

func live(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func podOf(p *corev1.Pod, isolated bool) *wire.Pod {
	out := &wire.Pod{
		Uid: string(p.UID), Namespace: p.Namespace, Name: p.Name, ServiceAccount: p.Spec.ServiceAccountName,
		HostNetwork: p.Spec.HostNetwork, Live: true, Terminating: p.DeletionTimestamp != nil, Isolated: isolated,
	}
	for _, ip := range p.Status.PodIPs {
		out.Ips = append(out.Ips, ip.IP)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReadyToStartContainers && !c.LastTransitionTime.IsZero() {
			out.SandboxTimeNs = c.LastTransitionTime.UnixNano()
		}
	}
	return out
}

// exportsOf returns the export as each node with pods of it must know it.
func exportsOf(e catalog.Export) map[string]*wire.Export {
	out := make(map[string]*wire.Export)
	for _, ep := range e.Endpoints {
		x := out[ep.Node]
		if x == nil {
			x = &wire.Export{Namespace: e.Namespace, Service: e.Name, Links: e.Links}
			for _, p := range e.Ports {
				x.Ports = append(x.Ports, &wire.ExportPort{Port: uint32(p.Port), Name: p.Name, AppProtocol: p.AppProtocol})
			}
			for _, p := range e.Policies {
				x.Policies = append(x.Policies, policyOf(p))
			}
			out[ep.Node] = x
		}
		pod := &wire.ExportPod{Uid: ep.PodUID, Ready: ep.Ready, Targets: make(map[uint32]uint32, len(ep.Targets))}
		for port, target := range ep.Targets {
			pod.Targets[uint32(port)] = uint32(target)
		}
		x.Pods = append(x.Pods, pod)
	}
	return out
}

func policyOf(p v1alpha1.ExportPolicy) *wire.Policy {
	out := &wire.Policy{Name: p.Name}
	for _, c := range p.Spec.Callers {
		out.Callers = append(out.Callers, &wire.Caller{
			Link: c.Link, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, SpiffeId: c.SPIFFEID,
		})
	}
	return out
}

// cluster is this cluster as the process named backend must know it.
func (b *Builder) cluster(in Inputs, backend string) *wire.Resource {
	c := &wire.Cluster{TrustDomain: in.TrustDomain, Issuers: in.Issuers, VipCidrs: in.VIPCIDRs}
	if backend != "" {
		key := identity.HopKey(in.HopMaster, backend)
		c.HopKey = key[:]
	}
	return b.keep(backend, &wire.Resource{Body: &wire.Resource_Cluster{Cluster: c}})
}

// gateway is what every gateway is told.
func (b *Builder) gateway(in Inputs) []*wire.Resource {
	out := []*wire.Resource{b.cluster(in, "")}
	today := identity.Day(in.Now)
	names := make([]string, 0, len(in.Peers))
	for _, p := range in.Peers {
		names = append(names, p.Name)
		l := linkOf(p)
		for day := today - inboundBehind; day <= today+inboundAhead; day++ {
			key := identity.DayKey(p.Secret, p.TrustDomain, in.TrustDomain, day)
			l.DayKeys = append(l.DayKeys, &wire.DayKey{Day: day, Key: key[:]})
		}
		out = append(out, b.keep("gateway", &wire.Resource{Body: &wire.Resource_Link{Link: l}}))
	}
	slices.Sort(names)
	for node, host := range in.Agents {
		address := net.JoinHostPort(host, strconv.Itoa(AgentPort))
		out = append(out, b.backend(in, AgentBackend(node), address))
	}
	catalogRoute := &wire.Route{Id: catalogRouteID, Links: names}
	endpointKey := identity.EndpointKey(in.HopMaster)
	for _, c := range in.Controllers {
		name := ControllerBackend(c.PodName)
		out = append(out, b.backend(in, name, net.JoinHostPort(c.Address, strconv.Itoa(CatalogPort))))
		id := identity.EndpointID(endpointKey, "causeway/catalog", c.PodUID)
		catalogRoute.Endpoints = append(catalogRoute.Endpoints, &wire.Endpoint{Id: id[:], PodUid: c.PodUID, Backend: name})
	}
	out = append(out, b.route(in.Now, catalogRoute))
	out = append(out, b.invites(in, catalogRoute.Endpoints)...)
	for _, e := range in.Exports {
		out = append(out, b.routes(in, endpointKey, e)...)
	}
	return out
}

// invites are the keys of open invites, and the row that they lead to.
func (b *Builder) invites(in Inputs, controllers []*wire.Endpoint) []*wire.Resource {
	if len(in.Invites) == 0 {
		return nil
	}
	var out []*wire.Resource
	row := &wire.Route{Id: route.Join, Endpoints: controllers}
	for _, i := range in.Invites {
		row.Links = append(row.Links, route.InviteName(i.Name))
		out = append(out, b.keep("gateway", &wire.Resource{Body: &wire.Resource_Invite{
			Invite: &wire.Invite{Name: i.Name, Uid: i.UID, LabelKey: i.LabelKey[:], UntilMs: i.Until.UnixMilli()},
		}}))
	}
	slices.Sort(row.Links)
	return append(out, b.route(in.Now, row))
}

func (b *Builder) backend(in Inputs, name, address string) *wire.Resource {
	key := identity.HopKey(in.HopMaster, name)
	if a, err := netip.ParseAddrPort(address); err == nil {
		address = a.String() // one way of writing it
	}
	return b.keep("gateway", &wire.Resource{Body: &wire.Resource_Backend{
		Backend: &wire.Backend{Name: name, Address: address, HopKey: key[:]},
	}})
}

// routes are the rows of one export, one for each port that has a route.
func (b *Builder) routes(in Inputs, endpointKey [32]byte, e catalog.Export) []*wire.Resource {
	var out []*wire.Resource
	for _, p := range e.Ports {
		if p.Route == 0 {
			continue
		}
		r := &wire.Route{Id: p.Route, Links: e.Links}
		for _, ep := range e.Endpoints {
			if _, has := ep.Targets[p.Port]; !has || !ep.Ready {
				continue
			}
			id := identity.EndpointID(endpointKey, e.Key().String(), ep.PodUID)
			out := &wire.Endpoint{Id: id[:], PodUid: ep.PodUID, Backend: AgentBackend(ep.Node)}
			if ep.Host != "" {
				hash := route.HostHash(ep.Host)
				out.Host = hash[:]
			}
			r.Endpoints = append(r.Endpoints, out)
		}
		out = append(out, b.route(in.Now, r))
	}
	return out
}

// route gives r its generation: the last one while its endpoints stay, else the
// time in milliseconds, which rises across replicas and restarts too, or one more
// than the last where the clock does not.
func (b *Builder) route(now time.Time, r *wire.Route) *wire.Resource {
	resource := &wire.Resource{Body: &wire.Resource_Route{Route: r}}
	r.Generation = uint64(now.UnixMilli())
	if key, err := nodestream.KeyOf(resource); err == nil {
		switch old := b.last["gateway "+key].GetRoute(); {
		case old == nil:
		case slices.EqualFunc(old.Endpoints, r.Endpoints, equalEndpoints):
			r.Generation = old.Generation
		default:
			r.Generation = max(r.Generation, old.Generation+1)
		}
	}
	return b.keep("gateway", resource)
}

func equalEndpoints(a, b *wire.Endpoint) bool { return proto.Equal(a, b) }

// Same reports whether two Views of one Builder say the same.
func Same(a, b nodestream.View) bool { return maps.Equal(a, b) }
