//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// traffic is an endless row of new connections, each of which asks bar for one answer and wants all of it.
type traffic struct {
	stop func() // and wait
	idle spent  // what the processors had done when it was started

	mu      sync.Mutex // guards what follows
	served  int
	slowest time.Duration
	when    time.Duration // the slowest was begun
	failed  []string
	started time.Time
}

const (
	flowRate = 200 // new connections a second
	// flowWorkers make so many at once. More of them would only wait for each other where the processors are the bound, until each takes
	// longer than a tunnel may.
	flowWorkers = 64
	// A connection costs 6 to 10 ms of processor, nine tenths of it in agents, gateways and applications, and a pod that starts costs more.
	// So a flow below its rate is one only where the processors had nothing left to give, and it has to be a flow all the same.
	flowLeast = 50
	flowBusy  = 0.9
)

// spent is what all processors have done, in ticks, since the machine was started.
type spent struct{ busy, all float64 }

// processors reads what they have done.
func processors(t *testing.T) (s spent) {
	t.Helper()
	const idle, iowait = 3, 4 // proc(5), /proc/stat
	stat := have(readFile("/proc/stat"))(t)
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, field := range strings.Fields(line)[1:9] {
		ticks := have(strconv.ParseFloat(field, 64))(t)
		s.all += ticks
		if i != idle && i != iowait {
			s.busy += ticks
		}
	}
	return s
}

// since is which share of the time the processors were busy.
func (s spent) since(before spent) float64 { return (s.busy - before.busy) / (s.all - before.all) }

// pour starts a flow from a network namespace. It goes on until stop, which the test's end calls too.
func pour(t *testing.T, ns, address string) *traffic {
	t.Helper()
	f := &traffic{started: time.Now(), idle: processors(t)}
	ctx, cancel := context.WithCancel(t.Context())
	ticks := make(chan struct{})
	var workers sync.WaitGroup
	for range flowWorkers {
		workers.Go(func() {
			_, err := inside(ns, func() (struct{}, error) {
				for range ticks {
					f.once(ctx, address)
				}
				return struct{}{}, nil
			})
			if err != nil {
				f.note(0, err)
			}
		})
	}
	workers.Go(func() {
		defer close(ticks)
		for n := time.Duration(1); ; n++ {
			sleep(ctx, time.Until(f.started.Add(n*time.Second/flowRate))) // late ones follow at once
			select {
			case <-ctx.Done():
				return
			case ticks <- struct{}{}:
			}
		}
	})
	f.stop = func() { cancel(); workers.Wait() }
	t.Cleanup(f.stop)
	return f
}

// once makes one connection and notes how it went. It goes to its end though the flow is stopped.
func (f *traffic) once(ctx context.Context, address string) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		f.note(time.Since(start), fmt.Errorf("connect: %w", err))
		return
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bar\r\nConnection: close\r\n\r\n"); err != nil {
		f.note(time.Since(start), fmt.Errorf("after a successful connect: %w", err))
		return
	}
	said, err := io.ReadAll(c)
	switch {
	case err != nil:
		err = fmt.Errorf("after a successful connect and %d bytes: %w", len(said), err)
	case !strings.HasPrefix(string(said), "HTTP/1.1 200") || !strings.Contains(string(said), "in east"):
		err = fmt.Errorf("answered %.80q", said)
	}
	f.note(time.Since(start), err)
}

func (f *traffic) note(took time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if took > f.slowest {
		f.slowest, f.when = took, time.Since(f.started)-took
	}
	if err == nil {
		f.served++
		return
	}
	f.failed = append(f.failed, fmt.Sprintf("%.2f s after the start, %.2f s long: %v", time.Since(f.started).Seconds(), took.Seconds(), err))
}

// end stops the flow and fails the test if one connection failed, or if it was no flow.
func (f *traffic) end(t *testing.T) {
	t.Helper()
	f.stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	took, busy := time.Since(f.started), processors(t).since(f.idle)
	rate := float64(f.served+len(f.failed)) / took.Seconds()
	t.Logf("%d connections in %.1f s, %.0f a second, the slowest %.2f s, begun %.1f s after the start; processors busy for %.0f %%",
		f.served+len(f.failed), took.Seconds(), rate, f.slowest.Seconds(), f.when.Seconds(), busy*100)
	if rate < flowLeast || rate < flowRate*0.95 && busy < flowBusy {
		t.Errorf("a flow of %.0f a second while the processors were busy for %.0f %%, want %d, or %d and a busy machine", rate, busy*100, flowRate, flowLeast)
	}
	if len(f.failed) > 0 {
		t.Errorf("%d connections failed:\n%s", len(f.failed), strings.Join(f.failed[:min(len(f.failed), 20)], "\n"))
	}
}

// leaveTime is how long after a pod is asked to stop roll waits. By then an agent accepts no
// connections, and kube-proxy sends none to a gateway. A gateway accepts those of other load
// balancers for longer, for half of its drain period, and open connections may continue.
const leaveTime = 6 * time.Second

// roll replaces every pod of one of Causeway's components, and waits until new connections
// of callers and peers go to the new pods.
func roll(t *testing.T, c *cluster, kind, component string) {
	t.Helper()
	ctx := t.Context()
	label := metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + component}
	old := have(c.pods(ctx, component))(t)
	must(t, c.kubectl(ctx, "", "-n", system, "rollout", "restart", kind+"/causeway-"+component))
	within(t, 90*time.Second, "the pods are new", func() error {
		now, err := c.api.CoreV1().Pods(system).List(ctx, label)
		if err != nil {
			return err
		}
		ready := 0
		for i := range now.Items {
			p := &now.Items[i]
			for j := range old {
				if old[j].UID != p.UID {
					continue
				}
				if p.DeletionTimestamp == nil || time.Until(p.DeletionTimestamp.Time) > time.Duration(*p.DeletionGracePeriodSeconds)*time.Second-leaveTime {
					return fmt.Errorf("pod %s is still there", p.Name)
				}
			}
			if isReady(p) && p.DeletionTimestamp == nil {
				ready++
			}
		}
		if ready < len(old) {
			return fmt.Errorf("%d of %d are ready", ready, len(old))
		}
		return nil
	})
}

// TestUpgradeLosesNoConnection: with 200 new connections a second, the agent on the callers' side, the agents on the other, and the
// gateways are replaced one after another. No connection fails, and none is reset after a successful connect.
func TestUpgradeLosesNoConnection(t *testing.T) {
	cases := []struct {
		what            string
		c               *cluster
		kind, component string
	}{
		{"the callers' agent", west, "daemonset", "agent"},
		{"the far agent", east, "daemonset", "agent"},
		{"the gateways", east, "deployment", "gateway"},
	}
	for _, tc := range cases {
		t.Run(strings.ReplaceAll(tc.what, " ", "-"), func(t *testing.T) {
			if serves(t); t.Failed() {
				return // a flow of failures would say nothing of upgrades
			}
			f := pour(t, netOf(t, west, "client"), mirrorOf(t, "bar-east", 80))
			sleep(t.Context(), 2*time.Second)
			roll(t, tc.c, tc.kind, tc.component)
			sleep(t.Context(), 2*time.Second)
			f.end(t)
		})
	}
}

// TestDeletedAgentRefusesAtOnce: where an agent's pod is deleted, callers are refused at once until the next one is there, though a
// connection is still open; and that connection goes on.
func TestDeletedAgentRefusesAtOnce(t *testing.T) {
	ctx := t.Context()
	t.Cleanup(func() { serves(t) })
	serves(t)
	client, address := netOf(t, west, "client"), mirrorOf(t, "bar-east", 80)
	open := hold(t, "quiet tunnel", client, mirrorOf(t, "bar-east", 7000), "")
	old := have(west.pods(ctx, "agent"))(t)
	must(t, west.kubectl(ctx, "", "-n", system, "delete", "pod", "--wait=false", old[0].Name))
	start := time.Now()
	within(t, 3*time.Second, "callers are refused", func() error {
		calls, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		c, err := dial(calls, client, address)
		if err == nil {
			c.Close()
			return errNotYet
		}
		if !refused(err) {
			t.Errorf("%.1f s after the deletion a caller gets %v, want a refusal", time.Since(start).Seconds(), err)
		}
		return nil
	})
	open.lives(t)
	open.conn.Close()
	within(t, time.Minute, "the next agent serves", func() error {
		pods, err := west.pods(ctx, "agent")
		if err == nil && (len(pods) == 0 || slices.ContainsFunc(old, func(p corev1.Pod) bool { return p.UID == pods[0].UID }) || !isReady(&pods[0])) {
			err = errNotYet
		}
		return err
	})
}

// TestAgentRestartsWithoutController: with no controller in either cluster, an agent that is killed on either side serves again from what
// it kept, and no call is lost. A Link that is deleted while an agent is down is revoked by the next one, though what is kept holds it.
func TestAgentRestartsWithoutController(t *testing.T) {
	ctx := t.Context()
	t.Cleanup(func() { serves(t) })
	here, there := freshAgent(t, west), freshAgent(t, east)
	client, address := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	listener := net.JoinHostPort(vip(t, "bar-east"), "4200")
	sleep(ctx, 5*time.Second) // what is new is kept within seconds
	withoutController(t, west)
	withoutController(t, east)
	for _, side := range []struct {
		c     *cluster
		agent string
	}{{west, here}, {east, there}} {
		slay(t, side.c, side.agent, "agent")
		start := time.Now()
		within(t, 12*time.Second, "a call is served after the death of the agent in "+side.c.Name(), func() error {
			_, err := fetch(ctx, client, address)
			if err != nil && side.c == west {
				t.Errorf("a call %.1f s after the agent's death: %v", time.Since(start).Seconds(), err)
			}
			return err
		})
	}
	told := time.Now()
	thaw := freeze(t, west)
	must(t, west.KillContainer(ctx, system, here, "agent", syscall.SIGKILL))
	t.Cleanup(func() { // before east's controllers are brought back, after which bar must be served
		if err := errors.Join(west.install(background()), introduce(background(), east, west)); err != nil {
			t.Error(err)
		}
	})
	must(t, west.dyn.Resource(links).Delete(ctx, "east", deleteOptions))
	thaw()
	within(t, 90*time.Second, "the next agent serves by what is kept", func() error {
		return west.said(ctx, "agent", told, "serving")
	})
	for range 5 {
		c, err := dial(ctx, client, listener)
		if err == nil {
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: bar\r\nConnection: close\r\n\r\n")
		}
		if err == nil {
			_, err = line(c, 5*time.Second)
		}
		if !refused(err) {
			t.Errorf("a call by a Link that is gone gets %v, want a reset", err)
		}
	}
	must(t, west.said(ctx, "agent", told, "Link deleted, refusing its peer from now on"))
}

// said reports whether a component has logged a message since.
func (c *cluster) said(ctx context.Context, component string, since time.Time, message string) error {
	lines, err := c.logs(ctx, component, since)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(lines, func(e entry) bool { return e.text("msg") == message }) {
		return fmt.Errorf("the %s has not said %q since", component, message)
	}
	return nil
}

// TestRebootedNodeServesMirrors: a node whose power was taken away serves mirrors again once it has it back, by itself: routes, rule,
// listeners, certificates. Its pods call mirrors from their first moment on, and not a byte of what they say leaves the node.
func TestRebootedNodeServesMirrors(t *testing.T) {
	ctx := t.Context()
	t.Cleanup(func() { serves(t) })
	serves(t)
	before := have(west.Egress(ctx))(t)
	must(t, west.KillNode(ctx, ""))
	on := make(chan error, 1)
	go func() { on <- west.StartNode(ctx, "") }()
	t.Cleanup(func() { <-on })
	start := time.Now()
	tries := 0
	within(t, 2*time.Minute, "bar is called from the node after its start", func() error {
		tries++
		address, err := clusterIP(ctx, west, "bar-east")
		if err == nil {
			_, err = west.curl(ctx, "client", "-sSf", "-m2", "http://"+net.JoinHostPort(address, "80")+"/?said-before-the-guard-is-there")
		}
		return err
	})
	must(t, <-on)
	on <- nil
	t.Logf("%d calls were tried in %.1f s", tries, time.Since(start).Seconds())
	after := have(west.Egress(ctx))(t)
	// Before vip-guard's first run nothing but an attempt to connect can go out, to where nobody answers.
	const syn = 60 // bytes
	if packets, size := after.Packets-before.Packets, after.Bytes-before.Bytes; size > packets*syn {
		t.Errorf("%d packets of %d bytes for VIPs left the node: more than attempts to connect", packets, size)
	} else {
		t.Logf("%d attempts to connect to VIPs left the node before vip-guard ran", packets)
	}
}
