package podid

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

// Why the kernel does not find an address. Find's errors wrap one of these or an error of
// the system.
var (
	// ErrSilent reports an address behind a bridge from which no packet came lately.
	ErrSilent = errors.New("the bridge has received nothing from it lately")
	// ErrNotLocal reports an address that is not on this node.
	ErrNotLocal = errors.New("it is not on this node")
)

// maxSockets is how many queries run at the same time. Some take the kernel's lock for
// network configuration, so a query may wait while interfaces come and go.
const maxSockets = 4

// Kernel finds addresses by asking the node's kernel. It caches no answer. A query is at
// most three messages for single entries, never for tables, and needs no privilege. Make
// it with NewKernel. It is safe for concurrent use.
type Kernel struct {
	bridges     sync.Map // interface index → whether it is a bridge
	bridgeCount atomic.Int64
	sockets     chan *socket // those that are not in use
}

// NewKernel returns a Kernel for the network namespace of the calling process.
func NewKernel() *Kernel {
	k := &Kernel{sockets: make(chan *socket, maxSockets)}
	for range maxSockets {
		k.sockets <- &socket{fd: -1}
	}
	return k
}

// Find returns where the kernel finds addr now. It blocks while all sockets are in use.
func (k *Kernel) Find(addr netip.Addr) (Attachment, error) {
	at, err := k.find(addr)
	if err != nil {
		return Attachment{}, fmt.Errorf("find %v on this node: %w", addr, err)
	}
	return at, nil
}

func (k *Kernel) find(addr netip.Addr) (Attachment, error) {
	s := <-k.sockets
	defer func() { k.sockets <- s }()
	iface, err := s.route(addr)
	if err != nil {
		return Attachment{}, err
	}
	at := Attachment{Iface: iface}
	if bridge, err := k.isBridge(iface); err != nil || !bridge {
		return at, err
	}
	if at.MAC, err = s.neighbor(addr, iface); err != nil {
		return Attachment{}, err
	}
	at.Port, err = s.bridgePort(at.MAC, iface)
	return at, err
}

// isBridge asks the kernel once for each interface, because the kernel does not use an
// index again.
func (k *Kernel) isBridge(iface int) (bool, error) {
	if known, ok := k.bridges.Load(iface); ok {
		return known.(bool), nil
	}
	link, err := netlink.LinkByIndex(iface)
	if err != nil {
		return false, fmt.Errorf("its interface %d: %w", iface, err)
	}
	bridge := link.Type() == "bridge"
	k.storeBridge(iface, bridge)
	return bridge, nil
}

// maxBridges bounds what isBridge remembers. Where each pod has an interface of its own,
// a node sees thousands of them in a day.
const maxBridges = 4096

func (k *Kernel) storeBridge(iface int, bridge bool) {
	if k.bridgeCount.Add(1) > maxBridges {
		k.bridges.Clear() // isBridge asks again for those that still exist
		k.bridgeCount.Store(1)
	}
	k.bridges.Store(iface, bridge)
}

// Solicit makes the kernel resolve the link address of addr: it has to before it can
// send to a pod on a bridge. The datagram is empty, and its port (RFC 863) discards it.
// Solicit does not wait for an answer.
func (k *Kernel) Solicit(addr netip.Addr) {
	const discard = 9
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return // the Table tries again, and the pod's own packets have the same effect
	}
	defer c.Close()
	c.WriteToUDPAddrPort(nil, netip.AddrPortFrom(addr, discard))
}

// A socket is one netlink socket. One goroutine uses it at a time.
type socket struct {
	fd  int // -1: not open yet
	seq uint32
	// buf takes an answer. The library's own receiving clears 64 KiB for each.
	buf [8 << 10]byte
}

// route returns the interface by which the node reaches addr without a gateway.
func (s *socket) route(addr netip.Addr) (int, error) {
	raw := addr.AsSlice()
	msg := &nl.RtMsg{}
	msg.Family, msg.Dst_len = family(addr), uint8(8*len(raw))
	answer, err := s.get(unix.RTM_GETROUTE, msg, nl.NewRtAttr(unix.RTA_DST, raw))
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
			return 0, fmt.Errorf("its route has a gateway: %w", ErrNotLocal)
		case unix.RTA_OIF:
			iface = int(index(a.Value))
		}
	}
	if iface == 0 {
		return 0, fmt.Errorf("its route has no interface: %w", ErrNotLocal)
	}
	return iface, nil
}

// neighbor returns the link address that the kernel would send to for addr.
func (s *socket) neighbor(addr netip.Addr, iface int) (string, error) {
	msg := &netlink.Ndmsg{Family: family(addr), Index: uint32(iface)}
	answer, err := s.get(unix.RTM_GETNEIGH, msg, nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	if errors.Is(err, unix.ENOENT) {
		return "", fmt.Errorf("no neighbor entry: %w", ErrSilent)
	}
	if err != nil {
		return "", fmt.Errorf("its neighbor entry: %w", err)
	}
	attrs, err := attributes(answer, sizeofNdmsg)
	if err != nil {
		return "", fmt.Errorf("its neighbor entry: %w", err)
	}
	const unusable = unix.NUD_INCOMPLETE | unix.NUD_FAILED
	state := binary.NativeEndian.Uint16(answer[ndmState:])
	if state != unix.NUD_NONE && state&unusable == 0 {
		for _, a := range attrs {
			if a.Attr.Type == netlink.NDA_LLADDR {
				return string(a.Value), nil
			}
		}
	}
	return "", fmt.Errorf("its neighbor entry has no link address: %w", ErrSilent)
}

// bridgePort returns the interface behind which a bridge has a link address.
func (s *socket) bridgePort(mac string, bridge int) (int, error) {
	answer, err := s.get(unix.RTM_GETNEIGH, &netlink.Ndmsg{Family: unix.AF_BRIDGE},
		nl.NewRtAttr(netlink.NDA_MASTER, nl.Uint32Attr(uint32(bridge))),
		nl.NewRtAttr(netlink.NDA_LLADDR, []byte(mac)))
	if errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("no bridge port for %v: %w", net.HardwareAddr(mac), ErrSilent)
	}
	if err != nil {
		return 0, fmt.Errorf("its bridge port: %w", err)
	}
	if len(answer) < sizeofNdmsg {
		return 0, fmt.Errorf("its bridge port: %w", errShort)
	}
	return int(index(answer[ndmIndex:])), nil
}

// struct ndmsg of the kernel.
const (
	sizeofNdmsg = 12
	ndmIndex    = 4
	ndmState    = 8
)

var errShort = errors.New("the kernel's answer is too short")

// get asks for one entry and returns the body of the answer, which the caller owns.
func (s *socket) get(what int, parts ...nl.NetlinkRequestData) ([]byte, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	request := nl.NewNetlinkRequest(what, 0)
	for _, p := range parts {
		request.AddData(p)
	}
	s.seq++
	request.Seq = s.seq
	to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if err := unix.Sendto(s.fd, request.Serialize(), 0, to); err != nil {
		return nil, err
	}
	for {
		// The kernel has answered before sendto returned.
		n, _, err := unix.Recvfrom(s.fd, s.buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		messages, err := syscall.ParseNetlinkMessage(s.buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if m.Header.Seq != s.seq {
				continue // the answer to a query that failed before it was read
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

func (s *socket) open() error {
	if s.fd >= 0 {
		return nil
	}
	kind := unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_NETLINK, kind, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	s.fd = fd
	return nil
}

// attributes returns those that follow a header of so many bytes.
func attributes(answer []byte, header int) ([]syscall.NetlinkRouteAttr, error) {
	if len(answer) < header {
		return nil, errShort
	}
	return nl.ParseRouteAttr(answer[header:])
}

// index returns 0, which is no interface's index, if b is too short.
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
