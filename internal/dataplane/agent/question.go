package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Bounds of what an operator's question makes this node dial.
const (
	maxReaches     = 128
	reachesAtOnce  = 8
	oneReach       = 2 * time.Second
	maxReachReason = 256
)

// reachAll dials every gateway address of every peer once, as calls would, and closes
// what it gets. Nobody chooses the addresses but the Links: it is no scanner.
func (a *Agent) reachAll(ctx context.Context) []*wire.Reach {
	s := a.state.Load()
	if s == nil {
		return nil
	}
	var out []*wire.Reach
	for _, name := range slices.Sorted(maps.Keys(s.links)) {
		for _, address := range s.links[name].gateways {
			if len(out) < maxReaches {
				out = append(out, &wire.Reach{Link: name, Address: address})
			}
		}
	}
	var dialling sync.WaitGroup
	slots := make(chan struct{}, reachesAtOnce)
	for _, r := range out {
		slots <- struct{}{}
		dialling.Go(func() {
			defer func() { <-slots }()
			a.reachOne(ctx, r)
		})
	}
	dialling.Wait()
	return out
}

// reachOne fills r with what came of a dial.
func (a *Agent) reachOne(ctx context.Context, r *wire.Reach) {
	ctx, cancel := context.WithTimeout(ctx, oneReach)
	defer cancel()
	start := time.Now()
	conn, _, err := a.dialer.First(ctx, r.Address)
	r.TookUs = uint64(time.Since(start).Microseconds())
	if err != nil {
		r.Error = reachReason(ctx, err)
		return
	}
	conn.Close()
}

// reachReason is why an address was not reached, in the words of the innermost error.
func reachReason(ctx context.Context, err error) string {
	text := err.Error()
	switch op, dns := (*net.OpError)(nil), (*net.DNSError)(nil); {
	case errors.As(err, &dns):
		text = dns.Error()
	case ctx.Err() != nil:
		text = fmt.Sprintf("no answer within %v", oneReach)
	case errors.As(err, &op):
		text = op.Err.Error()
	}
	return text[:min(len(text), maxReachReason)]
}
