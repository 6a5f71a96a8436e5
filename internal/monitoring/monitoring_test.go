package monitoring

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	sdk "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"sigs.k8s.io/yaml"

	"github.com/causeway-mesh/causeway/internal/metricsdoc"
)

const chartFiles = "../../charts/causeway/files/"

// TestDashboardsAreFresh tests that the chart has what `make generate` writes.
func TestDashboardsAreFresh(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(chartFiles + "dashboards")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if files[e.Name()] == nil {
			t.Errorf("%s is not generated", e.Name())
		}
	}
	for name, want := range files {
		have, err := os.ReadFile(chartFiles + "dashboards/" + name)
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is stale, run make generate (%v)", name, err)
		}
	}
}

// TestDashboardsAreReadable tests that a reader finds what each panel shows.
func TestDashboardsAreReadable(t *testing.T) {
	for name, d := range dashboards() {
		if n := len(d.Panels); n > 13 {
			t.Errorf("%s has %d panels: too many for one page", name, n)
		}
		covered := map[[2]int]string{}
		for _, p := range d.Panels {
			if p.Title == "" || p.FieldConfig.Defaults.Unit == "" {
				t.Errorf("%s: panel %d has no title or no unit", name, p.ID)
			}
			if !strings.HasSuffix(p.Description, ".") {
				t.Errorf("%s: the description of %q is not a sentence", name, p.Title)
			}
			for _, q := range p.Targets {
				if p.Type == "timeseries" && q.LegendFormat == "" {
					t.Errorf("%s: a line of %q has no legend", name, p.Title)
				}
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := covered[[2]int{x, y}]; other != "" || x >= rowWidth {
						t.Fatalf("%s: %q covers %q, or ends outside", name, p.Title, other)
					}
					covered[[2]int{x, y}] = p.Title
				}
			}
		}
	}
}

// promtool runs promtool of the Debian package prometheus.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput()
	if err != nil {
		t.Errorf("promtool %q: %v (hack/need promtool=prometheus installs it)\n%s", args, err, out)
	}
}

// A rule is an alert or a recorded query of the rules file.
type rule struct {
	Alert       string            `json:"alert"`
	Record      string            `json:"record"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func rules(t *testing.T) []rule {
	t.Helper()
	text, err := os.ReadFile(chartFiles + "alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []rule `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		t.Fatal(err)
	}
	var out []rule
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	return out
}

// queries returns all queries of dashboards and rules, by where they are.
func queries(t *testing.T) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for name, d := range dashboards() {
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				out[fmt.Sprintf("%s, %q %s", name, p.Title, q.RefID)] =
					strings.ReplaceAll(q.Expr, "$__rate_interval", "5m")
			}
		}
	}
	for _, r := range rules(t) {
		out["rule "+r.Alert+r.Record] = r.Expr
	}
	return out
}

// TestQueriesParse tests that Prometheus can parse each query of the dashboards.
func TestQueriesParse(t *testing.T) {
	var recorded []map[string]string
	all := queries(t)
	for i, where := range slices.Sorted(maps.Keys(all)) {
		recorded = append(recorded, map[string]string{
			"record": fmt.Sprintf("query:%d", i),
			"expr":   all[where],
		})
	}
	group := map[string]any{"name": "queries", "rules": recorded}
	file, err := json.Marshal(map[string]any{"groups": []any{group}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "queries.yaml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}

var (
	quoted     = regexp.MustCompile(`"[^"]*"`)
	matchers   = regexp.MustCompile(`\{[^}]*\}`)
	durations  = regexp.MustCompile(`\[[^\]]*\]`)
	grouping   = regexp.MustCompile(`\b(by|on|ignoring|group_left|without) *\(([^)]*)\)`)
	identifier = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	function   = regexp.MustCompile(`[a-z_]+ *\(`)
	labelName  = regexp.MustCompile(`([a-z_]+) *(=~|!~|!=|=)`)
)

// foreign are metrics that Causeway does not register.
var foreign = []string{
	"leader_election_master_status",
	"process_cpu_seconds_total",
	"process_resident_memory_bytes",
	"up",
}

// targetLabels are the labels that scrape jobs and foreign metrics have.
var targetLabels = []string{"job", "node", "pod", "le", "name"}

// names returns the metrics and the labels of a query.
func names(expr string) (metrics, labels []string) {
	expr = quoted.ReplaceAllString(expr, `""`)
	for _, m := range matchers.FindAllString(expr, -1) {
		for _, l := range labelName.FindAllStringSubmatch(m, -1) {
			labels = append(labels, l[1])
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		labels = append(labels, identifier.FindAllString(g[2], -1)...)
	}
	for _, r := range []*regexp.Regexp{matchers, durations, grouping, function} {
		expr = r.ReplaceAllString(expr, " ")
	}
	for _, word := range identifier.FindAllString(expr, -1) {
		if !slices.Contains([]string{"and", "or", "unless", "bool", "e"}, word) {
			metrics = append(metrics, word)
		}
	}
	return metrics, labels
}

// TestQueriesNameKnownMetrics tests that each metric and label of the queries is in
// docs/metrics.md, so that no panel is empty and no alert silent after a rename.
func TestQueriesNameKnownMetrics(t *testing.T) {
	all, err := metricsdoc.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string][]string) // labels by metric
	for _, name := range foreign {
		known[name] = nil
	}
	for _, m := range all {
		for _, l := range m.Labels {
			known[m.Name] = append(known[m.Name], l.Name)
		}
		known[m.Name] = append(known[m.Name], "")
		known[m.Name+"_bucket"] = known[m.Name]
	}
	for _, r := range rules(t) {
		if r.Record != "" {
			known[r.Record] = []string{"direction", "link", "namespace", "service"}
		}
	}
	for where, expr := range queries(t) {
		metrics, labels := names(expr)
		if len(metrics) == 0 {
			t.Errorf("%s: no metric in %s", where, expr)
		}
		for _, m := range metrics {
			if _, ok := known[m]; !ok {
				t.Errorf("%s: %s is not in docs/metrics.md", where, m)
			}
		}
		for _, l := range labels {
			inAny := slices.ContainsFunc(metrics, func(m string) bool { return slices.Contains(known[m], l) })
			if !inAny && !slices.Contains(targetLabels, l) {
				t.Errorf("%s: none of %v has the label %s", where, metrics, l)
			}
		}
	}
	for name, d := range dashboards() {
		for _, v := range d.Templating.List {
			parts := strings.FieldsFunc(v.Query, func(r rune) bool { return strings.ContainsRune("(), ", r) })
			if v.Type != "query" || parts[0] != "label_values" {
				continue
			}
			if !slices.Contains(append(known[parts[1]], targetLabels...), parts[2]) {
				t.Errorf("%s: the variable %s selects %s, which does not exist", name, v.Name, v.Query)
			}
		}
	}
}

func TestNames(t *testing.T) {
	metrics, labels := names(`1 - sum by (a, le) (rate(x_total{b=~"c or d", e!="f"}[5m])) or up == 2 * k:r`)
	if diff := cmp.Diff([]string{"x_total", "up", "k:r"}, metrics); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"b", "e", "a", "le"}, labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

// TestAlertsFire has promtool evaluate the rules over series of testdata/alerts.yaml.
func TestAlertsFire(t *testing.T) {
	promtool(t, "check", "rules", chartFiles+"alerts.yaml")
	promtool(t, "test", "rules", "testdata/alerts.yaml")
	tests, err := os.ReadFile("testdata/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		if r.Alert != "" && !strings.Contains(string(tests), `{alertname="`+r.Alert+`"}`) {
			t.Errorf("no test has %s fire", r.Alert)
		}
	}
}

var (
	anchor  = regexp.MustCompile(`docs/([a-z]+\.md)#([-a-z0-9]+)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// TestAlertsSayWhatToDo tests that each alert says where to begin.
func TestAlertsSayWhatToDo(t *testing.T) {
	anchors := make(map[string]bool)
	page, err := os.ReadFile("../../docs/using.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range heading.FindAllStringSubmatch(string(page), -1) {
		id := regexp.MustCompile(`[^-a-z0-9 ]`).ReplaceAllString(strings.ToLower(h[1]), "")
		anchors["using.md#"+strings.ReplaceAll(id, " ", "-")] = true
	}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		sentence := strings.HasSuffix(r.Annotations["description"], ".")
		if !sentence || r.Annotations["summary"] == "" || r.For == "" {
			t.Errorf("%s lacks a summary, a description that is a sentence, or a time", r.Alert)
		}
		runbook := r.Annotations["runbook"]
		found := anchor.FindAllStringSubmatch(runbook, -1)
		if !strings.Contains(runbook, "`causeway check`") || len(found) == 0 {
			t.Errorf("the runbook of %s does not name causeway check and a page", r.Alert)
		}
		for _, f := range found {
			if !anchors[f[1]+"#"+f[2]] {
				t.Errorf("the runbook of %s refers to %s, which does not exist", r.Alert, f[0])
			}
		}
		if !strings.Contains(string(page), "`"+r.Alert+"`") {
			t.Errorf("docs/using.md does not list %s", r.Alert)
		}
	}
}

// TestScrapeJobs has promtool check the scrape jobs for a Prometheus without an operator.
// Debian's has no service discovery of Kubernetes, so that part is replaced.
func TestScrapeJobs(t *testing.T) {
	text, err := os.ReadFile(chartFiles + "scrape.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Jobs []map[string]any `json:"scrape_configs"`
	}
	if err := yaml.UnmarshalStrict(text, &config); err != nil {
		t.Fatal(err)
	}
	for _, job := range config.Jobs {
		if job["kubernetes_sd_configs"] == nil {
			t.Errorf("job %v discovers no pods", job["job_name"])
		}
		delete(job, "kubernetes_sd_configs")
	}
	if text, err = yaml.Marshal(config); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "prometheus.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "config", "--syntax-only", path)
}

// TestGrafanaReadsDashboards reads the dashboards by the types of Grafana's SDK. They
// refuse fields that Grafana does not know.
func TestGrafanaReadsDashboards(t *testing.T) {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range files {
		//lint:ignore SA1019 the files have the schema that Grafana's sidecar loads
		var d sdk.Dashboard
		// An error without text is the SDK's empty list of errors.
		if err := d.UnmarshalJSONStrict(file); err != nil && err.Error() != "" {
			t.Errorf("%s: %v", name, err)
		}
		if err := d.Validate(); err != nil && err.Error() != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
