// Package check finds what is wrong with an installation of Causeway, and says what to
// do.
//
//	API server ────────────────┐
//	controller replicas ───────┼─▶ Facts ──Judge──▶ Results: a state, a message, a hint
//	 └─ agents on their nodes ─┤
//	a canary pod on each node ─┘
//
// What always holds:
//   - Judge uses no clock and no cluster. Equal Facts give equal Results in the same
//     order.
//   - Something that could not be examined has a Result of its own, which is never ok.
//   - A Result has a hint if and only if it is not ok.
//   - Similar findings give at most maxAlike Results, and one that counts the rest.
package check

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// State is the verdict of a Result.
type State string

// The states, from best to worst.
const (
	OK      State = "ok"
	Warning State = "warning"
	Fail    State = "fail"
)

// Result is one finding. Fields may be added to its JSON, and none is renamed or removed.
type Result struct {
	// Check is what was examined: one of the words in order.
	Check string `json:"check"`
	// Target is "cluster", or the name of a Link, node, pod, account or Service.
	Target string `json:"target"`
	State  State  `json:"state"`
	// Message says what was found.
	Message string `json:"message"`
	// Hint says what to do. It is empty if the state is ok.
	Hint string `json:"hint,omitempty"`
}

// The checks.
const (
	checkAccess     = "access"
	checkKinds      = "kinds"
	checkRights     = "rights"
	checkIdentity   = "identity"
	checkController = "controller"
	checkGateway    = "gateway"
	checkAgent      = "agent"
	checkVersion    = "version"
	checkClock      = "clock"
	checkGuard      = "vip-guard"
	checkPath       = "path"
	checkDNS        = "dns"
	checkNeighbors  = "neighbors"
	checkInvite     = "invite"
	checkTrust      = "trust"
	checkLink       = "link"
	checkAddress    = "address"
	checkCatalog    = "catalog"
	checkMirror     = "mirror"
	checkService    = "service"
)

// order is the order of Results. A check comes before those that depend on it.
var order = []string{
	checkAccess, checkKinds, checkRights, checkIdentity, checkController, checkGateway, checkAgent,
	checkVersion, checkClock, checkGuard, checkPath, checkDNS, checkNeighbors, checkInvite, checkTrust,
	checkLink, checkAddress, checkCatalog, checkMirror, checkService,
}

// wholeCluster is the target of a Result that concerns no single object.
const wholeCluster = "cluster"

// maxAlike bounds the Results of one check for one target.
const maxAlike = 20

// Judge returns the Results that follow from f, in the order of checks, then by target
// and message.
func Judge(f Facts) []Result {
	rules := []func(Facts) []Result{
		access, kinds, rights, identities, workloads, agents, versions, clocks, guards, paths,
		earlierPaths, neighbors, invites, trusts, links, gateways, catalogs, mirrors, services,
	}
	var results []Result
	for _, rule := range rules {
		results = append(results, rule(f)...)
	}
	slices.SortStableFunc(results, func(a, b Result) int {
		return cmp.Or(
			slices.Index(order, a.Check)-slices.Index(order, b.Check),
			strings.Compare(a.Target, b.Target),
			strings.Compare(a.Message, b.Message),
		)
	})
	return slices.Compact(results)
}

// Failed reports whether the state of a Result is Fail.
func Failed(results []Result) bool {
	return slices.ContainsFunc(results, func(r Result) bool { return r.State == Fail })
}

func ok(check, target, format string, args ...any) Result {
	return Result{Check: check, Target: target, State: OK, Message: fmt.Sprintf(format, args...)}
}

func warn(check, target, message, hint string) Result {
	return Result{check, target, Warning, message, hint}
}

func fail(check, target, message, hint string) Result {
	return Result{check, target, Fail, message, hint}
}

// bound keeps the first maxAlike Results and counts the others in one more.
func bound(results []Result) []Result {
	if len(results) <= maxAlike {
		return results
	}
	rest := results[maxAlike]
	rest.Message = fmt.Sprintf("and %d more", len(results)-maxAlike)
	return append(results[:maxAlike:maxAlike], rest)
}

// summarize returns names as "a, b and 3 more".
func summarize(names []string) string {
	const most = 4
	names = slices.Sorted(slices.Values(names))
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// count returns "1 node" or "2 nodes".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Proofs returns, by node, why the path of a pod's connection fails there; empty: it
// works. A node whose canary made no connection is absent.
func Proofs(canaries []Canary) map[string]string {
	out := map[string]string{}
	for _, c := range canaries {
		if c.Failure == "" {
			r, _ := c.path()
			out[c.Node] = r.Message
		}
	}
	return out
}
