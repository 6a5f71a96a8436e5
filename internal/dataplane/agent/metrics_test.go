package agent

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// TestLinkLabelsAreBounded: links beyond the limit count in one series, and nothing is lost.
func TestLinkLabelsAreBounded(t *testing.T) {
	const links = 3 * maxLinkLabels
	m := newMetrics(prometheus.NewRegistry())
	fixed := testutil.CollectAndCount(m.sessions)
	for range 2 {
		for n := range links {
			link := fmt.Sprintf("link-%d", n)
			m.countSession(outbound, link, sessionMade)
			m.ended(inbound, link, transport.Result{Sent: 1, Received: 2})
		}
	}
	for name, tc := range map[string]struct {
		vec         *prometheus.CounterVec
		fixed, each int
		other       []string
		own, others float64
	}{
		"sessions": {m.sessions, fixed, 1, []string{outbound, otherLinks, sessionMade}, 2, 2 * (links - maxLinkLabels)},
		"ends":     {m.ends, 1, 1, []string{inbound, otherLinks, transport.Ended.String()}, 2, 2 * (links - maxLinkLabels)},
		"sent":     {m.sent, 1, 1, []string{inbound, otherLinks}, 2, 2 * (links - maxLinkLabels)},
		"received": {m.received, 1, 1, []string{inbound, otherLinks}, 4, 4 * (links - maxLinkLabels)},
	} {
		own := append([]string{}, tc.other...)
		own[1] = "link-0"
		if got := testutil.CollectAndCount(tc.vec); got != tc.fixed+maxLinkLabels {
			t.Errorf("%s: %d series, want %d", name, got, tc.fixed+maxLinkLabels)
		}
		if got := testutil.ToFloat64(tc.vec.WithLabelValues(own...)); got != tc.own {
			t.Errorf("%s: the first link has %v, want %v", name, got, tc.own)
		}
		if got := testutil.ToFloat64(tc.vec.WithLabelValues(tc.other...)); got != tc.others {
			t.Errorf("%s: other links have %v, want %v", name, got, tc.others)
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
