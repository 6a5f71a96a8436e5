package podid

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// ErrHostNetwork reports a connection from the network of the node itself.
var ErrHostNetwork = errors.New("connections from the host network have no identity; " +
	"connect from a pod with a network of its own")

// loopback is the index of lo in every network namespace (LOOPBACK_IFINDEX in the
// kernel's net/flow.h).
const loopback = 1

// Ingress returns the index of the interface by which a local pod's connection came in.
// The error wraps ErrHostNetwork, transport.ErrNoInterface or an error of the system.
func (t *Table) Ingress(c *net.TCPConn) (int, error) {
	iface, err := transport.IngressInterface(c)
	if err != nil {
		return 0, err
	}
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("ingress interface of %v: %w", c.RemoteAddr(), transport.ErrNoInterface)
	}
	return t.ingress(iface, remote.AddrPort().Addr().Unmap())
}

// ingress judges the interface that the kernel names for a connection from an address.
// Connections from the node's own network come in by lo.
//
// If a bridge passes an IPv6 packet to netfilter (bridge-nf-call-ip6tables), and
// netfilter translates it, the kernel remembers the interface of the route that the
// packet took, and not the bridge. For a virtual IP that interface is lo. No other packet
// from outside of the node is recorded in this way. So a connection from an address that
// the kernel finds behind a bridge came in by that bridge. Source then compares its port
// and link address as always.
func (t *Table) ingress(iface int, from netip.Addr) (int, error) {
	if iface != loopback {
		return iface, nil
	}
	if from.Is6() {
		if found := t.finds.get(from); found.err == nil && found.at.MAC != "" {
			return found.at.Iface, nil
		}
	}
	return 0, ErrHostNetwork
}
