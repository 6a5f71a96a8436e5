package stat

import (
	"maps"
	"math"
	"slices"

	dto "github.com/prometheus/client_model/go"
)

// histogram has the counts of both kinds of buckets by their upper bounds. Those of
// native buckets are finer, and a scrape in the text format lacks them.
type histogram struct {
	classic, native map[float64]float64
	// factor is the upper bound of a native bucket over its lower one.
	factor float64
}

// read returns the counts of a scraped histogram.
func read(h *dto.Histogram) histogram {
	out := histogram{classic: map[float64]float64{}, native: map[float64]float64{}}
	if h == nil {
		return out
	}
	below := 0.0
	for _, b := range h.Bucket {
		out.classic[b.GetUpperBound()] += float64(b.GetCumulativeCount()) - below
		below = float64(b.GetCumulativeCount())
	}
	out.classic[math.Inf(1)] += float64(h.GetSampleCount()) - below
	if h.Schema == nil {
		return out
	}
	out.factor = math.Exp2(math.Exp2(-float64(h.GetSchema())))
	if n := h.GetZeroCount(); n > 0 {
		out.native[0] = float64(n)
	}
	index, count, next := 0, 0.0, 0
	for _, span := range h.PositiveSpan {
		index += int(span.GetOffset())
		for range span.GetLength() {
			if next == len(h.PositiveDelta) {
				return out
			}
			count += float64(h.PositiveDelta[next])
			out.native[math.Exp2(float64(index)*math.Log2(out.factor))] = count
			index, next = index+1, next+1
		}
	}
	return out
}

// difference returns the counts that were added between two scrapes. was is nil for a new
// series.
func difference(was, is *dto.Histogram) histogram {
	out := read(is)
	if is.GetSampleCount() < was.GetSampleCount() { // the agent restarted
		return out
	}
	old := read(was)
	for bound, n := range old.classic {
		out.classic[bound] = max(0, out.classic[bound]-n)
	}
	for bound, n := range old.native {
		out.native[bound] = max(0, out.native[bound]-n)
	}
	return out
}

// add adds the counts of another histogram. If the native buckets differ in width, the
// classic ones remain.
func (h *histogram) add(o histogram) {
	if h.classic == nil {
		*h = o
		return
	}
	if h.factor != o.factor {
		h.factor, h.native = 0, map[float64]float64{}
	}
	for bound, n := range o.classic {
		h.classic[bound] += n
	}
	for bound, n := range o.native {
		h.native[bound] += n
	}
}

// quantile returns an estimate of a quantile, or nil if nothing was counted.
func (h histogram) quantile(q float64) *float64 {
	buckets := h.classic
	if h.factor > 1 {
		buckets = h.native
	}
	total := 0.0
	for _, n := range buckets {
		total += n
	}
	if total == 0 {
		return nil
	}
	rank, below, lower := q*total, 0.0, 0.0
	for _, upper := range slices.Sorted(maps.Keys(buckets)) {
		n := buckets[upper]
		if n == 0 || below+n < rank {
			below, lower = below+n, upper
			continue
		}
		value := h.within(lower, upper, (rank-below)/n)
		return &value
	}
	return &lower
}

// within returns the value at a share of a bucket, from 0 to 1. lower is the bound of the
// bucket before, which a native bucket does not need.
func (h histogram) within(lower, upper, share float64) float64 {
	switch {
	case h.factor > 1:
		return upper * math.Pow(h.factor, share-1)
	case math.IsInf(upper, 1):
		return lower
	}
	return lower + (upper-lower)*share
}
