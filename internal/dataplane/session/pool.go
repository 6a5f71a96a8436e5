// Package session keeps sessions between their exchanges, so that the next connection of the same
// caller to the same port needs no handshake.
//
//	Pick ─▶ an endpoint ─▶ Take ─▶ exchange (Enter … Leave) ─▶ Put ─▶ the next Take
//	                         └ none: make one; Begin … Done bound those made ahead of their caller
//
// What always holds:
//   - A session is used for its own key alone, by one exchange at a time.
//   - The number of idle sessions is bounded, in all and for each key, and so is their
//     idle time. Above a bound the pool retires the session that was idle longest.
//   - The pool never ends a session that carries an exchange.
package session

import (
	"container/list"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// A Member is a session. Endpoint and Sound must not call the pool.
type Member interface {
	comparable
	// Endpoint is the one that it leads to.
	Endpoint() route.EndpointID
	// Sound reports, without waiting, whether it can still carry an exchange.
	Sound() bool
	// Retire ends it in good order, without waiting.
	Retire()
}

// Bounds of a Pool.
type Bounds struct {
	// Idle is how many sessions are idle or being made ahead at most.
	Idle int
	// Life is how long one may be idle.
	Life time.Duration
	// Look is between two looks at whether idle ones are still sound.
	Look time.Duration
	// Endpoints is for how many endpoints a key may have idle sessions, whatever it needs.
	Endpoints int
	// Spare is how many more may be idle for a key.
	Spare int
}

// Peak is the length of a measuring period. A key needs as many sessions as it had
// exchanges at once, at most, in the current period and the one before.
const Peak = time.Minute

// A Pool holds the idle sessions of one agent. Make it with New, end it with Close.
type Pool[K comparable, M Member] struct {
	bounds Bounds

	mu     sync.Mutex // guards what follows
	keys   map[K]*sessions[M]
	idle   list.List // of *item[K, M], the longest idle first
	ahead  int       // being made
	looks  *time.Timer
	closed bool
	makers sync.WaitGroup
}

// sessions are those of one key.
type sessions[M Member] struct {
	idle    map[route.EndpointID][]*list.Element // the last used last
	idles   int
	busy    map[route.EndpointID]int // exchanges
	busies  int
	making  map[route.EndpointID]int
	makings int
	peak    [2]int    // of busies, in this and in the last Peak
	since   time.Time // when this one began
}

type item[K comparable, M Member] struct {
	key    K
	member M
	since  time.Time
}

// New returns an empty pool.
func New[K comparable, M Member](b Bounds) *Pool[K, M] {
	return &Pool[K, M]{bounds: b, keys: make(map[K]*sessions[M])}
}

// Pick returns one of the endpoints for the next exchange of a key: of two at random the one
// with fewer exchanges. It returns the zero value if there are none.
func (p *Pool[K, M]) Pick(key K, endpoints []route.EndpointID) route.EndpointID {
	switch len(endpoints) {
	case 0:
		return route.EndpointID{}
	case 1:
		return endpoints[0]
	}
	i := rand.IntN(len(endpoints))
	j := rand.IntN(len(endpoints) - 1)
	if j >= i {
		j++
	}
	a, b := endpoints[i], endpoints[j]
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.keys[key]; s != nil && s.busy[b] < s.busy[a] {
		return b
	}
	return a
}

// Lacks returns those of the endpoints that a key has no session with.
func (p *Pool[K, M]) Lacks(key K, endpoints []route.EndpointID) (out []route.EndpointID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.keys[key]
	for _, e := range endpoints {
		if s == nil || len(s.idle[e]) == 0 && s.busy[e] == 0 && s.making[e] == 0 {
			out = append(out, e)
		}
	}
	return out
}

// Take takes an idle session with an endpoint, or with any for the zero value. The one that was
// used last comes first. Without one it returns false.
func (p *Pool[K, M]) Take(key K, endpoint route.EndpointID) (m M, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.keys[key]
	if s == nil {
		return m, false
	}
	list := s.idle[endpoint]
	if endpoint == (route.EndpointID{}) {
		for _, list = range s.idle { // any
			break
		}
	}
	if len(list) == 0 {
		return m, false
	}
	last := list[len(list)-1]
	p.remove(last)
	return last.Value.(*item[K, M]).member, true
}

// Put puts a session in that is between exchanges. arm, which may be nil, is called before
// anybody can take it. Put returns false, and leaves the session to the caller, if the pool is
// closed.
func (p *Pool[K, M]) Put(key K, m M, arm func()) bool {
	ok, victims := p.put(key, m, arm)
	retire(victims)
	return ok
}

// put returns what is too much then.
func (p *Pool[K, M]) put(key K, m M, arm func()) (ok bool, victims []M) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, nil
	}
	if arm != nil {
		arm()
	}
	s := p.of(key)
	e := p.idle.PushBack(&item[K, M]{key, m, time.Now()})
	s.idle[m.Endpoint()] = append(s.idle[m.Endpoint()], e)
	s.idles++
	if most := max(s.need(), min(len(s.idle), p.bounds.Endpoints)) + p.bounds.Spare; s.idles > most {
		victims = append(victims, p.evict(p.oldest(s)))
	}
	if p.idle.Len() > p.bounds.Idle {
		victims = append(victims, p.evict(p.idle.Front()))
	}
	p.look()
	return true, victims
}

// Drop takes a session out, if it is still idle. It leaves its end to the caller.
func (p *Pool[K, M]) Drop(key K, m M) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.keys[key]; s != nil {
		for _, e := range s.idle[m.Endpoint()] {
			if e.Value.(*item[K, M]).member == m {
				p.remove(e)
				return true
			}
		}
	}
	return false
}

// Idle returns all idle sessions.
func (p *Pool[K, M]) Idle() []M {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []M
	for e := p.idle.Front(); e != nil; e = e.Next() {
		out = append(out, e.Value.(*item[K, M]).member)
	}
	return out
}

// Enter counts an exchange with an endpoint in, and leave counts it out, once.
func (p *Pool[K, M]) Enter(key K, endpoint route.EndpointID) (leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of(key)
	s.busies++
	s.busy[endpoint]++
	s.needed(time.Now())
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.busies--
		if s.busy[endpoint]--; s.busy[endpoint] == 0 {
			delete(s.busy, endpoint)
		}
		p.forget(key, s)
	}
}

// Begin counts a session that is about to be made ahead of its caller. It returns false
// if the pool is closed or full, or if the key needs no more sessions. A key needs one
// session beside those in use, and in all as many as it used at once within Peak. If
// Begin returns true, the caller must call Done.
func (p *Pool[K, M]) Begin(key K, endpoint route.EndpointID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.idle.Len()+p.ahead >= p.bounds.Idle {
		return false
	}
	s := p.of(key)
	if has := s.idles + s.makings; has >= max(1, s.need()-s.busies) {
		p.forget(key, s)
		return false
	}
	p.begin(s, endpoint)
	return true
}

// BeginMore is Begin for a session that is wanted for another reason, as long as there is room.
func (p *Pool[K, M]) BeginMore(key K, endpoint route.EndpointID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.idle.Len()+p.ahead >= p.bounds.Idle {
		return false
	}
	p.begin(p.of(key), endpoint)
	return true
}

func (p *Pool[K, M]) begin(s *sessions[M], endpoint route.EndpointID) {
	p.ahead++
	s.makings++
	s.making[endpoint]++
	p.makers.Add(1)
}

// Done counts out a session that Begin has counted in: it was Put, or could not be made.
func (p *Pool[K, M]) Done(key K, endpoint route.EndpointID) {
	defer p.makers.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead--
	s := p.of(key)
	s.makings--
	if s.making[endpoint]--; s.making[endpoint] == 0 {
		delete(s.making, endpoint)
	}
	p.forget(key, s)
}

// Close retires every idle session, takes no more, and waits for those being made.
func (p *Pool[K, M]) Close() {
	retire(p.close())
	p.makers.Wait()
}

func (p *Pool[K, M]) close() (victims []M) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.looks != nil {
		p.looks.Stop()
	}
	for p.idle.Len() > 0 {
		victims = append(victims, p.evict(p.idle.Front()))
	}
	return victims
}

// of returns a key's sessions, which forget drops when there are none.
func (p *Pool[K, M]) of(key K) *sessions[M] {
	s := p.keys[key]
	if s == nil {
		s = &sessions[M]{idle: make(map[route.EndpointID][]*list.Element), busy: make(map[route.EndpointID]int),
			making: make(map[route.EndpointID]int)}
		p.keys[key] = s
	}
	return s
}

func (p *Pool[K, M]) forget(key K, s *sessions[M]) {
	if s.idles == 0 && s.busies == 0 && s.makings == 0 {
		delete(p.keys, key)
	}
}

// remove takes an idle session out.
func (p *Pool[K, M]) remove(e *list.Element) {
	i := p.idle.Remove(e).(*item[K, M])
	s, at := p.keys[i.key], i.member.Endpoint()
	list := s.idle[at]
	for n := len(list) - 1; n >= 0; n-- {
		if list[n] == e {
			list = append(list[:n], list[n+1:]...)
			break
		}
	}
	if s.idle[at] = list; len(list) == 0 {
		delete(s.idle, at)
	}
	s.idles--
	p.forget(i.key, s)
}

// evict takes an idle session out, for the caller to retire without the lock: that writes to
// the network.
func (p *Pool[K, M]) evict(e *list.Element) M {
	p.remove(e)
	return e.Value.(*item[K, M]).member
}

func retire[M Member](victims []M) {
	for _, m := range victims {
		m.Retire()
	}
}

// oldest is the session that is idle for the longest time of those of a key.
func (p *Pool[K, M]) oldest(s *sessions[M]) (oldest *list.Element) {
	since := func(e *list.Element) time.Time { return e.Value.(*item[K, M]).since }
	for _, list := range s.idle {
		if e := list[0]; oldest == nil || since(e).Before(since(oldest)) {
			oldest = e
		}
	}
	return oldest
}

// look has idle sessions looked at, while there are any.
func (p *Pool[K, M]) look() {
	if p.looks == nil {
		p.looks = time.AfterFunc(p.bounds.Look, p.lookAtAll)
	}
}

func (p *Pool[K, M]) lookAtAll() { retire(p.unsound()) }

// unsound takes out what is not sound any more or has been idle for too long.
func (p *Pool[K, M]) unsound() (victims []M) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	now := time.Now()
	for e := p.idle.Front(); e != nil; {
		next, i := e.Next(), e.Value.(*item[K, M])
		if now.Sub(i.since) >= p.bounds.Life || !i.member.Sound() {
			victims = append(victims, p.evict(e))
		}
		e = next
	}
	if p.looks = nil; p.idle.Len() > 0 {
		p.look()
	}
	return victims
}

// needed takes in how many exchanges there are now.
func (s *sessions[M]) needed(now time.Time) {
	switch age := now.Sub(s.since); {
	case age >= 2*Peak:
		s.peak, s.since = [2]int{}, now
	case age >= Peak:
		s.peak, s.since = [2]int{0, s.peak[0]}, now
	}
	s.peak[0] = max(s.peak[0], s.busies)
}

// need is how many exchanges there were at a time lately.
func (s *sessions[M]) need() int { return max(s.peak[0], s.peak[1]) }
