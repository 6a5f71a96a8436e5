package check

import "testing"

// What agents see of their nodes, and what was seen before.
func TestNodeFaults(t *testing.T) {
	named(t, map[string]fault{
		"what lies beneath is flushed": {
			why: "a canary sings though nothing would hold its bytes back",
			spoil: func(f *Facts) {
				f.Replicas[0].Answer.Agents[0].Faults = []string{"the unreachable route for 240.64.0.0/12 is not there"}
			},
			want: []string{"FAIL vip-guard w1: the unreachable route for 240.64.0.0/12 is not there"},
		},
		"path failed last time": {
			why: "who does not prove it now is told what was found then",
			spoil: func(f *Facts) {
				f.Canaries, f.Proved, f.Pods[1].PathFails = nil, false, "a pod's call gets no answer (since 2026-05-04 11:00 UTC)"
			},
			want: []string{"FAIL path w2: when it was last proved: a pod's call gets no answer (since 2026-05-04 11:00 UTC)"},
		},
		"path good again": {
			why:   "what is seen now counts",
			spoil: func(f *Facts) { f.Pods[1].PathFails = "a pod's call gets no answer" },
		},
		"pods that may forge": {
			why: "the design cannot keep them from it on a bridge, so it is said",
			spoil: func(f *Facts) {
				f.Replicas[0].Answer.Agents[1].Bridged = true
				f.Replicas[0].Answer.RawPods = map[string]int{"w1": 2, "w2": 3}
			},
			want: []string{"warning neighbours cluster: on 1 node (w2) pods share a bridge, where one that may send raw packets can sometimes be taken for its neighbour: 3 pods may"},
		},
	})
}
