package agent

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

const (
	// openingsPerCPU is how many outbound calls to one peer may be opening at the same
	// time, for each CPU of the node. More of them would only wait for each other.
	openingsPerCPU = 16
	// openRate is an upper bound on the calls that a CPU can open per second. openRate
	// times the round trip to the peer is added to the bound, because these calls wait
	// for the network and not for the CPU.
	openRate = 2000
	// openingTime, plus two round trips, is the longest time that a call counts as
	// opening. A call that takes longer waits for an application and needs no CPU time.
	openingTime = 100 * time.Millisecond
	// maxRTT bounds what a slow path adds to these numbers.
	maxRTT = 500 * time.Millisecond
)

// openings are the outbound calls that are being opened. Make it with newOpenings.
type openings struct {
	// most is how many calls to one peer may be opening at a round trip.
	most  func(rtt time.Duration) int
	links *ttlMap[string, *linkOpenings] // by UID
}

// linkOpenings are those to one peer.
type linkOpenings struct {
	turns *budget.FairSemaphore // by pod

	mu  sync.Mutex // guards rtt
	rtt time.Duration
}

func newOpenings() *openings {
	cpus := runtime.GOMAXPROCS(0)
	return &openings{
		most:  func(rtt time.Duration) int { return openingsAt(cpus, rtt) },
		links: newTTLMap[string, *linkOpenings](1024, time.Hour),
	}
}

// openingsAt returns how many calls to one peer may be opening at the same time.
func openingsAt(cpus int, rtt time.Duration) int {
	return cpus * (openingsPerCPU + int(min(rtt, maxRTT).Seconds()*openRate))
}

func (o *openings) of(link string) *linkOpenings {
	var l *linkOpenings
	o.links.update(link, func(was *linkOpenings, _ time.Duration, there bool) (*linkOpenings, bool) {
		if l = was; !there {
			l = &linkOpenings{turns: budget.NewFairSemaphore(o.most(0))}
		}
		return l, true
	})
	return l
}

// measured records the round-trip time of a new connection to a peer's gateway. A
// shorter time counts at once. A longer time counts slowly, because a busy node
// measures times that are too long.
func (o *openings) measured(link string, rtt time.Duration) {
	if rtt <= 0 {
		return
	}
	l := o.of(link)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.rtt == 0 || rtt < l.rtt:
		l.rtt = rtt
	default:
		l.rtt += (rtt - l.rtt) / 32
	}
	l.turns.Resize(o.most(l.rtt))
}

// within is how long a call counts as opening.
func (l *linkOpenings) within() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return openingTime + 2*min(l.rtt, maxRTT)
}

// awaitOpening blocks until a call may be opened. Pods take turns, so the calls of a
// pod that connects in a loop delay each other more than the calls of other pods. If
// err is nil, the caller must call opened once the call is open or refused. The error
// says that the calling pod has closed its connection or that ctx has ended.
func (a *Agent) awaitOpening(ctx context.Context, c *net.TCPConn, out *outboundConn) (opened func(), err error) {
	l := a.openings.of(out.peer.uid)
	if !l.turns.Acquire(ctx, out.from.Addr().String(), func() bool { return !transport.IsClosed(c) }) {
		return nil, refuse(reasonCallerGone, errors.New("the caller has gone before its call was opened"))
	}
	give := sync.OnceFunc(l.turns.Release)
	late := time.AfterFunc(l.within(), give)
	return func() { late.Stop(); give() }, nil
}
