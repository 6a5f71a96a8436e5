package peering

import (
	"net/netip"
	"slices"
)

// ClusterAddresses says whether this cluster uses an IP itself: for a pod, a node, a
// Service, or the API server. AddressIndex implements it.
type ClusterAddresses interface {
	Contains(ip netip.Addr) bool
}

// AddressIndex counts how often the objects of this cluster use each IP. It does not
// record which IPs an object has, because a cluster has many objects and the caller knows
// that anyway. The zero value is empty. It is not safe for concurrent use.
type AddressIndex struct {
	uses map[netip.Addr]int
}

// Replace removes the IPs in before and adds those in after. The caller passes the
// previous and the new IPs of one object: before is empty for a new object, and after is
// empty for a deleted one. Replace ignores texts that are not an IP.
func (x *AddressIndex) Replace(before, after []string) {
	if slices.Equal(before, after) {
		return
	}
	if x.uses == nil {
		x.uses = make(map[netip.Addr]int)
	}
	for _, text := range after {
		if ip, err := netip.ParseAddr(text); err == nil {
			x.uses[ip.Unmap()]++
		}
	}
	for _, text := range before {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue
		}
		if x.uses[ip.Unmap()]--; x.uses[ip.Unmap()] == 0 {
			delete(x.uses, ip.Unmap())
		}
	}
}

// Contains implements ClusterAddresses.
func (x *AddressIndex) Contains(ip netip.Addr) bool { return x.uses[ip.Unmap()] > 0 }
