//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/internal/mirror"
)

// scaleControllers gives clusters as many controllers, and waits until they are ready.
func scaleControllers(t *testing.T, n int, clusters ...*cluster) {
	t.Helper()
	var all errgroup.Group
	for _, c := range clusters {
		all.Go(func() error {
			err := c.kubectl(background(), "", "-n", system, "scale", "deployment", "causeway-controller", fmt.Sprintf("--replicas=%d", n))
			if err != nil {
				return err
			}
			return poll(background(), time.Minute, func() error { return c.controllers(background(), n) })
		})
	}
	if err := all.Wait(); err != nil {
		t.Errorf("have %d controllers: %v", n, err)
	}
}

// TestChangesWhileAway: whatever happens on both sides while no controller runs on either is made good when they are back, all at once.
func TestChangesWhileAway(t *testing.T) {
	ctx := t.Context()
	standing := []string{"w-gone", "w-unmarked", "w-moved", "w-lost", "w-bent"}
	for _, name := range standing {
		offer(t, service(name, exported, httpPort), name+"-east")
	}
	made := service("w-new", exported, httpPort) + service("w-clash", exported, httpPort)
	t.Cleanup(func() {
		_ = east.kubectl(background(), made, "delete", "--ignore-not-found", "-f", "-")
		if err := errors.Join(gone(t, "w-new-east"), gone(t, "w-clash-east")); err != nil {
			t.Error(err)
		}
	})
	for _, name := range standing {
		within(t, soon, name+" is mirrored", func() error { return reached(t, name+"-east") })
	}
	mine := strings.ReplaceAll(usersOwn, "toy-east", "w-clash-east")
	t.Cleanup(func() { _ = west.kubectl(background(), mine, "delete", "--ignore-not-found", "-f", "-") })
	n := len(have(west.pods(ctx, "controller"))(t))
	t.Cleanup(func() { scaleControllers(t, n, west, east); serves(t) })

	scaleControllers(t, 0, west, east)
	must(t, east.kubectl(ctx, "", "-n", "shop", "delete", "service", "w-gone"))
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", "w-unmarked", "causeway.dev/export-"))
	patchPorts(t, "w-moved", `[{"name":"web","port":8000,"targetPort":"http"}]`)
	must(t, east.kubectl(ctx, made, "apply", "-f", "-"))
	must(t, west.kubectl(ctx, mine, "apply", "-f", "-"))
	must(t, west.kubectl(ctx, "", "-n", "shop", "delete", "service", "w-lost-east"))
	slice := west.slice(t, "w-bent-east").Name
	must(t, west.patch(ctx, "slice", "w-bent-east", slice, `{"endpoints":[{"addresses":["`+vip(t, "baz-east")+`"]}]}`))
	must(t, west.kubectl(ctx, "", "-n", "shop", "delete", "endpointslice", west.slice(t, "w-moved-east").Name))
	before := have(west.serviceJSON(ctx, "w-clash-east"))(t)

	since := time.Now()
	scaleControllers(t, n, west, east)
	for what, done := range map[string]func() error{
		"deleted":            func() error { return left(t, "w-gone-east") },
		"no longer exported": func() error { return left(t, "w-unmarked-east") },
		"port and slice": func() error {
			return errors.Join(ports(t, "w-moved-east", 8000), answered(t, "http://w-moved-east.shop:8000/"))
		},
		"exported meanwhile":    func() error { return reached(t, "w-new-east") },
		"mirror deleted":        func() error { return reached(t, "w-lost-east") },
		"slice bent to another": func() error { return reached(t, "w-bent-east") },
		"a clash":               func() error { return west.complains(t, "east", "shop/w-clash-east", mirror.NameTaken) },
		"and its Event":         func() error { return west.told(t, since, "Link", "east", mirror.NameTaken, "w-clash-east") },
	} {
		within(t, 20*time.Second, what, done)
	}
	if after := have(west.serviceJSON(ctx, "w-clash-east"))(t); after != before {
		t.Errorf("the user's Service was %s and is %s", before, after)
	}
	must(t, west.kubectl(ctx, mine, "delete", "-f", "-"))
	within(t, soon, "its name free, the last one stands too", func() error { return errors.Join(reached(t, "w-clash-east"), west.contented(t, "east")) })
}

// callerPod is the manifest of a pod of west's shop that never restarts.
func callerPod(name, account string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop}
spec:
  serviceAccountName: %s
  automountServiceAccountToken: false
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: causeway.dev/shop:demo, imagePullPolicy: Never, args: [client]}]
`, name, account)
}

// TestAddressReused: a pod that gets the address of one that has finished is never taken for it, also not while no controller can tell
// the agent who it is: then it waits two seconds, and is reset.
func TestAddressReused(t *testing.T) {
	ctx := t.Context()
	t.Cleanup(func() {
		_ = west.kubectl(background(), "", "-n", "shop", "delete", "pod", "first", "second", "--ignore-not-found")
	})
	start := func(name, account string) netip.Addr {
		t.Helper()
		must(t, west.kubectl(ctx, callerPod(name, account), "apply", "-f", "-"))
		must(t, west.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/"+name, "--timeout=30s"))
		p := have(west.api.CoreV1().Pods("shop").Get(ctx, name, getOptions))(t)
		return have(netip.ParseAddr(p.Status.PodIP))(t)
	}
	target := "http://" + mirrorOf(t, "bar-east", 80)
	address := start("first", "client")
	since := time.Now()
	within(t, soon, "the first pod calls", func() error { _, err := west.curl(ctx, "first", "-sSf", "-m3", target); return err })

	n := len(have(west.pods(ctx, "controller"))(t))
	t.Cleanup(func() { scaleControllers(t, n, west); serves(t) })
	scaleControllers(t, 0, west)
	must(t, west.KillContainer(ctx, "shop", "first", "client", syscall.SIGKILL))
	must(t, west.kubectl(ctx, "", "-n", "shop", "wait", "--for=jsonpath={.status.phase}=Failed", "pod/first", "--timeout=30s"))
	within(t, soon, "its address is free", func() error { return onNode(ctx, west, "sh", "-c", "! ls /run/cni/*/"+address.String()) })
	// The next address to be given is the one after the last.
	must(t, onNode(ctx, west, "sh", "-c", "for f in /run/cni/*/last_reserved_ip.0; do printf "+address.Prev().String()+" > $f; done"))
	if again := start("second", "guest"); again != address {
		t.Fatalf("the second pod has %v, want %v again: the test shows nothing", again, address)
	}

	begun := time.Now()
	said, err := west.curl(ctx, "second", "-sS", "-m10", target)
	if took := time.Since(begun); err == nil || took < 1500*time.Millisecond || took > 4*time.Second {
		t.Errorf("unknown to the agent the second pod got %q, %v after %.1f s, want a reset after 2 s", said, err, took.Seconds())
	}
	scaleControllers(t, n, west)
	within(t, 20*time.Second, "known, it is served", func() error { _, err := west.curl(ctx, "second", "-sSf", "-m3", target); return err })

	within(t, 5*time.Second, "each is seen as itself, and nobody as another", func() error {
		lines, err := east.logs(ctx, "agent", since)
		if err != nil {
			return err
		}
		var who []string
		for _, e := range lines {
			if e.text("msg") == "connection served" {
				who = append(who, e.text("caller"))
			}
		}
		if want := []string{callerID(t, "client"), callerID(t, "guest")}; !slices.Equal(slices.Compact(who), want) {
			return fmt.Errorf("east's agent saw %v, want %v", who, want)
		}
		return nil
	})
}
