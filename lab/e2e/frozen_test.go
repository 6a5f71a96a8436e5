//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// onePod is a pod of shop that serves like bar.
func onePod(name, account string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: shop, labels: {app: %[1]s}}
spec:
  serviceAccountName: %[2]s
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
    - name: bar
      image: causeway.dev/shop:demo
      imagePullPolicy: Never
      args: [bar]
      env: [{name: POD_NAME, value: %[1]s}, {name: CLUSTER, value: here}]
      readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
---
`, name, account)
}

// itsService is an exported Service of that pod alone.
func itsService(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}
spec:
  selector: {app: %[1]s}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
`, name)
}

// addressIn is the address that a pod's own interface has, whatever the API server says.
func addressIn(ctx context.Context, c *cluster, pod string) (netip.Addr, error) {
	cmd, err := c.Exec(ctx, lab.InPod("shop", pod), "ip", "-4", "-o", "addr", "show", "dev", "eth0")
	if err != nil {
		return netip.Addr{}, err
	}
	said, err := output(cmd)
	if err != nil {
		return netip.Addr{}, err
	}
	fields := strings.Fields(said)
	if len(fields) < 4 {
		return netip.Addr{}, fmt.Errorf("eth0 of %s: %q", pod, said)
	}
	prefix, err := netip.ParsePrefix(fields[3])
	return prefix.Addr(), err
}

// changePlaces freezes a cluster's API server and makes the sandboxes of one and two anew, so that two has the address that everybody who
// listens to the API server knows as one's. thaw ends it.
func changePlaces(t *testing.T, c *cluster) (thaw func()) {
	t.Helper()
	ctx := t.Context()
	taken := have(addressIn(ctx, c, "one"))(t)
	must(t, c.Freeze("kube-apiserver"))
	thawed := false
	thaw = func() {
		if thawed {
			return
		}
		thawed = true
		if err := c.Thaw("kube-apiserver"); err != nil {
			t.Error(err)
		}
		// Who leads by a Lease may have given up meanwhile.
		if err := c.StartControlPlane(background()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(thaw)
	// The next address to be given is the one after the last.
	again := func(pod string, last netip.Addr, want func(netip.Addr) bool) {
		t.Helper()
		old := have(c.PodNetns(ctx, "shop", pod))(t)
		must(t, onNode(ctx, c, "sh", "-c", "for f in /run/cni/*/last_reserved_ip.0; do printf "+last.String()+" > $f; done"))
		must(t, c.KillSandbox(ctx, "shop", pod))
		within(t, 30*time.Second, pod+" is made anew", func() error {
			if now, err := c.PodNetns(ctx, "shop", pod); err != nil || now == old {
				return fmt.Errorf("it is in %s, %w", now, err)
			}
			at, err := addressIn(ctx, c, pod)
			if err == nil && !want(at) {
				t.Fatalf("%s has %v now, and had %v: the test shows nothing", pod, at, taken)
			}
			return err
		})
	}
	again("one", taken.Next(), func(a netip.Addr) bool { return a != taken })
	again("two", taken.Prev(), func(a netip.Addr) bool { return a == taken })
	return thaw
}

// mirrorsAgain waits until west mirrors a new Service of east. Requests to a frozen API server hang, and Leases expire. So it can take some
// time until controllers follow changes again, and later tests want new mirrors sooner.
func mirrorsAgain(t *testing.T) {
	t.Helper()
	ctx, manifest := background(), service("again", exported, httpPort)
	must(t, east.kubectl(ctx, manifest, "apply", "-f", "-"))
	start := time.Now()
	must(t, poll(ctx, 2*time.Minute, func() error {
		if _, err := clusterIP(ctx, west, "again-east"); err != nil {
			return err
		}
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://again-east.shop/")
		return err
	}))
	t.Logf("a new Service is mirrored after %.1f s", time.Since(start).Seconds())
	must(t, east.kubectl(ctx, manifest, "delete", "-f", "-"))
	must(t, gone(t, "again-east"))
}

// TestPodsRemadeUnseen: while the API server is frozen, two pods are started anew, one with the address of the other. Neither is taken for
// the other, as a caller or as a destination.
func TestPodsRemadeUnseen(t *testing.T) {
	up := func(t *testing.T, c *cluster, manifest string) {
		t.Helper()
		must(t, c.kubectl(t.Context(), manifest, "apply", "-f", "-"))
		t.Cleanup(func() {
			if err := c.kubectl(background(), manifest, "delete", "--ignore-not-found", "-f", "-"); err != nil {
				t.Error(err)
			}
			serves(t)
			mirrorsAgain(t)
		})
		must(t, c.kubectl(t.Context(), "", "-n", "shop", "wait", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=60s"))
	}

	t.Run("as callers", func(t *testing.T) {
		ctx, target := t.Context(), "http://"+mirrorOf(t, "bar-east", 80)
		up(t, west, onePod("one", "client")+onePod("two", "guest"))
		calls := func(pod string) error { _, err := west.curl(ctx, pod, "-sSf", "-m5", target); return err }
		for _, pod := range []string{"one", "two"} {
			within(t, soon, pod+" calls", func() error { return calls(pod) })
		}
		before := have(west.metrics(ctx, "agent"))(t)
		thaw := changePlaces(t, west)
		since := time.Now()
		for range 2 {
			for _, pod := range []string{"one", "two"} {
				if err := calls(pod); err == nil {
					t.Errorf("%s is served while nobody can know who it is", pod)
				}
			}
		}
		lines := have(east.logs(ctx, "agent", since))(t)
		for _, e := range lines {
			if e.text("msg") == "connection served" {
				t.Errorf("east's agent served %s", e.text("caller"))
			}
		}
		thaw()
		for i, pod := range []string{"one", "two"} {
			since := time.Now()
			within(t, time.Minute, pod+" is known again", func() error { return calls(pod) })
			who := callerID(t, []string{"client", "guest"}[i])
			within(t, soon, "it is seen as itself", func() error {
				lines, err := east.logs(ctx, "agent", since)
				seen := slices.DeleteFunc(lines, func(e entry) bool { return e.text("msg") != "connection served" })
				if err == nil && (len(seen) == 0 || slices.ContainsFunc(seen, func(e entry) bool { return e.text("caller") != who })) {
					err = fmt.Errorf("east's agent saw %v, want %s alone", seen, who)
				}
				return err
			})
		}
		after := have(west.metrics(ctx, "agent"))(t)
		const name, way, reason = "causeway_agent_refused_total", `direction="outbound"`, `reason="pod_moved"`
		if n := count(after, name, way, reason) - count(before, name, way, reason); n < 2 {
			t.Errorf("two, at one's address, was refused %v times as %s, want 2: the test shows nothing", n, reason)
		}
	})

	t.Run("as destinations", func(t *testing.T) {
		ctx := t.Context()
		up(t, east, onePod("one", "bar")+onePod("two", "bar")+itsService("one")+itsService("two"))
		var targets []string
		calls := func(i int) (string, error) { return west.curl(ctx, "client", "-sSf", "-m5", targets[i]) }
		for i, pod := range []string{"one", "two"} {
			within(t, soon, pod+"-east is mirrored", func() error { _, err := clusterIP(ctx, west, pod+"-east"); return err })
			targets = append(targets, "http://"+mirrorOf(t, pod+"-east", 80))
			within(t, soon, pod+"-east answers", func() error { _, err := calls(i); return err })
		}
		thaw := changePlaces(t, east)
		for range 2 {
			for i := range targets {
				if said, err := calls(i); err == nil {
					t.Errorf("%s answered %q while nobody can know who is where", targets[i], said)
				}
			}
		}
		thaw()
		for i, pod := range []string{"one", "two"} {
			// A kubelet whose word of readiness was lost says it again after 20 to 40 s.
			within(t, 90*time.Second, pod+" answers again", func() error {
				said, err := calls(i)
				if err == nil && !strings.Contains(said, "served by "+pod+" ") {
					t.Fatalf("%s answered %q", targets[i], said)
				}
				return err
			})
		}
	})
}
