package main

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPercentile(t *testing.T) {
	var hundred []float64
	for i := 100; i > 0; i-- {
		hundred = append(hundred, float64(i))
	}
	cases := map[string]struct {
		why     string
		figures []float64
		p, want float64
	}{
		"p99 of 100": {why: "one figure of 100 may be above it", figures: hundred, p: 99, want: 99},
		"p50 of 100": {why: "half are not above it", figures: hundred, p: 50, want: 50},
		"p99 of 30":  {why: "with few figures it is the highest", figures: hundred[:30], p: 99, want: 100},
		"one":        {why: "a single figure is every percentile", figures: []float64{7}, p: 50, want: 7},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := percentile(c.figures, c.p); got != c.want {
				t.Errorf("percentile(%v) = %v, want %v: %s", c.p, got, c.want, c.why)
			}
		})
	}
	if !math.IsNaN(percentile(nil, 50)) || !math.IsNaN(median(nil)) {
		t.Error("no figures must have no percentile and no median")
	}
}

func TestMedian(t *testing.T) {
	for want, figures := range map[float64][]float64{2: {3, 1, 2}, 2.5: {4, 1, 3, 2}} {
		if got := median(figures); got != want {
			t.Errorf("median(%v) = %v, want %v", figures, got, want)
		}
	}
}

func TestStages(t *testing.T) {
	cases := map[string]struct {
		why     string
		mirrors int
		want    []stage
	}{
		"all": {
			why:     "probes need room below the quota",
			mirrors: 10000,
			want:    []stage{{0, 15}, {500, 2000}, {8000, 9990}},
		},
		"quick": {
			why:     "the small bulk is measured as in a full run",
			mirrors: 2000,
			want:    []stage{{0, 15}, {500, 2000}},
		},
		"tiny": {why: "the harness itself is tried out", mirrors: 300, want: []stage{{0, 15}, {75, 300}}},
		"middle": {
			why:     "a large bulk right above the small one says nothing new",
			mirrors: 3000,
			want:    []stage{{0, 15}, {500, 2000}, {0, 3000}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, stages(c.mirrors), cmp.AllowUnexported(stage{})); diff != "" {
				t.Errorf("stages(%d) (-want +got), %s:\n%s", c.mirrors, c.why, diff)
			}
		})
	}
}

func TestWriteTable(t *testing.T) {
	var out strings.Builder
	rows := []row{
		ratioRow("mirrors per second", "%.1f", 45, 50, "≥ 0.8"),
		{What: "other writes", Causeway: countsByName(map[string]int{"links": 2, "events": 1})},
		{What: "mirrors", Causeway: thousands(9990) + " of " + thousands(1234567), Ratio: ratio(1, 0)},
	}
	if err := writeTable(&out, rows); err != nil {
		t.Fatal(err)
	}
	const want = `| measure | Causeway | beside it | ratio | wanted |
| --- | --- | --- | --- | --- |
| mirrors per second | 45.0 | 50.0 | 0.90 | ≥ 0.8 |
| other writes | 1 events, 2 links |  |  |  |
| mirrors | 9,990 of 1,234,567 |  | none |  |
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("writeTable (-want +got):\n%s", diff)
	}
}
