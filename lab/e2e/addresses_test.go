//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/lab"
)

// condition asks for a condition of a Link as it is now: "Status Reason", and words that its message has to hold.
func (c *cluster) condition(ctx context.Context, name, kind, want string, words ...string) error {
	var l v1alpha1.Link
	if err := c.read(ctx, links, "", name, &l); err != nil {
		return err
	}
	got := meta.FindStatusCondition(l.Status.Conditions, kind)
	if got == nil || got.ObservedGeneration != l.Generation {
		return fmt.Errorf("%s: Link %s has no condition %s for its generation %d", c.Name(), name, kind, l.Generation)
	}
	if said := string(got.Status) + " " + got.Reason; said != want {
		return fmt.Errorf("%s: Link %s: %s is %s (%s), want %s", c.Name(), name, kind, said, got.Message, want)
	}
	for _, w := range words {
		if !strings.Contains(got.Message, w) {
			return fmt.Errorf("%s: Link %s: %s says %q, want %q in it", c.Name(), name, kind, got.Message, w)
		}
	}
	return nil
}

// readdress changes where a Link says that the peer is, and puts it back after the test.
func readdress(t *testing.T, c *cluster, name, fields string) {
	t.Helper()
	var before v1alpha1.Link
	must(t, c.read(t.Context(), links, "", name, &before))
	t.Cleanup(func() {
		was := `{"spec":{"gatewayCIDRs":null,"gateways":["` + strings.Join(before.Spec.Gateways, `","`) + `"]}}`
		must(t, c.kubectl(background(), "", "patch", "link", name, "--type=merge", "-p", was))
		must(t, poll(background(), time.Minute, func() error {
			return c.condition(background(), name, v1alpha1.LinkGatewayReachable, "True Reachable")
		}))
		serves(t)
	})
	must(t, c.kubectl(t.Context(), "", "patch", "link", name, "--type=merge", "-p", `{"spec":`+fields+`}`))
}

// drop makes a node or a router lose packets until the test ends.
func drop(t *testing.T, c *cluster, where lab.Where, table, hook, match string) {
	t.Helper()
	nft := func(ctx context.Context, rules string) error { return c.run(ctx, where, "nft", rules) }
	t.Cleanup(func() { must(t, nft(background(), "delete table inet "+table)) })
	must(t, nft(t.Context(), fmt.Sprintf("add table inet %[1]s; add chain inet %[1]s c { type filter hook %[2]s priority -200; }; add rule inet %[1]s c %[3]s drop",
		table, hook, match)))
}

// A tally is how some calls went, of which none was answered wrongly.
type tally struct {
	slow int // answered, later than in time
	lost int // reset after their bytes were sent, within 2 s
}

// calls makes n calls of bar's echo, one after another. In time is within d.
func calls(t *testing.T, n int, d time.Duration) (out tally) {
	t.Helper()
	for range n {
		c := have(dial(t.Context(), netOf(t, west, "client"), mirrorOf(t, "bar-east", 7001)))(t)
		begun := time.Now()
		_, err := fmt.Fprintln(c, "hello")
		must(t, err)
		said, err := line(c, 5*time.Second)
		_ = c.Close()
		switch took := time.Since(begun); {
		case refused(err) && took < 2*time.Second:
			out.lost++
		case err != nil || !strings.Contains(said, "hello"):
			t.Fatalf("bar's echo says %q, %v, after %v", said, err, took)
		case took > d:
			out.slow++
		}
	}
	return out
}

// TestGatewayAddresses: of several gateway addresses each is judged singly: by the controller, and by each node's own dials.
func TestGatewayAddresses(t *testing.T) {
	const second = `
apiVersion: v1
kind: Service
metadata: {name: second-gateway, namespace: causeway-system}
spec:
  type: LoadBalancer
  selector: {app.kubernetes.io/name: causeway, app.kubernetes.io/component: gateway}
  ports: [{port: 4143, targetPort: 4143}]
`
	var link v1alpha1.Link
	must(t, west.read(t.Context(), links, "", "east", &link))
	first := link.Spec.Gateways[0]
	t.Cleanup(func() { must(t, east.kubectl(background(), "", "-n", system, "delete", "service", "second-gateway")) })
	must(t, east.kubectl(t.Context(), second, "apply", "-f", "-"))
	var ip string
	within(t, 30*time.Second, "a second address", func() error {
		s, err := east.api.CoreV1().Services(system).Get(t.Context(), "second-gateway", getOptions)
		if err == nil && len(s.Status.LoadBalancer.Ingress) == 0 {
			err = errNotYet
		}
		if err == nil {
			ip = s.Status.LoadBalancer.Ingress[0].IP
		}
		return err
	})
	hole := net.JoinHostPort(strings.TrimSuffix(ip, ip[strings.LastIndexByte(ip, '.'):])+".249", "4143")
	host, _, _ := net.SplitHostPort(hole)
	drop(t, west, lab.AtRouter(), "hole", "forward", "ip daddr "+host)
	readdress(t, west, "east", fmt.Sprintf(`{"gateways":[%q,%q,%q]}`, hole, first, ip+":4143"))
	if got := calls(t, 20, time.Second); got != (tally{}) {
		t.Errorf("of 20 calls %+v: they waited for an address that nobody has ever reached", got)
	}
	within(t, time.Minute, "the black hole is named", func() error {
		return west.condition(t.Context(), "east", v1alpha1.LinkGatewayReachable, "True PartlyReachable", "2 of 3", hole+": it does not answer")
	})
	if said := have(west.causeway(t.Context(), "links", "--context", "west"))(t); !strings.Contains(said, "east: 2 of 3 gateway addresses answer; "+hole) {
		t.Errorf("causeway links says\n%s", said)
	}
	// Now the node alone loses the first address; the controller, a pod, still reaches it. One call finds out: by a warm tunnel, on which its
	// bytes may have arrived, so that nobody may send them again, or by a dial. Those after it go by the other address, on any tunnel.
	firstHost, _, _ := net.SplitHostPort(first)
	drop(t, west, nodeOf, "first_here", "input", "ip saddr "+firstHost)
	if got := calls(t, 40, 240*time.Millisecond); got.lost+got.slow > 1 {
		t.Errorf("of 40 calls %+v, want one of them at most: this node has found the address wanting", got)
	}
}

// TestOneWayLink: a peer that we cannot dial calls us all the same, both sides say how it is, and it heals by itself.
func TestOneWayLink(t *testing.T) {
	readdress(t, east, "west", `{"gateways":null,"gatewayCIDRs":["192.0.2.0/24"]}`)
	within(t, time.Minute, "east says that nobody in west can be called", func() error {
		return east.condition(t.Context(), "west", v1alpha1.LinkGatewayReachable, "False NoAddress", "advertised by the peer", "gatewayCIDRs does not contain it")
	})
	within(t, 20*time.Second, "and that it is linked", func() error {
		for kind, want := range map[string]string{
			v1alpha1.LinkConnected: "True Connected", v1alpha1.LinkTrusted: "True Trusted", v1alpha1.LinkSynced: "False PeerUnreachable",
		} {
			if err := east.condition(t.Context(), "west", kind, want); err != nil {
				return err
			}
		}
		return nil
	})
	if got := calls(t, 10, time.Second); got != (tally{}) {
		t.Errorf("of 10 calls from the side that can dial %+v", got)
	}
	for _, kind := range []string{v1alpha1.LinkConnected, v1alpha1.LinkTrusted, v1alpha1.LinkSynced, v1alpha1.LinkGatewayReachable} {
		var l v1alpha1.Link
		must(t, west.read(t.Context(), links, "", "east", &l))
		if !meta.IsStatusConditionTrue(l.Status.Conditions, kind) {
			t.Errorf("west sees nothing of that, and yet %s is not True", kind)
		}
	}
	must(t, east.kubectl(t.Context(), "", "patch", "link", "west", "--type=merge", "-p", `{"spec":{"import":null}}`))
	t.Cleanup(func() {
		must(t, east.kubectl(background(), "", "patch", "link", "west", "--type=merge", "-p", `{"spec":{"import":{"services":"All"}}}`))
	})
	within(t, 20*time.Second, "who wants nothing from the peer is in step", func() error {
		return east.condition(t.Context(), "west", v1alpha1.LinkSynced, "True NothingToImport")
	})
	must(t, east.kubectl(t.Context(), "", "patch", "link", "west", "--type=merge", "-p", `{"spec":{"gatewayCIDRs":null}}`))
	within(t, 30*time.Second, "the address that west says makes the link one of both directions", func() error {
		return east.condition(t.Context(), "west", v1alpha1.LinkGatewayReachable, "True Reachable", "1 of 1")
	})
	var trust v1alpha1.PeerTrust
	within(t, 20*time.Second, "and is kept", func() error {
		err := east.read(t.Context(), v1alpha1.GroupVersion.WithResource("peertrusts"), system, "west", &trust)
		if err == nil && len(trust.Spec.Gateways) != 1 {
			err = fmt.Errorf("the PeerTrust holds gateways %v", trust.Spec.Gateways)
		}
		return err
	})
}

// TestGatewayName: a Link names its peer's gateway by a name, whose answers are dialled; without DNS the last answer goes on.
func TestGatewayName(t *testing.T) {
	var link v1alpha1.Link
	must(t, west.read(t.Context(), links, "", "east", &link))
	host, _, _ := net.SplitHostPort(link.Spec.Gateways[0])
	const name = "gateway-of-east.shop.svc.cluster.local"
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: gateway-of-east, namespace: shop}
spec: {clusterIP: None, ports: [{port: 4143}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: gateway-of-east, namespace: shop, labels: {kubernetes.io/service-name: gateway-of-east}}
addressType: IPv4
ports: [{port: 4143}]
endpoints: [{addresses: [%s]}]
`, host)
	t.Cleanup(func() {
		must(t, west.kubectl(background(), "", "-n", "shop", "delete", "service/gateway-of-east", "--ignore-not-found"))
	})
	must(t, west.kubectl(t.Context(), manifest, "apply", "-f", "-"))
	readdress(t, west, "east", `{"gateways":["`+name+`:4143"]}`)
	within(t, time.Minute, "the name leads to east", func() error {
		return west.condition(t.Context(), "east", v1alpha1.LinkGatewayReachable, "True Reachable", "1 of 1")
	})
	if got := calls(t, 10, time.Second); got != (tally{}) {
		t.Errorf("of 10 calls by the name %+v", got)
	}
	must(t, west.kubectl(t.Context(), "", "-n", "shop", "delete", "service/gateway-of-east"))
	within(t, 90*time.Second, "a name that is gone is said", func() error {
		return west.condition(t.Context(), "east", v1alpha1.LinkGatewayReachable, "True PartlyReachable", name+": DNS does not know the name")
	})
	if got := calls(t, 10, time.Second); got != (tally{}) {
		t.Errorf("of 10 calls by the name's last answer %+v", got)
	}
}

// TestReplicaWithoutStream: a controller replica that alone cannot reach the peer is named.
func TestReplicaWithoutStream(t *testing.T) {
	pods := have(west.pods(t.Context(), "controller"))(t)
	if len(pods) < 2 {
		t.Fatalf("%d controller replicas, want 2", len(pods))
	}
	for _, p := range pods[:2] { // one of them leads
		t.Run(p.Name, func(t *testing.T) {
			drop(t, west, nodeOf, "replica", "forward", "ip saddr "+p.Status.PodIP+" tcp dport 4143")
			within(t, time.Minute, "it is named", func() error {
				return west.condition(t.Context(), "east", v1alpha1.LinkConnected, "False ReplicaDisconnected", "1 of 2 controller replicas", p.Name)
			})
		})
		within(t, time.Minute, "and no more", func() error {
			return west.condition(t.Context(), "east", v1alpha1.LinkConnected, "True Connected")
		})
	}
}
