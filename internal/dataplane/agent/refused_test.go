package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestCover(t *testing.T) {
	cases := map[string]struct {
		why                    string
		cidrs, refused, usable string
		want                   string
	}{
		"none": {why: "all links are usable", cidrs: "240.64.0.0/12", usable: "240.64.1.1"},
		"a link's own block": {
			why:     "one prefix is enough for all of its mirrors, and for those to come",
			cidrs:   "240.64.0.0/12",
			refused: "240.64.1.1 240.64.1.2 240.64.1.200",
			usable:  "240.64.0.1 240.64.2.0",
			want:    "240.64.1.0/24",
		},
		"two blocks": {
			why:     "no prefix is larger than a block, so that the next one is not in it",
			cidrs:   "240.64.0.0/12",
			refused: "240.64.2.1 240.64.3.1",
			want:    "240.64.2.0/24 240.64.3.0/24",
		},
		"shared block": {
			why:     "small ranges have small blocks",
			cidrs:   "240.64.0.0/22",
			refused: "240.64.1.1 240.64.1.3 240.64.1.130",
			usable:  "240.64.1.2 240.64.1.64",
			want:    "240.64.1.0/31 240.64.1.3/32 240.64.1.128/25",
		},
		"small range": {
			why:     "vip-guard takes no prefix that is larger than the range",
			cidrs:   "240.64.0.64/26",
			refused: "240.64.0.70",
			want:    "240.64.0.64/26",
		},
		"IPv6": {
			why:     "a mirror has a VIP in each family",
			cidrs:   "240.64.0.0/12 fd00::/108",
			refused: "fd00::1:7 240.64.1.7",
			usable:  "fd00::2:7",
			want:    "240.64.1.0/24 fd00::1:0/120",
		},
		"outside of the ranges": {
			why:     "the ranges have changed",
			cidrs:   "240.64.0.0/12",
			refused: "10.0.0.1",
		},
		"in both": {
			why:     "a usable address is never refused",
			cidrs:   "240.64.0.0/12",
			refused: "240.64.1.1 240.64.1.2",
			usable:  "240.64.1.1",
			want:    "240.64.1.2/31",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var cidrs []netip.Prefix
			for _, s := range strings.Fields(c.cidrs) {
				cidrs = append(cidrs, netip.MustParsePrefix(s))
			}
			addrs := func(list string) (out []netip.Addr) {
				for _, s := range strings.Fields(list) {
					out = append(out, netip.MustParseAddr(s))
				}
				return out
			}
			var got []string
			for _, p := range cover(cidrs, addrs(c.refused), addrs(c.usable)) {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(strings.Fields(c.want), got); diff != "" && len(got)+len(c.want) > 0 {
				t.Errorf("%s (-want +got)\n%s", c.why, diff)
			}
		})
	}
}

func FuzzCover(f *testing.F) {
	f.Add([]byte{1, 2, 3, 200}, []byte{4, 5})
	f.Fuzz(func(t *testing.T, refused, usable []byte) {
		cidrs := []netip.Prefix{netip.MustParsePrefix("240.64.0.0/23")}
		addrs := func(b []byte) (out []netip.Addr) {
			for i, n := range b {
				out = append(out, netip.AddrFrom4([4]byte{240, 64, byte(i) & 1, n}))
			}
			return out
		}
		out := cover(cidrs, addrs(refused), addrs(usable))
		holds := func(a netip.Addr) int {
			n := 0
			for _, p := range out {
				if p.Contains(a) {
					n++
				}
			}
			return n
		}
		for _, a := range addrs(usable) {
			if holds(a) > 0 {
				t.Errorf("%v is usable, and in %v", a, out)
			}
		}
		for _, a := range addrs(refused) {
			if n := holds(a); n != 1 && !slices.Contains(addrs(usable), a) {
				t.Errorf("%v is refused, and %d times in %v", a, n, out)
			}
		}
	})
}

// Of a state, the mirrors of unusable links are refused, and neither others nor the
// canary.
func TestRefusedVIPs(t *testing.T) {
	mirrorOf := func(link string) *mirror { return &mirror{link: link} }
	s := &state{
		vips: []netip.Prefix{netip.MustParsePrefix("240.64.0.0/12")},
		mirrors: map[netip.Addr]*mirror{
			netip.MustParseAddr("240.64.0.2"):  mirrorOf("east"),
			netip.MustParseAddr("240.64.0.4"):  nil, // two frontends have it
			netip.MustParseAddr("240.64.0.5"):  mirrorOf("east"),
			netip.MustParseAddr("240.64.1.1"):  mirrorOf("north"),
			netip.MustParseAddr("240.64.2.1"):  mirrorOf("east"),
			netip.MustParseAddr("240.64.2.99"): mirrorOf("east"),
		},
	}
	for unusable, want := range map[string]string{
		"":           "[]",
		"south":      "[]",
		"east":       "[240.64.0.2/31 240.64.0.5/32 240.64.2.0/24]",
		"north":      "[240.64.1.0/24]",
		"east north": "[240.64.0.2/31 240.64.0.5/32 240.64.1.0/24 240.64.2.0/24]",
	} {
		links := map[string]bool{}
		for _, l := range strings.Fields(unusable) {
			links[l] = true
		}
		var got []string
		for _, p := range s.refusedVIPs(links) {
			got = append(got, p.String())
		}
		if text := "[" + strings.Join(got, " ") + "]"; text != want {
			t.Errorf("unusable %q: %s, want %s", unusable, text, want)
		}
	}
}

// TestRefusedVIPsWithRoutes: a mirror of an unusable link is not refused if its routes
// send requests to a mirror of a usable one.
func TestRefusedVIPsWithRoutes(t *testing.T) {
	link := func(name string) *wire.Resource {
		l := &wire.Link{Name: name, Uid: name, TrustDomain: name + "-1"}
		return &wire.Resource{Body: &wire.Resource_Link{Link: l}}
	}
	mirror := func(name, link, vip string, routes ...*wire.RouteRules) *wire.Resource {
		return &wire.Resource{Body: &wire.Resource_Frontend{Frontend: &wire.Frontend{
			Namespace: "shop", Name: name, Vips: []string{vip},
			Ports: []*wire.FrontendPort{{Routes: routes}},
			Tiers: []*wire.Tier{{Backends: []*wire.Backend{{
				Link: link, Ports: []*wire.BackendPort{{Port: 80}}}}}}}}}
	}
	to := func(east, west uint32) *wire.RouteRules {
		rule := ruleTo(backendTo("east", east), backendTo("west", west), backendTo("missing", 1))
		return routesOf([]*wire.RouteMatch{{}}, rule)
	}
	view := must(nodestream.NewView(
		&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{
			TrustDomain: "local-1", HopKey: make([]byte, 32), VipCidrs: []string{"240.64.0.0/12"}}}},
		link("east"), link("west"),
		mirror("east", "east", "240.64.0.2"),
		mirror("moved", "east", "240.64.0.3", to(0, 100)),
		mirror("stays", "east", "240.64.0.4", to(100, 0)),
		mirror("west", "west", "240.64.1.1"),
	))(t)
	s := must(newState(view, noneRevoked, nil))(t)
	for unusable, want := range map[string]string{
		"east":      "[240.64.0.2/32 240.64.0.4/30]",
		"east west": "[240.64.0.2/31 240.64.0.4/30 240.64.1.0/24]",
		"west":      "[240.64.1.0/24]",
	} {
		links := map[string]bool{}
		for _, l := range strings.Fields(unusable) {
			links[l] = true
		}
		if got := fmt.Sprint(s.refusedVIPs(links)); got != want {
			t.Errorf("unusable %q: %s, want %s", unusable, got, want)
		}
	}
}

// vip-guard learns of a change at once, and every two seconds as long as there is
// something to refuse; and after a failure until it knows.
func TestRefusalsAreRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := idleAgent(t)
		a.state.Store(&state{
			vips:    []netip.Prefix{netip.MustParsePrefix("240.64.0.0/12")},
			mirrors: map[netip.Addr]*mirror{netip.MustParseAddr("240.64.1.1"): {link: "east"}},
		})
		east := &monitoredLink{peer: &peer{name: "east", gateways: []string{"192.0.2.1:4143"}}}
		a.monitor.links["uid"] = east
		var mu sync.Mutex
		var lists []int
		var fail error
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.refuseVIPs(ctx, func(list []netip.Prefix) error {
				mu.Lock()
				defer mu.Unlock()
				lists = append(lists, len(list))
				return fail
			})
		}()
		want := func(why string, want ...int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff(want, lists); diff != "" {
				t.Errorf("%s (-want +got)\n%s", why, diff)
			}
			lists = nil
		}
		bubble.Pass(time.Hour)
		want("nothing is refused, so nothing is said")
		a.monitor.setUsable(east, false)
		want("at once", 1)
		bubble.Pass(5 * time.Second)
		want("refreshed", 1, 1)
		a.monitor.setUsable(east, true)
		want("an empty list at once", 0)
		bubble.Pass(time.Hour)
		want("nothing is refused, so nothing is said")
		a.monitor.setUsable(east, false)
		mu.Lock()
		fail = errors.New("no guard")
		mu.Unlock()
		bubble.Pass(time.Second)
		lists = nil
		a.monitor.setUsable(east, true)
		want("the guard does not take it", 0)
		bubble.Pass(3 * time.Second)
		want("again", 0)
		cancel()
		<-done
	})
}

// setUsable makes a link usable or unusable.
func (m *linkMonitor) setUsable(l *monitoredLink, usable bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, was := time.Now(), l.health.Usable()
	if usable {
		l.health.Received(now.Add(time.Nanosecond))
	} else {
		l.health.SetAddresses(l.peer.gateways)
		l.health.Use(now.Add(-time.Minute))
		l.health.Suspect(now.Add(-time.Minute))
		for range 2 {
			l.health.ProbeEnded(l.peer.gateways[0], true)
		}
		l.health.Next(now, 0, func() float64 { return 0 })
	}
	m.recordChange(l, was)
}
