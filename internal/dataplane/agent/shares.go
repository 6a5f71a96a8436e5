package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

// grantAge is how long the word of a gateway holds about how many tunnels it grants.
const grantAge = time.Minute

// allowances divide an agent's connections, of each way for itself: no pod, account or
// link can leave nothing to others.
type allowances struct {
	// sources are local pods' addresses, before it is known whose they are.
	sources *budget.Shares
	// callers and calls are outbound, by account and by link's UID.
	callers, calls *budget.Shares
	// guests and links are inbound, by the caller's SPIFFE ID and by link's UID.
	guests, links *budget.Shares
	// waiting are inbound sessions that wait for OPEN, by link's UID.
	waiting *budget.Shares
	// probes are inbound sessions of probes, by link's UID.
	probes *budget.Shares
	// granted is what peers' gateways grant, by link's UID.
	granted *fading[string, uint32]
}

// callRates bound how fast connections are made, even if there is room for them. Each
// costs both nodes CPU time that is not charged to the pod that makes it.
type callRates struct {
	pods     *budget.Rates[netip.Addr]
	accounts *budget.Rates[account]
	// handshakes are inbound ones that prove nobody, by the link of their label and their source.
	handshakes *budget.Rates[linkSource]
	// exchanges are inbound, by the caller's SPIFFE ID. They wait, because callers may come in
	// bursts.
	exchanges *budget.Rates[string]
	// renewals are sessions that renew others, by link.
	renewals *budget.Rates[string]
	// probes are inbound, by link's UID.
	probes *budget.Rates[string]
}

type linkSource struct {
	link   string
	source netip.Prefix
}

// Per second, and at once.
const (
	podRate, podBurst             = 2_000, 4_000
	accountRate, accountBurst     = 4_000, 8_000
	handshakeRate, handshakeBurst = 500, 2_000
	exchangeRate, exchangeBurst   = 4_000, 8_000
	renewalRate, renewalBurst     = 100, 500
)

func newCallRates() callRates {
	return callRates{
		pods:       budget.NewRates[netip.Addr](podRate, podBurst),
		accounts:   budget.NewRates[account](accountRate, accountBurst),
		handshakes: budget.NewRates[linkSource](handshakeRate, handshakeBurst),
		exchanges:  budget.NewRates[string](exchangeRate, exchangeBurst),
		renewals:   budget.NewRates[string](renewalRate, renewalBurst),
		probes:     budget.NewRates[string](probeRate, probeBurst),
	}
}

func newAllowances() *allowances {
	shares := func() *budget.Shares { return budget.New(maxConnections) }
	return &allowances{sources: shares(), callers: shares(), calls: shares(), guests: shares(), links: shares(),
		waiting: budget.New(maxWaiting), probes: budget.New(maxProbes), granted: newFading[string, uint32](1024, grantAge)}
}

// source counts a connection in by its address alone. leave must be called if there is no error.
func (l *allowances) source(from netip.Addr) (leave func(), err error) {
	key := from.String()
	if !l.sources.Enter(key) {
		return nil, refuse(reasonSourceShare, fmt.Errorf("%v has too many connections open", from))
	}
	return func() { l.sources.Leave(key) }, nil
}

// call counts in a call of a known caller and peer.
func (l *allowances) call(c *call) (leave func(), err error) {
	caller := c.caller.namespace + "/" + c.caller.serviceAccount
	link := c.peer.uid
	if most, ok := l.granted.get(link, grantAge); ok && l.calls.Count(link) >= int(most) {
		return nil, refuse(reasonGranted, fmt.Errorf("the gateway of %s grants %d tunnels, and so many are open", c.peer.name, most))
	}
	leave, err = bothShares(l.callers, caller, reasonAccountShare, l.calls, link, reasonLinkShare)
	if err != nil {
		return nil, fmt.Errorf("account %s, link %s: %w", caller, c.peer.name, err)
	}
	return leave, nil
}

// roomy reports whether a peer's gateway grants more than twice what is open: the rest is
// for calls, and not for tunnels ahead of them.
func (l *allowances) roomy(link string) bool {
	most, ok := l.granted.get(link, grantAge)
	return !ok || 2*l.calls.Count(link) < int(most)
}

// grant takes a gateway's word; 0 says nothing.
func (l *allowances) grant(link string, tunnels uint32) {
	l.granted.put(link, func(uint32, time.Duration, bool) (uint32, bool) { return tunnels, tunnels > 0 })
}

// guest counts in a tunnel of a proven caller.
func (l *allowances) guest(in *arrival) (leave func(), err error) {
	return bothShares(l.guests, in.caller.String(), reasonAccountShare, l.links, in.to.Link.UID, reasonLinkShare)
}

var errShare = errors.New("it has its share of this agent's connections already")

func bothShares(a *budget.Shares, keyA, reasonA string, b *budget.Shares, keyB, reasonB string) (leave func(), err error) {
	if !a.Enter(keyA) {
		return nil, refuse(reasonA, errShare)
	}
	if !b.Enter(keyB) {
		a.Leave(keyA)
		return nil, refuse(reasonB, errShare)
	}
	return func() { a.Leave(keyA); b.Leave(keyB) }, nil
}
