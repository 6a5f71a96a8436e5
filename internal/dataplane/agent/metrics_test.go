package agent

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// TestSeriesAreBounded: one agent has at most maxSeries, however many links, Services and
// addresses there are, and counts nothing twice and loses nothing.
func TestSeriesAreBounded(t *testing.T) {
	const links, services = 500, 1000
	r := uplink.NewRegistry()
	a := New(t.Context(), failing, slog.New(slog.DiscardHandler), r)
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "causeway_state_age_seconds"}, func() float64 { return 1 }))
	var peers []*peer
	for i := range links {
		peers = append(peers, peerAt(fmt.Sprintf("link-%d", i), fmt.Sprintf("192.0.2.1:%d", i), fmt.Sprintf("192.0.2.2:%d", i)))
	}
	s := &state{links: byName(peers...)}
	a.state.Store(s)
	a.monitor.update(s)
	for _, p := range peers {
		a.monitor.use(p.uid)
		a.monitor.links[p.uid].health.Measured(time.Millisecond)
		for _, direction := range []string{inbound, outbound} {
			for _, reason := range transport.Reasons() {
				a.metrics.ended(direction, p.name, transport.Result{Reason: reason, Sent: 1, Received: 2})
			}
			for _, outcome := range []string{sessionMade, sessionReused, sessionRetired, sessionLost} {
				a.metrics.countSession(direction, p.name, outcome)
			}
		}
		for _, outcome := range []string{sessionPreconnecting, sessionPreconnected, sessionFailed} {
			a.metrics.countSession(outbound, p.name, outcome)
		}
	}
	for i := range services {
		for _, direction := range []reqmetrics.Direction{reqmetrics.Outbound, reqmetrics.Inbound} {
			key := reqmetrics.Key{Direction: direction, Link: peers[i%links].name, Namespace: "shop", Service: fmt.Sprintf("s%d", i)}
			recorder := a.requestMetrics.Recorder(key)
			for status := 0; status < 600; status += 100 {
				recorder.Observe(time.Now(), reqmetrics.Result{Status: status})
			}
			for status := range uint32(20) {
				recorder.Observe(time.Now(), reqmetrics.Result{GRPCStatus: status, HasGRPCStatus: true})
			}
			q := recorder.Start(time.Now())
			for reason := range reqmetrics.RejectedOtherReason + 1 {
				q.Rejected(reason)
			}
			for _, reason := range retry.RetryReasons() {
				q.Retried(reason)
			}
			q.Ejected()
			q.BudgetExhausted()
			q.Finish(time.Now(), reqmetrics.Result{})
		}
	}
	families := must(r.Gather())(t)
	total, closed, sums := 0, 0, map[string]float64{}
	for _, f := range families {
		n := 0
		for _, m := range f.Metric {
			n += seriesOf(m)
			sums[f.GetName()] += m.GetCounter().GetValue()
		}
		total += n
		if !slices.ContainsFunc(f.Metric[0].Label, func(l *dto.LabelPair) bool { return l.GetName() == "link" }) {
			closed += n
		}
	}
	if total > maxSeries {
		t.Errorf("%d series, want at most %d", total, maxSeries)
	}
	closed += testutil.CollectAndCount(newMetrics(prometheus.NewRegistry()).sessions)
	if closed > closedSeries {
		t.Errorf("%d series have closed labels, want at most %d", closed, closedSeries)
	}
	reasons := float64(len(transport.Reasons()))
	for name, want := range map[string]float64{
		"causeway_agent_ended_total":          links * 2 * reasons,
		"causeway_agent_sent_bytes_total":     links * 2 * reasons,
		"causeway_agent_received_bytes_total": links * 2 * reasons * 2,
		"causeway_agent_sessions_total":       links * 11,
	} {
		if sums[name] != want {
			t.Errorf("%s is %v in all, want %v", name, sums[name], want)
		}
	}
}

// seriesOf returns how many series Prometheus makes of a metric. The last bucket of a
// histogram has no upper bound, and client_golang writes it without being asked.
func seriesOf(m *dto.Metric) int {
	switch {
	case m.Histogram != nil:
		n := len(m.Histogram.Bucket) + 2
		if last := m.Histogram.Bucket[len(m.Histogram.Bucket)-1]; !math.IsInf(last.GetUpperBound(), 1) {
			n++
		}
		return n
	case m.Summary != nil:
		return len(m.Summary.Quantile) + 2
	}
	return 1
}

// TestFirstLinksHaveTheirOwnCounters: a link has series of its own while there is room.
func TestFirstLinksHaveTheirOwnCounters(t *testing.T) {
	m := newMetrics(prometheus.NewRegistry())
	for range 2 {
		for n := range 2 * maxLinkCounters {
			m.countSession(outbound, fmt.Sprintf("link-%d", n), sessionMade)
		}
	}
	for link, want := range map[string]float64{
		"link-0": 2,
		fmt.Sprintf("link-%d", maxLinkCounters-1): 2,
		otherLinks: 2 * maxLinkCounters,
	} {
		if got := testutil.ToFloat64(m.sessions.WithLabelValues(outbound, link, sessionMade)); got != want {
			t.Errorf("%s has %v, want %v", link, got, want)
		}
	}
}

// TestRefusedConnectionsAreCounted: each side counts an opaque connection that it refuses by
// link and Service. A caller that leaves is not refused.
func TestRefusedConnectionsAreCounted(t *testing.T) {
	const rejected = "causeway_requests_rejected_total"
	near := []string{"direction=outbound", "protocol=tcp", "link=east", "namespace=shop", "service=bar", "port=80"}
	for name, tc := range map[string]struct {
		change func(*harness)
		reason string
		far    bool // the far side refuses each OPEN
	}{
		"denied by a policy": {func(w *harness) {
			w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Policies = []*wire.Policy{{Name: "nobody"}} })
		}, "reason=not_allowed", false},
		"the pod refuses": {func(w *harness) { w.app.Close() }, "reason=no_endpoint", true},
		"too many connections": {func(w *harness) {
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				backendOf(r).Settings = &wire.TrafficSettings{MaxConnections: 1}
			})
			io.WriteString(w.dial(alice), "\x16hello")
			eventually(w.TB, "the first is open", func() bool { return w.dials.Load() == 1 })
		}, "reason=circuit_open", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, func(c *net.TCPConn) { io.Copy(c, c) })
			w.learnClientFirst()
			tc.change(w)
			_, err := w.call(alice, "\x16hello")
			wantReset(t, "the call", err)
			eventually(t, "the refusal is counted", func() bool { return counted(t, w.west, rejected) > 0 })
			if n := counted(t, w.west, rejected, append(near, tc.reason)...); n != 1 {
				t.Errorf("the near side counts %d with %s", n, tc.reason)
			}
			if n := counted(t, w.east, rejected, "direction=inbound", "protocol=tcp", "link=west", "service=bar"); (n > 0) != tc.far {
				t.Errorf("the far side counts %d, want some: %v", n, tc.far)
			}
		})
	}
	t.Run("the caller leaves", func(t *testing.T) {
		w := newHarness(t, func(*net.TCPConn) {})
		w.west.endpointCache.recordRequests(account{"shop", "alice"}, remotePort{"link-to-east", "shop", "bar", 80})
		w.call(alice, "")
		w.wantRefusal(w.west, outbound, reasonCallerSilent)
		if n := counted(t, w.west, rejected); n != 0 {
			t.Errorf("%d connections count as rejected", n)
		}
	})
}
