package controller

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/check"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
)

// How Causeway's own pods and Services are found: by the chart's labels and names.
const (
	componentLabel  = "app.kubernetes.io/component"
	agentValue      = "agent"
	controllerValue = "controller"
	gatewayService  = "causeway-gateway"
	gatewayPort     = 4143
)

// components holds Causeway's own pods and its gateway Service. A topology is
// computed from it again only when one of them changed.
type components struct {
	namespace string
	pods      map[catalog.Key]*corev1.Pod
	gateway   *corev1.Service
	// served holds the agents' pods that are or have been ready.
	served map[types.UID]bool
	dirty  bool
}

func newComponents(namespace string) *components {
	return &components{namespace: namespace, pods: make(map[catalog.Key]*corev1.Pod), dirty: true}
}

// setPod takes in a pod of any namespace; nil: it is gone.
func (c *components) setPod(k catalog.Key, p *corev1.Pod) {
	if k.Namespace != c.namespace {
		return
	}
	c.dirty = true
	if p == nil {
		delete(c.pods, k)
		return
	}
	c.pods[k] = p
}

// setService takes in a Service of any namespace; nil: it is gone.
func (c *components) setService(k catalog.Key, s *corev1.Service) {
	if k == (catalog.Key{Namespace: c.namespace, Name: gatewayService}) {
		c.gateway, c.dirty = s, true
	}
}

// topology is where Causeway's own processes run. It is immutable.
type topology struct {
	nodes  map[string]bool   // with an agent, ready or not
	agents map[string]string // node → address of its ready agent
	// unzoned are the nodes whose agent does not read zones in hop headers.
	unzoned     map[string]bool
	controllers []view.Controller // ready replicas, sorted by name
	// controllerPods are the names of all pods of the controller.
	controllerPods map[string]bool
	gateways       []string // host:port that peers can dial, sorted; nil: there is no gateway Service
	// failingPaths counts nodes whose path failed when a canary last proved it.
	failingPaths int
	// recheck is when the topology changes without a change of an object; zero: never.
	recheck time.Time
}

// restartGrace is how long an agent counts as ready after its pod has become unready. An
// agent that has crashed is back within a second, vip-guard holds its listeners
// meanwhile, and its readiness probe is seconds behind.
const restartGrace = 5 * time.Second

// topology finds Causeway's processes.
func (c *components) topology(now time.Time) *topology {
	t := &topology{
		nodes:          make(map[string]bool),
		agents:         make(map[string]string),
		unzoned:        make(map[string]bool),
		controllerPods: make(map[string]bool),
	}
	served := make(map[types.UID]bool)
	failing := make(map[string]bool)
	for _, p := range c.pods {
		component := p.Labels[componentLabel]
		if component == controllerValue {
			t.controllerPods[p.Name] = true
		}
		if p.Spec.NodeName == "" || finished(p) {
			continue
		}
		switch component {
		case agentValue:
			t.nodes[p.Spec.NodeName] = true
			c.addAgent(t, p, served, now)
			if p.DeletionTimestamp == nil && p.Labels[clusterinfo.HopZonesLabel] != "true" {
				t.unzoned[p.Spec.NodeName] = true
			}
			if p.DeletionTimestamp == nil && pathFailed(p) {
				failing[p.Spec.NodeName] = true
			}
		case controllerValue:
			if ok, _ := ready(p); ok && p.Status.PodIP != "" && p.DeletionTimestamp == nil {
				t.controllers = append(t.controllers, view.Controller{
					PodName: p.Name,
					PodUID:  string(p.UID),
					Address: p.Status.PodIP,
				})
			}
		}
	}
	slices.SortFunc(t.controllers, func(a, b view.Controller) int {
		return cmp.Compare(a.PodName,
			b.PodName)
	})
	if c.gateway != nil {
		t.gateways = gatewayAddresses(c.gateway)
	}
	t.failingPaths = len(failing)
	c.served, c.dirty = served, false
	return t
}

// addAgent counts an agent's pod in.
func (c *components) addAgent(t *topology, p *corev1.Pod, served map[types.UID]bool, now time.Time) {
	ok, since := ready(p)
	before := c.served[p.UID]
	if ok || before {
		served[p.UID] = true
	}
	if until := since.Add(restartGrace); !ok && before && now.Before(until) {
		ok = true
		t.recheck = earlier(t.recheck, until)
	}
	// A terminating agent accepts no connections, though its probe may not show it yet.
	if ok && p.DeletionTimestamp == nil && p.Status.HostIP != "" {
		t.agents[p.Spec.NodeName] = p.Status.HostIP
	}
}

// same reports whether two topologies describe the same processes.
func (t *topology) same(o *topology) bool {
	return o != nil && maps.Equal(t.nodes, o.nodes) && maps.Equal(t.agents, o.agents) &&
		maps.Equal(t.unzoned, o.unzoned) &&
		slices.Equal(t.controllers, o.controllers) &&
		maps.Equal(t.controllerPods, o.controllerPods) && (t.gateways == nil) == (o.gateways == nil) &&
		slices.Equal(t.gateways, o.gateways)
}

// otherReplicas are the addresses of the ready replicas but one, by pod.
func (t *topology) otherReplicas(own string) map[string]string {
	out := make(map[string]string, len(t.controllers))
	for _, c := range t.controllers {
		if c.PodName != own {
			out[c.PodName] = c.Address
		}
	}
	return out
}

// pathFailed reports whether the node's path failed when a canary last proved it:
// the command that sent the canary left a condition at the agent's pod.
func pathFailed(agent *corev1.Pod) bool {
	return slices.ContainsFunc(agent.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == check.PathProved && c.Status == corev1.ConditionFalse
	})
}

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// ready reports whether a pod is ready, and since when it is or is not.
func ready(p *corev1.Pod) (bool, time.Time) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	return false, time.Time{}
}

// gatewayAddresses returns the external addresses of the gateway Service, from the status
// of its load balancer. A user must add other addresses, such as one behind NAT, to the
// Link in the peer.
func gatewayAddresses(svc *corev1.Service) []string {
	out := []string{} // known to be none
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if host := cmp.Or(in.IP, in.Hostname); host != "" {
			out = append(out, net.JoinHostPort(host, strconv.Itoa(gatewayPort)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// earlier returns the earlier of two times, of which the zero time is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
