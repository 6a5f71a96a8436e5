//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// cutWAN drops all packets between the clusters until mend, or the end of the test.
func cutWAN(t *testing.T) (mend func()) {
	t.Helper()
	nft := func(ctx context.Context, rules string) error { return west.run(ctx, lab.AtRouter(), "nft", rules) }
	must(t, nft(t.Context(), "add table inet cut; "+
		"add chain inet cut c { type filter hook forward priority -200; policy drop; }"))
	mended := false
	mend = func() {
		if !mended {
			mended = true
			must(t, nft(background(), "delete table inet cut"))
		}
	}
	t.Cleanup(func() {
		mend()
		serves(t)
		// west's controllers could not reach their API server either, and their Lease
		// may have expired.
		leads(t, west, time.Now())
	})
	return mend
}

// knock is a TCP health check: it connects and closes, as nc -z does. It returns the error
// of the connect.
func knock(ctx context.Context, ns, address string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := dial(ctx, ns, address)
	if err == nil {
		c.Close()
	}
	return err
}

// becomes waits until a health check is refused, or finds the port open, and returns how
// long that took.
func becomes(t *testing.T, ns, address string, open bool, within time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := knock(t.Context(), ns, address)
		if open && err == nil || errors.Is(err, syscall.ECONNREFUSED) && !open {
			return time.Since(start)
		}
		if took := time.Since(start); took > within {
			t.Fatalf("open is not %v after %v: %v", open, took, err)
		}
		sleep(t.Context(), 50*time.Millisecond)
	}
}

// stays fails the test unless each health check for a time finds the port as it should be.
func stays(t *testing.T, ns, address string, open bool, d time.Duration) {
	t.Helper()
	for start := time.Now(); time.Since(start) < d; sleep(t.Context(), 200*time.Millisecond) {
		err := knock(t.Context(), ns, address)
		if open != (err == nil) || err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("open is not %v %v later: %v", open, time.Since(start), err)
		}
	}
}

// TestRefusedWhileUnreachable cuts the WAN. A TCP health check of a mirror must be
// refused within 3 s of the cut, and must succeed within 1 s of the repair. Open
// connections must survive. The test tolerates 0.5 s more.
func TestRefusedWhileUnreachable(t *testing.T) {
	ctx := t.Context()
	serves(t)
	client, http, echo := netOf(t, west, "client"), mirrorOf(t, "bar-east", 80), mirrorOf(t, "bar-east", 7001)
	quiet := hold(t, "quiet connection", client, mirrorOf(t, "bar-east", 7000), "")
	busy := have(dial(ctx, client, echo))(t)
	defer busy.Close()
	for round := range 3 {
		// The health checker of a caller, which is what uses the link.
		stays(t, client, http, true, time.Duration(round)*300*time.Millisecond+time.Second)
		mend := cutWAN(t)
		took := becomes(t, client, http, false, 5*time.Second)
		t.Logf("round %d: refused %.2f s after the cut", round, took.Seconds())
		if took > 3500*time.Millisecond {
			t.Errorf("it was refused %v after the cut, want 3 s", took)
		}
		unusable := have(west.metrics(ctx, "agent"))(t)
		if n := count(unusable, "causeway_agent_link_unusable", `link="east"`); n < 1 {
			t.Errorf("causeway_agent_link_unusable is %v", n)
		}
		stays(t, client, http, false, 20*time.Second-took)
		quiet.lives(t)
		mend()
		took = becomes(t, client, http, true, 5*time.Second)
		t.Logf("round %d: open %.2f s after the repair", round, took.Seconds())
		if took > 1500*time.Millisecond {
			t.Errorf("it was open %v after the repair, want 1 s", took)
		}
		must(t, func() error { _, err := fetch(ctx, client, "http://"+http); return err }())
		have(fmt.Fprintln(busy, "still there"))(t)
		if said := have(line(busy, 20*time.Second))(t); said != "still there\n" {
			t.Errorf("the echo says %q", said)
		}
		quiet.lives(t)
	}
}

// TestRefusalEndsWithTheAgent freezes the agent while it refuses. The refused VIPs
// expire after 5 s. Then the kernel queues connections again, and the agent serves them
// when it continues.
func TestRefusalEndsWithTheAgent(t *testing.T) {
	ctx := t.Context()
	serves(t)
	agent := have(west.podOf(ctx, "agent", "client"))(t)
	client, http := netOf(t, west, "client"), mirrorOf(t, "bar-east", 80)
	stays(t, client, http, true, time.Second)
	mend := cutWAN(t)
	becomes(t, client, http, false, 5*time.Second)
	frozen := false
	signal := func(s syscall.Signal) { must(t, west.KillContainer(background(), system, agent, "agent", s)) }
	thaw := func() {
		if frozen {
			frozen = false
			signal(syscall.SIGCONT)
		}
	}
	t.Cleanup(thaw)
	frozen = true
	signal(syscall.SIGSTOP)
	stays(t, client, http, false, 2*time.Second)
	took := becomes(t, client, http, true, 7*time.Second)
	t.Logf("queued %.1f s after the agent stopped", took.Seconds()+2)
	stays(t, client, http, true, 2*time.Second)
	thaw()
	becomes(t, client, http, false, 5*time.Second)
	mend()
	becomes(t, client, http, true, 3*time.Second)
}

// podOf returns the pod of a component on the node of a pod of namespace shop.
func (c *cluster) podOf(ctx context.Context, component, pod string) (string, error) {
	p, err := c.api.CoreV1().Pods("shop").Get(ctx, pod, getOptions)
	if err != nil {
		return "", err
	}
	pods, err := c.pods(ctx, component)
	if err != nil {
		return "", err
	}
	for i := range pods {
		if pods[i].Spec.NodeName == p.Spec.NodeName {
			return pods[i].Name, nil
		}
	}
	return "", fmt.Errorf("no %s on node %s", component, p.Spec.NodeName)
}
