package agent

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

const (
	// headerRate and headerBurst bound the connections to the port for gateways from one
	// source that is not a gateway, per second and at once.
	headerRate  = 200
	headerBurst = 1000
	// gatewayTime is how long a source counts as a gateway after a valid header.
	gatewayTime = 10 * time.Minute
	maxGateways = 1024
)

// headerLimiter bounds how fast sources connect to the port for gateways without a valid
// header. A gateway opens thousands of connections per second, so a source that has sent a
// valid header is not limited. A source is an address as this node sees it. If the network
// gives a gateway and other pods the same address, the other pods are not limited either.
// Make it with newHeaderLimiter. It is safe for concurrent use.
type headerLimiter struct {
	rates    *budget.Rates[netip.Prefix]
	gateways *ttlMap[netip.Prefix, struct{}]
}

func newHeaderLimiter(perSecond rate.Limit, burst int) *headerLimiter {
	return &headerLimiter{
		rates:    budget.NewRates[netip.Prefix](perSecond, burst),
		gateways: newTTLMap[netip.Prefix, struct{}](maxGateways, gatewayTime),
	}
}

// allow reports whether the agent reads the header of another connection of a source.
func (l *headerLimiter) allow(source netip.Prefix) bool {
	if _, isGateway := l.gateways.get(source, gatewayTime); isGateway {
		return true
	}
	return l.rates.Allow(source)
}

// proven notes that a source has sent a valid header.
func (l *headerLimiter) proven(source netip.Prefix) {
	if _, recent := l.gateways.get(source, gatewayTime/2); recent {
		return
	}
	l.gateways.update(source, func(struct{}, time.Duration, bool) (struct{}, bool) { return struct{}{}, true })
}
