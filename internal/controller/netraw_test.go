package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestRawPods(t *testing.T) {
	yes := true
	without := func(drop, add []corev1.Capability) *corev1.SecurityContext {
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Drop: drop, Add: add}}
	}
	all, raw := []corev1.Capability{"ALL"}, []corev1.Capability{"NET_RAW"}
	pod := func(s *corev1.SecurityContext) corev1.Pod {
		return corev1.Pod{Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{SecurityContext: s}}}}
	}
	with := func(p corev1.Pod, change func(*corev1.Pod)) corev1.Pod { change(&p); return p }
	cases := map[string]struct {
		why string
		pod corev1.Pod
		may bool
	}{
		"says nothing":   {"runtimes give NET_RAW to whoever does not give it up", pod(nil), true},
		"drops all":      {"the restricted profile", pod(without(all, nil)), false},
		"drops it":       {"it alone is enough", pod(without(raw, nil)), false},
		"as the kernel":  {"runtimes take both spellings", pod(without([]corev1.Capability{"cap_net_raw"}, nil)), false},
		"drops another":  {"that changes nothing", pod(without([]corev1.Capability{"CHOWN"}, nil)), true},
		"takes it back":  {"what is added counts last", pod(without(all, raw)), true},
		"privileged":     {"has all, whatever it drops", pod(&corev1.SecurityContext{Privileged: &yes, Capabilities: &corev1.Capabilities{Drop: all}}), true},
		"host's network": {"whoever may that needs no forging", with(pod(nil), func(p *corev1.Pod) { p.Spec.HostNetwork = true }), false},
		"over":           {"it sends no more", with(pod(nil), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), false},
		"on no node":     {"it sends nothing yet", with(pod(nil), func(p *corev1.Pod) { p.Spec.NodeName = "" }), false},
		"one of two":     {"containers of a pod share its network", with(pod(without(all, nil)), func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{}} }), true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			slim, err := slimPod(tc.pod.DeepCopy()) // as it is in the cache
			if err != nil {
				t.Fatal(err)
			}
			if got := rawPods([]corev1.Pod{*slim.(*corev1.Pod)})["n"] == 1; got != tc.may {
				t.Errorf("%s: may send raw packets: %v, want %v", tc.why, got, tc.may)
			}
		})
	}
}
