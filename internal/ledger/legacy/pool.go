package ledger

import (
	"net/netip"
)

// pool gives out the addresses of one range that nobody has, lowest first.
type pool struct {
	prefix netip.Prefix
	used   map[netip.Addr]bool // shared with other pools
	next   netip.Addr
}

// newPool skips the range's own address and the one after it, which is kept for
// the canary that proves a node's path.
func newPool(prefix netip.Prefix, used map[netip.Addr]bool) *pool {
	prefix = prefix.Masked()
	return &pool{prefix: prefix, used: used, next: prefix.Addr().Next().Next()}
}

// holds reports whether ip is an address that p may give.
func (p *pool) holds(ip netip.Addr) bool {
	first := p.prefix.Addr().Next().Next()
	return p.prefix.Contains(ip) && first.IsValid() && ip.Compare(first) >= 0 && !p.last(ip)
}

// take returns the lowest address that nobody has had; false if there is none.
func (p *pool) take() (netip.Addr, bool) {
	for ; p.next.IsValid() && p.prefix.Contains(p.next) && !p.last(p.next); p.next = p.next.Next() {
		if ip := p.next; !p.used[ip] {
			p.used[ip] = true
			return ip, true
		}
	}
	return netip.Addr{}, false
}

// last reports whether ip is the broadcast address of an IPv4 range.
func (p *pool) last(ip netip.Addr) bool {
	next := ip.Next()
	return ip.Is4() && (!next.IsValid() || !p.prefix.Contains(next))
}
