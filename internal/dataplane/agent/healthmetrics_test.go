package agent

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// healthOf returns the gauges of healthCollector by name and label values.
func healthOf(t *testing.T, a *Agent) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(healthCollector{a})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			out[name] = m.GetGauge().GetValue()
		}
	}
	return out
}

func TestHealthMetrics(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { io.Copy(c, c); c.Close() })
	eventually(t, "the agent has all certificates", func() bool {
		return healthOf(t, w.west)["causeway_agent_certificates_missing"] == 0
	})
	address := w.peers.Addr().String()
	avoided := "causeway_agent_gateway_avoided " + address + " east"
	got := healthOf(t, w.west)
	if got["causeway_agent_ready"] != 0 {
		t.Error("an agent that accepts no callers is ready")
	}
	if v, ok := got[avoided]; !ok || v != 0 {
		t.Errorf("%s is %v (%v), want 0: %v", avoided, v, ok, got)
	}
	left := time.Until(time.Unix(int64(got["causeway_agent_certificate_expiry_timestamp_seconds"]), 0))
	if left <= 0 || left > 25*time.Hour {
		t.Errorf("the first certificate ends in %v, want up to a day", left)
	}
	w.west.serving.Store(true)
	w.west.penalties.recordDead(address, time.Now())
	got = healthOf(t, w.west)
	if got["causeway_agent_ready"] != 1 || got[avoided] != 1 {
		t.Errorf("ready is %v and avoided %v, want 1", got["causeway_agent_ready"], got[avoided])
	}
	s := *w.west.state.Load()
	s.expired = true
	w.west.state.Store(&s)
	if healthOf(t, w.west)["causeway_agent_ready"] != 0 {
		t.Error("an agent with an expired state is ready")
	}
}

func TestRoundTripsAreOfLinksInUse(t *testing.T) {
	m := newLinkMonitor(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	used, unused, unmeasured := peerAt("used", "a:1"), peerAt("unused", "b:1"), peerAt("unmeasured", "c:1")
	m.update(&state{links: byName(used, unused, unmeasured)})
	m.links[used.uid].health.Measured(30 * time.Millisecond)
	m.links[unused.uid].health.Measured(time.Millisecond)
	m.use(used.uid)
	m.use(unmeasured.uid)
	want := map[string]time.Duration{"used": 30 * time.Millisecond}
	if diff := cmp.Diff(want, m.roundTrips()); diff != "" {
		t.Errorf("round trips (-want +got):\n%s", diff)
	}
}

func TestAddressSeriesAreBounded(t *testing.T) {
	var peers []*peer
	for i := range maxAddressSeries {
		name := fmt.Sprintf("link-%03d", i)
		peers = append(peers, peerAt(name, "192.0.2.1:4143", "192.0.2.2:4143", "192.0.2.1:4143"))
	}
	got := gatewaysOf(&state{links: byName(peers...)})
	if len(got) != maxAddressSeries {
		t.Errorf("%d series, want %d", len(got), maxAddressSeries)
	}
	if first := (gatewayOf{"link-000", "192.0.2.1:4143"}); got[0] != first {
		t.Errorf("the first series is %v, want %v: the choice is stable", got[0], first)
	}
	if gatewaysOf(nil) != nil {
		t.Error("an agent without a state has gateways")
	}
}
