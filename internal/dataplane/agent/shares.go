package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

const (
	// budgetAge is how long the budget that a gateway reports is valid.
	budgetAge = time.Minute
	// noBudgetAge is how long an agent makes no session after a gateway has granted no
	// further one. Behind one address there may be several gateways, and the next may
	// grant more.
	noBudgetAge = time.Second
)

// connShares divide an agent's connections, separately per direction. So no pod,
// account or link can use them all.
type connShares struct {
	// sources is by local address, before the caller is identified.
	sources *budget.Shares
	// outboundAccounts is by account, and outboundLinks by link UID.
	outboundAccounts, outboundLinks *budget.Shares
	// inboundCallers is by the caller's SPIFFE ID, and inboundLinks by link UID.
	inboundCallers, inboundLinks *budget.Shares
	// waiting is for inbound sessions that wait for OPEN, by link UID.
	waiting *budget.Shares
	// probes are inbound sessions of probes, by link's UID.
	probes *budget.Shares
	// outboundRequests and inboundRequests are for requests in flight, by account or
	// SPIFFE ID. outboundRequestLinks and inboundRequestLinks are by link UID.
	outboundRequests, outboundRequestLinks *budget.Shares
	inboundRequests, inboundRequestLinks   *budget.Shares
	// outboundWaiting and inboundWaiting are for those of these requests that wait for an
	// application that does not accept connections, by account or SPIFFE ID.
	outboundWaiting, inboundWaiting *budget.Shares
	// windows is for bytes under way in open exchanges, by link UID.
	windows *budget.Bytes
	// budgets holds how many more tunnels peers' gateways granted last, by link UID.
	budgets *ttlMap[string, uint32]
}

// callRates bound how fast connections are made, even if there is room for them. Each
// connection costs both nodes CPU time that is not charged to the pod that makes it.
type callRates struct {
	pods     *budget.Rates[netip.Addr]
	accounts *budget.Rates[account]
	// handshakes is for inbound handshakes that authenticate no caller, by the link of
	// their label and their source.
	handshakes *budget.Rates[linkSource]
	// exchanges is for inbound exchanges, by the caller's SPIFFE ID. They wait, because
	// callers may come in bursts.
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

// Rates per second, and bursts. Limits has those of pods and local accounts.
const (
	handshakeRate, handshakeBurst = 500, 2_000
	exchangeRate, exchangeBurst   = 4_000, 8_000
	renewalRate, renewalBurst     = 100, 500
)

func newCallRates(l Limits) callRates {
	return callRates{
		pods:       budget.NewRates[netip.Addr](l.podRate(), l.podBurst()),
		accounts:   budget.NewRates[account](2*l.podRate(), 2*l.podBurst()),
		handshakes: budget.NewRates[linkSource](handshakeRate, handshakeBurst),
		exchanges:  budget.NewRates[string](exchangeRate, exchangeBurst),
		renewals:   budget.NewRates[string](renewalRate, renewalBurst),
		probes:     budget.NewRates[string](probeRate, probeBurst),
	}
}

// newConnShares returns the shares for resolved limits. Open requests are divided
// as connections are by default.
func newConnShares(l Limits) *connShares {
	shares := func(perKey int) *budget.Shares { return budget.NewWithLimit(l.Connections, perKey) }
	requests := func(perKey int) *budget.Shares { return budget.NewWithLimit(l.requests, perKey) }
	half := max(1, l.requests/2)
	return &connShares{
		sources:              shares(l.ConnectionsPerPod),
		outboundAccounts:     shares(l.perAccount),
		outboundLinks:        shares(l.ConnectionsPerLink),
		inboundCallers:       shares(l.perAccount),
		inboundLinks:         shares(l.ConnectionsPerLink),
		outboundRequests:     requests(accountShare(l.requests)),
		outboundRequestLinks: requests(half),
		inboundRequests:      requests(accountShare(l.requests)),
		inboundRequestLinks:  requests(half),
		outboundWaiting:      budget.NewWithLimit(max(1, l.requests/8), max(1, l.requests/32)),
		inboundWaiting:       budget.NewWithLimit(max(1, l.requests/8), max(1, l.requests/32)),
		waiting:              budget.New(maxWaiting),
		probes:               budget.New(maxProbes),
		windows:              budget.NewBytes(budget.WindowBytes()),
		budgets:              newTTLMap[string, uint32](1024, budgetAge),
	}
}

// acquireSource counts a connection by its address alone. The caller must call leave if
// there is no error.
func (s *connShares) acquireSource(from netip.Addr) (leave func(), err error) {
	key := from.String()
	if !s.sources.Acquire(key) {
		return nil, refuse(reasonSourceShare, fmt.Errorf("%v has too many connections open", from))
	}
	return func() { s.sources.Release(key) }, nil
}

// acquireOutbound counts a call of a known caller and peer.
func (s *connShares) acquireOutbound(c *outboundConn) (leave func(), err error) {
	caller := c.caller.namespace + "/" + c.caller.serviceAccount
	link := c.peer.uid
	leave, err = acquireBoth(s.outboundAccounts, caller, reasonAccountShare, s.outboundLinks, link, reasonLinkShare)
	if err != nil {
		return nil, fmt.Errorf("account %s, link %s: %w", caller, c.peer.name, err)
	}
	return leave, nil
}

// checkBudget returns an error if the agent must not make another session, because a
// gateway of the peer has just granted none.
func (s *connShares) checkBudget(p *peer) error {
	if more, ok := s.budgets.get(p.uid, noBudgetAge); ok && more == 0 {
		return refuse(reasonGatewayBudget, fmt.Errorf("the gateway of %s grants no further session to this node's address", p.name))
	}
	return nil
}

// hasSpareBudget reports whether a peer's gateway has granted more additional tunnels
// than there are calls. The rest of the budget is reserved for calls.
func (s *connShares) hasSpareBudget(link string) bool {
	more, ok := s.budgets.get(link, budgetAge)
	return !ok || s.outboundLinks.Count(link) < int(more)
}

// recordBudget stores the budget that a gateway reports with a tunnel. The number
// includes this tunnel. 0 means that the gateway reports no budget.
func (s *connShares) recordBudget(link string, tunnels uint32) {
	s.budgets.update(link, func(uint32, time.Duration, bool) (uint32, bool) { return tunnels - 1, tunnels > 0 })
}

// acquireInbound counts a tunnel of an authenticated caller.
func (s *connShares) acquireInbound(in *inboundConn) (leave func(), err error) {
	return acquireBoth(s.inboundCallers, in.caller.String(), reasonAccountShare, s.inboundLinks, in.decision.Link.UID, reasonLinkShare)
}

var errShare = errors.New("it has its share of this agent's connections already")

// acquireBoth adds a connection to the shares of an account and of a link.
func acquireBoth(a *budget.Shares, keyA, reasonA string, b *budget.Shares, keyB, reasonB string) (leave func(), err error) {
	if err := acquireShares(a, keyA, reasonA, b, keyB, reasonB); err != nil {
		return nil, err
	}
	return func() { releaseShares(a, keyA, b, keyB) }, nil
}

// acquireShares is acquireBoth without an allocation. If it returns nil, the caller must
// call releaseShares.
func acquireShares(a *budget.Shares, keyA, reasonA string, b *budget.Shares, keyB, reasonB string) error {
	if !a.Acquire(keyA) {
		return refuse(reasonA, errShare)
	}
	if !b.Acquire(keyB) {
		a.Release(keyA)
		return refuse(reasonB, errShare)
	}
	return nil
}

func releaseShares(a *budget.Shares, keyA string, b *budget.Shares, keyB string) {
	a.Release(keyA)
	b.Release(keyB)
}

// linkMemory is the part of a budget that one link may reserve.
type linkMemory struct {
	all  *budget.Bytes
	link string
}

func (m linkMemory) Reserve(n int) bool { return m.all.Reserve(m.link, n) }
func (m linkMemory) Release(n int)      { m.all.Release(m.link, n) }

// memory returns the budget for the windows of a link's exchanges.
func (s *connShares) memory(link string) linkMemory { return linkMemory{s.windows, link} }

// newWindowGauge returns the metric of the memory that windows have.
func newWindowGauge(windows *budget.Bytes) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "causeway_agent_window_bytes",
		Help: "Memory reserved for bytes under way in open connections, beyond 64 KiB for each direction.",
	}, func() float64 { return float64(windows.Used()) })
}
