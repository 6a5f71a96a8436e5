package budget

import "net/netip"

// SourceOf returns what limits per source count as one source: an IPv4 address, or the
// /64 of an IPv6 address, because one host has a whole /64.
func SourceOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address: one source for all of them
	}
	return p
}
