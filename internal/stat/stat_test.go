package stat

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

var start = time.Unix(1_000_000, 0)

// agent is an agent's metrics of requests.
type agent struct{ m *reqmetrics.Metrics }

func newAgent() agent { return agent{reqmetrics.New(reqmetrics.Config{})} }

func (a agent) count(k reqmetrics.Key, n int, r reqmetrics.Result) {
	for range n {
		a.m.Recorder(k).Observe(start, r)
	}
}

func (a agent) snapshot(t *testing.T, after time.Duration) Snapshot {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(a.m)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return Snapshot{At: start.Add(after), Families: families}
}

// withoutNative is what a scrape in the text format has.
func (s Snapshot) withoutNative() Snapshot {
	for _, f := range s.Families {
		for _, m := range f.Metric {
			if m.Histogram != nil {
				m.Histogram.Schema, m.Histogram.PositiveSpan, m.Histogram.PositiveDelta = nil, nil, nil
			}
		}
	}
	return s
}

var key = reqmetrics.Key{
	Direction: reqmetrics.Outbound,
	Link:      "east",
	Namespace: "shop",
	Service:   "web-east",
	Port:      80,
	Workload:  "shop/client",
	Protocol:  reqmetrics.HTTP1,
}

func rowKey(change func(*Key)) Key {
	k := Key{
		Direction: "outbound",
		Link:      "east",
		Namespace: "shop",
		Service:   "web-east",
		Port:      "80",
		Workload:  "shop/client",
		Protocol:  "http1",
	}
	if change != nil {
		change(&k)
	}
	return k
}

func pointer(v float64) *float64 { return &v }

func TestRows(t *testing.T) {
	const window = 10 * time.Second
	fast := reqmetrics.Result{
		Status:        200,
		Duration:      20 * time.Millisecond,
		RequestBytes:  10,
		ResponseBytes: 1000,
	}
	all := func(k Key, perSecond float64) Row {
		return Row{
			Key:      k,
			Requests: perSecond,
			Success:  pointer(1),
			P50:      pointer(0.02),
			P95:      pointer(0.02),
			P99:      pointer(0.02),
			BytesIn:  perSecond * 1000,
			BytesOut: perSecond * 10,
		}
	}
	inbound, grpc, opaque := key, key, key
	inbound.Direction = reqmetrics.Inbound
	grpc.Protocol = reqmetrics.GRPC
	opaque.Protocol = reqmetrics.TCP
	type snapshots = map[string]Snapshot
	cases := map[string]struct {
		why    string
		run    func(t *testing.T) (before, after snapshots)
		filter Filter
		want   []Row
	}{
		"steady": {
			why: "only what happened within the window counts",
			run: func(t *testing.T) (snapshots, snapshots) {
				a := newAgent()
				a.count(key, 1000, reqmetrics.Result{Status: 500, Duration: time.Second})
				before := a.snapshot(t, 0)
				a.count(key, 50, fast)
				return snapshots{"a": before}, snapshots{"a": a.snapshot(t, window)}
			},
			want: []Row{all(rowKey(nil), 5)},
		},
		"new series": {
			why: "an agent creates series with the first event",
			run: func(t *testing.T) (snapshots, snapshots) {
				a := newAgent()
				before := a.snapshot(t, 0)
				a.count(key, 50, fast)
				return snapshots{"a": before}, snapshots{"a": a.snapshot(t, window)}
			},
			want: []Row{all(rowKey(nil), 5)},
		},
		"reset": {
			why: "counters of an agent that restarted begin at zero",
			run: func(t *testing.T) (snapshots, snapshots) {
				a, restarted := newAgent(), newAgent()
				a.count(key, 1000, fast)
				restarted.count(key, 20, fast)
				return snapshots{"a": a.snapshot(t, 0)}, snapshots{"a": restarted.snapshot(t, window)}
			},
			want: []Row{all(rowKey(nil), 2)},
		},
		"two agents": {
			why: "rates of agents add up, each over its own window",
			run: func(t *testing.T) (snapshots, snapshots) {
				a, b := newAgent(), newAgent()
				first := snapshots{"a": a.snapshot(t, 0), "b": b.snapshot(t, 0)}
				a.count(key, 50, fast)
				b.count(key, 60, fast)
				return first, snapshots{"a": a.snapshot(t, window), "b": b.snapshot(t, 2*window)}
			},
			want: []Row{all(rowKey(nil), 8)},
		},
		"one snapshot": {
			why: "the counts of an agent that came later have no window",
			run: func(t *testing.T) (snapshots, snapshots) {
				a := newAgent()
				a.count(key, 50, fast)
				return nil, snapshots{"a": a.snapshot(t, window)}
			},
		},
		"idle": {
			why: "a key without events is no news",
			run: func(t *testing.T) (snapshots, snapshots) {
				a := newAgent()
				a.count(key, 50, fast)
				return snapshots{"a": a.snapshot(t, 0)}, snapshots{"a": a.snapshot(t, window)}
			},
		},
		"directions and protocols": {
			why: "bytes are seen from the local workload, and a connection is no request",
			run: func(t *testing.T) (snapshots, snapshots) {
				a := newAgent()
				before := a.snapshot(t, 0)
				a.count(inbound, 10, fast)
				a.count(opaque, 30, reqmetrics.Result{RequestBytes: 10, ResponseBytes: 20})
				return snapshots{"a": before}, snapshots{"a": a.snapshot(t, window)}
			},
			want: []Row{
				{Key: rowKey(func(k *Key) { k.Protocol = "tcp" }), Connections: 3, BytesIn: 60, BytesOut: 30},
				func() Row {
					r := all(rowKey(func(k *Key) { k.Direction = "inbound" }), 1)
					r.BytesIn, r.BytesOut = r.BytesOut, r.BytesIn
					return r
				}(),
			},
		},
		"failures": {
			why: "errors of the server fail a request, those of the caller do not",
			run: func(t *testing.T) (snapshots, snapshots) {
				a := newAgent()
				before := a.snapshot(t, 0)
				for _, status := range []int{200, 404, 503, 0} {
					a.count(key, 10, reqmetrics.Result{Status: status, Duration: 20 * time.Millisecond})
				}
				for _, status := range []uint32{0, 5, 5, 14} {
					a.count(grpc, 10, reqmetrics.Result{
						Status:        200,
						GRPCStatus:    status,
						HasGRPCStatus: true,
						Duration:      20 * time.Millisecond,
					})
				}
				a.m.Recorder(key).Start(start).Retried(retry.ReasonReset)
				return snapshots{"a": before}, snapshots{"a": a.snapshot(t, window)}
			},
			want: func() []Row {
				rows := []Row{all(rowKey(func(k *Key) { k.Protocol = "grpc" }), 4), all(rowKey(nil), 4)}
				for i := range rows {
					rows[i].BytesIn, rows[i].BytesOut = 0, 0
				}
				rows[0].Success, rows[1].Success, rows[1].Retries = pointer(0.75), pointer(0.5), 0.1
				return rows
			}(),
		},
		"filtered": {
			why: "a filter names one link",
			run: func(t *testing.T) (snapshots, snapshots) {
				a := newAgent()
				before := a.snapshot(t, 0)
				a.count(key, 50, fast)
				return snapshots{"a": before}, snapshots{"a": a.snapshot(t, window)}
			},
			filter: Filter{Link: "west"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			before, after := tc.run(t)
			got := Rows(before, after, tc.filter)
			// Native buckets are 9 % wide.
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateApprox(0.09, 1e-9)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}

// TestQuantiles compares both kinds of buckets with durations from 1 ms to 1 s.
func TestQuantiles(t *testing.T) {
	for name, tc := range map[string]struct {
		native    bool
		tolerance float64
	}{
		"native":  {native: true, tolerance: 0.05},
		"classic": {tolerance: 0.2},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent()
			before := a.snapshot(t, 0)
			for ms := range 1000 {
				d := time.Duration(ms+1) * time.Millisecond
				a.count(key, 1, reqmetrics.Result{Status: 200, Duration: d})
			}
			after := a.snapshot(t, time.Second)
			if !tc.native {
				before, after = before.withoutNative(), after.withoutNative()
			}
			rows := Rows(map[string]Snapshot{"a": before}, map[string]Snapshot{"a": after}, Filter{})
			if len(rows) != 1 {
				t.Fatalf("got %d rows", len(rows))
			}
			for _, q := range []struct {
				got  *float64
				want float64
			}{{rows[0].P50, 0.5}, {rows[0].P95, 0.95}, {rows[0].P99, 0.99}} {
				if q.got == nil || math.Abs(*q.got-q.want) > tc.tolerance*q.want {
					t.Errorf("got %v, want %v", q.got, q.want)
				}
			}
		})
	}
}

// TestQuantileBeyondTheLastBound returns the last bound.
func TestQuantileBeyondTheLastBound(t *testing.T) {
	h := read(&dto.Histogram{
		SampleCount: new(uint64(3)),
		Bucket:      []*dto.Bucket{{UpperBound: pointer(5), CumulativeCount: new(uint64(1))}},
	})
	if got := h.quantile(0.99); got == nil || *got != 5 {
		t.Errorf("got %v, want 5", got)
	}
	if got := (histogram{}).quantile(0.5); got != nil {
		t.Errorf("got %v of nothing, want nil", *got)
	}
}
