package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

func TestPenalties(t *testing.T) {
	all := []string{"a", "b", "c"}
	start := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		why  string
		do   func(d *penalties)
		at   time.Duration
		want []string
	}{
		"nothing known": {"the controller's order stands", func(*penalties) {}, 0, all},
		"first lost":    {"what failed comes last", func(d *penalties) { d.recordDial(all, 1, start) }, time.Second, []string{"b", "c", "a"}},
		"two lost":      {"in their order", func(d *penalties) { d.recordDial(all, 2, start) }, time.Second, []string{"c", "a", "b"}},
		"all lost":      {"then the controller's order is as good as any", func(d *penalties) { d.recordDial(all, 2, start); d.recordDial([]string{"c", "a"}, 1, start) }, time.Second, []string{"a", "b", "c"}},
		"just resting":  {"one tick before its time it still rests", func(d *penalties) { d.recordDial(all, 1, start) }, minPenalty - 1, []string{"b", "c", "a"}},
		"rested":        {"then one call finds out", func(d *penalties) { d.recordDial(all, 1, start) }, minPenalty, all},
		"trial under way": {"and the others do not wait for it", func(d *penalties) {
			d.recordDial(all, 1, start)
			d.order(all, start.Add(minPenalty))
		}, minPenalty + 1, []string{"b", "c", "a"}},
		"good again": {"it has its place back", func(d *penalties) {
			d.recordDial(all, 1, start)
			d.recordDial(d.order(all, start.Add(minPenalty)), 0, start.Add(minPenalty))
		}, minPenalty + 1, all},
		"lost twice": {"each time it rests twice as long", func(d *penalties) {
			d.recordDial(all, 1, start)
			d.recordDial(d.order(all, start.Add(minPenalty)), 1, start.Add(minPenalty))
		}, 3*minPenalty - 1, []string{"b", "c", "a"}},
		"silent": {"the next connection should not go to an address that answers nothing", func(d *penalties) { d.recordDead("b", start) }, time.Second, []string{"a", "c", "b"}},
		"lost by many at once": {"a crowd of calls finds out the same thing once", func(d *penalties) {
			for range 10 {
				d.recordDial(all, 1, start)
			}
		}, minPenalty, all},
	} {
		t.Run(name, func(t *testing.T) {
			var d penalties
			c.do(&d)
			if diff := cmp.Diff(c.want, d.order(all, start.Add(c.at))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

// An address that swallows what it gets slows down one call, and no other.
func TestBlackHoleDelaysOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{sessions: newSessions(), shares: newConnShares(defaultLimits), dialer: transport.Dialer{Timeout: gatewayDialTimeout, Dial: func(ctx context.Context, address string) (net.Conn, error) {
			if address == "hole" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			here, there := net.Pipe()
			return here, errors.Join(there.Close())
		}}}
		p := &peer{name: "east", gateways: []string{"hole", "good"}}
		var slow []time.Duration
		for range 50 {
			start := time.Now()
			raw, _, err := a.dialGateway(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			raw.Close()
			if took := time.Since(start); took > 0 {
				slow = append(slow, took)
			}
		}
		if diff := cmp.Diff([]time.Duration{250 * time.Millisecond}, slow); diff != "" {
			t.Errorf("calls that had to wait (-want +got):\n%s", diff)
		}
	})
}

// Each of many agents' connections goes to any of the healthy addresses; a slow one has
// less.
func TestGatewayLoadIsWeighted(t *testing.T) {
	addresses := []string{"a", "b", "c"}
	cases := map[string]struct {
		why  string
		took map[string]time.Duration
		want map[string]int // of 3,000, first
	}{
		"unknown": {"nothing is known of any", nil, map[string]int{"a": 1000, "b": 1000, "c": 1000}},
		"alike":   {"they are alike", map[string]time.Duration{"a": time.Second, "b": time.Second, "c": time.Second}, map[string]int{"a": 1000, "b": 1000, "c": 1000}},
		"one far": {"it has its share of what is left", map[string]time.Duration{"a": 10 * time.Millisecond, "b": 10 * time.Millisecond, "c": 20 * time.Millisecond},
			map[string]int{"a": 1200, "b": 1200, "c": 600}},
		"one very far": {"it is measured again all the same", map[string]time.Duration{"a": time.Millisecond, "b": time.Millisecond, "c": time.Second},
			map[string]int{"a": 1429, "b": 1429, "c": 143}},
		"one new": {"it may be as fast as the fastest", map[string]time.Duration{"a": time.Second, "b": time.Second}, map[string]int{"a": 1000, "b": 1000, "c": 1000}},
	}
	for name, tc := range cases {
		first := map[string]int{}
		for range 3000 {
			got := weightedOrder(addresses, func(a string) time.Duration { return tc.took[a] }, rand.Float64)
			if !slices.Equal(slices.Sorted(slices.Values(got)), addresses) {
				t.Fatalf("%s: %v", name, got)
			}
			first[got[0]]++
		}
		for _, a := range addresses {
			if d := first[a] - tc.want[a]; d < -150 || d > 150 {
				t.Errorf("%s: %s is first %d times of 3,000, want about %d: %s", name, a, first[a], tc.want[a], tc.why)
			}
		}
	}
	if got := weightedOrder(nil, nil, rand.Float64); len(got) != 0 {
		t.Errorf("%v of none", got)
	}
	if got := weightedOrder(addresses[:1], func(string) time.Duration { return 0 }, func() float64 { return 0.999999 }); len(got) != 1 {
		t.Errorf("%v of one", got)
	}
}

// A gateway that has just granted no further session is not dialed.
func TestDialGatewayHonorsBudget(t *testing.T) {
	a := idleAgent(t)
	ln := listen(t, "127.0.0.1")
	p := &peer{name: "east", uid: "u", gateways: []string{ln.Addr().String()}, healthy: 1}
	a.shares.recordBudget("u", 1)
	if _, _, err := a.dialGateway(t.Context(), p); reasonOf(err) != reasonGatewayBudget {
		t.Errorf("%v, want %s", err, reasonGatewayBudget)
	}
	a.shares.recordBudget("u", 2)
	raw, _, err := a.dialGateway(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	raw.Reset()
}

// refusingAgent returns an agent of a peer, whose dials are made by dial.
func refusingAgent(p *peer, dial func(address string) error) *Agent {
	a := &Agent{
		sessions: newSessions(),
		shares:   newConnShares(defaultLimits),
		monitor:  newLinkMonitor(slog.New(slog.DiscardHandler)),
		dialer: transport.Dialer{Timeout: gatewayDialTimeout, Dial: func(_ context.Context, address string) (net.Conn, error) {
			if err := dial(address); err != nil {
				return nil, err
			}
			here, there := net.Pipe()
			return here, errors.Join(there.Close())
		}},
	}
	s := &state{links: map[string]*peer{p.name: p}}
	a.state.Store(s)
	a.monitor.update(s)
	return a
}

var errRefused = &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}

// Behind one address there may be several gateways. A gateway that was killed refuses
// connections until the load balancer knows, and the others do not.
func TestDialGatewayAgainAfterRefusal(t *testing.T) {
	const once = true
	for name, tc := range map[string]struct {
		why         string
		once        bool // dialGatewayOnce
		failures    int  // dials that fail before one succeeds
		err         error
		least, most time.Duration
		want        string // the reason of the refusal, or empty
	}{
		"none refuses":       {"there is no pause", !once, 0, nil, 0, 0, ""},
		"one refuses":        {"the next dial may reach another gateway", !once, 1, errRefused, 0, 20 * time.Millisecond, ""},
		"six refuse":         {"the pauses grow", !once, 6, errRefused, 0, 1120 * time.Millisecond, ""},
		"all refuse":         {"the caller waits no longer than for an address that is silent", !once, 1000, errRefused, gatewayDialTimeout, gatewayDialTimeout, reasonUnreachable},
		"no caller waits":    {"the work is tried again later", once, 1, errRefused, 0, 0, reasonUnreachable},
		"there is no route":  {"another dial would end in the same way", !once, 1, syscall.ENETUNREACH, 0, 0, reasonUnreachable},
		"this node has none": {"another dial would end in the same way", !once, 1, syscall.EADDRNOTAVAIL, 0, 0, reasonUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dials, east := 0, peerAt("east", "balancer")
				a := refusingAgent(east, func(string) error {
					if dials++; dials <= tc.failures {
						return tc.err
					}
					return nil
				})
				dial := a.dialGateway
				if tc.once {
					dial = a.dialGatewayOnce
				}
				start := time.Now()
				raw, _, err := dial(t.Context(), east)
				got := ""
				if err == nil {
					raw.Close()
				} else {
					got = reasonOf(err)
				}
				if took := time.Since(start); got != tc.want || took < tc.least || took > tc.most {
					t.Errorf("%q after %v, want %q after %v to %v: %s", got, took, tc.want, tc.least, tc.most, tc.why)
				}
			})
		})
	}
}

// Callers on many nodes lose a gateway at the same moment, and must not dial it again at
// the same moments.
func TestPausesAfterRefusalAreRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := map[time.Duration]bool{}
		for range 20 {
			dials, east := 0, peerAt("east", "balancer")
			a := refusingAgent(east, func(string) error {
				if dials++; dials <= 3 {
					return errRefused
				}
				return nil
			})
			start := time.Now()
			raw, _, err := a.dialGateway(t.Context(), east)
			if err != nil {
				t.Fatal(err)
			}
			raw.Close()
			took[time.Since(start)] = true
		}
		if len(took) < 15 {
			t.Errorf("20 callers waited for %d different times", len(took))
		}
	})
}

// When no gateway of a link answers, a dial fails at once, and one that waits fails then.
func TestNoDialIsRepeatedOverAnUnusableLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials, east := 0, peerAt("east", "balancer")
		a := refusingAgent(east, func(string) error { dials++; return errRefused })
		makeUnusable(a.monitor, east)
		if a.monitor.isUsable(east.uid) {
			t.Fatal("the link is usable")
		}
		start := time.Now()
		if _, _, err := a.dialGateway(t.Context(), east); reasonOf(err) != reasonUnreachable {
			t.Error(err)
		}
		if took := time.Since(start); took != 0 || dials != 1 {
			t.Errorf("%d dials in %v, want one", dials, took)
		}
	})
}

// Each dial that fails makes its link suspected, because probes may have succeeded since
// the one before.
func TestLaterRefusalsMakeLinkSuspected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials, east := 0, peerAt("east", "balancer")
		var a *Agent
		suspected := func() bool {
			a.monitor.mu.Lock()
			defer a.monitor.mu.Unlock()
			return a.monitor.links[east.uid].health.Suspected()
		}
		a = refusingAgent(east, func(string) error {
			if dials++; dials == 2 {
				if !suspected() {
					t.Error("the first refusal does not make the link suspected")
				}
				a.monitor.mu.Lock()
				a.monitor.links[east.uid].health.Received(time.Now())
				a.monitor.mu.Unlock()
			}
			return errRefused
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a.dialGateway(ctx, east)
		if dials < 3 || !suspected() {
			t.Errorf("after %d dials the link is suspected: %v", dials, suspected())
		}
	})
}

// A dial that is refused follows the peer to its new addresses, and ends if its Link does.
func TestDialGatewayFollowsItsPeer(t *testing.T) {
	old := &peer{name: "east", uid: "east", gateways: []string{"old"}, healthy: 1}
	const change = 100 * time.Millisecond
	for name, tc := range map[string]struct {
		links map[string]*peer // after change
		ends  bool             // the dial ends soon after change
		want  string           // the address, or empty if the dial fails
	}{
		"addresses change":   {map[string]*peer{"east": {name: "east", uid: "east", gateways: []string{"new"}, healthy: 1}}, true, "new"},
		"no address is left": {map[string]*peer{"east": {name: "east", uid: "east"}}, true, ""},
		"made again":         {map[string]*peer{"east": {name: "east", uid: "other", gateways: []string{"new"}, healthy: 1}}, true, ""},
		"gone":               {map[string]*peer{}, true, ""},
		"nothing changes":    {map[string]*peer{"east": old}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := refusingAgent(old, func(address string) error {
					if address == "old" {
						return errRefused
					}
					return nil
				})
				start := time.Now()
				time.AfterFunc(change, func() { a.state.Store(&state{links: tc.links}) })
				raw, got, err := a.dialGateway(t.Context(), old)
				if err == nil {
					raw.Close()
				} else if reason := reasonOf(err); reason != reasonUnreachable {
					t.Errorf("the reason is %q", reason)
				}
				least, most := gatewayDialTimeout, gatewayDialTimeout
				if tc.ends {
					least, most = change, change+2*maxRefusedPause
				}
				if took := time.Since(start); got != tc.want || took < least || took > most {
					t.Errorf("%q after %v, want %q after %v to %v", got, took, tc.want, least, most)
				}
			})
		})
	}
}

// Renewals and preconnects are tried again later. They must not keep one of their workers
// while gateways refuse.
func TestBackgroundWorkDialsOnce(t *testing.T) {
	w := newHarnessAfterCall(t)
	c := w.west.sessions.Idle()[0].outbound
	for name, do := range map[string]func() error{
		"preconnect": func() error { return w.west.dialSession(c.sessionKey(), c, route.EndpointID{}) },
		"renewal":    func() error { return w.west.renewHandshake(t.Context(), &c, route.Hint{}, nil) },
	} {
		dials := 0
		w.west.dialer.Dial = func(context.Context, string) (net.Conn, error) { dials++; return nil, errRefused }
		if err := do(); reasonOf(err) != reasonUnreachable || dials != 1 {
			t.Errorf("%s: %d dials, %v, want one", name, dials, err)
		}
	}
}
