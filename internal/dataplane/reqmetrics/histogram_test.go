package reqmetrics

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/testing/protocmp"
)

// clientHistogram returns a histogram of client_golang with the same buckets.
func clientHistogram() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:                         "causeway_request_duration_seconds",
		Buckets:                      bounds[:],
		NativeHistogramBucketFactor:  1.1,
		NativeHistogramZeroThreshold: zeroBorder,
	})
}

func write(t *testing.T, m prometheus.Metric) *dto.Histogram {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	out.Histogram.CreatedTimestamp = nil
	return out.Histogram
}

// TestHistogramIsThatOfClientGolang compares both kinds of buckets with client_golang's.
func TestHistogramIsThatOfClientGolang(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	random := make([]time.Duration, 2000)
	for i := range random {
		random[i] = time.Duration(math.Exp(rnd.Float64() * math.Log(float64(30*time.Hour))))
	}
	var powers []time.Duration
	for n := minOctave; n < maxOctave; n++ {
		power := time.Duration(math.Ldexp(1e9, n))
		powers = append(powers, power-1, power, power+1)
	}
	var atBounds []time.Duration
	for _, b := range bounds {
		d := time.Duration(b * 1e9)
		atBounds = append(atBounds, d-1, d, d+1)
	}
	cases := map[string][]time.Duration{
		"nothing":          nil,
		"zero":             {0, 0, 1},
		"one":              {3 * time.Millisecond},
		"one long":         {time.Hour},
		"a small gap":      {1000 * time.Millisecond, 1300 * time.Millisecond},
		"a large gap":      {time.Millisecond, time.Second},
		"random":           random,
		"powers of two":    powers,
		"classic bounds":   atBounds,
		"in seven octaves": {1, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10},
	}
	for name, durations := range cases {
		t.Run(name, func(t *testing.T) {
			var h histogram
			want := clientHistogram()
			for _, d := range durations {
				h.observe(d)
				want.Observe(float64(d) / 1e9)
			}
			got := write(t, h.snapshot(durationDesc, make([]string, len(keyLabels))))
			if diff := cmp.Diff(write(t, want), got, protocmp.Transform(),
				cmpopts.EquateApprox(1e-9, 1e-12)); diff != "" {
				t.Errorf("-client_golang +ours:\n%s", diff)
			}
		})
	}
}

// TestHistogramClampsDurations observes durations beyond both ends.
func TestHistogramClampsDurations(t *testing.T) {
	var h histogram
	h.observe(-time.Second)
	h.observe(math.MaxInt64)
	got := write(t, h.snapshot(durationDesc, make([]string, len(keyLabels))))
	if got.GetSampleCount() != 2 || got.GetZeroCount() != 1 {
		t.Errorf("got %d durations, %d of them zero, want 2 and 1", got.GetSampleCount(), got.GetZeroCount())
	}
	if span := got.PositiveSpan[0]; span.GetOffset() != maxNative {
		t.Errorf("the longest duration is in bucket %d, want %d", span.GetOffset(), maxNative)
	}
}

func TestMovedHistogramAddsUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 2))
	var parts [2]histogram
	var all histogram
	for range 1000 {
		d := time.Duration(rnd.Int64N(int64(10 * time.Second)))
		parts[rnd.IntN(2)].observe(d)
		all.observe(d)
	}
	parts[0].moveTo(&parts[1])
	labels := make([]string, len(keyLabels))
	want := write(t, all.snapshot(durationDesc, labels))
	got := write(t, parts[1].snapshot(durationDesc, labels))
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func BenchmarkHistogram(b *testing.B) {
	var h histogram
	d := time.Millisecond
	for b.Loop() {
		d += time.Microsecond
		h.observe(d)
	}
}
