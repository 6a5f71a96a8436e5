package controller

import (
	"iter"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	nodewire "github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// nodeViews decides what agents must know of their node's pods, and what agents and
// gateways must know of this cluster and of Causeway's own processes. It belongs to the
// reconciler's goroutine.
type nodeViews struct {
	o        Options
	identity *clusterid.Identity
	rows     *rowTable

	pods   map[catalog.Key]*corev1.Pod // those that an agent must know
	byNode map[string]map[catalog.Key]bool
	// counts are the pods of each namespace by node. moved is called when a node has its
	// first pod of a namespace, or has lost the last one.
	counts map[string]map[string]int
	moved  func(namespace, node string, has bool, p *plan)
	nodes  map[string]bool // that have an agent
	// zones are the zones of all nodes that have one, with or without an agent.
	zones map[string]string
	top   *topology // the current one; nil at first
	// upstreams and invites are the keys of what gateways were sent.
	upstreams, invites map[string]bool
}

func newNodeViews(o Options, id *clusterid.Identity, rows *rowTable) *nodeViews {
	v := &nodeViews{
		o:         o,
		identity:  id,
		rows:      rows,
		pods:      make(map[catalog.Key]*corev1.Pod),
		byNode:    make(map[string]map[catalog.Key]bool),
		counts:    make(map[string]map[string]int),
		moved:     func(string, string, bool, *plan) {},
		nodes:     make(map[string]bool),
		zones:     make(map[string]string),
		upstreams: make(map[string]bool),
		invites:   make(map[string]bool),
	}
	v.rows.cluster = v.cluster()
	return v
}

// hasAgent reports whether a node has an agent, ready or not.
func (v *nodeViews) hasAgent(node string) bool { return v.nodes[node] }

// nodesOf yields the nodes that have pods of a namespace.
func (v *nodeViews) nodesOf(namespace string) iter.Seq[string] { return maps.Keys(v.counts[namespace]) }

// cluster is this cluster with the issuers in force.
func (v *nodeViews) cluster() view.Cluster {
	return view.Cluster{
		TrustDomain: v.identity.TrustDomain(),
		Issuers:     v.identity.Issuers().Certificates(),
		VIPCIDRs:    v.o.VIPCIDRs,
		HopMaster:   v.identity.HopMasterKey(),
	}
}

// setPod takes in a pod; nil: it is gone.
func (v *nodeViews) setPod(k catalog.Key, pod *corev1.Pod, p *plan) {
	var resource *nodewire.Resource
	if pod != nil {
		resource = view.Pod(pod, v.o.Namespace)
	}
	if old := v.pods[k]; old != nil && (resource == nil || old.Spec.NodeName != pod.Spec.NodeName ||
		old.UID != pod.UID) {
		v.removePod(k, old, p)
	}
	if resource == nil {
		return
	}
	node := pod.Spec.NodeName
	if v.pods[k] == nil {
		v.count(k.Namespace, node, +1, p)
	}
	v.pods[k] = pod
	add(v.byNode, node, k)
	if v.nodes[node] {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Node(node), Resource: resource})
	}
}

// count counts a namespace's pods on a node.
func (v *nodeViews) count(namespace, node string, sign int, p *plan) {
	if v.counts[namespace] == nil {
		v.counts[namespace] = make(map[string]int)
	}
	v.counts[namespace][node] += sign
	switch n := v.counts[namespace][node]; {
	case n == 0:
		if delete(v.counts[namespace], node); len(v.counts[namespace]) == 0 {
			delete(v.counts, namespace)
		}
		v.moved(namespace, node, false, p)
	case n == 1 && sign > 0:
		v.moved(namespace, node, true, p)
	}
}

func (v *nodeViews) removePod(k catalog.Key, old *corev1.Pod, p *plan) {
	node := old.Spec.NodeName
	delete(v.pods, k)
	remove(v.byNode, node, k)
	v.count(k.Namespace, node, -1, p)
	if v.nodes[node] {
		p.views = append(p.views, nodestream.Change{
			Scope:   nodestream.Node(node),
			Removed: nodestream.PodKey(string(old.UID)),
		})
	}
}

// setTopology takes in where Causeway's processes run. exports returns what the agent of
// a node must know of exports.
func (v *nodeViews) setTopology(t *topology, exports func(node string) []*nodewire.Resource, p *plan) {
	for node := range v.nodes {
		if !t.nodes[node] {
			delete(v.nodes, node)
			p.nodesRemoved = append(p.nodesRemoved, node)
		}
	}
	for node := range t.nodes {
		if v.nodes[node] {
			continue
		}
		v.nodes[node] = true
		p.nodesAdded = append(p.nodesAdded, node)
		scope := nodestream.Node(node)
		p.views = append(p.views, nodestream.Change{
			Scope:    scope,
			Resource: v.cluster().ForAgent(node, v.zones[node]),
		})
		for k := range v.byNode[node] {
			p.views = append(p.views, nodestream.Change{
				Scope:    scope,
				Resource: view.Pod(v.pods[k], v.o.Namespace),
			})
		}
		for _, resource := range exports(node) {
			p.views = append(p.views, nodestream.Change{Scope: scope, Resource: resource})
		}
	}
	v.setUpstreams(t, p)
}

// setUpstreams decides the processes that gateways may splice to.
func (v *nodeViews) setUpstreams(t *topology, p *plan) {
	c, after := v.cluster(), make(map[string]bool, len(t.agents)+len(t.controllers))
	add := func(resource *nodewire.Resource) {
		after[nodestream.UpstreamKey(resource.GetUpstream().GetName())] = true
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: resource})
	}
	v.top = t
	for node := range t.agents {
		add(v.agentUpstream(c, node))
	}
	for _, replica := range t.controllers {
		add(c.Controller(replica))
	}
	removeOthers(v.upstreams, after, p)
	v.upstreams = after
}

// agentUpstream returns the Upstream of a node's ready agent. v.top must not be nil.
func (v *nodeViews) agentUpstream(c view.Cluster, node string) *nodewire.Resource {
	return c.Agent(view.Agent{
		Node:       node,
		Address:    v.top.agents[node],
		Zone:       v.zones[node],
		ReadsZones: !v.top.unzoned[node],
	})
}

// setZone records the zone of a node, and sends it to the agent of the node and to the
// gateways. An empty zone means that the node has none or is gone.
func (v *nodeViews) setZone(node, zone string, p *plan) {
	if v.zones[node] == zone {
		return
	}
	if v.zones[node] = zone; zone == "" {
		delete(v.zones, node)
	}
	c := v.cluster()
	if v.nodes[node] {
		p.views = append(p.views, nodestream.Change{
			Scope:    nodestream.Node(node),
			Resource: c.ForAgent(node, zone),
		})
	}
	if v.top != nil && v.top.agents[node] != "" {
		p.views = append(p.views, nodestream.Change{
			Scope:    nodestream.Gateways,
			Resource: v.agentUpstream(c, node),
		})
	}
}

// removeOthers removes from gateways what is in before and not in after.
func removeOthers(before, after map[string]bool, p *plan) {
	for key := range before {
		if !after[key] {
			p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Removed: key})
		}
	}
}

// setControllers decides the rows that lead to this cluster's controllers: peers by their
// Links, and others by open invites.
func (v *nodeViews) setControllers(t *topology, links []string, invites []joinflow.OpenInvite, now time.Time,
	p *plan) {
	v.rows.put(v.rows.at(now).Catalog(links, t.controllers), p)
	open := make([]view.Invite, 0, len(invites))
	for _, i := range invites {
		open = append(open, view.Invite{Name: i.Name, UID: i.UID, LabelKey: i.LabelKey, Until: i.Until})
	}
	after := make(map[string]bool, len(open))
	for _, resource := range v.rows.at(now).Invites(open, t.controllers) {
		if resource.GetRoute() != nil {
			v.rows.put(resource, p)
			continue
		}
		after["invite/"+resource.GetInvite().GetName()] = true
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: resource})
	}
	if len(open) == 0 {
		v.rows.remove(route.Join, p)
	}
	removeOthers(v.invites, after, p)
	v.invites = after
}

// setIdentity sends the issuers of this cluster to all agents and gateways.
func (v *nodeViews) setIdentity(p *plan) {
	c := v.cluster()
	v.rows.cluster = c
	p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: c.ForGateways()})
	for node := range v.nodes {
		p.views = append(p.views, nodestream.Change{
			Scope:    nodestream.Node(node),
			Resource: c.ForAgent(node, v.zones[node]),
		})
	}
}
