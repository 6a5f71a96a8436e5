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

// Bounds of what a label alone admits. Labels can be overheard and hellos replayed:
// without the keys behind them a connection comes no further than this.
const (
	maxUnproven = 512 // per link
	proofTime   = 5 * time.Second
	// A source is known to a link while it has a connection that it has proven, and for
	// knownTime after.
	knownTime = 10 * time.Minute
	maxKnown  = 1024 // sources per link
	// How fast unproven connections may come from one source to one link, and from all
	// unknown sources together to one link.
	unprovenRate  = 500
	unprovenBurst = 2000
)

// Why a connection that a label admitted is refused or ended before it is proven.
var (
	errUnprovenRate = refuse(reasonUnprovenRate,
		errors.New("its source or its link has too many new connections that are not proven"))
	errEvicted = refuse(reasonEvicted,
		errors.New("its link has too many connections that are not proven, and it was the oldest"))
	errUnproven = refuse(reasonUnproven, errors.New("the far side has not answered beyond the handshake"))
)

// unproven holds the connections whose far side has not answered yet. Each link has room
// for so many. When one more comes, the oldest is evicted, with one exception: the
// sources that are known, because they have proven a connection, are assured of half of
// the room. A caller without the link's keys never becomes such a source, from however
// many addresses it comes.
//
// A connection takes a token of its source and, if the source is unknown, one of its
// link. It gives both back when it is proven, so only those that are never proven are
// limited.
//
// Every operation takes constant time.
type unproven struct {
	max        int // per link
	fromSource *budget.Rates[linkSource]
	strangers  *budget.Rates[string] // by link UID

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
	// The connections (*candidate) from known sources and the others, oldest first.
	known, strangers list.List
	// sources are those that are known.
	sources *budget.Map[netip.Prefix, *knownSource]
}

// knownSource is a source that has proven a connection.
type knownSource struct {
	open  int       // proven connections
	until time.Time // when it is unknown again, unless one is open
}

// candidate is a connection that is to be proven. Its pool's lock guards place and proof.
type candidate struct {
	linkSource
	known bool // its source was, when it came
	seq   uint64
	cut   context.CancelCauseFunc
	place *list.Element // nil once it has left the pool
	proof *knownSource  // nil unless it is proven and open
}

func newUnproven(max int) *unproven {
	return &unproven{
		max:        max,
		fromSource: budget.NewRates[linkSource](unprovenRate, unprovenBurst),
		strangers:  budget.NewRates[string](unprovenRate, unprovenBurst),
		links:      make(map[string]*unprovenLink),
	}
}

// enter adds a connection, and cuts one with errEvicted if that is too many: perhaps the
// new one. It returns errUnprovenRate if such connections come too fast. What has entered
// must leave.
func (u *unproven) enter(link string, source netip.Prefix, cut context.CancelCauseFunc) (*candidate, error) {
	c := &candidate{linkSource: linkSource{link, source}, cut: cut}
	c.known = u.knows(c.linkSource)
	if !u.fromSource.Take(c.linkSource) || !c.known && !u.strangers.Take(link) {
		return nil, errUnprovenRate
	}
	if victim := u.add(c); victim != nil {
		victim.cut(errEvicted)
	}
	return c, nil
}

// knows reports whether a source is known to the link.
func (u *unproven) knows(of linkSource) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.links[of.link]
	if l == nil {
		return false
	}
	s, ok := l.sources.Get(of.source)
	return ok && (s.open > 0 || time.Now().Before(s.until))
}

func (u *unproven) add(c *candidate) (victim *candidate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.links[c.link]
	if l == nil {
		l = &unprovenLink{sources: budget.NewMap[netip.Prefix, *knownSource](maxKnown)}
		u.links[c.link] = l
	}
	u.seq++
	c.seq = u.seq
	c.place = l.queue(c.known).PushBack(c)
	u.count++
	if l.known.Len()+l.strangers.Len() <= u.max {
		return nil
	}
	victim = l.victim(u.max / 2)
	u.remove(victim)
	return victim
}

func (l *unprovenLink) queue(known bool) *list.List {
	if known {
		return &l.known
	}
	return &l.strangers
}

// victim returns the oldest connection, but if at most assured are from known sources,
// the oldest of the others.
func (l *unprovenLink) victim(assured int) *candidate {
	known, stranger := oldest(&l.known), oldest(&l.strangers)
	if known == nil || stranger != nil && (l.known.Len() <= assured || stranger.seq < known.seq) {
		return stranger
	}
	return known
}

func oldest(l *list.List) *candidate {
	if e := l.Front(); e != nil {
		return e.Value.(*candidate)
	}
	return nil
}

// proven notes that a connection's far side has answered: it leaves the pool, and its
// source is known.
func (u *unproven) proven(c *candidate) {
	u.fromSource.Refund(c.linkSource)
	if !c.known {
		u.strangers.Refund(c.link)
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

// leave notes that a connection has ended. Leaving again does nothing.
func (u *unproven) leave(c *candidate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c.proof != nil {
		c.proof.open--
		c.proof.until = time.Now().Add(knownTime)
		c.proof = nil
	}
	u.remove(c)
}

// remove takes a connection out of the pool.
func (u *unproven) remove(c *candidate) {
	if c.place == nil {
		return
	}
	l := u.links[c.link]
	l.queue(c.known).Remove(c.place)
	c.place = nil
	u.count--
	u.drop(c.link, l)
}

// drop frees what is kept for a link of which nothing is left.
func (u *unproven) drop(link string, l *unprovenLink) {
	if l.known.Len() == 0 && l.strangers.Len() == 0 && l.sources.Len() == 0 {
		delete(u.links, link)
	}
}

// forget forgets the known sources of the links that hold does not have.
func (u *unproven) forget(hold func(link string) bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for link, l := range u.links {
		if !hold(link) {
			l.sources = budget.NewMap[netip.Prefix, *knownSource](maxKnown)
			u.drop(link, l)
		}
	}
}

// waiting returns how many connections are not proven yet.
func (u *unproven) waiting() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.count
}
