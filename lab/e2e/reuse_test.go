//go:build e2e

package e2e

import (
	"io"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// TestAddressesReusedWhileTheAgentIsFrozen: while the agent of its node is frozen, a
// pod connects to a mirror, sends a request, and ends. A pod of another account gets
// its address. After the agent continues, it must not carry the first pod's connection
// under the identity of the second pod.
func TestAddressesReusedWhileTheAgentIsFrozen(t *testing.T) {
	ctx := t.Context()
	serves(t)
	target := mirrorOf(t, "bar-east", 80)
	agent := have(west.pods(ctx, "agent"))(t)[0].Name
	remove := func(name string) {
		t.Helper()
		must(t, west.kubectl(ctx, "", "-n", "shop", "delete", "pod", name, "--ignore-not-found", "--grace-period=1"))
	}
	t.Cleanup(func() {
		must(t, west.kubectl(background(), "", "-n", "shop", "delete", "pod", "first", "second", "--ignore-not-found", "--grace-period=1"))
		serves(t)
	})
	start := func(name, account string) netip.Addr {
		t.Helper()
		must(t, west.kubectl(ctx, onePod(name, account), "apply", "-f", "-"))
		var at netip.Addr
		must(t, poll(ctx, 30*time.Second, func() (err error) {
			at, err = addressIn(ctx, west, name)
			return err
		}))
		return at
	}
	// The next address to be given is the one after the last.
	giveNext := func(at netip.Addr) {
		t.Helper()
		must(t, onNode(ctx, west, "sh", "-c", "for f in /run/cni/*/last_reserved_ip.0; do printf "+at.Prev().String()+" > $f; done"))
	}
	const frozen = 5 * time.Second
	shown := 0
	for round := range sized(2, 20) {
		address := start("first", "client")
		within(t, 30*time.Second, "the first pod is served", func() error {
			_, err := west.curl(ctx, "first", "-sSf", "-m2", "http://"+target+"/")
			return err
		})
		sleep(ctx, 2*time.Second) // until its own call is in the log
		before := have(west.metrics(ctx, "agent"))(t)
		signal := func(s syscall.Signal) { must(t, west.KillContainer(background(), system, agent, "agent", s)) }
		signal(syscall.SIGSTOP)
		since := time.Now()
		thaw := sync.OnceFunc(func() { signal(syscall.SIGCONT) })
		t.Cleanup(thaw)
		waiting := have(dial(ctx, netOf(t, west, "first"), target))(t)
		defer waiting.Close()
		have(io.WriteString(waiting, "GET / HTTP/1.1\r\nHost: bar\r\nConnection: close\r\n\r\n"))(t)
		if round%2 == 0 {
			must(t, waiting.CloseWrite())
		}
		// The socket is this process's and would outlive the pod's network: its end must not be seen.
		netns := netOf(t, west, "first")
		must(t, west.run(ctx, lab.InPod("shop", "first"), "ip", "link", "set", "eth0", "down"))
		remove("first")
		giveNext(address)
		if got := start("second", "guest"); got != address {
			t.Fatalf("the second pod has %v, and the first had %v in %s: the test shows nothing", got, address, netns)
		}
		sleep(ctx, time.Until(since.Add(frozen)))
		thaw()
		sleep(ctx, 4*time.Second) // what waited is decided on within 2.5 s
		for _, e := range have(east.logs(ctx, "agent", since))(t) {
			if e.text("msg") == "connection served" && strings.HasSuffix(e.text("caller"), "/sa/guest") {
				t.Errorf("round %d: a call of a pod that had ended was served as its successor: %v", round, e)
			}
		}
		after := have(west.metrics(ctx, "agent"))(t)
		if rises(before, after, "causeway_agent_refused_total", `direction="outbound"`) > 0 {
			shown++
		}
		waiting.Close()
		remove("second")
	}
	if shown == 0 {
		t.Error("no connection was refused: the test shows nothing")
	}
	t.Logf("a connection was refused in %d rounds", shown)
}
