package agent

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// The two directions of a connection, as a metric label.
const (
	outbound = "outbound"
	inbound  = "inbound"
)

// This package's own reasons for refusing a connection. Those of other packages have
// the prefixes below.
const (
	reasonNotReady         = "not_ready"
	reasonTooMany          = "too_many_connections"
	reasonAccountShare     = "account_share" // of this agent's connections
	reasonLinkShare        = "link_share"
	reasonSourceShare      = "source_share"
	reasonGatewayBudget    = "gateway_budget"
	reasonNotVIP           = "not_a_virtual_ip"
	reasonUnknownVIP       = "unknown_virtual_ip"
	reasonHostCaller       = "host_network_caller"
	reasonUnknownCaller    = "unknown_caller"
	reasonTooManyLookups   = "too_many_lookups"
	reasonStale            = "stale_connection" // older than the record of its pod, and not confirmed
	reasonPodMoved         = "pod_moved"        // these three are of package podid
	reasonAmbiguousPod     = "ambiguous_pod"
	reasonPodNotLocated    = "pod_not_located"
	reasonSuspended        = "link_suspended"
	reasonCallerNotAllowed = "caller_not_allowed" // by spec.import.callers
	reasonNoSVID           = "no_certificate"
	reasonNoGateway        = "no_gateway_address"
	reasonUnreachable      = "peer_unreachable"
	reasonNoDayKey         = "no_day_key"
	reasonHandshake        = "handshake_failed"
	reasonTunnel           = "tunnel_failed"
	reasonCallerSilent     = "caller_silent" // it left a client-first port without a byte
	reasonCallerGone       = "caller_gone"
	reasonRevoked          = "no_longer_admitted" // between proof and OPEN
	reasonBusy             = "too_many_handshakes"
	reasonHandshakeRate    = "handshake_rate" // of one link and source
	reasonExchangeRate     = "exchange_rate"  // of one caller
	reasonRenewalRate      = "renewal_rate"   // of one link
	reasonTooManyHeaders   = "too_many_headers"
	reasonHeaderRate       = "header_rate" // of one source without a valid header
	reasonCallRate         = "call_rate"   // of a pod, or of an account
	reasonUnknownPod       = "unknown_pod"
	reasonPodRefused       = "pod_refused"
	reasonPodTimeout       = "pod_timeout"
	reasonLocalPorts       = "no_local_port" // for another connection to the pod
	reasonNotAProbe        = "not_a_probe"   // a workload on the route of probes
	reasonProbeRate        = "probe_rate"    // of one link
	reasonCircuitOpen      = "circuit_open"  // each endpoint has too many requests
	reasonRequestTimeout   = "request_timeout"
	reasonTooManyRequests  = "too_many_requests"  // of one caller or link
	reasonMalformed        = "malformed_http"     // a request of a caller, or a response of an application
	reasonAppFailed        = "application_failed" // it closed its connection before a response
	reasonNoRoute          = "no_route"           // no rule of the routes matches the request
	reasonNoRouteBackend   = "no_route_backend"   // the rule that matches has no valid backend
	reasonAmbiguousPath    = "ambiguous_path"     // of a request whose route changes the path
	reasonRoutesUnread     = "routes_unread"      // the controller has not read the routes yet
	reasonRegexSteps       = "regex_steps"        // too much work for the regular expressions of routes
	reasonOther            = "other"
)

func reasons(direction string) []string {
	out := []string{reasonNotReady, reasonTooMany, reasonPodMoved, reasonAmbiguousPod, reasonPodNotLocated, reasonNoSVID,
		reasonTunnel, reasonRevoked, reasonAccountShare, reasonLinkShare, reasonOther}
	for _, r := range mux.FaultReasons() {
		out = append(out, http2Prefix+r)
	}
	if direction == outbound {
		out = append(out, reasonCallRate, reasonSourceShare, reasonTooManyLookups, reasonStale, reasonGatewayBudget, reasonNotVIP, reasonUnknownVIP, reasonHostCaller, reasonUnknownCaller, reasonNoGateway,
			reasonUnreachable, reasonNoDayKey, reasonSuspended, reasonCallerNotAllowed, reasonHandshake, reasonCallerGone, reasonCallerSilent, reasonCircuitOpen, reasonRequestTimeout, reasonTooManyRequests, reasonMalformed,
			reasonNoRoute, reasonNoRouteBackend, reasonAmbiguousPath, reasonRoutesUnread, reasonRegexSteps)
		for _, c := range tunnel.Refusals() {
			out = append(out, "peer_"+c.Reason())
		}
		return out
	}
	out = append(out, reasonBusy, reasonHandshakeRate, reasonExchangeRate, reasonRenewalRate, reasonTooManyHeaders, reasonHeaderRate, reasonUnknownPod, reasonPodRefused, reasonPodTimeout, reasonLocalPorts, reasonNotAProbe, reasonProbeRate, reasonTooManyRequests, reasonMalformed, reasonAppFailed)
	for _, r := range route.Reasons() {
		out = append(out, "header_"+r)
	}
	for _, r := range identity.Reasons() {
		out = append(out, "tls_"+r)
	}
	for _, r := range admit.Reasons() {
		out = append(out, r.String())
	}
	return out
}

type metrics struct {
	accepted *prometheus.CounterVec
	refused  *prometheus.CounterVec
	ends     *prometheus.CounterVec
	sent     *prometheus.CounterVec
	received *prometheus.CounterVec
	open     *prometheus.GaugeVec
	sessions *prometheus.CounterVec
	renewals *prometheus.CounterVec
	probes   *prometheus.CounterVec
	mirrored *prometheus.CounterVec
	drained  atomic.Int64 // connections that ended because the drain period was over

	byLink linkCounters // ends, sent, received and sessions

	maxConnections int        // of each direction
	mu             sync.Mutex // guards current
	current        map[string]int
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		maxConnections: defaultLimits.Connections,
		current:        make(map[string]int),
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_agent_accepted_total",
			Help: "Connections accepted, by direction.",
		}, []string{"direction"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_agent_refused_total",
			Help: "Connections and requests refused, by direction and reason. Reasons that begin with http2_ also count HTTP/2 faults of applications and of peers' agents.",
		}, []string{"direction", "reason"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_agent_ended_total",
			Help: "Connections that ended, by direction, link and reason.",
		}, []string{"direction", "link", "reason"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_agent_sent_bytes_total",
			Help: "Bytes that local applications sent to peers, by direction of the connection. Counted when it ends.",
		}, []string{"direction", "link"}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_agent_received_bytes_total",
			Help: "Bytes that local applications received from peers, by direction of the connection. Counted when it ends.",
		}, []string{"direction", "link"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_agent_open_connections",
			Help: "Connections open now, by direction.",
		}, []string{"direction"}),
		sessions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_agent_sessions_total",
			Help: "Sessions, by direction, link and outcome: created for a caller; preconnecting, and then preconnected or preconnect_failed; reused by another connection; retired; lost.",
		}, []string{"direction", "link", "outcome"}),
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_agent_renewals_total",
			Help: "Renewals of the certificates of open connections, by direction and outcome.",
		}, []string{"direction", "outcome"}),
	}
	for _, outcome := range []string{renewalDone, renewalFailed} {
		m.renewals.WithLabelValues(outbound, outcome)
	}
	for _, outcome := range []string{renewalDone, renewalUnknown} {
		m.renewals.WithLabelValues(inbound, outcome)
	}
	m.probes, m.mirrored = newProbes(), newMirrored()
	for _, outcome := range []string{sessionMade, sessionPreconnecting, sessionPreconnected, sessionFailed, sessionReused, sessionRetired, sessionLost} {
		m.sessions.WithLabelValues(outbound, otherLinks, outcome)
	}
	for _, outcome := range []string{sessionMade, sessionReused, sessionRetired, sessionLost} {
		m.sessions.WithLabelValues(inbound, otherLinks, outcome)
	}
	for _, direction := range []string{outbound, inbound} {
		m.accepted.WithLabelValues(direction)
		m.open.WithLabelValues(direction)
		for _, reason := range reasons(direction) {
			m.refused.WithLabelValues(direction, reason)
		}
	}
	r.MustRegister(m.accepted, m.refused, m.ends, m.sent, m.received, m.open, m.sessions, m.renewals, m.probes, m.mirrored)
	return m
}

// acquire adds a connection to the open ones. It returns false if there are too many.
func (m *metrics) acquire(direction string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current[direction] >= m.maxConnections {
		return false
	}
	m.current[direction]++
	m.open.WithLabelValues(direction).Inc()
	return true
}

func (m *metrics) release(direction string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.current[direction]--
	m.open.WithLabelValues(direction).Dec()
}

// countSession counts the outcome of a session.
func (m *metrics) countSession(direction, link, outcome string) {
	m.byLink.with(m.sessions, direction, link, outcome).Inc()
}

// renewal counts what became of the renewal of one exchange.
func (m *metrics) renewal(direction, outcome string) {
	m.renewals.WithLabelValues(direction, outcome).Inc()
}

func (m *metrics) refuse(direction, reason string) {
	m.refused.WithLabelValues(direction, reason).Inc()
}

// ended counts a tunnel that has ended. Sent bytes come from the local application,
// which is the caller or the one called.
func (m *metrics) ended(direction, link string, r transport.Result) {
	m.byLink.with(m.sent, direction, link).Add(float64(r.Sent))
	m.byLink.with(m.received, direction, link).Add(float64(r.Received))
	m.byLink.with(m.ends, direction, link, r.Reason.String()).Inc()
	if r.Reason == transport.Drained {
		m.drained.Add(1)
	}
}
