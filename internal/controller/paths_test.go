package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/internal/check"
)

func TestFailingPaths(t *testing.T) {
	pod := func(component, node string, status corev1.ConditionStatus) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Labels: map[string]string{componentLabel: component}},
			Spec:       corev1.PodSpec{NodeName: node},
			Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady}, {Type: check.PathProved, Status: status}}},
		}
	}
	s := snapshot{namespace: "causeway-system", pods: []corev1.Pod{
		pod(agentValue, "a", corev1.ConditionFalse), pod(agentValue, "a", corev1.ConditionFalse), // an upgrade: one node
		pod(agentValue, "b", corev1.ConditionTrue),
		pod("another", "c", corev1.ConditionFalse),
	}}
	if n := s.failingPaths(); n != 1 {
		t.Errorf("%d nodes, want 1: a node counts once, and only by its agent's word", n)
	}
}
