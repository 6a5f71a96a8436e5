package vipguard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol distinguishes our routes from those of other programs.
const routeProtocol = 144

// loopback is the index of lo in every network namespace.
const loopback = 1

// lowestPriority makes the unreachable route the last one of its range.
var lowestPriority = uint32(math.MaxUint32)

// kernel is the node's routes and nftables.
type kernel interface {
	// read returns our routes and rules, and the address ranges that others use.
	read() (State, []Claim, error)
	// apply makes one change.
	apply(Change) error
	// bridged says whether netfilter sees bridged packets.
	bridged() bool
	// refuse replaces the refused VIPs, by whether they are IPv6.
	refuse(map[bool][]span) error
}

// system is the kernel of the network namespace that the process runs in.
type system struct {
	cidrs []netip.Prefix
	// sysctl begins the paths of the files of br_netfilter.
	sysctl string
}

const bridgeSysctl = "/proc/sys/net/bridge/bridge-nf-call-"

func (s system) read() (State, []Claim, error) {
	have, claims, err := readRoutes()
	if err != nil {
		return have, claims, err
	}
	have.Ruleset, err = readRuleset()
	return have, claims, err
}

// readRoutes reads everything but the ruleset. It needs no capability.
func readRoutes() (State, []Claim, error) {
	var have State
	var claims []Claim
	ifaces, err := net.Interfaces()
	if err != nil {
		return State{}, nil, fmt.Errorf("read interfaces: %w", err)
	}
	names := make(map[int]string, len(ifaces))
	for _, i := range ifaces {
		names[i.Index] = i.Name
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := allRoutes(family)
		if err != nil {
			return State{}, nil, fmt.Errorf("read routes: %w", err)
		}
		for _, r := range routes {
			dst, ok := prefix(r.Dst)
			switch {
			case !ok: // a default route
			case r.Protocol != routeProtocol:
				claims = append(claims, Claim{What: fmt.Sprintf("route (table %d, interface %q)", r.Table, names[r.LinkIndex]), CIDR: dst})
			case r.Type == unix.RTN_LOCAL && r.Table == unix.RT_TABLE_LOCAL && r.LinkIndex == loopback:
				have.Local = append(have.Local, dst)
			case r.Type == unix.RTN_UNREACHABLE && r.Table == unix.RT_TABLE_MAIN && uint32(r.Priority) == lowestPriority:
				have.Unreachable = append(have.Unreachable, dst)
			}
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return State{}, nil, fmt.Errorf("read addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefix(a.IPNet); ok {
			claims = append(claims, Claim{What: fmt.Sprintf("address (interface %q)", names[a.LinkIndex]), CIDR: p})
		}
	}
	have.Unreachable, have.Local = sorted(have.Unreachable), sorted(have.Local)
	return have, claims, nil
}

// allRoutes lists the routes of every table. If the list changed during the read, it
// reads again, a few times.
func allRoutes(family int) (routes []netlink.Route, err error) {
	for range 5 {
		routes, err = netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return routes, err
}

func (s system) apply(c Change) error {
	var err error
	switch {
	case c.Part == PartRuleset && c.Remove:
		err = removeRuleset()
	case c.Part == PartRuleset:
		err = replaceRuleset(Rules(s.cidrs, s.bridged()))
	case c.Remove:
		err = netlink.RouteDel(route(c))
	default:
		err = netlink.RouteAdd(route(c))
	}
	if err != nil {
		return fmt.Errorf("%v: %w", c, err)
	}
	return nil
}

// bridged says whether netfilter sees bridged packets. The files are there if the module
// br_netfilter is.
func (s system) bridged() bool {
	for _, family := range []string{"iptables", "ip6tables"} {
		on, err := os.ReadFile(s.sysctl + family)
		if err == nil && strings.TrimSpace(string(on)) == "1" {
			return true
		}
	}
	return false
}

func (s system) refuse(families map[bool][]span) error { return refuse(families) }

// route returns the route of a change.
func route(c Change) *netlink.Route {
	r := &netlink.Route{
		Dst: &net.IPNet{
			IP:   c.CIDR.Masked().Addr().AsSlice(),
			Mask: net.CIDRMask(c.CIDR.Bits(), c.CIDR.Addr().BitLen()),
		},
		Protocol: routeProtocol,
	}
	if c.Part == PartUnreachable {
		r.Type, r.Table, r.Priority = unix.RTN_UNREACHABLE, unix.RT_TABLE_MAIN, int(lowestPriority)
		return r
	}
	r.Type, r.Table, r.Scope, r.LinkIndex = unix.RTN_LOCAL, unix.RT_TABLE_LOCAL, netlink.SCOPE_HOST, loopback
	if c.CIDR.Addr().Is4() {
		// Without this source address the node's own callers would have the VIP as
		// their source, and the rules would refuse the answers. IPv6 uses ::1 without
		// it.
		r.Src = net.IPv4(127, 0, 0, 1)
	}
	return r
}

// prefix returns n as a Prefix. It returns false for a default route.
func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 || bits == 0 {
		return netip.Prefix{}, false
	}
	if size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits).Masked(), true
}

// Clean removes every route and rule of the guard from the node's network namespace:
// local routes first, unreachable ones last. Agents and guards must have ended, because
// they would add them again. Mirrors must be gone too, because the traffic of their
// callers would leave the node. Clean may be repeated.
func Clean(ctx context.Context) error { return clean(ctx, system{}) }

func clean(ctx context.Context, k kernel) error {
	have, _, err := k.read()
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range Removal(have) {
		if err := ctx.Err(); err != nil {
			return err
		}
		errs = append(errs, k.apply(c))
	}
	return errors.Join(errs...)
}
