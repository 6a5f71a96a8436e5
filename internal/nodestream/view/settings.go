package view

import (
	"time"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// settingsOf returns the settings of a Backend; nil: nothing is set.
func settingsOf(s trafficsettings.Settings, defaults trafficsettings.Defaults) *wire.TrafficSettings {
	all := s.WithDefaults(defaults)
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
		PreferSameZone:     all.PreferSameZone,
	}
}
