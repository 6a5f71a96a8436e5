package agent

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/parallelism"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

const (
	// openingsPerCPU is how many outbound calls to one peer may be opening at the same
	// time, for each CPU of the node. More of them would only wait for each other.
	openingsPerCPU = 4
	// quietOpeningsPerCPU is how many of them leave the CPU idle for most of the time.
	quietOpeningsPerCPU = 2
	// newSessionsPerCPU is how many of them may make a session at the same time. The
	// handshake takes several times the CPU time of a call on an idle session, on both
	// sides. So on a busy node a call waits a little, and then mostly finds a session that
	// has become idle.
	newSessionsPerCPU = 1
	// newSessionRate is an upper bound on the sessions that a CPU can make per second.
	newSessionRate = 1000
	// openRate is an upper bound on the calls that a CPU can open per second. openRate
	// times the round trip to the peer is added to the bound, because these calls wait
	// for the network and not for the CPU.
	openRate = 2000
	// openingTime, plus two round trips, is the longest time that a call counts as
	// opening. A call that takes longer waits for an application and needs no CPU time.
	openingTime = 100 * time.Millisecond
	// maxOpeningTime takes the place of openingTime while the agent is overloaded.
	maxOpeningTime = time.Second
	// maxRTT bounds what a slow path adds to these numbers.
	maxRTT = 500 * time.Millisecond
)

// openings are the outbound calls that are being opened. Make it with newOpenings.
type openings struct {
	// most is how many calls to one peer may be opening at a round trip.
	most func(rtt time.Duration) int
	// mostNew is how many of them may make a session.
	mostNew func(rtt time.Duration) int
	// quiet is how many calls to one peer may be opening on a node that is not busy.
	quiet int
	// overloaded reports whether the agent's goroutines wait for a CPU.
	overloaded func() bool
	links      *ttlMap[string, *linkOpenings] // by UID
}

// linkOpenings are those to one peer.
type linkOpenings struct {
	turns *budget.FairSemaphore // by pod
	// newSessions has the turns of calls that make a session, by pod.
	newSessions *budget.FairSemaphore

	mu sync.Mutex // guards what follows
	// connect is the round-trip time of TCP connections to the peer's gateway, and
	// handshake the time that TLS handshakes with the peer's agents take; 0: not measured.
	// Where a load balancer terminates TCP, only handshake includes the whole path.
	connect, handshake time.Duration
	// holding is how many calls are opening.
	holding int
}

func newOpenings() *openings {
	cpus := runtime.GOMAXPROCS(0)
	return &openings{
		most:       func(rtt time.Duration) int { return openingsAt(cpus, rtt) },
		mostNew:    func(rtt time.Duration) int { return newSessionsAt(cpus, rtt) },
		quiet:      cpus * quietOpeningsPerCPU,
		overloaded: parallelism.Overloaded,
		links:      newTTLMap[string, *linkOpenings](1024, time.Hour),
	}
}

// openingsAt returns how many calls to one peer may be opening at the same time.
func openingsAt(cpus int, rtt time.Duration) int {
	return cpus * (openingsPerCPU + int(min(rtt, maxRTT).Seconds()*openRate))
}

// newSessionsAt returns how many calls to one peer may make a session at the same time.
func newSessionsAt(cpus int, rtt time.Duration) int {
	return cpus * (newSessionsPerCPU + int(min(rtt, maxRTT).Seconds()*newSessionRate))
}

func (o *openings) of(link string) *linkOpenings {
	var l *linkOpenings
	o.links.update(link, func(was *linkOpenings, _ time.Duration, there bool) (*linkOpenings, bool) {
		if l = was; !there {
			l = &linkOpenings{turns: budget.NewFairSemaphore(o.most(0)), newSessions: budget.NewFairSemaphore(o.mostNew(0))}
		}
		return l, true
	})
	return l
}

// measuredConnect records the round-trip time of a new TCP connection to a peer's gateway.
func (o *openings) measuredConnect(link string, rtt time.Duration) {
	l := o.of(link)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connect = averageRTT(l.connect, rtt)
	o.resize(l)
}

// measuredHandshake records how long a TLS handshake with an agent of a peer took, which
// is one round trip of the whole path and the CPU time of both ends. It ignores the
// times of a busy node, because its calls wait for each other: a bound that followed
// these times would make the node busier.
func (o *openings) measuredHandshake(link string, took time.Duration) {
	l := o.of(link)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holding > o.quiet {
		return
	}
	l.handshake = averageRTT(l.handshake, took)
	o.resize(l)
}

// resize adapts the bounds to the round trip. l.mu is held.
func (o *openings) resize(l *linkOpenings) {
	l.turns.Resize(o.most(l.rtt()))
	l.newSessions.Resize(o.mostNew(l.rtt()))
}

// averageRTT takes a measured time into an average; 0 means none. A shorter time counts
// at once. A longer time counts slowly, because a busy node measures times that are too
// long.
func averageRTT(average, measured time.Duration) time.Duration {
	switch {
	case measured <= 0:
		return average
	case average == 0 || measured < average:
		return measured
	}
	return average + (measured-average)/32
}

// rtt is the round-trip time to the peer's agents; 0: not measured. l.mu is held.
func (l *linkOpenings) rtt() time.Duration { return max(l.connect, l.handshake) }

// hold counts calls that are opening.
func (l *linkOpenings) hold(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holding += n
}

// within is how long a call counts as opening.
func (l *linkOpenings) within() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return openingTime + 2*min(l.rtt(), maxRTT)
}

// A slot is the turn of a call to be opened, or to make a session. The method end ends
// it, and may be called more than once. A slot expires after linkOpenings.within. While
// the agent is overloaded, it expires only after maxOpeningTime, because a slow call then
// waits for a CPU.
type slot struct {
	openings *openings
	turns    *budget.FairSemaphore
	hold     func(int) // counts turns
	timer    *time.Timer
	latest   time.Time
	isOpen   atomic.Bool // the call is open
	ended    sync.Once
}

// awaitOpening blocks until a call may be opened. Pods take turns, so the calls of a
// pod that connects in a loop delay each other more than the calls of other pods. If
// err is nil, the caller must end the turn once the call is open or refused. The error
// says that the calling pod has closed its connection or that ctx has ended.
func (a *Agent) awaitOpening(ctx context.Context, c *net.TCPConn, out *outboundConn) (*slot, error) {
	l := a.openings.of(out.peer.uid)
	return a.openings.await(ctx, c, out, l, l.turns, l.hold)
}

// awaitNewSession blocks until a call that has its turn may make a session. The caller
// must then look for an idle session again, and end the turn after the handshake. The
// error is like that of awaitOpening.
func (a *Agent) awaitNewSession(ctx context.Context, c *net.TCPConn, out *outboundConn) (*slot, error) {
	l := a.openings.of(out.peer.uid)
	return a.openings.await(ctx, c, out, l, l.newSessions, func(int) {})
}

func (o *openings) await(ctx context.Context, c *net.TCPConn, out *outboundConn, l *linkOpenings,
	turns *budget.FairSemaphore, hold func(int)) (*slot, error) {
	if !turns.Acquire(ctx, out.from.Addr().String(), func() bool { return !transport.IsClosed(c) }) {
		return nil, refuse(reasonCallerGone, errors.New("the caller closed before its connection was opened"))
	}
	hold(1)
	s := &slot{openings: o, turns: turns, hold: hold, latest: time.Now().Add(maxOpeningTime)}
	s.timer = time.AfterFunc(time.Hour, s.expire)
	s.timer.Reset(l.within())
	return s, nil
}

// end ends the turn, unless it has ended.
func (s *slot) end() {
	s.ended.Do(func() {
		s.timer.Stop()
		s.hold(-1)
		s.turns.Release()
	})
}

// opened ends the turn of a call that is open. While the agent is overloaded, the call
// keeps its turn for at most openingTime, because its bytes need a CPU, too.
func (s *slot) opened() {
	s.isOpen.Store(true)
	if !s.openings.overloaded() {
		s.end()
		return
	}
	s.timer.Reset(openingTime)
}

// expire ends the turn, unless the agent is overloaded and the turn may last longer.
func (s *slot) expire() {
	if s.openings.overloaded() && !s.isOpen.Load() && time.Now().Before(s.latest) {
		s.timer.Reset(openingTime)
		return
	}
	s.end()
}
