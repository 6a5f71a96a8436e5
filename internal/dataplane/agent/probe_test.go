package agent

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/probe"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// awaitProbes waits until both agents have the credential of probes.
func (w *harness) awaitProbes() {
	w.Helper()
	for _, a := range []*Agent{w.west, w.east} {
		eventually(w.TB, "the certificate for probes", func() bool {
			_, ok := a.svids.get(probeAccount)
			return ok
		})
	}
}

// probe makes a probe from west to east.
func (w *harness) probe(o probe.Options) probe.Result {
	w.Helper()
	return w.probeBy(w.peers.Addr().String(), o)
}

func (w *harness) probeBy(address string, o probe.Options) probe.Result {
	w.Helper()
	s := must(w.west.current())(w.TB)
	ctx, cancel := context.WithTimeout(w.Context(), testTimeout)
	defer cancel()
	return w.west.probe(ctx, s.links["east"], address, o)
}

func TestProbe(t *testing.T) {
	w := newHarness(t, echo)
	w.awaitProbes()
	for _, o := range []probe.Options{{}, {Payload: probe.MaxPayload}, {Payload: 1, MaxSegment: 600}} {
		r := w.probe(o)
		if r.Stage != probe.StageDone || r.Err != nil {
			t.Errorf("probe %+v: stage %s, %v", o, r.Stage, r.Err)
		}
		if r.Connect <= 0 || r.Handshake <= 0 || r.Echo <= 0 || time.Since(r.LastByte) > testTimeout {
			t.Errorf("probe %+v took %+v", o, r)
		}
	}
	if n := w.dials.Load(); n != 0 {
		t.Errorf("probes reached the application %d times", n)
	}
	for _, side := range []struct {
		a         *Agent
		direction string
	}{{w.west, outbound}, {w.east, inbound}} {
		if n := testutil.ToFloat64(side.a.metrics.probes.WithLabelValues(side.direction, string(probe.StageDone))); n != 3 {
			t.Errorf("%s: %v probes are counted as answered, want 3", side.direction, n)
		}
	}
}

// A probe says at which stage it fails, and whether a byte came from the gateway.
func TestProbeFails(t *testing.T) {
	cases := map[string]struct {
		why      string
		tune     func(*harness) // before the agents begin
		edit     func(*harness)
		stage    probe.Stage
		received bool
	}{
		"no gateway": {
			why:   "nothing listens there",
			stage: probe.StageDial,
		},
		"no agent": {
			why:   "the gateway answers with an alert",
			edit:  func(w *harness) { w.edit(&w.gatewayView, "upstream/agent/node", nil) },
			stage: probe.StageTLS, received: true,
		},
		"link revoked at the gateway": {
			why:   "only linked peers may probe",
			edit:  func(w *harness) { w.edit(&w.gatewayView, "link/west", nil) },
			stage: probe.StageTLS, received: true,
		},
		"link revoked at the agent": {
			why:   "the agent does not rely on the gateway; its part of the handshake arrives",
			edit:  func(w *harness) { w.edit(&w.eastView, "link/west", nil) },
			stage: probe.StageHello, received: true,
		},
		"too many": {
			why:   "probes are rated by link",
			tune:  func(w *harness) { w.east.rates.probes = budget.NewRates[string](0, 0) },
			stage: probe.StageHello, received: true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, echo, func(w *harness) {
				if c.tune != nil {
					c.tune(w)
				}
			})
			w.awaitProbes()
			address := w.peers.Addr().String()
			if c.edit != nil {
				c.edit(w)
				w.push()
			}
			if name == "no gateway" {
				ln := listen(t, "127.0.0.1")
				address = ln.Addr().String()
				ln.Close()
			}
			r := w.probeBy(address, probe.Options{})
			if r.Stage != c.stage || r.Err == nil || r.LastByte.IsZero() == c.received {
				t.Errorf("stage %s, last byte %v, %v; want %s, a byte received %v: %s",
					r.Stage, r.LastByte, r.Err, c.stage, c.received, c.why)
			}
			if refused := (*tunnel.Refused)(nil); name == "too many" &&
				(!errors.As(r.Err, &refused) || refused.Code != tunnel.Code_OVERLOADED) {
				t.Errorf("%v, want the agent's refusal", r.Err)
			}
		})
	}
}

// The identity of probes calls no Service, and no workload has the route of probes.
func TestProbesAndWorkloadsAreApart(t *testing.T) {
	w := newHarness(t, echo)
	w.awaitProbes()
	s := must(w.west.current())(t)
	handshake := func(id uint32, as account, far string) error {
		conn, err := net.Dial("tcp", w.peers.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		credential, ok := w.west.svids.get(as)
		if !ok {
			t.Fatalf("no credential for %v", as)
		}
		sni := must(s.links["east"].sealer.Seal(id, route.AnyEndpoint(), time.Now()))(t)
		config := identity.ClientTLS(identity.PlaneTunnel, sni,
			func() (*identity.Credential, error) { return credential, nil },
			identity.VerifyOneOf([]identity.Name{must(identity.ParseName(far))(t)}, w.west.anchors, time.Now))
		_, r := probe.Open(t.Context(), probe.Options{Address: w.peers.Addr().String(), TLS: config})
		return r.Err
	}
	if err := handshake(1024, probeAccount, "spiffe://east-12/ns/shop/sa/bar"); err == nil {
		t.Error("the identity of probes is answered on a Service's route")
	}
	if err := handshake(route.Probe, aliceAccount, "spiffe://east-12/causeway/probe"); err == nil {
		t.Error("a workload is answered on the route of probes")
	}
	eventually(t, "the refusal is counted", func() bool {
		return refusals(w.east, inbound, reasonNotAProbe) == 1
	})
	if n := w.dials.Load(); n != 0 {
		t.Errorf("the application was reached %d times", n)
	}
}

// A session of probes carries one after the other, and ends with its Link.
func TestProbeSession(t *testing.T) {
	w := newHarness(t, echo)
	w.awaitProbes()
	s := must(w.west.current())(t)
	session, r := w.west.openProbe(t.Context(), s.links["east"], w.peers.Addr().String(), probe.Options{})
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	defer session.Close()
	for _, n := range []int{0, 1, probe.MaxPayload} {
		if r := session.Echo(t.Context(), n); r.Err != nil || r.Stage != probe.StageDone {
			t.Errorf("an echo of %d bytes: stage %s, %v", n, r.Stage, r.Err)
		}
	}
	w.change(&w.eastView, "link/west", func(r *wire.Resource) { r.GetLink().Issuers = nil })
	eventually(t, "the session ends", func() bool { return session.Echo(t.Context(), 1).Err != nil })
}
