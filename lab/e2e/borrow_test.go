//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/lab"
)

// borrowsAddress: where each pod has an interface of its own, a pod that speaks under its neighbour's address is answered there, so that
// no connection comes about; and were the node to answer where it speaks, the agent would refuse it. It never is its neighbour.
func borrowsAddress(t *testing.T, from, to *cluster) {
	ctx := t.Context()
	// The mirror's listener itself, so that it is the agent and nobody else who answers: kube-proxy refuses while baz is not ready.
	at := from.slice(t, "baz-"+to.Name())
	listener := net.JoinHostPort(at.Endpoints[0].Addresses[0], strconv.Itoa(int(*at.Ports[0].Port)))
	guest := netOf(t, from, "guest")
	call := func(source string) error { return callAs(ctx, guest, source, listener) }
	own, borrowed := podIP(t, from, "guest"), podIP(t, from, "client")
	ownLink, borrowedLink := linkOf(t, from, own), linkOf(t, from, borrowed)
	if ownLink == borrowedLink {
		t.Fatalf("both pods are behind %s", ownLink)
	}
	served := func(since time.Time, account string) bool {
		id := fmt.Sprintf("spiffe://%s/ns/shop/sa/%s", have(from.trustDomain(ctx))(t), account)
		return slices.ContainsFunc(have(to.logs(ctx, "agent", since))(t), func(e entry) bool {
			return e.text("msg") == "connection served" && e.text("caller") == id
		})
	}

	// From its own address the very same call is served, under its own name.
	start := time.Now()
	before := have(from.metrics(ctx, "agent"))(t)
	must(t, call(own))
	within(t, 5*time.Second, "guest is served as guest", func() error {
		if !served(start, "guest") {
			return errNotYet
		}
		return nil
	})
	after := have(from.metrics(ctx, "agent"))(t)
	if n := rises(before, after, "causeway_agent_accepted_total", `direction="outbound"`); n != 1 {
		t.Errorf("the agent has accepted %v connections for one call from guest's own address", n)
	}

	start = time.Now()
	inGuest := func(ctx context.Context, args ...string) error {
		return from.run(ctx, lab.InPod("shop", "guest"), args...)
	}
	must(t, inGuest(ctx, "ip", "addr", "add", borrowed+"/32", "dev", "eth0"))
	t.Cleanup(func() {
		must(t, inGuest(background(), "ip", "addr", "del", borrowed+"/32", "dev", "eth0"))
		must(t, poll(background(), 10*time.Second, func() error { return answersIn(background(), from, "http://"+listener+"/", to) }))
	})
	const fromIt, toIt = "iifname %s ip saddr %s tcp flags & (syn|ack) == syn", "oifname %s ip daddr %s tcp flags & (syn|ack) == (syn|ack)"
	asked := watch(t, from, "asked", "prerouting priority -300", fmt.Sprintf(fromIt, ownLink, borrowed))
	answered := watch(t, from, "answered", "postrouting priority 300", fmt.Sprintf(toIt, borrowedLink, borrowed))
	before = after
	if err := call(borrowed); !timedOut(err) {
		t.Errorf("a call from a borrowed address ended with %v; what answers it goes to the address's owner, and it must hear nothing", err)
	}
	if asked(t) == 0 || answered(t) == 0 {
		t.Errorf("the node got %d SYNs of the borrowed address by guest's interface, and sent %d answers to its owner's: want some of both",
			asked(t), answered(t))
	}
	after = have(from.metrics(ctx, "agent"))(t)
	if n := rises(before, after, "causeway_agent_accepted_total", `direction="outbound"`); n != 0 {
		t.Errorf("the agent has accepted %v connections from a borrowed address", n)
	}

	// Now the node is made to answer where the address was borrowed. Interface and address of the call agree, and yet it is not the pod's.
	const tries = 3
	route := strings.Fields(have(from.output(ctx, nodeOf, "ip", "route", "show", borrowed))(t))
	t.Cleanup(func() {
		must(t, from.run(background(), nodeOf, append([]string{"ip", "route", "replace"}, route...)...))
	})
	must(t, from.run(ctx, nodeOf, "ip", "route", "replace", borrowed, "dev", ownLink))
	before = after
	var all errgroup.Group
	for range tries {
		all.Go(func() error {
			if err := call(borrowed); !refused(err) {
				t.Errorf("a call from a borrowed address to which the node's route leads ended with %v, want a reset", err)
			}
			return nil
		})
	}
	must(t, all.Wait())
	after = have(from.metrics(ctx, "agent"))(t)
	if n := rises(before, after, "causeway_agent_refused_total", `direction="outbound"`, `reason="pod_moved"`); n != tries {
		t.Errorf("the agent has refused %v calls since their pod was found elsewhere, want %d", n, tries)
	}
	for _, account := range []string{"client", "guest"} {
		if served(start, account) {
			t.Errorf("the far agent served a call from a borrowed address, as %s", account)
		}
	}
}

// callAs asks for / by HTTP from a source address, and wants the whole answer.
func callAs(ctx context.Context, ns, source, address string) error {
	c, err := inside(ns, func() (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: 2500 * time.Millisecond}
		return d.DialContext(ctx, "tcp", address)
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: baz\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	said, err := io.ReadAll(c)
	if err == nil && !strings.HasPrefix(string(said), "HTTP/1.1 200") {
		err = fmt.Errorf("answered %.80q", said)
	}
	return err
}

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// rises is by how much a metric rose.
func rises(before, after map[string]float64, name string, labels ...string) float64 {
	return count(after, name, labels...) - count(before, name, labels...)
}

// output and run run a program of the machine somewhere in the cluster.
func (c *cluster) output(ctx context.Context, where lab.Where, args ...string) (string, error) {
	cmd, err := c.Exec(ctx, where, args...)
	if err != nil {
		return "", err
	}
	return output(cmd)
}

func (c *cluster) run(ctx context.Context, where lab.Where, args ...string) error {
	_, err := c.output(ctx, where, args...)
	return err
}

func podIP(t *testing.T, c *cluster, pod string) string {
	t.Helper()
	p := have(c.api.CoreV1().Pods("shop").Get(t.Context(), pod, getOptions))(t)
	return p.Status.PodIP
}

// linkOf is the interface of the first node by which an address is reached.
func linkOf(t *testing.T, c *cluster, address string) string {
	t.Helper()
	_, link, _ := strings.Cut(have(c.output(t.Context(), nodeOf, "ip", "route", "get", address))(t), " dev ")
	link, _, _ = strings.Cut(link, " ")
	return link
}

var packetCount = regexp.MustCompile(`counter packets (\d+)`)

// watch counts packets that match, at a hook of the first node, until the test ends.
func watch(t *testing.T, c *cluster, table, hook, match string) func(*testing.T) int {
	t.Helper()
	must(t, c.run(t.Context(), nodeOf, "nft", fmt.Sprintf("add table inet %[1]s; add chain inet %[1]s c { type filter hook %[2]s; }; "+
		"add rule inet %[1]s c %[3]s counter", table, hook, match)))
	t.Cleanup(func() { must(t, c.run(background(), nodeOf, "nft", "delete table inet "+table)) })
	return func(t *testing.T) int {
		t.Helper()
		said := have(c.output(t.Context(), nodeOf, "nft", "list table inet "+table))(t)
		match := packetCount.FindStringSubmatch(said)
		if match == nil {
			t.Fatalf("nft counts nothing: %s", said)
		}
		return have(strconv.Atoi(match[1]))(t)
	}
}
