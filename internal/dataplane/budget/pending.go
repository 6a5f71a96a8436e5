package budget

import (
	"container/list"
	"net/netip"
	"sync"
)

// EvictedBy says which bound of a Pending evicted a connection.
type EvictedBy uint8

// The bounds. NotEvicted: none has.
const (
	NotEvicted EvictedBy = iota
	BySource             // too many of its source
	ByTotal              // too many in all
)

// Pending holds unauthenticated connections. It bounds them per source and in total.
// When one more comes, it evicts the oldest, because an honest peer authenticates
// within a round trip. Every operation takes constant time. It is safe for concurrent
// use.
type Pending struct {
	max, maxFromSource int

	mu       sync.Mutex // guards what follows
	all      list.List  // of *Place, oldest first
	bySource map[netip.Prefix]*list.List
}

// Entry is a connection in a Pending, whose lock guards the fields below source.
type Entry struct {
	source netip.Prefix

	evict   func()
	evicted EvictedBy
	// Its elements in the pool's lists; nil once it was removed.
	inAll, inSource *list.Element
}

// NewPending returns a pool of at most max connections, and of at most maxFromSource
// from one source.
func NewPending(max, maxFromSource int) *Pending {
	return &Pending{max: max, maxFromSource: maxFromSource, bySource: make(map[netip.Prefix]*list.List)}
}

// Add adds a connection. If that is too many, it evicts one, which may be the new one.
// evict must not use the pool.
func (p *Pending) Add(source netip.Prefix, evict func()) *Entry {
	e := &Entry{source: source, evict: evict}
	if victim := p.add(e); victim != nil {
		victim.evict()
	}
	return e
}

func (p *Pending) add(e *Entry) (victim *Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sameSource := p.bySource[e.source]
	if sameSource == nil {
		sameSource = list.New()
		p.bySource[e.source] = sameSource
	}
	e.inAll, e.inSource = p.all.PushBack(e), sameSource.PushBack(e)
	switch {
	case sameSource.Len() > p.maxFromSource:
		victim = sameSource.Front().Value.(*Entry)
		victim.evicted = BySource
	case p.all.Len() > p.max:
		victim = p.all.Front().Value.(*Entry)
		victim.evicted = ByTotal
	default:
		return nil
	}
	p.remove(victim)
	return victim
}

// Remove removes a connection that has authenticated or has ended, and returns which
// bound evicted it, if any. It may be repeated.
func (p *Pending) Remove(e *Entry) EvictedBy {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(e)
	return e.evicted
}

func (p *Pending) remove(e *Entry) {
	if e.inAll == nil {
		return
	}
	sameSource := p.bySource[e.source]
	p.all.Remove(e.inAll)
	sameSource.Remove(e.inSource)
	e.inAll, e.inSource = nil, nil
	if sameSource.Len() == 0 {
		delete(p.bySource, e.source)
	}
}

// Count returns how many connections are in the pool.
func (p *Pending) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all.Len()
}
