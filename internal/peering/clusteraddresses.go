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

// AddressIndex counts the IPs that objects of this cluster use. It keeps nothing per
// object, because a cluster has many: its caller knows what each object had before. The
// zero value is empty. It is not safe for concurrent use.
type AddressIndex struct {
	uses map[netip.Addr]int // how often objects mention it
}

// Replace takes in that an object that had the IPs before has the IPs after now; one that
// is new had none, and one that was deleted has none. Texts that are not an IP are
// ignored.
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
