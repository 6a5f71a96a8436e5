package vipguard

import (
	"fmt"
	"net/netip"
	"slices"
)

// refuseList collects the prefixes of a list that arrives in several messages. The zero
// value is ready to use.
type refuseList struct {
	prefixes []netip.Prefix
}

// add appends the prefixes of a message, and reports whether the list is complete. It
// keeps at most MaxRefused+1 prefixes, which is enough to detect a list that is too
// long.
func (r *refuseList) add(m message) bool {
	r.prefixes = append(r.prefixes, m.Prefixes...)
	r.prefixes = r.prefixes[:min(len(r.prefixes), MaxRefused+1)]
	return !m.More
}

// take returns the list and begins the next one.
func (r *refuseList) take() []netip.Prefix {
	out := r.prefixes
	r.prefixes = nil
	return out
}

// span is a range of addresses: from first up to but without next. An invalid next is the
// end of the address space.
type span struct{ first, next netip.Addr }

// refusedSpans returns the address spans of prefixes, one entry for each IP family of
// cidrs. The key says whether the family is IPv6. The spans are sorted and do not touch
// each other. The error names a prefix that is not within cidrs, or says that there are
// too many prefixes.
func refusedSpans(cidrs, prefixes []netip.Prefix) (map[bool][]span, error) {
	families := make(map[bool][]span)
	for _, c := range cidrs {
		families[c.Addr().Is6()] = nil
	}
	if len(prefixes) > MaxRefused {
		return nil, fmt.Errorf("more than %d prefixes", MaxRefused)
	}
	for _, p := range sorted(prefixes) {
		within := func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) }
		if !p.IsValid() || p != p.Masked() || p.Addr().Zone() != "" || !slices.ContainsFunc(cidrs, within) {
			return nil, fmt.Errorf("prefix %v is not within the VIP ranges %v", p, cidrs)
		}
		spans := families[p.Addr().Is6()]
		next := last(p).Next()
		if n := len(spans); n > 0 && touches(spans[n-1], p.Addr()) {
			if spans[n-1].next.IsValid() && (!next.IsValid() || spans[n-1].next.Less(next)) {
				spans[n-1].next = next
			}
			continue
		}
		families[p.Addr().Is6()] = append(spans, span{p.Addr(), next})
	}
	return families, nil
}

// touches reports whether a span holds an address, or ends just before it.
func touches(s span, addr netip.Addr) bool {
	return !s.next.IsValid() || !s.next.Less(addr)
}

// last returns the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b) // which has the length of an address
	return addr
}
