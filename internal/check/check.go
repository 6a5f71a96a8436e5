// Package check says what is wrong with an installation of Causeway, and what to do about it.
//
//	API server ──────────────┐
//	controller replicas ─────┼─▶ Facts ──Judge──▶ Lines: a state, what was seen, a hint
//	 └─ agents on their nodes│
//	a canary pod on each node┘
//
// What always holds:
//   - Judge asks no clock and no cluster; the same Facts give the same Lines in the same order.
//   - What could not be found out is a Line of its own, and never taken for ok.
//   - A Line that is not ok says what to do.
//   - What is said of many alike is one Line, or at most maxAlike and a count.
package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// State is how it stands with one thing.
type State string

// The states, from best to worst.
const (
	OK      State = "ok"
	Warning State = "warning"
	Fail    State = "FAIL"
)

// Line is what is said of one thing. Its JSON only ever grows.
type Line struct {
	// Check is what was looked at: one of the words in order.
	Check string `json:"check"`
	// On is what it was looked at on: "cluster", or the name of a Link, node, pod or Service.
	On    string `json:"on"`
	State State  `json:"state"`
	Seen  string `json:"seen"`
	// Hint is what to do; empty if the state is ok.
	Hint string `json:"hint,omitempty"`
}

// The checks, in the order in which they are told: what others rest on comes first.
const (
	checkRead       = "access"
	checkKinds      = "kinds"
	checkRights     = "rights"
	checkIdentity   = "identity"
	checkController = "controller"
	checkGatewayPod = "gateway"
	checkAgent      = "agent"
	checkVersion    = "version"
	checkClock      = "clock"
	checkGuard      = "vip-guard"
	checkPath       = "path"
	checkDNS        = "dns"
	checkNeighbours = "neighbours"
	checkInvite     = "invite"
	checkTrust      = "trust"
	checkLink       = "link"
	checkAddress    = "address"
	checkCatalog    = "catalog"
	checkMirror     = "mirror"
	checkService    = "service"
)

var order = []string{
	checkRead, checkKinds, checkRights, checkIdentity, checkController, checkGatewayPod, checkAgent, checkVersion, checkClock,
	checkGuard, checkPath, checkDNS, checkNeighbours, checkInvite, checkTrust, checkLink, checkAddress, checkCatalog, checkMirror, checkService,
}

// clusterwide is what a Line is on that is about no single thing.
const clusterwide = "cluster"

// maxAlike bounds the Lines of one check on one thing.
const maxAlike = 20

// Judge says how it stands.
func Judge(f Facts) []Line {
	rules := []func(Facts) []Line{
		access, kinds, rights, identities, workloads, agents, versions, clocks, guards, paths,
		remembered, neighbours, invites, trusts, links, gateways, catalogs, mirrors, services,
	}
	var lines []Line
	for _, rule := range rules {
		lines = append(lines, rule(f)...)
	}
	slices.SortStableFunc(lines, func(a, b Line) int {
		return cmp.Or(slices.Index(order, a.Check)-slices.Index(order, b.Check), strings.Compare(a.On, b.On), strings.Compare(a.Seen, b.Seen))
	})
	return slices.Compact(lines)
}

// Failed reports whether a Line is a failure.
func Failed(lines []Line) bool {
	return slices.ContainsFunc(lines, func(l Line) bool { return l.State == Fail })
}

func ok(check, on, format string, args ...any) Line {
	return Line{Check: check, On: on, State: OK, Seen: fmt.Sprintf(format, args...)}
}

func warn(check, on, seen, hint string) Line { return Line{check, on, Warning, seen, hint} }

func fail(check, on, seen, hint string) Line { return Line{check, on, Fail, seen, hint} }

// bound keeps the first Lines of many, and counts the rest in one more.
func bound(lines []Line) []Line {
	if len(lines) <= maxAlike {
		return lines
	}
	rest := lines[maxAlike]
	rest.Seen = fmt.Sprintf("and %d more", len(lines)-maxAlike)
	return append(lines[:maxAlike:maxAlike], rest)
}

// listed is "a, b and 3 more".
func listed(names []string) string {
	const most = 4
	names = slices.Sorted(slices.Values(names))
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// count is "1 node" or "2 nodes".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Proofs says, by node, what fails of the way of a pod's call there; "": nothing. Nodes from which no canary called are not in it.
func Proofs(canaries []Canary) map[string]string {
	out := map[string]string{}
	for _, c := range canaries {
		if c.Trouble == "" {
			l, _ := c.path()
			out[c.Node] = l.Seen
		}
	}
	return out
}
