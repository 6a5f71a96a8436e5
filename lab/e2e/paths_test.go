//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pathMTU is smaller than a segment of full size.
const pathMTU = 1300

// TestCheckNamesBlackHole: the network drops large packets in one direction without an
// ICMP error. Small packets pass, so addresses, streams and conditions look healthy.
// `causeway check` names the direction in both clusters, each from its own side.
func TestCheckNamesBlackHole(t *testing.T) {
	const to, from = "large packets to the peer are lost", "large packets from the peer are lost"
	for cluster, want := range map[string]struct{ west, east string }{
		"east": {west: to, east: from},
		"west": {west: from, east: to},
	} {
		t.Run("to "+cluster, func(t *testing.T) {
			must(t, west.lab.Narrow(t.Context(), cluster, pathMTU))
			t.Cleanup(func() {
				must(t, west.lab.Widen(background(), cluster))
				serves(t)
				sound(t)
			})
			named(t, west, time.Minute, quick, finding{"address", "east", "fail", want.west})
			named(t, east, time.Minute, quick, finding{"address", "west", "fail", want.east})
		})
	}
}

// TestCheckNamesSplitHello: a middlebox before east's gateway resets connections whose
// ClientHello is not whole in the first segment, or loses that segment. check names it and
// the chart's value that helps, and with that value calls and streams pass it.
func TestCheckNamesSplitHello(t *testing.T) {
	ctx := t.Context()
	link := have(west.link(ctx, "east"))(t)
	gateway := have(netip.ParseAddrPort(link.Spec.Gateways[0]))(t).Addr()
	t.Cleanup(func() {
		must(t, west.install(background())) // with the default value
		serves(t)
		sound(t)
	})
	type change func(context.Context, netip.Addr) error
	for name, middlebox := range map[string]struct{ add, remove change }{
		"reset": {west.lab.Strict, west.lab.Lenient},
		"lost":  {west.lab.LoseHellos, west.lab.PassHellos},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, west.install(ctx))
			serves(t)
			must(t, middlebox.add(ctx, gateway))
			t.Cleanup(func() { must(t, middlebox.remove(background(), gateway)) })
			named(t, west, time.Minute, quick,
				finding{"address", "east", "fail", "connections fail whose TLS ClientHello needs two TCP segments"})
			_, tag, _ := strings.Cut(os.Getenv("CAUSEWAY_IMAGE"), ":")
			have(west.causeway(ctx, "install", "--cluster-name", "west", "--set", "image.tag="+tag,
				"--set", "tls.postQuantum=false"))(t)
			within(t, time.Minute, "new controllers have their streams", func() error {
				lines, err := check(ctx, quick...)
				if err == nil && len(failing(lines)) > 0 {
					err = fmt.Errorf("%+v", failing(lines))
				}
				return err
			})
			allAnswered(t, 50)
		})
	}
}

// allAnswered makes n calls of bar, each over a connection of its own, and wants no failure.
func allAnswered(t *testing.T, n int) {
	t.Helper()
	client, address := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	for range n {
		if _, err := fetch(t.Context(), client, address); err != nil {
			t.Errorf("a call fails: %v", err)
		}
	}
}

// failing returns the results that are failures.
func failing(lines []checked) []checked {
	var out []checked
	for _, l := range lines {
		if l.State == "fail" {
			out = append(out, l)
		}
	}
	return out
}

// TestToleratedClocks: the clocks of all processes of Causeway in a cluster are wrong by less
// than check fails for, and at last those of both clusters in opposite directions. Calls work
// all the same, and check warns at most.
func TestToleratedClocks(t *testing.T) {
	ctx := t.Context()
	image := filepath.Join(setting("CAUSEWAY_IMAGES", "../../build"), "causeway-ahead.tar")
	for _, c := range []*cluster{east, west} {
		must(t, c.LoadImage(ctx, image))
	}
	t.Cleanup(func() {
		for _, c := range []*cluster{east, west} {
			must(t, c.clock(background(), 0))
			must(t, c.install(background()))
		}
		serves(t)
		sound(t)
	})
	for _, clocks := range []struct {
		east, west int    // seconds ahead
		state      string // of check in east
	}{{15, 0, "ok"}, {85, 0, "warning"}, {-85, 85, "warning"}} {
		must(t, east.clock(ctx, clocks.east))
		must(t, west.clock(ctx, clocks.west))
		serves(t)
		allAnswered(t, 50)
		within(t, 30*time.Second, "check knows the clocks", func() error {
			lines, err := checkIn(ctx, east, quick...)
			if err != nil {
				return err
			}
			if failures := failing(lines); len(failures) > 0 {
				return fmt.Errorf("clocks %+v: %+v", clocks, failures)
			}
			if got := worst(lines, "clock"); got != clocks.state {
				return fmt.Errorf("clocks %+v: the worst result is %s: %+v", clocks, got, bad(lines))
			}
			return nil
		})
	}
}

// worst returns the worst state of the results of a check.
func worst(lines []checked, check string) string {
	states := []string{"ok", "warning", "fail"}
	most := 0
	for _, l := range lines {
		if l.Check == check {
			most = max(most, slices.Index(states, l.State))
		}
	}
	return states[most]
}

// clock makes the wall clocks of Causeway's processes wrong by some seconds, and waits for the
// new ones; 0 leaves the clocks to the image. The image must be that of a wrong clock.
func (c *cluster) clock(ctx context.Context, seconds int) error {
	workloads := map[string]string{"controller": "deployment/", "gateway": "deployment/", "agent": "daemonset/"}
	for component, kind := range workloads {
		env := map[string]any{"name": "CAUSEWAY_TEST_CLOCK"}
		container := map[string]any{"name": component, "env": []any{env}}
		if seconds == 0 {
			env["$patch"] = "delete"
		} else {
			env["value"] = fmt.Sprint(seconds)
			container["image"] = "causeway.dev/causeway:ahead"
		}
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{
			"spec": map[string]any{"containers": []any{container}},
		}}})
		if err != nil {
			return err
		}
		if err := c.kubectl(ctx, "", "-n", system, "patch", kind+"causeway-"+component, "-p", string(patch)); err != nil {
			return err
		}
	}
	for component, kind := range workloads {
		if err := c.kubectl(ctx, "", "-n", system, "rollout", "status", kind+"causeway-"+component, "--timeout=90s"); err != nil {
			return err
		}
	}
	return nil
}
