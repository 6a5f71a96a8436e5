package check

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/canary"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
)

// links returns the Links to examine, sorted by name.
func (f Facts) links() []v1alpha1.Link {
	var out []v1alpha1.Link
	for _, l := range f.Links {
		if f.Link == "" || l.Name == f.Link {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b v1alpha1.Link) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// JudgePaths returns the Results about the nodes' paths alone.
func JudgePaths(f Facts) []Result { return paths(f) }

// paths reports on which nodes a canary's connection reached the agent, and on which
// names resolve.
func paths(f Facts) []Result {
	var results []Result
	var working, resolving []string
	for _, c := range f.Canaries {
		path, bad := c.path()
		if bad {
			results = append(results, path)
		} else {
			working = append(working, c.Node)
		}
		switch name := c.Result.ByName; {
		case c.Failure != "":
		case name.Failure == canary.FailureName:
			results = append(results, fail(checkDNS, c.Node,
				"a pod on the node cannot resolve the name of a Service: "+name.Detail,
				"callers reach mirrors by name: `kubectl -n kube-system get pods -l k8s-app=kube-dns` "+
					"shows whether the cluster's DNS runs"))
		case name.Good(c.UID):
			resolving = append(resolving, c.Node)
		case !bad:
			results = append(results, fail(checkDNS, c.Node,
				"the canary Service answers at its address but not at its name: "+reason(name),
				"the name resolves to another address: check that the cluster's DNS serves this "+
					"cluster's Services"))
		}
	}
	if len(working) > 0 {
		results = append(results, ok(checkPath, wholeCluster, "a pod's connection reaches the agent on %s",
			count(len(working), "node")))
	}
	if len(resolving) > 0 {
		results = append(results, ok(checkDNS, wholeCluster, "names of Services resolve on %s",
			count(len(resolving), "node")))
	}
	if f.Proved && len(f.Canaries) == 0 {
		results = append(results, warn(checkPath, wholeCluster, "no node is ready, so no canary was sent",
			"`kubectl get nodes` shows the nodes, and `kubectl describe nodes` shows why they are not ready"))
	}
	return results
}

func reason(c canary.Call) string {
	if c.Failure != "" {
		return c.Failure + ": " + c.Detail
	}
	return "something else answers"
}

// path returns the Result of a node whose path fails. It reports false if the path works.
func (c Canary) path() (Result, bool) {
	const logs = "see the logs of this node's agent and vip-guard: "
	call := c.Result.ByIP
	switch {
	case c.Failure != "":
		return fail(checkPath, c.Node, "the canary made no connection: "+c.Failure,
			"a pod must be able to run in Causeway's namespace on this node; then run the command "+
				"again"), true
	case call.Failure == canary.FailureRefused:
		return fail(checkPath, c.Node, "the node refuses a pod's connection: "+call.Detail,
			logs+"nothing listens on the virtual IPs, or the local route for their range is missing, "+
				"which vip-guard restores within a minute"), true
	case call.Failure == canary.FailureTimeout:
		return fail(checkPath, c.Node, "a pod's connection gets no answer: "+call.Detail,
			"the CNI or a firewall bypasses the node's routing table: virtual IPs need a CNI that uses "+
				"the host's routing table for local addresses"), true
	case call.Failure == canary.FailureGarbled:
		return fail(checkPath, c.Node, "something other than the agent answers: "+call.Detail,
			"the range of virtual IPs is in use: install with another vipCIDR"), true
	case call.Failure != "":
		return fail(checkPath, c.Node, "a pod's connection fails: "+call.Detail,
			logs+"they may say more"), true
	case call.Answer.Refused != "":
		return fail(checkPath, c.Node, "the agent cannot identify the caller: "+call.Answer.Refused,
			"the CNI or kube-proxy changes the source address of pods' connections to the node: "+
				"configure it to keep the pod's address"), true
	case call.Answer.UID != c.UID:
		return fail(checkPath, c.Node, fmt.Sprintf("the agent identifies the caller as another pod, %s/%s",
			call.Answer.Namespace, call.Answer.Pod),
			"two pods may have the same address: restart the one that should not have it"), true
	}
	return Result{}, false
}

// trusts reports on each peer's root and issuers.
func trusts(f Facts) []Result {
	stored := map[string]v1alpha1.PeerTrust{}
	for _, t := range f.Trusts {
		stored[t.Name] = t
	}
	var results []Result
	for _, l := range f.links() {
		if !isStandby(&l) { // which has no trust of its own yet
			results = append(results, f.trust(&l, stored[l.Name]))
		}
	}
	return results
}

func (f Facts) trust(l *v1alpha1.Link, stored v1alpha1.PeerTrust) Result {
	const again = "apply the output of `causeway identity` in the peer, or run `causeway link` again"
	root, err := identity.ParseRootCertificate([]byte(l.Spec.Root), l.Spec.TrustDomain)
	if err != nil {
		return fail(checkTrust, l.Name, "the root in the Link is not valid: "+err.Error(), again)
	}
	if r, bad := expiry(f.Now, checkTrust, l.Name, "the peer's root", root.NotAfter, rootSoon,
		"rotate the root in the peer, then "+again); bad {
		return r
	}
	if stored.Spec.LinkUID != string(l.UID) || len(stored.Spec.IssuerList) == 0 {
		return fail(checkTrust, l.Name, "the peer's issuers are not known yet",
			"they arrive with the first catalog stream: see the results for the Link and its addresses")
	}
	list, err := identity.VerifyIssuerList(root, l.Spec.TrustDomain, stored.Spec.IssuerList)
	if err != nil {
		return fail(checkTrust, l.Name, "the root in the Link did not sign the peer's issuers: "+err.Error(),
			"if the peer's root has changed, "+again)
	}
	n, last := live(list.Issuers, f.Now)
	if n == 0 {
		return fail(checkTrust, l.Name,
			fmt.Sprintf("none of the peer's %s is valid now: the last expired on %s",
				count(len(list.Issuers), "issuer"), day(last)),
			"the peer's controller renews its issuer and sends it by the catalog stream: "+
				"`causeway check` in the peer shows why it does not")
	}
	if r, bad := expiry(f.Now, checkTrust, l.Name, "the peer's last issuer", last, issuerSoon,
		"the peer's controller renews it and sends it by the catalog stream: run `causeway check` in the "+
			"peer"); bad {
		return r
	}
	return ok(checkTrust, l.Name, "root until %s, %s of %d valid now (list %d)",
		day(root.NotAfter), count(n, "issuer"), len(list.Issuers), list.Number)
}

// links reports on each Link's conditions.
func links(f Facts) []Result {
	if f.Kinds != nil && !f.Kinds["Link"] {
		return nil
	}
	if f.Link != "" && len(f.links()) == 0 {
		return []Result{fail(checkLink, f.Link, "there is no such Link", "`causeway links` lists the Links")}
	}
	if len(f.Links) == 0 && len(f.Unread) == 0 {
		return []Result{warn(checkLink, wholeCluster, "this cluster has no Link",
			"`causeway link` links two clusters")}
	}
	var results []Result
	for _, l := range f.links() {
		found := append(f.conditions(&l), f.refusingNodes(&l)...)
		if len(found) == 0 {
			found = []Result{ok(checkLink, l.Name, "connected, trusted and synced: %d mirrors, %d exports",
				l.Status.Mirrors, l.Status.Exports)}
		}
		results = append(results, found...)
	}
	return results
}

// refusingNodes returns a Result for the nodes that hold l unusable.
func (f Facts) refusingNodes(l *v1alpha1.Link) []Result {
	nodes := UnusableNodes(f.Replicas, l.Name)
	if len(nodes) == 0 {
		return nil
	}
	answered := 0
	for _, a := range f.agents() {
		if a.Error == "" {
			answered++
		}
	}
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Node
	}
	return []Result{fail(checkLink, l.Name, fmt.Sprintf("%d of %s (%s) refuse new connections to its "+
		"mirrors, because none of its gateways answers there: %s", len(nodes), count(answered, "node"),
		summarize(names), nodes[0]),
		"see the results for its addresses; a node accepts connections again within a second after a "+
			"gateway answers it")}
}

// An UnusableNode is a node that holds a Link unusable.
type UnusableNode struct {
	Node string `json:"node"`
	UnusableLink
}

// String says since when, and why.
func (n UnusableNode) String() string {
	out := fmt.Sprintf("%s for %v", n.Node, max(seconds(n.Seconds).Round(time.Second), time.Second))
	if n.Error != "" {
		out += " (" + n.Error + ")"
	}
	return out
}

// UnusableNodes returns the nodes that hold a Link unusable, the longest time first.
func UnusableNodes(replicas []Replica, link string) []UnusableNode {
	var out []UnusableNode
	for name, agent := range (Facts{Replicas: replicas}).agents() {
		for _, u := range agent.Unusable {
			if u.Link == link {
				out = append(out, UnusableNode{name, u})
			}
		}
	}
	slices.SortFunc(out, func(a, b UnusableNode) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), strings.Compare(a.Node, b.Node))
	})
	return out
}

// conditions are the types to examine. Ready comes first because it explains the others.
var conditions = []string{
	v1alpha1.LinkReady,
	v1alpha1.LinkTrusted,
	v1alpha1.LinkConnected,
	v1alpha1.LinkSynced,
	v1alpha1.LinkGatewayReachable,
}

// conditions returns a Result for each condition of l that needs attention.
func (f Facts) conditions(l *v1alpha1.Link) []Result {
	var results []Result
	var first *metav1.Condition // Ready, if it is Unknown
	for _, kind := range conditions {
		c := meta.FindStatusCondition(l.Status.Conditions, kind)
		switch {
		case c == nil || c.ObservedGeneration != l.Generation:
			return []Result{warn(checkLink, l.Name, "no controller has examined its current spec",
				fmt.Sprintf("`kubectl -n %s get lease causeway-controller` shows whether a controller "+
					"leads", f.Namespace))}
		case kind == v1alpha1.LinkReady && c.Status == metav1.ConditionFalse && c.Reason == suspended:
			results = append(results, warn(checkLink, l.Name, c.Message,
				"set spec.suspend to false to end it"))
		case kind == v1alpha1.LinkReady && c.Status == metav1.ConditionFalse:
			return []Result{f.unusable(l, c)} // every other condition follows from it
		case kind == v1alpha1.LinkReady && c.Status != metav1.ConditionTrue:
			first = c
		case isStale(c):
			results = append(results, warn(checkLink, l.Name, c.Message,
				staleHints[link.Staleness(c.Reason)]))
		case c.Status == metav1.ConditionTrue, isOneWay(l, c):
		case c.Reason == "Pending":
			results = append(results, f.unmet(warn, l, c))
		default:
			results = append(results, f.unmet(fail, l, c))
		}
	}
	if first != nil && len(results) == 0 {
		results = append(results, f.unmet(warn, l, first))
	}
	return results
}

// suspended is the reason of a Link's Ready condition while spec.suspend is set.
const suspended = "Suspended"

// unmet returns the Result of a condition that is not True.
func (f Facts) unmet(
	state func(check, target, message, hint string) Result, l *v1alpha1.Link, c *metav1.Condition,
) Result {
	return state(checkLink, l.Name, fmt.Sprintf("not %s (%s): %s", c.Type, c.Reason, c.Message),
		f.conditionHint(l, c))
}

// unusable returns the Result of a Link that is not in force. A standby gives a warning,
// because the older Link works.
func (f Facts) unusable(l *v1alpha1.Link, ready *metav1.Condition) Result {
	if isStandby(l) {
		return f.unmet(warn, l, ready)
	}
	return f.unmet(fail, l, ready)
}

// hasFault reports whether l is not in force because of its spec or of an older Link.
func hasFault(l *v1alpha1.Link) bool {
	c := meta.FindStatusCondition(l.Status.Conditions, v1alpha1.LinkReady)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason != suspended
}

// isStandby reports whether an older Link for the same peer is in force.
func isStandby(l *v1alpha1.Link) bool {
	c := meta.FindStatusCondition(l.Status.Conditions, v1alpha1.LinkReady)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason == string(link.DuplicatePeer)
}

// staleHints say what to do about a peer's catalog that is out of date.
var staleHints = map[link.Staleness]string{
	link.PeerCatalogStale: "the peer's controllers must reach their API server: run `causeway check` in " +
		"the peer",
	link.PeerCatalogOlder: "if the peer's etcd was restored from a backup, change any exported Service " +
		"there, for example add a label; otherwise run `causeway check` in the peer",
	link.PeerEpochChanged: "if the peer's cluster was rebuilt, wait 10 minutes; otherwise run `causeway " +
		"check` in the peer",
}

// isStale reports whether c, which may be True, says that the peer's catalog is out of
// date.
func isStale(c *metav1.Condition) bool {
	return c.Type == v1alpha1.LinkSynced && staleHints[link.Staleness(c.Reason)] != ""
}

// isOneWay reports whether c is False only because the Link lists no gateways, so that
// only the peer dials.
func isOneWay(l *v1alpha1.Link, c *metav1.Condition) bool {
	return len(l.Spec.Gateways) == 0 && c.Reason == "NoAddress"
}

func (f Facts) conditionHint(l *v1alpha1.Link, c *metav1.Condition) string {
	switch c.Reason {
	case string(link.BadRoot), string(link.BadLinkKey), string(link.BadGateway):
		return "apply the output of `causeway identity` in the peer, or run `causeway link` again"
	case string(link.BadGatewayCIDR):
		return "correct spec.gatewayCIDRs: each is a range such as 198.51.100.0/24"
	case string(link.OwnTrustDomain):
		return "a cluster cannot be linked with itself: delete the Link"
	case string(link.DuplicatePeer):
		return "delete the older Link to use this one, or this one if it is not wanted"
	case "NoIssuers", "NoCatalog", "FirstSync":
		return "see the other results for the Link: it follows from them, or ends within a minute"
	case "Pending":
		return fmt.Sprintf("run the command again in a minute; if this stays, "+
			"`kubectl -n %s logs deployment/causeway-controller` shows why", f.Namespace)
	case "Blocked":
		return "see the service and mirror results: each says what to do"
	case "PeerUnreachable":
		return "give the Link a gateway address that can be dialed from here, or remove its import rules"
	case "WaitingForPeer":
		return "the peer must dial: `causeway check` in the peer shows why it does not"
	case "Unreachable":
		return fmt.Sprintf("see the results for its addresses; TCP from this cluster's nodes to %s must be "+
			"open, and `causeway identity` in the peer prints its current addresses",
			strings.Join(l.Spec.Gateways, " or "))
	case "DNS":
		return "make the name resolve in this cluster's pods, or give the Link an IP address"
	case "ClockSkew":
		return "see the clock results: a clock that differs from its API server's is wrong"
	}
	return fmt.Sprintf("`causeway check` in the peer shows the other side; "+
		"`kubectl -n %s logs deployment/causeway-controller` says more", f.Namespace)
}

// addressFacts are what is known of one gateway address of a Link.
type addressFacts struct {
	nodes    []string // that reach it
	slowest  time.Duration
	failing  map[string]string    // why, by node that does not reach it
	untested []string             // nodes whose agents answered without having dialed it
	faults   map[string]pathFault // what probes found, by node
	unprobed []string             // nodes that reach it, and made no probe
	up       int                  // replicas whose stream is up
	down     string               // why another replica's stream is down
	host     string               // its host, if that is a name; its addresses are separate entries
	dns      string               // why the name does not resolve
}

// gateways reports on each gateway address of each peer, as nodes and controllers reach
// it.
func gateways(f Facts) []Result {
	var results []Result
	for _, l := range f.links() {
		if hasFault(&l) {
			continue // no process dials it
		}
		addresses := f.addresses(&l)
		for _, address := range slices.Sorted(maps.Keys(addresses)) {
			results = append(results, addresses[address].results(f, l.Name, address)...)
		}
	}
	return results
}

// addresses collects the facts of l's gateway addresses.
func (f Facts) addresses(l *v1alpha1.Link) map[string]*addressFacts {
	out := map[string]*addressFacts{}
	at := func(address string) *addressFacts {
		if out[address] == nil {
			out[address] = &addressFacts{failing: map[string]string{}, faults: map[string]pathFault{}}
		}
		return out[address]
	}
	for _, g := range l.Spec.Gateways {
		a := at(g)
		if _, err := netip.ParseAddrPort(g); err != nil {
			a.host, _, _ = net.SplitHostPort(g)
		}
	}
	for _, r := range f.Replicas {
		for _, p := range r.Answer.Peers {
			if p.Link != l.Name {
				continue
			}
			for _, s := range p.Streams {
				switch a := at(s.Address); {
				case s.Error == "":
					a.up++
				case a.down == "" || s.Error < a.down:
					a.down = s.Error
				}
			}
			for _, a := range out {
				a.noteDNS(p.DNS)
			}
		}
	}
	agents := f.agents()
	for _, node := range agents {
		for _, d := range node.Dials {
			switch {
			case d.Link != l.Name:
			case d.Error != "":
				at(d.Address).failing[node.Node] = d.Error
			default:
				a := at(d.Address)
				a.nodes, a.slowest = append(a.nodes, node.Node), max(a.slowest, seconds(d.TookSeconds))
				a.noteProbes(l, node.Node, d.Probes)
			}
		}
	}
	for address, a := range out {
		for _, node := range agents {
			dialed := func(d Dial) bool { return d.Link == l.Name && d.Address == address }
			if node.Error == "" && !slices.ContainsFunc(node.Dials, dialed) {
				a.untested = append(a.untested, node.Node)
			}
		}
	}
	return out
}

// noteDNS records why a controller's DNS does not resolve the host.
func (a *addressFacts) noteDNS(dns []string) {
	for _, sentence := range dns {
		if why, ok := strings.CutPrefix(sentence, a.host+": "); ok && a.host != "" {
			a.dns = why
		}
	}
}

// maxDials is the number of addresses that an agent dials at most for one report.
const maxDials = 128

func (a *addressFacts) results(f Facts, name, address string) []Result {
	tested := len(a.nodes) + len(a.failing)
	failing := slices.Sorted(maps.Keys(a.failing))
	switch {
	case a.dns != "":
		return []Result{fail(checkAddress, name, fmt.Sprintf("%s is not reachable: %s", address, a.dns),
			"make the name resolve in this cluster's pods, or give the Link an IP address")}
	case a.host != "" && tested == 0 && f.Asked && len(f.Replicas) > 0:
		return nil // its addresses have Results of their own
	case len(failing) > 0:
		return []Result{fail(checkAddress, name, fmt.Sprintf("%s is not reachable from %d of %s (%s: %s)",
			address, len(failing), count(tested, "node"), failing[0], a.failing[failing[0]]),
			"open TCP from these nodes to that address: check firewalls, routes and the peer's load "+
				"balancer; `causeway identity` in the peer prints its current addresses")}
	case a.hasCertainFault():
		return a.pathFaults(name, address)
	case a.down != "" && a.up == 0:
		return []Result{fail(checkAddress, name,
			fmt.Sprintf("%s accepts connections, but no catalog stream is up: %s",
				address, a.down), "the address must lead to the peer's gateway, and nothing on the way may "+
				"end TLS; `causeway check` in the peer shows the other side")}
	case a.down != "":
		return []Result{warn(checkAddress, name,
			fmt.Sprintf("%s has a stream to some controllers but not to all: %s",
				address, a.down), "run the command again in a minute; `causeway check` in the peer shows "+
				"the "+
				"other side")}
	case len(a.faults) > 0:
		return a.pathFaults(name, address)
	case tested == 0 && a.up == 0 && !f.Asked:
		return nil
	case tested == 0 && len(a.untested) == 0:
		return []Result{warn(checkAddress, name, address+" was not tested from any node",
			"no agent answered: see the controller and agent results")}
	case len(a.unprobed) > 0:
		return []Result{warn(checkAddress, name, fmt.Sprintf("%s accepts connections, but %d of %s made no "+
			"probe through it (%s)", address, len(a.unprobed), count(tested, "node"), summarize(a.unprobed)),
			"agents make probes once they have a certificate for them: run the command again; if this "+
				"stays, the agents' logs say more")}
	case len(a.untested) > 0:
		return []Result{warn(checkAddress, name, fmt.Sprintf("%s was not tested from %d of %s",
			address, len(a.untested), count(tested+len(a.untested), "node")), untestedHint(f))}
	}
	return []Result{ok(checkAddress, name, "%s: reached from %s within %d ms, %s up",
		address, count(tested, "node"), a.slowest.Milliseconds()+1, count(a.up, "stream"))}
}

// untestedHint says why agents that answered have not dialed an address.
func untestedHint(f Facts) string {
	for _, a := range f.agents() {
		if len(a.Dials) >= maxDials {
			return fmt.Sprintf("an agent tests at most %d addresses, in the order of the Links' names: "+
				"connect to this one from a node by other means", maxDials)
		}
	}
	return "agents learn new addresses within seconds: run the command again"
}
