package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// Why a connection's caller, or a destination's address, stands for no pod.
// Each is a counted reason.
var (
	errUnknownPod   = errors.New("no live pod of this node has the address")
	errTwoPods      = errors.New("more than one live pod of this node claims the address")
	errOtherLink    = errors.New("it came by another network interface than the pod's")
	errNoAttachment = errors.New("the node has no route to the pod yet")
)

// An attachment is where the node's kernel finds a pod.
type attachment struct {
	// iface is the index of the interface that the route to the pod's address uses.
	iface int
}

// A claim is one pod's word for an address, as old as the pod's sandbox.
type claim struct {
	uid     string
	addr    netip.Addr
	sandbox int64
}

// attachments remembers, for every local pod, where its address was first found.
//
// An address stands for a pod only while exactly one live pod outside the host
// network claims it, and the kernel finds the address where it was when that
// pod was first seen (design, section 3: "Who calls").
type attachments struct {
	route func(netip.Addr) (int, error)

	mu    sync.Mutex // guards first
	first map[claim]attachment
}

func newAttachments(route func(netip.Addr) (int, error)) *attachments {
	return &attachments{route: route, first: make(map[claim]attachment)}
}

// update records the attachments of pods not seen before and forgets those of
// pods that are gone.
func (a *attachments) update(s *state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	claims := make(map[claim]attachment, len(a.first))
	for addr, pods := range s.podsByAddr {
		for _, p := range pods {
			c := claim{p.uid, addr, p.sandbox}
			if at, ok := a.first[c]; ok {
				claims[c] = at
			} else if iface, err := a.route(addr); err == nil {
				claims[c] = attachment{iface}
			}
		}
	}
	a.first = claims
}

// at returns the attachment of c, which is now if none could be recorded before.
func (a *attachments) at(c claim, now attachment) attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	first, ok := a.first[c]
	if !ok {
		first, a.first[c] = now, now
	}
	return first
}

// pod returns the pod that addr stands for, or why there is none. iface is the
// index of the interface that the connection came in by; 0 asks only whether the
// address still stands where it was, as before a dial.
func (a *attachments) pod(s *state, addr netip.Addr, iface int) (*pod, error) {
	pods := s.podsByAddr[addr]
	switch len(pods) {
	case 0:
		return nil, fmt.Errorf("address %v: %w", addr, errUnknownPod)
	case 1:
	default:
		return nil, fmt.Errorf("address %v: %w", addr, errTwoPods)
	}
	p := pods[0]
	now, err := a.route(addr)
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s at %v: %w", p.namespace, p.name, addr, errNoAttachment)
	}
	first := a.at(claim{p.uid, addr, p.sandbox}, attachment{now})
	if now != first.iface || (iface != 0 && iface != first.iface) {
		return nil, fmt.Errorf("pod %s/%s at %v: %w", p.namespace, p.name, addr, errOtherLink)
	}
	return p, nil
}

// loopback is the index of every network namespace's own lo (LOOPBACK_IFINDEX of
// the kernel's net/flow.h).
const loopback = 1

// ingress returns the interface by which a caller's connection came in. Calls from
// the node's own network come by its lo and are nobody's.
func ingress(c *net.TCPConn) (int, error) {
	iface, err := transport.IngressInterface(c)
	switch {
	case err != nil:
		return 0, refuse(reasonUnknownCaller, err)
	case iface == loopback:
		return 0, refuse(reasonHostCaller, errors.New("calls from the host network have no identity: call from a pod of its own network"))
	}
	return iface, nil
}

// routeInterface asks the kernel by which interface it reaches addr. It needs no
// privilege.
func routeInterface(addr netip.Addr) (int, error) {
	routes, err := netlink.RouteGet(net.IP(addr.AsSlice()))
	if err != nil {
		return 0, fmt.Errorf("find the route to %v: %w", addr, err)
	}
	if len(routes) == 0 || routes[0].LinkIndex == 0 {
		return 0, fmt.Errorf("find the route to %v: there is none", addr)
	}
	if routes[0].Gw != nil {
		return 0, fmt.Errorf("find the route to %v: it leads through %v, not to a pod of this node", addr, routes[0].Gw)
	}
	return routes[0].LinkIndex, nil
}
