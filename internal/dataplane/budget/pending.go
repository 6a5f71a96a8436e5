package budget

import (
	"container/list"
	"net/netip"
	"sync"
)

// Evicted says which bound of a Pending evicted a connection.
type Evicted uint8

// The bounds. Stayed: none has.
const (
	Stayed   Evicted = iota
	OfSource         // too many of its source
	OfAll            // too many in all
)

// Pending holds the connections that have not proven anything yet. It has room for so many
// of one source and so many in all. When one more comes, the oldest is evicted: an honest
// one proves itself within a round trip, so the oldest of many is not honest. Every
// operation takes constant time. It is safe for concurrent use.
type Pending struct {
	max, maxFromSource int

	mu       sync.Mutex // guards what follows
	all      list.List  // of *Place, oldest first
	bySource map[netip.Prefix]*list.List
}

// Place is a connection in a Pending, whose lock guards the fields below source.
type Place struct {
	source netip.Prefix

	evict   func()
	evicted Evicted
	// Its elements of the pool's lists; nil once it is in no list.
	inAll, inSource *list.Element
}

// NewPending returns a pool with room for max connections, and for maxFromSource of one
// source.
func NewPending(max, maxFromSource int) *Pending {
	return &Pending{max: max, maxFromSource: maxFromSource, bySource: make(map[netip.Prefix]*list.List)}
}

// Enter adds a connection, and evicts one if that is too many: perhaps the new one. evict
// must not use the pool.
func (p *Pending) Enter(source netip.Prefix, evict func()) *Place {
	h := &Place{source: source, evict: evict}
	if victim := p.add(h); victim != nil {
		victim.evict()
	}
	return h
}

func (p *Pending) add(h *Place) (victim *Place) {
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
		victim = own.Front().Value.(*Place)
		victim.evicted = OfSource
	case p.all.Len() > p.max:
		victim = p.all.Front().Value.(*Place)
		victim.evicted = OfAll
	default:
		return nil
	}
	p.remove(victim)
	return victim
}

// Leave removes a connection that has proven itself or has ended, and returns what evicted
// it, if anything has. It may be repeated.
func (p *Pending) Leave(h *Place) Evicted {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(h)
	return h.evicted
}

func (p *Pending) remove(h *Place) {
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

// Count returns how many connections are in the pool.
func (p *Pending) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all.Len()
}
