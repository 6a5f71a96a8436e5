package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/vipguard"
)

// Bounds of what an operator's question makes this node dial and say.
const (
	maxReaches    = 128
	reachesAtOnce = 16
	oneReach      = 2 * time.Second
	// allReaches is shorter than a controller waits for a report. Addresses whose turn has not
	// come by then are left out.
	allReaches     = 4500 * time.Millisecond
	maxReachReason = 256
	maxFaults      = 8
	maxFault       = 512
)

// looker returns what adds to a report what is to be seen of this node, whose vip-guard is at podDir. All of it is looked at
// at the same time.
func (a *Agent) looker(podDir string) func(context.Context, *wire.ReportRequest) {
	return func(ctx context.Context, report *wire.ReportRequest) {
		var looking sync.WaitGroup
		defer looking.Wait()
		if s := a.state.Load(); s != nil {
			looking.Go(func() { report.Faults = clipped(vipguard.Look(podDir, s.vips)) })
		}
		report.Bridged = a.podTable.Bridged()
		report.Reaches = a.reachAll(ctx)
	}
}

// clipped bounds what is said.
func clipped(faults []string) []string {
	out := slices.Clone(faults[:min(len(faults), maxFaults)])
	for i, f := range out {
		out[i] = strings.ToValidUTF8(f[:min(len(f), maxFault)], "")
	}
	return out
}

// reachAll tests the path to every gateway address of every peer. Nobody chooses the
// addresses but the Links: it is no scanner.
func (a *Agent) reachAll(ctx context.Context) []*wire.Reach {
	ctx, cancel := context.WithTimeout(ctx, allReaches)
	defer cancel()
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
	tested := 0
	for _, r := range out {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		tested++
		dialling.Go(func() {
			defer func() { <-slots }()
			a.reachOne(ctx, s.links[r.Link], r)
		})
	}
	dialling.Wait()
	return out[:tested]
}

// reachOne fills r with what came of a dial and, if that succeeds, of probes.
func (a *Agent) reachOne(ctx context.Context, p *peer, r *wire.Reach) {
	dialing, cancel := context.WithTimeout(ctx, oneReach)
	defer cancel()
	start := time.Now()
	conn, _, err := a.dialer.First(dialing, r.Address)
	r.TookUs = uint64(time.Since(start).Microseconds())
	if err != nil {
		r.Error = reachReason(dialing, oneReach, err)
		return
	}
	conn.Close()
	r.Probes = a.probePath(ctx, p, r.Address)
}

// reachReason is why an address was not reached within a time, in the words of the innermost
// error.
func reachReason(ctx context.Context, within time.Duration, err error) string {
	text := err.Error()
	switch op, dns := (*net.OpError)(nil), (*net.DNSError)(nil); {
	case errors.As(err, &dns):
		text = dns.Error()
	case ctx.Err() != nil:
		text = fmt.Sprintf("no answer within %v", within)
	case errors.As(err, &op):
		text = op.Err.Error()
	}
	return strings.ToValidUTF8(text[:min(len(text), maxReachReason)], "")
}
