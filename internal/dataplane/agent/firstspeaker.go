package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// The far agent observes who speaks first on a port, because it sees both ends, and
// reports it in its answers. If clients speak first on a port, the near agent first
// waits for the client's first bytes, for at most earlyDataTimeout. So a probe or a
// scanner that connects and leaves costs the peer nothing.
const (
	// greetingWindow is how long after OPEN the first bytes of an application count as
	// its greeting. Later bytes may be an error message about a silent client.
	greetingWindow = 300 * time.Millisecond
	// earlyDataTimeout bounds the cost of a wrong guess. A client that waits for a
	// greeting on such a port gets it that much later, and the far agent then observes
	// that the server speaks first.
	earlyDataTimeout = time.Second
	// serverFirstDelay is how long the caller of a port must stay connected before the
	// agent opens the call, if the server speaks first, or if that is unknown and the port
	// is declared as TCP. So a probe that connects and leaves does not reach an
	// application that would count it as an error.
	serverFirstDelay = 10 * time.Millisecond
	// recognizeTimeout is how long the agent waits for first bytes on a port of which
	// nothing is known or declared. A request comes with its connection, but the caller's node may be
	// busy.
	recognizeTimeout = 50 * time.Millisecond
	firstSpeakerAge  = time.Hour
	maxFirstSpeakers = 4096
)

// localPort is a port of an exported Service, as one peer calls it. The behavior of one
// peer's callers does not affect another peer.
type localPort struct {
	link               string // its UID
	namespace, service string
	port               uint32
}

func (in *inboundConn) localPort() localPort {
	return localPort{in.decision.Link.UID, in.hello.Namespace, in.hello.Service, in.hello.Port}
}

// observeFirstSpeaker returns a function that records which side speaks first in an
// exchange that has just been opened.
func (a *Agent) observeFirstSpeaker(in *inboundConn) func(transport.Side) {
	port, start := in.localPort(), time.Now()
	return func(s transport.Side) {
		first := tunnel.FirstSpeaker_CLIENT
		if s == transport.First {
			if time.Since(start) > greetingWindow {
				return
			}
			first = tunnel.FirstSpeaker_SERVER
		}
		a.firstSpeakers.update(port, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) { return first, true })
	}
}

// recordClientFirst records that clients speak first on a local port.
func (a *Agent) recordClientFirst(port localPort) {
	a.firstSpeakers.update(port, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) {
		return tunnel.FirstSpeaker_CLIENT, true
	})
}

// recordClientFirst records that clients speak first on a remote port.
func (cache *endpointCache) recordClientFirst(caller account, to remotePort) {
	cache.firstSpeakers.update(setKey{caller, to}, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) {
		return tunnel.FirstSpeaker_CLIENT, true
	})
}

// firstSpeaker returns which side speaks first on a local port, as recently observed.
func (a *Agent) firstSpeaker(port localPort) tunnel.FirstSpeaker {
	first, _ := a.firstSpeakers.get(port, firstSpeakerAge) // unknown is zero
	return first
}

// firstSpeaker returns which side speaks first on a remote port: as the exporter
// declares, or else as the peer's answers to the account report.
func (cache *endpointCache) firstSpeaker(caller account, to remotePort, appProtocol string) tunnel.FirstSpeaker {
	if first := firstSpeakerOf(appProtocol); first != tunnel.FirstSpeaker_UNKNOWN {
		return first
	}
	first, _ := cache.firstSpeakers.get(setKey{caller, to}, firstSpeakerAge)
	return first
}

// firstSpeakerOf returns which side speaks first in an appProtocol (an IANA name or one
// of Kubernetes).
func firstSpeakerOf(appProtocol string) tunnel.FirstSpeaker {
	switch strings.ToLower(appProtocol) {
	case "http", "https", "http2", "h2c", "grpc", "ws", "wss", "tls", "redis", "postgresql",
		"kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss":
		return tunnel.FirstSpeaker_CLIENT
	case "mysql", "smtp", "ftp", "ssh", "imap", "pop3", "telnet":
		return tunnel.FirstSpeaker_SERVER
	}
	return tunnel.FirstSpeaker_UNKNOWN
}

// firstBytesTimeout returns how long to wait for the first bytes of a caller.
func firstBytesTimeout(first tunnel.FirstSpeaker, port trafficsettings.Protocol) time.Duration {
	switch {
	case first == tunnel.FirstSpeaker_CLIENT:
		return earlyDataTimeout
	case first == tunnel.FirstSpeaker_SERVER, port == trafficsettings.TCP:
		return serverFirstDelay
	case port == trafficsettings.Detect:
		return recognizeTimeout
	}
	return earlyDataTimeout // clients speak first in every version of HTTP
}

// awaitEarlyData waits for the caller's first bytes, for at most firstBytesTimeout. If the
// caller leaves without a byte, the refusal has the reason reasonCallerSilent.
func (a *Agent) awaitEarlyData(c *net.TCPConn, out *outboundConn) error {
	first := a.endpointCache.firstSpeaker(out.caller.account(), out.remotePort(), out.port.appProtocol)
	err := transport.AwaitReadable(c, firstBytesTimeout(first, out.port.protocol))
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case err == io.EOF:
		return refuse(reasonCallerSilent, errors.New("the caller closed without sending anything"))
	}
	return refuse(reasonCallerGone, fmt.Errorf("wait for the caller's first bytes: %w", err))
}
