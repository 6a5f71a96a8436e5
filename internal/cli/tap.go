package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/agent"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/dataplane/tapaccess"
)

const (
	// maxTapLines is how many lines of agents wait for stdout.
	maxTapLines = 1024
	// tapEndTimeout bounds the deletion of the Tap at the end.
	tapEndTimeout = 5 * time.Second
	// maxTapForwards bounds how many taps the command opens at the same time, because the
	// API server and the kubelets carry each forwarded port.
	maxTapForwards = 32
	// maxRefusalText is how much of an agent's error message is read.
	maxRefusalText = 1 << 10
)

func (a *app) tap() *cobra.Command {
	var flags clusterFlags
	var contexts []string
	var filter reqlog.Filter
	var rate int
	var output string
	c := &cobra.Command{
		Use:   "tap",
		Short: "Show requests to and from linked clusters as they end",
		Long: `Show each request, and each connection without recognized requests, when it has ended. The agents of this
cluster that are ready when the command starts report it. The other end of the link is reported by the agents of
the other cluster: give --context once for each cluster to see both ends.

The command creates a Tap in the namespace that --namespace names, and deletes it at the end. It shows what
concerns that namespace: its Services, its mirrors and its pods. Without --namespace the Tap is created in
Causeway's own namespace, and requests of all namespaces are shown. So the rights to create and to delete taps in
a namespace are the rights to read its requests. The right to forward ports to the agents' pods is needed, too.

Here --namespace selects a namespace. In most other commands it is Causeway's own namespace.`,
		Example: "  causeway tap -n shop\n" +
			"  causeway tap --context west --context east --service web --status failed\n" +
			"  causeway tap --link east --method GET --path /api/ -o json",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := filter.Validate(); err != nil {
				return err
			}
			if rate < 1 || rate > reqlog.MaxRate {
				return fmt.Errorf("--max-rate must be from 1 to %d, not %d", reqlog.MaxRate, rate)
			}
			if output != "" && output != "json" {
				return fmt.Errorf("--output must be json, not %q", output)
			}
			return a.runTap(c.Context(), flags, contexts, tapOptions{filter: filter, rate: rate, json: output == "json"})
		},
	}
	c.Flags().StringVar(&flags.kubeconfig, "kubeconfig", "", "path of the kubeconfig `file` (default $KUBECONFIG or ~/.kube/config)")
	c.Flags().StringArrayVar(&contexts, "context", nil, "`name` of a kubeconfig context; may be repeated (default the current one)")
	c.Flags().StringVar(&flags.namespace, "causeway-namespace", clusterinfo.DefaultNamespace, "Causeway's own `namespace`")
	c.Flags().StringVarP(&filter.Namespace, "namespace", "n", "", "show what concerns this `namespace` (default all namespaces)")
	c.Flags().StringVar(&filter.Service, "service", "", "show only this Service or mirror, as `name` or namespace/name")
	c.Flags().StringVar(&filter.Link, "link", "", "show only the Link of this `name`")
	c.Flags().StringVar(&filter.Caller, "caller", "", "show only this `caller`: a SPIFFE ID or namespace/ServiceAccount")
	c.Flags().StringVar(&filter.Method, "method", "", "show only requests with this `method`")
	c.Flags().StringVar(&filter.Path, "path", "", "show only requests whose path begins with this `prefix`")
	c.Flags().StringVar(&filter.Status, "status", "", "show only this `status`: 404, 5xx or failed")
	c.Flags().StringVar(&filter.Direction, "direction", "", "show only `inbound` or outbound requests")
	c.Flags().IntVar(&rate, "max-rate", reqlog.DefaultRate, "most requests per second that each agent reports")
	c.Flags().StringVarP(&output, "output", "o", "", "print `json`, one object for each line")
	return c
}

// tapOptions is what a tap shows, and how.
type tapOptions struct {
	filter reqlog.Filter
	rate   int
	json   bool
}

// tapLine is a line of one agent.
type tapLine struct {
	cluster, pod string
	opened       bool // it is the first of this agent, and has nothing else
	reqlog.Line
}

// runTap prints what agents of each context report, until ctx ends. It fails if no agent
// can be tapped, or when the last tap has ended.
func (a *app) runTap(ctx context.Context, flags clusterFlags, contexts []string, o tapOptions) error {
	if len(contexts) == 0 {
		contexts = []string{flags.context}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := make(chan tapLine, maxTapLines)
	opening := make(chan struct{}, maxTapForwards)
	var taps []*clusterTap
	for _, name := range contexts {
		flags.context = name
		cl, err := a.connect(flags, a.stderr)
		if err != nil {
			return err
		}
		t := &clusterTap{cluster: cl, name: name, own: flags.namespace, options: o, lines: lines, opening: opening}
		defer t.close(ctx)
		if err := t.open(ctx); err != nil {
			return err
		}
		taps = append(taps, t)
	}
	agents := 0
	for _, t := range taps {
		agents += len(t.pods)
	}
	var running sync.WaitGroup
	ended := make(chan struct{})
	failures := make(chan error, agents)
	for _, t := range taps {
		for _, pod := range t.pods {
			running.Go(func() {
				if err := t.tapAgent(ctx, pod); err != nil {
					failures <- fmt.Errorf("tap agent %s: %w", pod, err)
				}
			})
		}
	}
	go func() { running.Wait(); close(ended) }()
	p := tapPrinter{app: a, agents: agents, json: o.json, contexts: len(contexts) > 1}
	err := p.run(ctx, lines, failures, ended)
	cancel()
	<-ended
	return err
}

// tapPrinter prints the lines of agents.
type tapPrinter struct {
	*app
	agents   int  // how many are asked
	open     int  // of them
	failed   int  // of them
	json     bool // print JSON
	contexts bool // there is more than one
}

// run prints lines until ctx or all taps have ended. If all taps have ended, it returns
// the error of the last one.
func (p *tapPrinter) run(ctx context.Context, lines <-chan tapLine, failures <-chan error, ended <-chan struct{}) error {
	var last error
	for {
		select {
		case l := <-lines:
			if err := p.print(l); err != nil {
				return err
			}
		case last = <-failures:
			if ctx.Err() != nil {
				return nil
			}
			p.failed++
			fmt.Fprintf(p.stderr, "causeway: %v\n", last)
			p.report()
		case <-ctx.Done():
			return nil
		case <-ended:
			if ctx.Err() != nil {
				return nil // the taps ended because ctx did
			}
			if len(failures) > 0 || len(lines) > 0 {
				continue
			}
			return fmt.Errorf("no tap is left: %w", last)
		}
	}
}

// report says how many agents are tapped, once each has answered.
func (p *tapPrinter) report() {
	if p.open+p.failed == p.agents {
		fmt.Fprintf(p.stderr, "tapping %d of %d agents\n", p.open, p.agents)
	}
}

func (p *tapPrinter) print(l tapLine) error {
	switch {
	case l.opened:
		p.open++
		p.report()
		return nil
	case l.Dropped > 0:
		fmt.Fprintf(p.stderr, "causeway: agent %s dropped %d requests: they exceed --max-rate, or this command is too slow\n",
			l.pod, l.Dropped)
		return nil
	}
	name := ""
	if p.contexts {
		name = l.cluster
	}
	if p.json {
		return json.NewEncoder(p.stdout).Encode(namedRecord{name, l.Record})
	}
	if name != "" {
		name += " "
	}
	_, err := fmt.Fprintln(p.stdout, name+l.Record.String())
	return err
}

// namedRecord is a record and the context of the cluster whose agent reported it. The
// context is empty if there is only one.
type namedRecord struct {
	Context string `json:"context,omitempty"`
	*reqlog.Record
}

// clusterTap taps the agents of one cluster.
type clusterTap struct {
	cluster
	name    string // of the context
	own     string // Causeway's namespace
	options tapOptions
	lines   chan<- tapLine
	opening chan struct{} // holds a token for each tap that opens

	key    tapaccess.Key
	pods   []string
	object *v1alpha1.Tap
}

// open creates the Tap and finds the agents.
func (t *clusterTap) open(ctx context.Context) error {
	namespace := t.options.filter.Namespace
	if namespace == "" {
		namespace = t.own
	}
	t.removeOld(ctx, namespace)
	var err error
	if t.key, err = tapaccess.NewKey(); err != nil {
		return err
	}
	object := &v1alpha1.Tap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: t.key.Name()}}
	if err := t.Create(ctx, object); err != nil {
		err = fmt.Errorf("create a Tap in namespace %s: %w", namespace, err)
		if apierrors.IsForbidden(err) {
			return withHint(err, "the right to create taps in a namespace is the right to see its requests")
		}
		return err
	}
	t.object = object
	pods, err := readyAgents(ctx, t.cluster, t.own)
	if err != nil {
		return err
	}
	if len(pods) == 0 {
		return withHint(fmt.Errorf("no agent in namespace %s is ready", t.own),
			"`causeway check` shows why; --causeway-namespace chooses another namespace")
	}
	t.pods = pods
	return nil
}

// removeOld deletes expired Taps, which a command left behind that was killed. It does
// nothing without the right to list them.
func (t *clusterTap) removeOld(ctx context.Context, namespace string) {
	var old v1alpha1.TapList
	if t.List(ctx, &old, client.InNamespace(namespace), client.Limit(100)) != nil {
		return
	}
	for i := range old.Items {
		if tap := &old.Items[i]; t.now().Sub(tap.CreationTimestamp.Time) > tapaccess.MaxAge {
			t.Delete(ctx, tap)
		}
	}
}

// close deletes the Tap, also if ctx has ended.
func (t *clusterTap) close(ctx context.Context) {
	if t.object == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tapEndTimeout)
	defer cancel()
	t.Delete(ctx, t.object) // it expires anyway
}

// tapAgent sends the lines of one agent, until ctx ends or the agent ends the tap.
func (t *clusterTap) tapAgent(ctx context.Context, pod string) error {
	forward := t.forwardTo
	if forward == nil {
		forward = t.forward
	}
	select {
	case t.opening <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	opened := sync.OnceFunc(func() { <-t.opening })
	defer opened()
	opening, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	address, stop, err := forward(opening, t.own, pod, clusterinfo.MetricsPort)
	if err != nil {
		return fmt.Errorf("forward a port to it: %w", err)
	}
	defer stop()
	url := "http://" + address + agent.TapPath + "?" + t.options.filter.Query(t.options.rate).Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+t.key.Token(pod))
	one := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: scrapeTimeout}}
	response, err := one.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusalText))
		return fmt.Errorf("%s: %q", response.Status, bytes.TrimSpace(text))
	}
	opened()
	return t.readLines(ctx, pod, response.Body)
}

// readLines reads an agent's lines until it ends the tap.
func (t *clusterTap) readLines(ctx context.Context, pod string, from io.Reader) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, reqlog.MaxLine)
	for first := true; lines.Scan(); first = false {
		l, err := reqlog.ParseLine(lines.Bytes())
		if err != nil {
			return err
		}
		if l.End != "" {
			return fmt.Errorf("%.200q", l.End)
		}
		if !first && l.Record == nil && l.Dropped == 0 {
			continue
		}
		select {
		case t.lines <- tapLine{t.name, pod, first, l}:
		case <-ctx.Done():
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the agent has stopped")
}
