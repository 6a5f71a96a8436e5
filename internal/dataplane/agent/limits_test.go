package agent

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/identity"
)

func TestLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		why       string
		set       Limits
		possible  int // by descriptors and memory
		want      Limits
		ofAccount int
	}{
		"default": {"values of 0 mean the default", Limits{}, 1 << 20,
			Limits{Connections: 20_000, ConnectionsPerLink: 10_000, ConnectionsPerPod: 10_000, ConnectionRatePerPod: 2_000}, 5_000},
		"little memory": {"the shares shrink with the whole", Limits{}, 1_000,
			Limits{Connections: 1_000, ConnectionsPerLink: 500, ConnectionsPerPod: 500, ConnectionRatePerPod: 2_000}, 250},
		"nearly nothing": {"one connection is possible", Limits{}, 1,
			Limits{Connections: 1, ConnectionsPerLink: 1, ConnectionsPerPod: 1, ConnectionRatePerPod: 2_000}, 1},
		"set": {"each value counts for itself", Limits{Connections: 30_000, ConnectionsPerLink: 20_000, ConnectionsPerPod: 100, ConnectionRatePerPod: 50}, 1 << 20,
			Limits{Connections: 30_000, ConnectionsPerLink: 20_000, ConnectionsPerPod: 100, ConnectionRatePerPod: 50}, 7_500},
		"many of a pod": {"the pod's account may have as many", Limits{ConnectionsPerPod: 12_000}, 1 << 20,
			Limits{Connections: 20_000, ConnectionsPerLink: 10_000, ConnectionsPerPod: 12_000, ConnectionRatePerPod: 2_000}, 12_000},
		"more than all": {"memory bounds every other limit", Limits{Connections: 50_000, ConnectionsPerLink: 40_000, ConnectionsPerPod: 40_000}, 10_000,
			Limits{Connections: 10_000, ConnectionsPerLink: 10_000, ConnectionsPerPod: 10_000, ConnectionRatePerPod: 2_000}, 10_000},
	} {
		got := tc.set.resolve(func(most int, each budget.Cost) int {
			if each == requestCost {
				return 4 // requests have a limit of their own
			}
			if each != connectionCost {
				t.Errorf("%s: asked for connections of %+v", name, each)
			}
			return min(most, tc.possible)
		})
		if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreUnexported(Limits{})); diff != "" {
			t.Errorf("%s: %s (-want +got):\n%s", name, tc.why, diff)
		}
		if got.requests != 4 {
			t.Errorf("%s: %d requests, want 4", name, got.requests)
		}
		if got.perAccount != tc.ofAccount {
			t.Errorf("%s: an account may have %d, want %d", name, got.perAccount, tc.ofAccount)
		}
	}
}

// What an operator sets is what the agent enforces.
func TestLimitsAreEnforced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := idleAgent(t)
		windows := a.shares.windows
		a.setLimits(Limits{Connections: 200, ConnectionsPerLink: 60, ConnectionsPerPod: 20, ConnectionRatePerPod: 10}.resolve(
			func(most int, _ budget.Cost) int { return most }))
		if a.shares.windows != windows {
			t.Error("the metric of windows shows a budget that is not used")
		}

		n := 0
		for a.metrics.acquire(outbound) {
			n++
		}
		if got := testutil.ToFloat64(a.metrics.open.WithLabelValues(outbound)); n != 200 || got != 200 {
			t.Errorf("%d connections, and %v are counted, want 200", n, got)
		}
		if n := a.limits.maxIdleRequests(); n != 50 {
			t.Errorf("%d idle sessions for requests, want a quarter", n)
		}

		address := netip.MustParseAddr("10.0.0.1")
		n, err := acquireAll(func() (func(), error) { return a.shares.acquireSource(address) })
		if n != 20 || reasonOf(err) != reasonSourceShare {
			t.Errorf("a pod gets %d connections, then %v; want 20", n, err)
		}
		for direction, acquire := range map[string]func(account string) (func(), error){
			outbound: func(account string) (func(), error) {
				return a.shares.acquireOutbound(&outboundConn{caller: &pod{namespace: "shop", serviceAccount: account}, peer: &peer{uid: "east"}})
			},
			inbound: func(account string) (func(), error) {
				return a.shares.acquireInbound(&inboundConn{caller: must(identity.NewName("east-1", "shop", account))(t), decision: admit.Decision{Link: admit.Link{UID: "east"}}})
			},
		} {
			first, err := acquireAll(func() (func(), error) { return acquire("a") })
			if first != 50 || reasonOf(err) != reasonAccountShare {
				t.Errorf("%s: an account gets %d, then %v; want a quarter", direction, first, err)
			}
			second, err := acquireAll(func() (func(), error) { return acquire("b") })
			if first+second != 60 || reasonOf(err) != reasonLinkShare {
				t.Errorf("%s: a link gets %d, then %v; want 60", direction, first+second, err)
			}
		}

		burst := func() (n int) {
			for a.rates.pods.Allow(address) {
				n++
			}
			return n
		}
		if n := burst(); n != 20 {
			t.Errorf("a pod opens %d connections at once, want twice the rate", n)
		}
		bubble.Pass(time.Second)
		if n := burst(); n != 10 {
			t.Errorf("a pod opens %d connections in a second, want 10", n)
		}
		n = 0
		for a.rates.accounts.Allow(account{"shop", "a"}) {
			n++
		}
		if n != 40 {
			t.Errorf("the pods of an account open %d connections at once, want twice as many as a pod", n)
		}
	})
}
