package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A place is a network namespace of this benchmark. Its name begins like those of the
// lab, so that `lab down` removes it and ends every process in it, in any state.
type place struct {
	label, address string // the label is the name of its link in the router
	netns          string
}

// places are where the peers run, joined by a router:
//
//	A ── router ── gateway
//	        └───── B
type places struct {
	a, gateway, b place
	router        string
}

func newPlaces(labName string) places {
	netns := func(label string) string { return "cwl-" + labName + "-bench-" + label }
	return places{
		a:       place{label: "to-a", address: "10.77.1.2", netns: netns("a")},
		gateway: place{label: "to-g", address: "10.77.2.2", netns: netns("g")},
		b:       place{label: "to-b", address: "10.77.3.2", netns: netns("b")},
		router:  netns("router"),
	}
}

// cgroup is the name of the lab's top cgroup.
func (b *bench) cgroup() string { return "cwl-" + b.name }

func (p places) ends() []place { return []place{p.a, p.gateway, p.b} }

// way returns the way through these namespaces.
func (p places) way() way {
	w := way{client: p.a.netns, a: p.a.spot(), gateway: p.gateway.spot(), b: p.b.spot()}
	for i := range servers {
		w.servers = append(w.servers, endpoint{p.b.address, serverPort + i})
	}
	return w
}

func (p place) spot() spot { return plainSpot(p.netns, p.address) }

// manyConnections lets one address open thousands of connections in a row to another.
var manyConnections = []string{
	"net.ipv4.ip_local_port_range=10000 65000",
	"net.ipv4.tcp_tw_reuse=1",
	"net.core.somaxconn=4096",
}

// trackConnections makes the kernel track connections, as it does on a node with
// kube-proxy.
const trackConnections = `table inet bench {
	chain in { type filter hook input priority 0; ct state invalid drop; }
	chain out { type filter hook output priority 0; ct state invalid drop; }
}`

// raise makes the namespaces. The caller has removed earlier ones, and removes these with
// lab.Down, also after an error.
func (p places) raise(ctx context.Context) error {
	routing := []string{
		"net.ipv4.ip_forward=1",
		"net.ipv4.conf.all.rp_filter=0",
		"net.ipv4.conf.default.rp_filter=0",
	}
	if err := makeNetns(ctx, p.router, routing); err != nil {
		return err
	}
	for i, end := range p.ends() {
		if err := makeNetns(ctx, end.netns, manyConnections); err != nil {
			return err
		}
		gateway := fmt.Sprintf("10.77.%d.1", i+1)
		for _, args := range []string{
			fmt.Sprintf("link add %s netns %s type veth peer name eth0 netns %s",
				end.label, p.router, end.netns),
			fmt.Sprintf("-n %s addr add %s/24 dev %s", p.router, gateway, end.label),
			fmt.Sprintf("-n %s link set %s up", p.router, end.label),
			fmt.Sprintf("-n %s addr add %s/24 dev eth0", end.netns, end.address),
			fmt.Sprintf("-n %s link set eth0 up", end.netns),
			fmt.Sprintf("-n %s route add default via %s", end.netns, gateway),
		} {
			if err := ip(ctx, args); err != nil {
				return err
			}
		}
		nft := inNetns(ctx, end.netns, "nft", "-f", "-")
		nft.Stdin = strings.NewReader(trackConnections)
		if _, err := output(nft); err != nil {
			return fmt.Errorf("track connections in %s: %w", end.netns, err)
		}
	}
	return nil
}

func makeNetns(ctx context.Context, name string, sysctls []string) error {
	if err := ip(ctx, "netns add "+name); err != nil {
		return err
	}
	if err := ip(ctx, fmt.Sprintf("-n %s link set lo up", name)); err != nil {
		return err
	}
	return setSysctls(ctx, name, sysctls)
}

func setSysctls(ctx context.Context, netns string, settings []string) error {
	_, err := output(inNetns(ctx, netns, append([]string{"sysctl", "-q", "-w"}, settings...)...))
	return err
}

// delay starts a process in the router that delays packets between A and the other two
// places, as the lab delays those between clusters. stop ends it, and the delay with it.
func (p places) delay(ctx context.Context, dir string, rtt time.Duration) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// These rules stand before the one that delays: the gateway and B are in one cluster.
	const priority = 100
	near := []string{
		fmt.Sprintf("pref %d iif %s to %s lookup main", priority, p.gateway.label, p.b.address),
		fmt.Sprintf("pref %d iif %s to %s lookup main", priority+1, p.b.label, p.gateway.address),
	}
	for _, rule := range near {
		if err := ip(ctx, fmt.Sprintf("-n %s rule add %s", p.router, rule)); err != nil {
			return nil, err
		}
	}
	proc, err := startProcess(dir, p.router, "delay", self, "delay", "-rtt", rtt.String())
	if err != nil {
		return nil, err
	}
	stop = func() {
		proc.stop()
		for _, rule := range near {
			// It fails only if the namespace is gone.
			_ = ip(context.WithoutCancel(ctx), fmt.Sprintf("-n %s rule del %s", p.router, rule))
		}
	}
	err = poll(ctx, 10*time.Second, 50*time.Millisecond, func() error {
		if err := proc.running(); err != nil {
			return permanent{err}
		}
		rules, err := output(exec.CommandContext(ctx, "ip", "-n", p.router, "rule"))
		if err == nil && !strings.Contains(rules, "toll") {
			err = errors.New("the delaying process has not added its rule yet")
		}
		return err
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("delay packets: %w", err)
	}
	return stop, nil
}

// ip runs the command ip with arguments that are separated by single spaces.
func ip(ctx context.Context, args string) error {
	_, err := output(exec.CommandContext(ctx, "ip", strings.Split(args, " ")...))
	return err
}

// inNetns returns a command that runs in a network namespace, which is a name or a path.
// Everything else, such as /proc, is the machine's.
func inNetns(ctx context.Context, netns string, argv ...string) *exec.Cmd {
	if !strings.Contains(netns, "/") {
		netns = filepath.Join("/run/netns", netns)
	}
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + netns, "--"}, argv...)...)
}
