package catalog

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// networkPolicy selects the pods with the label app: bar.
func networkPolicy(rules ...networkingv1.NetworkPolicyIngressRule) networkingv1.NetworkPolicy {
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "policy"}}
	p.Spec.PodSelector = *matching("app", "bar")
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	p.Spec.Ingress = rules
	return p
}

func fromEverybody(ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicyIngressRule {
	return networkingv1.NetworkPolicyIngressRule{Ports: ports}
}

func from(peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicyIngressRule {
	return networkingv1.NetworkPolicyIngressRule{From: peers}
}

func block(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
}

func number(port int32) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromInt32(port))}
}

func portRange(first, last int32) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromInt32(first)), EndPort: &last}
}

func named(name string) networkingv1.NetworkPolicyPort {
	return networkingv1.NetworkPolicyPort{Port: ptr(intstr.FromString(name))}
}

func protocol(p corev1.Protocol, port networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicyPort {
	port.Protocol = &p
	return port
}

// The pod listens on 8080, named web, and on 9090, named admin.
func TestIngress(t *testing.T) {
	both := []uint16{8080, 9090}
	changed := func(p networkingv1.NetworkPolicy,
		change func(*networkingv1.NetworkPolicySpec)) networkingv1.NetworkPolicy {
		change(&p.Spec)
		return p
	}
	anyNamespace := networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}}
	somePods := networkingv1.NetworkPolicyPeer{PodSelector: matching("app", "foo")}
	one := func(rules ...networkingv1.NetworkPolicyIngressRule) []networkingv1.NetworkPolicy {
		return []networkingv1.NetworkPolicy{networkPolicy(rules...)}
	}
	cases := map[string]struct {
		why      string
		policies []networkingv1.NetworkPolicy
		ipv6     bool // the pod has an IPv6 address, too
		isolated []uint16
	}{
		"no policy": {why: "a pod that no policy selects takes connections from everywhere"},
		"no rule":   {why: "a policy without rules isolates the pod", policies: one(), isolated: both},
		"empty rule": {
			why:      "an empty rule admits every source to every port",
			policies: one(fromEverybody()),
		},
		"one port from everybody": {
			why:      "the rule opens its port and no other",
			policies: one(fromEverybody(number(8080))), isolated: []uint16{9090},
		},
		"every namespace": {
			why: "a namespaceSelector admits pods of this cluster, and callers of linked clusters " +
				"are not such pods",
			policies: one(from(anyNamespace)), isolated: both,
		},
		"podSelector": {
			why:      "the selector admits pods of this namespace only",
			policies: one(from(somePods)),
			isolated: both,
		},
		"podSelector beside a port": {
			why: "the port is open to these pods only",
			policies: one(networkingv1.NetworkPolicyIngressRule{
				From:  []networkingv1.NetworkPolicyPeer{somePods},
				Ports: []networkingv1.NetworkPolicyPort{number(8080)},
			}),
			isolated: both,
		},
		"podSelector and everything": {
			why:      "the peers of a rule are a union, and one of them admits every source",
			policies: one(from(somePods, block("0.0.0.0/0"))),
		},
		"two rules": {
			why:      "the rules of a policy are a union",
			policies: one(from(somePods), fromEverybody(number(9090))), isolated: []uint16{8080},
		},
		"two policies": {
			why: "policies are a union: what one opens, another does not close",
			policies: []networkingv1.NetworkPolicy{
				networkPolicy(),
				networkPolicy(fromEverybody(number(8080))),
			},
			isolated: []uint16{9090},
		},
		"two policies, two ports": {
			why: "policies are a union",
			policies: []networkingv1.NetworkPolicy{
				networkPolicy(fromEverybody(number(9090))),
				networkPolicy(fromEverybody(number(8080))),
			},
		},
		"named port": {
			why:      "the name is that of a container port",
			policies: one(fromEverybody(named("admin"))), isolated: []uint16{8080},
		},
		"unknown name": {
			why:      "the pod has no port of this name",
			policies: one(fromEverybody(named("nope"))),
			isolated: both,
		},
		"name of UDP port": {
			why:      "a name is that of a port of one protocol",
			policies: one(fromEverybody(named("dns"))),
			isolated: both,
		},
		"range": {
			why:      "endPort opens a range",
			policies: one(fromEverybody(portRange(8000, 8080))), isolated: []uint16{9090},
		},
		"range below": {
			why:      "the range ends before the port",
			policies: one(fromEverybody(portRange(1, 8079))),
			isolated: both,
		},
		"range of both": {
			why:      "the range holds both ports",
			policies: one(fromEverybody(portRange(8080, 9090))),
		},
		"UDP": {
			why:      "only TCP crosses Links",
			policies: one(fromEverybody(protocol(corev1.ProtocolUDP, number(8080)))),
			isolated: both,
		},
		"TCP, every port": {
			why:      "a port entry without a number opens every port of its protocol",
			policies: one(fromEverybody(protocol(corev1.ProtocolTCP, networkingv1.NetworkPolicyPort{}))),
		},
		"UDP, every port": {
			why:      "a port entry without a number opens every port of its protocol",
			policies: one(fromEverybody(protocol(corev1.ProtocolUDP, networkingv1.NetworkPolicyPort{}))),
			isolated: both,
		},
		"egress only": {
			why: "the policy does not govern ingress",
			policies: []networkingv1.NetworkPolicy{
				changed(networkPolicy(), func(s *networkingv1.NetworkPolicySpec) {
					s.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
				}),
			},
		},
		"egress and ingress": {
			why: "the policy governs both",
			policies: []networkingv1.NetworkPolicy{
				changed(networkPolicy(), func(s *networkingv1.NetworkPolicySpec) {
					s.PolicyTypes = append(s.PolicyTypes, networkingv1.PolicyTypeEgress)
				}),
			}, isolated: both,
		},
		"policyTypes absent": {
			why: "every policy governs ingress then, even one with egress rules only",
			policies: []networkingv1.NetworkPolicy{
				changed(networkPolicy(), func(s *networkingv1.NetworkPolicySpec) {
					s.PolicyTypes, s.Egress = nil, []networkingv1.NetworkPolicyEgressRule{{}}
				}),
			}, isolated: both,
		},
		"all pods": {
			why: "an empty podSelector selects every pod of the namespace",
			policies: []networkingv1.NetworkPolicy{
				changed(networkPolicy(), func(s *networkingv1.NetworkPolicySpec) {
					s.PodSelector = metav1.LabelSelector{}
				}),
			}, isolated: both,
		},
		"other pods": {
			why: "the policy does not select the pod",
			policies: []networkingv1.NetworkPolicy{
				changed(networkPolicy(), func(s *networkingv1.NetworkPolicySpec) {
					s.PodSelector = *matching("app", "foo")
				}),
			},
		},
		"other pods, open": {
			why: "a policy that does not select the pod opens nothing of it",
			policies: []networkingv1.NetworkPolicy{
				networkPolicy(),
				changed(networkPolicy(fromEverybody()), func(s *networkingv1.NetworkPolicySpec) {
					s.PodSelector = *matching("app", "foo")
				}),
			}, isolated: both,
		},
		"invalid selector": {
			why: "in doubt the pod is isolated, and the policy opens nothing",
			policies: []networkingv1.NetworkPolicy{
				changed(networkPolicy(fromEverybody()), func(s *networkingv1.NetworkPolicySpec) {
					s.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{
						{Key: "a", Operator: "Perhaps"},
					}
				}),
			}, isolated: both,
		},
		"all of IPv4": {
			why:      "the block covers the family of the pod",
			policies: one(from(block("0.0.0.0/0"))),
		},
		"all of IPv4, spelt oddly": {
			why:      "the length alone decides",
			policies: one(from(block("10.1.2.3/0"))),
		},
		"all of IPv4, dual-stack": {
			why:      "the block covers a family of the pod",
			ipv6:     true,
			policies: one(from(block("0.0.0.0/0"))),
		},
		"all of IPv4 but some": {
			why:      "an exception can hold anything",
			policies: one(from(block("0.0.0.0/0", "10.0.0.0/8"))),
			isolated: both,
		},
		"all of IPv4 but some, twice": {
			why:      "another peer of the rule has no exception",
			policies: one(from(block("0.0.0.0/0", "10.0.0.0/8"), block("0.0.0.0/0"))),
		},
		"a private block": {
			why:      "the block covers a part of the family",
			policies: one(from(block("10.0.0.0/8"))),
			isolated: both,
		},
		"half of IPv4": {
			why:      "the block covers a part of the family",
			policies: one(from(block("0.0.0.0/1"))),
			isolated: both,
		},
		"all of IPv6": {
			why:      "the pod has no IPv6 address, so that no source can reach it by this rule",
			policies: one(from(block("::/0"))),
			isolated: both,
		},
		"all of IPv6, dual-stack": {
			why:      "the block covers a family of the pod",
			ipv6:     true,
			policies: one(from(block("::/0"))),
		},
		"both families": {
			why:      "the blocks cover every source",
			policies: one(from(block("::/0"), block("0.0.0.0/0"))),
		},
		"all of IPv4, one port": {
			why: "the rule opens its port and no other",
			policies: one(networkingv1.NetworkPolicyIngressRule{
				From:  []networkingv1.NetworkPolicyPeer{block("0.0.0.0/0")},
				Ports: []networkingv1.NetworkPolicyPort{named("web")},
			}), isolated: []uint16{9090},
		},
		"invalid block": {
			why:      "what cannot be parsed opens nothing",
			policies: one(from(block("everywhere"))),
			isolated: both,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			pod := podOf("uid-1", "10.244.0.5")
			pod.Spec.Containers[0].Ports = append(pod.Spec.Containers[0].Ports,
				corev1.ContainerPort{
					Name:          "admin",
					ContainerPort: 9090,
				}, corev1.ContainerPort{Name: "dns", ContainerPort: 8080, Protocol: "UDP"})
			if c.ipv6 {
				pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: "fd00::5"})
			}
			policies := make(map[string]*ingressPolicy)
			for i := range c.policies {
				if p := readIngressPolicy(&c.policies[i]); p != nil {
					policies[string(rune('a'+i))] = p
				}
			}
			g := ingressOf(&pod, policies)
			isolated := slices.DeleteFunc(slices.Clone(both), g.open)
			if d := cmp.Diff(c.isolated, isolated, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: isolated ports (-want +got):\n%s", c.why, d)
			}
		})
	}
}

// An exported Service whose pods are isolated needs an ExportPolicy, and says so.
func TestNetworkPolicyIsolates(t *testing.T) {
	policy := v1alpha1.ExportPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "callers"}}
	policy.Spec.Callers = []v1alpha1.Caller{{Link: "west"}}
	elsewhere := policy
	elsewhere.Spec.Services = []string{"foo"}
	cases := map[string]struct {
		why      string
		rules    []networkingv1.NetworkPolicyIngressRule
		policies []v1alpha1.ExportPolicy
		isolated []uint16
		problem  bool
	}{
		"port 8080 from everybody": {
			why:   "the rule admits every source to the port behind Service port 80",
			rules: []networkingv1.NetworkPolicyIngressRule{fromEverybody(number(8080))},
		},
		"everything from everybody": {
			why:   "the policy isolates nothing in effect",
			rules: []networkingv1.NetworkPolicyIngressRule{{}},
		},
		"every namespace": {
			why: "peers are refused, and the owner must know",
			rules: []networkingv1.NetworkPolicyIngressRule{
				from(networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}}),
			},
			isolated: []uint16{80},
			problem:  true,
		},
		"Service port, not container port": {
			why:      "NetworkPolicies are about container ports",
			rules:    []networkingv1.NetworkPolicyIngressRule{fromEverybody(number(80))},
			isolated: []uint16{80},
			problem:  true,
		},
		"isolated, with an ExportPolicy": {
			why:      "the ExportPolicy names the callers",
			policies: []v1alpha1.ExportPolicy{policy}, isolated: []uint16{80},
		},
		"isolated, with another Service's ExportPolicy": {
			why:      "the ExportPolicy does not select this Service",
			policies: []v1alpha1.ExportPolicy{elsewhere}, isolated: []uint16{80}, problem: true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			in.NetworkPolicies = []networkingv1.NetworkPolicy{networkPolicy(c.rules...)}
			in.ExportPolicies = c.policies
			got := in.build()
			if d := cmp.Diff(c.isolated, got.List[0].Endpoints[0].Isolated, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: isolated Service ports (-want +got):\n%s", c.why, d)
			}
			var want []string
			if c.problem {
				want = []string{NetworkPolicyIsolates}
			}
			if d := cmp.Diff(want, reasonsOf(got.Problems)); d != "" {
				t.Fatalf("%s: problems (-want +got):\n%s", c.why, d)
			}
			if c.problem && (!strings.Contains(got.Problems[0].Message, "port 80,") ||
				!strings.Contains(got.Problems[0].Message, "ExportPolicy")) {
				t.Errorf("the message names neither port nor remedy: %s", got.Problems[0].Message)
			}
			if c.problem && !slices.Equal(got.LinkProblems["west"], got.Problems) {
				t.Errorf("the Link does not know: %v", got.LinkProblems)
			}
		})
	}
}

// An identity that agents tell the application proves something only where other pods
// cannot connect.
func TestIdentityForgeable(t *testing.T) {
	cases := map[string]struct {
		why      string
		forward  string
		policies []networkingv1.NetworkPolicy
		ports    string // in the message; empty: no problem
	}{
		"not forwarded": {why: "the application receives none", forward: "none"},
		"no policy":     {why: "every pod can connect", forward: "header", ports: "port 80 "},
		"open policy": {
			why:      "it admits every source",
			forward:  "proxy-v2",
			policies: []networkingv1.NetworkPolicy{networkPolicy(fromEverybody())},
			ports:    "port 80 ",
		},
		"isolated": {
			why:      "agents use the node's network, which policies do not cover",
			forward:  "header",
			policies: []networkingv1.NetworkPolicy{networkPolicy()},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			in.Services[0].Annotations = map[string]string{v1alpha1.ForwardIdentityAnnotation: c.forward}
			in.NetworkPolicies = c.policies
			in.ExportPolicies = []v1alpha1.ExportPolicy{{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "callers"},
			}}
			got := in.build().Problems
			if c.ports == "" {
				if len(got) > 0 {
					t.Errorf("%s: %v", c.why, got)
				}
				return
			}
			if len(got) != 1 || got[0].Reason != IdentityForgeable ||
				!strings.Contains(got[0].Message, c.ports) {
				t.Errorf("%s: %v", c.why, got)
			}
		})
	}
}
