package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/internal/check"
)

// checkFlags are the flags of `causeway check`.
type checkFlags struct {
	clusterFlags
	link       string
	skipCanary bool
	asJSON     bool
	timeout    time.Duration
}

func (a *app) check() *cobra.Command {
	var flags checkFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Find problems of Causeway and its Links, and say what to do",
		Long: `Check everything that a call to a linked cluster needs: Causeway's own objects and rights, controllers, gateways and
agents, clocks, certificates, each gateway address from each node and each mirror's objects. A canary pod on each node
tests the path of a pod's connection to its agent.

The command asks the controllers by port-forward, and they ask the agents. The exit code is 1 if a check fails, and 0
if there are only warnings.`,
		Example: "  causeway check --context west\n  causeway check --link east\n  causeway check --json " +
			"--skip-canary",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.runCheck(c.Context(), flags) },
	}
	flags.add(c)
	c.Flags().StringVar(&flags.link, "link", "", "limit the results about Links to the Link of this `name`")
	c.Flags().BoolVar(&flags.skipCanary, "skip-canary", false,
		"create no canary pods, so that the nodes' paths are not tested")
	c.Flags().BoolVar(&flags.asJSON, "json", false, "print JSON")
	c.Flags().DurationVar(&flags.timeout, "timeout", 90*time.Second,
		"maximum `duration`; what takes longer is reported as not answering")
	return c
}

func (a *app) runCheck(ctx context.Context, flags checkFlags) error {
	cl, err := a.connect(flags.clusterFlags, a.stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, flags.timeout, errTooLong)
	defer cancel()
	if _, err := cl.version(); err != nil {
		return withHint(fmt.Errorf("reach the API server: %w", err),
			"--kubeconfig and --context choose a cluster as they do for kubectl")
	}
	results, err := a.judge(ctx, cl, flags)
	if err != nil {
		return err
	}
	if flags.asJSON {
		err = printJSON(a.stdout, map[string]any{"checks": results})
	} else {
		err = a.printChecks(results)
	}
	if err == nil && check.Failed(results) {
		err = errFailed
	}
	return err
}

// errFailed ends the command with code 1 after the results have been printed.
var errFailed = &silent{errors.New("a check fails")}

// judge gathers the facts and returns the results.
func (a *app) judge(ctx context.Context, cl cluster, flags checkFlags) ([]check.Result, error) {
	rights, err := chartRights(flags.namespace)
	if err != nil {
		return nil, err
	}
	f := check.Facts{Namespace: flags.namespace, Version: Version(), Link: flags.link, Rights: rights}
	var asking sync.WaitGroup
	var notAsked, notProved error
	if cl.config != nil {
		f.Asked = true
		asking.Go(func() { f.Replicas, notAsked = cl.askControllers(ctx, flags.namespace) })
	}
	if !flags.skipCanary {
		f.Proved = true
		asking.Go(func() { f.Canaries, notProved = cl.canaries(ctx, flags.namespace) })
	}
	check.Gather(ctx, cl, &f)
	asking.Wait()
	for what, err := range map[string]error{"controllers": notAsked, "the nodes' paths": notProved} {
		if err != nil {
			f.Unread = append(f.Unread, check.Unread{What: what, Why: err.Error()})
		}
	}
	f.Now = cl.now()
	results := check.Judge(f)
	a.rememberPaths(ctx, cl, flags.namespace, check.Proofs(f.Canaries))
	if results == nil {
		results = []check.Result{}
	}
	return results, nil
}

func (a *app) printChecks(results []check.Result) error {
	var rows [][]string
	var hints strings.Builder
	counted := map[check.State]int{}
	for _, r := range results {
		counted[r.State]++
		rows = append(rows, []string{r.Check, r.Target, string(r.State), r.Message})
		if r.Hint != "" {
			fmt.Fprintf(&hints, "  %s %s: %s\n", r.Check, r.Target, r.Hint)
		}
	}
	if err := printTable(a.stdout, []string{"CHECK", "TARGET", "STATE", "MESSAGE"}, rows); err != nil {
		return err
	}
	if hints.Len() > 0 {
		if _, err := fmt.Fprintf(a.stdout, "\nWhat to do:\n%s", hints.String()); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s, %s, %d ok\n",
		count(counted[check.Fail], "failure"), count(counted[check.Warning], "warning"), counted[check.OK])
	return err
}
