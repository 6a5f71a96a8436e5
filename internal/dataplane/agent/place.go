package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var (
	// errSilent reports an address on a bridge of which the kernel has not heard lately.
	errSilent = errors.New("the bridge has not heard of it")
	errFarOff = errors.New("it is not on this node")
)

// A kernel answers where the node's kernel finds an address. Nothing is kept: each
// question is at most three messages to the kernel and their answers, for single
// entries and never for tables, so that an answer is as new as the question. It needs
// no privilege. The zero value is ready.
type kernel struct {
	bridges   sync.Map // interface index → whether it is a bridge
	remembers atomic.Int64

	mu  sync.Mutex // guards what follows
	fd  int        // of a netlink socket; 0: none yet
	seq uint32
	// buf takes an answer. The library's own receiving clears 64 KiB for each.
	buf [8 << 10]byte
}

// find returns where addr is. The error wraps errSilent, errFarOff or the system's.
func (k *kernel) find(addr netip.Addr) (attachment, error) {
	at, err := k.place(addr)
	if err != nil {
		return attachment{}, fmt.Errorf("find %v on this node: %w", addr, err)
	}
	return at, nil
}

func (k *kernel) place(addr netip.Addr) (attachment, error) {
	iface, err := k.route(addr)
	if err != nil {
		return attachment{}, err
	}
	at := attachment{iface: iface}
	if bridge, err := k.isBridge(iface); err != nil || !bridge {
		return at, err
	}
	if at.mac, err = k.neighbour(addr, iface); err != nil {
		return attachment{}, err
	}
	at.port, err = k.bridgePort(at.mac, iface)
	return at, err
}

// route returns the interface by which addr is reached without a gateway.
func (k *kernel) route(addr netip.Addr) (int, error) {
	raw := addr.AsSlice()
	msg := &nl.RtMsg{}
	msg.Family, msg.Dst_len = family(addr), uint8(8*len(raw))
	answer, err := k.get(unix.RTM_GETROUTE, msg, nl.NewRtAttr(unix.RTA_DST, raw))
	if err != nil {
		return 0, fmt.Errorf("its route: %w", err)
	}
	attrs, err := attributes(answer, unix.SizeofRtMsg)
	if err != nil {
		return 0, fmt.Errorf("its route: %w", err)
	}
	iface := 0
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			return 0, fmt.Errorf("its route leads through a gateway: %w", errFarOff)
		case unix.RTA_OIF:
			iface = int(index(a.Value))
		}
	}
	if iface == 0 {
		return 0, fmt.Errorf("its route leads nowhere: %w", errFarOff)
	}
	return iface, nil
}

// isBridge is asked of the kernel once for each interface: indexes are not used again.
func (k *kernel) isBridge(iface int) (bool, error) {
	if known, ok := k.bridges.Load(iface); ok {
		return known.(bool), nil
	}
	link, err := netlink.LinkByIndex(iface)
	if err != nil {
		return false, fmt.Errorf("its interface %d: %w", iface, err)
	}
	bridge := link.Type() == "bridge"
	k.remember(iface, bridge)
	return bridge, nil
}

// maxRemembered bounds what is kept of interfaces. Where each pod has its own, thousands go in a day.
const maxRemembered = 4096

func (k *kernel) remember(iface int, bridge bool) {
	if k.remembers.Add(1) > maxRemembered {
		k.bridges.Clear() // those that are there are asked for again
		k.remembers.Store(1)
	}
	k.bridges.Store(iface, bridge)
}

// neighbour returns the link address that the kernel would send to for addr.
func (k *kernel) neighbour(addr netip.Addr, iface int) (string, error) {
	answer, err := k.get(unix.RTM_GETNEIGH, &netlink.Ndmsg{Family: family(addr), Index: uint32(iface)},
		nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	if errors.Is(err, unix.ENOENT) {
		return "", fmt.Errorf("no neighbour entry: %w", errSilent)
	}
	if err != nil {
		return "", fmt.Errorf("its neighbour entry: %w", err)
	}
	attrs, err := attributes(answer, sizeofNdmsg)
	if err != nil {
		return "", fmt.Errorf("its neighbour entry: %w", err)
	}
	const unusable = unix.NUD_INCOMPLETE | unix.NUD_FAILED
	if state := binary.NativeEndian.Uint16(answer[ndmState:]); state != unix.NUD_NONE && state&unusable == 0 {
		for _, a := range attrs {
			if a.Attr.Type == netlink.NDA_LLADDR {
				return string(a.Value), nil
			}
		}
	}
	return "", fmt.Errorf("its neighbour entry has no link address: %w", errSilent)
}

// bridgePort returns the interface behind which a bridge has a link address.
func (k *kernel) bridgePort(mac string, bridge int) (int, error) {
	answer, err := k.get(unix.RTM_GETNEIGH, &netlink.Ndmsg{Family: unix.AF_BRIDGE},
		nl.NewRtAttr(netlink.NDA_MASTER, nl.Uint32Attr(uint32(bridge))),
		nl.NewRtAttr(netlink.NDA_LLADDR, []byte(mac)))
	if errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("no bridge port for %v: %w", net.HardwareAddr(mac), errSilent)
	}
	if err != nil {
		return 0, fmt.Errorf("its bridge port: %w", err)
	}
	if len(answer) < sizeofNdmsg {
		return 0, fmt.Errorf("its bridge port: %w", errShort)
	}
	return int(index(answer[ndmIndex:])), nil
}

// struct ndmsg of linux/neighbour.h.
const (
	sizeofNdmsg = 12
	ndmIndex    = 4
	ndmState    = 8
)

var errShort = errors.New("the kernel's answer is too short")

// get asks for one entry and returns the body of the answer, which is the caller's.
func (k *kernel) get(what int, parts ...nl.NetlinkRequestData) ([]byte, error) {
	request := nl.NewNetlinkRequest(what, 0)
	for _, p := range parts {
		request.AddData(p)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fd == 0 {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return nil, fmt.Errorf("open a netlink socket: %w", err)
		}
		k.fd = fd
	}
	k.seq++
	request.Seq = k.seq
	if err := unix.Sendto(k.fd, request.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	for {
		// The kernel has answered before sendto returned.
		n, _, err := unix.Recvfrom(k.fd, k.buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		messages, err := syscall.ParseNetlinkMessage(k.buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if m.Header.Seq != k.seq {
				continue // of a question that failed half-way
			}
			if m.Header.Type != unix.NLMSG_ERROR {
				return append([]byte(nil), m.Data...), nil
			}
			if len(m.Data) < 4 {
				return nil, errShort
			}
			return nil, syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
		}
	}
}

// attributes returns those that follow a header of so many bytes.
func attributes(answer []byte, header int) ([]syscall.NetlinkRouteAttr, error) {
	if len(answer) < header {
		return nil, errShort
	}
	return nl.ParseRouteAttr(answer[header:])
}

// index is 0, which is no interface's, if b is too short.
func index(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func family(addr netip.Addr) uint8 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// stir makes the kernel look for an address on its bridge: what is sent to a pod has
// to find it first. The datagram is empty, and its port (RFC 863) throws away.
func stir(addr netip.Addr) {
	const discard = 9
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return // it is tried again, and the pod's own call stirs as well
	}
	defer c.Close()
	c.WriteToUDPAddrPort(nil, netip.AddrPortFrom(addr, discard))
}
