package gateway

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Bounds of what a label alone admits. Labels can be overheard and hellos replayed:
// without the keys behind them they come no further than this.
const (
	maxUnproven = 512 // per link
	provenAfter = 5 * time.Second
)

// Why a connection was handed to a backend, and ended before it was proven.
var (
	errEvicted  = refuse(reasonEvicted, errors.New("its link has too many connections that are not proven, most of them from its address"))
	errUnproven = refuse(reasonUnproven, errors.New("its far side has not answered beyond the handshake"))
)

// unproven are the connections whose far side has not answered yet, by link: each
// link has room for so many, and when it is full the oldest of the source with the
// most of them goes. An IPv6 source is its /64.
type unproven struct {
	most int

	mu    sync.Mutex // guards what follows
	links map[string]*unprovenLink
}

type unprovenLink struct {
	oldest []*candidate // oldest first
	count  map[netip.Prefix]int
}

// A candidate is one connection that is to be proven.
type candidate struct {
	link   string
	source netip.Prefix
	cut    context.CancelCauseFunc
}

func newUnproven(most int) *unproven {
	return &unproven{most: most, links: make(map[string]*unprovenLink)}
}

// enter takes a connection in, and cuts another, or this one, if there are too many.
func (u *unproven) enter(link string, source netip.Addr, cut context.CancelCauseFunc) *candidate {
	c := &candidate{link, sourceOf(source), cut}
	u.mu.Lock()
	defer u.mu.Unlock()
	l := u.links[link]
	if l == nil {
		l = &unprovenLink{count: make(map[netip.Prefix]int)}
		u.links[link] = l
	}
	l.oldest = append(l.oldest, c)
	l.count[c.source]++
	if len(l.oldest) > u.most {
		victim := l.victim()
		u.remove(victim)
		victim.cut(errEvicted)
	}
	return c
}

// victim is the oldest of the source with the most; of two such sources, of the one
// whose oldest is older.
func (l *unprovenLink) victim() *candidate {
	var victim *candidate
	for _, c := range l.oldest {
		if victim == nil || l.count[c.source] > l.count[victim.source] {
			victim = c
		}
	}
	return victim
}

// leave takes out a connection that is proven or has ended. It does nothing twice.
func (u *unproven) leave(c *candidate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.remove(c)
}

func (u *unproven) remove(c *candidate) {
	l := u.links[c.link]
	if l == nil {
		return
	}
	for i, other := range l.oldest {
		if other != c {
			continue
		}
		l.oldest = slices.Delete(l.oldest, i, i+1)
		if l.count[c.source]--; l.count[c.source] == 0 {
			delete(l.count, c.source)
		}
		break
	}
	if len(l.oldest) == 0 {
		delete(u.links, c.link)
	}
}

// waiting returns how many connections are not proven yet.
func (u *unproven) waiting() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for _, l := range u.links {
		n += len(l.oldest)
	}
	return n
}
