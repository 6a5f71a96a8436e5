package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/kube"
	"github.com/causeway-mesh/causeway/internal/stat"
)

const (
	// scrapeTimeout bounds the connection to one agent, and each of its scrapes.
	scrapeTimeout = 15 * time.Second
	// maxScrapes is how many agents are scraped at once.
	maxScrapes = 32
	// maxScrape bounds what an agent answers. Its series are bounded, too.
	maxScrape = 16 << 20
	// maxWindow bounds --window.
	maxWindow = 10 * time.Minute
)

func (a *app) stat() *cobra.Command {
	var flags clusterFlags
	var filter stat.Filter
	var window time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "stat",
		Short: "Show requests, success and latency by service, link and workload",
		Long: `Show the rates of requests and connections, the share of success, latencies, bytes and retries, by
direction, link, service, protocol and local workload. The figures are those of the agents of this cluster
over one window. No Prometheus is needed, but the right to forward ports to the agents' pods is.

A latency ends with the end of the response. A request fails if its status is 5xx, if there is no response,
or if its gRPC status is an error of the server. Here --namespace selects Services of one namespace. In most
other commands it is Causeway's own namespace.`,
		Example: "  causeway stat --context west\n" +
			"  causeway stat -n shop --direction outbound --window 1m\n" +
			"  causeway stat --link east --json",
		GroupID: operator,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if window < time.Second || window > maxWindow {
				return fmt.Errorf("--window must be from 1s to %v, not %v", maxWindow, window)
			}
			if !slices.Contains([]string{"", "inbound", "outbound"}, filter.Direction) {
				return fmt.Errorf("--direction must be inbound or outbound, not %q", filter.Direction)
			}
			cl, err := a.connect(flags, a.stderr)
			if err != nil {
				return err
			}
			rows, err := a.readStat(c.Context(), cl, flags.namespace, window, filter)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.stdout, map[string]any{"rows": append([]stat.Row{}, rows...)})
			}
			return a.printStat(rows, window)
		},
	}
	flags.addBeside(c)
	c.Flags().DurationVar(&window, "window", 10*time.Second, "`time` over which events are counted")
	c.Flags().StringVarP(&filter.Namespace, "namespace", "n", "",
		"show only Services of this `namespace` (default all namespaces)")
	c.Flags().StringVar(&filter.Service, "service", "", "show only the Service of this `name`")
	c.Flags().StringVar(&filter.Link, "link", "", "show only the Link of this `name`")
	c.Flags().StringVar(&filter.Direction, "direction", "", "show only `inbound` or outbound requests")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// readStat scrapes each agent twice. It reports agents that cannot be scraped on stderr,
// and fails if none can.
func (a *app) readStat(ctx context.Context, cl cluster, namespace string, window time.Duration,
	f stat.Filter) ([]stat.Row, error) {
	pods, err := readyAgents(ctx, cl, namespace)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, withHint(fmt.Errorf("no agent in namespace %s is ready", namespace),
			"`causeway check` shows why; --causeway-namespace chooses another namespace")
	}
	agents := make([]*scrapedAgent, len(pods))
	for i, pod := range pods {
		agents[i] = &scrapedAgent{pod: pod}
	}
	forward := cl.forwardTo
	if forward == nil {
		forward = cl.forward
	}
	defer func() {
		for _, s := range agents {
			if s.stop != nil {
				s.stop()
			}
		}
	}()
	eachAgent(agents, func(s *scrapedAgent) { s.open(ctx, namespace, forward) })
	eachAgent(agents, func(s *scrapedAgent) { s.before = s.scrape(ctx) })
	if !backoff.Sleep(ctx, window) {
		return nil, context.Cause(ctx)
	}
	eachAgent(agents, func(s *scrapedAgent) { s.after = s.scrape(ctx) })
	before, after := map[string]stat.Snapshot{}, map[string]stat.Snapshot{}
	var failures []error
	for _, s := range agents {
		if s.err != nil {
			failures = append(failures, fmt.Errorf("scrape agent %s: %w", s.pod, s.err))
			continue
		}
		before[s.pod], after[s.pod] = s.before, s.after
	}
	if len(failures) == len(agents) {
		return nil, errors.Join(failures...)
	}
	for _, err := range failures {
		fmt.Fprintf(a.stderr, "causeway: %v\n", err)
	}
	return stat.Rows(before, after, f), nil
}

// readyAgents returns the names of the agents' pods that are ready, sorted. It returns
// one for each node, because only one agent of a node serves metrics during an upgrade.
func readyAgents(ctx context.Context, cl cluster, namespace string) ([]string, error) {
	var pods corev1.PodList
	err := cl.List(ctx, &pods, client.InNamespace(namespace),
		client.MatchingLabels(clusterinfo.Selector(clusterinfo.ComponentAgent)))
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	onNode := map[string]string{}
	for _, p := range pods.Items {
		if ready, _ := kube.PodReady(&p); ready && p.DeletionTimestamp == nil {
			onNode[p.Spec.NodeName] = p.Name
		}
	}
	return slices.Sorted(maps.Values(onNode)), nil
}

// scrapedAgent is an agent that is scraped twice through one forwarded port. After an
// error its methods do nothing.
type scrapedAgent struct {
	pod           string
	address       string
	stop          func()
	before, after stat.Snapshot
	err           error
}

// eachAgent calls f for each agent, for some at once.
func eachAgent(agents []*scrapedAgent, f func(*scrapedAgent)) {
	var running sync.WaitGroup
	slots := make(chan struct{}, maxScrapes)
	for _, s := range agents {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			f(s)
		})
	}
	running.Wait()
}

// open forwards a port of this machine to the agent's metrics.
func (s *scrapedAgent) open(ctx context.Context, namespace string, forward forwarder) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	s.address, s.stop, s.err = forward(ctx, namespace, s.pod, clusterinfo.MetricsPort)
}

func (s *scrapedAgent) scrape(ctx context.Context) stat.Snapshot {
	if s.err != nil {
		return stat.Snapshot{}
	}
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	families, err := scrapeMetrics(ctx, "http://"+s.address+"/metrics")
	s.err = err
	return stat.Snapshot{At: time.Now(), Families: families}
}

// scrapeMetrics requests the format that has native histograms.
func scrapeMetrics(ctx context.Context, url string) ([]*dto.MetricFamily, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	one := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := one.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %s", answer.Status)
	}
	var out []*dto.MetricFamily
	decoder := expfmt.NewDecoder(io.LimitReader(answer.Body, maxScrape), expfmt.ResponseFormat(answer.Header))
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the metrics: %w", err)
		}
		out = append(out, &family)
	}
}

// printStat prints a table. Nothing is said of what had no requests.
func (a *app) printStat(rows []stat.Row, window time.Duration) error {
	if len(rows) == 0 {
		fmt.Fprintf(a.stderr, "no requests or connections ended within %v\n", window)
		return nil
	}
	var table [][]string
	for _, r := range rows {
		table = append(table, []string{
			r.Direction,
			dash(r.Link),
			r.Namespace + "/" + r.Service + ":" + r.Port,
			r.Protocol,
			r.Workload,
			rate(r.Requests),
			percent(r.Success),
			latency(r.P50),
			latency(r.P95),
			latency(r.P99),
			byteRate(r.BytesIn),
			byteRate(r.BytesOut),
			rate(r.Retries),
			rate(r.Connections),
		})
	}
	headings := []string{"DIRECTION", "LINK", "SERVICE", "PROTOCOL", "WORKLOAD", "REQ/S", "SUCCESS",
		"P50", "P95", "P99", "IN/S", "OUT/S", "RETRIES/S", "CONN/S"}
	return printTable(a.stdout, headings, table)
}

func rate(v float64) string {
	if v == 0 {
		return "-"
	}
	return strconv.FormatFloat(v, 'f', 1, 64)
}

// percent does not round a share below 1 up to 100 %.
func percent(v *float64) string {
	switch {
	case v == nil:
		return "-"
	case *v < 1 && *v > 0.9999:
		return "99.99%"
	}
	return strings.TrimSuffix(strconv.FormatFloat(*v*100, 'f', 2, 64), ".00") + "%"
}

func latency(seconds *float64) string {
	switch {
	case seconds == nil:
		return "-"
	case *seconds < 0.0995:
		return strconv.FormatFloat(*seconds*1000, 'f', 1, 64) + "ms"
	case *seconds < 1:
		return strconv.FormatFloat(*seconds*1000, 'f', 0, 64) + "ms"
	}
	return strconv.FormatFloat(*seconds, 'f', 2, 64) + "s"
}

func byteRate(v float64) string {
	if v == 0 {
		return "-"
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return strconv.FormatFloat(v, 'f', min(i, 1), 64) + units[i]
}
