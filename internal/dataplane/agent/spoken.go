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
)

// The far agent observes who speaks first on a port, because it sees both ends, and
// reports it in its answers. If clients speak first on a port, the near agent first waits
// for the client's first bytes, for at most speechPatience. So a probe or a scanner that
// connects and leaves costs the peer nothing.
const (
	// speaksFirst is for how long after OPEN what an application says first counts as
	// its greeting; later it may be a complaint about silence.
	speaksFirst = 300 * time.Millisecond
	// speechPatience bounds what a wrong guess costs: who waits for a greeting on such a
	// port has it so much later, and the far agent learns from that.
	speechPatience = time.Second
	// probeTime is how long a caller of a port where applications speak first must stay: a probe
	// that connects and goes does not reach an application that would count it as an error.
	probeTime = 10 * time.Millisecond
	spokenAge = time.Hour
	maxSpoken = 4096
)

// localPort is a port of an exported Service as one peer calls it: what its callers do is
// not held against another's.
type localPort struct {
	link               string // its UID
	namespace, service string
	port               uint32
}

func (in *arrival) localPort() localPort {
	return localPort{in.to.Link.UID, in.hello.Namespace, in.hello.Service, in.hello.Port}
}

// hearing notes who speaks first in an exchange that is open from now on.
func (a *Agent) hearing(in *arrival) func(transport.Side) {
	port, start := in.localPort(), time.Now()
	return func(s transport.Side) {
		first := tunnel.FirstSpeaker_CLIENT
		if s == transport.First {
			if time.Since(start) > speaksFirst {
				return
			}
			first = tunnel.FirstSpeaker_SERVER
		}
		a.spoken.put(port, func(tunnel.FirstSpeaker, time.Duration, bool) (tunnel.FirstSpeaker, bool) { return first, true })
	}
}

// speaker says who speaks first on a port, as far as this agent has heard lately.
func (a *Agent) speaker(port localPort) tunnel.FirstSpeaker {
	first, _ := a.spoken.get(port, spokenAge) // unknown is zero
	return first
}

// speaker says who speaks first on a far port: as its exporter says, or else as the
// account's calls were told.
func (l *learnt) speaker(caller account, to farPort, appProtocol string) tunnel.FirstSpeaker {
	if first := speakerOf(appProtocol); first != tunnel.FirstSpeaker_UNKNOWN {
		return first
	}
	first, _ := l.speakers.get(setKey{caller, to}, spokenAge)
	return first
}

// speakerOf is what an appProtocol (IANA's names, and Kubernetes' own) says.
func speakerOf(appProtocol string) tunnel.FirstSpeaker {
	switch strings.ToLower(appProtocol) {
	case "http", "https", "http2", "h2c", "grpc", "ws", "wss", "tls", "redis", "postgresql",
		"kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss":
		return tunnel.FirstSpeaker_CLIENT
	case "mysql", "smtp", "ftp", "ssh", "imap", "pop3", "telnet":
		return tunnel.FirstSpeaker_SERVER
	}
	return tunnel.FirstSpeaker_UNKNOWN
}

// awaitSpeech waits for a caller of a port where callers speak first, and for a moment for one
// of a port where applications do. The refusal of one who goes without a word says that nobody
// need be told.
func (a *Agent) awaitSpeech(c *net.TCPConn, call *call) error {
	var patience time.Duration
	switch a.learnt.speaker(call.caller.account(), call.farPort(), call.port.appProtocol) {
	case tunnel.FirstSpeaker_CLIENT:
		patience = speechPatience
	case tunnel.FirstSpeaker_SERVER:
		patience = probeTime
	default:
		return nil
	}
	err := transport.AwaitSpeech(c, patience)
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case err == io.EOF:
		return refuse(reasonSilent, errors.New("the caller went without a word"))
	}
	return refuse(reasonCallerGone, fmt.Errorf("wait for the caller's first bytes: %w", err))
}
