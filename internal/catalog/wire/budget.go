package wire

import (
	"context"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
)

// Budgets limit what each peer costs, over all of its streams in both directions. Share
// one between the Server and all Subscribers of a process. Make it with NewBudgets. It is
// safe for concurrent use.
type Budgets struct {
	mu    sync.Mutex // guards peers
	peers map[string]*peerBudget
}

// NewBudgets returns Budgets under which no peer has cost anything.
func NewBudgets() *Budgets { return &Budgets{peers: map[string]*peerBudget{}} }

// peer returns the budget of a Link. Budgets stay for good, so that a peer cannot renew
// its budget by a new stream; there are no more of them than there were names of Links.
func (b *Budgets) peer(link string) *peerBudget {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.peers[link]
	if p == nil {
		p = newPeerBudget()
		b.peers[link] = p
	}
	return p
}

// peerBudget has the buckets of one peer. Bursts let a first catalog pass at full speed.
type peerBudget struct {
	messages bucket // received
	received bucket // bytes
	sent     bucket // bytes of Updates
	work     bucket // seconds of processing
}

func newPeerBudget() *peerBudget {
	return &peerBudget{
		messages: bucket{rate: 100, burst: 1000},
		received: bucket{rate: 4 << 20, burst: 64 << 20},
		sent:     bucket{rate: 8 << 20, burst: 128 << 20},
		work:     bucket{rate: 0.2, burst: 5},
	}
}

// receive charges one message of size bytes, and waits as long as the peer is over its
// budget. It returns the cause if ctx ends first.
func (p *peerBudget) receive(ctx context.Context, size int) error {
	now := time.Now()
	return wait(ctx, max(p.messages.charge(now, 1), p.received.charge(now, float64(size))))
}

// worked charges processing time, and waits as long as the peer is over its budget.
func (p *peerBudget) worked(ctx context.Context, d time.Duration) error {
	return wait(ctx, p.work.charge(time.Now(), d.Seconds()))
}

// send charges an Update of size bytes and returns how long to wait before the next.
func (p *peerBudget) send(size int) time.Duration {
	return p.sent.charge(time.Now(), float64(size))
}

func wait(ctx context.Context, d time.Duration) error {
	if d > 0 && !backoff.Sleep(ctx, d) {
		return context.Cause(ctx)
	}
	return nil
}

// bucket is a leaky bucket: each cost raises its level, and time lowers it. Who raises it
// above the burst waits until it is down again. Costs are never refused, so that they can
// be charged once they are known.
type bucket struct {
	rate  float64 // units per second
	burst float64

	mu    sync.Mutex // guards all below
	level float64
	at    time.Time
}

// charge adds cost at now and returns how long the caller has to wait.
func (b *bucket) charge(now time.Time, cost float64) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if elapsed := now.Sub(b.at); elapsed > 0 {
		b.level = max(0, b.level-elapsed.Seconds()*b.rate)
		b.at = now
	}
	b.level += cost
	return time.Duration(max(0, (b.level-b.burst)/b.rate) * float64(time.Second))
}
