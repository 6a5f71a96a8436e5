//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
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
	t.Run("an application listens on IPv6 only", func(t *testing.T) { callsIPv6Only(t, odd, six) })
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

// callsIPv6Only calls an application that listens on the IPv6 address of its pod alone, by
// requests and by connections. At one port its pod answers IPv4 with a refusal, and at
// another one it loses the packets. The first call of each kind is answered within a second.
func callsIPv6Only(t *testing.T, from, to *cluster) {
	ctx := t.Context()
	const app, lossy, opaque, lossyOpaque = 8081, 8082, 8443, 8444
	ports := []int{app, lossy, opaque, lossyOpaque}
	must(t, to.kubectl(ctx, onePod("narrow", "bar")+fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: narrow, namespace: shop, %s, annotations: {causeway.dev/protocol: "%d=tcp,%d=tcp"}}
spec:
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  selector: {app: narrow}
  ports:
    - {name: bar, port: 80, targetPort: 8080}
    - {name: opaque, port: %[2]d}
    - {name: lossy-opaque, port: %[3]d}
    - {name: app, port: %[4]d}
    - {name: lossy, port: %[5]d}
`, recognized, opaque, lossyOpaque, app, lossy), "apply", "-f", "-"))
	must(t, to.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/narrow", "--timeout=60s"))
	pod, client := have(to.PodNetns(ctx, "shop", "narrow"))(t), have(from.PodNetns(ctx, "shop", "client"))(t)
	must(t, to.run(ctx, lab.InPod("shop", "narrow"), "nft", fmt.Sprintf("add table ip narrow; "+
		"add chain ip narrow c { type filter hook input priority 0; }; "+
		"add rule ip narrow c tcp dport { %d, %d } drop", lossy, lossyOpaque)))
	for _, port := range ports {
		ln := have(inside(pod, func() (net.Listener, error) { return net.Listen("tcp6", fmt.Sprintf("[::]:%d", port)) }))(t)
		serveHTTP(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		}))
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		c, err := dial(short, pod, fmt.Sprintf("127.0.0.1:%d", port))
		cancel()
		if err == nil {
			c.Close()
		}
		if refuses := port == app || port == opaque; err == nil || refused(err) != refuses {
			t.Fatalf("port %d answers IPv4 with %v: the test shows nothing", port, err)
		}
	}
	mirror := "narrow-" + to.Name()
	within(t, time.Minute, "the pod's other port answers", func() error {
		ip, err := clusterIP(ctx, from, mirror)
		if err == nil {
			_, err = fetch(ctx, client, "http://"+net.JoinHostPort(ip, "80"))
		}
		return err
	})
	ip := have(clusterIP(ctx, from, mirror))(t)
	for _, port := range ports {
		for n := range 5 {
			start := time.Now()
			said, err := fetch(ctx, client, fmt.Sprintf("http://%s:%d", ip, port))
			took := time.Since(start)
			if err != nil || !strings.HasPrefix(said, "[") || took > time.Second {
				t.Errorf("call %d of port %d gets %q, %v after %v, want an IPv6 address within 1 s", n, port, said, err, took)
			}
			if n == 0 {
				t.Logf("the first call of port %d took %s", port, milliseconds(took))
			}
		}
	}
}
