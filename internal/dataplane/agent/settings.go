package agent

import (
	"cmp"
	"time"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// settingsOf returns the traffic settings of a backend, which may be nil.
func settingsOf(s *wire.TrafficSettings) trafficsettings.Settings {
	if s == nil {
		return trafficsettings.Settings{}
	}
	return trafficsettings.Settings{
		Timeout:            trafficsettings.Duration(s.TimeoutMs),
		PerTryTimeout:      trafficsettings.Duration(s.PerTryTimeoutMs),
		Retries:            trafficsettings.Number(s.Retries),
		RetryOn:            trafficsettings.RetryOn(s.RetryOn),
		MaxConnections:     s.MaxConnections,
		MaxPendingRequests: s.MaxPendingRequests,
		MaxRequests:        s.MaxRequests,
		SlowStart:          time.Duration(s.SlowStartMs) * time.Millisecond,
		PreferSameZone:     s.PreferSameZone,
	}.Clamp()
}

// protocolOf returns the protocol of a port: what is declared, or else what appProtocol
// says. A protocol that this version does not know is opaque, because a newer controller
// must not make it guess.
func protocolOf(declared wire.Protocol, appProtocol string) trafficsettings.Protocol {
	if _, known := wire.Protocol_name[int32(declared)]; !known {
		return trafficsettings.TCP
	}
	return cmp.Or(trafficsettings.Protocol(declared), trafficsettings.OfAppProtocol(appProtocol))
}

// forwardIdentityOf returns how the application learns who calls it. A way that this
// version does not know is none.
func forwardIdentityOf(f wire.ForwardIdentity) trafficsettings.ForwardIdentity {
	if _, known := wire.ForwardIdentity_name[int32(f)]; !known {
		return trafficsettings.ForwardNone
	}
	return trafficsettings.ForwardIdentity(f)
}
