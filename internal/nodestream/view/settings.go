package view

import (
	"time"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// Settings are the traffic settings of a Frontend.
type Settings struct {
	trafficsettings.Settings
	// Declared are the protocols that the Service's owner declares, by port number.
	Declared map[uint16]trafficsettings.Protocol
	// Defaults apply to what the Service's owner leaves open.
	Defaults trafficsettings.Defaults
}

// backend returns the settings of a Backend; nil: nothing is set.
func (s Settings) backend() *wire.TrafficSettings {
	all := s.WithDefaults(s.Defaults)
	if all == (trafficsettings.Settings{}) {
		return nil
	}
	return &wire.TrafficSettings{
		TimeoutMs:          trafficsettings.Milliseconds(all.Timeout),
		PerTryTimeoutMs:    trafficsettings.Milliseconds(all.PerTryTimeout),
		Retries:            trafficsettings.Count(all.Retries),
		RetryOn:            uint32(all.RetryOn),
		MaxConnections:     all.MaxConnections,
		MaxPendingRequests: all.MaxPendingRequests,
		MaxRequests:        all.MaxRequests,
		SlowStartMs:        uint32(all.SlowStart / time.Millisecond),
	}
}

// Opaque reports whether agents do not read the requests of a port.
func (s Settings) Opaque(number uint16, appProtocol string) bool {
	return s.port(number, appProtocol) == wire.Protocol_TCP
}

// port returns the protocol of a FrontendPort.
func (s Settings) port(number uint16, appProtocol string) wire.Protocol {
	return wire.Protocol(s.Defaults.Protocol(s.Declared[number], appProtocol))
}
