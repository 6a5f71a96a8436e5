package vipguard

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Hop is the name of the listener on the node's own address, port HopPort.
const Hop = "hop"

const (
	vip4Prefix = "vip4/"
	vip6Prefix = "vip6/"
	// backlog is the queue length of a listener while no agent accepts. The kernel caps
	// it at net.core.somaxconn.
	backlog = 4096
)

// Index returns the port index of a VIP listener's name: 3 for "vip4/3", whose port is
// FirstPort+3. It returns false for Hop and for other strings.
func Index(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, vip4Prefix)
	if !ok {
		digits, ok = strings.CutPrefix(name, vip6Prefix)
	}
	i, err := strconv.Atoi(digits)
	if !ok || err != nil || i < 0 || i > LastPort-FirstPort || strconv.Itoa(i) != digits {
		return 0, false
	}
	return i, true
}

func validName(name string) bool {
	_, vip := Index(name)
	return vip || name == Hop
}

// endpoint is the address of a named listener.
type endpoint struct {
	name string
	addr netip.AddrPort
}

// endpoints lists the listeners of a node with these VIP ranges.
func endpoints(nodeIP netip.Addr, cidrs []netip.Prefix) []endpoint {
	list := []endpoint{{Hop, netip.AddrPortFrom(nodeIP, HopPort)}}
	for _, family := range []struct {
		prefix   string
		wildcard netip.Addr
	}{{vip4Prefix, netip.IPv4Unspecified()}, {vip6Prefix, netip.IPv6Unspecified()}} {
		if !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Addr().Is4() == family.wildcard.Is4() }) {
			continue
		}
		for port := FirstPort; port <= LastPort; port++ {
			name := family.prefix + strconv.Itoa(port-FirstPort)
			list = append(list, endpoint{name, netip.AddrPortFrom(family.wildcard, uint16(port))})
		}
	}
	return list
}

// sockets holds the descriptors of listeners, by name. Other processes have copies.
// Shutting one down affects all copies.
type sockets map[string]int

// bind returns a new listener for e.
func bind(e endpoint) (int, error) {
	family, domain := unix.SockaddrInet4{Port: int(e.addr.Port())}, unix.AF_INET
	var sa unix.Sockaddr = &family
	if e.addr.Addr().Is6() {
		sa, domain = &unix.SockaddrInet6{Port: int(e.addr.Port()), Addr: e.addr.Addr().As16()}, unix.AF_INET6
	} else {
		family.Addr = e.addr.Addr().As4()
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, fmt.Errorf("make socket for %v: %w", e.addr, err)
	}
	err = prepare(fd, domain)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EADDRINUSE) {
		return -1, fmt.Errorf("listen on %v: %w: another process of this node holds one of Causeway's ports (%d, %d to %d): move it or take it off the node",
			e.addr, err, HopPort, FirstPort, LastPort)
	}
	return -1, fmt.Errorf("listen on %v: %w", e.addr, err)
}

// prepare sets the options that must be set before bind. Connections inherit them.
// PKTINFO makes them remember the interface by which they came in.
func prepare(fd, domain int) error {
	type option struct{ level, name int }
	on := []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR}}
	if domain == unix.AF_INET6 {
		on = append(on,
			option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY},
			option{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND},
			option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO})
	} else {
		on = append(on, option{unix.IPPROTO_IP, unix.IP_FREEBIND}, option{unix.IPPROTO_IP, unix.IP_PKTINFO})
	}
	for _, o := range on {
		if err := unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// isListenerFor reports whether a descriptor from another process is the listener for
// e: a TCP socket that is bound to e's address and not connected.
func isListenerFor(fd int, e endpoint) bool {
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || typ != unix.IPPROTO_TCP {
		return false
	}
	if _, err := unix.Getpeername(fd); !errors.Is(err, unix.ENOTCONN) {
		return false
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch sa := local.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)) == e.addr
	case *unix.SockaddrInet6:
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		return err == nil && only == 1 && netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)) == e.addr
	}
	return false
}

// names lists the listeners, sorted.
func (s sockets) names() []string {
	names := make([]string, 0, len(s))
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// listen makes the sockets accept callers, also after shutdown. It may be repeated.
func (s sockets) listen() error {
	var errs []error
	for _, name := range s.names() {
		err := unix.SetsockoptInt(s[name], unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil {
			err = unix.Listen(s[name], backlog)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("listen again on %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// shutdown refuses callers, including queued ones, and keeps the ports. Without
// SO_REUSEADDR no other process can bind them.
func (s sockets) shutdown() error {
	var errs []error
	for _, name := range s.names() {
		err := unix.Shutdown(s[name], unix.SHUT_RD)
		if errors.Is(err, unix.ENOTCONN) { // it is shut down already
			err = nil
		}
		if err == nil {
			err = unix.SetsockoptInt(s[name], unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("shut down %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// close closes this process's copies.
func (s sockets) close() {
	for _, fd := range s {
		unix.Close(fd)
	}
}

// adopt takes from given the listeners that are wanted and valid, and closes the rest.
func (s sockets) adopt(given sockets, wanted []endpoint) {
	for _, e := range wanted {
		fd, offered := given[e.name]
		if _, have := s[e.name]; offered && !have && isListenerFor(fd, e) {
			s[e.name] = fd
			delete(given, e.name)
		}
	}
	given.close()
}
