package check

import (
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

// links are those that are asked about, by name.
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

// paths tells which nodes carry a pod's call to its agent, as a canary found it, and whether names resolve there.
func paths(f Facts) []Line {
	var lines []Line
	var carried, named []string
	for _, c := range f.Canaries {
		path, bad := c.path()
		if bad {
			lines = append(lines, path)
		} else {
			carried = append(carried, c.Node)
		}
		switch name := c.Result.ByName; {
		case c.Trouble != "":
		case name.Failure == canary.FailureName:
			lines = append(lines, fail(checkDNS, c.Node, "a pod there cannot resolve a Service's name: "+name.Detail,
				"does the cluster's DNS run? `kubectl -n kube-system get pods -l k8s-app=kube-dns` tells; mirrors are called by name"))
		case name.Good(c.UID):
			named = append(named, c.Node)
		case !bad:
			lines = append(lines, fail(checkDNS, c.Node, fmt.Sprintf("the canary answers at its address and not at its name: %s", why(name)),
				"the name leads elsewhere: does the cluster's DNS serve this cluster's Services?"))
		}
	}
	if len(carried) > 0 {
		lines = append(lines, ok(checkPath, clusterwide, "%s a pod's call to its agent", carry(len(carried))))
	}
	if len(named) > 0 {
		lines = append(lines, ok(checkDNS, clusterwide, "Services' names resolve on %s", count(len(named), "node")))
	}
	if f.Proved && len(f.Canaries) == 0 {
		lines = append(lines, warn(checkPath, clusterwide, "no node is ready, so no canary was sent", "`kubectl get nodes` tells why"))
	}
	return lines
}

// JudgePaths says how it stands with the nodes' paths alone.
func JudgePaths(f Facts) []Line { return paths(f) }

func carry(n int) string {
	if n == 1 {
		return "1 node carries"
	}
	return fmt.Sprintf("%d nodes carry", n)
}

func why(c canary.Call) string {
	if c.Failure != "" {
		return c.Failure + ": " + c.Detail
	}
	return "another answers there"
}

// path is the Line of a node whose path fails; false: it does not.
func (c Canary) path() (Line, bool) {
	const checkAll = "look at this node's agent and vip-guard: "
	call := c.Result.ByIP
	switch {
	case c.Trouble != "":
		return fail(checkPath, c.Node, "the canary could not call: "+c.Trouble, "a pod must be able to run in Causeway's namespace on this node; then ask again"), true
	case call.Failure == canary.FailureRefused:
		return fail(checkPath, c.Node, "a pod's call is refused on the node: "+call.Detail,
			checkAll+"nothing listens on the virtual IPs, or the node has lost the local route for their range, which vip-guard puts back within a minute"), true
	case call.Failure == canary.FailureTimeout:
		return fail(checkPath, c.Node, "a pod's call gets no answer: "+call.Detail,
			"the CNI or a firewall keeps it from the node's routing table: VIP mode needs a CNI that asks the host's routing table for local addresses"), true
	case call.Failure == canary.FailureGarbled:
		return fail(checkPath, c.Node, "somebody answers who is not the agent: "+call.Detail,
			"the range of virtual IPs is used by others: install with another vipCIDR"), true
	case call.Failure != "":
		return fail(checkPath, c.Node, "a pod's call fails: "+call.Detail, checkAll+"their logs tell more"), true
	case call.Answer.Refused != "":
		return fail(checkPath, c.Node, "the agent does not know who calls: "+call.Answer.Refused,
			"the CNI or kube-proxy changes the source of pods' calls to the node: it must leave a pod's address as it is"), true
	case call.Answer.UID != c.UID:
		return fail(checkPath, c.Node, fmt.Sprintf("the agent takes the caller for %s/%s, another pod", call.Answer.Namespace, call.Answer.Pod),
			"two pods seem to have one address: restart the one that should not"), true
	}
	return Line{}, false
}

// trusts tells of each peer's root and of its live issuers.
func trusts(f Facts) []Line {
	kept := map[string]v1alpha1.PeerTrust{}
	for _, t := range f.Trusts {
		kept[t.Name] = t
	}
	var lines []Line
	for _, l := range f.links() {
		lines = append(lines, f.trust(&l, kept[l.Name]))
	}
	return lines
}

func (f Facts) trust(l *v1alpha1.Link, kept v1alpha1.PeerTrust) Line {
	const again = "apply what `causeway identity` prints in the peer, or run `causeway link` again"
	root, err := identity.ParseRootCertificate([]byte(l.Spec.Root), l.Spec.TrustDomain)
	if err != nil {
		return fail(checkTrust, l.Name, "the Link's root is none: "+err.Error(), again)
	}
	if e, bad := expiry(f.Now, checkTrust, l.Name, "the peer's root", root.NotAfter, rootSoon, "rotate the root in the peer, then "+again); bad {
		return e
	}
	if kept.Spec.LinkUID != string(l.UID) || len(kept.Spec.IssuerList) == 0 {
		return fail(checkTrust, l.Name, "the peer's issuers are not known yet", "they come with the first catalog stream: see the Link's own lines here")
	}
	list, err := identity.VerifyIssuerList(root, l.Spec.TrustDomain, kept.Spec.IssuerList)
	if err != nil {
		return fail(checkTrust, l.Name, "the Link's root did not sign the peer's issuers: "+err.Error(), "is it the peer's root of today? If so, "+again)
	}
	n, last := live(list.Issuers, f.Now)
	if n == 0 {
		return fail(checkTrust, l.Name, fmt.Sprintf("none of the peer's %s is live: the last ended on %s", count(len(list.Issuers), "issuer"), day(last)),
			"the peer's controller renews its issuer and tells us by the catalog stream: `causeway check` there says why it does not")
	}
	if e, bad := expiry(f.Now, checkTrust, l.Name, "the peer's last issuer", last, issuerSoon, "the peer renews it by itself while its controller runs and reaches us: `causeway check` there"); bad {
		return e
	}
	return ok(checkTrust, l.Name, "root until %s, %s of %d live (list %d)", day(root.NotAfter), count(n, "issuer"), len(list.Issuers), list.Number)
}

// links tells of each Link's conditions.
func links(f Facts) []Line {
	if f.Kinds != nil && !f.Kinds["Link"] {
		return nil
	}
	if f.Link != "" && len(f.links()) == 0 {
		return []Line{fail(checkLink, f.Link, "there is no such Link", "`causeway links` lists them")}
	}
	if len(f.Links) == 0 && len(f.Unread) == 0 {
		return []Line{warn(checkLink, clusterwide, "this cluster is linked with none", "`causeway link` links two clusters")}
	}
	var lines []Line
	for _, l := range f.links() {
		bad := f.conditions(&l)
		if len(bad) == 0 {
			bad = []Line{ok(checkLink, l.Name, "connected, trusted, synced: %d mirrors, %d exports", l.Status.Mirrors, l.Status.Exports)}
		}
		lines = append(lines, bad...)
	}
	return lines
}

var conditions = []string{v1alpha1.LinkTrusted, v1alpha1.LinkConnected, v1alpha1.LinkSynced, v1alpha1.LinkGatewayReachable}

// conditions tells which of l's are not True.
func (f Facts) conditions(l *v1alpha1.Link) []Line {
	var lines []Line
	for _, kind := range conditions {
		c := meta.FindStatusCondition(l.Status.Conditions, kind)
		switch {
		case c == nil || c.ObservedGeneration != l.Generation:
			return []Line{warn(checkLink, l.Name, "no controller has looked at it as it is now", fmt.Sprintf("does a controller lead? `kubectl -n %s get lease causeway-controller` tells who", f.Namespace))}
		case c.Status == metav1.ConditionTrue:
		case oneWay(l, c):
		default:
			lines = append(lines, fail(checkLink, l.Name, fmt.Sprintf("not %s (%s): %s", kind, c.Reason, c.Message), f.conditionHint(l, c)))
		}
	}
	return lines
}

// oneWay reports whether a condition is False because the peer alone dials, as its administrator wanted.
func oneWay(l *v1alpha1.Link, c *metav1.Condition) bool {
	return len(l.Spec.Gateways) == 0 && (c.Reason == "NoAddress" || c.Reason == "NoCatalog")
}

func (f Facts) conditionHint(l *v1alpha1.Link, c *metav1.Condition) string {
	switch c.Reason {
	case string(link.BadRoot), string(link.BadLinkKey), string(link.BadGateway):
		return "apply what `causeway identity` prints in the peer, or run `causeway link` again"
	case string(link.OwnTrustDomain), string(link.DuplicatePeer):
		return "a cluster is linked once, and not with itself: `causeway unlink` takes the Link away"
	case "NoIssuers", "NotTrusted", "NoCatalog":
		return "it follows from what else is said of the Link here"
	case "WaitingForPeer":
		return "the peer must dial: `causeway check` there says why it does not"
	case "Unreachable":
		return fmt.Sprintf("from this cluster's nodes TCP to %s must be open; `causeway identity` in the peer prints its addresses of today", strings.Join(l.Spec.Gateways, " or "))
	case "ClockSkew":
		return "see the clock lines: whose clock is off by the API server's is wrong"
	}
	return fmt.Sprintf("`causeway check` in the peer shows the other side; `kubectl -n %s logs deployment/causeway-controller` tells more", f.Namespace)
}

// reached is what is known of one gateway address.
type reached struct {
	nodes   []string // that reach it
	slowest time.Duration
	missed  map[string]string // why, by node that does not
	up      int               // replicas whose stream is up
	down    string            // why one is not
	name    string            // the host, if it is none of IP: its addresses are dialled, and looked at one by one
	dns     string            // why it has none
}

// gateways tells of each gateway address of each peer, as nodes and controllers reach it.
func gateways(f Facts) []Line {
	var lines []Line
	for _, l := range f.links() {
		seen := f.reach(&l)
		for _, address := range slices.Sorted(maps.Keys(seen)) {
			lines = append(lines, seen[address].line(f, l.Name, address)...)
		}
	}
	return lines
}

func (f Facts) reach(l *v1alpha1.Link) map[string]*reached {
	seen := map[string]*reached{}
	at := func(address string) *reached {
		if seen[address] == nil {
			seen[address] = &reached{missed: map[string]string{}}
		}
		return seen[address]
	}
	for _, g := range l.Spec.Gateways {
		r := at(g)
		if _, err := netip.ParseAddrPort(g); err != nil {
			r.name, _, _ = net.SplitHostPort(g)
		}
	}
	for _, a := range f.agents() {
		for _, d := range a.Dials {
			switch r := at(d.Address); {
			case d.Link != l.Name:
			case d.Error != "":
				r.missed[a.Node] = d.Error
			default:
				r.nodes, r.slowest = append(r.nodes, a.Node), max(r.slowest, seconds(d.TookSeconds))
			}
		}
	}
	for _, r := range f.Replicas {
		for _, p := range r.Answer.Peers {
			if p.Link == l.Name {
				for _, to := range seen {
					to.unnamed(p.DNS)
				}
			}
			for _, s := range p.Streams {
				switch to := at(s.Address); {
				case p.Link != l.Name:
				case s.Error == "":
					to.up++
				case to.down == "" || s.Error < to.down:
					to.down = s.Error
				}
			}
		}
	}
	maps.DeleteFunc(seen, func(address string, r *reached) bool { // another Link's
		return !slices.Contains(l.Spec.Gateways, address) && r.up == 0 && r.down == "" && len(r.nodes)+len(r.missed) == 0
	})
	return seen
}

// unnamed takes in what a controller's DNS has no answer for.
func (r *reached) unnamed(dns []string) {
	for _, sentence := range dns {
		if why, ok := strings.CutPrefix(sentence, r.name+": "); ok && r.name != "" {
			r.dns = why
		}
	}
}

func (r *reached) line(f Facts, name, address string) []Line {
	nodes := len(r.nodes) + len(r.missed)
	missed := slices.Sorted(maps.Keys(r.missed))
	switch {
	case r.dns != "":
		return []Line{fail(checkAddress, name, fmt.Sprintf("%s is not reached: %s", address, r.dns),
			"mend DNS, or give the Link an IP address")}
	case r.name != "" && nodes == 0 && f.Asked && len(f.Replicas) > 0:
		return nil // its addresses have lines of their own
	case len(r.missed) > 0:
		return []Line{fail(checkAddress, name, fmt.Sprintf("%s is not reached from %d of %s (%s: %s)", address, len(missed), count(nodes, "node"), missed[0], r.missed[missed[0]]),
			"from these nodes TCP to that address must be open: look at firewalls, routes and the peer's load balancer; `causeway identity` in the peer prints its addresses of today")}
	case r.down != "" && r.up == 0:
		return []Line{fail(checkAddress, name, fmt.Sprintf("%s takes connections, but no catalog stream comes up: %s", address, r.down),
			"behind the address must be the peer's gateway and nothing that ends TLS; `causeway check` in the peer shows the other side")}
	case r.down != "":
		return []Line{warn(checkAddress, name, fmt.Sprintf("%s has a stream to some controllers and not to all: %s", address, r.down), "ask again in a minute; `causeway check` in the peer shows the other side")}
	case nodes == 0 && r.up == 0:
		if f.Asked {
			return []Line{warn(checkAddress, name, address+" was tried by nobody", "no controller and no agent could be asked: see their lines")}
		}
		return nil
	}
	return []Line{ok(checkAddress, name, "%s: reached from %s in at most %d ms, %s up", address, count(nodes, "node"), r.slowest.Milliseconds()+1, count(r.up, "stream"))}
}
