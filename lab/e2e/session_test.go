//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sessionsThat are how many sessions of west's agents that has become of.
func sessionsThat(t *testing.T, what string) float64 {
	t.Helper()
	m := have(west.metrics(t.Context(), "agent"))(t)
	return count(m, "causeway_agent_sessions_total", `direction="outbound"`, `outcome="`+what+`"`)
}

// TestConnectionsShareSessions: connections that follow each other need no handshake of their own.
func TestConnectionsShareSessions(t *testing.T) {
	serves(t)
	client, url := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	const calls = 200
	made, reused := sessionsThat(t, "created"), sessionsThat(t, "reused")
	start := time.Now()
	for range calls {
		if _, err := fetch(t.Context(), client, url); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(start)
	made, reused = sessionsThat(t, "created")-made, sessionsThat(t, "reused")-reused
	if made > calls/10 || reused < calls*8/10 {
		t.Errorf("%v sessions were made and %v reused for %d calls", made, reused, calls)
	}
	t.Logf("%d calls: %v sessions made, %v reused, %.1f ms each", calls, made, reused, took.Seconds()*1000/calls)
}

// TestOpenConnectionsOutliveTheirService: an open connection survives what it would survive within a cluster: a selector that moves to
// other pods, and a port that gets another number and a neighbor.
func TestOpenConnectionsOutliveTheirService(t *testing.T) {
	ctx := t.Context()
	const name = "keep"
	offer(t, `
apiVersion: v1
kind: Service
metadata:
  name: keep
  namespace: shop
  labels: {causeway.dev/export: "true"}
spec:
  selector: {app: bar}
  ports: [{port: 7001, targetPort: 7001}]
---
`, "keep-east")
	client, address := netOf(t, west, "client"), mirrorOf(t, "keep-east", 7001)
	within(t, soon, "the mirror is called", func() error { return echoed(ctx, client, address, 5*time.Second) })
	open := hold(t, "echo", client, address, "hello\n")
	patch := func(what string) {
		t.Helper()
		must(t, east.kubectl(ctx, "", "-n", "shop", "patch", "service", name, "--type=merge", "-p", what))
	}
	patch(`{"spec":{"selector":{"app":"nobody-yet"}}}`)
	within(t, soon, "new connections are refused", func() error {
		if echoed(ctx, client, address, 5*time.Second) == nil {
			return errNotYet
		}
		return nil
	})
	sleep(ctx, 3*time.Second)
	open.lives(t)
	patch(`{"spec":{"selector":{"app":"bar"},"ports":[{"name":"echo","port":7001,"targetPort":7001},{"name":"more","port":7002,"targetPort":7001}]}}`)
	within(t, soon, "the new port is mirrored and answers", func() error {
		return echoed(ctx, client, mirrorOf(t, "keep-east", 7002), 5*time.Second)
	})
	open.lives(t)
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", name, "causeway.dev/export-"))
	open.isReset(t, time.Now(), 10*time.Second)
}

// echoed sends a line to an echo over a new connection from a network namespace, and waits
// for the answer.
func echoed(ctx context.Context, ns, address string, within time.Duration) error {
	c, err := dial(ctx, ns, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	_, err = line(c, within)
	return err
}

// TestSourcePortsDoNotRunOut: thousands of short connections to one pod, many at a time, do
// not run out of the node's local ports, of which this node has few. Open streams live on
// meanwhile.
func TestSourcePortsDoNotRunOut(t *testing.T) {
	ctx := t.Context()
	serves(t)
	node := have(east.NodeNetns(""))(t)
	sysctl := func(value string) error {
		return exec.CommandContext(context.WithoutCancel(ctx), "nsenter", "--net="+node, "sysctl", "-q", "-w", "net.ipv4.ip_local_port_range="+value).Run()
	}
	was := have(exec.CommandContext(ctx, "nsenter", "--net="+node, "sysctl", "-n", "net.ipv4.ip_local_port_range").Output())(t)
	must(t, sysctl("40000 40999"))
	t.Cleanup(func() { must(t, sysctl(strings.TrimSpace(string(was)))) })
	sleep(ctx, 11*time.Second) // the agent knows it by then
	s := openStore(t, east)
	streams, wait := s.openStreams(t), s.startCopies(t, copyTime())
	client, address := netOf(t, west, "client"), mirrorOf(t, "bar-east", 7001) // requests of HTTP would share connections to the pod
	const calls, workers = 3000, 16
	var began, failed atomic.Int64
	var work sync.WaitGroup
	for range workers {
		work.Go(func() {
			for began.Add(1) <= calls {
				if err := echoed(ctx, client, address, 15*time.Second); err != nil && failed.Add(1) < 4 {
					t.Log(err)
				}
			}
		})
	}
	work.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d short connections, %d at a time, failed on a node with 1,000 local ports", n, calls, workers)
	}
	live(t, streams, "thousands of connections", 5*time.Second)
	wait()
}

// TestACutOfTheNetworkEndsNothing: for 45 s nothing gets from one cluster to the other. No open connection is reset, neither an idle one
// nor one that goes on sending, and no byte is lost.
func TestACutOfTheNetworkEndsNothing(t *testing.T) {
	const cut = 45 * time.Second
	ctx := t.Context()
	serves(t)
	client := netOf(t, west, "client")
	idle := hold(t, "idle connection", client, mirrorOf(t, "bar-east", 7000), "")
	busy := have(dial(ctx, client, mirrorOf(t, "bar-east", 7001)))(t)
	defer busy.Close()
	must(t, busy.SetDeadline(time.Now().Add(cut+2*time.Minute)))
	have(io.WriteString(busy, "0\n"))(t)
	lines := bufio.NewReader(busy)
	if said := have(lines.ReadString('\n'))(t); said != "0\n" {
		t.Fatalf("the echo says %q", said)
	}
	mend := cutWAN(t)
	start, sent := time.Now(), 0
	for time.Since(start) < cut {
		sent++
		have(fmt.Fprintln(busy, sent))(t)
		sleep(ctx, time.Second)
	}
	mend()
	for n := 1; n <= sent; n++ {
		if said := have(lines.ReadString('\n'))(t); said != fmt.Sprintln(n) {
			t.Fatalf("the echo says %q, want %d", said, n)
		}
	}
	t.Logf("everything was there %.1f s after the cut", time.Since(start).Seconds()-cut.Seconds())
	idle.lives(t)
	serves(t)
}
