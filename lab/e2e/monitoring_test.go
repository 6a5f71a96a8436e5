//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	chartFiles = "../../charts/causeway/files/"
	// These ports are free on the lab's nodes.
	prometheusPort       = "9099"
	nativePrometheusPort = "9098"
)

// A prometheus is a real one, of Debian, in the network namespace of west's node.
type prometheus struct{ node, port string }

// startPrometheus starts one with the chart's scrape jobs and alerts. Debian's has no
// service discovery of Kubernetes. So a file has the labels that discovery would find, and
// the relabeling is that of the chart.
func startPrometheus(t *testing.T) *prometheus {
	t.Helper()
	dir := t.TempDir()
	text := have(os.ReadFile(chartFiles + "scrape.yaml"))(t)
	var config map[string]any
	must(t, yaml.Unmarshal(text, &config))
	for _, j := range config["scrape_configs"].([]any) {
		job := j.(map[string]any)
		name := job["job_name"].(string)
		delete(job, "kubernetes_sd_configs")
		file := filepath.Join(dir, name+".json")
		targets := have(podTargets(t.Context(), strings.TrimPrefix(name, "causeway-")))(t)
		must(t, os.WriteFile(file, have(json.Marshal(targets))(t), 0o600))
		job["file_sd_configs"] = []any{map[string]any{"files": []any{file}}}
	}
	config["global"] = map[string]any{
		"scrape_interval":     "2s",
		"scrape_timeout":      "2s",
		"evaluation_interval": "2s",
	}
	config["rule_files"] = []any{have(filepath.Abs(chartFiles + "alerts.yaml"))(t)}
	p := runPrometheus(t, prometheusPort, dir, config)
	within(t, time.Minute, "Prometheus scrapes all of Causeway's pods", func() error {
		up, err := p.query(t.Context(), `up{job=~"causeway-.*"}`)
		if err != nil {
			return err
		}
		jobs := map[string]bool{}
		for _, s := range up {
			if s.value != 1 {
				return fmt.Errorf("not scraped: %v", s.labels)
			}
			jobs[s.labels["job"]] = true
		}
		if len(jobs) != 3 {
			return fmt.Errorf("scraped are %v", slices.Sorted(maps.Keys(jobs)))
		}
		return nil
	})
	return p
}

// startNativePrometheus starts a Prometheus that stores native histograms and exemplars,
// and scrapes the agent of west's node alone. Without its feature flags, Prometheus
// stores neither. With them, Debian's version 2.42 stores no classic buckets of a native
// histogram.
func startNativePrometheus(t *testing.T) *prometheus {
	t.Helper()
	config := map[string]any{
		"global": map[string]any{"scrape_interval": "1s", "scrape_timeout": "1s"},
		"scrape_configs": []any{map[string]any{
			"job_name":       "agent",
			"static_configs": []any{map[string]any{"targets": []any{"127.0.0.1:9464"}}},
		}},
	}
	p := runPrometheus(t, nativePrometheusPort, t.TempDir(), config, "--enable-feature=native-histograms,exemplar-storage")
	within(t, time.Minute, "Prometheus scrapes the agent", func() error {
		up, err := p.value(t.Context(), "up")
		if err == nil && up != 1 {
			err = errNotYet
		}
		return err
	})
	return p
}

// runPrometheus runs a Prometheus in the network of west's node, with files in dir, until
// the test ends.
func runPrometheus(t *testing.T, port, dir string, config map[string]any, more ...string) *prometheus {
	t.Helper()
	path := filepath.Join(dir, "prometheus.yaml")
	must(t, os.WriteFile(path, have(yaml.Marshal(config))(t), 0o600))
	p := &prometheus{node: have(west.NodeNetns(""))(t), port: port}
	args := append([]string{"--net=" + p.node, "prometheus", "--config.file=" + path,
		"--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:" + port, "--log.level=warn"}, more...)
	cmd := exec.CommandContext(t.Context(), "nsenter", args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Wait() }) // t.Context() has ended
	return p
}

// podTargets are the targets of a component's pods as Prometheus's discovery makes them:
// one for each declared port, and one for each container without.
func podTargets(ctx context.Context, component string) ([]map[string]any, error) {
	pods, err := west.pods(ctx, component)
	if err != nil {
		return nil, err
	}
	var out []map[string]any
	for _, p := range pods {
		for _, c := range p.Spec.Containers {
			add := func(address, port string) {
				labels := map[string]string{
					"__meta_kubernetes_pod_name":           p.Name,
					"__meta_kubernetes_pod_ip":             p.Status.PodIP,
					"__meta_kubernetes_pod_node_name":      p.Spec.NodeName,
					"__meta_kubernetes_pod_container_name": c.Name,
				}
				if port != "" {
					labels["__meta_kubernetes_pod_container_port_name"] = port
				}
				out = append(out, map[string]any{"targets": []string{address}, "labels": labels})
			}
			for _, port := range c.Ports {
				add(net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(port.ContainerPort))), port.Name)
			}
			if len(c.Ports) == 0 {
				add(p.Status.PodIP, "")
			}
		}
	}
	return out, nil
}

// get asks Prometheus's API, and decodes the data of its answer.
func (p *prometheus) get(ctx context.Context, path string, parameters url.Values, into any) error {
	body, err := fetch(ctx, p.node, "http://127.0.0.1:"+p.port+"/api/v1/"+path+"?"+parameters.Encode())
	if err != nil {
		return err
	}
	var answer struct {
		Status string
		Data   json.RawMessage
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("Prometheus answers %s", body)
	}
	return json.Unmarshal(answer.Data, into)
}

// A promSample is a series of a query's result.
type promSample struct {
	labels map[string]string
	value  float64
}

func (p *prometheus) query(ctx context.Context, expr string) ([]promSample, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := p.get(ctx, "query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, fmt.Errorf("query %s: %w", expr, err)
	}
	var out []promSample
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("query %s: %w", expr, err)
		}
		out = append(out, promSample{r.Metric, v})
	}
	return out, nil
}

// value is the sum of a query's result.
func (p *prometheus) value(ctx context.Context, expr string) (float64, error) {
	samples, err := p.query(ctx, expr)
	if err == nil && len(samples) == 0 {
		err = fmt.Errorf("no series match %s", expr)
	}
	sum := 0.0
	for _, s := range samples {
		sum += s.value
	}
	return sum, err
}

// alerts are the states of the alerts that are pending or firing, by name.
func (p *prometheus) alerts(ctx context.Context) (map[string]string, error) {
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := p.get(ctx, "alerts", nil, &data); err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, a := range data.Alerts {
		out[a.Labels["alertname"]] = a.State
	}
	return out, nil
}

// exemplarsOf returns the trace IDs of a query's exemplars of the last five minutes.
func (p *prometheus) exemplarsOf(ctx context.Context, expr string) (ids []string, err error) {
	now := time.Now()
	at := func(t time.Time) []string { return []string{strconv.FormatInt(t.Unix(), 10)} }
	var data []struct {
		Exemplars []struct{ Labels map[string]string }
	}
	err = p.get(ctx, "query_exemplars", url.Values{
		"query": {expr},
		"start": at(now.Add(-5 * time.Minute)),
		"end":   at(now.Add(time.Minute)),
	}, &data)
	for _, series := range data {
		for _, e := range series.Exemplars {
			ids = append(ids, e.Labels["trace_id"])
		}
	}
	return ids, err
}

// rulesRun wants each rule to have been evaluated without an error.
func (p *prometheus) rulesRun(ctx context.Context) error {
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := p.get(ctx, "rules", nil, &data); err != nil {
		return err
	}
	n := 0
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			if n++; r.Health != "ok" {
				return fmt.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
			}
		}
	}
	if n < 20 {
		return fmt.Errorf("there are %d rules", n)
	}
	return nil
}

func (p *prometheus) isCalm(ctx context.Context) error {
	active, err := p.alerts(ctx)
	if err == nil && len(active) > 0 {
		err = fmt.Errorf("alerts are active: %v", active)
	}
	return err
}

// mayBeEmpty are the panels that have no data while nothing fails.
var mayBeEmpty = []string{
	"Answered by Causeway",
	"Avoided gateway addresses",
	"Ejections",
	"Refused by agents",
	"Refused by gateways",
	"Retries",
	"Workload certificates",
}

// panelsHaveData wants each query of the dashboards to work, and to have a result unless
// its panel may be empty.
func (p *prometheus) panelsHaveData(ctx context.Context) error {
	files, err := filepath.Glob(chartFiles + "dashboards/*.json")
	if err != nil || len(files) != 4 {
		return fmt.Errorf("there are %d dashboards: %w", len(files), err)
	}
	var all []error
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var d struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
			Templating struct{ List []struct{ Name string } }
		}
		if err := json.Unmarshal(text, &d); err != nil {
			return err
		}
		variables := []string{"$__rate_interval", "30s"}
		for _, v := range d.Templating.List {
			variables = append(variables, "$"+v.Name, ".*")
		}
		for _, panel := range d.Panels {
			for _, q := range panel.Targets {
				samples, err := p.query(ctx, strings.NewReplacer(variables...).Replace(q.Expr))
				if err == nil && len(samples) == 0 && !slices.Contains(mayBeEmpty, panel.Title) {
					err = fmt.Errorf("%s: %q has no data: %s", filepath.Base(name), panel.Title, q.Expr)
				}
				if err != nil {
					all = append(all, err)
				}
			}
		}
	}
	return errors.Join(all...)
}

// TestMonitoring has a real Prometheus load the chart's scrape jobs and alerts. On healthy
// clusters no alert is active, and the dashboards have data. Counts, failures and latencies
// of each protocol agree with those of a client and of `causeway stat` at both ends. An
// outage of the WAN activates its alert.
func TestMonitoring(t *testing.T) {
	ctx := t.Context()
	_, tag, _ := strings.Cut(os.Getenv("CAUSEWAY_IMAGE"), ":")
	install := func(ctx context.Context, more ...string) error {
		args := []string{"install", "--cluster-name", "west", "--set", "image.tag=" + tag}
		_, err := west.causeway(ctx, append(args, more...)...)
		return err
	}
	t.Cleanup(func() {
		must(t, install(background()))
		must(t, west.kubectl(background(), "", "-n", "causeway-system", "delete", "configmap",
			"--ignore-not-found", "-l", "app.kubernetes.io/name=causeway,grafana_dashboard=1"))
	})
	must(t, install(ctx, "--set", "monitoring.exposeAgents=true", "--set", "monitoring.dashboards.enabled=true"))
	out := have(west.api.CoreV1().ConfigMaps("causeway-system").List(ctx, metav1.ListOptions{LabelSelector: "grafana_dashboard=1"}))(t)
	if len(out.Items) != 4 {
		t.Errorf("there are ConfigMaps of %d dashboards, want 4", len(out.Items))
	}
	within(t, 2*time.Minute, "no old agent is left", func() error {
		pods, err := west.pods(ctx, "agent")
		if err == nil && (len(pods) != len(west.Nodes()) || !isReady(&pods[0]) || pods[0].DeletionTimestamp != nil) {
			err = fmt.Errorf("there are %d agents", len(pods))
		}
		return err
	})
	openGauge(t)
	p := startPrometheus(t)

	const sums = `sum by (protocol) (causeway_requests_total{direction="outbound", service="gauge", protocol!="tcp"})`
	before := have(p.byProtocol(ctx, sums))(t)
	load := startGauge(t)
	// One opaque connection.
	have(west.curl(ctx, "client", "-sSf", "-m30", "http://bar-east.shop/"))(t)

	within(t, time.Minute, "each rule runs", func() error { return p.rulesRun(ctx) })
	within(t, time.Minute, "no alert is active", func() error { return p.isCalm(ctx) })
	within(t, 90*time.Second, "the dashboards have data", func() error { return p.panelsHaveData(ctx) })
	load.failing.Store(true) // some requests, from here on
	within(t, 2*time.Minute, "stat agrees with Prometheus and with the client", func() error { return statAgrees(ctx, p, load) })
	load.stop()
	within(t, 30*time.Second, "Prometheus has counted each request", func() error {
		after, err := p.byProtocol(ctx, sums)
		for protocol, c := range load.calls {
			if got := after[protocol] - before[protocol]; err == nil && got != float64(len(c.all)) {
				err = fmt.Errorf("the client sent %d by %s, Prometheus counted %v", len(c.all), protocol, got)
			}
		}
		return err
	})
	within(t, 30*time.Second, "the failures activate the alerts of failures alone", func() error {
		active, err := p.alerts(ctx)
		if err == nil && (len(active) != 2 || active["CausewayErrorBudgetBurnsFast"] == "" || active["CausewayErrorBudgetBurns"] == "") {
			err = fmt.Errorf("active are %v", active)
		}
		return err
	})

	must(t, west.lab.Cut(ctx, "west", "east"))
	mend := sync.OnceValue(func() error { return west.lab.Mend(background(), "west", "east") })
	t.Cleanup(func() { must(t, mend()) })
	within(t, time.Minute, "the outage activates the alert of the link", func() error {
		west.curl(ctx, "client", "-s", "-m1", "http://gauge-east.shop/") // so that the agent tests the link
		active, err := p.alerts(ctx)
		if err == nil && active["CausewayLinkUnreachable"] == "" {
			err = fmt.Errorf("active are %v", active)
		}
		return err
	})
	must(t, mend())
	within(t, time.Minute, "the alert ends with the outage", func() error {
		active, err := p.alerts(ctx)
		if err == nil && active["CausewayLinkUnreachable"] != "" {
			err = fmt.Errorf("active are %v", active)
		}
		return err
	})
}

// Ports of the application behind gauge.
const (
	gaugeHTTP = 8081
	gaugeGRPC = 8082
)

// openGauge exports the Service gauge from east. Its application is a server of this
// process.
func openGauge(t *testing.T) {
	t.Helper()
	offer(t, onePod("gauge", "bar")+fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: gauge, namespace: shop, %s}
spec:
  selector: {app: gauge}
  ports: [{name: http, port: 80, targetPort: %d}, {name: rpc, port: 9000, targetPort: %d}]
---
`, recognized, gaugeHTTP, gaugeGRPC), "gauge-east")
	must(t, east.kubectl(t.Context(), "", "-n", "shop", "wait", "--for=condition=Ready", "pod/gauge", "--timeout=60s"))
	serveIn(t, "gauge", gaugeHTTP, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text := r.FormValue("text"); text == "broken" {
			http.Error(w, text, http.StatusInternalServerError)
		} else if d, err := time.ParseDuration(text); err == nil {
			sleep(r.Context(), d)
		}
	}))
	serveStreamer(t, "gauge", gaugeGRPC)
	within(t, 2*time.Minute, "the mirror answers", func() error {
		_, err := west.curl(t.Context(), "client", "-sSf", "-m10", "http://gauge-east.shop/")
		return err
	})
}

// A gaugeLoad makes the same calls by each protocol, at an even pace: of 25 calls, one
// takes 300 ms and the others 20 ms. While failing is set, every fifth one fails instead.
type gaugeLoad struct {
	failing atomic.Bool
	calls   map[string]*gaugeCalls // by protocol
	stop    func()
}

type gaugeCalls struct {
	mu  sync.Mutex // guards all
	all []gaugeCall
}

type gaugeCall struct {
	end    time.Time
	took   time.Duration
	failed bool
}

const (
	gaugeRate = 20 // calls per second by each protocol
	gaugeFast = 20 * time.Millisecond
	gaugeSlow = 300 * time.Millisecond
)

// startGauge starts a load on gauge-east. The load ends by stop, or with the test.
func startGauge(t *testing.T) *gaugeLoad {
	t.Helper()
	ns, url := netOf(t, west, "client"), "http://"+mirrorOf(t, "gauge-east", 80)+"/?text="
	dialer := func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, ns, address) }
	// With one connection for each client, the transport opens no spare connection. One
	// that sends nothing for a while becomes an opaque connection, and its requests are
	// not counted.
	byHTTP := func(http2 bool) func(string) error {
		var clients []*http.Client
		for range 8 {
			clients = append(clients, httpClient(t, dialer, http2, 1))
		}
		var n atomic.Int64
		return func(text string) error {
			_, _, err := get(background(), clients[n.Add(1)%int64(len(clients))], url+text)
			return err
		}
	}
	rpc := newStreamsClient(t, ns, mirrorOf(t, "gauge-east", 9000))
	l := &gaugeLoad{calls: make(map[string]*gaugeCalls)}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	l.stop = func() { cancel(); running.Wait() }
	t.Cleanup(l.stop)
	for protocol, ask := range map[string]func(string) error{
		"http1": byHTTP(false),
		"http2": byHTTP(true),
		"grpc":  func(text string) error { _, err := rpc.unary(background(), text); return err },
	} {
		c := new(gaugeCalls)
		l.calls[protocol] = c
		var n atomic.Int64
		running.Go(func() {
			paced(ctx, gaugeRate, math.MaxInt, func() {
				text := gaugeFast.String()
				switch i := n.Add(1); {
				case i%5 == 1 && l.failing.Load():
					text = "broken"
				case i%25 == 0:
					text = gaugeSlow.String()
				}
				start := time.Now()
				err := ask(text)
				c.mu.Lock()
				defer c.mu.Unlock()
				c.all = append(c.all, gaugeCall{time.Now(), time.Since(start), err != nil})
			})
		})
	}
	return l
}

// A gaugeFigure is what one observer says of the calls of one protocol.
type gaugeFigure struct{ rate, success, p50, p99 float64 }

func (f gaugeFigure) String() string {
	return fmt.Sprintf("%.1f/s, %.1f %%, p50 %.1f ms, p99 %.1f ms", f.rate, f.success*100, f.p50*1000, f.p99*1000)
}

// between returns the figure of the calls that ended in a span of time.
func (c *gaugeCalls) between(from, to time.Time) (f gaugeFigure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var times []float64
	served := 0.0
	for _, call := range c.all {
		if call.end.After(from) && call.end.Before(to) {
			times = append(times, call.took.Seconds())
			if !call.failed {
				served++
			}
		}
	}
	if n := len(times); n > 0 {
		slices.Sort(times)
		f = gaugeFigure{float64(n) / to.Sub(from).Seconds(), served / float64(n), times[n/2], times[n*99/100]}
	}
	return f
}

// byProtocol returns a query's result by its label protocol.
func (p *prometheus) byProtocol(ctx context.Context, expr string) (map[string]float64, error) {
	samples, err := p.query(ctx, expr)
	out := make(map[string]float64)
	for _, s := range samples {
		out[s.labels["protocol"]] += s.value
	}
	return out, err
}

// statOf returns what `causeway stat` reports of gauge in a cluster, by protocol.
func statOf(ctx context.Context, c *cluster, direction string) (map[string]gaugeFigure, error) {
	text, err := c.causeway(ctx, "stat", "--json", "--window", "15s", "--service", "gauge", "--direction", direction)
	if err != nil {
		return nil, err
	}
	var rows struct {
		Rows []struct {
			Protocol string   `json:"protocol"`
			Requests float64  `json:"requestsPerSecond"`
			Success  *float64 `json:"success"`
			P50      *float64 `json:"p50Seconds"`
			P99      *float64 `json:"p99Seconds"`
		} `json:"rows"`
	}
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	out := make(map[string]gaugeFigure)
	for _, r := range rows.Rows {
		if r.Success == nil || r.P50 == nil || r.P99 == nil {
			return nil, fmt.Errorf("a row is not complete: %s", text)
		}
		if _, ok := out[r.Protocol]; ok {
			return nil, fmt.Errorf("there are two rows of %s: %s", r.Protocol, text)
		}
		out[r.Protocol] = gaugeFigure{r.Requests, *r.Success, *r.P50, *r.P99}
	}
	return out, nil
}

// statAgrees returns an error unless `causeway stat` at both ends, Prometheus and the
// client report the same rate, success and latencies of each protocol over about the same
// time.
func statAgrees(ctx context.Context, p *prometheus, load *gaugeLoad) error {
	var near, far map[string]gaugeFigure
	start := time.Now()
	var both errgroup.Group
	both.Go(func() (err error) { near, err = statOf(ctx, west, "outbound"); return err })
	both.Go(func() (err error) { far, err = statOf(ctx, east, "inbound"); return err })
	if err := both.Wait(); err != nil {
		return err
	}
	end := time.Now()
	const of = `{direction="outbound", service="gauge", protocol!="tcp"`
	const broken = `grpc_status=~"UNKNOWN|DEADLINE_EXCEEDED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"`
	queries := map[string]string{
		"rate": `sum by (protocol) (rate(causeway_requests_total` + of + `}[15s]))`,
		"failures": `sum by (protocol) (rate(causeway_requests_total` + of + `,` + broken + `}[15s]) or
			rate(causeway_requests_total` + of + `,code=~"5xx|none",grpc_status=""}[15s]))`,
		"p50": `histogram_quantile(0.5, sum by (protocol, le) (rate(causeway_request_duration_seconds_bucket` + of + `}[15s])))`,
		"p99": `histogram_quantile(0.99, sum by (protocol, le) (rate(causeway_request_duration_seconds_bucket` + of + `}[15s])))`,
	}
	got := make(map[string]map[string]float64)
	for name, expr := range queries {
		var err error
		if got[name], err = p.byProtocol(ctx, expr); err != nil {
			return err
		}
	}
	var all []error
	for protocol, calls := range load.calls {
		client, n, f := calls.between(start, end), near[protocol], far[protocol]
		prom := gaugeFigure{got["rate"][protocol], 1 - got["failures"][protocol]/got["rate"][protocol], got["p50"][protocol], got["p99"][protocol]}
		say("%s: the client %v; stat outbound %v, inbound %v; Prometheus %v", protocol, client, n, f, prom)
		for observer, o := range map[string]gaugeFigure{"stat outbound": n, "stat inbound": f, "Prometheus": prom} {
			// Classic buckets are wide, so quantiles of them are rough.
			share, rest := 0.25, 0.010
			if observer == "Prometheus" {
				share, rest = 1.5, 0
			}
			near := func(a, b float64) bool { return math.Abs(a-b) <= share*b+rest }
			if math.Abs(o.rate-client.rate) > 0.1*client.rate || math.Abs(o.success-client.success) > 0.03 ||
				!near(o.p50, client.p50) || !near(o.p99, client.p99) {
				all = append(all, fmt.Errorf("%s: %s reports %v, the client saw %v", protocol, observer, o, client))
			}
		}
		if client.success > 0.85 {
			all = append(all, fmt.Errorf("%s: the client saw few failures so far: %v", protocol, client))
		}
	}
	return errors.Join(all...)
}
