package agent

import (
	"cmp"
	"net/netip"
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

// inheritSettings gives the ports of m the settings that they have in a former state, if
// that has the same Service of the peer at one of the virtual IPs.
func (m *mirror) inheritSettings(was *state, vips []netip.Addr) {
	for _, vip := range vips {
		former := was.mirrors[vip]
		if !former.sameTarget(m) {
			continue
		}
		for i, port := range m.ports {
			if had, ok := former.ports[i]; ok && had.samePort(port) {
				port.protocol, port.settings = had.protocol, had.settings
				m.ports[i] = port
			}
		}
		return
	}
}
