package controller

import (
	"cmp"
	"net"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

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
	nodes       []string          // with an agent, ready or not; sorted
	agents      map[string]string // node → address of its ready agent
	controllers []view.Controller // ready replicas, sorted by name
	gateways    []string          // host:port that peers can dial, sorted
}

func (s *snapshot) topology() topology {
	t := topology{agents: make(map[string]string)}
	for i := range s.pods {
		p := &s.pods[i]
		if p.Namespace != s.namespace || p.Spec.NodeName == "" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
			continue
		}
		switch p.Labels[componentLabel] {
		case agentValue:
			t.nodes = append(t.nodes, p.Spec.NodeName)
			if ready(p) && p.Status.HostIP != "" {
				t.agents[p.Spec.NodeName] = p.Status.HostIP
			}
		case controllerValue:
			if ready(p) && p.Status.PodIP != "" && p.DeletionTimestamp == nil {
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

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// addresses are where the gateway's Service is reached from outside, as far as
// its load balancer says. What only a person knows, such as an address behind
// NAT, is written into the peer's Link by hand.
func addresses(svc *corev1.Service) []string {
	var out []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if host := cmp.Or(in.IP, in.Hostname); host != "" {
			out = append(out, net.JoinHostPort(host, strconv.Itoa(gatewayPort)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
