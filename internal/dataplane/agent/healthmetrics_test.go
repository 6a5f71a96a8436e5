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

	"github.com/causeway-mesh/causeway/internal/dataplane/linkhealth"
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
	m := newLinkMonitor(slog.New(slog.DiscardHandler))
	used, unused, unmeasured := peerAt("used", "a:1"), peerAt("unused", "b:1"), peerAt("unmeasured", "c:1")
	m.update(&state{links: byName(used, unused, unmeasured)})
	m.links[used.uid].health.Measured(30 * time.Millisecond)
	m.links[unused.uid].health.Measured(time.Millisecond)
	m.use(used.uid)
	m.use(unmeasured.uid)
	want := []linkGauge{{name: "unmeasured"}, {name: "unused"}, {name: "used", roundTrip: 30 * time.Millisecond}}
	if diff := cmp.Diff(want, m.gauges(), cmp.AllowUnexported(linkGauge{})); diff != "" {
		t.Errorf("gauges (-want +got):\n%s", diff)
	}
}

func TestAddressSeriesAreBounded(t *testing.T) {
	var peers []*peer
	for i := range maxAddressSeries {
		name := fmt.Sprintf("link-%03d", i)
		peers = append(peers, peerAt(name, "192.0.2.1:4143", fmt.Sprintf("192.0.2.2:%d", i), "192.0.2.1:4143"))
	}
	a := idleAgent(t)
	s, now := &state{links: byName(peers...)}, time.Now()
	got := a.gatewayGauges(s, now)
	if len(got) != maxAddressSeries+1 {
		t.Fatalf("%d series, want %d", len(got), maxAddressSeries+1)
	}
	if first := (gatewayGauge{"link-000", "192.0.2.1:4143", 0}); got[0] != first {
		t.Errorf("the first series is %v, want %v: the choice is stable", got[0], first)
	}
	last := func() gatewayGauge { g := a.gatewayGauges(s, now); return g[len(g)-1] }
	if want := (gatewayGauge{otherLinks, otherLinks, 0}); last() != want {
		t.Errorf("the last series is %v, want %v", last(), want)
	}
	a.penalties.recordDead(fmt.Sprintf("192.0.2.2:%d", maxAddressSeries-1), now)
	if want := (gatewayGauge{otherLinks, otherLinks, 1}); last() != want {
		t.Errorf("while one of the others is avoided the last series is %v, want %v", last(), want)
	}
	if a.gatewayGauges(nil, now) != nil {
		t.Error("an agent without a state has gateways")
	}
}

// TestLinkGaugesAreBounded: one entry stands for the links beyond the bound, and for a link
// that has its name.
func TestLinkGaugesAreBounded(t *testing.T) {
	m := newLinkMonitor(slog.New(slog.DiscardHandler))
	peers := []*peer{peerAt(otherLinks, "a:1")}
	for i := range maxLinkGauges + 2 {
		peers = append(peers, peerAt(fmt.Sprintf("z-%03d", i), "b:1"))
	}
	m.update(&state{links: byName(peers...)})
	for i, p := range peers {
		m.links[p.uid].health.Measured(time.Duration(i) * time.Millisecond)
		m.use(p.uid)
	}
	got := m.gauges()
	if len(got) != maxLinkGauges+1 {
		t.Fatalf("%d entries, want %d", len(got), maxLinkGauges+1)
	}
	if want := (linkGauge{"z-000", 0, time.Millisecond}); got[0] != want {
		t.Errorf("the first is %v, want %v", got[0], want)
	}
	if want := (linkGauge{otherLinks, 0, (maxLinkGauges + 2) * time.Millisecond}); got[maxLinkGauges] != want {
		t.Errorf("the last is %v, want %v", got[maxLinkGauges], want)
	}
	makeUnusable(m, peers[0])
	if g := m.gauges()[maxLinkGauges]; g.name != otherLinks || g.unusable != 1 {
		t.Errorf("while one of the others is unusable the last is %v", g)
	}
}

// makeUnusable makes a link unusable by probes that fail.
func makeUnusable(m *linkMonitor, p *peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, later := &m.links[p.uid].health, time.Now().Add(linkhealth.Silence)
	h.Suspect(time.Now())
	for _, address := range p.gateways {
		for range linkhealth.Attempts {
			h.ProbeEnded(address, true)
		}
	}
	h.Next(later, 1, func() float64 { return 0 })
}
