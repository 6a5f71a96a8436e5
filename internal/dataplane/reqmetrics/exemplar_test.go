package reqmetrics

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

// TestExemplars: each bucket has its latest traced request, in each format of a scrape.
func TestExemplars(t *testing.T) {
	m := New(Config{})
	r := m.Recorder(Key{Link: "east", Service: "bar"})
	now := time.Unix(1_800_000_000, 0)
	for _, q := range []struct {
		trace string
		took  time.Duration
	}{
		{"older", 2 * time.Millisecond},
		{"newer", 3 * time.Millisecond},
		{"", 4 * time.Millisecond},
		{"longest", time.Hour},
	} {
		r.Observe(now, Result{Status: 200, Duration: q.took}.Traced(q.trace))
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "causeway_request_duration_seconds" {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		classic := map[float64]string{}
		for _, b := range h.GetBucket() {
			if e := b.GetExemplar(); e != nil {
				classic[e.GetValue()] = traceOf(e)
			}
		}
		want := map[float64]string{0.003: "newer", 3600: "longest"}
		if diff := cmp.Diff(want, classic); diff != "" {
			t.Errorf("of classic buckets (-want +got):\n%s", diff)
		}
		native := map[float64]string{}
		for _, e := range h.GetExemplars() {
			native[e.GetValue()] = traceOf(e)
		}
		if diff := cmp.Diff(want, native); diff != "" {
			t.Errorf("of native buckets (-want +got):\n%s", diff)
		}
		var text strings.Builder
		if _, err := expfmt.MetricFamilyToOpenMetrics(&text, f); err != nil {
			t.Fatal(err)
		}
		for _, e := range []string{
			`# {trace_id="newer"} 0.003 1.8e+09`,
			`le="+Inf"} 4 # {trace_id="longest"} 3600.0 1.8e+09`,
		} {
			if !strings.Contains(text.String(), e) {
				t.Errorf("OpenMetrics has no %s:\n%s", e, &text)
			}
		}
		return
	}
	t.Error("there is no histogram")
}

func traceOf(e *dto.Exemplar) string { return e.GetLabel()[0].GetValue() }
