package check

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// access tells what could not be read.
func access(f Facts) []Line {
	var lines []Line
	for _, u := range f.Unread {
		lines = append(lines, fail(checkRead, u.What, "cannot be read: "+u.Why,
			"does your account have the right, and does the API server answer? What rests on it was not checked"))
	}
	return bound(lines)
}

// kinds tells whether Causeway's kinds are there.
func kinds(f Facts) []Line {
	if f.Kinds == nil {
		return nil
	}
	var missing []string
	for _, k := range slices.Sorted(maps.Keys(f.Kinds)) {
		if !f.Kinds[k] {
			missing = append(missing, k)
		}
	}
	if len(missing) > 0 {
		return []Line{fail(checkKinds, clusterwide, "the cluster does not know "+strings.Join(missing, ", "),
			"`causeway install` puts the CustomResourceDefinitions back; what they held is lost, so apply your Links again")}
	}
	return []Line{ok(checkKinds, clusterwide, "all %d are served", len(f.Kinds))}
}

// rights tells whether each account has the rights that the chart gives it.
func rights(f Facts) []Line {
	if len(f.Rights) == 0 {
		return nil
	}
	lacks, unknown := map[string][]string{}, false
	for _, r := range f.Rights {
		switch {
		case r.Unknown:
			unknown = true
		case !r.Allowed:
			lacks[r.Account] = append(lacks[r.Account], r.String())
		}
	}
	if len(lacks) == 0 && unknown {
		return nil // that it could not be read is a line already
	}
	if len(lacks) == 0 {
		return []Line{ok(checkRights, clusterwide, "Causeway's accounts have all %d", len(f.Rights))}
	}
	var lines []Line
	for _, account := range slices.Sorted(maps.Keys(lacks)) {
		lines = append(lines, fail(checkRights, account, "may not "+listed(lacks[account]),
			"`causeway install` puts the roles back; if they stand, ask who binds them away"))
	}
	return lines
}

// String is "list services".
func (r Right) String() string {
	what := r.Resource
	if r.Group != "" {
		what += "." + r.Group
	}
	if r.Name != "" {
		what += "/" + r.Name
	}
	return r.Verb + " " + what
}

// How long before its end a certificate is told of. The root's is long, as peers have to take part.
const (
	rootSoon   = 30 * 24 * time.Hour
	issuerSoon = 3 * 24 * time.Hour
)

// identities tells of what this cluster is.
func identities(f Facts) []Line {
	if f.Identity == nil {
		return []Line{fail(checkIdentity, clusterwide, "ConfigMap causeway-identity is not there",
			fmt.Sprintf("the controller makes it: `kubectl -n %s logs deployment/causeway-controller` tells why it does not", f.Namespace))}
	}
	domain := f.Identity[clusterinfo.KeyTrustDomain]
	root, err := identity.ParseRootCertificate([]byte(f.Identity[clusterinfo.KeyRoot]), domain)
	if err != nil {
		return []Line{fail(checkIdentity, clusterwide, fmt.Sprintf("ConfigMap causeway-identity holds no root: %v", err),
			"`kubectl -n "+f.Namespace+" delete configmap causeway-identity`: the controller makes it anew from its Secrets within a minute")}
	}
	if l, bad := expiry(f.Now, checkIdentity, clusterwide, "this cluster's root", root.NotAfter, rootSoon,
		"`causeway rotate --root`, and then apply what `causeway identity` prints in each peer; a root of somebody else's is renewed where it is made"); bad {
		return []Line{l}
	}
	return append([]Line{ok(checkIdentity, clusterwide, "trust domain %s, root until %s", domain, day(root.NotAfter))}, ownIssuers(f)...)
}

func ownIssuers(f Facts) []Line {
	var until []time.Time
	for _, r := range f.Replicas {
		until = append(until, r.Answer.IssuersUntil...)
	}
	if len(until) == 0 {
		return nil
	}
	last := slices.MaxFunc(until, time.Time.Compare)
	if l, bad := expiry(f.Now, checkIdentity, clusterwide, "this cluster's issuer", last, issuerSoon,
		fmt.Sprintf("the controller renews it: `kubectl -n %s logs deployment/causeway-controller` tells why it does not", f.Namespace)); bad {
		return []Line{l}
	}
	return nil
}

// expiry is the Line of a certificate that has ended or soon ends; false: it does not.
func expiry(now time.Time, check, on, what string, end time.Time, soon time.Duration, hint string) (Line, bool) {
	switch left := end.Sub(now); {
	case left <= 0:
		return fail(check, on, fmt.Sprintf("%s ended on %s", what, day(end)), hint), true
	case left < soon:
		return warn(check, on, fmt.Sprintf("%s ends on %s, in %s", what, day(end), span(left)), hint), true
	}
	return Line{}, false
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// span is a duration to a person: whole days, hours, minutes or seconds.
func span(d time.Duration) string {
	switch d = d.Abs(); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d.Minutes()))
	}
	return fmt.Sprintf("%.0f seconds", d.Seconds())
}

// workloads tells of controllers and gateways.
func workloads(f Facts) []Line {
	var lines []Line
	for _, c := range f.Components {
		check := map[string]string{"controller": checkController, "gateway": checkGatewayPod}[c.Name]
		if check == "" {
			continue // agents are told node by node
		}
		trouble := troubles(f.Pods, c.Name)
		switch {
		case !c.Found:
			lines = append(lines, fail(check, clusterwide, "its Deployment is not there", "`causeway install` puts it back"))
		case c.Ready == 0:
			lines = append(lines, fail(check, clusterwide, joined(fmt.Sprintf("none of %d is ready", c.Want), trouble), podHint(f, c.Name)))
		case c.Ready < c.Want:
			lines = append(lines, warn(check, clusterwide, joined(fmt.Sprintf("%d of %d are ready", c.Ready, c.Want), trouble), podHint(f, c.Name)))
		default:
			lines = append(lines, ok(check, clusterwide, "%d of %d are ready", c.Ready, c.Want))
		}
	}
	return append(lines, replicas(f)...)
}

// replicas tells which controllers could not be asked.
func replicas(f Facts) []Line {
	var lines []Line
	answered := 0
	for _, r := range f.Replicas {
		switch {
		case r.Error != "":
			lines = append(lines, fail(checkController, r.Pod, "does not answer: "+r.Error,
				"the command reaches it by port-forward, which your account must have the right to; its pod's logs may tell more"))
		case !r.Answer.Whole:
			lines = append(lines, warn(checkController, r.Pod, "has not seen the whole cluster yet", "ask again in a minute; then its log tells what it waits for"))
		case seconds(r.Answer.AgeSeconds) > stateOld:
			answered++
			lines = append(lines, fail(checkController, r.Pod,
				fmt.Sprintf("has read nothing from the API server for %v and serves the last state that it knows", seconds(r.Answer.AgeSeconds).Round(time.Second)),
				"look for what is between the pod and the API server; its log may tell more"))
		default:
			answered++
		}
	}
	if f.Asked && answered == 0 && len(lines) == 0 {
		lines = append(lines, fail(checkController, clusterwide, "no replica could be asked: nodes, peers and catalogs are not checked", podHint(f, "controller")))
	}
	return lines
}

func podHint(f Facts, component string) string {
	return fmt.Sprintf("`kubectl -n %s describe pods -l app.kubernetes.io/component=%s` tells why", f.Namespace, component)
}

func troubles(pods []Pod, component string) string {
	var out []string
	for _, p := range pods {
		if p.Component == component && p.Trouble != "" {
			out = append(out, p.Trouble)
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), "; ")
}

func joined(what, why string) string {
	if why == "" {
		return what
	}
	return what + " (" + why + ")"
}

// How old an agent's state may be: the controller says every 5 s that it is whole.
const (
	stateOld  = 30 * time.Second
	stateLost = 10 * time.Minute
)

// agents tells node by node.
func agents(f Facts) []Line {
	pods := map[string][]Pod{}
	for _, p := range f.Pods {
		if p.Component == "agent" {
			pods[p.Node] = append(pods[p.Node], p)
		}
	}
	answers := f.agents()
	var lines []Line
	good := 0
	for _, n := range f.Nodes {
		if !n.Linux {
			continue
		}
		if l, bad := f.agent(n, pods[n.Name], answers); bad {
			lines = append(lines, l)
		} else {
			good++
		}
	}
	if good > 0 {
		lines = append(lines, ok(checkAgent, clusterwide, "%s ready and up to date", nodesHave(good)))
	}
	return lines
}

func nodesHave(n int) string {
	if n == 1 {
		return "1 node has an agent,"
	}
	return fmt.Sprintf("%d nodes have an agent each,", n)
}

// agents are the agents' answers by node, the freshest if two replicas have one.
func (f Facts) agents() map[string]Agent {
	out := map[string]Agent{}
	for _, r := range f.Replicas {
		for _, a := range r.Answer.Agents {
			if have, known := out[a.Node]; !known || have.Error != "" || a.Error == "" && a.StateSeconds < have.StateSeconds {
				out[a.Node] = a
			}
		}
	}
	return out
}

// asked reports whether every replica answered: who is in no answer has no stream.
func (f Facts) asked() bool {
	return len(f.Replicas) > 0 && !slices.ContainsFunc(f.Replicas, func(r Replica) bool { return r.Error != "" || !r.Answer.Whole })
}

func (f Facts) agent(n Node, pods []Pod, answers map[string]Agent) (Line, bool) {
	hint := fmt.Sprintf("`kubectl -n %s get pods -o wide -l app.kubernetes.io/component=agent` shows it; its pods on %s are not reached until it is ready", f.Namespace, n.Name)
	if !n.Ready {
		return warn(checkAgent, n.Name, "the node is not ready", "`kubectl describe node "+n.Name+"` tells why"), true
	}
	if len(pods) == 0 {
		return fail(checkAgent, n.Name, "no agent runs there", hint), true
	}
	i := slices.IndexFunc(pods, func(p Pod) bool { return p.Ready })
	if i < 0 {
		return fail(checkAgent, n.Name, joined("its agent is not ready", pods[0].Trouble), hint), true
	}
	a, answered := answers[n.Name]
	logs := fmt.Sprintf("`kubectl -n %s logs %s -c agent` tells why; it serves on what it knew last", f.Namespace, pods[i].Name)
	switch {
	case !answered && f.asked():
		return fail(checkAgent, n.Name, "its agent has no stream to any controller", logs), true
	case answered && a.Error != "":
		return fail(checkAgent, n.Name, "its agent does not answer: "+a.Error, logs), true
	case answered && seconds(a.StateSeconds) > stateLost:
		return fail(checkAgent, n.Name, "what its agent knows is "+span(seconds(a.StateSeconds))+" old", logs), true
	case answered && seconds(a.StateSeconds) > stateOld:
		return warn(checkAgent, n.Name, "what its agent knows is "+span(seconds(a.StateSeconds))+" old", logs), true
	}
	return Line{}, false
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// versions tells of parts of this cluster that differ, and of peers far from it.
func versions(f Facts) []Line {
	have := map[string][]string{}
	for _, r := range f.Replicas {
		if r.Error == "" {
			have[r.Answer.Version] = append(have[r.Answer.Version], r.Pod)
		}
	}
	for _, a := range f.agents() {
		if a.Version != "" {
			have[a.Version] = append(have[a.Version], "the agent on "+a.Node)
		}
	}
	var lines []Line
	switch known := slices.Sorted(maps.Keys(have)); {
	case len(known) > 1:
		var parts []string
		for _, v := range known {
			parts = append(parts, v+": "+listed(have[v]))
		}
		lines = append(lines, warn(checkVersion, clusterwide, "different versions run: "+strings.Join(parts, "; "), "an upgrade that does not end: `causeway install` goes on with it"))
	case len(known) == 1 && known[0] != f.Version:
		lines = append(lines, warn(checkVersion, clusterwide, fmt.Sprintf("the cluster runs %s, this command is %s", known[0], f.Version), "use the command of the cluster's version, or `causeway install` to bring the cluster to this one's"))
	case len(known) == 1:
		lines = append(lines, ok(checkVersion, clusterwide, "all of it is %s", known[0]))
	}
	for _, l := range f.links() {
		if v := l.Status.PeerVersion; v != "" && minor(v) != minor(f.Version) {
			lines = append(lines, warn(checkVersion, l.Name, fmt.Sprintf("the peer runs %s, this command is %s", v, f.Version), "bring both clusters to one minor version, either first"))
		}
	}
	return lines
}

// minor is "v1.2" of "v1.2.3"; all of what is no such version.
func minor(v string) string {
	parts := strings.SplitN(v, ".", 3)
	if len(parts) < 3 {
		return v
	}
	return parts[0] + "." + parts[1]
}

// live counts the certificates that have begun and not ended.
func live(certs []*x509.Certificate, now time.Time) (n int, last time.Time) {
	for _, c := range certs {
		if !now.After(c.NotAfter) && !now.Before(c.NotBefore) {
			n++
		}
		if c.NotAfter.After(last) {
			last = c.NotAfter
		}
	}
	return n, cmp.Or(last, time.Time{})
}
