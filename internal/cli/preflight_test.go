package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

func TestRangesStayWhenInstalledAgain(t *testing.T) {
	running := func(args ...string) client.Object {
		return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Name: "causeway-controller"},
			Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "controller", Args: args}}}}}}
	}
	dual := node("node-1", "10.244.0.0/24").(*corev1.Node)
	dual.Spec.PodCIDRs = append(dual.Spec.PodCIDRs, "fd00:10:244::/64")
	for name, c := range map[string]struct {
		why    string
		have   []client.Object
		values map[string]any
		want   any
	}{
		"first":         {why: "nobody has chosen", have: []client.Object{node("node-1", "10.244.0.0/24")}, want: []any{defaultVIPs4}},
		"again":         {why: "another range gives every mirror another virtual IP, and all calls end", have: []client.Object{node("node-1", "10.244.0.0/24"), running("controller", "--vip-cidrs=10.200.0.0/16")}, want: []any{"10.200.0.0/16"}},
		"chosen":        {why: "a person may mean it", have: []client.Object{running("--vip-cidrs=10.200.0.0/16")}, values: map[string]any{"vipCIDRs": []any{"10.201.0.0/16"}}, want: []any{"10.201.0.0/16"}},
		"second family": {why: "the cluster has got another one since", have: []client.Object{dual, running("--vip-cidrs=10.200.0.0/16")}, want: []any{"10.200.0.0/16", defaultVIPs6}},
		"both":          {why: "both stay", have: []client.Object{dual, running("--vip-cidrs=10.200.0.0/16,fd00:1::/108")}, want: []any{"10.200.0.0/16", "fd00:1::/108"}},
		"another's":     {why: "a Deployment that says nothing of ranges is not asked", have: []client.Object{node("node-1", "10.244.0.0/24"), running("sleep")}, want: []any{defaultVIPs4}},
	} {
		t.Run(name, func(t *testing.T) {
			values := c.values
			if values == nil {
				values = map[string]any{}
			}
			if err := coverFamilies(t.Context(), made("v1.36.3", interceptor.Funcs{}, c.have...), "causeway-system", values); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, values["vipCIDRs"]); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

func TestVIPsForTheFamiliesOfACluster(t *testing.T) {
	cases := map[string]struct {
		why   string
		texts []string
		want  []any
	}{
		"IPv4 alone": {
			why:   "a range of a family that no Service has would be a route for nothing",
			texts: []string{"10.96.0.0/16"}, want: []any{defaultVIPs4},
		},
		"both": {
			why:   "a mirror has an address of each family, and each needs a virtual IP behind it",
			texts: []string{"10.96.0.0/16", "fd00:10:96::/112"}, want: []any{defaultVIPs4, defaultVIPs6},
		},
		"IPv6 alone": {
			why:   "an IPv4 endpoint cannot be reached from a pod that has no IPv4",
			texts: []string{"fd00:10:96::1"}, want: []any{defaultVIPs6},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, vipsFor(c.texts)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}
