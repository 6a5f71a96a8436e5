package check

import (
	"fmt"
	"maps"
	"slices"
)

// guards reports faults of vip-guards and of the routes that they maintain, as agents see
// them. A canary cannot see them: it succeeds even if the unreachable route is missing.
func guards(f Facts) []Result {
	answers := f.agents()
	var results []Result
	good := 0
	for _, n := range slices.Sorted(maps.Keys(answers)) {
		a := answers[n]
		for _, fault := range a.Faults {
			results = append(results, fail(checkGuard, n, fault, fmt.Sprintf(
				"vip-guard repairs it within seconds while it runs: `kubectl -n %s logs "+
					"-l app.kubernetes.io/component=agent -c vip-guard --prefix` shows why it does not; "+
					"delete the agent's pod on %s to restart it", f.Namespace, n)))
		}
		if a.Error == "" && len(a.Faults) == 0 {
			good++
		}
	}
	if good > 0 {
		results = append(results, ok(checkGuard, wholeCluster, "the rule and the routes exist on %s",
			count(good, "node")))
	}
	return bound(results)
}

// neighbors reports nodes on which a pod may be able to impersonate another.
func neighbors(f Facts) []Result {
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
		return []Result{ok(checkNeighbors, wholeCluster,
			"no pod that shares a bridge with others can send raw packets")}
	}
	return []Result{warn(checkNeighbors, wholeCluster,
		fmt.Sprintf("on %s (%s) pods share a bridge, where a pod that can send raw packets can sometimes "+
			"impersonate its neighbor: %s can", count(len(nodes), "node"), summarize(nodes), count(pods,
			"pod")),
		"drop the capability NET_RAW from pods that do not need it, as Pod Security's profile "+
			"`restricted` demands, or use a CNI that gives each pod an interface of its own")}
}

// earlierPaths reports nodes whose path failed in an earlier test, unless a canary has
// tested it now.
func earlierPaths(f Facts) []Result {
	tested := map[string]bool{}
	for _, c := range f.Canaries {
		tested[c.Node] = c.Failure == ""
	}
	var results []Result
	for _, p := range f.Pods {
		if p.Component == "agent" && p.PathFails != "" && !tested[p.Node] {
			results = append(results, fail(checkPath, p.Node, "an earlier test failed: "+p.PathFails,
				"run `causeway check` without --skip-canary to test it again"))
		}
	}
	return results
}
