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
	endedOrderly     = "ended"    // in good order, or by the side that dialed
	endedReopened    = "reopened" // towards another replica of the peer
	endedUnreachable = "unreachable"
	endedTurnedAway  = "turned_away" // by the gateway: the label is unknown, or no controller is there
	endedHandshake   = "handshake"
	endedUnanswered  = "handshake_unanswered"
	endedBroken      = "broken" // by the network, or a process was killed
	endedSilent      = "silent"
	endedSlow        = "slow_reader"
	endedProtocol    = "protocol"
	endedLimit       = "limit"
	endedNotLinked   = "not_linked"
	endedNotTrusted  = "not_trusted"
	endedStreams     = "too_many_streams"
	endedConnections = "too_many_connections"
	endedNotReady    = "not_ready"
	endedStopping    = "stopping"
	endedOther       = "other"
)

// reasons maps errors to the closed list. The first match counts.
var reasons = []struct {
	err    error
	reason string
}{
	{ErrSilent, endedSilent},
	{ErrSlow, endedSlow},
	{ErrProtocol, endedProtocol},
	{ErrNotLinked, endedNotLinked},
	{ErrNotTrusted, endedNotTrusted},
	{delta.ErrTooMany, endedLimit},
	{delta.ErrTooLarge, endedLimit},
	{delta.ErrDuplicate, endedProtocol},
	{delta.ErrUnknownKey, endedProtocol},
	{errReopened, endedReopened},
	{errDial, endedUnreachable},
	{errTurnedAway, endedTurnedAway},
	{ErrEnded, endedOrderly},
	{errUnanswered, endedUnanswered},
	{errHandshake, endedHandshake},
	{errBroken, endedBroken},
	{context.DeadlineExceeded, endedUnreachable},
	{context.Canceled, endedOrderly},
	{errStreams, endedStreams},
	{errNotReady, endedNotReady},
	{errStopping, endedStopping},
}

// reason returns the reason for err from the closed list.
func reason(err error) string {
	for _, known := range reasons {
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

// Metrics counts streams. Make it with NewMetrics, and share it between all Clients and
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
			Help: "Catalog streams and connection attempts that ended, by direction and reason.",
		}, []string{"direction", "reason"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_catalog_streams",
			Help: "Open catalog streams, by direction.",
		}, []string{"direction"}),
	}
	for _, direction := range []string{inbound, outbound} {
		m.open.WithLabelValues(direction)
		for _, why := range []string{
			endedOrderly,
			endedReopened,
			endedUnreachable,
			endedTurnedAway,
			endedHandshake,
			endedUnanswered,
			endedBroken,
			endedSilent,
			endedSlow,
			endedProtocol,
			endedLimit,
			endedNotLinked,
			endedNotTrusted,
			endedStreams,
			endedConnections,
			endedNotReady, endedStopping, endedOther,
		} {
			m.ended.WithLabelValues(direction, why)
		}
	}
	if reg != nil {
		reg.MustRegister(m.ended, m.open)
	}
	return m
}
