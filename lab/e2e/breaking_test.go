//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A caller is a pod's open connection, of which a reader waits for the end.
type caller struct {
	what  string
	conn  *net.TCPConn
	ended chan error // gets the error that ended it
}

// hold opens a connection from a pod, sends a text, reads the answer's first bytes, and keeps reading. It is closed with the test.
func hold(t *testing.T, what, ns, address, text string) *caller {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c := &caller{what: what, conn: have(dial(ctx, ns, address))(t), ended: make(chan error, 1)}
	t.Cleanup(func() { c.conn.Close() })
	have(io.WriteString(c.conn, text))(t)
	must(t, c.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	buf := make([]byte, 64<<10)
	have(c.conn.Read(buf))(t)
	must(t, c.conn.SetReadDeadline(time.Time{}))
	go func() {
		for {
			if _, err := c.conn.Read(buf); err != nil {
				c.ended <- err
				return
			}
		}
	}()
	return c
}

// lives fails the test if the connection has ended.
func (c *caller) lives(t *testing.T) {
	t.Helper()
	select {
	case err := <-c.ended:
		c.ended <- err
		t.Fatalf("the %s ended before its time: %v", c.what, err)
	default:
	}
}

// isReset fails the test unless the connection ends by a reset, never by a clean end, within d from start.
func (c *caller) isReset(t *testing.T, start time.Time, d time.Duration) {
	t.Helper()
	select {
	case err := <-c.ended:
		t.Logf("the %s ended after %.1f s: %v", c.what, time.Since(start).Seconds(), err)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the %s ended with %v, want a reset: its caller takes a part for the whole", c.what, err)
		}
	case <-time.After(time.Until(start.Add(d))):
		t.Errorf("the %s is still open after %.1f s", c.what, time.Since(start).Seconds())
	}
}

const endless = "GET /download?bytes=1000000000000 HTTP/1.1\r\nHost: bar-east\r\n\r\n"

// calling are a busy and a quiet caller of bar.
func calling(t *testing.T) []*caller {
	t.Helper()
	ns := netOf(t, west, "client")
	return []*caller{
		hold(t, "download", ns, mirrorOf(t, "bar-east", 80), endless),
		hold(t, "quiet tunnel", ns, mirrorOf(t, "bar-east", 7000), ""),
	}
}

// controllers says how a cluster's controllers differ from being that many, all ready.
func (c *cluster) controllers(ctx context.Context, want int) error {
	list, err := c.api.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"})
	if err != nil {
		return err
	}
	ready := 0
	for i := range list.Items {
		if isReady(&list.Items[i]) {
			ready++
		}
	}
	if len(list.Items) != want || ready != want {
		return fmt.Errorf("%d controllers, %d ready, want %d", len(list.Items), ready, want)
	}
	return nil
}

// withoutController takes a cluster's controllers away for the rest of the test. An install brings them back as they were.
func withoutController(t *testing.T, c *cluster) {
	t.Helper()
	t.Cleanup(func() {
		if err := c.install(background()); err != nil {
			t.Errorf("bring the controllers back: %v", err)
		}
		serves(t)
	})
	must(t, c.kubectl(t.Context(), "", "-n", system, "scale", "deployment", "causeway-controller", "--replicas=0"))
	within(t, time.Minute, "the controllers are gone", func() error { return c.controllers(t.Context(), 0) })
}

// TestDeletedLinkRevokes: deleting a Link with the controller scaled to zero ends open tunnels within 5 s and leaves no mirror behind.
func TestDeletedLinkRevokes(t *testing.T) {
	for _, side := range []struct{ here, peer *cluster }{{east, west}, {west, east}} {
		t.Run("in "+side.here.Name(), func(t *testing.T) {
			ctx := t.Context()
			client, address := netOf(t, west, "client"), mirrorOf(t, "bar-east", 80)
			t.Cleanup(func() { serves(t) })
			withoutController(t, side.here)
			t.Cleanup(func() {
				if err := introduce(background(), side.peer, side.here); err != nil {
					t.Error(err)
				}
			})
			open := calling(t)
			for _, c := range open {
				c.lives(t) // and a call is made below, too: no controller is needed for them
			}
			have(fetch(ctx, client, "http://"+address))(t)

			start := time.Now()
			must(t, side.here.dyn.Resource(links).Delete(ctx, side.peer.Name(), deleteOptions))
			for _, c := range open {
				c.isReset(t, start, 5*time.Second)
			}
			if _, err := fetch(ctx, client, "http://"+address); !refused(err) {
				t.Errorf("a new call gets %v, want a reset", err)
			}
			if side.here == west {
				within(t, time.Minute, "Kubernetes collects the mirrors", func() error {
					for _, name := range []string{"bar-east", "baz-east", "redis-east"} {
						if err := left(t, name); err != nil {
							return err
						}
					}
					return nil
				})
			}
		})
	}
}

// TestFarDeathIsAReset: a far agent, gateway or node killed in mid-download gives the caller a reset, never a clean end.
func TestFarDeathIsAReset(t *testing.T) {
	kill := func(component string) func(*testing.T) {
		return func(t *testing.T) {
			for _, p := range have(east.pods(t.Context(), component))(t) {
				slay(t, east, p.Name, component)
			}
		}
	}
	cases := []struct {
		what  string
		kill  func(*testing.T)
		after time.Duration
	}{
		{"agent", kill("agent"), 5 * time.Second},
		{"gateway", kill("gateway"), 5 * time.Second},
		// No packet tells: keepalive does, after 75 s.
		{"node", func(t *testing.T) {
			must(t, east.KillNode(t.Context(), ""))
			t.Cleanup(func() {
				if err := east.StartNode(background(), ""); err != nil {
					t.Errorf("give the node its power back: %v", err)
				}
			})
		}, 110 * time.Second},
	}
	for _, tc := range cases {
		t.Run(tc.what, func(t *testing.T) {
			t.Cleanup(func() { serves(t) })
			if tc.what == "agent" {
				freshAgent(t, east)
			}
			open := calling(t)
			for _, c := range open {
				c.lives(t)
			}
			start := time.Now()
			tc.kill(t)
			if tc.what == "node" {
				unreachable(t)
			}
			for _, c := range open {
				c.isReset(t, start, tc.after)
			}
		})
	}
}

// unreachable asserts that callers of a peer that cannot be reached are reset within 3 s, and that its mirrors stay as they are.
func unreachable(t *testing.T) {
	t.Helper()
	const promised, slack = 3 * time.Second, 500 * time.Millisecond
	for range 2 {
		start := time.Now()
		_, err := fetch(t.Context(), netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80))
		if took := time.Since(start); !refused(err) || took > promised+slack {
			t.Errorf("a call of an unreachable peer got %v after %.1f s, want a reset within %v", err, took.Seconds(), promised)
		}
	}
	must(t, readiness(t, "bar-east", true))
}

// freeze stops the kubelet of a cluster's node, so that it starts nothing again, until thaw or the end of the test. Within half a
// minute the cluster does not notice.
func freeze(t *testing.T, c *cluster) (thaw func()) {
	t.Helper()
	var kubelets []int
	for _, p := range c.lab.Processes() {
		if strings.HasPrefix(p.Name, c.Name()+"/") && strings.HasSuffix(p.Name, "/kubelet") {
			kubelets = append(kubelets, p.PIDs...)
		}
	}
	if len(kubelets) == 0 {
		t.Fatal("no kubelet runs")
	}
	signal := func(s syscall.Signal) {
		for _, pid := range kubelets {
			if err := syscall.Kill(pid, s); err != nil {
				t.Errorf("signal the kubelet: %v", err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	thawed := false
	thaw = func() {
		if !thawed {
			thawed = true
			signal(syscall.SIGCONT)
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// slay ends a container of Causeway's as the kernel ends a process, without a word. The test's end waits until it is back.
func slay(t *testing.T, c *cluster, pod, container string) {
	t.Helper()
	restarts := func() (int32, error) {
		p, err := c.api.CoreV1().Pods(system).Get(background(), pod, getOptions)
		if err != nil {
			return 0, err
		}
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == container && isReady(p) {
				return s.RestartCount, nil
			}
		}
		return 0, fmt.Errorf("pod %s is not ready", pod)
	}
	before := have(restarts())(t)
	must(t, c.KillContainer(t.Context(), system, pod, container, syscall.SIGKILL))
	t.Cleanup(func() {
		if err := poll(background(), time.Minute, func() error {
			// That it is ready may still be of its former life.
			if now, err := restarts(); err != nil || now == before {
				return errors.Join(errNotYet, err)
			}
			return nil
		}); err != nil {
			t.Errorf("%s of %s is not back: %v", container, pod, err)
		}
	})
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// freshAgent puts a new agent's pod on a cluster's node, so that no back-off of an earlier test delays its restart, and returns its name.
func freshAgent(t *testing.T, c *cluster) string {
	t.Helper()
	ctx := t.Context()
	old := have(c.pods(ctx, "agent"))(t)
	for _, p := range old {
		must(t, c.kubectl(ctx, "", "-n", system, "delete", "pod", p.Name))
	}
	var name string
	within(t, time.Minute, "a new agent is ready", func() error {
		pods, err := c.pods(ctx, "agent")
		if err != nil {
			return err
		}
		if len(pods) != 1 || !isReady(&pods[0]) || slices.ContainsFunc(old, func(p corev1.Pod) bool { return p.UID == pods[0].UID }) {
			return errNotYet
		}
		name = pods[0].Name
		return nil
	})
	serves(t)
	return name
}

// TestAgentCrashLosesNoCall: connections wait in the listeners that vip-guard holds until the agent is back.
func TestAgentCrashLosesNoCall(t *testing.T) {
	ctx := t.Context()
	agent := freshAgent(t, west)
	client, address := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	slay(t, west, agent, "agent")
	start := time.Now()
	for range 5 {
		if _, err := fetch(ctx, client, address); err != nil {
			t.Fatalf("a call %.1f s after the agent's death: %v", time.Since(start).Seconds(), err)
		}
	}
	t.Logf("the calls were served after %.1f s", time.Since(start).Seconds())
}

// TestWithoutAgentCallsAreRefused: with the agent killed, calls wait at most 10 s and are then refused.
func TestWithoutAgentCallsAreRefused(t *testing.T) {
	ctx := t.Context()
	const grace, slack = 10 * time.Second, time.Second
	agent := freshAgent(t, west)
	client, address := netOf(t, west, "client"), mirrorOf(t, "bar-east", 80)
	open := calling(t)
	thaw := freeze(t, west)
	defer thaw() // before the end of the test waits for what it killed
	slay(t, west, agent, "agent")
	start := time.Now() // slay first has to find the container's process
	for _, c := range open {
		c.isReset(t, start, 2*time.Second)
	}
	waiting := make(chan error)
	const callers = 5
	for range callers {
		go func() { _, err := fetch(ctx, client, "http://"+address); waiting <- err }()
	}
	for range callers {
		if err := <-waiting; !refused(err) {
			t.Errorf("a waiting call ended with %v, want a reset", err)
		}
	}
	took := time.Since(start)
	t.Logf("waiting calls were refused %.1f s after the agent's death", took.Seconds())
	if took > grace+slack || took < grace-slack {
		t.Errorf("that is not about %v", grace)
	}
	for range 3 {
		start := time.Now()
		if _, err := fetch(ctx, client, "http://"+address); !refused(err) || time.Since(start) > time.Second {
			t.Errorf("a later call got %v after %v, want a refusal at once", err, time.Since(start))
		}
	}
	thaw()
	serves(t)
}

// TestNothingLeavesTheNode: with agent and vip-guard gone nothing for the VIP range leaves the node: a counter on the way out stays
// zero, and rises when both routes are removed, so it can count; and vip-guard mends them.
func TestNothingLeavesTheNode(t *testing.T) {
	ctx := t.Context()
	agent := freshAgent(t, west)
	client, address := netOf(t, west, "client"), mirrorOf(t, "bar-east", 80)
	call := func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := fetch(ctx, client, "http://"+address)
		return err
	}
	egress := func() uint64 { return have(west.Egress(ctx))(t).Packets }
	before := egress()
	thaw := freeze(t, west)
	defer thaw() // before the end of the test waits for what it killed
	for _, container := range []string{"vip-guard", "agent"} {
		slay(t, west, agent, container)
	}
	for range 5 {
		start := time.Now()
		if err := call(); err == nil || time.Since(start) > time.Second {
			t.Errorf("without agent and vip-guard a call got %v after %v, want a refusal at once", err, time.Since(start))
		}
	}
	if n := egress() - before; n != 0 {
		t.Errorf("%d packets for VIPs left the node", n)
	}

	for _, route := range [][]string{{"local", "240.64.0.0/12", "table", "local"}, {"unreachable", "240.64.0.0/12"}} {
		must(t, onNode(ctx, west, append([]string{"ip", "route", "del"}, route...)...))
	}
	before = egress()
	_ = call() // goes nowhere, or is told so by who is on the way
	if egress() == before {
		t.Error("without both routes no packet was counted: the counter cannot count")
	}
	thaw()
	within(t, 30*time.Second, "vip-guard puts the routes back", call)
	before = egress()
	must(t, call())
	if n := egress() - before; n != 0 {
		t.Errorf("%d packets for VIPs left the node after all was mended", n)
	}
}

// TestGuardMends: routes that somebody takes away from under a running vip-guard come back.
func TestGuardMends(t *testing.T) {
	for _, route := range [][]string{{"local", "240.64.0.0/12", "table", "local"}, {"unreachable", "240.64.0.0/12"}} {
		must(t, onNode(t.Context(), west, append([]string{"ip", "route", "del"}, route...)...))
		within(t, 5*time.Second, "the "+route[0]+" route is back", func() error {
			table := "main"
			if route[0] == "local" {
				table = "local"
			}
			cmd, err := west.Exec(t.Context(), nodeOf, "ip", "route", "show", "table", table)
			if err != nil {
				return err
			}
			if out, err := output(cmd); err != nil || !strings.Contains(out, route[0]+" 240.64.0.0/12") {
				return fmt.Errorf("routes: %q, %v", out, err)
			}
			return nil
		})
	}
	serves(t)
}

// onNode runs a command on the first node.
func onNode(ctx context.Context, c *cluster, argv ...string) error {
	cmd, err := c.Exec(ctx, nodeOf, argv...)
	if err != nil {
		return err
	}
	_, err = output(cmd)
	return err
}
