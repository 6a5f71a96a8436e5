package check

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Clock errors. Every comparison of two clocks tolerates twice skewFailure, because the
// clocks may be wrong in opposite directions (record 0018 lists them).
const (
	skewWarning = 30 * time.Second
	skewFailure = time.Minute + 30*time.Second
)

// clocks compares clocks with the API server's, which shows whose clock is wrong.
func clocks(f Facts) []Result {
	if len(f.Replicas) == 0 {
		return nil
	}
	var results []Result
	nodes := map[string]time.Duration{}
	measured := 0
	for _, r := range f.Replicas {
		if r.Error != "" {
			continue
		}
		measured++
		results = append(results, skewed(r.Pod, "its clock", r.Skew,
			"the clock of the pod's node is wrong: synchronize it, for example by NTP")...)
		for _, a := range r.Answer.Agents {
			if a.Error == "" {
				nodes[a.Node] = r.Skew + seconds(a.SkewSeconds)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(nodes)) {
		measured++
		results = append(results, skewed(n, "the node's clock", nodes[n],
			"synchronize the node's clock, for example by NTP: from some minutes on, calls from and to its "+
				"pods fail")...)
	}
	results = append(results, peerClocks(f)...)
	if len(results) == 0 && measured > 0 {
		results = append(results, ok(checkClock, wholeCluster,
			"the API server's clock and %s differ by less than %v", count(measured, "other"), skewWarning))
	}
	return results
}

func skewed(target, whose string, d time.Duration, hint string) []Result {
	if d.Abs() < skewWarning {
		return nil
	}
	message := fmt.Sprintf("%s is %s the API server's", whose, offset(d))
	if d.Abs() < skewFailure {
		return []Result{warn(checkClock, target, message, hint)}
	}
	return []Result{fail(checkClock, target, message, hint)}
}

// offset returns "10 minutes ahead of" or "10 minutes behind".
func offset(d time.Duration) string {
	if d < 0 {
		return span(d) + " behind"
	}
	return span(d) + " ahead of"
}

// peerClocks compares peers' clocks with this cluster's API server's.
func peerClocks(f Facts) []Result {
	worst := map[string]time.Duration{}
	for _, r := range f.Replicas {
		for _, p := range r.Answer.Peers {
			if d := r.Skew + seconds(p.SkewSeconds); d.Abs() > worst[p.Link].Abs() {
				worst[p.Link] = d
			}
		}
	}
	var results []Result
	for _, l := range f.links() {
		results = append(results, skewed(l.Name, "the peer's clock", worst[l.Name],
			"compare the clocks of both clusters with a reference, and correct the cluster that is wrong")...)
	}
	return results
}
