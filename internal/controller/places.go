package controller

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
)

// places is where a peer's gateways are. It belongs to a peerState, whose lock
// guards it.
type places struct {
	gateways []string // the Link's own
	allow    []netip.Prefix

	book   link.Book
	merged link.Addresses
	met    map[string]bool               // addresses at which the peer was authenticated, ever
	asking map[string]context.CancelFunc // names that are being resolved
	said   []string                      // what the book was last told that the peer says
	spoken bool
	pace   *rate.Limiter
}

// A peer that says other addresses all the time must not make us dial all the time.
const (
	saidBurst = 4
	saidPause = 15 * time.Second
)

func newPlaces() places {
	return places{
		met: make(map[string]bool), asking: make(map[string]context.CancelFunc),
		pace: rate.NewLimiter(rate.Every(saidPause), saidBurst),
	}
}

// hear takes in what the peer says of its gateways, and what was stored of them.
func (l *places) hear(h *wire.Hello, stored []string, now time.Time) {
	l.book.Remember(stored, now)
	for _, at := range stored {
		l.met[at] = true
	}
	if h == nil || l.spoken && slices.Equal(l.said, h.GetGateways()) || !l.pace.AllowN(now, 1) {
		return
	}
	l.said, l.spoken = h.GetGateways(), true
	l.book.Say(l.said)
}

// around is what peers must know of this cluster, of the same moment as the Links.
type around struct {
	snapshot *snapshot
	stored   map[string][]string // gateway addresses found earlier, by Link
}

// look makes what set goes by that of a snapshot.
func (p *peers) look(s *snapshot, valid map[string]link.Peer) {
	stored := make(map[string][]string, len(s.trusts))
	for i := range s.trusts {
		if t := &s.trusts[i]; t.Spec.LinkUID == valid[t.Name].UID {
			stored[t.Name] = t.Spec.Gateways
		}
	}
	p.around = around{s, stored}
}

// owns says of each candidate whether this cluster uses it: a pod, a node, a
// Service, the API server.
func (a around) owns(candidates map[netip.Addr]bool) map[netip.Addr]bool {
	own := make(map[netip.Addr]bool, len(candidates))
	byText := make(map[string]netip.Addr, len(candidates))
	for ip := range candidates {
		own[ip] = false
		byText[ip.String()] = ip
	}
	if len(candidates) == 0 || a.snapshot == nil {
		return own
	}
	uses := func(text string) {
		if ip, ok := byText[text]; ok {
			own[ip] = true
		}
	}
	for i := range a.snapshot.pods {
		status := &a.snapshot.pods[i].Status
		for _, ip := range status.PodIPs {
			uses(ip.IP)
		}
		for _, ip := range status.HostIPs {
			uses(ip.IP)
		}
		uses(status.HostIP)
	}
	for i := range a.snapshot.services {
		for _, ip := range a.snapshot.services[i].Spec.ClusterIPs {
			uses(ip)
		}
	}
	for i := range a.snapshot.slices {
		if s := &a.snapshot.slices[i]; s.Namespace == "default" && s.Labels["kubernetes.io/service-name"] == "kubernetes" {
			for _, e := range s.Endpoints {
				for _, ip := range e.Addresses {
					uses(ip)
				}
			}
		}
	}
	return own
}

// aim makes the streams of s those to all its places. The caller holds mu.
func (p *peers) aim(s *peerState, own map[netip.Addr]bool, now time.Time) {
	if s == nil {
		return
	}
	l := &s.places
	p.ask(s)
	l.merged = l.book.Merge(l.gateways, link.Filter{Ranges: p.ranges, Own: own, Allow: l.allow}, now)
	addresses := make([]string, 0, len(l.merged.Use))
	for _, a := range l.merged.Use {
		addresses = append(addresses, a.At)
	}
	maps.DeleteFunc(l.met, func(at string, _ bool) bool { return !slices.Contains(addresses, at) })
	p.dial(s, addresses)
}

// ask makes the names that are being resolved those of the Link and of the peer's
// word. The caller holds mu.
func (p *peers) ask(s *peerState) {
	names := s.places.book.Names(s.places.gateways)
	for host, end := range s.places.asking {
		if !slices.Contains(names, host) {
			end()
			delete(s.places.asking, host)
		}
	}
	for _, host := range names {
		if s.places.asking[host] != nil {
			continue
		}
		life, end := context.WithCancel(s.life)
		s.places.asking[host] = end
		p.running.Go(func() { p.resolve(life, s, host) })
	}
}

const (
	// lookupTimeout bounds one question to DNS.
	lookupTimeout = 5 * time.Second
	// lookupPause is how long an answer is taken for true.
	lookupPause = 30 * time.Second
)

// resolve asks DNS for a host again and again, until ctx ends, and tells of what is new.
func (p *peers) resolve(ctx context.Context, s *peerState, host string) {
	failing := backoff.Backoff{Min: time.Second, Max: lookupPause}
	var last *link.Answer
	for {
		answer := p.answer(ctx, host)
		if ctx.Err() != nil {
			return
		}
		if last == nil || last.Fault != answer.Fault || !slices.Equal(last.IPs, answer.IPs) {
			last = &answer
			p.note(s, func() {
				if ctx.Err() == nil {
					s.places.book.Answer(host, answer)
				}
			})
		}
		pause := lookupPause
		if answer.Fault != "" {
			pause = failing.Next() + settle
		} else {
			failing.Reset()
		}
		if !backoff.Sleep(ctx, pause) {
			return
		}
	}
}

// answer asks DNS once.
func (p *peers) answer(ctx context.Context, host string) link.Answer {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := p.lookup(ctx, host)
	if err != nil {
		return link.Answer{Fault: explainDNS(err)}
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	ips = slices.DeleteFunc(ips, func(ip netip.Addr) bool { return !p.speaks(ip) })
	slices.SortFunc(ips, netip.Addr.Compare)
	ips = slices.Compact(ips)
	if len(ips) == 0 {
		return link.Answer{Fault: dnsEmpty}
	}
	return link.Answer{IPs: ips}
}

// speaks reports whether this cluster has addresses of ip's family: what it cannot
// dial is no gateway that fails.
func (p *peers) speaks(ip netip.Addr) bool {
	return len(p.ranges) == 0 || slices.ContainsFunc(p.ranges, func(r netip.Prefix) bool { return r.Addr().Is4() == ip.Is4() })
}

// Why DNS has no answer: a closed list, as it is shown in conditions.
const (
	dnsUnknown = "DNS knows no such name: check its spelling, and that the controller's pods can resolve it"
	dnsSilent  = "the DNS server does not answer: check the cluster's DNS"
	dnsEmpty   = "DNS knows the name, but no address of it that this cluster can dial"
	dnsFailed  = "the DNS server failed: check the cluster's DNS"
)

func explainDNS(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return dnsUnknown
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return dnsSilent
	}
	return dnsFailed
}

// found is what a PeerTrust should hold of a peer's gateways: addresses at which the
// peer was authenticated and which DNS or the peer says now, and of those stored
// all that are not forgotten.
func (h heard) found(stored []string) []string {
	use := make(map[string]bool)
	for _, a := range h.addresses.Use {
		use[a.At] = a.From != ""
	}
	var out []string
	for _, at := range stored {
		if use[at] {
			out = append(out, at)
		}
	}
	for _, at := range h.addresses.Fresh {
		if h.met[at] && use[at] {
			out = append(out, at)
		}
	}
	slices.SortFunc(out, strings.Compare)
	return slices.Compact(out)
}

// gateways are what agents may use of a peer's addresses: the Link's own, and of
// others those at which the peer was authenticated.
func (h heard) gateways() []view.Gateway {
	var out []view.Gateway
	for _, a := range h.addresses.Use {
		if a.From == "" || h.met[a.At] {
			out = append(out, view.Gateway{Address: a.At, Healthy: h.healthy[a.At]})
		}
	}
	return out
}

// counted are the addresses that should answer. One that the peer says and that never
// did may be meant for others, behind its NAT.
func (h heard) counted() []link.Address {
	return slices.DeleteFunc(slices.Clone(h.addresses.Use), func(a link.Address) bool { return a.Said && !h.met[a.At] })
}
