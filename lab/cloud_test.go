package lab

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func service(name string, age int, has string, edit ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(1000-age), 0))}}
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	if has != "" {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: has}}
	}
	for _, e := range edit {
		e(s)
	}
	return s
}

func wants(ip string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerIP = ip }
}

func TestAssign(t *testing.T) {
	clusterIP := func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }
	class := func(s *corev1.Service) { c := "other"; s.Spec.LoadBalancerClass = &c }
	cases := map[string]struct {
		why  string
		have []*corev1.Service
		want map[string]string
	}{
		"steady": {
			why:  "an address that peers know must not move, and nothing is written when nothing changed",
			have: []*corev1.Service{service("a", 2, "198.18.1.11"), service("b", 1, "198.18.1.10")},
		},
		"new": {
			why:  "a new Service takes what is free, not what is first",
			have: []*corev1.Service{service("a", 1, ""), service("b", 2, "198.18.1.10")},
			want: map[string]string{"a": "198.18.1.11"},
		},
		"twice the same": {
			why:  "the older keeps it",
			have: []*corev1.Service{service("a", 1, "198.18.1.10"), service("b", 2, "198.18.1.10")},
			want: map[string]string{"a": "198.18.1.11"},
		},
		"foreign address": {
			why:  "an address of another block leads nowhere",
			have: []*corev1.Service{service("a", 1, "198.18.2.10")},
			want: map[string]string{"a": "198.18.1.10"},
		},
		"asked for": {
			why:  "tests name addresses ahead",
			have: []*corev1.Service{service("a", 1, "", wants("198.18.1.77"))},
			want: map[string]string{"a": "198.18.1.77"},
		},
		"asked for and taken": {
			why:  "a wish is not a right",
			have: []*corev1.Service{service("a", 1, "", wants("198.18.1.77")), service("b", 2, "198.18.1.77")},
			want: map[string]string{"a": "198.18.1.10"},
		},
		"no longer balanced": {
			why:  "a ClusterIP Service must not keep a public address",
			have: []*corev1.Service{service("a", 1, "198.18.1.10", clusterIP)},
			want: map[string]string{"a": "invalid IP"},
		},
		"another's class": {
			why:  "a Service of another balancer is not ours to touch",
			have: []*corev1.Service{service("a", 1, "", class), service("b", 1, "1.2.3.4", class)},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got map[string]string
			for _, a := range assign(planWAN(1), c.have) {
				if got == nil {
					got = map[string]string{}
				}
				got[a.service.Name] = a.addr.String()
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}
