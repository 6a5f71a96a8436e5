package wire

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/delta"
)

// Why a stream ended or was refused. The list is closed.
const (
	endedOrderly     = "ended" // by whoever dialled, or in good order
	endedUnreachable = "unreachable"
	endedTurnedAway  = "turned_away" // by the gateway, which knows no label of ours, or nobody to lead us to
	endedHandshake   = "handshake"
	endedBroken      = "broken" // by a network, or a process that was killed
	endedSilent      = "silent"
	endedSlow        = "slow_reader"
	endedProtocol    = "protocol"
	endedLimit       = "limit"
	endedNotLinked   = "not_linked"
	endedStreams     = "too_many_streams"
	endedConnections = "too_many_connections"
	endedNotReady    = "not_ready"
	endedStopping    = "stopping"
	endedOther       = "other"
)

// reason sorts err into the closed list.
func reason(err error) string {
	for _, known := range []struct {
		err    error
		reason string
	}{
		{ErrSilent, endedSilent}, {ErrSlow, endedSlow}, {ErrProtocol, endedProtocol}, {ErrNotLinked, endedNotLinked},
		{delta.ErrTooMany, endedLimit}, {delta.ErrTooLarge, endedLimit},
		{delta.ErrDuplicate, endedProtocol}, {delta.ErrUnknownKey, endedProtocol},
		{errDial, endedUnreachable}, {errTurnedAway, endedTurnedAway}, {ErrEnded, endedOrderly}, {errHandshake, endedHandshake}, {errBroken, endedBroken}, {context.DeadlineExceeded, endedUnreachable},
		{errStreams, endedStreams}, {errNotReady, endedNotReady}, {errStopping, endedStopping},
	} {
		if errors.Is(err, known.err) {
			return known.reason
		}
	}
	switch status.Code(err) {
	case codes.OK, codes.Canceled:
		return endedOrderly
	case codes.Unavailable:
		return endedUnreachable
	case codes.ResourceExhausted:
		return endedLimit
	case codes.InvalidArgument:
		return endedProtocol
	case codes.PermissionDenied:
		return endedNotLinked
	case codes.DeadlineExceeded:
		return endedSilent
	case codes.Aborted:
		return endedStreams
	case codes.FailedPrecondition:
		return endedNotReady
	}
	return endedOther
}

// Metrics counts streams. Make it with NewMetrics and give it to all Clients and
// Servers of a process.
type Metrics struct {
	ended *prometheus.CounterVec
	open  *prometheus.GaugeVec
}

// The sides of a stream.
const (
	inbound  = "inbound"
	outbound = "outbound"
)

// NewMetrics registers with reg; nil registers nothing.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_catalog_streams_ended_total",
			Help: "Catalog streams and attempts at one that ended, by who dialled and why.",
		}, []string{"direction", "reason"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_catalog_streams",
			Help: "Open catalog streams, by who dialled.",
		}, []string{"direction"}),
	}
	for _, direction := range []string{inbound, outbound} {
		m.open.WithLabelValues(direction)
		for _, why := range []string{endedOrderly, endedUnreachable, endedTurnedAway, endedHandshake, endedBroken, endedSilent, endedSlow, endedProtocol, endedLimit,
			endedNotLinked, endedStreams, endedConnections, endedNotReady, endedStopping, endedOther} {
			m.ended.WithLabelValues(direction, why)
		}
	}
	if reg != nil {
		reg.MustRegister(m.ended, m.open)
	}
	return m
}
