package ledger

import (
	"encoding/binary"
	"net/netip"
)

const (
	// maxBlockSize is the number of slots of a block, unless the ranges are small.
	maxBlockSize = 256
	minBlockSize = 16
	// blocksPerRange is how many blocks the smallest range has at least, if it is large
	// enough for blocks of minBlockSize.
	blocksPerRange = 64
	// maxBlocks bounds the numbers of blocks, which an IPv6 range would not.
	maxBlocks = 1 << 16
	// maxBits is the number of bits of the largest slot number.
	maxBits = 24
)

// space maps slot numbers to addresses. Number n is the address that lies n after the
// first of each range. Therefore a slot has the same address again when a range returns.
type space struct {
	ranges []netip.Prefix // masked
	size   int            // slots of a block
}

func newSpace(ranges []netip.Prefix) space {
	s := space{size: maxBlockSize}
	for _, r := range ranges {
		s.ranges = append(s.ranges, r.Masked())
	}
	for s.size > minBlockSize && s.size > s.smallest()/blocksPerRange {
		s.size /= 2
	}
	return s
}

// capacity is the number of addresses of a range, at most 1 << maxBits.
func capacity(r netip.Prefix) int {
	return 1 << min(r.Addr().BitLen()-r.Bits(), maxBits)
}

// smallest is the capacity of the smallest range.
func (s space) smallest() int {
	least := 1 << maxBits
	for _, r := range s.ranges {
		least = min(least, capacity(r))
	}
	return least
}

// blocks is the number of blocks that have an address in some range.
func (s space) blocks() int {
	most := 0
	for _, r := range s.ranges {
		most = max(most, capacity(r))
	}
	return min((most+s.size-1)/s.size, maxBlocks)
}

// address returns the address of slot number n in range r. The range's own address, the
// canary's after it, and the last one of an IPv4 range are not given.
func address(r netip.Prefix, n int) (netip.Addr, bool) {
	most := capacity(r)
	if n < 2 || n >= most || r.Addr().Is4() && n == most-1 {
		return netip.Addr{}, false
	}
	if r.Addr().Is4() {
		a := r.Addr().As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|uint32(n))
		return netip.AddrFrom4(a), true
	}
	a := r.Addr().As16()
	binary.BigEndian.PutUint64(a[8:], binary.BigEndian.Uint64(a[8:])|uint64(n))
	return netip.AddrFrom16(a), true
}

// addresses returns the addresses of slot number n, in the order of the ranges.
func (s space) addresses(n int) []netip.Addr {
	out := make([]netip.Addr, 0, len(s.ranges))
	for _, r := range s.ranges {
		if a, ok := address(r, n); ok {
			out = append(out, a)
		}
	}
	return out
}

// usable reports whether slot number n has an address in any range.
func (s space) usable(n int) bool {
	for _, r := range s.ranges {
		if _, ok := address(r, n); ok {
			return true
		}
	}
	return false
}

// number returns the slot number of an address.
func (s space) number(a netip.Addr) (int, bool) {
	for _, r := range s.ranges {
		if !r.Contains(a) {
			continue
		}
		base, b := r.Addr().As16(), a.As16()
		if r.Addr().Is4() {
			n := binary.BigEndian.Uint32(b[12:]) - binary.BigEndian.Uint32(base[12:])
			return int(n), int(n) < 1<<maxBits
		}
		n := binary.BigEndian.Uint64(b[8:]) - binary.BigEndian.Uint64(base[8:])
		return int(n), n < 1<<maxBits
	}
	return 0, false
}
