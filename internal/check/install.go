package check

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// access reports what could not be read.
func access(f Facts) []Result {
	var results []Result
	for _, u := range f.Unread {
		results = append(results, fail(checkAccess, u.What, "cannot be read: "+u.Why,
			"check that your account has the right to read it and that the API server answers; "+
				"checks that depend on it were not made"))
	}
	return bound(results)
}

// kinds reports whether Causeway's kinds are served, and whether their
// CustomResourceDefinitions have every field that this version writes.
func kinds(f Facts) []Result {
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
		return []Result{fail(checkKinds, wholeCluster,
			"the cluster does not serve "+strings.Join(missing, ", "),
			"run `causeway install` to create the CustomResourceDefinitions again; "+
				"their objects are lost, so apply your Links again")}
	}
	if lacking := missingFields(f.OutdatedCRDs); len(lacking) > 0 {
		return []Result{outdatedCRDs(f, lacking)}
	}
	return []Result{ok(checkKinds, wholeCluster, "all %d are served", len(f.Kinds))}
}

// missingFields leaves out kinds that are missing altogether.
func missingFields(outdated []string) []string {
	return slices.DeleteFunc(slices.Clone(outdated), func(s string) bool { return !strings.Contains(s, ":") })
}

// outdatedCRDs fails if the controllers are of the command's version, because they then
// write fields that the API server drops. Otherwise the command may just be newer.
func outdatedCRDs(f Facts, lacking []string) Result {
	message := "the CustomResourceDefinitions are older than version " + f.Version +
		", so the API server drops the fields " + summarize(lacking)
	const hint = "run `causeway install`, or apply the chart's crds folder: Helm does not upgrade it"
	for _, r := range f.Replicas {
		if r.Error == "" && r.Answer.Version == f.Version {
			return fail(checkKinds, wholeCluster, message, hint)
		}
	}
	return warn(checkKinds, wholeCluster, message, hint)
}

// rights reports whether each account has the rights that the chart gives to it.
func rights(f Facts) []Result {
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
		return nil // a Result of access says so
	}
	if len(lacks) == 0 {
		return []Result{ok(checkRights, wholeCluster, "Causeway's accounts have all %d", len(f.Rights))}
	}
	var results []Result
	for _, account := range slices.Sorted(maps.Keys(lacks)) {
		results = append(results, fail(checkRights, account, "may not "+summarize(lacks[account]),
			"run `causeway install` to create the roles and bindings again; if they exist, another "+
				"authorizer denies the request"))
	}
	return results
}

// String returns, for example, "list services".
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

// A certificate gives a warning when it expires within this time. The root's is long
// because administrators of peers have to act.
const (
	rootSoon   = 30 * 24 * time.Hour
	issuerSoon = 3 * 24 * time.Hour
)

// identities reports on this cluster's root and issuer.
func identities(f Facts) []Result {
	if f.Identity == nil {
		return []Result{fail(checkIdentity, wholeCluster, "ConfigMap causeway-identity does not exist",
			"the controller creates it: "+logsHint(f.Namespace))}
	}
	domain := f.Identity[clusterinfo.KeyTrustDomain]
	root, err := identity.ParseRootCertificate([]byte(f.Identity[clusterinfo.KeyRoot]), domain)
	if err != nil {
		return []Result{fail(checkIdentity, wholeCluster,
			fmt.Sprintf("ConfigMap causeway-identity has no valid root: %v", err),
			"run `kubectl -n "+f.Namespace+" delete configmap causeway-identity`: "+
				"the controller creates it again from its Secrets within a minute")}
	}
	if r, bad := expiry(f.Now, checkIdentity, wholeCluster, "this cluster's root", root.NotAfter, rootSoon,
		"run `causeway rotate --root`, then apply the output of `causeway identity` in each peer; "+
			"renew a root of your own where you made it"); bad {
		return []Result{r}
	}
	return append([]Result{ok(checkIdentity, wholeCluster, "trust domain %s, root until %s", domain,
		day(root.NotAfter))},
		ownIssuers(f)...)
}

func ownIssuers(f Facts) []Result {
	var until []time.Time
	for _, r := range f.Replicas {
		until = append(until, r.Answer.IssuersUntil...)
	}
	if len(until) == 0 {
		return nil
	}
	last := slices.MaxFunc(until, time.Time.Compare)
	if r, bad := expiry(f.Now, checkIdentity, wholeCluster, "this cluster's issuer", last, issuerSoon,
		"the controller renews it: "+logsHint(f.Namespace)); bad {
		return []Result{r}
	}
	return nil
}

// logsHint names the command that shows why the controller does not do something.
func logsHint(namespace string) string {
	return fmt.Sprintf("`kubectl -n %s logs deployment/causeway-controller` shows why it does not", namespace)
}

// expiry returns the Result of a certificate that has expired, or expires within soon. It
// reports false for any other.
func expiry(
	now time.Time, check, target, what string, end time.Time, soon time.Duration, hint string,
) (Result, bool) {
	switch left := end.Sub(now); {
	case left <= 0:
		return fail(check, target, fmt.Sprintf("%s expired on %s", what, day(end)), hint), true
	case left < soon:
		return warn(check, target, fmt.Sprintf("%s expires on %s, in %s", what, day(end), span(left)),
			hint), true
	}
	return Result{}, false
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// span returns the absolute value of d in whole days, hours, minutes or seconds.
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

// workloads reports on controllers and gateways.
func workloads(f Facts) []Result {
	var results []Result
	for _, c := range f.Components {
		check := map[string]string{"controller": checkController, "gateway": checkGateway}[c.Name]
		if check == "" {
			continue // agents reports on each node
		}
		why := failures(f.Pods, c.Name)
		switch {
		case !c.Found:
			results = append(results, fail(check, wholeCluster, "its Deployment does not exist",
				"run `causeway install` to create it again"))
		case c.Ready == 0:
			results = append(results, fail(check, wholeCluster,
				explained(fmt.Sprintf("none of %s is ready", count(c.Want, "pod")), why), podHint(f, c.Name)))
		case c.Ready < c.Want:
			results = append(results, warn(check, wholeCluster,
				explained(fmt.Sprintf("%d of %d pods are ready", c.Ready, c.Want), why), podHint(f, c.Name)))
		default:
			results = append(results, ok(check, wholeCluster, "%d of %d pods are ready", c.Ready, c.Want))
		}
	}
	return append(results, replicas(f)...)
}

// replicaStale is the age of a replica's data from which on it gives a failure. A ready
// replica may have data that old if no other replica is more current.
const replicaStale = 30 * time.Second

// replicas reports which controllers did not answer, and which have lost their API
// server.
func replicas(f Facts) []Result {
	var results []Result
	for _, r := range f.Replicas {
		switch age := seconds(r.Answer.AgeSeconds); {
		case r.Error != "":
			results = append(results, fail(checkController, r.Pod, "does not answer: "+r.Error,
				"the command connects by port-forward, for which your account needs the right; the pod's "+
					"log may say more"))
		case age > replicaStale:
			results = append(results, fail(checkController, r.Pod,
				fmt.Sprintf("has read nothing from the API server for %s and serves the last state that "+
					"it knows", span(age)),
				"check the network between the pod's node and the API server; its log may say more"))
		case !r.Answer.Whole:
			results = append(results, warn(checkController, r.Pod, "its caches are not complete yet",
				"run the command again in a minute; if this stays, its log says what it waits for"))
		}
	}
	if f.Asked && len(f.Replicas) == 0 {
		results = append(results, fail(checkController, wholeCluster,
			"no replica answers, so nodes, peers and catalogs were not checked", podHint(f, "controller")))
	}
	return results
}

func podHint(f Facts, component string) string {
	return fmt.Sprintf("`kubectl -n %s describe pods -l app.kubernetes.io/component=%s` shows why",
		f.Namespace, component)
}

// failures returns why the pods of a component do not run, each reason once.
func failures(pods []Pod, component string) string {
	var out []string
	for _, p := range pods {
		if p.Component == component && p.Failure != "" {
			out = append(out, p.Failure)
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), "; ")
}

func explained(what, why string) string {
	if why == "" {
		return what
	}
	return what + " (" + why + ")"
}

// An agent whose state is older than stateOld gives a warning, and than stateLost a
// failure. Controllers confirm every 5 s that the state is complete.
const (
	stateOld  = 30 * time.Second
	stateLost = 10 * time.Minute
)

// agents reports on each node's agent.
func agents(f Facts) []Result {
	pods := map[string][]Pod{}
	for _, p := range f.Pods {
		if p.Component == "agent" {
			pods[p.Node] = append(pods[p.Node], p)
		}
	}
	answers := f.agents()
	var results []Result
	good := 0
	for _, n := range f.Nodes {
		if !n.Linux {
			continue
		}
		if r, bad := f.agent(n, pods[n.Name], answers); bad {
			results = append(results, r)
		} else {
			good++
		}
	}
	if good > 0 {
		results = append(results, ok(checkAgent, wholeCluster, "the agents of %s are ready and up to date",
			count(good, "node")))
	}
	return results
}

// agents returns the agents' answers by node. If several replicas have one of a node, the
// freshest counts.
func (f Facts) agents() map[string]Agent {
	out := map[string]Agent{}
	for _, r := range f.Replicas {
		for _, a := range r.Answer.Agents {
			have, known := out[a.Node]
			if !known || have.Error != "" || a.Error == "" && a.StateSeconds < have.StateSeconds {
				out[a.Node] = a
			}
		}
	}
	return out
}

// allAnswered reports whether every replica answered. An agent that is in no answer then
// has no node stream.
func (f Facts) allAnswered() bool {
	return len(f.Replicas) > 0 && !slices.ContainsFunc(f.Replicas, func(r Replica) bool {
		return r.Error != "" || !r.Answer.Whole
	})
}

// agent returns the Result of a node whose agent does not work. It reports false if the
// agent works.
func (f Facts) agent(n Node, pods []Pod, answers map[string]Agent) (Result, bool) {
	hint := fmt.Sprintf("`kubectl -n %s get pods -o wide -l app.kubernetes.io/component=agent` shows the "+
		"agents; pods on %s neither call nor are called until its agent is ready", f.Namespace, n.Name)
	if !n.Ready {
		return warn(checkAgent, n.Name, "the node is not ready",
			"`kubectl describe node "+n.Name+"` shows why"), true
	}
	if len(pods) == 0 {
		return fail(checkAgent, n.Name, "the node has no agent", hint), true
	}
	i := slices.IndexFunc(pods, func(p Pod) bool { return p.Ready })
	if i < 0 {
		return fail(checkAgent, n.Name, explained("its agent is not ready", pods[0].Failure), hint), true
	}
	logs := fmt.Sprintf("`kubectl -n %s logs %s -c agent` shows why; until then the agent uses its last "+
		"state",
		f.Namespace, pods[i].Name)
	a, answered := answers[n.Name]
	age := seconds(a.StateSeconds)
	switch {
	case !answered && f.allAnswered():
		return fail(checkAgent, n.Name, "its agent has no stream to any controller", logs), true
	case answered && a.Error != "":
		return fail(checkAgent, n.Name, "its agent does not answer: "+a.Error, logs), true
	case answered && age > stateLost:
		return fail(checkAgent, n.Name, fmt.Sprintf("the state of its agent is %s old", span(age)),
			logs), true
	case answered && age > stateOld:
		return warn(checkAgent, n.Name, fmt.Sprintf("the state of its agent is %s old", span(age)),
			logs), true
	}
	return Result{}, false
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// versions reports whether all parts of this cluster, and its peers, run one version.
func versions(f Facts) []Result {
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
	var results []Result
	switch known := slices.Sorted(maps.Keys(have)); {
	case len(known) > 1:
		var parts []string
		for _, v := range known {
			parts = append(parts, v+": "+summarize(have[v]))
		}
		results = append(results, warn(checkVersion, wholeCluster,
			"different versions run: "+strings.Join(parts, "; "),
			"an upgrade is not complete: run `causeway install` to continue it"))
	case len(known) == 1 && known[0] != f.Version:
		results = append(results, warn(checkVersion, wholeCluster,
			fmt.Sprintf("the cluster runs %s, and this command is %s", known[0], f.Version),
			"use the command of the cluster's version, or run `causeway install` to upgrade the cluster"))
	case len(known) == 1:
		results = append(results, ok(checkVersion, wholeCluster, "every part runs %s", known[0]))
	}
	for _, l := range f.links() {
		if v := l.Status.PeerVersion; v != "" && minor(v) != minor(f.Version) {
			results = append(results, warn(checkVersion, l.Name,
				fmt.Sprintf("the peer runs %s, and this command is %s", v, f.Version),
				"upgrade both clusters to the same minor version, in any order"))
		}
	}
	return results
}

// minor returns "v1.2" for "v1.2.3", and any other text as it is.
func minor(v string) string {
	parts := strings.SplitN(v, ".", 3)
	if len(parts) < 3 {
		return v
	}
	return parts[0] + "." + parts[1]
}

// live counts the certificates that are valid now, and returns when the last of all
// expires.
func live(certs []*x509.Certificate, now time.Time) (n int, last time.Time) {
	for _, c := range certs {
		if !now.After(c.NotAfter) && !now.Before(c.NotBefore) {
			n++
		}
		if c.NotAfter.After(last) {
			last = c.NotAfter
		}
	}
	return n, last
}
