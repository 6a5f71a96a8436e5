package agent

import (
	"context"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/probe"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

const (
	// largeEcho is the payload of a path probe in each direction. It needs several TCP
	// segments of full size.
	largeEcho = 4 << 10
	// smallSegment is the size of the TCP segments of a probe that passes where large
	// packets are lost: that which every IPv4 path carries (RFC 9293, section 3.7.1). A
	// ClientHello with one key share fits it.
	smallSegment = 536
	// pathProbeTime bounds one path probe.
	pathProbeTime = 2 * time.Second
)

// A pathProbe is a probe that tells apart why another one failed.
type pathProbe struct {
	small    bool // its TCP segments have at most smallSegment bytes
	exchange identity.KeyExchange
}

// furtherProbes are those that follow when the first probe, which is as a call, has
// failed. The first of them repeats it, because a packet may have been lost by chance.
func furtherProbes(configured identity.KeyExchange) []pathProbe {
	out := []pathProbe{{false, configured}, {true, identity.Classical}}
	if configured != identity.Classical {
		out = append(out, pathProbe{true, configured})
	}
	return out
}

// probePath tests the path to a peer through a gateway address beyond TCP. It makes one
// probe with the key exchange and the segment size of a call. If that fails, it makes
// furtherProbes concurrently. It omits probes that ctx interrupted.
func (a *Agent) probePath(ctx context.Context, p *peer, address string) []*wire.PathProbe {
	first := a.pathProbe(ctx, p, address, pathProbe{false, a.keyExchange})
	if first == nil || first.GetStage() == string(probe.StageDone) {
		return compact(first)
	}
	further := furtherProbes(a.keyExchange)
	results := make([]*wire.PathProbe, len(further))
	var probing sync.WaitGroup
	for i, f := range further {
		probing.Go(func() { results[i] = a.pathProbe(ctx, p, address, f) })
	}
	probing.Wait()
	return compact(append([]*wire.PathProbe{first}, results...)...)
}

// compact leaves out what was interrupted.
func compact(probes ...*wire.PathProbe) []*wire.PathProbe {
	var out []*wire.PathProbe
	for _, p := range probes {
		if p != nil {
			out = append(out, p)
		}
	}
	return out
}

// pathProbe makes one probe. It returns nil if ctx interrupts it, or if this agent has no
// certificate for probes.
func (a *Agent) pathProbe(ctx context.Context, p *peer, address string, kind pathProbe) *wire.PathProbe {
	config, err := a.probeTLS(p)
	if err != nil {
		return nil
	}
	o := probe.Options{Address: address, TLS: kind.exchange.Limit(config), Payload: largeEcho}
	if kind.small {
		o.MaxSegment = smallSegment
	}
	timed, cancel := context.WithTimeout(ctx, pathProbeTime)
	defer cancel()
	result := probe.Run(timed, o)
	a.metrics.probes.WithLabelValues(outbound, string(result.Stage)).Inc()
	if result.Err != nil && ctx.Err() != nil {
		return nil
	}
	out := &wire.PathProbe{
		SmallSegments:  kind.small,
		PostQuantum:    kind.exchange == identity.PostQuantum,
		Stage:          string(result.Stage),
		Received:       !result.LastByte.IsZero(),
		TimedOut:       result.Err != nil && timed.Err() != nil,
		Unacknowledged: result.Unacknowledged,
	}
	if result.Err != nil {
		out.Error = dialErrorText(timed, pathProbeTime, result.Err)
	}
	return out
}
