package gateway

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

const (
	// countedTime is how long a source counts in the division of its link's connections
	// after its last connection has ended. It begins to count with its first proven
	// connection.
	countedTime = 10 * time.Minute
	// maxCounted bounds the sources of a link that count without an open connection.
	maxCounted = 1024
)

// sourceLimit returns how many of a link's connections one source may have now: the ones
// that it has, own, and those that it could still add. all is how many the link may have,
// used how many it has, and sources how many of its sources count.
//
// Each source has a fair share, which is all / (sources + 1). So one part is left for a
// new source. A source gets its fair share while there is any room. It gets more only
// while more than a quarter of all is free.
func sourceLimit(all, used, own, sources int) int {
	free := max(0, all-used)
	most := own + max(0, free-all/4)
	fair := max(1, all/(sources+1))
	return max(most, min(fair, own+free))
}

// sourceShares divides the connections of each link fairly between the sources from which
// they come. A node of a peer is a source of its own, unless it shares an address with
// others behind NAT, or an IPv6 network. Every operation takes constant time.
type sourceShares struct {
	mu    sync.Mutex // guards what follows
	byUID map[string]*linkSources
}

// linkSources are the sources of one link.
type linkSources struct {
	sources map[netip.Prefix]*sourceUse
	counted int       // sources that count
	idle    list.List // of *sourceUse that count without a connection, first to be forgotten first
}

// sourceUse is a source that has connections, or that counts without one.
type sourceUse struct {
	source  netip.Prefix
	open    int  // connections
	counted bool // it has proven a connection
	// While it counts without a connection: when it is forgotten, and its place in idle.
	until   time.Time
	element *list.Element
}

func newSourceShares() *sourceShares {
	return &sourceShares{byUID: make(map[string]*linkSources)}
}

// acquire counts a connection of a link's source, in links as well. It returns errLinkShare or
// errSourceShare if that is too many. If it returns nil, the caller must call release.
func (s *sourceShares) acquire(links *budget.Shares, of linkSource) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.link(of.link)
	defer s.deleteIfEmpty(of.link, l)
	if links.Count(of.link) < links.Limit(of.link) && l.open(of.source) >= l.limit(links, of) {
		return errSourceShare
	}
	if !links.Acquire(of.link) {
		return errLinkShare
	}
	u := l.sources[of.source]
	if u == nil {
		u = &sourceUse{source: of.source}
		l.sources[of.source] = u
	}
	u.open++
	if u.element != nil {
		l.idle.Remove(u.element)
		u.element = nil
	}
	return nil
}

// room returns how many more connections a link's source may have now.
func (s *sourceShares) room(links *budget.Shares, of linkSource) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.link(of.link)
	defer s.deleteIfEmpty(of.link, l)
	return max(0, l.limit(links, of)-l.open(of.source))
}

// markProven records that a connection of a source was proven. From then on the source
// counts in the division. Other sources do not count, because an attacker that replays a
// hello could use many addresses. The connection must be open.
func (s *sourceShares) markProven(of linkSource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.byUID[of.link]
	if l == nil || l.sources[of.source] == nil || l.sources[of.source].counted {
		return
	}
	l.sources[of.source].counted = true
	l.counted++
}

// release records that a connection has ended.
func (s *sourceShares) release(links *budget.Shares, of linkSource) {
	links.Release(of.link)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.byUID[of.link]
	u := l.sources[of.source]
	if u.open--; u.open > 0 {
		return
	}
	if !u.counted {
		delete(l.sources, of.source)
		s.deleteIfEmpty(of.link, l)
		return
	}
	u.until = time.Now().Add(countedTime)
	u.element = l.idle.PushBack(u)
	if l.idle.Len() > maxCounted {
		l.forget(l.idle.Front())
	}
}

// link returns the sources of a link, without those that no longer count.
func (s *sourceShares) link(uid string) *linkSources {
	l := s.byUID[uid]
	if l == nil {
		l = &linkSources{sources: make(map[netip.Prefix]*sourceUse)}
		s.byUID[uid] = l
	}
	now := time.Now()
	for e := l.idle.Front(); e != nil && !now.Before(e.Value.(*sourceUse).until); e = l.idle.Front() {
		l.forget(e)
	}
	return l
}

func (l *linkSources) limit(links *budget.Shares, of linkSource) int {
	return sourceLimit(links.Limit(of.link), links.Count(of.link), l.open(of.source), l.counted)
}

func (l *linkSources) open(source netip.Prefix) int {
	if u := l.sources[source]; u != nil {
		return u.open
	}
	return 0
}

func (l *linkSources) forget(e *list.Element) {
	delete(l.sources, l.idle.Remove(e).(*sourceUse).source)
	l.counted--
}

// deleteIfEmpty deletes a link that has no connections and no sources.
func (s *sourceShares) deleteIfEmpty(uid string, l *linkSources) {
	if len(l.sources) == 0 {
		delete(s.byUID, uid)
	}
}

// dropLinks forgets the sources without a connection of the links for which hold returns
// false.
func (s *sourceShares) dropLinks(hold func(uid string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, l := range s.byUID {
		if hold(uid) {
			continue
		}
		for e := l.idle.Front(); e != nil; e = l.idle.Front() {
			l.forget(e)
		}
		s.deleteIfEmpty(uid, l)
	}
}
