package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// claims returns the addresses that the pods of s claim. It leaves out pods on the host
// network, which have the addresses of the node.
func (s *state) claims() []podid.Claim {
	var out []podid.Claim
	for addr := range s.podsByAddr {
		out = append(out, s.claimsOn(addr)...)
	}
	return out
}

func (s *state) claimsOn(addr netip.Addr) []podid.Claim {
	out := make([]podid.Claim, 0, len(s.podsByAddr[addr]))
	for _, p := range s.podsByAddr[addr] {
		out = append(out, p.claim(addr))
	}
	return out
}

func (p *pod) claim(addr netip.Addr) podid.Claim {
	return podid.Claim{UID: p.uid, Addr: addr, Sandbox: p.sandbox}
}

// podAt returns the pod of s that an address belongs to. iface is the interface by
// which a connection from the address came in; 0 is for a dial to the address.
func (a *Agent) podAt(s *state, addr netip.Addr, iface int) (*pod, error) {
	var err error
	if iface == 0 {
		_, err = a.podTable.Destination(addr, s.claimsOn(addr))
	} else {
		_, err = a.podTable.Source(addr, iface, s.claimsOn(addr))
	}
	pods := s.podsByAddr[addr]
	switch {
	case err == nil:
		return pods[0], nil
	case len(pods) == 1:
		err = fmt.Errorf("pod %s/%s: %w", pods[0].namespace, pods[0].name, err)
	}
	return nil, err
}

// podLookupRefusal returns the refusal of an address that belongs to no pod. unknown is
// the reason if no live pod has the address. The other reasons are retried, because the
// kernel sends no notification when it finds a pod.
func podLookupRefusal(unknown string, err error) *refusal {
	switch {
	case errors.Is(err, podid.ErrMoved):
		return &refusal{reason: reasonPodMoved, retry: true, err: err}
	case errors.Is(err, podid.ErrAmbiguous):
		return &refusal{reason: reasonAmbiguousPod, retry: true, err: err}
	case errors.Is(err, podid.ErrNotLocated):
		return &refusal{reason: reasonPodNotLocated, retry: true, err: err}
	case errors.Is(err, podid.ErrTooManyLookups):
		return &refusal{reason: reasonTooManyLookups, retry: true, err: err}
	}
	return &refusal{reason: unknown, err: err}
}

// ingress returns the interface by which a caller's connection came in.
func (a *Agent) ingress(c *net.TCPConn) (int, error) {
	iface, err := a.podTable.Ingress(c)
	switch {
	case errors.Is(err, podid.ErrHostNetwork):
		return 0, refuse(reasonHostCaller, err)
	case err != nil:
		return 0, refuse(reasonUnknownCaller, err)
	}
	return iface, nil
}

// A callerCheck checks whether the other end of a connection still exists.
type callerCheck struct {
	lastReceived func(*net.TCPConn) (time.Time, error)
	awaitSegment func(context.Context, *net.TCPConn, time.Time) error
}

var kernelCheck = callerCheck{transport.LastReceived, transport.AwaitSegment}

// identify returns the pod that resolve finds for a connection, as soon as it finds one.
// A connection that is older than the record of that pod may come from a pod that had the
// address before, so it needs a sign of life. It is then resolved again, because the
// address may have moved meanwhile.
func (a *Agent) identify(ctx context.Context, c *net.TCPConn, resolve func() (*pod, error)) (*pod, error) {
	p, err := awaitAnswer(ctx, &a.stateChanged, resolve)
	if err != nil {
		return nil, err
	}
	claim := p.claim(addrOf(c.RemoteAddr()).Addr())
	since := a.podTable.Since(claim)
	last, err := a.check.lastReceived(c)
	if err == nil && last.After(since) {
		return p, nil
	}
	if err == nil {
		err = a.check.awaitSegment(ctx, c, since)
	}
	if err != nil {
		return nil, refuse(reasonStale, fmt.Errorf("the connection is older than the record of pod %s/%s: %w",
			p.namespace, p.name, err))
	}
	again, err := awaitAnswer(ctx, &a.stateChanged, resolve)
	if err == nil && again.claim(claim.Addr) != claim {
		err = refuse(reasonStale, errors.New("another pod has got the address"))
	}
	if err != nil {
		return nil, err
	}
	return again, nil
}
