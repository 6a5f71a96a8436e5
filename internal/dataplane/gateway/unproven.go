package gateway

import (
	"container/list"
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

// Bounds of the connections that have only a valid label. Labels can be observed and
// hellos can be replayed, so a connection without the keys gets no further than this.
const (
	maxUnproven = 512 // per link
	proofTime   = 5 * time.Second
	// A source is known to a link while it has a proven connection, and for knownTime
	// after that.
	knownTime = 10 * time.Minute
	maxKnown  = 1024 // sources per link
	// The rate of unproven connections from one source to one link, and from all
	// unknown sources together to one link.
	unprovenRate  = 500
	unprovenBurst = 2000
)

// Why a connection with a valid label is refused or cut before it is proven.
var (
	errUnprovenRate = refuse(reasonUnprovenRate,
		errors.New("its source or its link has too many new connections that are not proven"))
	errEvicted = refuse(reasonEvicted,
		errors.New("its link has too many connections that are not proven, and it was the oldest"))
	errUnproven = refuse(reasonUnproven, errors.New("the far side has not answered beyond the handshake"))
)

// unprovenPool holds the connections whose far side has not answered yet. Each link has
// room for so many. When one more comes, the oldest is evicted, with one exception: the
// sources that are known, because they have proven a connection, are assured of half of
// the room. A caller without the link's keys never becomes such a source, from however
// many addresses it comes.
//
// A connection takes a token of its source and, if the source is unknown, one of its
// link. Both tokens are returned when it is proven, so only connections that are never
// proven are limited.
//
// Every operation takes constant time.
type unprovenPool struct {
	max         int // per link
	sourceRate  *budget.Rates[linkSource]
	unknownRate *budget.Rates[string] // by link UID

	mu    sync.Mutex // guards what follows
	count int
	seq   uint64
	links map[string]*unprovenLink // by UID
}

type linkSource struct {
	link   string // UID
	source netip.Prefix
}

type unprovenLink struct {
	// The connections (*candidate) from known and from unknown sources, oldest first.
	known, unknown list.List
	// sources holds the known sources.
	sources *budget.Map[netip.Prefix, *knownSource]
}

// knownSource is a source that has proven a connection.
type knownSource struct {
	open  int       // proven connections
	until time.Time // when it is unknown again, unless one is open
}

// candidate is a connection that is not proven yet. Its pool's lock guards element and
// proof.
type candidate struct {
	linkSource
	known   bool // its source was, when it came
	seq     uint64
	cut     context.CancelCauseFunc
	element *list.Element // nil once it has left the pool
	proof   *knownSource  // nil unless it is proven and open
}

func newUnproven(max int) *unprovenPool {
	return &unprovenPool{
		max:         max,
		sourceRate:  budget.NewRates[linkSource](unprovenRate, unprovenBurst),
		unknownRate: budget.NewRates[string](unprovenRate, unprovenBurst),
		links:       make(map[string]*unprovenLink),
	}
}

// admit adds a connection. If that is too many, it cuts one with errEvicted, which may
// be the new one. It returns errUnprovenRate if such connections come too fast. The
// caller must call release for an admitted connection.
func (u *unprovenPool) admit(link string, source netip.Prefix, cut context.CancelCauseFunc) (*candidate, error) {
	c := &candidate{linkSource: linkSource{link, source}, cut: cut}
	c.known = u.isKnown(c.linkSource)
	if !u.sourceRate.Allow(c.linkSource) || !c.known && !u.unknownRate.Allow(link) {
		return nil, errUnprovenRate
	}
	if victim := u.insert(c); victim != nil {
		victim.cut(errEvicted)
	}
	return c, nil
}

// isKnown reports whether a source is known to the link.
func (u *unprovenPool) isKnown(of linkSource) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.links[of.link]
	if l == nil {
		return false
	}
	s, ok := l.sources.Get(of.source)
	return ok && (s.open > 0 || time.Now().Before(s.until))
}

func (u *unprovenPool) insert(c *candidate) (victim *candidate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.links[c.link]
	if l == nil {
		l = &unprovenLink{sources: budget.NewMap[netip.Prefix, *knownSource](maxKnown)}
		u.links[c.link] = l
	}
	u.seq++
	c.seq = u.seq
	c.element = l.queue(c.known).PushBack(c)
	u.count++
	if l.known.Len()+l.unknown.Len() <= u.max {
		return nil
	}
	victim = l.evictionVictim(u.max / 2)
	u.remove(victim)
	return victim
}

func (l *unprovenLink) queue(known bool) *list.List {
	if known {
		return &l.known
	}
	return &l.unknown
}

// evictionVictim returns the oldest connection. If at most assured are from known
// sources, it returns the oldest of the others.
func (l *unprovenLink) evictionVictim(assured int) *candidate {
	known, unknown := oldest(&l.known), oldest(&l.unknown)
	if known == nil || unknown != nil && (l.known.Len() <= assured || unknown.seq < known.seq) {
		return unknown
	}
	return known
}

func oldest(l *list.List) *candidate {
	if e := l.Front(); e != nil {
		return e.Value.(*candidate)
	}
	return nil
}

// markProven records that a connection's far side has answered. The connection leaves
// the pool, and its source becomes known.
func (u *unprovenPool) markProven(c *candidate) {
	u.sourceRate.Refund(c.linkSource)
	if !c.known {
		u.unknownRate.Refund(c.link)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if l := u.links[c.link]; l != nil {
		s, ok := l.sources.Get(c.source)
		if !ok {
			s = &knownSource{}
		}
		l.sources.Put(c.source, s)
		s.open++
		c.proof = s
	}
	u.remove(c)
}

// release records that a connection has ended. It may be repeated.
func (u *unprovenPool) release(c *candidate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c.proof != nil {
		c.proof.open--
		c.proof.until = time.Now().Add(knownTime)
		c.proof = nil
	}
	u.remove(c)
}

// remove removes a connection from the pool.
func (u *unprovenPool) remove(c *candidate) {
	if c.element == nil {
		return
	}
	l := u.links[c.link]
	l.queue(c.known).Remove(c.element)
	c.element = nil
	u.count--
	u.deleteIfEmpty(c.link, l)
}

// deleteIfEmpty deletes a link that has no connections and no sources.
func (u *unprovenPool) deleteIfEmpty(link string, l *unprovenLink) {
	if l.known.Len() == 0 && l.unknown.Len() == 0 && l.sources.Len() == 0 {
		delete(u.links, link)
	}
}

// dropSources deletes the known sources of the links for which hold returns false.
func (u *unprovenPool) dropSources(hold func(link string) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for link, l := range u.links {
		if !hold(link) {
			l.sources = budget.NewMap[netip.Prefix, *knownSource](maxKnown)
			u.deleteIfEmpty(link, l)
		}
	}
}

// len returns how many connections are not proven yet.
func (u *unprovenPool) len() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.count
}
