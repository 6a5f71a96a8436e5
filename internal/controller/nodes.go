package controller

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterid"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// nodeViews decides what agents must know of their node's pods, and what agents and
// gateways must know of this cluster and of Causeway's own processes. It belongs to the
// reconciler's goroutine.
type nodeViews struct {
	o        Options
	identity *clusterid.Identity

	pods   map[catalog.Key]*corev1.Pod // those that have a resource on some node
	byNode map[string]map[catalog.Key]bool
	nodes  map[string]bool // that have an agent
	// upstreams are the keys of the gateways' upstreams.
	upstreams map[string]bool
	// catalogRoute is the row that leads to this cluster's controllers.
	catalogRoute view.RouteRow
}

func newNodeViews(o Options, id *clusterid.Identity) *nodeViews {
	return &nodeViews{
		o: o, identity: id, pods: make(map[catalog.Key]*corev1.Pod), byNode: make(map[string]map[catalog.Key]bool),
		nodes: make(map[string]bool), upstreams: make(map[string]bool),
	}
}

// setPod takes in a pod; nil: it is gone.
func (v *nodeViews) setPod(k catalog.Key, pod *corev1.Pod, p *plan) {
	resource := view.Pod(pod, v.o.Namespace) // nil for a pod that no agent must know
	if old := v.pods[k]; old != nil && (resource == nil || old.Spec.NodeName != pod.Spec.NodeName || old.UID != pod.UID) {
		v.removePod(k, old, p)
	}
	if resource == nil {
		return
	}
	node := pod.Spec.NodeName
	v.pods[k] = pod
	if v.byNode[node] == nil {
		v.byNode[node] = make(map[catalog.Key]bool)
	}
	v.byNode[node][k] = true
	if v.nodes[node] {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Node(node), Resource: resource})
	}
}

func (v *nodeViews) removePod(k catalog.Key, old *corev1.Pod, p *plan) {
	node := old.Spec.NodeName
	delete(v.pods, k)
	delete(v.byNode[node], k)
	if len(v.byNode[node]) == 0 {
		delete(v.byNode, node)
	}
	if v.nodes[node] {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Node(node), Removed: view.PodKey(string(old.UID))})
	}
}

// setTopology takes in where Causeway's processes run. exports gives the exports of a
// node that has an agent now.
func (v *nodeViews) setTopology(t *topology, links []string, exports func(node string) []*wire.Resource, now time.Time, p *plan) {
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
		p.views = append(p.views, nodestream.Change{Scope: scope, Resource: v.cluster(view.AgentBackend(node))})
		for k := range v.byNode[node] {
			p.views = append(p.views, nodestream.Change{Scope: scope, Resource: view.Pod(v.pods[k], v.o.Namespace)})
		}
		for _, resource := range exports(node) {
			p.views = append(p.views, nodestream.Change{Scope: scope, Resource: resource})
		}
	}
	v.setUpstreams(t, p)
	v.setCatalogRoute(t, links, now, p)
}

// setUpstreams decides the processes that gateways may splice to.
func (v *nodeViews) setUpstreams(t *topology, p *plan) {
	after := make(map[string]bool, len(t.agents)+len(t.controllers))
	add := func(name, host string, port int) {
		resource := view.Upstream(v.identity.HopMasterKey(), name, host, port)
		after[name] = true
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: resource})
	}
	for node, host := range t.agents {
		add(view.AgentBackend(node), host, view.AgentPort)
	}
	for _, c := range t.controllers {
		add(view.ControllerBackend(c.PodName), c.Address, view.CatalogPort)
	}
	for name := range v.upstreams {
		if !after[name] {
			p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Removed: view.UpstreamKey(name)})
		}
	}
	v.upstreams = after
}

func (v *nodeViews) setCatalogRoute(t *topology, links []string, now time.Time, p *plan) {
	v.catalogRoute = view.CatalogRoute(v.identity.HopMasterKey(), t.controllers, links, v.catalogRoute, now)
	p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: v.catalogRoute.Resource()})
}

// setIdentity tells every agent and gateway this cluster's issuers.
func (v *nodeViews) setIdentity(p *plan) {
	p.views = append(p.views, nodestream.Change{Scope: nodestream.Gateways, Resource: v.cluster("")})
	for node := range v.nodes {
		p.views = append(p.views, nodestream.Change{Scope: nodestream.Node(node), Resource: v.cluster(view.AgentBackend(node))})
	}
}

// cluster is this cluster as the process named backend must know it.
func (v *nodeViews) cluster(backend string) *wire.Resource {
	return view.Cluster(view.ClusterInputs{
		TrustDomain:  v.identity.TrustDomain(),
		Issuers:      v.identity.Issuers().Certificates(),
		VIPCIDRs:     v.o.VIPCIDRs,
		HopMasterKey: v.identity.HopMasterKey(),
	}, backend)
}
