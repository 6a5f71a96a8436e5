package peering

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/link"
)

// gatewayAddresses is where a peer's gateways are.
//
//	Link, DNS, the peer's Hello, PeerTrust ──link.AddressBook──▶ merged ──▶ streams
//
// It is part of a peer, and Peers.mu guards it.
type gatewayAddresses struct {
	configured []string       // by the Link
	allow      []netip.Prefix // the Link's gatewayCIDRs

	book          link.AddressBook
	merged        link.Addresses
	authenticated map[string]bool               // discovered addresses at which the peer was authenticated
	lookups       map[string]context.CancelFunc // names that are being resolved

	advertised    []string // what the book was last given
	hasAdvertised bool
	pace          *rate.Limiter // of changes of advertised

	dirty    bool                // the book or its inputs have changed since merged
	mergedAt time.Time           // when merged was computed
	own      map[netip.Addr]bool // what merged was computed with
}

// A peer that advertises other addresses all the time must not make us dial all the time.
const (
	advertisedBurst = 4
	advertisedPause = 15 * time.Second
)

// mergeInterval is how often addresses are merged although nothing changed, so that those
// that are no longer named are forgotten.
const mergeInterval = 30 * time.Second

func newGatewayAddresses() gatewayAddresses {
	return gatewayAddresses{
		authenticated: make(map[string]bool),
		lookups:       make(map[string]context.CancelFunc),
		pace:          rate.NewLimiter(rate.Every(advertisedPause), advertisedBurst),
		dirty:         true,
	}
}

// receive takes in what the Link, the PeerTrust and the peer's Hello say.
func (g *gatewayAddresses) receive(w Want, advertised []string, greeted bool, now time.Time) {
	if !slices.Equal(g.configured, w.Gateways) || !slices.Equal(g.allow, w.Allow) {
		g.configured, g.allow, g.dirty = w.Gateways, w.Allow, true
	}
	for _, at := range w.StoredGateways {
		if !g.authenticated[at] {
			g.authenticated[at], g.dirty = true, true
		}
	}
	if len(w.StoredGateways) > 0 {
		g.book.Restore(w.StoredGateways, now)
	}
	if !greeted || g.hasAdvertised && slices.Equal(g.advertised, advertised) || !g.pace.AllowN(now, 1) {
		return
	}
	g.advertised, g.hasAdvertised, g.dirty = advertised, true, true
	g.book.Advertise(advertised)
}

// usedHere says of each candidate address whether this cluster uses it.
func (g *gatewayAddresses) usedHere(addresses ClusterAddresses) map[netip.Addr]bool {
	own := g.book.Candidates(g.configured)
	for ip := range own {
		own[ip] = addresses != nil && addresses.Contains(ip)
	}
	return own
}

// syncAddresses makes the lookups and the streams of s those of its addresses. It reports
// whether the snapshot has changed. The caller holds mu.
func (p *Peers) syncAddresses(s *peer, w Want, addresses ClusterAddresses, now time.Time) bool {
	return s.apply(now, func() {
		g := &s.addresses
		g.receive(w, s.hello.GetGateways(), s.hello != nil, now)
		own := g.usedHere(addresses)
		if !g.dirty && now.Sub(g.mergedAt) < mergeInterval && maps.Equal(own, g.own) {
			return
		}
		p.syncLookups(s)
		g.merged = g.book.Merge(g.configured, link.Filter{Ranges: p.c.Ranges, Own: own, Allow: g.allow}, now)
		g.dirty, g.mergedAt, g.own = false, now, own
		use := make([]string, 0, len(g.merged.Use))
		for _, a := range g.merged.Use {
			use = append(use, a.At)
		}
		maps.DeleteFunc(g.authenticated, func(at string, _ bool) bool { return !slices.Contains(use, at) })
		p.syncStreams(s, use)
	})
}

// syncLookups makes the names that are being resolved those of the Link and of the peer's
// Hello. The caller holds mu.
func (p *Peers) syncLookups(s *peer) {
	names := s.addresses.book.Names(s.addresses.configured)
	for host, cancel := range s.addresses.lookups {
		if !slices.Contains(names, host) {
			cancel()
			delete(s.addresses.lookups, host)
		}
	}
	for _, host := range names {
		if s.addresses.lookups[host] != nil {
			continue
		}
		life, cancel := context.WithCancel(s.life)
		s.addresses.lookups[host] = cancel
		p.running.Go(func() { p.resolve(life, s, host) })
	}
}

const (
	// lookupTimeout bounds one DNS query.
	lookupTimeout = 5 * time.Second
	// lookupInterval is how long an answer is used before the next query.
	lookupInterval = 30 * time.Second
	// minLookupPause is added to the backoff after a failed query.
	minLookupPause = 50 * time.Millisecond
)

// resolve resolves a host periodically until ctx ends, and records answers that differ.
func (p *Peers) resolve(ctx context.Context, s *peer, host string) {
	failing := backoff.Backoff{Min: time.Second, Max: lookupInterval}
	var last *link.Answer
	for {
		answer := p.lookup(ctx, host)
		if ctx.Err() != nil {
			return
		}
		if last == nil || last.Fault != answer.Fault || !slices.Equal(last.IPs, answer.IPs) {
			last = &answer
			p.update(s, func() {
				if ctx.Err() == nil {
					s.addresses.book.Answer(host, answer)
					s.addresses.dirty, s.notify = true, true
				}
			})
		}
		pause := lookupInterval
		if answer.Fault != "" {
			pause = failing.Next() + minLookupPause
		} else {
			failing.Reset()
		}
		if !backoff.Sleep(ctx, pause) {
			return
		}
	}
}

// lookup queries DNS once.
func (p *Peers) lookup(ctx context.Context, host string) link.Answer {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := p.c.Lookup(ctx, host)
	if err != nil {
		return link.Answer{Fault: explainDNS(err)}
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	ips = slices.DeleteFunc(ips, func(ip netip.Addr) bool { return !p.hasFamily(ip) })
	slices.SortFunc(ips, netip.Addr.Compare)
	ips = slices.Compact(ips)
	if len(ips) == 0 {
		return link.Answer{Fault: dnsNoAddress}
	}
	return link.Answer{IPs: ips}
}

// hasFamily reports whether this cluster has addresses of ip's family. An address that it
// cannot dial must not count as a gateway that fails.
func (p *Peers) hasFamily(ip netip.Addr) bool {
	same := func(r netip.Prefix) bool { return r.Addr().Is4() == ip.Is4() }
	return len(p.c.Ranges) == 0 || slices.ContainsFunc(p.c.Ranges, same)
}

// Why DNS has no answer: a closed list, because conditions show it.
const (
	dnsUnknownName = "DNS does not know the name: " +
		"check its spelling, and that the controller's pods can resolve it"
	dnsTimeout   = "the DNS server does not answer: check the cluster's DNS"
	dnsNoAddress = "DNS knows the name, but none of its addresses can be dialed from this cluster"
	dnsFailure   = "the DNS server failed: check the cluster's DNS"
)

func explainDNS(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return dnsUnknownName
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return dnsTimeout
	}
	return dnsFailure
}

// gatewaysToStore returns what a PeerTrust should hold of the peer's gateways: addresses
// at which the peer was authenticated and which DNS or the peer names now, and of the
// stored ones those that are still in use.
func (s *Snapshot) gatewaysToStore(stored []string) []string {
	discovered := make(map[string]bool)
	for _, a := range s.Addresses.Use {
		discovered[a.At] = a.From != ""
	}
	var out []string
	for _, at := range stored {
		if discovered[at] {
			out = append(out, at)
		}
	}
	for _, at := range s.Addresses.Fresh {
		if s.Authenticated[at] && discovered[at] {
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
