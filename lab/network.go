package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// routing is what every namespace that passes packets on needs; pure switches leave bridged frames alone.
var (
	routing = map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.default.rp_filter": "0", "net.ipv6.conf.all.forwarding": "1", "net.bridge.bridge-nf-call-iptables": "0"}
	noding  = map[string]string{
		"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1",
		"net.bridge.bridge-nf-call-iptables": "1", "net.bridge.bridge-nf-call-ip6tables": "1",
	}
)

// segment is a handle on one network namespace. Its methods make what is missing and leave what is there.
type segment struct {
	name string
	ns   netns.NsHandle
	nl   *netlink.Handle
}

func openSegment(name string) (*segment, error) {
	ns, err := netns.GetFromPath(netnsPath(name))
	if err != nil {
		return nil, fmt.Errorf("open network namespace %q: %w", name, err)
	}
	nl, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("open netlink in %q: %w", name, err)
	}
	return &segment{name: name, ns: ns, nl: nl}, nil
}

func (s *segment) Close() {
	s.nl.Close()
	_ = s.ns.Close()
}

// ensureSegment makes the namespace if it is not there and opens it, with loopback up.
func ensureSegment(name string, sysctls map[string]string) (*segment, error) {
	if err := ensureNetns(name, sysctls); err != nil {
		return nil, err
	}
	s, err := openSegment(name)
	if err != nil {
		return nil, err
	}
	if err := s.up("lo"); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *segment) has(link string) bool {
	_, err := s.nl.LinkByName(link)
	return err == nil
}

// wire joins two namespaces with a pair of links. Both ends are made where they belong: the machine's own namespace never sees them.
func (s *segment) wire(name string, other *segment, otherName string) error {
	if s.has(name) && other.has(otherName) {
		return nil
	}
	if l, err := s.nl.LinkByName(name); err == nil {
		_ = s.nl.LinkDel(l) // its other end is gone or going
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.Namespace = netlink.NsFd(s.ns)
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: otherName, PeerNamespace: netlink.NsFd(other.ns)}
	if err := s.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("wire %s:%s to %s:%s: %w", s.name, name, other.name, otherName, err)
	}
	return nil
}

func (s *segment) bridge(name string) error {
	if s.has(name) {
		return nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := s.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make bridge %s:%s: %w", s.name, name, err)
	}
	return nil
}

// plug makes link a port of the bridge.
func (s *segment) plug(link, bridge string) error {
	l, err := s.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s:%s: %w", s.name, link, err)
	}
	b, err := s.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s:%s: %w", s.name, bridge, err)
	}
	if l.Attrs().MasterIndex == b.Attrs().Index {
		return nil
	}
	if err := s.nl.LinkSetMaster(l, b); err != nil {
		return fmt.Errorf("plug %s:%s into %s: %w", s.name, link, bridge, err)
	}
	return nil
}

func (s *segment) up(link string) error {
	l, err := s.nl.LinkByName(link)
	if err == nil {
		err = s.nl.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set link %s:%s up: %w", s.name, link, err)
	}
	return nil
}

// remove takes a link away, and with it its other end. One that is not there is fine.
func (s *segment) remove(link string) error {
	l, err := s.nl.LinkByName(link)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = s.nl.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("remove link %s:%s: %w", s.name, link, err)
	}
	return nil
}

// address gives the link an address and brings it up.
func (s *segment) address(link string, addr netip.Prefix) error {
	l, err := s.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s:%s: %w", s.name, link, err)
	}
	a := &netlink.Addr{IPNet: ipNet(addr)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nobody else is there, and it may be used at once
	}
	if err := s.nl.AddrReplace(l, a); err != nil {
		return fmt.Errorf("give %s to %s:%s: %w", addr, s.name, link, err)
	}
	return s.up(link)
}

// route sends dst by way of gateways, evenly if there are several; without one it is unreachable.
func (s *segment) route(dst netip.Prefix, via ...netip.Addr) error {
	r := &netlink.Route{Dst: ipNet(dst)}
	switch len(via) {
	case 0:
		r.Type = unix.RTN_UNREACHABLE
	case 1:
		r.Gw = via[0].AsSlice()
	default:
		for _, gw := range via {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: gw.AsSlice()})
		}
	}
	if err := s.nl.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s via %v in %s: %w", dst, via, s.name, err)
	}
	return nil
}

var (
	everywhere  = netip.MustParsePrefix("0.0.0.0/0")
	everywhere6 = netip.MustParsePrefix("::/0")
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// ensureWAN makes the namespace that joins clusters, its firewall before anything could pass, and its weather anew if that has changed.
func (l *Lab) ensureWAN(ctx context.Context, changed bool) error {
	wan, err := ensureSegment(l.names.wanNS(), routing)
	if err != nil {
		return err
	}
	defer wan.Close()
	if err := l.ensureRules(ctx, l.names.wanNS(), wanRules()); err != nil {
		return err
	}
	return l.ensureWeather(ctx, changed)
}

// ensureNetwork makes a cluster's router, bridge, control plane's and nodes' namespaces, and joins them to the WAN.
func (c *Cluster) ensureNetwork(ctx context.Context) error {
	router, err := ensureSegment(c.lab.names.routerNS(c.plan.Name), routing)
	if err != nil {
		return err
	}
	defer router.Close()
	if err := c.lab.ensureRules(ctx, router.name, routerRules(planWAN(c.plan.Index))); err != nil {
		return err
	}
	if err := c.joinWAN(ctx, router); err != nil {
		return err
	}
	if err := router.bridge("br0"); err != nil {
		return err
	}
	for _, addr := range c.plan.both(prefix(routerIP+"/24"), prefix(routerIP6+"/64")) {
		if err := router.address("br0", addr); err != nil {
			return err
		}
	}
	control := c.plan.both(prefix(controlIP+"/24"), prefix(controlIP6+"/64"))
	if err := c.plugIn(router, c.lab.names.controlNS(c.plan.Name), "cp", control, nil); err != nil {
		return err
	}
	for i := 1; i <= c.plan.Nodes; i++ {
		if err := c.ensureNodeNetwork(router, i); err != nil {
			return err
		}
	}
	return c.routeInside(router)
}

func (c *Cluster) ensureNodeNetwork(router *segment, i int) error {
	return c.plugIn(router, c.lab.names.nodeNS(c.plan.Name, i), fmt.Sprintf("n%d", i), c.plan.node(i), noding)
}

// joinWAN links the router to the WAN and says there which block lies behind it.
func (c *Cluster) joinWAN(ctx context.Context, router *segment) error {
	wan, err := openSegment(c.lab.names.wanNS())
	if err != nil {
		return err
	}
	defer wan.Close()
	plan := planWAN(c.plan.Index)
	return inOrder(
		func() error { return wan.wire(c.plan.Name, router, "wan") },
		func() error { return wan.address(c.plan.Name, plan.WANEnd) },
		func() error { return router.address("wan", plan.Router) },
		func() error { return router.address("lo", netip.PrefixFrom(plan.Masq, 32)) },
		func() error { return wan.route(plan.Block, plan.Router.Addr()) },
		func() error { return router.route(everywhere, plan.WANEnd.Addr()) },
		func() error { return c.hide(ctx) },
	)
}

// hide keeps a private cluster from being reached.
func (c *Cluster) hide(ctx context.Context) error {
	if !c.plan.Private {
		return nil
	}
	return c.lab.change(ctx, "add", "private", c.PublicBlock())
}

// plugIn makes a namespace with these addresses, each with its network's length, and joins it to the cluster's bridge at port.
func (c *Cluster) plugIn(router *segment, ns, port string, addrs []netip.Prefix, sysctls map[string]string) error {
	s, err := ensureSegment(ns, sysctls)
	if err != nil {
		return err
	}
	defer s.Close()
	err = inOrder(
		func() error { return s.wire("eth0", router, port) },
		func() error { return router.plug(port, "br0") },
		func() error { return router.up(port) },
	)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		out, via := everywhere, netip.MustParseAddr(routerIP)
		if addr.Addr().Is6() {
			out, via = everywhere6, netip.MustParseAddr(routerIP6)
		}
		if err := inOrder(func() error { return s.address("eth0", addr) }, func() error { return s.route(out, via) }); err != nil {
			return err
		}
	}
	return nil
}

// routeInside sends each node its pods and the public block to the nodes. What no node has is nowhere: it must not wander into the WAN.
func (c *Cluster) routeInside(router *segment) error {
	var nodes []netip.Addr
	for i := 1; i <= c.plan.Nodes; i++ {
		nodes = append(nodes, nodeIP(i))
		for family, pods := range c.plan.pods(i) {
			if err := router.route(pods, c.plan.node(i)[family].Addr()); err != nil {
				return err
			}
		}
	}
	for _, nowhere := range append(c.plan.allPods(), c.plan.services()...) {
		if err := router.route(nowhere); err != nil {
			return err
		}
	}
	return router.route(planWAN(c.plan.Index).Block, nodes...)
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
