package gateway

import (
	"net/netip"
	"sync"
)

// perSource counts, for each source, the connections that have not said hello. An
// IPv6 source is its /64.
type perSource struct {
	most int

	mu    sync.Mutex // guards count
	count map[netip.Prefix]int
}

func newPerSource(most int) *perSource {
	return &perSource{most: most, count: make(map[netip.Prefix]int)}
}

// enter counts one more, or returns false if there are too many already.
func (p *perSource) enter(source netip.Addr) bool {
	key := sourceOf(source)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count[key] >= p.most {
		return false
	}
	p.count[key]++
	return true
}

func (p *perSource) leave(source netip.Addr) {
	key := sourceOf(source)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count[key]--; p.count[key] <= 0 {
		delete(p.count, key)
	}
}

func sourceOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address at all: one source for all of them
	}
	return p
}
