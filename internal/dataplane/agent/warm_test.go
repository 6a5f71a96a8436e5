package agent

import (
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// warms is how many of west's warm tunnels that has become of.
func (w *world) warms(what string) int {
	return int(testutil.ToFloat64(w.west.metrics.warm.WithLabelValues(outbound, what)))
}

// waitingTunnels are those that wait in west's pool.
func (w *world) waitingTunnels() int {
	w.west.warm.mu.Lock()
	defer w.west.warm.mu.Unlock()
	n := 0
	for _, list := range w.west.warm.idle {
		n += len(list)
	}
	return n
}

// warmed is a world in which alice has called once, and a tunnel waits for her next call.
func warmed(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, echo)
	if answer, err := w.call(alice, "first"); answer != "you said first" || err != nil {
		t.Fatalf("alice's first call: %q, %v", answer, err)
	}
	eventually(t, "a tunnel waits", func() bool { return w.waitingTunnels() == 1 })
	return w
}

func TestWarmTunnelCarriesTheNextCall(t *testing.T) {
	w := warmed(t)
	if n := w.dials.Load(); n != 1 {
		t.Fatalf("the application was dialled %d times for one call: a tunnel that waits costs it nothing", n)
	}
	if answer, err := w.call(alice, "second"); answer != "you said second" || err != nil {
		t.Fatalf("alice's second call: %q, %v", answer, err)
	}
	if w.warms(warmUsed) != 1 || w.dials.Load() != 2 {
		t.Errorf("warm tunnels used: %d, dials: %d; want 1, 2", w.warms(warmUsed), w.dials.Load())
	}
	eventually(t, "who calls again gets two", func() bool { return w.waitingTunnels() == maxWarmEach })
}

func TestWarmTunnelIsNobodyElses(t *testing.T) {
	w := warmed(t)
	if answer, err := w.call(bob, "hello"); answer != "you said hello" || err != nil {
		t.Fatalf("bob's call: %q, %v", answer, err)
	}
	if w.warms(warmUsed) != 0 {
		t.Error("bob's call went over alice's tunnel")
	}
	for _, caller := range w.logs[1].all("tunnel served", "caller") {
		if caller != "spiffe://west-1/ns/shop/sa/alice" && caller != "spiffe://west-1/ns/shop/sa/bob" {
			t.Errorf("served %s", caller)
		}
	}
}

func TestWarmTunnelEndsWithWhatAdmitsIt(t *testing.T) {
	exported := "export/shop/bar"
	cases := map[string]struct {
		why    string
		change func(*world)
		warm   bool // the far side ends it, and only once it is a warm one
	}{
		"link revoked here":  {"its peer is refused", func(w *world) { w.mu.Lock(); w.revoked["link-to-east"] = true; w.mu.Unlock() }, false},
		"link revoked there": {"its caller is", func(w *world) { w.mu.Lock(); w.revoked["link-to-west"] = true; w.mu.Unlock() }, false},
		"mirror gone":        {"nobody calls it any more", func(w *world) { w.edit(&w.westView, "frontend/shop/bar-east", nil) }, false},
		"last caller gone":   {"nobody of this name is here", func(w *world) { w.edit(&w.westView, "pod/alice-0", nil) }, false},
		"not exported":       {"its service is", func(w *world) { w.edit(&w.eastView, exported, nil) }, false},
		"pod not ready": {"a tunnel must not bring what readiness keeps away", func(w *world) {
			w.edit(&w.eastView, exported, func(r *wire.Resource) { r.GetExport().Pods[0].Accepts = false })
		}, true},
		"pod terminating": {"it must not get new connections while others can", (*world).terminate, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, echo)
			if _, err := w.call(alice, "first"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a tunnel waits", func() bool { return w.waitingTunnels() == 1 })
			tc.change(w)
			eventually(t, "the tunnel has ended: "+tc.why, func() bool {
				w.push() // for its first second it may be a call's
				return w.waitingTunnels() == 0 || !w.quietTunnels()
			})
			if !tc.warm {
				return
			}
			eventually(t, "the far side counts it as what it was", func() bool {
				return testutil.ToFloat64(w.east.metrics.warm.WithLabelValues(inbound, warmLost)) == 1
			})
			if all := w.logs[1].all("tunnel refused", "reason"); len(all) > 0 {
				t.Errorf("the far side tells of calls refused for %v, and nobody has called", all)
			}
			for _, reason := range reasons(inbound) {
				if n := refusals(w.east, inbound, reason); n > 0 {
					t.Errorf("the far side counts %v refusals for %s, and nobody has called", n, reason)
				}
			}
		})
	}
}

// quietTunnels reports whether the far side has ended none that waits.
func (w *world) quietTunnels() bool {
	w.west.warm.mu.Lock()
	defer w.west.warm.mu.Unlock()
	for _, list := range w.west.warm.idle {
		for _, t := range list {
			if !t.quiet() {
				return false
			}
		}
	}
	return true
}

// An agent that is told to stop ends what waits, and a caller who comes at that moment loses nothing.
func TestWarmTunnelsOfAnAgentThatStops(t *testing.T) {
	w := warmed(t)
	w.east.retire()
	eventually(t, "the far side has ended it", func() bool { return !w.quietTunnels() })
	if answer, err := w.call(alice, "second"); answer != "you said second" || err != nil {
		t.Errorf("alice's next call: %q, %v", answer, err)
	}
	if w.warms(warmUsed) != 0 || w.warms(warmLost) != 1 {
		t.Errorf("used %d, lost %d, want 0, 1", w.warms(warmUsed), w.warms(warmLost))
	}
	w.west.retire()
	w.west.warm.drain()
	if n := w.waitingTunnels(); n != 0 {
		t.Errorf("%d tunnels wait for an agent that stops", n)
	}
	if w.west.warm.begin(warmKey{}, 1) {
		t.Error("one is made anew")
	}
}

// An end that was not seen before OPEN was written: close_notify says that nothing has reached an application.
func TestWarmTunnelThatEndsMeanwhile(t *testing.T) {
	w := warmed(t)
	w.west.warm.mu.Lock()
	for _, list := range w.west.warm.idle {
		for _, t := range list {
			raw := t.tun.NetConn().(*transport.Raw)
			raw.Conn = deaf{raw.Conn} // so that it looks alive
		}
	}
	w.west.warm.mu.Unlock()
	w.east.retire()
	eventually(t, "the far side has ended it", func() bool {
		return testutil.ToFloat64(w.east.metrics.warm.WithLabelValues(inbound, warmUnused)) == 1
	})
	if answer, err := w.call(alice, "not lost"); answer != "you said not lost" || err != nil {
		t.Errorf("alice's next call: %q, %v", answer, err)
	}
	if w.warms(warmLost) != 1 {
		t.Errorf("lost %d, want 1", w.warms(warmLost))
	}
}

// deaf hides the socket.
type deaf struct{ net.Conn }

func TestWarmPoolBounds(t *testing.T) {
	p := newWarmPool()
	key := warmKey{caller: "a"}
	if !p.begin(key, 1) || p.begin(key, 1) {
		t.Error("one is being made, and one is enough")
	}
	if !p.begin(key, 2) || p.begin(key, 2) {
		t.Error("two, and not more")
	}
	for i := 2; i < maxWarm; i++ {
		if !p.begin(warmKey{caller: "b", index: i}, 1) {
			t.Fatalf("no room for the %dth", i)
		}
	}
	if p.begin(warmKey{caller: "c"}, 1) {
		t.Error("more than the agent may hold")
	}
	p.done(key)
	if !p.begin(warmKey{caller: "c"}, 1) {
		t.Error("room that was given back is not taken")
	}
	made := 0
	for range 100 {
		if p.bucket("link").Allow() {
			made++
		}
	}
	if made < warmBurst || made > warmBurst+2 {
		t.Errorf("%d are made at once after a peer has come back, want %d", made, warmBurst)
	}
	if !p.bucket("another").Allow() {
		t.Error("another peer waits for the first")
	}
}

// Issuers that are dropped end what waits as they end what is open.
func TestWarmLeaseNeedsTheIssuer(t *testing.T) {
	w := warmed(t)
	w.west.warm.mu.Lock()
	var c call
	for _, list := range w.west.warm.idle {
		c = list[0].call
	}
	w.west.warm.mu.Unlock()
	s := *w.west.state.Load()
	if err := c.warmLease()(&s); err != nil {
		t.Fatalf("now: %v", err)
	}
	s.anchors = newCluster(t, "east-12").anchors(t)
	if err := c.warmLease()(&s); err == nil {
		t.Error("it waits on though its far side's issuer is dropped")
	}
}

// Who calls once a day is not taken for one who calls again.
func TestOneWarmTunnelAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, key := newWarmPool(), warmKey{caller: "a"}
		for i, tc := range []struct {
			after time.Duration
			want  int
		}{{0, 1}, {warmUse - 1, 2}, {warmUse - 1, 2}, {warmUse, 1}, {time.Hour, 1}} {
			bubble.Pass(tc.after)
			if got := p.called(key); got != tc.want {
				t.Errorf("call %d, %v after the last: %d tunnels, want %d", i+1, tc.after, got, tc.want)
			}
		}
	})
}

// A tunnel that is asked for ahead and refused is counted and told by the far side as a call would be: that nobody is there yet is the
// peer's word, by which it could try what it may without being seen. The near side knows, and counts no call.
func TestWarmTunnelRefused(t *testing.T) {
	w := warmed(t)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		r.GetExport().Policies = []*wire.Policy{{Name: "bob", Callers: []*wire.Caller{{ServiceAccount: "bob"}}}}
	})
	before := refusals(w.east, inbound, admit.PolicyDenies.String())
	w.west.warm.mu.Lock()
	var c call
	for _, list := range w.west.warm.idle {
		c = list[0].call
	}
	w.west.warm.mu.Unlock()
	key := c.warmKey()
	if !w.west.warm.begin(key, maxWarmEach) {
		t.Fatal("no room for another")
	}
	w.west.startWarm(key, &c)
	eventually(t, "it has failed", func() bool { return w.warms(warmFailed) == 1 })
	eventually(t, "the far side counts a refusal", func() bool {
		return refusals(w.east, inbound, admit.PolicyDenies.String()) == before+1
	})
	if who := w.logs[1].all("tunnel refused", "caller"); !slices.Contains(who, "spiffe://west-1/ns/shop/sa/alice") {
		t.Errorf("refused were %v, want alice, too", who)
	}
	for _, reason := range reasons(outbound) {
		if n := refusals(w.west, outbound, reason); n > 0 {
			t.Errorf("the near side counts %v calls refused for %s, and nobody has called", n, reason)
		}
	}
}

// Who counts what a call does waits until nothing more follows from those before: each tunnel begun is made or fails.
func TestWarmTunnelsSettle(t *testing.T) {
	w := warmed(t)
	settled := func() bool { return w.warms(warmBegun) == w.warms(warmMade)+w.warms(warmFailed) }
	if w.warms(warmBegun) != 1 || !settled() {
		t.Errorf("begun %d, made %d, failed %d, want 1, 1, 0", w.warms(warmBegun), w.warms(warmMade), w.warms(warmFailed))
	}
	if _, err := w.call(alice, "second"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two more are begun", func() bool { return w.warms(warmBegun) == 3 })
	w.west.retire() // in the jitter, maybe
	eventually(t, "and none of them is for ever", settled)
}
