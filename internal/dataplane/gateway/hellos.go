package gateway

import (
	"container/list"
	"net/netip"
	"sync"
)

// Bounds of the connections that have not sent a whole ClientHello. An honest one takes a
// round trip, so the oldest of many is not honest.
const (
	maxHellos           = 4096
	maxHellosFromSource = 512 // a peer behind NAT is one source
)

// helloPool holds the connections that have not sent a whole ClientHello. It has room for
// so many of one source and so many in all. When one more comes, the oldest is evicted.
// Every operation takes constant time.
type helloPool struct {
	max, maxFromSource int

	mu       sync.Mutex // guards what follows
	all      list.List  // of *pendingHello, oldest first
	bySource map[netip.Prefix]*list.List
}

// pendingHello is a connection in a helloPool. Its pool's lock guards the fields below
// source.
type pendingHello struct {
	source netip.Prefix

	evict   func()
	evicted string // the reason; empty: it was not evicted
	// Its places in the pool's lists; nil once it is in no list.
	inAll, inSource *list.Element
}

func newHelloPool(max, maxFromSource int) *helloPool {
	return &helloPool{max: max, maxFromSource: maxFromSource, bySource: make(map[netip.Prefix]*list.List)}
}

// enter adds a connection, and evicts one if that is too many: perhaps the new one. evict
// must not use the pool.
func (p *helloPool) enter(source netip.Prefix, evict func()) *pendingHello {
	h := &pendingHello{source: source, evict: evict}
	if victim := p.add(h); victim != nil {
		victim.evict()
	}
	return h
}

func (p *helloPool) add(h *pendingHello) (victim *pendingHello) {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.bySource[h.source]
	if own == nil {
		own = list.New()
		p.bySource[h.source] = own
	}
	h.inAll, h.inSource = p.all.PushBack(h), own.PushBack(h)
	switch {
	case own.Len() > p.maxFromSource:
		victim = own.Front().Value.(*pendingHello)
		victim.evicted = reasonTooManyHellosFrom
	case p.all.Len() > p.max:
		victim = p.all.Front().Value.(*pendingHello)
		victim.evicted = reasonTooManyHellos
	default:
		return nil
	}
	p.remove(victim)
	return victim
}

// leave removes a connection that has sent its hello or has ended. It returns the reason
// if the connection was evicted, or else the empty string.
func (p *helloPool) leave(h *pendingHello) (evicted string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(h)
	return h.evicted
}

func (p *helloPool) remove(h *pendingHello) {
	if h.inAll == nil {
		return
	}
	own := p.bySource[h.source]
	p.all.Remove(h.inAll)
	own.Remove(h.inSource)
	h.inAll, h.inSource = nil, nil
	if own.Len() == 0 {
		delete(p.bySource, h.source)
	}
}

// pending returns how many connections are in the pool.
func (p *helloPool) pending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all.Len()
}
