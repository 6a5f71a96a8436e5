package check

import (
	"fmt"
	"maps"
	"slices"
)

// guards tells what is wrong with the nodes' vip-guards and the routes that they keep, as agents see it: a canary may sing
// though what lies beneath is gone.
func guards(f Facts) []Line {
	answers := f.agents()
	var lines []Line
	good := 0
	for _, n := range slices.Sorted(maps.Keys(answers)) {
		a := answers[n]
		for _, fault := range a.Faults {
			lines = append(lines, fail(checkGuard, n, fault,
				fmt.Sprintf("a vip-guard that runs puts back what it keeps within seconds: `kubectl -n %s logs -l app.kubernetes.io/component=agent -c vip-guard --prefix` tells what hinders it; "+
					"deleting the agent's pod on %s starts it anew", f.Namespace, n)))
		}
		if a.Error == "" && len(a.Faults) == 0 {
			good++
		}
	}
	if good > 0 {
		lines = append(lines, ok(checkGuard, clusterwide, "rule and routes stand on %s", count(good, "node")))
	}
	return bound(lines)
}

// neighbours tells of nodes on which a pod may be able to speak as another.
func neighbours(f Facts) []Line {
	raw := map[string]int{}
	for _, r := range f.Replicas {
		for n, c := range r.Answer.RawPods {
			raw[n] = max(raw[n], c)
		}
	}
	var nodes []string
	pods, known := 0, false
	for n, a := range f.agents() {
		known = known || a.Error == ""
		if a.Bridged && raw[n] > 0 {
			nodes, pods = append(nodes, n), pods+raw[n]
		}
	}
	switch {
	case !known:
		return nil
	case len(nodes) == 0:
		return []Line{ok(checkNeighbours, clusterwide, "no pod that shares a bridge with others may send raw packets")}
	}
	return []Line{warn(checkNeighbours, clusterwide,
		fmt.Sprintf("on %s (%s) pods share a bridge, where one that may send raw packets can sometimes be taken for its neighbour: %s may", count(len(nodes), "node"), listed(nodes), count(pods, "pod")),
		"drop the capability NET_RAW from pods that do not need it, as Pod Security's profile `restricted` demands, or use a CNI that gives each pod an interface of its own")}
}

// remembered tells of nodes whose path failed when it was last proved, if it was not proved now.
func remembered(f Facts) []Line {
	proved := map[string]bool{}
	for _, c := range f.Canaries {
		proved[c.Node] = c.Trouble == ""
	}
	var lines []Line
	for _, p := range f.Pods {
		if p.Component == "agent" && p.PathFails != "" && !proved[p.Node] {
			lines = append(lines, fail(checkPath, p.Node, "when it was last proved: "+p.PathFails, "`causeway check` without --skip-canary proves it anew"))
		}
	}
	return lines
}
