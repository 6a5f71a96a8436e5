package reqmetrics

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func key(n int) Key {
	return Key{
		Link:      "west",
		Namespace: "shop",
		Service:   fmt.Sprint("cart-", n),
		Port:      80,
		Workload:  "shop/frontend",
	}
}

// ok is a usual result.
var ok = Result{Status: 200, Duration: 3 * time.Millisecond, RequestBytes: 10, ResponseBytes: 100}

// gather returns the metrics of m by name, as a scraper of protobuf gets them.
func gather(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(m)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range families {
		out[f.GetName()] = f
	}
	return out
}

// totals returns the number of series, and the sum of each metric. Histograms have two.
func totals(t *testing.T, m *Metrics) (series int, sums map[string]float64) {
	t.Helper()
	sums = map[string]float64{}
	for name, f := range gather(t, m) {
		for _, metric := range f.Metric {
			if h := metric.GetHistogram(); h != nil {
				series += len(h.Bucket) + 3
				sums[name+"_count"] += float64(h.GetSampleCount())
				sums[name+"_sum"] += h.GetSampleSum()
				continue
			}
			series++
			sums[name] += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
	}
	return series, sums
}

func TestTextFormat(t *testing.T) {
	m := New(Config{})
	web := m.Recorder(key(1))
	web.Observe(noon, ok)
	web.Observe(noon, Result{Status: 404, Duration: 30 * time.Millisecond})
	q := web.Start(noon)
	q.AddBytes(1000, 2000)
	q.Retried(retry.ReasonReset)
	q.Retried(retry.ReasonBodyLost) // not a retry
	q.Ejected()
	q.BudgetExhausted()
	q.Rejected(RejectedTimeout)
	q.Rejected(99)
	q.Finish(noon, Result{Status: 504, Duration: 2 * time.Second})
	web.Start(noon)
	web.Observe(noon, Result{Duration: -1})

	grpc := key(2)
	grpc.Direction, grpc.Protocol = Inbound, GRPC
	in := m.Recorder(grpc)
	in.Observe(noon, Result{Status: 200, HasGRPCStatus: true, Duration: time.Minute})
	in.Observe(noon, Result{Status: 200, HasGRPCStatus: true, GRPCStatus: 14})
	in.Observe(noon, Result{Status: 200, HasGRPCStatus: true, GRPCStatus: 17})
	in.Observe(noon, Result{Status: 200, HasGRPCStatus: true, GRPCStatus: math.MaxUint32})
	in.Observe(noon, Result{Status: 503})

	const want = `
# HELP causeway_endpoint_ejections_total Ejections of endpoints after consecutive failures or a failed trial.
# TYPE causeway_endpoint_ejections_total counter
causeway_endpoint_ejections_total{direction="outbound",KEY1} 1
# HELP causeway_request_bytes_total Bytes of the bodies of requests.
# TYPE causeway_request_bytes_total counter
causeway_request_bytes_total{direction="inbound",KEY2} 0
causeway_request_bytes_total{direction="outbound",KEY1} 1010
# HELP causeway_request_duration_seconds Time from the head of a request to the end of its response.
# TYPE causeway_request_duration_seconds histogram
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.001"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.005"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.01"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.025"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.05"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.1"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.25"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="0.5"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="1"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="5"} 4
causeway_request_duration_seconds_bucket{direction="inbound",KEY2,le="+Inf"} 5
causeway_request_duration_seconds_sum{direction="inbound",KEY2} 60
causeway_request_duration_seconds_count{direction="inbound",KEY2} 5
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.001"} 1
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.005"} 2
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.01"} 2
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.025"} 2
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.05"} 3
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.1"} 3
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.25"} 3
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="0.5"} 3
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="1"} 3
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="5"} 4
causeway_request_duration_seconds_bucket{direction="outbound",KEY1,le="+Inf"} 4
causeway_request_duration_seconds_sum{direction="outbound",KEY1} 2.033
causeway_request_duration_seconds_count{direction="outbound",KEY1} 4
# HELP causeway_request_retries_total Retries of requests, by the reason.
# TYPE causeway_request_retries_total counter
causeway_request_retries_total{direction="outbound",START1,reason="reset",END1} 1
# HELP causeway_requests_in_flight Requests that have begun and not ended.
# TYPE causeway_requests_in_flight gauge
causeway_requests_in_flight{direction="inbound",KEY2} 0
causeway_requests_in_flight{direction="outbound",KEY1} 1
# HELP causeway_requests_rejected_total Requests that Causeway answered instead of an application, by the reason.
# TYPE causeway_requests_rejected_total counter
causeway_requests_rejected_total{direction="outbound",START1,reason="other",END1} 1
causeway_requests_rejected_total{direction="outbound",START1,reason="timeout",END1} 1
# HELP causeway_requests_total Requests that ended, by HTTP status class and by gRPC status. A TCP connection is one request.
# TYPE causeway_requests_total counter
causeway_requests_total{code="2xx",direction="inbound",grpc_status="OK",KEY2} 1
causeway_requests_total{code="2xx",direction="inbound",grpc_status="UNAVAILABLE",KEY2} 1
causeway_requests_total{code="2xx",direction="inbound",grpc_status="other",KEY2} 2
causeway_requests_total{code="5xx",direction="inbound",grpc_status="",KEY2} 1
causeway_requests_total{code="2xx",direction="outbound",grpc_status="",KEY1} 1
causeway_requests_total{code="4xx",direction="outbound",grpc_status="",KEY1} 1
causeway_requests_total{code="5xx",direction="outbound",grpc_status="",KEY1} 1
causeway_requests_total{code="none",direction="outbound",grpc_status="",KEY1} 1
# HELP causeway_response_bytes_total Bytes of the bodies of responses.
# TYPE causeway_response_bytes_total counter
causeway_response_bytes_total{direction="inbound",KEY2} 0
causeway_response_bytes_total{direction="outbound",KEY1} 2100
# HELP causeway_retry_budget_exhausted_total Requests that were not retried because the retry budget was used up.
# TYPE causeway_retry_budget_exhausted_total counter
causeway_retry_budget_exhausted_total{direction="outbound",KEY1} 1
`
	labels := strings.NewReplacer(
		"KEY1", `link="west",namespace="shop",port="80",protocol="http1",service="cart-1",workload="shop/frontend"`,
		"START1", `link="west",namespace="shop",port="80",protocol="http1"`,
		"END1", `service="cart-1",workload="shop/frontend"`,
		"KEY2", `link="west",namespace="shop",port="80",protocol="grpc",service="cart-2",workload="shop/frontend"`,
	)
	if err := testutil.CollectAndCompare(m, strings.NewReader(labels.Replace(want))); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestNothingBeforeTheFirstRequest(t *testing.T) {
	m := New(Config{})
	m.Recorder(key(1))
	if got := testutil.CollectAndCount(m); got != 0 {
		t.Errorf("got %d metrics, want none", got)
	}
}

func TestZeroRequestCountsNothing(t *testing.T) {
	var q Request
	q.AddBytes(1, 1)
	q.Ejected()
	q.Finish(noon, ok)
}

func TestLabelsAreValid(t *testing.T) {
	m := New(Config{})
	k := key(1)
	k.Link, k.Service = "a\xffb", strings.Repeat("ä", 200)
	k.Direction, k.Protocol = 77, 77
	m.Recorder(k).Observe(noon, ok)
	wants := map[string]string{"link": "a?b", "direction": "inbound", "protocol": other}
	for _, l := range gather(t, m)["causeway_requests_total"].Metric[0].Label {
		if want, ok := wants[l.GetName()]; ok && l.GetValue() != want {
			t.Errorf("%s is %q, want %q", l.GetName(), l.GetValue(), want)
		}
		if len(l.GetValue()) > maxLabel {
			t.Errorf("%s has %d bytes", l.GetName(), len(l.GetValue()))
		}
	}
}

// TestSeriesAreBounded counts requests of more keys, codes and reasons than there is room
// for.
func TestSeriesAreBounded(t *testing.T) {
	for _, most := range []int{1, 130, 200, 500, 2000} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			m := New(Config{MaxSeries: most})
			rnd := rand.New(rand.NewPCG(1, 1))
			const requests = 20_000
			for n := range requests {
				k := key(rnd.IntN(300))
				k.Direction, k.Protocol = Direction(n%2), Protocol(n%4)
				q := m.Recorder(k).Start(noon)
				q.Retried(retry.Reason(rnd.IntN(6)))
				q.Rejected(Rejection(rnd.IntN(9)))
				q.Ejected()
				q.BudgetExhausted()
				q.Finish(noon, Result{
					Status:        100 * rnd.IntN(6),
					HasGRPCStatus: k.Protocol == GRPC,
					GRPCStatus:    rnd.Uint32N(20),
					Duration:      time.Duration(n+1) * time.Microsecond,
					RequestBytes:  3,
					ResponseBytes: 5,
				})
			}
			series, sums := totals(t, m)
			if limit := max(most, int(directions)*(fixedSeries+counters)); series > limit {
				t.Errorf("got %d series, want at most %d", series, limit)
			}
			want := map[string]float64{
				"causeway_requests_total":                 requests,
				"causeway_requests_in_flight":             0,
				"causeway_request_bytes_total":            3 * requests,
				"causeway_response_bytes_total":           5 * requests,
				"causeway_request_retries_total":          requests,
				"causeway_requests_rejected_total":        requests,
				"causeway_endpoint_ejections_total":       requests,
				"causeway_retry_budget_exhausted_total":   requests,
				"causeway_request_duration_seconds_count": requests,
				"causeway_request_duration_seconds_sum":   requests * (requests + 1) / 2 / 1e6,
			}
			for name, sum := range want {
				if math.Abs(sums[name]-sum) > 1e-6*sum {
					t.Errorf("%s is %v in all, want %v", name, sums[name], sum)
				}
			}
			if own := m.used; most >= 200 && own < fixedSeries {
				t.Errorf("keys have %d series, want more", own)
			}
		})
	}
}

// services returns the values of the label service.
func services(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for _, metric := range gather(t, m)["causeway_requests_total"].GetMetric() {
		for _, l := range metric.Label {
			if l.GetName() == "service" {
				out[l.GetValue()] += metric.GetCounter().GetValue()
			}
		}
	}
	return out
}

// TestUnusedKeysMakeRoom follows four keys in Metrics with room for two.
func TestUnusedKeysMakeRoom(t *testing.T) {
	m := New(Config{MaxSeries: int(directions)*(fixedSeries+counters) + 40})
	r := []*Recorder{m.Recorder(key(0)), m.Recorder(key(1)), m.Recorder(key(2)), m.Recorder(key(3))}
	expect := func(when string, want map[string]float64) {
		t.Helper()
		if diff := cmp.Diff(want, services(t, m)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	now := noon
	r[0].Observe(now, ok)
	r[1].Observe(now.Add(time.Minute), ok)
	r[2].Observe(now.Add(2*time.Minute), ok)
	expect("with two keys", map[string]float64{"cart-0": 1, "cart-1": 1, other: 1})

	now = now.Add(evictAfter - time.Second)
	r[2].Observe(now, ok)
	expect("before 15 minutes", map[string]float64{"cart-0": 1, "cart-1": 1, other: 2})

	now = now.Add(attachInterval + time.Second)
	r[2].Observe(now, ok)
	expect("the oldest makes room", map[string]float64{"cart-2": 1, "cart-1": 1, other: 3})

	r[0].Observe(now, ok)
	expect("and then the next", map[string]float64{"cart-2": 1, "cart-0": 1, other: 4})

	r[1].Observe(now, ok)
	expect("there is no other", map[string]float64{"cart-2": 1, "cart-0": 1, other: 5})

	stream := r[0].Start(now)
	now = now.Add(evictAfter + attachInterval)
	r[1].Observe(now, ok)
	r[3].Observe(now, ok)
	expect("a request in flight holds a key", map[string]float64{"cart-0": 1, "cart-1": 1, other: 7})
	stream.Finish(now, ok)
	expect("it ends", map[string]float64{"cart-0": 2, "cart-1": 1, other: 7})
	if _, sums := totals(t, m); sums["causeway_requests_in_flight"] != 0 {
		t.Errorf("%v requests are in flight at the end", sums["causeway_requests_in_flight"])
	}
}

// TestKeysWithSeriesGetTheirCodes fills the room for keys, and then uses another code.
func TestKeysWithSeriesGetTheirCodes(t *testing.T) {
	m := New(Config{})
	first := m.Recorder(key(0))
	first.Observe(noon, ok)
	for n := range 1000 {
		m.Recorder(key(n)).Start(noon)
	}
	first.Observe(noon, Result{Status: 500})
	if got := services(t, m); got["cart-0"] != 2 {
		t.Errorf("got %v, want both requests at the first key", got)
	}
}

// TestConcurrentEviction lets keys replace each other while requests run. Each request
// must count once.
func TestConcurrentEviction(t *testing.T) {
	m := New(Config{MaxSeries: int(directions)*(fixedSeries+counters) + 60})
	const workers, rounds = 4, 3000
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			recorders := make([]*Recorder, 8)
			for n := range recorders {
				recorders[n] = m.Recorder(key(n))
			}
			for n := range rounds {
				now := noon.Add(time.Duration(n) * 2 * evictAfter)
				q := recorders[(n+w)%8].Start(now)
				q.Ejected()
				q.Finish(now, ok)
			}
		})
	}
	last := 0.0
	for range 50 {
		_, sums := totals(t, m)
		if got := sums["causeway_requests_total"]; got < last {
			t.Errorf("the sum of requests fell from %v to %v", last, got)
		} else {
			last = got
		}
	}
	wg.Wait()
	_, sums := totals(t, m)
	for _, name := range []string{"causeway_requests_total", "causeway_endpoint_ejections_total",
		"causeway_request_duration_seconds_count"} {
		if got := sums[name]; got != workers*rounds {
			t.Errorf("%s is %v in all, want %d", name, got, workers*rounds)
		}
	}
	if got := sums["causeway_requests_in_flight"]; got != 0 {
		t.Errorf("%v requests are in flight at the end", got)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	r := New(Config{}).Recorder(key(1))
	r.Observe(noon, ok)
	if got := testing.AllocsPerRun(1000, func() { r.Observe(noon, ok) }); got != 0 {
		t.Errorf("got %v allocations for each request, want none", got)
	}
}

func BenchmarkObserve(b *testing.B) {
	m := New(Config{})
	r := m.Recorder(key(1))
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		now := noon
		for b.Loop() {
			now = now.Add(time.Millisecond)
			r.Observe(now, ok)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				r.Observe(noon, ok)
			}
		})
	})
	b.Run("recorder", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.Recorder(key(1))
		}
	})
	b.Run("collect", func(b *testing.B) {
		for n := range 200 {
			m.Recorder(key(n)).Observe(noon, ok)
		}
		registry := prometheus.NewRegistry()
		registry.MustRegister(m)
		for b.Loop() {
			if _, err := registry.Gather(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
