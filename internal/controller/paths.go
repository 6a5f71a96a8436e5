package controller

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/check"
)

// failingPaths counts the nodes whose path failed when a canary last proved it: whoever sent it left a condition at the
// agent's pod. Nobody proves paths all the time, so it is the word of that day until somebody proves the path anew.
func (s *snapshot) failingPaths() int {
	nodes := make(map[string]bool)
	for i := range s.pods {
		p := &s.pods[i]
		if p.Namespace != s.namespace || p.Labels[componentLabel] != agentValue || p.DeletionTimestamp != nil {
			continue
		}
		for _, c := range p.Status.Conditions {
			if c.Type == check.PathProved && c.Status == corev1.ConditionFalse {
				nodes[p.Spec.NodeName] = true
			}
		}
	}
	return len(nodes)
}
