package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// uninstallFlags are the words of `causeway uninstall`.
type uninstallFlags struct {
	clusterFlags
	yes       bool
	nodesOnly bool
	timeout   time.Duration
}

func (a *app) uninstall() *cobra.Command {
	var flags uninstallFlags
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove Causeway from a cluster, its nodes included",
		Long: `Remove Causeway from a cluster: its Links and their mirrors first, then the agents, then what vip-guard keeps on each
node, then all the rest: the kinds with every ExportPolicy, the keys, and the namespace if install made it.

What people wrote on their own objects, such as the label causeway.dev/export, stays. Installed again, the cluster has
new keys and must be linked anew. Run it again if it was broken off: it goes on where it stopped.`,
		Example: "  causeway uninstall --context west",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.runUninstall(c.Context(), flags) },
	}
	flags.clusterFlags.add(c)
	c.Flags().BoolVar(&flags.yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&flags.nodesOnly, "nodes-only", false, "stop when mirrors and agents are gone and the nodes clean, as before `helm uninstall`")
	c.Flags().DurationVar(&flags.timeout, "timeout", 5*time.Minute, "`how long` to wait until all is gone")
	return c
}

func (a *app) runUninstall(ctx context.Context, flags uninstallFlags) error {
	cl, err := a.connect(flags.clusterFlags, a.stderr)
	if err != nil {
		return err
	}
	if err := flags.checkNamespace(ctx, cl); err != nil {
		return err
	}
	u := &uninstaller{client: cl, namespace: flags.namespace}
	survey := u.survey
	if flags.nodesOnly {
		survey = u.surveyNodes
	}
	s, err := survey(ctx)
	if err != nil {
		return err
	}
	if s.empty() {
		_, err := fmt.Fprintln(a.stdout, "Nothing of Causeway is in this cluster.")
		return err
	}
	if !flags.yes {
		if err := a.confirm(ctx, s.String(), "removed"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong)
	defer cancel()
	u.progress = newProgress(a.stderr)
	if flags.nodesOnly {
		err = u.runNodes(ctx, s)
	} else {
		err = u.run(ctx, s)
	}
	if len(u.removed) > 0 { // also if only a part of it is
		fmt.Fprintf(a.stdout, "Removed%s:\n  %s\n", s.from(), strings.Join(u.removed, "\n  "))
	}
	if err != nil {
		if apierrors.IsForbidden(err) {
			return withHint(err, "uninstalling needs the rights of cluster-admin")
		}
		return err
	}
	for _, n := range u.notes {
		fmt.Fprintf(a.stderr, "note: %s\n", n)
	}
	return nil
}

// checkNamespace refuses a namespace that Causeway is not in. The chart's hook may not look, and Helm knows the namespace.
func (f uninstallFlags) checkNamespace(ctx context.Context, c client.Reader) error {
	err := checkNamespace(ctx, c, f.namespace)
	if f.nodesOnly && apierrors.IsForbidden(err) {
		return nil
	}
	return err
}

// confirm asks the person at the terminal whether to do what plan says; done is what would have been.
func (a *app) confirm(ctx context.Context, plan, done string) error {
	fmt.Fprintln(a.stderr, plan)
	if !a.terminal {
		return withHint(errors.New("nobody is there to be asked whether to go on"), "--yes goes on without asking")
	}
	fmt.Fprint(a.stderr, "Go on? [y/N] ")
	// A read from a terminal cannot be broken off: if ctx ends first, it ends with the process.
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		return context.Cause(ctx)
	case text := <-answer:
		if text != "y" && text != "yes" {
			return errors.New("nothing was " + done)
		}
		return nil
	}
}

// survey is what stands of Causeway in a cluster.
type survey struct {
	// cluster is its name, "?" if it has lost it.
	cluster  string
	links    []v1alpha1.Link
	mirrors  []string
	policies int
	// namespace is Causeway's own, if it is to go; made tells whether install made it.
	namespace string
	made      bool
	// objects are all others.
	objects []object
	// nodesOnly tells that nothing else was looked at than Links and mirrors.
	nodesOnly bool
	// helm tells that Helm has a record of a release in the namespace.
	helm bool
}

// surveyNodes looks at what a part of an uninstall is about, with few rights.
func (u *uninstaller) surveyNodes(ctx context.Context) (survey, error) {
	s := survey{cluster: "?", namespace: u.namespace, nodesOnly: true}
	var links v1alpha1.LinkList
	if err := u.client.List(ctx, &links); err != nil && !noKinds(err) {
		return s, fmt.Errorf("list Links: %w", err)
	}
	s.links = links.Items
	var err error
	s.mirrors, err = allMirrors(u.client).services(ctx)
	return s, err
}

func (u *uninstaller) survey(ctx context.Context) (survey, error) {
	s, err := u.surveyNodes(ctx)
	if err != nil {
		return s, err
	}
	s.nodesOnly = false
	var policies v1alpha1.ExportPolicyList
	if err := u.client.List(ctx, &policies); err != nil && !noKinds(err) {
		return s, fmt.Errorf("list ExportPolicies: %w", err)
	}
	s.policies = len(policies.Items)
	if s.objects, err = u.find(ctx, slices.Concat(workloads, belongings, crds)...); err != nil {
		return s, err
	}
	if s.made, err = u.madeNamespace(ctx); err != nil {
		return s, err
	}
	var identity corev1.ConfigMap
	err = u.client.Get(ctx, client.ObjectKey{Namespace: u.namespace, Name: clusterinfo.IdentityConfigMap}, &identity)
	if client.IgnoreNotFound(err) != nil {
		return s, fmt.Errorf("read this cluster's identity: %w", err)
	}
	if name := identity.Data[clusterinfo.KeyClusterName]; name != "" {
		s.cluster = name
	}
	var records corev1.SecretList
	if err := u.client.List(ctx, &records, client.InNamespace(u.namespace), client.MatchingLabels{"owner": "helm", "name": "causeway"}); err != nil {
		return s, fmt.Errorf("list Helm's records: %w", err)
	}
	s.helm = len(records.Items) > 0
	return s, nil
}

func (s survey) empty() bool {
	return !s.nodesOnly && len(s.links) == 0 && len(s.mirrors) == 0 && s.policies == 0 && len(s.objects) == 0 && !s.made
}

// String says what will be removed.
func (s survey) String() string {
	var out strings.Builder
	if s.nodesOnly {
		return fmt.Sprintf("This removes %s, %s, all agents, and routes and rules on every node.", count(len(s.links), "Link"), count(len(s.mirrors), "mirror"))
	}
	fmt.Fprintf(&out, "This removes Causeway from cluster %s:\n", s.cluster)
	fmt.Fprintf(&out, "  - %s and %s: callers are cut off\n", count(len(s.links), "Link"), count(len(s.mirrors), "mirror"))
	if s.policies > 0 {
		fmt.Fprintf(&out, "  - %s, which people wrote\n", strings.Replace(count(s.policies, "ExportPolicy"), "Policys", "Policies", 1))
	}
	fmt.Fprintf(&out, "  - routes and rules on every node, agents, gateways, controllers, rights and kinds\n")
	fmt.Fprintf(&out, "  - the cluster's keys: installed again, it must be linked anew\n")
	if s.made {
		fmt.Fprintf(&out, "  - the namespace %s with all that is in it\n", s.namespace)
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// from says which cluster it is, if that is known.
func (s survey) from() string {
	if s.cluster == "?" {
		return ""
	}
	return " from cluster " + s.cluster
}
