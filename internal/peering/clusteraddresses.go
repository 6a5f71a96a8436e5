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

// AddressIndex indexes the IPs that objects of this cluster use. Each operation costs as
// much as the addresses of one object. The zero value is empty. It is not safe for
// concurrent use.
type AddressIndex struct {
	byKey map[string][]netip.Addr
	uses  map[netip.Addr]int // number of keys
}

// Add sets the IPs of the object with a key, such as pod/shop/web-0, and replaces those
// of an earlier call. Texts that are not an IP are ignored. The order and duplicates do
// not matter.
func (x *AddressIndex) Add(key string, ips ...string) {
	var next []netip.Addr
	for _, text := range ips {
		if ip, err := netip.ParseAddr(text); err == nil {
			next = append(next, ip.Unmap())
		}
	}
	slices.SortFunc(next, netip.Addr.Compare)
	next = slices.Compact(next)
	if slices.Equal(next, x.byKey[key]) {
		return
	}
	x.Remove(key)
	if len(next) == 0 {
		return
	}
	if x.byKey == nil {
		x.byKey, x.uses = make(map[string][]netip.Addr), make(map[netip.Addr]int)
	}
	x.byKey[key] = next
	for _, ip := range next {
		x.uses[ip]++
	}
}

// Remove removes the IPs of an object. A key that is not there is ignored.
func (x *AddressIndex) Remove(key string) {
	for _, ip := range x.byKey[key] {
		if x.uses[ip]--; x.uses[ip] == 0 {
			delete(x.uses, ip)
		}
	}
	delete(x.byKey, key)
}

// Contains implements ClusterAddresses.
func (x *AddressIndex) Contains(ip netip.Addr) bool { return x.uses[ip.Unmap()] > 0 }
