package controller

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/kube"
)

// On a bridge that pods share, a pod that can send raw packets can use the address of
// another pod, and agents cannot always detect that (design 3, "Who calls"). The
// controller reports only the number of such pods.

// slimSecurity keeps the fields that determine whether a container can send raw packets.
func slimSecurity(s *corev1.SecurityContext) *corev1.SecurityContext {
	if s == nil || s.Capabilities == nil && s.Privileged == nil {
		return nil
	}
	return &corev1.SecurityContext{Capabilities: s.Capabilities, Privileged: s.Privileged}
}

// rawPods counts, by node, the pods whose specs let them send raw packets. It ignores
// host-network pods, because only administrators can create them.
func rawPods(pods []corev1.Pod) map[string]int {
	out := make(map[string]int)
	for i := range pods {
		p := &pods[i]
		if p.Spec.NodeName != "" && !p.Spec.HostNetwork && !kube.PodFinished(p) && maySendRaw(p) {
			out[p.Spec.NodeName]++
		}
	}
	return out
}

func maySendRaw(p *corev1.Pod) bool {
	raw := func(c corev1.Container) bool { return !keptFromRaw(c.SecurityContext) }
	return slices.ContainsFunc(p.Spec.Containers, raw) || slices.ContainsFunc(p.Spec.InitContainers, raw)
}

// keptFromRaw reports whether a container lacks NET_RAW, which most runtimes grant by
// default.
func keptFromRaw(s *corev1.SecurityContext) bool {
	if s == nil || s.Capabilities == nil || s.Privileged != nil && *s.Privileged {
		return false
	}
	names := func(list []corev1.Capability) bool {
		return slices.ContainsFunc(list, func(c corev1.Capability) bool {
			name := strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")
			return name == "ALL" || name == "NET_RAW"
		})
	}
	return names(s.Capabilities.Drop) && !names(s.Capabilities.Add)
}
