package check

import "testing"

func TestNodeFaults(t *testing.T) {
	testFaults(t, map[string]fault{
		"the unreachable route is missing": {
			why: "a canary succeeds, but nothing would keep packets for virtual IPs on the node",
			spoil: func(f *Facts) {
				f.Replicas[0].Answer.Agents[0].Faults = []string{
					"the unreachable route for 240.64.0.0/12 is not there",
				}
			},
			want: []string{"fail vip-guard w1: the unreachable route for 240.64.0.0/12 is not there"},
		},
		"nodes that cannot use a Link": {
			why: "callers on these nodes are refused, also if the controllers reach the peer",
			spoil: func(f *Facts) {
				f.Replicas[0].Answer.Agents[0].Unusable = []UnusableLink{{
					Link:    "east",
					Seconds: 65.2,
					Error:   "probe " + eastGateway + ", stage dial: no answer within 2s",
				}}
			},
			want: []string{
				"fail link east: 1 of 2 nodes (w1) refuse new connections to its mirrors, because none of " +
					"its gateways answers there: w1 for 1m5s (probe " + eastGateway +
					", stage dial: no answer within 2s)",
			},
		},
		"path failed in an earlier test": {
			why: "without a new test the earlier result counts",
			spoil: func(f *Facts) {
				f.Canaries, f.Proved, f.Pods[1].PathFails = nil, false, "no answer (since 2026-05-04 "+
					"11:00 UTC)"
			},
			want: []string{"fail path w2: an earlier test failed: no answer (since 2026-05-04 11:00 UTC)"},
		},
		"path works again": {
			why:   "the newest test counts",
			spoil: func(f *Facts) { f.Pods[1].PathFails = "a pod's connection gets no answer" },
		},
		"pods that can impersonate others": {
			why: "agents cannot prevent it on a bridge",
			spoil: func(f *Facts) {
				f.Replicas[0].Answer.Agents[1].Bridged = true
				f.Replicas[0].Answer.RawPods = map[string]int{"w1": 2, "w2": 3}
			},
			want: []string{
				"warning neighbors cluster: on 1 node (w2) pods share a bridge, where a pod that can send " +
					"raw packets can sometimes impersonate its neighbor: 3 pods can",
			},
		},
	})
}
