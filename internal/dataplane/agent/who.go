package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// Why a connection's caller, or a destination's address, stands for no pod. Each
// has a counted reason.
var (
	errUnknownPod   = errors.New("no live pod of this node has the address")
	errTwoPods      = errors.New("more than one live pod of this node claims the address")
	errElsewhere    = errors.New("it is not where the pod was first found")
	errShared       = errors.New("it is found where another live pod is")
	errNoAttachment = errors.New("the kernel does not find the pod yet")
)

// An attachment is where the node's kernel finds a pod.
type attachment struct {
	// iface is the index of the interface that the route to the pod's address uses.
	iface int
	// mac and port are the neighbour's link address and the index of the bridge's
	// port that leads to it, where iface is a bridge; else zero.
	mac  string
	port int
}

// shares reports whether two pods, which have a bridge port and a link address each,
// cannot both be where a and b are.
func (a attachment) shares(b attachment) bool {
	return a.mac != "" && a.iface == b.iface && (a.mac == b.mac || a.port == b.port)
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
// pod was first seen (design, section 3: "Who calls"). What two pods would have in
// common is recorded for neither.
type attachments struct {
	find func(netip.Addr) (attachment, error)
	stir func(netip.Addr)
	grew chan struct{} // open did

	mu    sync.Mutex // guards what follows
	first map[claim]attachment
	// open are not recorded yet. There are none as long as nobody has said lately which pods
	// there are: the address of a pod that is gone may have become another's.
	open map[claim]struct{}
}

func newAttachments(find func(netip.Addr) (attachment, error), stir func(netip.Addr)) *attachments {
	return &attachments{
		find: find, stir: stir, grew: make(chan struct{}, 1),
		first: make(map[claim]attachment), open: make(map[claim]struct{}),
	}
}

// bridged reports whether pods of this node are behind the ports of a bridge.
func (a *attachments) bridged() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, at := range a.first {
		if at.port != 0 {
			return true
		}
	}
	return false
}

// update records the attachments of pods not seen before and forgets those of
// pods that are gone.
func (a *attachments) update(s *state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first, open := make(map[claim]attachment, len(a.first)), make(map[claim]struct{})
	for addr, pods := range s.podsByAddr {
		for _, p := range pods {
			c := claim{p.uid, addr, p.sandbox}
			if at, ok := a.first[c]; ok {
				first[c] = at
			} else {
				open[c] = struct{}{}
			}
		}
	}
	if s.held {
		clear(open)
	}
	a.first, a.open = first, open
	a.record()
	if len(a.open) > 0 {
		select {
		case a.grew <- struct{}{}:
		default:
		}
	}
}

// record looks for all that is open and records what is found alone in its place.
// It returns those that the kernel has not heard of. a.mu is held.
func (a *attachments) record() (silent []netip.Addr) {
	seen := make(map[claim]attachment, len(a.open))
	for c := range a.open {
		if at, err := a.find(c.addr); err == nil {
			seen[c] = at
		} else if errors.Is(err, errSilent) {
			silent = append(silent, c.addr)
		}
	}
	alone := func(c claim, at attachment, others map[claim]attachment) bool {
		for other, there := range others {
			if other.uid != c.uid && there.shares(at) {
				return false
			}
		}
		return true
	}
	var found []claim
	for c, at := range seen {
		if alone(c, at, seen) && alone(c, at, a.first) {
			found = append(found, c)
		}
	}
	for _, c := range found {
		a.first[c] = seen[c]
		delete(a.open, c)
	}
	return silent
}

// How often it is looked for what is not recorded yet.
const (
	settleSoon = 20 * time.Millisecond
	settleLate = 5 * time.Second
)

// settle makes the kernel look for pods that it had not heard of when they were first
// seen, and records them, until ctx ends: the sooner, the smaller the chance that
// another takes their place first.
func (a *attachments) settle(ctx context.Context) {
	pause := settleSoon
	for {
		a.mu.Lock()
		silent := a.record()
		left := len(a.open)
		a.mu.Unlock()
		for _, addr := range silent {
			a.stir(addr)
		}
		var again <-chan time.Time
		if left > 0 {
			again = time.After(pause)
			pause = min(2*pause, settleLate)
		}
		select {
		case <-again:
		case <-a.grew:
			pause = settleSoon
		case <-ctx.Done():
			return
		}
	}
}

// at returns the attachment of c, which is where it is now if none could be
// recorded before. Of a pod that the newest state does not have there is none: where its
// address is found now, another may be.
func (a *attachments) at(c claim) (attachment, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, ok := a.first[c]; ok {
		return at, nil
	}
	if _, looked := a.open[c]; !looked {
		return attachment{}, errNoAttachment
	}
	a.record()
	if at, ok := a.first[c]; ok {
		return at, nil
	}
	return attachment{}, errShared
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
	now, err := a.find(addr)
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s at %v: %w: %w", p.namespace, p.name, addr, errNoAttachment, err)
	}
	first, err := a.at(claim{p.uid, addr, p.sandbox})
	if err == nil && (now != first || (iface != 0 && iface != first.iface)) {
		err = errElsewhere
	}
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s at %v: %w", p.namespace, p.name, addr, err)
	}
	return p, nil
}

// unplaced is the refusal of an address that stands for no pod; for an address that
// is no live pod's the reason is unknown. The kernel sends no news of what it finds later.
func unplaced(unknown string, err error) *refusal {
	switch {
	case errors.Is(err, errElsewhere):
		return &refusal{reason: reasonElsewhere, again: true, err: err}
	case errors.Is(err, errShared):
		return &refusal{reason: reasonShared, again: true, err: err}
	case errors.Is(err, errNoAttachment):
		return &refusal{reason: reasonNotFound, again: true, err: err}
	}
	return &refusal{reason: unknown, err: err}
}

// loopback is the index of every network namespace's own lo (LOOPBACK_IFINDEX of
// the kernel's net/flow.h).
const loopback = 1

// ingress returns the interface by which a caller's connection came in.
func (k *kernel) ingress(c *net.TCPConn) (int, error) {
	iface, err := transport.IngressInterface(c)
	if err != nil {
		return 0, refuse(reasonUnknownCaller, err)
	}
	return ingressOf(iface, addrOf(c.RemoteAddr()).Addr(), k.find)
}

// ingressOf judges the interface that the kernel names for a connection. Calls from the
// node's own network come by its lo and are nobody's.
//
// Of an IPv6 packet that a bridge hands to netfilter (bridge-nf-call-ip6tables) and
// that is translated there, the kernel remembers the interface of the route that it
// took, which for a virtual IP is lo, and not the bridge. No other packet from
// outside the node is mistaken so. Hence an address that the kernel finds behind a
// bridge came by that, whose port and link address are held against the record as ever.
func ingressOf(iface int, from netip.Addr, find func(netip.Addr) (attachment, error)) (int, error) {
	if iface != loopback {
		return iface, nil
	}
	if from.Is6() {
		if at, err := find(from); err == nil && at.mac != "" {
			return at.iface, nil
		}
	}
	return 0, refuse(reasonHostCaller, errors.New("calls from the host network have no identity: call from a pod of its own network"))
}
