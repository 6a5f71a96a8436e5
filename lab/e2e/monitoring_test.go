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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const (
	chartFiles = "../../charts/causeway/files/"
	// prometheusPort is free on the lab's nodes.
	prometheusPort = "9099"
)

// A prometheus is a real one, of Debian, in the network namespace of west's node.
type prometheus struct{ node string }

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
	path := filepath.Join(dir, "prometheus.yaml")
	must(t, os.WriteFile(path, have(yaml.Marshal(config))(t), 0o600))

	p := &prometheus{node: have(west.NodeNetns(""))(t)}
	cmd := exec.CommandContext(t.Context(), "nsenter", "--net="+p.node, "prometheus", "--config.file="+path,
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:"+prometheusPort,
		"--log.level=warn")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Wait() }) // t.Context() has ended
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
	body, err := fetch(ctx, p.node, "http://127.0.0.1:"+prometheusPort+"/api/v1/"+path+"?"+parameters.Encode())
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
// clusters no alert is active, the dashboards have data, and the counts agree with those of
// a client and of `causeway stat`. An outage of the WAN activates its alert.
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
	offer(t, service("gauge", recognized, httpPort), "gauge-east")
	within(t, 2*time.Minute, "the mirror answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m10", "http://gauge-east.shop/")
		return err
	})
	p := startPrometheus(t)

	// One request at a time, at an even pace, on one connection.
	const mirror = `direction="outbound", service="gauge", protocol="http1"`
	const counted = `sum(causeway_requests_total{` + mirror + `})`
	before, _ := p.value(ctx, counted) // no series before the first request
	var sent atomic.Int64
	load, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		client := keepHTTP(t, netOf(t, west, "client"), mirrorOf(t, "gauge-east", 80), false)
		for load.Err() == nil {
			if _, err := client.ask(ctx, 0); err != nil {
				ended <- err
				return
			}
			sent.Add(1)
			select {
			case <-time.After(20 * time.Millisecond):
			case <-load.Done():
			}
		}
		ended <- nil
	}()
	// One opaque connection.
	have(west.curl(ctx, "client", "-sSf", "-m30", "http://bar-east.shop/"))(t)

	within(t, time.Minute, "each rule runs", func() error { return p.rulesRun(ctx) })
	within(t, time.Minute, "no alert is active", func() error { return p.isCalm(ctx) })
	within(t, 90*time.Second, "the dashboards have data", func() error { return p.panelsHaveData(ctx) })
	within(t, 2*time.Minute, "stat agrees with Prometheus", func() error { return statAgrees(ctx, p, mirror) })
	stop()
	must(t, <-ended)
	within(t, 30*time.Second, "Prometheus has counted each request", func() error {
		after, err := p.value(ctx, counted)
		if err == nil && int64(after-before) != sent.Load() {
			err = fmt.Errorf("the client sent %d, Prometheus counted %v", sent.Load(), after-before)
		}
		return err
	})
	must(t, p.isCalm(ctx))

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

// statAgrees wants `causeway stat` and Prometheus to report the same rate and success of a
// mirror over about the same time.
func statAgrees(ctx context.Context, p *prometheus, mirror string) error {
	out, err := west.causeway(ctx, "stat", "--json", "--window", "15s",
		"--service", "gauge", "--direction", "outbound")
	if err != nil {
		return err
	}
	rate, err := p.value(ctx, `sum(rate(causeway_requests_total{`+mirror+`}[15s]))`)
	if err != nil {
		return err
	}
	var rows struct {
		Rows []struct {
			Protocol string   `json:"protocol"`
			Requests float64  `json:"requestsPerSecond"`
			Success  *float64 `json:"success"`
		} `json:"rows"`
	}
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, r := range rows.Rows {
		if r.Protocol != "http1" {
			continue
		}
		if math.Abs(r.Requests-rate) > 0.1*rate || r.Success == nil || *r.Success != 1 {
			return fmt.Errorf("stat reports %s, Prometheus a rate of %v", out, rate)
		}
		return nil
	}
	return fmt.Errorf("stat has no such row: %s", out)
}
