package catalog

import (
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ingressPolicy is what a NetworkPolicy says about ingress, as far as callers of linked
// clusters are concerned: which pods it isolates, and which of their ports it opens to
// every source. A rule that names some sources (pods, namespaces, parts of the address
// space) does not admit callers of linked clusters, which have no address here.
type ingressPolicy struct {
	spec *networkingv1.NetworkPolicySpec
	// selector selects the isolated pods.
	selector labels.Selector
	open     []openRule
}

// openRule opens ports to every source of the IPv4 or the IPv6 family, or of both.
type openRule struct {
	ipv4, ipv6 bool
	// ports is empty if the rule opens all ports of TCP.
	ports []policyPort
	all   bool
}

// policyPort is a range of port numbers, or the name of a container port.
type policyPort struct {
	name        string
	first, last int32
}

// readIngressPolicy parses a NetworkPolicy. It returns nil for a policy that does not
// govern ingress. A policy without policyTypes governs ingress.
func readIngressPolicy(p *networkingv1.NetworkPolicy) *ingressPolicy {
	if p == nil {
		return nil
	}
	if types := p.Spec.PolicyTypes; len(types) > 0 &&
		!slices.Contains(types, networkingv1.PolicyTypeIngress) {
		return nil
	}
	out := &ingressPolicy{spec: &p.Spec}
	selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
	if err != nil {
		out.selector = labels.Everything() // in doubt a pod is isolated
		return out
	}
	out.selector = selector
	for i := range p.Spec.Ingress {
		if r, opens := readOpenRule(&p.Spec.Ingress[i]); opens {
			out.open = append(out.open, r)
		}
	}
	return out
}

func (p *ingressPolicy) equal(o *ingressPolicy) bool {
	return p == o || p != nil && o != nil && reflect.DeepEqual(p.spec, o.spec)
}

// readOpenRule reports whether a rule opens TCP ports to every source of a family.
func readOpenRule(rule *networkingv1.NetworkPolicyIngressRule) (openRule, bool) {
	r := openRule{ipv4: len(rule.From) == 0, ipv6: len(rule.From) == 0, all: len(rule.Ports) == 0}
	for _, peer := range rule.From {
		if peer.IPBlock == nil || len(peer.IPBlock.Except) > 0 {
			continue
		}
		if block, err := netip.ParsePrefix(peer.IPBlock.CIDR); err == nil && block.Bits() == 0 {
			r.ipv4 = r.ipv4 || block.Addr().Is4()
			r.ipv6 = r.ipv6 || block.Addr().Is6()
		}
	}
	for _, p := range rule.Ports {
		switch {
		case p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP && *p.Protocol != "":
		case p.Port == nil:
			r.all = true
		case p.Port.Type == intstr.String:
			r.ports = append(r.ports, policyPort{name: p.Port.StrVal})
		case p.EndPort != nil:
			r.ports = append(r.ports, policyPort{first: p.Port.IntVal, last: *p.EndPort})
		default:
			r.ports = append(r.ports, policyPort{first: p.Port.IntVal, last: p.Port.IntVal})
		}
	}
	return r, (r.ipv4 || r.ipv6) && (r.all || len(r.ports) > 0)
}

// ingress is what all NetworkPolicies together say about one pod.
type ingress struct {
	isolated bool
	// all ports are open to every source, or those of ranges.
	all    bool
	ranges []policyPort // without names
}

// notIsolated is the ingress of pods that no NetworkPolicy selects.
var notIsolated = &ingress{}

// ingressOf evaluates the NetworkPolicies of the pod's namespace. Policies are a union:
// if any selects the pod, the pod is isolated, and a port is open if any of them opens
// it. A rule that opens the ports to one family counts if the pod has an address of it.
func ingressOf(pod *corev1.Pod, policies map[string]*ingressPolicy) *ingress {
	out := notIsolated
	for _, p := range policies {
		if !p.selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		if out == notIsolated {
			out = &ingress{isolated: true}
		}
		for _, r := range p.open {
			out.add(r, pod)
		}
	}
	return out
}

func (g *ingress) add(r openRule, pod *corev1.Pod) {
	opens := slices.ContainsFunc(pod.Status.PodIPs, func(own corev1.PodIP) bool {
		ip, err := netip.ParseAddr(own.IP)
		return err == nil && (r.ipv4 && ip.Is4() || r.ipv6 && ip.Is6())
	})
	if !opens {
		return
	}
	g.all = g.all || r.all
	for _, p := range r.ports {
		if p.name == "" {
			g.ranges = append(g.ranges, p)
		} else if number, found := namedPort(pod, p.name); found {
			g.ranges = append(g.ranges, policyPort{first: int32(number), last: int32(number)})
		}
	}
}

// open reports whether every source may connect to a container port.
func (g *ingress) open(port uint16) bool {
	return !g.isolated || g.all || slices.ContainsFunc(g.ranges, func(r policyPort) bool {
		return r.first <= int32(port) && int32(port) <= r.last
	})
}
