package controller

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/bubble"
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
