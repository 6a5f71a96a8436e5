package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/strvals"
	"sigs.k8s.io/yaml"

	"github.com/causeway-mesh/causeway/charts"
	"github.com/causeway-mesh/causeway/internal/check"
)

// installFlags are the words of `causeway install`.
type installFlags struct {
	clusterFlags
	clusterName string
	caSecret    string
	files, sets []string
	dryRun      bool
	skipCanary  bool
	timeout     time.Duration
}

func (a *app) install() *cobra.Command {
	var flags installFlags
	c := &cobra.Command{
		Use:   "install",
		Short: "Install Causeway into a cluster, or bring an installation up to date",
		Long: `Install Causeway: render the chart that is inside this binary, apply it, and wait until all of it is ready.

Run it again to change a value or to upgrade. What the chart does not hold is left alone. Give the same values again: one
that is not given is the chart's default then, but for the cluster's name and its ranges of virtual IPs, which stay.`,
		Example: `  causeway install --context west --cluster-name west
  causeway install --cluster-name west --set gateway.serviceType=NodePort --dry-run`,
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.runInstall(c.Context(), flags) },
	}
	flags.clusterFlags.add(c)
	c.Flags().StringVar(&flags.clusterName, "cluster-name", "", "this cluster's `name`, which cannot change later (default the one it has)")
	c.Flags().StringVar(&flags.caSecret, "ca-secret", "", "`name` of a Secret, in Causeway's namespace, in which somebody else, such as cert-manager, keeps this cluster's root")
	c.Flags().StringArrayVarP(&flags.files, "values", "f", nil, "YAML `file` of chart values; may be repeated, the last wins")
	c.Flags().StringArrayVar(&flags.sets, "set", nil, "one chart value, `key=value`; may be repeated, goes over --values")
	c.Flags().BoolVar(&flags.dryRun, "dry-run", false, "print the objects as YAML and ask no cluster")
	c.Flags().BoolVar(&flags.skipCanary, "skip-canary", false, "make no pods that prove each node's path from a pod to its agent")
	c.Flags().DurationVar(&flags.timeout, "timeout", 5*time.Minute, "`how long` to wait until all is ready")
	return c
}

func (a *app) runInstall(ctx context.Context, flags installFlags) error {
	values, err := flags.values()
	if err != nil {
		return err
	}
	if flags.dryRun {
		r, err := render(flags.namespace, values)
		if err != nil {
			return err
		}
		return printObjects(a.stdout, flags.namespace, r)
	}
	cl, err := a.connect(flags.clusterFlags, a.stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong)
	defer cancel()
	p := newProgress(a.stderr)
	if err := checkVersion(cl); err != nil {
		return err
	}
	if err := checkNamespace(ctx, cl, flags.namespace); err != nil {
		return err
	}
	if err := nameOnce(ctx, cl, flags.namespace, values); err != nil {
		return err
	}
	if err := coverFamilies(ctx, cl, flags.namespace, values); err != nil {
		return err
	}
	r, err := render(flags.namespace, values)
	if err != nil {
		return err
	}
	if err := checkRanges(ctx, cl, r.Values); err != nil {
		return err
	}
	i := installer{client: cl, namespace: flags.namespace, progress: p}
	if err := i.apply(ctx, r); err != nil {
		return err
	}
	if err := i.waitReady(ctx, r.Objects); err != nil {
		return err
	}
	if !flags.skipCanary {
		if err := a.provePaths(ctx, cl, flags.namespace, p); err != nil {
			return err
		}
	}
	_, err = io.WriteString(a.stdout, r.Notes)
	return err
}

// provePaths sends a canary to each node. The installation stands whatever they find: who fails is named.
func (a *app) provePaths(ctx context.Context, cl cluster, namespace string, p *progress) error {
	f := check.Facts{Namespace: namespace, Proved: true}
	err := p.until(ctx, wait{
		what: "canary", done: "its Service leads to the agents", undone: "has no address", hint: "the leading controller writes it: its log tells why it does not",
		state: func() (string, error) { return cl.canaryLeads(ctx, namespace) },
	})
	if err != nil {
		return err
	}
	if f.Canaries, err = cl.canaries(ctx, namespace); err != nil {
		return fmt.Errorf("prove the nodes' paths: %w", err)
	}
	results := check.JudgePaths(f)
	for _, r := range results {
		p.say(r.Check+" "+r.Target, r.Message)
	}
	a.rememberPaths(ctx, cl, namespace, check.Proofs(f.Canaries))
	if check.Failed(results) {
		fmt.Fprintln(a.stderr, "warning: Causeway is installed, but the canary failed on some node: `causeway check` says what to do")
	}
	return nil
}

// values merges what the chart is given beyond its defaults: files, then single values, then the cluster's name.
func (f *installFlags) values() (map[string]any, error) {
	values := map[string]any{}
	if v := Version(); v != unreleased {
		values["image"] = map[string]any{"tag": v}
	}
	for _, name := range f.files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read values: %w", err)
		}
		more := map[string]any{}
		if err := yaml.Unmarshal(data, &more); err != nil {
			return nil, fmt.Errorf("parse values file %q: %w", name, err)
		}
		values = util.CoalesceTables(more, values)
	}
	for _, s := range f.sets {
		if err := strvals.ParseInto(s, values); err != nil {
			return nil, fmt.Errorf("parse --set %q: %w", s, err)
		}
	}
	if f.clusterName != "" {
		values["clusterName"] = f.clusterName
	}
	if f.caSecret != "" {
		values["caSecret"] = f.caSecret
	}
	return values, nil
}

func render(namespace string, values map[string]any) (charts.Rendered, error) {
	if name, _ := values["clusterName"].(string); name == "" {
		return charts.Rendered{}, withHint(errors.New("this cluster needs a name"), "add --cluster-name NAME: lower-case letters, digits and dashes, unlike any cluster it will be linked with")
	}
	r, err := charts.Render(namespace, maps.Clone(values))
	if err != nil {
		return charts.Rendered{}, withHint(err, "the chart's README lists every value")
	}
	return r, nil
}

// printObjects writes the namespace and all objects of r as one stream of YAML documents.
func printObjects(w io.Writer, namespace string, r charts.Rendered) error {
	for _, o := range installPhases(namespace, false, r).all() {
		out, err := yaml.Marshal(o.Object)
		if err != nil {
			return fmt.Errorf("print %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		if _, err := fmt.Fprintf(w, "---\n%s", out); err != nil {
			return err
		}
	}
	return nil
}
