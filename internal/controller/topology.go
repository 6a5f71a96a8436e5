package controller

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

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

// topology is where Causeway's own processes run.
type topology struct {
	nodes       []string           // with an agent, ready or not; sorted
	agents      map[string]string  // node → address of its ready agent
	controllers []view.Controller  // ready replicas, sorted by name
	gateways    []string           // host:port that peers can dial, sorted; nil: there is no gateway's Service
	served      map[types.UID]bool // agents' pods that are or have been ready
	again       time.Duration      // when it changes by itself; 0: not
}

// restartGrace is how long an agent that was ready counts on though its pod says
// otherwise. An agent that has crashed is back within a second, and vip-guard
// holds its listeners meanwhile; its probe is seconds behind.
const restartGrace = 5 * time.Second

// topology finds Causeway's processes. served is what the last one had.
func (s *snapshot) topology(served map[types.UID]bool, now time.Time) topology {
	t := topology{agents: make(map[string]string), served: make(map[types.UID]bool)}
	for i := range s.pods {
		p := &s.pods[i]
		if p.Namespace != s.namespace || p.Spec.NodeName == "" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
			continue
		}
		switch p.Labels[componentLabel] {
		case agentValue:
			t.nodes = append(t.nodes, p.Spec.NodeName)
			t.addAgent(p, served[p.UID], now)
		case controllerValue:
			if ok, _ := ready(p); ok && p.Status.PodIP != "" && p.DeletionTimestamp == nil {
				t.controllers = append(t.controllers, view.Controller{PodName: p.Name, PodUID: string(p.UID), Address: p.Status.PodIP})
			}
		}
	}
	slices.Sort(t.nodes)
	t.nodes = slices.Compact(t.nodes)
	slices.SortFunc(t.controllers, func(a, b view.Controller) int { return cmp.Compare(a.PodName, b.PodName) })
	for i := range s.services {
		if svc := &s.services[i]; svc.Namespace == s.namespace && svc.Name == gatewayService {
			t.gateways = addresses(svc)
		}
	}
	return t
}

// addAgent counts an agent's pod in. before: it has been ready.
func (t *topology) addAgent(p *corev1.Pod, before bool, now time.Time) {
	ok, since := ready(p)
	if ok || before {
		t.served[p.UID] = true
	}
	if left := since.Add(restartGrace).Sub(now); !ok && before && left > 0 {
		ok = true
		if t.again == 0 || left < t.again {
			t.again = left
		}
	}
	// One that goes accepts nobody any more, though its probe may not know yet.
	if ok && p.DeletionTimestamp == nil && p.Status.HostIP != "" {
		t.agents[p.Spec.NodeName] = p.Status.HostIP
	}
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

// addresses are where the gateway's Service is reached from outside, as far as
// its load balancer says. What only a person knows, such as an address behind
// NAT, is written into the peer's Link by hand.
func addresses(svc *corev1.Service) []string {
	out := []string{} // none, and that is known
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if host := cmp.Or(in.IP, in.Hostname); host != "" {
			out = append(out, net.JoinHostPort(host, strconv.Itoa(gatewayPort)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
