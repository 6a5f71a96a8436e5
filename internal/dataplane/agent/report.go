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

	"github.com/causeway-mesh/causeway/internal/dataplane/probe"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/vipguard"
)

// Bounds of what this node dials and returns for a report.
const (
	maxGatewayChecks    = 128
	gatewayChecksAtOnce = 16
	gatewayCheckTimeout = 2 * time.Second
	// allReaches is shorter than a controller waits for a report. Addresses whose turn
	// has not come by then are left out.
	allReaches   = 4500 * time.Millisecond
	maxDialError = 256
	maxFaults    = 8
	maxFault     = 512
	maxUnusable  = 256
)

// reporter returns a function that adds this node's facts to a report. podDir is where
// its vip-guard is. It collects them concurrently.
func (a *Agent) reporter(podDir string) func(context.Context, *wire.ReportRequest) {
	return func(ctx context.Context, report *wire.ReportRequest) {
		var diagnosing sync.WaitGroup
		defer diagnosing.Wait()
		if s := a.state.Load(); s != nil {
			diagnosing.Go(func() { report.Faults = truncateFaults(vipguard.Diagnose(podDir, s.vips)) })
		}
		report.Bridged = a.podTable.Bridged()
		report.Reaches = a.checkGateways(ctx)
		report.Unusable = a.monitor.report(time.Now())
	}
}

// truncateFaults bounds the number and the length of faults.
func truncateFaults(faults []string) []string {
	out := slices.Clone(faults[:min(len(faults), maxFaults)])
	for i, f := range out {
		out[i] = strings.ToValidUTF8(f[:min(len(f), maxFault)], "")
	}
	return out
}

// checkGateways tests the path to every gateway address of every peer. Nobody chooses the
// addresses but the Links: it is no scanner.
func (a *Agent) checkGateways(ctx context.Context) []*wire.Reach {
	ctx, cancel := context.WithTimeout(ctx, allReaches)
	defer cancel()
	s := a.state.Load()
	if s == nil {
		return nil
	}
	var out []*wire.Reach
	for _, name := range slices.Sorted(maps.Keys(s.links)) {
		for _, address := range s.links[name].gateways {
			if len(out) < maxGatewayChecks {
				out = append(out, &wire.Reach{Link: name, Address: address})
			}
		}
	}
	var dialing sync.WaitGroup
	slots := make(chan struct{}, gatewayChecksAtOnce)
	tested := 0
	for _, r := range out {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		tested++
		dialing.Go(func() {
			defer func() { <-slots }()
			a.checkGateway(ctx, s.links[r.Link], r)
		})
	}
	dialing.Wait()
	return out[:tested]
}

// checkGateway fills r with what came of a dial and, if that succeeds, of probes.
func (a *Agent) checkGateway(ctx context.Context, p *peer, r *wire.Reach) {
	dialing, cancel := context.WithTimeout(ctx, gatewayCheckTimeout)
	defer cancel()
	start := time.Now()
	conn, _, err := a.dialer.DialFirst(dialing, r.Address)
	r.TookUs = uint64(time.Since(start).Microseconds())
	if err != nil {
		r.Error = dialErrorText(dialing, gatewayCheckTimeout, err)
		return
	}
	conn.Close()
	r.Probes = a.probePath(ctx, p, r.Address)
}

// probeErrorText is why a probe of an address failed: the stage and the innermost error.
func probeErrorText(ctx context.Context, address string, within time.Duration, r probe.Result) string {
	text := fmt.Sprintf("probe %s, stage %s: %s", address, r.Stage, dialErrorText(ctx, within, r.Err))
	return strings.ToValidUTF8(text[:min(len(text), maxFault)], "")
}

// dialErrorText is why an address was not reached within a time, in the words of the
// innermost error.
func dialErrorText(ctx context.Context, within time.Duration, err error) string {
	text := err.Error()
	switch op, dns := (*net.OpError)(nil), (*net.DNSError)(nil); {
	case errors.As(err, &dns):
		text = dns.Error()
	case ctx.Err() != nil:
		text = fmt.Sprintf("no answer within %v", within)
	case errors.As(err, &op):
		text = op.Err.Error()
	}
	return strings.ToValidUTF8(text[:min(len(text), maxDialError)], "")
}
