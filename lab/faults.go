package lab

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
)

// Cut loses every packet between two clusters, both ways, open connections' too, until Mend. Neither side is told.
func (l *Lab) Cut(ctx context.Context, a, b string) error { return l.between(ctx, "add", a, b) }

// Mend takes Cut back.
func (l *Lab) Mend(ctx context.Context, a, b string) error { return l.between(ctx, "delete", a, b) }

func (l *Lab) between(ctx context.Context, verb, a, b string) error {
	var blocks []string
	for _, name := range []string{a, b} {
		c := l.Cluster(name)
		if c == nil {
			return fmt.Errorf("lab %q has no cluster %q", l.names.lab, name)
		}
		blocks = append(blocks, c.PublicBlock())
	}
	pairs := fmt.Sprintf("%s . %s, %s . %s", blocks[0], blocks[1], blocks[1], blocks[0])
	return l.change(ctx, verb, "cut", pairs)
}

// BlackHole loses every packet to and from an address of the WAN, such as one of a gateway's, until Fill.
func (l *Lab) BlackHole(ctx context.Context, address netip.Addr) error {
	return l.change(ctx, "add", "holes", address.String())
}

// Fill takes BlackHole back.
func (l *Lab) Fill(ctx context.Context, address netip.Addr) error {
	return l.change(ctx, "delete", "holes", address.String())
}

// Narrow loses every packet to a cluster that is longer than mtu bytes, and does not tell the
// sender, until Widen: a black hole of large packets. Packets from the cluster pass.
func (l *Lab) Narrow(ctx context.Context, cluster string, mtu int) error {
	if mtu < 576 || mtu > 1500 {
		return fmt.Errorf("an MTU of %d bytes: want 576 to 1500", mtu)
	}
	return l.routeWithMTU(cluster, mtu)
}

// Widen takes Narrow back.
func (l *Lab) Widen(ctx context.Context, cluster string) error { return l.routeWithMTU(cluster, 0) }

// routeWithMTU replaces the WAN's route to a cluster. With an MTU of 0 it is that of the link.
func (l *Lab) routeWithMTU(cluster string, mtu int) error {
	c := l.Cluster(cluster)
	if c == nil {
		return fmt.Errorf("lab %q has no cluster %q", l.names.lab, cluster)
	}
	wan, err := openSegment(l.names.wanNS())
	if err != nil {
		return err
	}
	defer wan.Close()
	plan := planWAN(c.plan.Index)
	r := &netlink.Route{Dst: ipNet(plan.Block), Gw: plan.Router.Addr().AsSlice(), MTU: mtu}
	if err := wan.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route to %s with an MTU of %d: %w", cluster, mtu, err)
	}
	return nil
}

// Strict resets each connection to an address of the WAN whose ClientHello is not whole in
// the first segment, as some middleboxes do, until Lenient. Only the client is told.
func (l *Lab) Strict(ctx context.Context, address netip.Addr) error {
	return l.change(ctx, "add", "strict", address.String())
}

// Lenient takes Strict back.
func (l *Lab) Lenient(ctx context.Context, address netip.Addr) error {
	return l.change(ctx, "delete", "strict", address.String())
}

// LoseHellos loses the first segment of each ClientHello to an address of the WAN that is
// not whole in it, as other middleboxes do, until PassHellos. Neither end gets an answer.
func (l *Lab) LoseHellos(ctx context.Context, address netip.Addr) error {
	return l.change(ctx, "add", "hellos", address.String())
}

// PassHellos takes LoseHellos back.
func (l *Lab) PassHellos(ctx context.Context, address netip.Addr) error {
	return l.change(ctx, "delete", "hellos", address.String())
}

// change adds elements to a set of the WAN's firewall, or deletes them.
func (l *Lab) change(ctx context.Context, verb, set, elements string) error {
	_, err := l.run(ctx, place{netns: l.names.wanNS()}, "", "nft", verb, "element", "inet", rulesTable, set, "{ "+elements+" }")
	if err != nil {
		return fmt.Errorf("change the WAN's firewall: %w", err)
	}
	return nil
}

// Freeze stops a process of the cluster dead in its tracks until Thaw: its sockets stay open and nobody answers. It is named like its
// log: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, cloud, or NODE/kubelet, NODE/kube-proxy, NODE/containerd.
func (c *Cluster) Freeze(process string) error { return c.signal(process, syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (c *Cluster) Thaw(process string) error { return c.signal(process, syscall.SIGCONT) }

// Kill ends a process of the cluster. Up, StartControlPlane or StartNode start it again.
func (c *Cluster) Kill(process string) error { return c.signal(process, syscall.SIGKILL) }

func (c *Cluster) signal(process string, signal syscall.Signal) error {
	where, name, err := splitProcess(process)
	if err != nil {
		return err
	}
	pids := c.lab.cgroups.procs(c.lab.names.cgroup(c.plan.Name, where, name))
	if len(pids) == 0 {
		return fmt.Errorf("cluster %q runs no %q: name it like its log, as in etcd or %s/kubelet", c.plan.Name, process, nodeName(c.plan.Name, 1))
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, signal); err != nil {
			return fmt.Errorf("signal %s: %w", process, err)
		}
	}
	return nil
}

// processPart is what one cgroup of a process, or of its node, may be called.
var processPart = regexp.MustCompile(`\A[a-z][a-z0-9-]*\z`)

// splitProcess parts a process's name into its node, or the control plane, and what runs there. The parts become a cgroup's path: one
// that led out of the cluster's own would signal whatever else is on the machine.
func splitProcess(process string) (where, name string, err error) {
	where, name, onNode := strings.Cut(process, "/")
	if !onNode {
		where, name = "cp", process
	}
	if !processPart.MatchString(where) || !processPart.MatchString(name) {
		return "", "", fmt.Errorf("process %q: name it like its log, as in etcd or west-1/kubelet", process)
	}
	return where, name, nil
}
