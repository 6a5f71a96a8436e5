package catalog

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
)

// statefulSet makes the Service of in headless, and its pods those of a StatefulSet: bar-0 and bar-1.
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
		"a StatefulSet":   {why: "its pods have names", change: func(*cluster) {}, headless: true, hosts: both},
		"not headless":    {why: "no name below the Service is in DNS", change: func(in *cluster) { in.Services[0].Spec.ClusterIP = "10.96.0.7" }},
		"no names":        {why: "other headless Services become ordinary mirrors", change: func(in *cluster) { in.Pods[0].Spec.Hostname, in.Pods[1].Spec.Subdomain = "", "" }, headless: true},
		"another's names": {why: "the name is below another Service", change: func(in *cluster) { in.Pods[0].Spec.Subdomain = "db" }, headless: true, hosts: both[1:]},
		"no label":        {why: "it becomes a Service's name", change: func(in *cluster) { in.Pods[0].Spec.Hostname = "Bar_0" }, headless: true, hosts: both[1:]},
		"one not ready":   {why: "its mirror says so", change: func(in *cluster) { in.EndpointSlices[1].Endpoints[0].Conditions.Ready = ptr(false) }, headless: true, hosts: []Host{both[0], {Name: "bar-1"}}},
		"no pods":         {why: "scaled to zero it is headless still", change: func(in *cluster) { in.EndpointSlices = nil }, headless: true},
		"a slice's word":  {why: "a name that an EndpointSlice alone tells is not the pod's", change: func(in *cluster) { in.EndpointSlices[0].Endpoints[0].Hostname = ptr("root") }, headless: true, hosts: both},
		"old and new pod": {why: "the ready one speaks for the name", change: func(in *cluster) {
			in.Pods[1].Spec.Hostname = "bar-0"
			in.EndpointSlices[0].Endpoints[0].Conditions.Ready = ptr(false)
		}, headless: true, hosts: both[:1]},
		"more than can be": {why: "bounded", change: tooMany, headless: true, problems: []string{TooManyHostnames}},
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
				t.Errorf("what we tell is believed: %v", problems)
			}
		})
	}
}

func tooMany(in *cluster) {
	for i := range MaxHosts {
		p := podOf(fmt.Sprint("more-", i), fmt.Sprintf("10.244.1.%d", i))
		p.Spec.Hostname, p.Spec.Subdomain = fmt.Sprint("more-", i), "bar"
		in.Pods = append(in.Pods, p)
		in.EndpointSlices = append(in.EndpointSlices, sliceOf("bar", string(p.UID), fmt.Sprintf("10.244.1.%d", i)))
	}
}
