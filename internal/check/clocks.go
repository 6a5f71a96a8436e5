package check

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// How far a clock may be off. The control route and certificates bear some minutes, a label one.
const (
	skewTold  = 30 * time.Second
	skewWorst = time.Minute + 30*time.Second
)

// clocks tells whose clock is wrong, by the API server's.
func clocks(f Facts) []Line {
	if len(f.Replicas) == 0 {
		return nil
	}
	var lines []Line
	nodes := map[string]time.Duration{}
	measured := 0
	for _, r := range f.Replicas {
		if r.Error != "" {
			continue
		}
		measured++
		lines = append(lines, skewed(r.Pod, "its clock", r.Skew, "the node that it runs on has the wrong time: set it, by NTP")...)
		for _, a := range r.Answer.Agents {
			if a.Error == "" {
				nodes[a.Node] = r.Skew + seconds(a.SkewSeconds)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(nodes)) {
		measured++
		lines = append(lines, skewed(n, "the node's clock", nodes[n], "set the node's clock, by NTP: its tunnels fail")...)
	}
	lines = append(lines, peerClocks(f)...)
	if len(lines) == 0 && measured > 0 {
		lines = append(lines, ok(checkClock, clusterwide, "%s agree with the API server's", count(measured, "clock")))
	}
	return lines
}

func skewed(on, whose string, d time.Duration, hint string) []Line {
	if d.Abs() < skewTold {
		return nil
	}
	seen := fmt.Sprintf("%s is %s", whose, off(d, "the API server's"))
	if d.Abs() < skewWorst {
		return []Line{warn(checkClock, on, seen, hint)}
	}
	return []Line{fail(checkClock, on, seen, hint)}
}

// off is "10 minutes ahead of the API server's".
func off(d time.Duration, whose string) string {
	if d < 0 {
		return span(d) + " behind " + whose
	}
	return span(d) + " ahead of " + whose
}

// peerClocks tells of peers' clocks by our API server's, so that it is known whose is wrong.
func peerClocks(f Facts) []Line {
	worst := map[string]time.Duration{}
	for _, r := range f.Replicas {
		for _, p := range r.Answer.Peers {
			if d := r.Skew + seconds(p.SkewSeconds); d.Abs() > worst[p.Link].Abs() {
				worst[p.Link] = d
			}
		}
	}
	var lines []Line
	for _, l := range f.links() {
		lines = append(lines, skewed(l.Name, "the peer's clock", worst[l.Name],
			"one of the two clusters has the wrong time: compare both with a clock that you trust, and set that one's nodes")...)
	}
	return lines
}
