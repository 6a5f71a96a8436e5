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
	"github.com/prometheus/client_golang/prometheus"

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

// Behind one address there may be several gateways. A gateway that was killed refuses
// connections until the load balancer knows, and the others do not.
func TestDialGatewayAgainAfterRefusal(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for name, tc := range map[string]struct {
		why      string
		failures int   // dials that fail before one succeeds
		err      error // of those
		took     time.Duration
		want     string // the reason of the refusal, or empty
	}{
		"none refuses":       {"there is no pause", 0, nil, 0, ""},
		"one refuses":        {"the next dial may reach another gateway", 1, refused, 10 * time.Millisecond, ""},
		"six refuse":         {"the pauses grow to a quarter of a second", 6, refused, 560 * time.Millisecond, ""},
		"all refuse":         {"the caller waits no longer than for an address that is silent", 1000, refused, gatewayDialTimeout, reasonUnreachable},
		"there is no route":  {"another dial would end in the same way", 1, syscall.ENETUNREACH, 0, reasonUnreachable},
		"this node has none": {"another dial would end in the same way", 1, syscall.EADDRNOTAVAIL, 0, reasonUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dials := 0
				a := &Agent{
					sessions: newSessions(),
					shares:   newConnShares(defaultLimits),
					monitor:  newLinkMonitor(slog.New(slog.DiscardHandler), prometheus.NewRegistry()),
					dialer: transport.Dialer{Timeout: gatewayDialTimeout, Dial: func(context.Context, string) (net.Conn, error) {
						if dials++; dials <= tc.failures {
							return nil, tc.err
						}
						here, there := net.Pipe()
						return here, errors.Join(there.Close())
					}},
				}
				start := time.Now()
				raw, _, err := a.dialGateway(t.Context(), &peer{name: "east", gateways: []string{"balancer"}, healthy: 1})
				got := ""
				if err == nil {
					raw.Close()
				} else {
					got = reasonOf(err)
				}
				if got != tc.want || time.Since(start) != tc.took {
					t.Errorf("%q after %v, want %q after %v: %s", got, time.Since(start), tc.want, tc.took, tc.why)
				}
			})
		})
	}
}

// A dial that is refused follows the peer to its new addresses, and ends if its Link does.
func TestDialGatewayFollowsItsPeer(t *testing.T) {
	old := &peer{name: "east", uid: "east", gateways: []string{"old"}, healthy: 1}
	for name, tc := range map[string]struct {
		links map[string]*peer // 100 ms later
		took  time.Duration    // 150 ms: the next dial
		want  string           // the address, or empty if the dial fails
	}{
		"addresses change":   {map[string]*peer{"east": {name: "east", uid: "east", gateways: []string{"new"}, healthy: 1}}, 150 * time.Millisecond, "new"},
		"no address is left": {map[string]*peer{"east": {name: "east", uid: "east"}}, 150 * time.Millisecond, ""},
		"made again":         {map[string]*peer{"east": {name: "east", uid: "other", gateways: []string{"new"}, healthy: 1}}, 150 * time.Millisecond, ""},
		"gone":               {map[string]*peer{}, 150 * time.Millisecond, ""},
		"nothing changes":    {map[string]*peer{"east": old}, gatewayDialTimeout, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &Agent{
					sessions: newSessions(),
					shares:   newConnShares(defaultLimits),
					monitor:  newLinkMonitor(slog.New(slog.DiscardHandler), prometheus.NewRegistry()),
					dialer: transport.Dialer{Timeout: gatewayDialTimeout, Dial: func(_ context.Context, address string) (net.Conn, error) {
						if address == "old" {
							return nil, syscall.ECONNREFUSED
						}
						here, there := net.Pipe()
						return here, errors.Join(there.Close())
					}},
				}
				a.state.Store(&state{links: map[string]*peer{"east": old}})
				start := time.Now()
				time.AfterFunc(100*time.Millisecond, func() { a.state.Store(&state{links: tc.links}) })
				raw, got, err := a.dialGateway(t.Context(), old)
				if err == nil {
					raw.Close()
				} else if reason := reasonOf(err); reason != reasonUnreachable {
					t.Errorf("the reason is %q", reason)
				}
				if got != tc.want || time.Since(start) != tc.took {
					t.Errorf("%q after %v, want %q after %v", got, time.Since(start), tc.want, tc.took)
				}
			})
		})
	}
}
