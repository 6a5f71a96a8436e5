// Package session pools sessions between exchanges, so that the next connection of the
// same caller to the same port needs no handshake.
//
//	Pick ─▶ an endpoint ─▶ Take ─▶ exchange (StartExchange) ─▶ Put ─▶ the next Take
//	                         └ none: dial one; Reserve … Unreserve bound the preconnected ones
//
// What always holds:
//   - A session is used only for its own key, by one exchange at a time.
//   - The number of idle sessions is bounded, in total and per key, and so is their
//     idle time. Above a bound the pool retires the session that has been idle longest.
//   - The pool never ends a session that carries an exchange.
package session

import (
	"container/list"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// A Member is a session. Endpoint and Healthy must not call the pool.
type Member interface {
	comparable
	// Endpoint returns the endpoint that the session reaches.
	Endpoint() route.EndpointID
	// Healthy reports, without waiting, whether the session can carry another exchange.
	Healthy() bool
	// Retire ends the session cleanly, without waiting.
	Retire()
}

// Bounds of a Pool.
type Bounds struct {
	// MaxIdle is the maximum number of sessions that are idle or reserved.
	MaxIdle int
	// IdleTimeout is how long a session may be idle.
	IdleTimeout time.Duration
	// CheckInterval is the time between two checks of idle sessions.
	CheckInterval time.Duration
	// Endpoints is the number of endpoints with which a key may always have idle
	// sessions.
	Endpoints int
	// Spare is how many more sessions of a key may be idle.
	Spare int
}

// PeakPeriod is the length of a measuring period. A key needs as many sessions as its
// highest number of concurrent exchanges in the current period and the one before.
const PeakPeriod = time.Minute

// A Pool holds the idle sessions of one agent. Make it with New, end it with Close.
type Pool[K comparable, M Member] struct {
	bounds Bounds

	mu         sync.Mutex // guards what follows
	keys       map[K]*keySessions[M]
	idle       list.List // of *item[K, M], the longest idle first
	reserved   int       // being made
	checkTimer *time.Timer
	closed     bool
	dialing    sync.WaitGroup
}

// keySessions holds the sessions of one key.
type keySessions[M Member] struct {
	idle          map[route.EndpointID][]*list.Element // the last used last
	idleCount     int
	busy          map[route.EndpointID]int // exchanges
	busyCount     int
	reserved      map[route.EndpointID]int
	reservedCount int
	peak          [2]int    // of busies, in this and in the last Peak
	since         time.Time // when this one began
}

type item[K comparable, M Member] struct {
	key    K
	member M
	since  time.Time
}

// New returns an empty pool.
func New[K comparable, M Member](b Bounds) *Pool[K, M] {
	return &Pool[K, M]{bounds: b, keys: make(map[K]*keySessions[M])}
}

// Pick returns one of the endpoints for the next exchange of a key. It takes two at
// random and returns the one with fewer exchanges. It returns the zero value if there
// are none.
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

// Missing returns the endpoints with which a key has no session.
func (p *Pool[K, M]) Missing(key K, endpoints []route.EndpointID) (out []route.EndpointID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.keys[key]
	for _, e := range endpoints {
		if s == nil || len(s.idle[e]) == 0 && s.busy[e] == 0 && s.reserved[e] == 0 {
			out = append(out, e)
		}
	}
	return out
}

// Take removes an idle session with an endpoint, or with any endpoint for the zero
// value, and returns it. It prefers the most recently used one. It returns false if
// there is none.
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

// Put adds a session that has no exchange. It calls arm, which may be nil, before
// another goroutine can take the session. If the pool is closed, Put returns false and
// the caller keeps the session.
func (p *Pool[K, M]) Put(key K, m M, arm func()) bool {
	ok, victims := p.put(key, m, arm)
	retire(victims)
	return ok
}

// put is Put, but returns the sessions that exceed a bound.
func (p *Pool[K, M]) put(key K, m M, arm func()) (ok bool, victims []M) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, nil
	}
	if arm != nil {
		arm()
	}
	s := p.sessionsOf(key)
	e := p.idle.PushBack(&item[K, M]{key, m, time.Now()})
	s.idle[m.Endpoint()] = append(s.idle[m.Endpoint()], e)
	s.idleCount++
	if most := max(s.peakUse(), min(len(s.idle), p.bounds.Endpoints)) + p.bounds.Spare; s.idleCount > most {
		victims = append(victims, p.evict(p.oldest(s)))
	}
	if p.idle.Len() > p.bounds.MaxIdle {
		victims = append(victims, p.evict(p.idle.Front()))
	}
	p.scheduleCheck()
	return true, victims
}

// Drop removes a session if it is still idle. The caller must end it.
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

// StartExchange counts an exchange with an endpoint. The caller must call leave once,
// when the exchange has ended.
func (p *Pool[K, M]) StartExchange(key K, endpoint route.EndpointID) (leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sessionsOf(key)
	s.busyCount++
	s.busy[endpoint]++
	s.updatePeak(time.Now())
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.busyCount--
		if s.busy[endpoint]--; s.busy[endpoint] == 0 {
			delete(s.busy, endpoint)
		}
		p.deleteIfEmpty(key, s)
	}
}

// Reserve counts a session that is about to be preconnected. It returns false if the
// pool is closed or full, or if the key needs no more sessions. A key needs one session
// beside those in use, and in total as many as it used concurrently within PeakPeriod.
// If Reserve returns true, the caller must call Unreserve.
func (p *Pool[K, M]) Reserve(key K, endpoint route.EndpointID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.idle.Len()+p.reserved >= p.bounds.MaxIdle {
		return false
	}
	s := p.sessionsOf(key)
	if has := s.idleCount + s.reservedCount; has >= max(1, s.peakUse()-s.busyCount) {
		p.deleteIfEmpty(key, s)
		return false
	}
	p.reserve(s, endpoint)
	return true
}

// ReserveExtra is Reserve for a session that is needed for another reason. It fails
// only if the pool is closed or full.
func (p *Pool[K, M]) ReserveExtra(key K, endpoint route.EndpointID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.idle.Len()+p.reserved >= p.bounds.MaxIdle {
		return false
	}
	p.reserve(p.sessionsOf(key), endpoint)
	return true
}

func (p *Pool[K, M]) reserve(s *keySessions[M], endpoint route.EndpointID) {
	p.reserved++
	s.reservedCount++
	s.reserved[endpoint]++
	p.dialing.Add(1)
}

// Unreserve ends a reservation, after the session was Put or could not be made.
func (p *Pool[K, M]) Unreserve(key K, endpoint route.EndpointID) {
	defer p.dialing.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved--
	s := p.sessionsOf(key)
	s.reservedCount--
	if s.reserved[endpoint]--; s.reserved[endpoint] == 0 {
		delete(s.reserved, endpoint)
	}
	p.deleteIfEmpty(key, s)
}

// Close retires every idle session, accepts no more, and waits for reserved ones.
func (p *Pool[K, M]) Close() {
	retire(p.close())
	p.dialing.Wait()
}

func (p *Pool[K, M]) close() (victims []M) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.checkTimer != nil {
		p.checkTimer.Stop()
	}
	for p.idle.Len() > 0 {
		victims = append(victims, p.evict(p.idle.Front()))
	}
	return victims
}

// sessionsOf returns the sessions of a key. deleteIfEmpty deletes them when there are
// none.
func (p *Pool[K, M]) sessionsOf(key K) *keySessions[M] {
	s := p.keys[key]
	if s == nil {
		s = &keySessions[M]{idle: make(map[route.EndpointID][]*list.Element), busy: make(map[route.EndpointID]int),
			reserved: make(map[route.EndpointID]int)}
		p.keys[key] = s
	}
	return s
}

func (p *Pool[K, M]) deleteIfEmpty(key K, s *keySessions[M]) {
	if s.idleCount == 0 && s.busyCount == 0 && s.reservedCount == 0 {
		delete(p.keys, key)
	}
}

// remove removes an idle session.
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
	s.idleCount--
	p.deleteIfEmpty(i.key, s)
}

// evict removes an idle session and returns it. The caller must retire it without the
// lock, because that writes to the network.
func (p *Pool[K, M]) evict(e *list.Element) M {
	p.remove(e)
	return e.Value.(*item[K, M]).member
}

func retire[M Member](victims []M) {
	for _, m := range victims {
		m.Retire()
	}
}

// oldest returns the session of a key that has been idle longest.
func (p *Pool[K, M]) oldest(s *keySessions[M]) (oldest *list.Element) {
	since := func(e *list.Element) time.Time { return e.Value.(*item[K, M]).since }
	for _, list := range s.idle {
		if e := list[0]; oldest == nil || since(e).Before(since(oldest)) {
			oldest = e
		}
	}
	return oldest
}

// scheduleCheck starts the timer of the next check while there are idle sessions.
func (p *Pool[K, M]) scheduleCheck() {
	if p.checkTimer == nil {
		p.checkTimer = time.AfterFunc(p.bounds.CheckInterval, p.checkIdle)
	}
}

func (p *Pool[K, M]) checkIdle() { retire(p.takeUnhealthy()) }

// takeUnhealthy removes the sessions that are unhealthy or have been idle for too long.
func (p *Pool[K, M]) takeUnhealthy() (victims []M) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	now := time.Now()
	for e := p.idle.Front(); e != nil; {
		next, i := e.Next(), e.Value.(*item[K, M])
		if now.Sub(i.since) >= p.bounds.IdleTimeout || !i.member.Healthy() {
			victims = append(victims, p.evict(e))
		}
		e = next
	}
	if p.checkTimer = nil; p.idle.Len() > 0 {
		p.scheduleCheck()
	}
	return victims
}

// updatePeak records the current number of exchanges.
func (s *keySessions[M]) updatePeak(now time.Time) {
	switch age := now.Sub(s.since); {
	case age >= 2*PeakPeriod:
		s.peak, s.since = [2]int{}, now
	case age >= PeakPeriod:
		s.peak, s.since = [2]int{0, s.peak[0]}, now
	}
	s.peak[0] = max(s.peak[0], s.busyCount)
}

// peakUse returns the highest number of concurrent exchanges in the last two periods.
func (s *keySessions[M]) peakUse() int { return max(s.peak[0], s.peak[1]) }
