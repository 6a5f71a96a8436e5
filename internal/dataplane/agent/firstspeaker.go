package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// The far agent observes who speaks first on a port, because it sees both ends, and
// reports it in its answers. If clients speak first on a port, the near agent first
// waits for the client's first bytes, for at most earlyDataTimeout. So a probe or a
// scanner that connects and leaves costs the peer nothing. HTTP clients may keep a new
// connection for a long time before they use it, so the wait is longer where requests are
// expected.
const (
	// greetingWindow is how long after OPEN the first bytes of an application count as
	// its greeting. Later bytes may be an error message about a silent client.
	greetingWindow = 300 * time.Millisecond
	// earlyDataTimeout bounds the cost of a wrong guess. A client that waits for a
	// greeting on such a port gets it that much later, and the far agent then observes
	// that the server speaks first.
	earlyDataTimeout = time.Second
	// serverFirstDelay is how long a caller must stay connected before the agent opens
	// the call. It applies if the server speaks first. It also applies if the first
	// speaker is not known and the port is declared as TCP. So a probe that connects and
	// leaves does not reach an application that would count it as an error.
	serverFirstDelay = 10 * time.Millisecond
	// recognizeTimeout is how long the agent waits for first bytes on a port of which
	// nothing is known or declared. A request comes with its connection, but the caller's node may be
	// busy.
	recognizeTimeout = 50 * time.Millisecond
	// requestTimeout takes the place of earlyDataTimeout for a port whose connections
	// carried requests recently. Many clients keep an idle connection for 90 s.
	requestTimeout = 2 * time.Minute
	// noTimeout is for ports that are declared to carry requests. A connection may wait
	// for its first request as long as it may be idle after a request.
	noTimeout        = math.MaxInt64 * time.Nanosecond
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

// recordRequests records that connections to a remote port carry requests.
func (cache *endpointCache) recordRequests(caller account, to remotePort) {
	cache.firstSpeakers.update(setKey{caller, to}, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) {
		return tunnel.FirstSpeaker_CLIENT, true
	})
	cache.requests.update(setKey{caller, to}, func(struct{}, time.Duration, bool) (struct{}, bool) { return struct{}{}, true })
}

// carriesRequests reports whether connections to a remote port carried requests recently.
func (cache *endpointCache) carriesRequests(caller account, to remotePort) bool {
	_, ok := cache.requests.get(setKey{caller, to}, firstSpeakerAge)
	return ok
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

// firstBytesTimeout returns how long to wait for the first bytes of a caller. requests is
// true if connections to the port carried requests recently.
func firstBytesTimeout(first tunnel.FirstSpeaker, port mirrorPort, requests bool) time.Duration {
	switch {
	case port.speaksHTTP(): // clients speak first in every version of HTTP
		return noTimeout
	case first == tunnel.FirstSpeaker_SERVER:
		return serverFirstDelay
	case requests && !port.isOpaque():
		return requestTimeout
	case first == tunnel.FirstSpeaker_CLIENT:
		return earlyDataTimeout
	case port.isOpaque():
		return serverFirstDelay
	}
	return recognizeTimeout
}

// awaitEarlyData waits for the caller's first bytes, for at most firstBytesTimeout. If the
// caller leaves without a byte, the refusal has the reason reasonCallerSilent.
func (a *Agent) awaitEarlyData(life context.Context, c *net.TCPConn, out *outboundConn) error {
	account, to := out.caller.account(), out.remotePort()
	first := a.endpointCache.firstSpeaker(account, to, out.port.appProtocol)
	timeout := firstBytesTimeout(first, out.port, a.endpointCache.carriesRequests(account, to))
	err := transport.AwaitReadable(c, min(timeout, earlyDataTimeout))
	if errors.Is(err, os.ErrDeadlineExceeded) && timeout > earlyDataTimeout {
		err = a.whileSilent(life, c, out, func() error { return transport.AwaitReadable(c, timeout-earlyDataTimeout) })
		if err == io.EOF {
			a.endpointCache.requests.delete(setKey{account, to}) // the caller may have waited for a greeting
		}
		if refused := (*refusal)(nil); errors.As(err, &refused) {
			return err
		}
		if err := a.refreshSilent(out); err != nil {
			return err
		}
	}
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case err == io.EOF:
		return refuse(reasonCallerSilent, errors.New("the caller closed without sending anything"))
	}
	return refuse(reasonCallerGone, fmt.Errorf("wait for the caller's first bytes: %w", err))
}

// whileSilent calls wait, which blocks until the caller has sent bytes. If the call must
// end meanwhile, whileSilent resets c and returns a refusal.
func (a *Agent) whileSilent(life context.Context, c *net.TCPConn, out *outboundConn, wait func() error) error {
	ctx, release := a.leases.grant(life, a.state.Load, out.checkSilent)
	defer release()
	stop := afterfunc.Start(ctx, func() { transport.Reset(c) })
	err := wait()
	switch {
	case stop():
		return err
	case life.Err() != nil:
		return refuse(reasonNotReady, errors.New("this agent stops"))
	}
	return refuse(reasonRevoked, context.Cause(ctx))
}

// refreshSilent updates a call whose caller was silent for any length of time, so that it
// has the newest certificate.
func (a *Agent) refreshSilent(out *outboundConn) error {
	if err := a.refreshCaller(out.sessionKey(), out); err != nil {
		return refuse(reasonRevoked, err)
	}
	return nil
}
