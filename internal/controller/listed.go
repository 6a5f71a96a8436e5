package controller

import (
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// listedAddresses knows which EndpointSlices list addresses of the ranges of virtual IPs.
// The ledger gives no address to another mirror while a slice of ours still lists it.
type listedAddresses struct {
	ranges  []netip.Prefix
	bySlice map[catalog.Key][]netip.Addr
	slices  map[netip.Addr][]listing
}

// listing is a slice that lists an address. An address has one, apart from faults.
type listing struct {
	slice catalog.Key
	ours  bool // it has Causeway's labels
}

func newListedAddresses(ranges []netip.Prefix) *listedAddresses {
	return &listedAddresses{
		ranges:  ranges,
		bySlice: make(map[catalog.Key][]netip.Addr),
		slices:  make(map[netip.Addr][]listing),
	}
}

// set records a slice; nil: it was deleted. It updates the listed addresses in book.
func (l *listedAddresses) set(k catalog.Key, s *discoveryv1.EndpointSlice, book *ledger.Book) {
	before := l.bySlice[k]
	after := l.addresses(s)
	if len(before) == 0 && len(after) == 0 {
		return
	}
	ours := s != nil && s.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy
	for _, a := range before {
		if !slices.Contains(after, a) {
			l.remove(a, k)
			book.SetListed(a, l.by(a))
		}
	}
	for _, a := range after {
		l.remove(a, k)
		l.slices[a] = append(l.slices[a], listing{k, ours})
		book.SetListed(a, l.by(a))
	}
	if len(after) == 0 {
		delete(l.bySlice, k)
	} else {
		l.bySlice[k] = after
	}
}

// remove forgets that a slice lists an address.
func (l *listedAddresses) remove(a netip.Addr, slice catalog.Key) {
	left := slices.DeleteFunc(l.slices[a], func(o listing) bool { return o.slice == slice })
	if len(left) == 0 {
		delete(l.slices, a)
		return
	}
	l.slices[a] = left
}

// addresses are the addresses of a slice that are in a range of virtual IPs.
func (l *listedAddresses) addresses(s *discoveryv1.EndpointSlice) []netip.Addr {
	if s == nil {
		return nil
	}
	var out []netip.Addr
	for i := range s.Endpoints {
		for _, text := range s.Endpoints[i].Addresses {
			a, err := netip.ParseAddr(text)
			if err == nil && slices.ContainsFunc(l.ranges,
				func(p netip.Prefix) bool { return p.Contains(a) }) {
				out = append(out, a)
			}
		}
	}
	return out
}

// by returns which slices list an address.
func (l *listedAddresses) by(a netip.Addr) ledger.ListedBy {
	var out ledger.ListedBy
	for _, o := range l.slices[a] {
		switch {
		case o.ours:
			out.Causeway = true
		case out.Other == "" || o.slice.String() < out.Other:
			out.Other = o.slice.String()
		}
	}
	return out
}
