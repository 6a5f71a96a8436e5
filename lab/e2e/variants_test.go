//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// TestOtherNetworks: the main story between a cluster whose pods have an interface each and whose kube-proxy writes iptables rules, and
// one with both IP families; in both directions, for what is rare on the one side of a call may be usual on the other.
func TestOtherNetworks(t *testing.T) {
	clusters := extra(t, "net",
		lab.Options{Clusters: []string{"odd"}, Shape: lab.Shape{ProxyMode: lab.IPTables, CNI: lab.PTP}},
		lab.Options{Clusters: []string{"six"}, Shape: lab.Shape{DualStack: true}},
	)
	odd, six := clusters["odd"], clusters["six"]
	must(t, introduce(t.Context(), odd, six))
	must(t, introduce(t.Context(), six, odd))

	t.Run("iptables and ptp call both families", func(t *testing.T) { callsBaz(t, odd, six) })
	t.Run("both families call iptables and ptp", func(t *testing.T) { callsBaz(t, six, odd) })
	t.Run("a mirror has an address of each family", func(t *testing.T) { callsByIPv6(t, six) })
	t.Run("a neighbour's address is no identity", func(t *testing.T) { borrowsAddress(t, odd, six) })
	t.Run("check knows where a pod could forge", func(t *testing.T) {
		named(t, six, 10*time.Second, quick, finding{"neighbors", "cluster", "warning", "on 1 node (six-1) pods share a bridge"})
		for _, l := range have(checkIn(t.Context(), odd, quick...))(t) {
			if l.Check == "neighbors" && l.State != "ok" {
				t.Errorf("got a warning although each pod has an interface of its own: %s", l.Message)
			}
		}
	})
	t.Run("nothing left a node in plaintext", func(t *testing.T) {
		for _, c := range []*cluster{odd, six} {
			if leaked := have(c.Egress(t.Context()))(t); leaked.Packets > 0 {
				t.Errorf("%d packets for virtual IPs came out of %s's node", leaked.Packets, c.Name())
			}
		}
	})
}

// callsBaz calls baz of one cluster from a pod of another, by name and by address, and asks the far agent who called. A process of
// the caller's node, which has no identity, is refused.
func callsBaz(t *testing.T, from, to *cluster) {
	ctx, since := t.Context(), time.Now()
	mirror := "baz-" + to.Name()
	within(t, time.Minute, mirror+" answers", func() error { return answersIn(ctx, from, "http://"+mirror+".shop/", to) })
	ip := have(clusterIP(ctx, from, mirror))(t)
	must(t, answersIn(ctx, from, "http://"+ip+"/", to))
	want := fmt.Sprintf("spiffe://%s/ns/shop/sa/client", have(from.trustDomain(ctx))(t))
	within(t, 5*time.Second, "the far agent logs the caller", func() error {
		lines, err := to.logs(ctx, "agent", since)
		if err == nil && !slices.ContainsFunc(lines, func(e entry) bool { return e.text("msg") == "connection served" && e.text("caller") == want }) {
			err = fmt.Errorf("no line tells of %s", want)
		}
		return err
	})
	if body, err := fetch(ctx, have(from.NodeNetns(""))(t), "http://"+ip+"/"); !refused(err) {
		t.Errorf("a process of the node got %q, %v; it has no identity and must be refused", body, err)
	}
}

func answersIn(ctx context.Context, from *cluster, url string, to *cluster) error {
	said, err := from.curl(ctx, "client", "-sSf", "-m5", url)
	if err == nil && !strings.Contains(said, "in "+to.Name()) {
		err = fmt.Errorf("%s answers %q", url, said)
	}
	return err
}

// callsByIPv6 calls a mirror by its IPv6 address, from a pod and from a process of its node.
func callsByIPv6(t *testing.T, six *cluster) {
	ctx := t.Context()
	svc := have(six.api.CoreV1().Services("shop").Get(ctx, "baz-odd", getOptions))(t)
	i := slices.IndexFunc(svc.Spec.ClusterIPs, func(ip string) bool { return strings.Contains(ip, ":") })
	if i < 0 {
		t.Fatalf("baz-odd has the addresses %v, want one of IPv6", svc.Spec.ClusterIPs)
	}
	url := "http://" + net.JoinHostPort(svc.Spec.ClusterIPs[i], "80") + "/"
	within(t, 10*time.Second, "baz-odd answers by IPv6", func() error {
		said, err := fetch(ctx, netOf(t, six, "client"), url)
		if err == nil && !strings.Contains(said, "in odd") {
			err = fmt.Errorf("it answers %q", said)
		}
		return err
	})
	if body, err := fetch(ctx, have(six.NodeNetns(""))(t), url); !refused(err) {
		t.Errorf("a process of the node got %q, %v; it has no identity and must be refused", body, err)
	}
}
