//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/lab"
)

// leader is the name of the controller's pod that holds the Lease.
func (c *cluster) leader(ctx context.Context) (string, error) {
	lease, err := c.api.CoordinationV1().Leases(system).Get(ctx, "causeway-controller", getOptions)
	if err != nil {
		return "", err
	}
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		return "", errors.New("no controller holds the Lease")
	}
	pod, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return pod, nil
}

// podMetrics are the samples of one pod of Causeway's, by name and labels as written.
func (c *cluster) podMetrics(ctx context.Context, p *corev1.Pod) (map[string]float64, error) {
	node, err := c.NodeNetns("")
	if err != nil {
		return nil, err
	}
	host := p.Status.PodIP
	if p.Spec.HostNetwork {
		host = "127.0.0.1"
	}
	body, err := fetch(ctx, node, "http://"+net.JoinHostPort(host, "9464")+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("metrics of %s: %w", p.Name, err)
	}
	out := make(map[string]float64)
	for line := range strings.Lines(body) {
		name, value, ok := cutLast(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(line, "#") {
			out[name] = v
		}
	}
	return out, nil
}

// agentStreams counts the agents' streams to each controller, by pod name.
func (c *cluster) agentStreams(ctx context.Context) (map[string]int, error) {
	pods, err := c.pods(ctx, "controller")
	if err != nil {
		return nil, err
	}
	out := make(map[string]int)
	for i := range pods {
		m, err := c.podMetrics(ctx, &pods[i])
		if err != nil {
			return nil, err
		}
		out[pods[i].Name] = int(count(m, "causeway_nodestream_streams", `role="agent"`))
	}
	return out, nil
}

// agentOnFollower makes a cluster's agent connect to a controller that is not the leader:
// the leader refuses node streams for a moment. It returns that controller's pod and the
// leader's.
func agentOnFollower(t *testing.T, c *cluster) (follower, leader string) {
	t.Helper()
	ctx := t.Context()
	leader = have(c.leader(ctx))(t)
	where := lab.InPod(system, leader)
	must(t, c.run(ctx, where, "nft", "add table inet refuse; "+
		"add chain inet refuse c { type filter hook input priority 0; }; "+
		"add rule inet refuse c tcp dport 4146 reject with tcp reset"))
	accept := func(ctx context.Context) error { return c.run(ctx, where, "nft", "delete table inet refuse") }
	err := poll(ctx, 30*time.Second, func() error {
		streams, err := c.agentStreams(ctx)
		for pod, n := range streams {
			if n > 0 && pod != leader {
				follower = pod
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("agents' streams are %v, and %s leads", streams, leader))
	})
	must(t, errors.Join(err, accept(background())))
	return follower, leader
}

// create creates a Service in namespace shop.
func (c *cluster) create(ctx context.Context, s *corev1.Service) error {
	_, err := c.api.CoreV1().Services("shop").Create(ctx, s, metav1.CreateOptions{})
	return err
}

// ready wants a pod of Causeway's to be ready.
func (c *cluster) ready(ctx context.Context, pod string) error {
	p, err := c.api.CoreV1().Pods(system).Get(ctx, pod, getOptions)
	if err == nil && !isReady(p) {
		err = fmt.Errorf("%s is not ready", pod)
	}
	return err
}

// cutOff loses the packets of a controller's pod to its API server until the test ends,
// or mend is called. Nobody else notices.
func cutOff(t *testing.T, c *cluster, pod string) (mend func()) {
	t.Helper()
	where := lab.InPod(system, pod)
	mended := false
	mend = func() {
		if !mended {
			mended = true
			_ = c.run(background(), where, "nft", "delete table inet cutoff") // the pod may be gone
		}
	}
	t.Cleanup(mend)
	must(t, c.run(t.Context(), where, "nft", "add table inet cutoff; "+
		"add chain inet cutoff c { type filter hook output priority 0; }; "+
		"add rule inet cutoff c ip daddr { 10.96.0.1, 172.30.0.2 } drop"))
	return mend
}

// deletedMirrors are Causeway's deletions of Services and EndpointSlices since the audit
// log ended at from, but for those of the mirrors that are expected to go.
func (c *cluster) deletedMirrors(from int64, expected ...string) (out []string, err error) {
	all, err := c.writes(from)
	for _, w := range all {
		r := w.ObjectRef.Resource
		known := slices.ContainsFunc(expected, func(name string) bool {
			return strings.HasPrefix(w.ObjectRef.Name, name)
		})
		if strings.HasPrefix(w.Verb, "delete") && (r == "services" || r == "endpointslices") && !known {
			out = append(out, w.String())
		}
	}
	return out, err
}

// leads waits until a controller has renewed the Lease after a time. The end of a test does
// not end the wait.
func leads(t *testing.T, c *cluster, after time.Time) {
	t.Helper()
	must(t, poll(background(), time.Minute, func() error {
		lease, err := c.api.CoordinationV1().Leases(system).Get(background(), "causeway-controller", getOptions)
		switch {
		case err != nil:
			return err
		case lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "":
			return errors.New("no controller holds the Lease")
		case lease.Spec.RenewTime == nil || !lease.Spec.RenewTime.After(after):
			return fmt.Errorf("%s has not renewed the Lease", *lease.Spec.HolderIdentity)
		}
		return nil
	}))
}

// TestReplicaCutOff cuts one of the exporter's controllers off from its API server alone.
// Peers keep their mirrors and follow the other replica, agents move there, and the age
// of the state is reported. When the replica that knows more is gone, nothing is deleted.
func TestReplicaCutOff(t *testing.T) {
	ctx := t.Context()
	stale, current := agentOnFollower(t, east)
	t.Logf("%s leads in west", have(west.leader(ctx))(t))
	mark := have(west.auditEnd())(t)
	calls := startLoop(t, netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)+"/")
	start := time.Now()
	t.Cleanup(func() {
		must(t, poll(background(), time.Minute, func() error { return east.controllers(background(), 2) }))
		serves(t)
	})
	mend := cutOff(t, east, stale)

	// The stale replica may not know this Service. Then it is served once the agent has
	// moved.
	offer(t, service("fresh", exported, httpPort), "fresh-east")
	var oldest float64
	look := func() error {
		m, err := east.metrics(ctx, "agent")
		if err == nil {
			oldest = max(oldest, m["causeway_state_age_seconds"])
		}
		return err
	}
	within(t, time.Minute, "the peer learns what only the current replica knows", func() error {
		return errors.Join(look(), answers(ctx, "fresh-east"))
	})
	within(t, time.Minute, "the agent moves to the current replica", func() error {
		if err := look(); err != nil {
			return err
		}
		streams, err := east.agentStreams(ctx)
		if err == nil && (streams[stale] > 0 || streams[current] == 0) {
			err = fmt.Errorf("agents' streams are %v, and the stale replica is %s", streams, stale)
		}
		return err
	})
	t.Logf("the agent reported an age of at most %.0f s", oldest)
	if oldest < 15 {
		t.Errorf("the agent reported an age of at most %.0f s while its controller was cut off", oldest)
	}
	within(t, soon, "the agent's state is current again", func() error {
		m, err := east.metrics(ctx, "agent")
		if err == nil && m["causeway_state_age_seconds"] > 10 {
			err = fmt.Errorf("its age is %.0f s", m["causeway_state_age_seconds"])
		}
		return err
	})
	named(t, east, 10*time.Second, quick, finding{"controller", "cluster", "warning", "1 of 2 pods are ready"})

	// Only the stale replica is left for a while, which misses a Service.
	node := east.Nodes()[0]
	schedulable := func() error { return east.kubectl(background(), "", "uncordon", node) }
	t.Cleanup(func() { _ = schedulable() })
	must(t, east.kubectl(ctx, "", "cordon", node))
	must(t, east.kubectl(ctx, "", "-n", system, "delete", "pod", current, "--grace-period=0", "--force"))
	within(t, 30*time.Second, "the stale replica serves again, because no other does", func() error {
		return east.ready(ctx, stale)
	})
	sleep(ctx, 10*time.Second)
	for _, w := range have(west.deletedMirrors(mark))(t) {
		t.Errorf("a mirror was deleted, and %s leads in west: %s", have(west.leader(ctx))(t), w)
	}
	must(t, schedulable())
	mend()
	within(t, time.Minute, "two controllers are ready", func() error { return east.controllers(ctx, 2) })
	within(t, soon, "what was exported meanwhile answers", func() error { return answers(ctx, "fresh-east") })
	// The API server's client of the stale replica may wait for half a minute before it
	// tries again.
	offer(t, service("later", exported, httpPort), "later-east")
	within(t, 2*time.Minute, "the peer learns what was exported after that", func() error {
		return answers(ctx, "later-east")
	})
	if n, failed := calls.end(); len(failed) > 0 || n < 300 {
		t.Errorf("%d of %d calls failed:\n%s", len(failed), n, describe(failed, start))
	}
	for _, w := range have(west.deletedMirrors(mark))(t) {
		t.Errorf("a mirror was deleted: %s", w)
	}
}

// TestLeaderCutOff cuts the exporter's leader off from its API server alone. Another
// replica leads within the Lease's time, peers learn of new exports from it, and nothing
// is deleted.
func TestLeaderCutOff(t *testing.T) {
	long(t)
	ctx := t.Context()
	mark := have(west.auditEnd())(t)
	calls := startLoop(t, netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)+"/")
	start := time.Now()
	t.Cleanup(func() {
		must(t, poll(background(), 3*time.Minute, func() error { return east.controllers(background(), 2) }))
		serves(t)
	})
	leader := have(east.leader(ctx))(t)
	mend := cutOff(t, east, leader)
	offer(t, service("fresh", exported, httpPort), "fresh-east")
	within(t, 30*time.Second, "another replica leads", func() error {
		now, err := east.leader(ctx)
		if err == nil && now == leader {
			err = errNotYet
		}
		return err
	})
	within(t, 30*time.Second, "the peer learns what the new leader exports", func() error {
		return answers(ctx, "fresh-east")
	})
	sleep(ctx, 15*time.Second)
	mend()
	if n, failed := calls.end(); len(failed) > 0 || n < 150 {
		t.Errorf("%d of %d calls failed:\n%s", len(failed), n, describe(failed, start))
	}
	for _, w := range have(west.deletedMirrors(mark))(t) {
		t.Errorf("a mirror was deleted: %s", w)
	}
}

// allocations follows which source each virtual IP belongs to, over all versions of the
// ledger and of the EndpointSlices that mirrors have.
type allocations struct {
	owners map[string]string // virtual IP → source
	twice  []string
}

// observe records one virtual IP.
func (a *allocations) observe(vip, source string) {
	if before, ok := a.owners[vip]; ok && before != source {
		a.twice = append(a.twice, fmt.Sprintf("%s: %s, then %s", vip, before, source))
	}
	a.owners[vip] = source
}

// read records what the ledger and the mirrors say now.
func (a *allocations) read(ctx context.Context, c *cluster) (ledger.Contents, error) {
	list, err := c.dyn.Resource(ledgers).Namespace(system).List(ctx, listOptions)
	if err != nil {
		return ledger.Contents{}, err
	}
	objects := make([]v1alpha1.Ledger, len(list.Items))
	for i := range list.Items {
		if err := convert(list.Items[i].Object, &objects[i]); err != nil {
			return ledger.Contents{}, err
		}
	}
	contents, problems := ledger.Decode(objects)
	if len(problems) > 0 {
		return contents, fmt.Errorf("the ledger is damaged: %+v", problems)
	}
	for _, m := range contents.Mirrors {
		for _, vip := range m.VIPs {
			a.observe(vip.String(), m.TrustDomain+" "+m.Source.String())
		}
	}
	return contents, nil
}

// TestPausedLeader pauses the importer's leader amid ledger writes until another replica
// leads. No virtual IP is given twice when it goes on.
func TestPausedLeader(t *testing.T) {
	ctx := t.Context()
	// A follower sees the last renewal up to 2.4 s late, waits for 15 s, and tries every
	// 2.4 s. If it lost the lease in an earlier test, the kubelet may first wait before it
	// starts its container again.
	const takeover = time.Minute
	name := func(i int) string { return fmt.Sprintf("paused-%03d", i) }
	t.Cleanup(func() {
		ctx := background()
		err := east.kubectl(ctx, "", "-n", "shop", "delete", "services", "-l", "story=paused", "--wait=false")
		if err != nil {
			t.Error(err)
		}
		must(t, poll(ctx, time.Minute, func() error { return west.controllers(ctx, 2) }))
		must(t, poll(ctx, time.Minute, func() error {
			list, err := west.api.CoreV1().Services("shop").List(ctx, listOptions)
			if err != nil {
				return err
			}
			for _, s := range list.Items {
				if strings.HasPrefix(s.Name, "paused-") {
					return fmt.Errorf("mirror %s still stands", s.Name)
				}
			}
			return nil
		}))
		serves(t)
	})
	leader := have(west.leader(ctx))(t)
	var seen allocations
	seen.owners = make(map[string]string)
	have(seen.read(ctx, west))(t)

	// Services are created before the pause, in it, and for 5 s after it.
	exports := 0
	created, enough := make(chan error, 1), make(chan struct{})
	go func() {
		for {
			err := east.create(ctx, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{
					Name:   name(exports),
					Labels: map[string]string{v1alpha1.ExportLabel: "true", "story": "paused"},
				},
				Spec: corev1.ServiceSpec{
					Selector: map[string]string{"app": "bar"},
					Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}},
				},
			})
			if err != nil {
				created <- err
				return
			}
			exports++
			select {
			case <-enough:
				created <- nil
				return
			case <-time.After(220 * time.Millisecond):
			}
		}
	}()
	within(t, soon, "the first are mirrored", func() error {
		_, err := clusterIP(ctx, west, name(0)+"-east")
		return err
	})
	must(t, west.KillContainer(ctx, system, leader, "controller", syscall.SIGSTOP))
	goOn := func() error {
		return west.KillContainer(background(), system, leader, "controller", syscall.SIGCONT)
	}
	t.Cleanup(func() { _ = goOn() })
	within(t, takeover, "another replica leads", func() error {
		have(seen.read(ctx, west))(t)
		second, err := west.leader(ctx)
		if err == nil && second == leader {
			err = fmt.Errorf("%s still leads", leader)
		}
		return err
	})
	sleep(ctx, 2*time.Second) // the new leader writes, too
	must(t, goOn())
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); sleep(ctx, 200*time.Millisecond) {
		have(seen.read(ctx, west))(t)
	}
	close(enough)
	must(t, <-created)
	within(t, 30*time.Second, "all are mirrored", func() error {
		contents, err := seen.read(ctx, west)
		if err != nil {
			return err
		}
		live := make(map[string]string)
		for _, m := range contents.Mirrors {
			if m.Released.IsZero() {
				live[m.MirrorName] = m.VIPs[0].String()
			}
		}
		selector := metav1.ListOptions{LabelSelector: v1alpha1.LinkLabel + "=east"}
		list, err := west.api.DiscoveryV1().EndpointSlices("shop").List(ctx, selector)
		if err != nil {
			return err
		}
		inSlices := make(map[string]string)
		for _, s := range list.Items {
			if len(s.Endpoints) == 1 {
				inSlices[s.Labels[discoveryv1.LabelServiceName]] = s.Endpoints[0].Addresses[0]
			}
		}
		for i := range exports {
			mirror := name(i) + "-east"
			if vip := live[mirror]; vip == "" || inSlices[mirror] != vip {
				return fmt.Errorf("%s has %q in the ledger and %q in its slice", mirror, vip, inSlices[mirror])
			}
		}
		return nil
	})
	if len(seen.twice) > 0 {
		t.Errorf("virtual IPs were given twice:\n%s", strings.Join(seen.twice, "\n"))
	}
	t.Logf("%d virtual IPs were followed", len(seen.owners))
}
