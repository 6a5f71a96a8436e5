//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
)

const onlyClient = `
apiVersion: causeway.dev/v1alpha1
kind: ExportPolicy
metadata: {name: bar, namespace: shop}
spec:
  services: [bar]
  callers: [{link: west, namespace: shop, serviceAccount: client}]
`

// TestPolicy: from the same west node, a pod whose account an ExportPolicy admits is served and another is refused, counted, and
// logged with its identity.
func TestPolicy(t *testing.T) {
	ctx := t.Context()
	client, guest, address := netOf(t, west, "client"), netOf(t, west, "guest"), "http://"+mirrorOf(t, "bar-east", 80)
	calls := func(ns string) error { _, err := fetch(ctx, ns, address); return err }
	for _, ns := range []string{client, guest} {
		must(t, calls(ns)) // without a policy
	}
	// A tunnel is a lease: what a policy takes away ends, and what it leaves goes on.
	theirs, ours := hold(t, "guest's download", guest, mirrorOf(t, "bar-east", 80), endless), hold(t, "client's download", client, mirrorOf(t, "bar-east", 80), endless)
	start := time.Now()
	must(t, east.kubectl(ctx, onlyClient, "apply", "-f", "-"))
	t.Cleanup(func() {
		_ = east.kubectl(background(), "", "-n", "shop", "delete", "exportpolicy", "bar", "--ignore-not-found")
		if err := poll(background(), 10*time.Second, func() error { _, err := fetch(background(), guest, address); return err }); err != nil {
			t.Errorf("guest is not served again: %v", err)
		}
	})
	within(t, 5*time.Second, "guest is refused", func() error {
		switch err := calls(guest); {
		case err == nil:
			return fmt.Errorf("guest is still served")
		case !refused(err):
			return fmt.Errorf("guest is not reset: %w", err)
		}
		return nil
	})
	theirs.isReset(t, start, 5*time.Second)
	ours.lives(t)
	must(t, ours.conn.Close())
	// The last calls that were served have asked for warm tunnels, which are refused now, or wait. The next call takes what waits.
	settled(t, west)
	id, reason := callerID(t, "guest"), admit.PolicyDenies.String()
	refusals := func(since time.Time) (int, error) {
		lines, err := east.logs(ctx, "agent", since)
		n := 0
		for _, e := range lines {
			if e.text("msg") == "connection refused" && e.text("caller") == id && e.text("reason") == reason && e.text("service") == "shop/bar:80" {
				n++
			}
		}
		return n, err
	}
	since := time.Now()
	if err := calls(guest); !refused(err) {
		t.Errorf("guest, who was refused, got %v", err)
	}
	// The agent logs after it has answered.
	within(t, 5*time.Second, "this refusal is logged", func() error {
		n, err := refusals(since)
		if err == nil && n == 0 {
			err = errNotYet
		}
		return err
	})

	since = time.Now()
	before := have(east.metrics(ctx, "agent"))(t)
	for range 10 {
		if err := calls(client); err != nil {
			t.Errorf("client, whom the policy names: %v", err)
		}
		if err := calls(guest); !refused(err) {
			t.Errorf("guest, whom it does not name, got %v, want a reset", err)
		}
	}
	after := have(east.metrics(ctx, "agent"))(t)
	name, label := "causeway_agent_refused_total", `reason="`+reason+`"`
	if n := count(after, name, `direction="inbound"`, label) - count(before, name, `direction="inbound"`, label); n != 10 {
		t.Errorf("%s{%s} rose by %v, want 10", name, label, n)
	}
	within(t, 5*time.Second, "east's agent logs the refused caller", func() error {
		n, err := refusals(since)
		if err == nil && n != 10 {
			err = fmt.Errorf("%d refusals of %s with reason %s in its log, want 10", n, id, reason)
		}
		return err
	})
}

// TestTwoAccountsInTurn: two accounts that call in turn a thousand times are each seen as themselves.
func TestTwoAccountsInTurn(t *testing.T) {
	ctx := t.Context()
	const inTurn, atOnce, workers = 800, 200, 8
	address := "http://" + mirrorOf(t, "bar-east", 80)
	nets := []string{netOf(t, west, "client"), netOf(t, west, "guest")}
	ids := []string{callerID(t, "client"), callerID(t, "guest")}
	served := func(since time.Time, want int) []string {
		var who []string
		within(t, 10*time.Second, "east's agent logs all callers", func() error {
			lines, err := east.logs(ctx, "agent", since)
			if err != nil {
				return err
			}
			who = nil
			for _, e := range lines {
				if e.text("msg") == "connection served" && e.text("service") == "shop/bar:80" {
					who = append(who, e.text("caller"))
				}
			}
			if len(who) != want {
				return fmt.Errorf("%d calls in its log, want %d", len(who), want)
			}
			return nil
		})
		return who
	}

	// One after the other: the far side must see exactly that order.
	since := time.Now()
	for i := range inTurn {
		if _, err := fetch(ctx, nets[i%2], address); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	t.Logf("%d calls in %.1f s", inTurn, time.Since(since).Seconds())
	for i, who := range served(since, inTurn) {
		if who != ids[i%2] {
			t.Fatalf("call %d, by %s, was seen as by %s", i, ids[i%2], who)
		}
	}

	// At once: each as often as it called.
	since = time.Now()
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range atOnce / workers {
				if _, err := fetch(ctx, nets[(w+i)%2], address); err != nil {
					t.Errorf("worker %d, call %d: %v", w, i, err)
				}
			}
		})
	}
	all.Wait()
	who := served(since, atOnce)
	slices.Sort(who)
	if first := slices.Index(who, ids[1]); first != atOnce/2 || who[0] != ids[0] || who[len(who)-1] != ids[1] {
		t.Errorf("calls at once were seen as by %v, want %d each by %v", slices.Compact(who), atOnce/2, ids)
	}
}

// TestExportRuleTakenBack: a Link without an export rule shows its peer nothing and serves it nothing, from one moment to the next.
func TestExportRuleTakenBack(t *testing.T) {
	ctx := t.Context()
	client, address := netOf(t, west, "client"), mirrorOf(t, "bar-east", 80)
	patch := func(ctx context.Context, rule string) error {
		_, err := east.dyn.Resource(links).Patch(ctx, "west", types.MergePatchType, []byte(`{"spec":{"export":`+rule+`}}`), metav1.PatchOptions{})
		return err
	}
	p := newImpostor(t)
	open := calling(t)
	t.Cleanup(func() {
		if err := patch(background(), `{"services":"All"}`); err != nil {
			t.Error(err)
		}
		serves(t)
	})
	start := time.Now()
	must(t, patch(ctx, "null"))
	for _, c := range open {
		c.isReset(t, start, 5*time.Second)
	}
	if _, err := fetch(ctx, client, "http://"+address); !refused(err) {
		t.Errorf("a new call gets %v, want a reset", err)
	}
	// Also one that does not care what it is shown.
	if body, err := p.call(t, p.config(p.label(t, p.routes["shop/bar:http"], time.Now()), p.as(t, "client")), barHTTP); err == nil {
		t.Errorf("a peer that does not care is answered %q", body)
	}
	within(t, soon, "the mirrors are gone", func() error { return left(t, "bar-east") })
}

// TestHostNetworkHasNoIdentity: there is no fallback identity, so who shares the node's network is refused, at once and counted.
func TestHostNetworkHasNoIdentity(t *testing.T) {
	ctx := t.Context()
	node, address := have(west.NodeNetns(""))(t), "http://"+mirrorOf(t, "bar-east", 80)
	before := have(west.metrics(ctx, "agent"))(t)
	for range 3 {
		start := time.Now()
		if said, err := fetch(ctx, node, address); !refused(err) || time.Since(start) > time.Second {
			t.Errorf("a call from the node's own network got %q, %v after %v, want a refusal at once", said, err, time.Since(start))
		}
	}
	after := have(west.metrics(ctx, "agent"))(t)
	if got := rose(before, after, "causeway_agent_refused_total"); !slices.Equal(got, []string{`causeway_agent_refused_total{direction="outbound",reason="host_network_caller"} +3`}) {
		t.Errorf("counted were %v", got)
	}
}
