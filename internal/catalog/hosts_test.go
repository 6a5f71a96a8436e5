package catalog

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
)

// statefulSet makes the Service of in headless, and its pods those of a StatefulSet:
// bar-0 and bar-1.
func statefulSet(in *cluster) {
	in.Services[0].Spec.ClusterIP = corev1.ClusterIPNone
	second := podOf("uid-2", "10.244.0.6")
	in.Pods = append(in.Pods, second)
	in.EndpointSlices = append(in.EndpointSlices, sliceOf("bar", "uid-2", "10.244.0.6"))
	for i := range in.Pods {
		in.Pods[i].Spec.Hostname, in.Pods[i].Spec.Subdomain = fmt.Sprint("bar-", i), "bar"
	}
}

func TestHosts(t *testing.T) {
	both := []Host{{Name: "bar-0", Ready: true}, {Name: "bar-1", Ready: true}}
	cases := map[string]struct {
		why      string
		change   func(*cluster)
		headless bool
		hosts    []Host
		problems []string
	}{
		"a StatefulSet": {
			why:      "pods of a StatefulSet have names",
			change:   func(*cluster) {},
			headless: true,
			hosts:    both,
		},
		"not headless": {
			why:    "DNS has no names below the Service",
			change: func(in *cluster) { in.Services[0].Spec.ClusterIP = "10.96.0.7" },
		},
		"no names": {
			why:      "a pod without a host name, or without the subdomain, has no name in DNS",
			change:   func(in *cluster) { in.Pods[0].Spec.Hostname, in.Pods[1].Spec.Subdomain = "", "" },
			headless: true,
		},
		"another's names": {
			why:      "the name is below another Service",
			change:   func(in *cluster) { in.Pods[0].Spec.Subdomain = "db" },
			headless: true,
			hosts:    both[1:],
		},
		"no label": {
			why:      "the name becomes the name of a Service",
			change:   func(in *cluster) { in.Pods[0].Spec.Hostname = "Bar_0" },
			headless: true,
			hosts:    both[1:],
		},
		"one not ready": {
			why:      "the mirror of the pod is not ready",
			change:   func(in *cluster) { in.EndpointSlices[1].Endpoints[0].Conditions.Ready = ptr(false) },
			headless: true,
			hosts:    []Host{both[0], {Name: "bar-1"}},
		},
		"no pods": {
			why:      "a Service without pods stays headless",
			change:   func(in *cluster) { in.EndpointSlices = nil },
			headless: true,
		},
		"name in the slice": {
			why:      "the pod decides its name, not the EndpointSlice",
			change:   func(in *cluster) { in.EndpointSlices[0].Endpoints[0].Hostname = ptr("root") },
			headless: true,
			hosts:    both,
		},
		"old and new pod": {why: "the name is ready if either pod is", change: func(in *cluster) {
			in.Pods[1].Spec.Hostname = "bar-0"
			in.EndpointSlices[0].Endpoints[0].Conditions.Ready = ptr(false)
		}, headless: true, hosts: both[:1]},
		"more than can be": {
			why:      "the number of names is bounded",
			change:   tooMany,
			headless: true,
			problems: []string{TooManyHostnames},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			statefulSet(&in)
			c.change(&in)
			got := in.build()
			s := got.For("west")[Key{"shop", "bar"}]
			if s.Headless != c.headless {
				t.Errorf("%s: headless is %v", c.why, s.Headless)
			}
			if len(c.problems) > 0 {
				if len(s.Hosts) != MaxHosts {
					t.Errorf("%s: %d hosts", c.why, len(s.Hosts))
				}
			} else if d := cmp.Diff(c.hosts, s.Hosts, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if d := cmp.Diff(c.problems, reasonsOf(got.Problems), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if _, problems := s.Validate("east.1"); len(problems) > 0 {
				t.Errorf("a peer would refuse it: %v", problems)
			}
		})
	}
}

func tooMany(in *cluster) {
	for i := range MaxHosts {
		p := podOf(fmt.Sprint("more-", i), fmt.Sprintf("10.244.1.%d", i))
		p.Spec.Hostname, p.Spec.Subdomain = fmt.Sprint("more-", i), "bar"
		in.Pods = append(in.Pods, p)
		in.EndpointSlices = append(in.EndpointSlices,
			sliceOf("bar", string(p.UID), fmt.Sprintf("10.244.1.%d", i)))
	}
}
