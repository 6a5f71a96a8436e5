package reqmetrics

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// bounds are the upper bounds of the classic buckets, in seconds. There are few, because
// each is a series; native histograms have more.
var bounds = [...]float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5}

// Native buckets have the bounds 2^(n/8) for n from minNative to maxNative, which is
// schema 3 of Prometheus: each is 9 % wider than the one before. Shorter durations count
// as zero, longer ones in the last bucket.
const (
	schema     = 3
	perOctave  = 1 << schema
	minOctave  = -17 // 7.6 µs
	maxOctave  = 17  // 36 h
	minNative  = minOctave * perOctave
	maxNative  = maxOctave * perOctave
	natives    = maxNative - minNative + 1 // the first one is for zero
	cells      = natives + len(bounds)
	zeroBorder = 1.0 / (1 << -minOctave)
)

// fractions are 2^(n/8 - 1), as in client_golang.
var fractions = [perOctave]float64{
	0.5,
	0.5452538663326288,
	0.5946035575013605,
	0.6484197773255048,
	0.7071067811865475,
	0.7711054127039704,
	0.8408964152537144,
	0.9170040432046711,
}

// histogram counts durations in cells. Each bound of a classic or native bucket is a
// bound between cells, so that both kinds of buckets are sums of cells and always agree.
type histogram struct {
	cells [cells]atomic.Uint64
	sum   atomic.Uint64 // in ns
}

// classicOf returns the number of classic bounds that are less than v.
func classicOf(v float64) int {
	n := 0
	for n < len(bounds) && bounds[n] < v {
		n++
	}
	return n
}

// nativeOf returns the number of native bounds that are less than v, and less than the
// last one.
func nativeOf(v float64) int {
	if v <= zeroBorder {
		return 0
	}
	fraction, octave := math.Frexp(v)
	n := 0
	for n < perOctave && fractions[n] < fraction {
		n++
	}
	return min(n+(octave-1)*perOctave-minNative, natives-1)
}

// observe counts a duration.
func (h *histogram) observe(d time.Duration) {
	d = max(d, 0)
	v := float64(d) / 1e9
	h.cells[classicOf(v)+nativeOf(v)].Add(1)
	h.sum.Add(uint64(d))
}

func (h *histogram) moveTo(to *histogram) {
	for i := range h.cells {
		if n := h.cells[i].Load(); n > 0 {
			to.cells[i].Add(n)
		}
	}
	to.sum.Add(h.sum.Load())
}

// cellBuckets are the classic and the native bucket of each cell.
var cellBuckets = func() (out [cells]struct{ classic, native int }) {
	lower := 0.0
	for n := range natives {
		upper := nativeBound(n)
		if n == natives-1 {
			upper = math.Inf(1)
		}
		for c := classicOf(math.Nextafter(lower, upper)); c <= classicOf(upper); c++ {
			out[n+c].classic, out[n+c].native = c, n
		}
		lower = upper
	}
	return out
}()

// nativeBound returns the upper bound of a native bucket.
func nativeBound(n int) float64 {
	n += minNative + 64*perOctave // not negative
	return math.Ldexp(fractions[n%perOctave], n/perOctave-64+1)
}

// snapshot is a metric with the counts at one time.
type snapshot struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	counts [cells]uint64
	sum    float64

	exemplars [len(bounds) + 1]*dto.Exemplar // of classic buckets; nil: none
}

func (h *histogram) snapshot(desc *prometheus.Desc, labels []string) *snapshot {
	s := &snapshot{
		desc:   desc,
		labels: prometheus.MakeLabelPairs(desc, labels),
		sum:    float64(h.sum.Load()) / 1e9,
	}
	for i := range h.cells {
		s.counts[i] = h.cells[i].Load()
	}
	return s
}

// Desc implements prometheus.Metric.
func (s *snapshot) Desc() *prometheus.Desc { return s.desc }

// Write implements prometheus.Metric. It writes classic and native buckets; the scraper
// takes those that it knows.
func (s *snapshot) Write(out *dto.Metric) error {
	var classic [len(bounds) + 1]uint64
	var native [natives]uint64
	var total uint64
	for i, n := range s.counts {
		classic[cellBuckets[i].classic] += n
		native[cellBuckets[i].native] += n
		total += n
	}
	h := &dto.Histogram{
		SampleCount:   &total,
		SampleSum:     &s.sum,
		Schema:        pointer(int32(schema)),
		ZeroThreshold: pointer(zeroBorder),
		ZeroCount:     &native[0],
	}
	var below uint64
	for i := range bounds {
		below += classic[i]
		h.Bucket = append(h.Bucket, &dto.Bucket{
			CumulativeCount: pointer(below),
			UpperBound:      &bounds[i],
			Exemplar:        s.exemplars[i],
		})
	}
	if last := s.exemplars[len(bounds)]; last != nil { // the last bucket is there only for it
		h.Bucket = append(h.Bucket, &dto.Bucket{
			CumulativeCount: &total,
			UpperBound:      pointer(math.Inf(1)),
			Exemplar:        last,
		})
	}
	for _, e := range s.exemplars {
		if e != nil {
			h.Exemplars = append(h.Exemplars, e) // of native buckets
		}
	}
	addSpans(h, native[1:])
	out.Label, out.Histogram = s.labels, h
	return nil
}

// addSpans adds the native buckets that have counts. A gap of one or two buckets costs
// less than another span.
func addSpans(h *dto.Histogram, counts []uint64) {
	next, last := int32(0), int64(0)
	add := func(n uint64) {
		h.PositiveDelta = append(h.PositiveDelta, int64(n)-last)
		last = int64(n)
		*h.PositiveSpan[len(h.PositiveSpan)-1].Length++
		next++
	}
	for i, n := range counts {
		if n == 0 {
			continue
		}
		index := int32(i + minNative + 1)
		gap := index - next
		if len(h.PositiveSpan) == 0 || gap > 2 {
			h.PositiveSpan = append(h.PositiveSpan, &dto.BucketSpan{Offset: &gap, Length: pointer(uint32(0))})
			next = index
		}
		for next < index {
			add(0)
		}
		add(n)
	}
}

func pointer[T any](v T) *T { return &v }
