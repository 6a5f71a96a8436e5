package wire

import (
	"time"

	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// encodeSettings translates s into its wire format; nil: nothing is asked for.
func encodeSettings(s trafficsettings.Settings) *TrafficSettings {
	if s == (trafficsettings.Settings{}) {
		return nil
	}
	return &TrafficSettings{
		TimeoutMs:          trafficsettings.Milliseconds(s.Timeout),
		PerTryTimeoutMs:    trafficsettings.Milliseconds(s.PerTryTimeout),
		Retries:            trafficsettings.Count(s.Retries),
		RetryOn:            uint32(s.RetryOn),
		MaxConnections:     s.MaxConnections,
		MaxPendingRequests: s.MaxPendingRequests,
		MaxRequests:        s.MaxRequests,
		SlowStartMs:        uint32(s.SlowStart / time.Millisecond),
		PreferSameZone:     s.PreferSameZone,
	}
}

// decodeSettings translates s from its wire format. Service.Validate clamps the result.
func decodeSettings(s *TrafficSettings) trafficsettings.Settings {
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
	}
}

// decodeProtocol translates p from its wire format. A protocol that is not known is not
// declared.
func decodeProtocol(p Protocol) trafficsettings.Protocol {
	if _, known := Protocol_name[int32(p)]; !known {
		return trafficsettings.Detect
	}
	return trafficsettings.Protocol(p).Clamp()
}
