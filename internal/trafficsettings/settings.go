// Package trafficsettings holds what the owner of an exported Service asks for its
// traffic: protocol, timeouts, retries, limits.
//
//	annotations of the Service ──Parse──▶ Declared ─ catalog, Settings.Clamp ─▶ importing cluster
//	spec.import.defaults of the Link ──▶ Defaults ── Settings.WithDefaults ──▶ agents
//
// What always holds:
//   - Every value of a Settings that Parse or Clamp returns is within the bounds below.
//   - A value that cannot be parsed is left out. One Fault for each annotation names it.
//   - The zero Settings asks for nothing: the agents' own defaults apply.
package trafficsettings

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Bounds of a Settings.
const (
	MinDuration = time.Millisecond
	MaxDuration = 24 * time.Hour
	MaxRetries  = 10
	// MaxLimit bounds each limit of connections and requests.
	MaxLimit = 1_000_000
)

// None, as a duration or as a number of retries, says that there is none, even if the
// importing cluster has a default. 0 says that nothing was asked for.
const None = -1

// Settings is what is asked for all ports of a Service. It is comparable.
type Settings struct {
	// Timeout bounds a request with all its attempts; 0: not set, None: no timeout.
	Timeout time.Duration
	// PerTryTimeout bounds one attempt; 0: not set, None: no timeout.
	PerTryTimeout time.Duration
	// Retries is the number of attempts after the first; 0: not set, None: no retries.
	Retries int
	// RetryOn are the conditions under which a request is retried; 0: not set.
	RetryOn RetryOn
	// MaxConnections, MaxPendingRequests and MaxRequests limit what one node sends to the
	// Service; 0: no limit.
	MaxConnections, MaxPendingRequests, MaxRequests uint32
	// SlowStart is how long a new endpoint's share grows; 0: not at all.
	SlowStart time.Duration
	// PreferSameZone makes requests prefer endpoints in the zone of their caller. It does
	// not come from an annotation, but from OfTrafficDistribution.
	PreferSameZone bool
}

// OfTrafficDistribution reports whether spec.trafficDistribution of a Service, which may
// be nil, prefers the zone of the caller. PreferSameNode does not, because no endpoint of
// another cluster is on the caller's node.
func OfTrafficDistribution(value *string) bool {
	if value == nil {
		return false
	}
	switch *value {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return true
	}
	return false
}

// Clamp returns s within the bounds. It drops retry conditions that are not known.
func (s Settings) Clamp() Settings {
	return Settings{
		Timeout:            clampDuration(s.Timeout),
		PerTryTimeout:      clampDuration(s.PerTryTimeout),
		Retries:            min(max(s.Retries, None), MaxRetries),
		RetryOn:            s.RetryOn & allRetryOn,
		MaxConnections:     min(s.MaxConnections, MaxLimit),
		MaxPendingRequests: min(s.MaxPendingRequests, MaxLimit),
		MaxRequests:        min(s.MaxRequests, MaxLimit),
		SlowStart:          max(clampDuration(s.SlowStart), 0),
		PreferSameZone:     s.PreferSameZone,
	}
}

// clampDuration returns d in whole milliseconds within the bounds. 0 stays, and what is
// negative becomes None.
func clampDuration(d time.Duration) time.Duration {
	switch {
	case d == 0:
		return 0
	case d < 0:
		return None
	}
	return min(max(d, MinDuration), MaxDuration).Truncate(time.Millisecond)
}

// Defaults are what an importing cluster fills in where the exported Service asks for
// nothing.
type Defaults struct {
	// Timeout, Retries and RetryOn are as in Settings.
	Timeout time.Duration
	Retries int
	RetryOn RetryOn
	// Opaque: ports whose protocol is not declared are opaque TCP.
	Opaque bool
}

// WithDefaults returns s with the defaults for what it leaves open.
func (s Settings) WithDefaults(d Defaults) Settings {
	s.Timeout = cmp.Or(s.Timeout, d.Timeout)
	s.Retries = cmp.Or(s.Retries, d.Retries)
	s.RetryOn = cmp.Or(s.RetryOn, d.RetryOn)
	return s.Clamp()
}

// Protocol returns the protocol of a port that was declared as p, with an appProtocol.
// An appProtocol alone changes nothing, because agents receive it as well.
func (d Defaults) Protocol(p Protocol, appProtocol string) Protocol {
	if d.Opaque && p == Detect && OfAppProtocol(appProtocol) == Detect {
		return TCP
	}
	return p
}

// IsOpaque reports whether a port with the declared protocol p and an appProtocol is
// opaque: agents do not read requests on it.
func (d Defaults) IsOpaque(p Protocol, appProtocol string) bool {
	return cmp.Or(d.Protocol(p, appProtocol), OfAppProtocol(appProtocol)) == TCP
}

// Protocol is what a port speaks. The values are those of both streams.
type Protocol uint8

// The protocols.
const (
	// Detect: nothing is declared, and a connection's first bytes decide.
	Detect Protocol = iota
	// TCP: connections are opaque. Their first bytes are not read.
	TCP
	// HTTP1 is HTTP/1.0 and HTTP/1.1.
	HTTP1
	// HTTP2 is HTTP/2 with prior knowledge.
	HTTP2
	// GRPC is HTTP/2 with prior knowledge that carries gRPC.
	GRPC
)

var protocols = []string{Detect: "detect", TCP: "tcp", HTTP1: "http1", HTTP2: "http2", GRPC: "grpc"}

// String returns the word of the annotation, and "detect" for what is not known.
func (p Protocol) String() string { return protocols[p.Clamp()] }

// Clamp returns p, or Detect if p is not known.
func (p Protocol) Clamp() Protocol {
	if int(p) >= len(protocols) {
		return Detect
	}
	return p
}

// OfAppProtocol returns what the appProtocol of a Service's port declares, an IANA name
// or one of Kubernetes: Detect if it is empty or not known.
func OfAppProtocol(appProtocol string) Protocol {
	switch strings.ToLower(appProtocol) {
	case "http", "ws", "kubernetes.io/ws":
		return HTTP1
	case "http2", "h2c", "kubernetes.io/h2c":
		return HTTP2
	case "grpc":
		return GRPC
	case "tcp", "https", "tls", "wss", "kubernetes.io/wss", "redis", "postgresql", "mysql", "mongo", "smtp",
		"ftp", "ssh", "imap", "pop3", "telnet":
		return TCP
	}
	return Detect
}

// ForwardIdentity is how the application learns who calls it. The values are those of
// the node stream.
type ForwardIdentity uint8

// The ways.
const (
	// ForwardNone: it does not.
	ForwardNone ForwardIdentity = iota
	// ForwardHeader: by a header of each request.
	ForwardHeader
	// ForwardProxyV2: by a PROXY protocol version 2 header before each connection.
	ForwardProxyV2
)

var forwards = []string{ForwardNone: "none", ForwardHeader: "header", ForwardProxyV2: "proxy-v2"}

// String returns the word of the annotation, and "none" for what is not known.
func (f ForwardIdentity) String() string { return forwards[f.Clamp()] }

// Clamp returns f, or ForwardNone if f is not known.
func (f ForwardIdentity) Clamp() ForwardIdentity {
	if int(f) >= len(forwards) {
		return ForwardNone
	}
	return f
}

// RetryOn is a set of conditions. The bits are those of both streams.
type RetryOn uint32

// The conditions. All of them end once the first byte of a response was delivered.
const (
	// RetryConnectFailure: the request did not reach the application.
	RetryConnectFailure RetryOn = 1 << iota
	// RetryReset: the connection ended before the response.
	RetryReset
	// RetryGatewayError: the application answered 502, 503 or 504.
	RetryGatewayError
	// Retry5xx: the application answered 500 to 599.
	Retry5xx
	// RetryUnavailable: a gRPC application answered UNAVAILABLE in a Trailers-Only
	// response.
	RetryUnavailable
	// RetryIdempotent: not only GET, HEAD and OPTIONS are retried after they may have
	// reached the application, but PUT and DELETE, too.
	RetryIdempotent

	allRetryOn = 1<<iota - 1
)

var retryWords = []string{"connect-failure", "reset", "gateway-error", "5xx", "unavailable", "idempotent"}

// String returns the words of the annotation, separated by commas.
func (r RetryOn) String() string {
	var out []string
	for i, word := range retryWords {
		if r&(1<<i) != 0 {
			out = append(out, word)
		}
	}
	return strings.Join(out, ",")
}

// ParseRetryOn returns the set of the given words. The words that are not known are
// returned.
func ParseRetryOn(words []string) (set RetryOn, unknown []string) {
	for _, word := range words {
		if i := slices.Index(retryWords, word); i >= 0 {
			set |= 1 << i
		} else {
			unknown = append(unknown, word)
		}
	}
	return set, unknown
}
