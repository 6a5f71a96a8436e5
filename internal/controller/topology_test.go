package controller

import (
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/check"
)

// componentPod is one of Causeway's own pods.
func componentPod(name, component, node string, isReady bool) *corev1.Pod {
	p := agentPod(node)
	p.Name, p.UID, p.Labels[componentLabel] = name, types.UID(name), component
	p.Status.PodIP = "10.0.0.1"
	if !isReady {
		p.Status.Conditions = nil
	}
	return p
}

func componentsOf(pods ...*corev1.Pod) *components {
	c := newComponents(system)
	for _, p := range pods {
		c.setPod(catalog.Key{Namespace: p.Namespace, Name: p.Name}, p)
	}
	return c
}

func TestTopology(t *testing.T) {
	tenant := componentPod("tenant", agentValue, "n4", true)
	tenant.Namespace = "shop"
	terminating := componentPod("c2", controllerValue, "n1", true)
	terminating.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	finished := componentPod("a5", agentValue, "n5", false)
	finished.Status.Phase = corev1.PodFailed
	failing := componentPod("a6", agentValue, "n2", true)
	failing.Status.Conditions = append(failing.Status.Conditions, corev1.PodCondition{
		Type:   check.PathProved,
		Status: corev1.ConditionFalse,
	})
	c := componentsOf(
		componentPod("a1", agentValue, "n1", true), componentPod("a1-old", agentValue, "n1", false),
		componentPod("a2", agentValue, "n3", false),
		componentPod("a3", agentValue, "", true), tenant, componentPod("c1", controllerValue, "n1", true),
		terminating,
		componentPod("c3", controllerValue, "n1", false), finished, failing,
	)
	top := c.topology(time.Unix(0, 0))
	if got := slices.Sorted(maps.Keys(top.nodes)); !slices.Equal(got, []string{"n1", "n2", "n3"}) {
		t.Errorf("nodes are %v: tenants' and finished pods are no agents", got)
	}
	if got := slices.Sorted(maps.Keys(top.agents)); !slices.Equal(got, []string{"n1", "n2"}) {
		t.Errorf("ready agents are on %v: an upgrade's old pod must not hide the new one", got)
	}
	if len(top.controllers) != 1 || top.controllers[0].PodName != "c1" || len(top.controllerPods) != 3 {
		t.Errorf("controllers are %v of %v: terminating and unready ones get no streams", top.controllers,
			top.controllerPods)
	}
	if top.failingPaths != 1 || top.gateways != nil {
		t.Errorf("%d failing paths, gateways %v", top.failingPaths, top.gateways)
	}
	if c.dirty || !top.same(c.topology(time.Unix(0, 0))) {
		t.Error("the same pods give another topology")
	}
}

func TestGatewayAddresses(t *testing.T) {
	c := newComponents(system)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: gatewayService}}
	key := catalog.Key{Namespace: system, Name: gatewayService}
	c.setService(key, svc)
	if top := c.topology(time.Now()); top.gateways == nil || len(top.gateways) > 0 {
		t.Errorf("a Service without addresses has none: %v", top.gateways)
	}
	svc = svc.DeepCopy()
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
		{IP: "198.51.100.2"},
		{Hostname: "gw.example"},
		{IP: "198.51.100.2"},
	}
	c.setService(key, svc)
	if top := c.topology(time.Now()); !slices.Equal(top.gateways, []string{
		"198.51.100.2:4143",
		"gw.example:4143",
	}) {
		t.Errorf("addresses are %v", top.gateways)
	}
	c.setService(key, nil)
	if top := c.topology(time.Now()); top.gateways != nil {
		t.Error("without a Service nothing is advertised")
	}
}

func TestRestartedAgentStaysReady(t *testing.T) {
	down := time.Unix(1000, 0)
	agent := func(name, node string, status corev1.ConditionStatus, since time.Time) *corev1.Pod {
		p := componentPod(name, agentValue, node, true)
		p.Status.Conditions = []corev1.PodCondition{
			{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(since)},
		}
		return p
	}
	cases := map[string]struct {
		why    string
		served bool
		after  time.Duration
		want   bool
	}{
		"just restarted": {
			"the kubelet notices a restart seconds after it is over",
			true,
			restartGrace - 1,
			true,
		},
		"down for long": {"an agent that stays away accepts nothing", true, restartGrace, false},
		"never ready":   {"a new agent counts from its first readiness on", false, 0, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			all := newComponents(system)
			if c.served {
				all = componentsOf(agent("a1", "n1", corev1.ConditionTrue, down.Add(-time.Hour)))
				all.topology(down)
			}
			all.setPod(catalog.Key{
				Namespace: system,
				Name:      "a1",
			}, agent("a1", "n1", corev1.ConditionFalse, down))
			top := all.topology(down.Add(c.after))
			if got := top.agents["n1"] != ""; got != c.want {
				t.Errorf("%s: ready is %v", c.why, got)
			}
			if want := down.Add(restartGrace); c.want && !top.recheck.Equal(want) ||
				!c.want && !top.recheck.IsZero() {
				t.Errorf("%s: decided again at %v", c.why, top.recheck)
			}
		})
	}
	two := componentsOf(agent("a1", "n1", corev1.ConditionTrue, down),
		agent("a2", "n2", corev1.ConditionTrue, down))
	two.topology(down)
	two.setPod(catalog.Key{Namespace: system, Name: "a1"}, agent("a1", "n1", corev1.ConditionFalse, down))
	two.setPod(catalog.Key{
		Namespace: system,
		Name:      "a2",
	}, agent("a2", "n2", corev1.ConditionFalse, down.Add(2*time.Second)))
	if top := two.topology(down.Add(3 * time.Second)); !top.recheck.Equal(down.Add(restartGrace)) {
		t.Errorf("of two graces the first ends at %v", top.recheck)
	}
	going := agent("a1", "n1", corev1.ConditionFalse, down)
	going.DeletionTimestamp = &metav1.Time{Time: down}
	two.setPod(catalog.Key{Namespace: system, Name: "a1"}, going)
	if top := two.topology(down); top.agents["n1"] != "" {
		t.Error("an agent that is being deleted does not come back")
	}
}

// A crashed agent's pods stay in the catalog during the grace, and leave it afterwards
// though no object changes.
func TestRestartGraceEndsByTheClock(t *testing.T) {
	pod := podOn("n1", "web")
	byHand(t, func(t *testing.T, r *replica) {
		accepts := func() bool {
			e, _ := r.index.Get(shopKey("web"))
			return e != nil && slices.ContainsFunc(e.Endpoints,
				func(e catalog.Endpoint) bool { return e.Ready })
		}
		if !accepts() {
			t.Fatal("it does not work at all")
		}
		var agent corev1.Pod
		r.MustGet(t, system, "agent-n1", &agent)
		agent.Status.Conditions[0].Status = corev1.ConditionFalse
		agent.Status.Conditions[0].LastTransitionTime = metav1.NewTime(time.Now())
		if err := r.Status().Update(t.Context(), &agent); err != nil {
			t.Fatal(err)
		}
		if p := r.pass(); !accepts() || p.recheck.IsZero() || time.Until(p.recheck) > restartGrace {
			t.Errorf("during the grace the pod stays; the next pass is due in %v", time.Until(p.recheck))
		}
		bubble.Pass(restartGrace)
		if r.pass(); accepts() {
			t.Error("after the grace the pod cannot be reached")
		}
	}, eastLink(), shop(), exported("web", corev1.ProtocolTCP), pod, sliceOf(pod), agentPod("n1"))
}
