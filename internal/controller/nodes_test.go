package controller

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

// An export has pods on a node without an agent. Its agent learns of the pods and of the
// exports when it comes, and the log has no warning in between.
func TestNodeWithoutAgent(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		pod := podOn("n1", "web")
		api := newAPI(eastLink(), shop(), exported("web", corev1.ProtocolTCP), pod, sliceOf(pod))
		var log logLines
		r := newReplicaWith(t, west(), api, func(o *Options) { o.Log = log.logger() })
		r.lead()
		known := func() string {
			view, _ := r.hub.View(nodestream.Node("n1"))
			var keys []string
			for _, key := range []string{"cluster", "export/shop/web", "pod/pod-web"} {
				if view[key] != nil {
					keys = append(keys, key)
				}
			}
			return strings.Join(keys, " ")
		}
		r.during(t, func() {
			r.settle()
			if got := known(); got != "" {
				t.Errorf("a node without an agent receives %q", got)
			}
			agent := agentPod("n1")
			r.create(t, agent)
			bubble.Pass(time.Second)
			if got := known(); got != "cluster export/shop/web pod/pod-web" {
				t.Errorf("a new agent receives %q", got)
			}
			r.delete(t, agent)
			bubble.Pass(time.Second)
			r.delete(t, exported("web", corev1.ProtocolTCP))
			r.delete(t, pod)
			bubble.Pass(time.Second)
			if got := known(); got != "" || len(r.nodes.pods) > 0 || len(r.exports.byNode) > 0 {
				t.Errorf("a node without its agent has resources %q", got)
			}
		})
		if log.count("level=WARN") > 0 {
			t.Errorf("warnings:\n%s", log.text.String())
		}
	})
}

// The agent of a node knows an export as long as its namespace has a pod there, although
// no pod backs the Service any more: what is open to a pod may stay open.
func TestNodeKnowsTheExportsOfItsNamespaces(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		pod := podOn("n1", "web")
		slice := sliceOf(pod)
		api := newAPI(eastLink(), shop(), exported("web", corev1.ProtocolTCP), pod, slice, agentPod("n1"))
		r := newReplicaWith(t, west(), api, func(*Options) {})
		r.lead()
		known := func() (there bool, pods int) {
			view, _ := r.hub.View(nodestream.Node("n1"))
			e := view["export/shop/web"]
			return e != nil, len(e.GetExport().GetPods())
		}
		r.during(t, func() {
			r.settle()
			if there, pods := known(); !there || pods != 1 {
				t.Fatalf("known %v, with %d pods", there, pods)
			}
			r.delete(t, slice)
			bubble.Pass(time.Second)
			if there, pods := known(); !there || pods != 0 {
				t.Errorf("after its selector changed: known %v, with %d pods, want none", there, pods)
			}
			r.delete(t, pod)
			bubble.Pass(time.Second)
			if there, _ := known(); there {
				t.Error("it is known where its namespace has no pod")
			}
			r.create(t, podOn("n1", "web"))
			bubble.Pass(time.Second)
			if there, _ := known(); !there {
				t.Error("it is not known where its namespace has a pod again")
			}
			r.delete(t, exported("web", corev1.ProtocolTCP))
			bubble.Pass(time.Second)
			if there, _ := known(); there || len(r.exports.byNamespace) > 0 || len(r.exports.nodes) > 0 {
				t.Error("it is known though it is not exported")
			}
		})
	})
}

// An agent learns the zone of its node, and gateways learn the zones of all agents. Peers
// learn the zones of a Service only if it prefers the caller's zone, and only from agents
// that read zones in hop headers.
func TestZonesReachAgentsAndGateways(t *testing.T) {
	west()
	east()
	node := func(name, zone string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone},
		}}
	}
	synctest.Test(t, func(t *testing.T) {
		pod, svc, old := podOn("n1", "web"), exported("web", corev1.ProtocolTCP), agentPod("n2")
		svc.Spec.TrafficDistribution = new(corev1.ServiceTrafficDistributionPreferClose)
		delete(old.Labels, clusterinfo.HopZonesLabel)
		api := newAPI(eastLink(), shop(), svc, pod, sliceOf(pod), agentPod("n1"), old, node("n1", "a"))
		r := newReplicaWith(t, west(), api, func(*Options) {})
		r.lead()
		type upstream struct {
			zone  string
			reads bool
		}
		want := func(why, own string, n1, n2 upstream, crosses bool) {
			t.Helper()
			bubble.Pass(time.Minute)
			agent, _ := r.hub.View(nodestream.Node("n1"))
			gateways, _ := r.hub.View(nodestream.Gateways)
			if got := agent["cluster"].GetCluster().GetZone(); got != own {
				t.Errorf("%s: the agent is in zone %q, want %q", why, got, own)
			}
			for name, want := range map[string]upstream{"n1": n1, "n2": n2} {
				u := gateways["upstream/agent/"+name].GetUpstream()
				if got := (upstream{u.GetZone(), u.GetReadsZones()}); got != want {
					t.Errorf("%s: gateways know %+v of %s, want %+v", why, got, name, want)
				}
			}
			rows := 0
			for _, resource := range gateways {
				if row := resource.GetRoute(); row.GetId() >= route.FirstService {
					rows++
					if row.Zones != crosses {
						t.Errorf("%s: zones cross: %v, want %v", why, row.Zones, crosses)
					}
				}
			}
			if rows != 1 {
				t.Errorf("%s: %d rows", why, rows)
			}
		}
		r.during(t, func() {
			r.settle()
			want("at first", "a", upstream{"a", true}, upstream{}, true)
			r.create(t, node("n2", "b"))
			want("a node gets its label", "a", upstream{"a", true}, upstream{"b", false}, true)
			var have corev1.Node
			r.MustGet(t, "", "n1", &have)
			have.Labels[corev1.LabelTopologyZone] = "c"
			r.update(t, &have)
			want("a node gets another label", "c", upstream{"c", true}, upstream{"b", false}, true)
			r.delete(t, old)
			r.create(t, agentPod("n2"))
			want("an agent was upgraded", "c", upstream{"c", true}, upstream{"b", true}, true)
			var service corev1.Service
			r.MustGet(t, "shop", "web", &service)
			service.Spec.TrafficDistribution = nil
			r.update(t, &service)
			want("the preference is off", "c", upstream{"c", true}, upstream{"b", true}, false)
			r.delete(t, &have)
			want("a node is gone", "", upstream{"", true}, upstream{"b", true}, false)
			if n := len(r.nodes.zones); n != 1 {
				t.Errorf("%d zones are kept", n)
			}
		})
	})
}

// A kubelet changes its Node every few minutes. Causeway uses only the zone.
func TestZoneHandlerIgnoresOtherChanges(t *testing.T) {
	in := newInbox()
	h := zoneHandler(in)
	node := nodeKind()
	node.Name, node.Labels = "n1", map[string]string{corev1.LabelTopologyZone: "a"}
	other, moved := node.DeepCopy(), node.DeepCopy()
	other.Annotations = map[string]string{"a": "b"}
	moved.Labels = nil
	zones := func(why string, want map[string]string) {
		t.Helper()
		if diff := cmp.Diff(want, in.take().zones); diff != "" {
			t.Errorf("%s (-want +got):\n%s", why, diff)
		}
	}
	h.OnAdd(node, true)
	zones("a node", map[string]string{"n1": "a"})
	h.OnUpdate(node, other)
	zones("a heartbeat", nil)
	h.OnUpdate(other, moved)
	zones("the label is gone", map[string]string{"n1": ""})
	h.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "n1", Obj: node})
	zones("the node is gone", map[string]string{"n1": ""})
}
