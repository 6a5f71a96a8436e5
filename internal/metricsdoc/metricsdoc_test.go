package metricsdoc

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
)

func all(t *testing.T) []Metric {
	t.Helper()
	metrics, err := Metrics()
	if err != nil {
		t.Fatal(err)
	}
	return metrics
}

// TestPageIsFresh tests that docs/metrics.md is what `make generate` writes.
func TestPageIsFresh(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(page), Markdown(all(t))); diff != "" {
		t.Errorf("docs/metrics.md is stale, run make generate (-page +collectors):\n%s", diff)
	}
}

// TestMetricsPassPromlint tests the conventions of Prometheus.
func TestMetricsPassPromlint(t *testing.T) {
	var families []*dto.MetricFamily
	for _, m := range all(t) {
		sample := &dto.Metric{}
		for _, l := range m.Labels {
			sample.Label = append(sample.Label, &dto.LabelPair{Name: &l.Name})
		}
		families = append(families, &dto.MetricFamily{
			Name:   &m.Name,
			Help:   &m.Help,
			Type:   &m.Type,
			Metric: []*dto.Metric{sample},
		})
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

var (
	// sentences begin with a capital letter or a number and end with a period.
	sentences = regexp.MustCompile(`^[A-Z0-9].*[^.\s]\.$`)
	metric    = regexp.MustCompile(`^causeway_[a-z0-9]+(_[a-z0-9]+)+$`)
)

// TestHelpTextsAreSentences tests what the table of docs/metrics.md needs, too.
func TestHelpTextsAreSentences(t *testing.T) {
	for _, m := range all(t) {
		if !sentences.MatchString(m.Help) || len(m.Help) > 200 || strings.ContainsAny(m.Help, "|<>\n") {
			t.Errorf("the help text of %s is not a short sentence: %q", m.Name, m.Help)
		}
		if !metric.MatchString(m.Name) {
			t.Errorf("%s is not a name with the prefix causeway_", m.Name)
		}
	}
}

// TestEveryMetricOfTheCodeIsKnown finds collectors that roles lacks.
func TestEveryMetricOfTheCodeIsKnown(t *testing.T) {
	known := map[string]bool{}
	for _, m := range all(t) {
		known[m.Name] = true
	}
	found := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") ||
			strings.HasSuffix(path, "_test.go") || strings.Contains(path, "metricsdoc") ||
			strings.Contains(path, "monitoring") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if text, err := strconv.Unquote(lit.Value); err == nil && metric.MatchString(text) {
				found++
				if !known[text] {
					t.Errorf("%s: no role registers %s", path, text)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 40 {
		t.Errorf("found %d names in the code, so the search is wrong", found)
	}
}

// TestMetricsOf tests what a collector must have for the page.
func TestMetricsOf(t *testing.T) {
	vec := func(labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_a_total",
			Help: `A "b", {c}.`,
		}, labels)
	}
	counted := vec("reason")
	counted.WithLabelValues("b")
	counted.WithLabelValues("a")
	cases := map[string]struct {
		why       string
		collector prometheus.Collector
		want      []Metric
		err       string
	}{
		"closed": {
			why:       "values that are counted from zero are listed",
			collector: counted,
			want: []Metric{{
				Name:   "causeway_a_total",
				Help:   `A "b", {c}.`,
				Labels: []Label{{Name: "reason", Values: []string{"a", "b"}}},
			}},
		},
		"open": {
			why:       "names of Links are not known beforehand",
			collector: vec("link"),
			want: []Metric{{
				Name:   "causeway_a_total",
				Help:   `A "b", {c}.`,
				Labels: []Label{{Name: "link", Meaning: openLabels["link"]}},
			}},
		},
		"closed without series": {
			why:       "a reader could not know the values",
			collector: vec("reason"),
			err:       "values of label reason of causeway_a_total",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := metricsOf(tc.collector)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%s: error %v, want %q in it", tc.why, err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}
