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
		return corev1.Pod{Spec: corev1.PodSpec{
			NodeName:   "n",
			Containers: []corev1.Container{{SecurityContext: s}},
		}}
	}
	with := func(p corev1.Pod, change func(*corev1.Pod)) corev1.Pod { change(&p); return p }
	cases := map[string]struct {
		why string
		pod corev1.Pod
		may bool
	}{
		"default":   {"runtimes grant NET_RAW by default", pod(nil), true},
		"drops all": {"the restricted profile requires it", pod(without(all, nil)), false},
		"drops it":  {"dropping only NET_RAW is enough", pod(without(raw, nil)), false},
		"kernel's spelling": {
			"runtimes accept both spellings",
			pod(without([]corev1.Capability{"cap_net_raw"}, nil)),
			false,
		},
		"drops another": {
			"another capability does not matter",
			pod(without([]corev1.Capability{"CHOWN"}, nil)),
			true,
		},
		"adds it again": {"added capabilities override dropped ones", pod(without(all, raw)), true},
		"privileged": {
			"a privileged container has all capabilities",
			pod(&corev1.SecurityContext{Privileged: &yes, Capabilities: &corev1.Capabilities{Drop: all}}),
			true,
		},
		"host's network": {
			"only administrators can create host-network pods",
			with(pod(nil), func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
			false,
		},
		"finished": {
			"a finished pod sends no packets",
			with(pod(nil), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
			false,
		},
		"on no node": {
			"a pod that is not scheduled sends no packets",
			with(pod(nil), func(p *corev1.Pod) { p.Spec.NodeName = "" }),
			false,
		},
		"one of two": {
			"containers of a pod share its network",
			with(pod(without(all, nil)), func(p *corev1.Pod) {
				p.Spec.InitContainers = []corev1.Container{
					{},
				}
			}),
			true,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			slim, err := newSlimmer().pod(tc.pod.DeepCopy()) // as it is in the cache
			if err != nil {
				t.Fatal(err)
			}
			if got := rawPods([]corev1.Pod{*slim.(*corev1.Pod)})["n"] == 1; got != tc.may {
				t.Errorf("%s: may send raw packets: %v, want %v", tc.why, got, tc.may)
			}
		})
	}
}
