package agent

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

func TestDetours(t *testing.T) {
	all := []string{"a", "b", "c"}
	start := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		why  string
		do   func(d *detours)
		at   time.Duration
		want []string
	}{
		"nothing known": {"the controller's order stands", func(*detours) {}, 0, all},
		"first lost":    {"what failed comes last", func(d *detours) { d.saw(all, 1, start) }, time.Second, []string{"b", "c", "a"}},
		"two lost":      {"in their order", func(d *detours) { d.saw(all, 2, start) }, time.Second, []string{"c", "a", "b"}},
		"all lost":      {"then the controller's order is as good as any", func(d *detours) { d.saw(all, 2, start); d.saw([]string{"c", "a"}, 1, start) }, time.Second, []string{"a", "b", "c"}},
		"just resting":  {"one tick before its time it still rests", func(d *detours) { d.saw(all, 1, start) }, detourMin - 1, []string{"b", "c", "a"}},
		"rested":        {"then one call finds out", func(d *detours) { d.saw(all, 1, start) }, detourMin, all},
		"trial under way": {"and the others do not wait for it", func(d *detours) {
			d.saw(all, 1, start)
			d.order(all, start.Add(detourMin))
		}, detourMin + 1, []string{"b", "c", "a"}},
		"good again": {"it has its place back", func(d *detours) {
			d.saw(all, 1, start)
			d.saw(d.order(all, start.Add(detourMin)), 0, start.Add(detourMin))
		}, detourMin + 1, all},
		"lost twice": {"each time it rests twice as long", func(d *detours) {
			d.saw(all, 1, start)
			d.saw(d.order(all, start.Add(detourMin)), 1, start.Add(detourMin))
		}, 3*detourMin - 1, []string{"b", "c", "a"}},
		"unheard": {"where nobody hears what is sent is no place for the next call", func(d *detours) { d.lost("b", start) }, time.Second, []string{"a", "c", "b"}},
		"lost by many at once": {"a crowd of calls finds out the same thing once", func(d *detours) {
			for range 10 {
				d.saw(all, 1, start)
			}
		}, detourMin, all},
	} {
		t.Run(name, func(t *testing.T) {
			var d detours
			c.do(&d)
			if diff := cmp.Diff(c.want, d.order(all, start.Add(c.at))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

// An address that swallows what it gets slows down one call, and no other.
func TestBlackHoleSlowsOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{sessions: newSessions(), dialer: transport.Dialer{Timeout: reachTimeout, Dial: func(ctx context.Context, address string) (net.Conn, error) {
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
			raw, _, err := a.reach(t.Context(), p)
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
