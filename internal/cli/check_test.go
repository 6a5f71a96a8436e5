package cli

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/charts"
)

// allowing is an API server in which every account may do everything.
func allowing() interceptor.Funcs {
	return interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.CreateOption) error {
		if review, ok := o.(*authorizationv1.SubjectAccessReview); ok {
			review.Status.Allowed = true
			return nil
		}
		return c.Create(ctx, o, options...)
	}}
}

// What is asked about is what the chart gives, so that no right is forgotten.
func TestChartRights(t *testing.T) {
	rights, err := chartRights("causeway-system")
	if err != nil {
		t.Fatal(err)
	}
	accounts := map[string]int{}
	for _, r := range rights {
		accounts[r.Account]++
	}
	if len(accounts) != 3 || accounts["causeway-controller"] < 40 || accounts["causeway-agent"] != 3 || accounts["causeway-gateway"] != 2 {
		t.Errorf("got rights of %v", accounts)
	}
}

// A canary has no rights at all, says what the command understands, and goes wherever an agent is.
func TestCanaryPod(t *testing.T) {
	r, err := charts.Render("causeway-system", map[string]any{"clusterName": "west"})
	if err != nil {
		t.Fatal(err)
	}
	var set appsv1.DaemonSet
	var svc corev1.Service
	for _, o := range r.Objects {
		switch o.GetKind() + "/" + o.GetName() {
		case "DaemonSet/causeway-agent":
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &set)
		case "Service/causeway-canary":
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &svc)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	svc.Spec.ClusterIPs = []string{"10.96.0.7", "fd00::7"}
	p, err := canaryPod(&set, &svc, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	c := p.Spec.Containers[0]
	want := []string{"canary", "call", "--name=causeway-canary.causeway-system.svc:4200", "--address=10.96.0.7:4200", "--address=[fd00::7]:4200"}
	if diff := cmp.Diff(want, c.Args); diff != "" {
		t.Errorf("it calls every address and the name (-want +got):\n%s", diff)
	}
	understood(t, c.Args, c.Env)
	if p.Spec.HostNetwork || len(p.Spec.Volumes) > 0 || *p.Spec.AutomountServiceAccountToken || len(c.SecurityContext.Capabilities.Add) > 0 {
		t.Error("it must be as a pod of the poorest tenant: on the pod network, without token, volume or capability")
	}
	if c.Image != set.Spec.Template.Spec.Containers[0].Image || p.Spec.NodeName != "node-1" || p.Spec.Tolerations[0].Operator != corev1.TolerationOpExists {
		t.Error("it runs the agent's image on the very node, whatever its taints")
	}
}
