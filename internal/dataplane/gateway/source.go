package gateway

import (
	"net"
	"net/netip"
)

// sourceOf returns what limits per source count as one source: an IPv4 address, or the
// /64 of an IPv6 address, because one host has a whole /64.
func sourceOf(a netip.Addr) netip.Prefix {
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

// addrOf returns the address of one end of a TCP connection.
func addrOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
