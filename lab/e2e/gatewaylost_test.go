//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/lab"
)

// A gatewayLoad goes from west's client through the gateways of another cluster: requests,
// a loop of new connections, and open connections to an echo.
type gatewayLoad struct {
	requests *requestLoad
	calls    *callLoop
	streams  []*echoStream
}

// startThroughGateways starts a load on bar of a cluster. It lasts until end, or the end
// of the test.
func startThroughGateways(t *testing.T, to *cluster) *gatewayLoad {
	t.Helper()
	ctx := t.Context()
	manifest := service("lost", recognized, httpPort)
	t.Cleanup(func() {
		must(t, to.kubectl(background(), manifest, "delete", "--ignore-not-found", "-f", "-"))
		must(t, gone(t, "lost-"+to.Name()))
	})
	must(t, to.kubectl(ctx, manifest, "apply", "-f", "-"))
	within(t, soon, "the mirror answers", func() error { return reached(t, "lost-"+to.Name()) })
	ns, bar := netOf(t, west, "client"), "bar-"+to.Name()
	l := &gatewayLoad{
		requests: startRequests(t, ns, "http://"+mirrorOf(t, "lost-"+to.Name(), 80)+"/who?work=5ms&rest=20ms"),
		calls:    startLoop(t, ns, "http://"+mirrorOf(t, bar, 80)),
	}
	for range 8 {
		l.streams = append(l.streams, startEcho(t, ns, mirrorOf(t, bar, 7001)))
	}
	sleep(ctx, 2*time.Second)
	return l
}

// end stops the load, and returns how many open connections have ended. It fails the test
// if a request failed before its response began, or if an open connection ended by anything
// but a reset. It also fails the test if a call failed that began after the first loss, but
// not just before another one.
func (l *gatewayLoad) end(t *testing.T, losses ...time.Time) (ended int) {
	t.Helper()
	l.requests.end(t)
	n, failed := l.calls.end()
	t.Logf("%d of %d new connections failed:\n%s", len(failed), n, describe(failed, losses[0]))
	failed = slices.DeleteFunc(failed, func(f failedCall) bool { return f.start.Before(losses[0]) })
	for _, loss := range losses {
		failed = slices.DeleteFunc(failed, func(f failedCall) bool {
			return f.start.Before(loss) && f.start.After(loss.Add(-time.Second))
		})
	}
	if len(failed) > 0 {
		t.Errorf("%d of those began after the loss of a gateway:\n%s", len(failed), describe(failed, losses[0]))
	}
	for _, s := range l.streams {
		err := s.lives()
		if err == nil {
			continue
		}
		if ended++; !refused(err) {
			t.Error(err)
		}
	}
	t.Logf("%d of %d open connections ended", ended, len(l.streams))
	return ended
}

// gatewaysByLoad returns a cluster's gateways. The first has the most connections.
func gatewaysByLoad(t *testing.T, c *cluster) []corev1.Pod {
	t.Helper()
	pods := have(c.pods(t.Context(), "gateway"))(t)
	open := make(map[string]float64)
	for i := range pods {
		open[pods[i].Name] = have(c.podMetrics(t.Context(), &pods[i]))(t)["causeway_gateway_open_connections"]
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return int(open[b.Name] - open[a.Name]) })
	t.Logf("connections of gateways: %v", open)
	if len(pods) != 2 || open[pods[0].Name] == 0 {
		t.Fatalf("%d gateways, want two with connections", len(pods))
	}
	return pods
}

// twoGateways returns a cluster's gateways if there are two and both are ready.
func (c *cluster) twoGateways(ctx context.Context) ([]corev1.Pod, error) {
	now, err := c.pods(ctx, "gateway")
	if err == nil && (len(now) != 2 || slices.ContainsFunc(now, func(p corev1.Pod) bool { return !isReady(&p) })) {
		err = errNotYet
	}
	return now, err
}

// takesOver returns a function that fails the test unless a gateway has accepted
// connections since.
func takesOver(t *testing.T, c *cluster, gateway *corev1.Pod) func() {
	t.Helper()
	accepted := func() float64 {
		return have(c.podMetrics(t.Context(), gateway))(t)["causeway_gateway_accepted_total"]
	}
	before := accepted()
	return func() {
		t.Helper()
		n := accepted() - before
		t.Logf("%s has accepted %v connections", gateway.Name, n)
		if n == 0 {
			t.Error("no connection has moved to the remaining gateway")
		}
	}
}

// TestGatewayKilled kills the busier of two gateways under a load, and again whenever it
// is back, so that the other serves alone for some seconds. The streams through the killed
// gateway are reset at once, those through the other live on, and new ones can be opened.
func TestGatewayKilled(t *testing.T) {
	ctx := t.Context()
	s := openStore(t, east)
	streams := append(s.openStreams(t), s.openStreams(t)...)
	l := startThroughGateways(t, east)
	pods := gatewaysByLoad(t, east)
	victim := pods[0].Name
	t.Cleanup(func() { // the kubelet starts a new pod at once, and this one with a delay
		must(t, east.kubectl(background(), "", "-n", system, "delete", "pod", victim, "--grace-period=1"))
		must(t, poll(background(), time.Minute, func() error {
			_, err := east.twoGateways(background())
			return err
		}))
		serves(t)
	})
	moved := takesOver(t, east, &pods[1])
	cut := func() float64 { // of the connections through the other gateway
		m := have(east.podMetrics(ctx, &pods[1]))(t)
		return count(m, "causeway_gateway_ended_total") - count(m, "causeway_gateway_ended_total", `reason="ended"`)
	}
	before := cut()
	var losses []time.Time
	kill := func() {
		must(t, east.KillContainer(ctx, system, victim, "gateway", syscall.SIGKILL))
		losses = append(losses, time.Now())
	}
	start, killed := time.Now(), pods[0].Status.ContainerStatuses[0].RestartCount
	kill()
	living := slices.DeleteFunc(slices.Clone(streams), func(s liveStream) bool { return isCut(s.alive(3 * time.Second)) })
	t.Logf("%d of %d streams were reset in %.1f s", len(streams)-len(living), len(streams), time.Since(start).Seconds())
	if n := cut() - before; n > 0 {
		t.Errorf("%v connections through the other gateway were cut", n)
	}
	for ; time.Since(start) < 7*time.Second; sleep(ctx, 50*time.Millisecond) {
		p := have(east.api.CoreV1().Pods(system).Get(ctx, victim, getOptions))(t)
		if s := p.Status.ContainerStatuses[0]; s.State.Running != nil && s.RestartCount > killed {
			kill()
			killed = s.RestartCount
		}
	}
	t.Logf("the gateway was killed %d times", len(losses))
	moved()
	live(t, slices.Concat(living, s.openStreams(t)), "the other gateway was killed", 5*time.Second)
	l.end(t, losses...)
}

// gatewayDrained drains the node of the busier gateway of cluster a, as kubectl drain does.
// The load balancer sends no new connection there some seconds later. Open connections live
// on.
func (m mesh) gatewayDrained(t *testing.T) {
	ctx := t.Context()
	a := m["a"]
	if full() {
		drainForCopy(t, a)
		spreadGateways(t, a)
	}
	s := openStore(t, a)
	l := startThroughGateways(t, a)
	pods := gatewaysByLoad(t, a)
	node, other := pods[0].Spec.NodeName, pods[1].Spec.NodeName
	if node == other {
		t.Fatalf("both gateways are on %s", node)
	}
	t.Cleanup(func() {
		must(t, a.kubectl(background(), "", "uncordon", node))
		spreadGateways(t, a)
	})
	streams, wait := s.openStreams(t), s.startCopies(t, copyTime())
	must(t, a.kubectl(ctx, "", "cordon", node))
	list := have(a.api.CoreV1().Pods(system).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node}))(t)
	start := time.Now()
	for _, p := range list.Items {
		if component := p.Labels["app.kubernetes.io/component"]; component == "agent" {
			continue // of a DaemonSet
		}
		must(t, a.api.CoreV1().Pods(system).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: system}}))
	}
	sleep(ctx, 3*time.Second)
	moved := takesOver(t, a, &pods[1])
	avoid(t, a, other)
	within(t, 20*time.Second, "another gateway takes its place", func() error {
		now, err := a.twoGateways(ctx)
		if err == nil && slices.ContainsFunc(now, func(p corev1.Pod) bool { return p.Spec.NodeName != other }) {
			err = errNotYet
		}
		return err
	})
	sleep(ctx, time.Until(start.Add(10*time.Second)))
	moved()
	if ended := l.end(t, start); ended > 0 {
		t.Errorf("%d open connections ended before the drain period", ended)
	}
	wait()
	live(t, streams, "a gateway's node drained", 5*time.Second)
}

// spreadGateways moves the gateways of a cluster to different nodes. Until then the router
// sends new connections to nodes without a gateway, too.
func spreadGateways(t *testing.T, c *cluster) {
	ctx := background()
	must(t, poll(ctx, time.Minute, func() error {
		now, err := c.twoGateways(ctx)
		if err == nil && now[0].Spec.NodeName == now[1].Spec.NodeName {
			must(t, c.kubectl(ctx, "", "-n", system, "delete", "pod", now[0].Name, "--grace-period=1"))
			err = errNotYet
		}
		return err
	}))
	sleep(ctx, time.Second) // kube-proxy and the peers learn it
}

// avoid makes the router of a cluster send new connections for its public addresses to one
// node alone, until the test ends. Open connections stay where they are.
func avoid(t *testing.T, c *cluster, to string) {
	t.Helper()
	n := have(c.api.CoreV1().Nodes().Get(t.Context(), to, getOptions))(t)
	block, address := c.PublicBlock(), n.Status.Addresses[0].Address
	router := func(ctx context.Context, commands string) error {
		return c.run(ctx, lab.AtRouter(), "sh", "-c", commands)
	}
	t.Cleanup(func() {
		must(t, router(background(), "nft delete table inet avoid; ip rule del fwmark 7 lookup 107; ip route flush table 107"))
	})
	must(t, router(t.Context(), strings.Join([]string{
		fmt.Sprintf("ip route add %s via %s table 107", block, address),
		"ip rule add fwmark 7 lookup 107",
		"nft 'add table inet avoid; add chain inet avoid c { type filter hook prerouting priority mangle; }; " +
			"add rule inet avoid c ct state new ip daddr " + block + " ct mark set 7; add rule inet avoid c ct mark 7 meta mark set 7'",
	}, " && ")))
}
