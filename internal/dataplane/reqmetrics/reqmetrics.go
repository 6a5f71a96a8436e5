// Package reqmetrics counts requests for Prometheus, in a bounded number of series.
//
//	connection ─▶ Metrics.Recorder(key) ─▶ Recorder.Start ─▶ Request.Finish
//	                                                            │
//	scrape ◀─ Metrics.Collect ◀─ a set of series for each key ◀─┘
//
// What always holds:
//   - There are at most Config.MaxSeries series. What exceeds them counts in series whose
//     labels except the direction are "other".
//   - The sum of a metric over all series never decreases.
//   - A request is counted once, and its start and end in the same series.
//   - Counting allocates nothing and takes no lock, except for the first event of a kind.
//
// docs/design/0025-balancing.md has the reasons for the limits.
package reqmetrics

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

const (
	defaultMaxSeries = 2000
	// evictAfter is the time without requests after which the series of a key may be
	// replaced by those of another one.
	evictAfter = 15 * time.Minute
	// attachInterval is the time after which a Recorder that counts in "other" tries to
	// get series of its own.
	attachInterval = time.Minute
	// keyShare is the part of the series that new keys may use, in percent. The rest is
	// for further status codes and reasons of the keys that have series.
	keyShare = 90
	// maxLabel is the most bytes of a label value.
	maxLabel = 256
)

// other is the label value of what has no series of its own.
const other = "other"

// Direction is the direction of a request, seen from this node.
type Direction uint8

const (
	// Outbound is a request of a local pod to a peer.
	Outbound Direction = iota
	// Inbound is a request of a peer to a local pod.
	Inbound

	directions
)

// String returns the direction as a label value.
func (d Direction) String() string {
	if d == Outbound {
		return "outbound"
	}
	return "inbound"
}

// Protocol is the protocol of a request.
type Protocol uint8

// The protocols. A TCP connection counts as one request.
const (
	HTTP1 Protocol = iota
	HTTP2
	GRPC
	TCP
)

var protocolNames = [...]string{HTTP1: "http1", HTTP2: "http2", GRPC: "grpc", TCP: "tcp"}

// String returns the protocol as a label value.
func (p Protocol) String() string {
	if int(p) < len(protocolNames) {
		return protocolNames[p]
	}
	return other
}

// Key says to which series a request belongs. Link, Namespace, Service and Workload must
// be names of Kubernetes objects or parts of verified identities, not text of a caller.
type Key struct {
	Direction Direction
	Link      string
	// Namespace, Service and Port are those of the mirrored Service.
	Namespace string
	Service   string
	Port      uint16
	// Workload is the local pod's namespace/ServiceAccount.
	Workload string
	Protocol Protocol
}

// Rejection is the reason for which the mesh answered a request instead of an
// application.
type Rejection uint8

// The reasons of Request.Rejected.
const (
	RejectedNoEndpoint  Rejection = iota // no endpoint is known, or none can be reached
	RejectedCircuitOpen                  // every endpoint has too many outstanding requests
	RejectedOverloaded                   // this agent sheds load
	RejectedTimeout                      // the timeout of the request
	RejectedMalformed                    // the request is not valid HTTP, or ambiguous
	RejectedTooLarge                     // the head of the request or of the response
	RejectedNotAllowed                   // by policy
	RejectedUpstream                     // the connection broke, or its response is not valid HTTP
	RejectedNoRoute                      // no rule of a route matches, or it has no valid backend
	RejectedOtherReason                  // any other

	rejections
)

var rejectionNames = [...]string{
	RejectedNoEndpoint:  "no_endpoint",
	RejectedCircuitOpen: "circuit_open",
	RejectedOverloaded:  "overloaded",
	RejectedTimeout:     "timeout",
	RejectedMalformed:   "malformed",
	RejectedTooLarge:    "too_large",
	RejectedNotAllowed:  "not_allowed",
	RejectedUpstream:    "upstream_failed",
	RejectedNoRoute:     "no_route",
	RejectedOtherReason: other,
}

// String returns the reason as a label value.
func (r Rejection) String() string {
	if r < rejections {
		return rejectionNames[r]
	}
	return other
}

// Result is how a request ended.
type Result struct {
	// Status is the HTTP status that the caller got. 0 means that it got none, or that
	// the protocol has none.
	Status int
	// GRPCStatus is the gRPC status that the caller got, if HasGRPCStatus is true.
	GRPCStatus    uint32
	HasGRPCStatus bool
	// Duration is the time from the head of the request to the end of the response.
	Duration time.Duration
	// TraceID is the trace of the request in hexadecimal, or "". It becomes an exemplar.
	TraceID string
	// RequestBytes and ResponseBytes are the bytes of the bodies that AddBytes has not
	// counted yet.
	RequestBytes  uint64
	ResponseBytes uint64
}

// Traced returns the result with a TraceID.
func (r Result) Traced(id string) Result {
	r.TraceID = id
	return r
}

// Config configures Metrics. The zero value has the defaults.
type Config struct {
	// MaxSeries is the most series. 0 means 2,000. Each key needs 16 and one for each
	// status and reason. The series of "other" count too, about 130 in all.
	MaxSeries int
}

// Metrics is a prometheus.Collector of request metrics. Make it with New. It is safe for
// concurrent use.
type Metrics struct {
	other [directions]*reference
	max   int // series of keys

	mu   sync.Mutex // guards what follows, and which counters series have
	keys map[Key]*reference
	used int // series of keys
}

// reference is how a Recorder refers to series. If it is stale, the Recorder must get
// another one.
type reference struct {
	*series
	stale atomic.Bool
	// retryAt is the Unix time at which a Recorder of "other" asks for series of its own.
	// It is 0 for series of a key.
	retryAt int64
}

// New returns Metrics without any series. Register it with a prometheus.Registerer.
func New(cfg Config) *Metrics {
	if cfg.MaxSeries == 0 {
		cfg.MaxSeries = defaultMaxSeries
	}
	m := &Metrics{
		keys: make(map[Key]*reference),
		max:  max(0, cfg.MaxSeries-int(directions)*(fixedSeries+counters)),
	}
	for d := range directions {
		s := &series{labels: []string{d.String(), other, other, other, other, other, other}}
		m.other[d] = &reference{series: s}
		for i := range s.slots {
			s.slots[i].Store(&s.own[i])
		}
	}
	return m
}

// Recorder counts the requests of one key. It is safe for concurrent use. A caller should
// get one for each connection and keep it, because Metrics.Recorder takes a lock.
type Recorder struct {
	m   *Metrics
	key Key
	ref atomic.Pointer[reference]
}

// Recorder returns a Recorder for a key. It needs no end.
func (m *Metrics) Recorder(k Key) *Recorder {
	if k.Direction >= directions {
		k.Direction = Inbound
	}
	k.Link, k.Namespace = label(k.Link), label(k.Namespace)
	k.Service, k.Workload = label(k.Service), label(k.Workload)
	return &Recorder{m: m, key: k}
}

// label returns a valid label value. An invalid one would fail the whole scrape.
func label(s string) string {
	if len(s) > maxLabel {
		s = s[:maxLabel]
	}
	return strings.ToValidUTF8(s, "?")
}

// Request is a request in flight. It is a small value; Finish must be called once.
type Request struct {
	m *Metrics
	s *series
}

// Start counts a request as in flight.
func (r *Recorder) Start(now time.Time) Request {
	unix := now.Unix()
	for {
		ref := r.ref.Load()
		if ref == nil || ref.stale.Load() || ref.retryAt != 0 && unix >= ref.retryAt {
			ref = r.m.attach(r.key, unix)
			r.ref.Store(ref)
		}
		ref.inFlight.Add(1)
		if !ref.stale.Load() { // it was not evicted in between, and now it cannot be
			if ref.lastUsed.Load() != unix {
				ref.lastUsed.Store(unix)
			}
			return Request{m: r.m, s: ref.series}
		}
		ref.inFlight.Add(-1)
	}
}

// Observe counts a request that began and ended at once.
func (r *Recorder) Observe(now time.Time, res Result) { r.Start(now).Finish(now, res) }

// Finish counts the result of a request, which is no longer in flight.
func (q Request) Finish(now time.Time, res Result) {
	if q.s == nil {
		return
	}
	q.m.count(q.s, counterOf(res))
	q.s.duration.observe(res.Duration)
	if res.TraceID != "" {
		q.s.exemplars.set(now, res)
	}
	q.AddBytes(res.RequestBytes, res.ResponseBytes)
	if unix := now.Unix(); q.s.lastUsed.Load() != unix {
		q.s.lastUsed.Store(unix)
	}
	q.s.inFlight.Add(-1)
}

// AddBytes counts bytes of bodies before the request ends. Streams need it.
func (q Request) AddBytes(request, response uint64) {
	if q.s == nil {
		return
	}
	if request > 0 {
		q.s.requestBytes.Add(request)
	}
	if response > 0 {
		q.s.responseBytes.Add(response)
	}
}

// Retried counts a retry of the request.
func (q Request) Retried(reason retry.Reason) {
	if reason < retryReasons {
		q.count(retryCounter + int(reason))
	}
}

// Rejected counts that the mesh has answered the request, and why. Finish counts the
// status of that answer.
func (q Request) Rejected(reason Rejection) {
	if reason >= rejections {
		reason = RejectedOtherReason
	}
	q.count(rejectionCounter + int(reason))
}

// Ejected counts that the request led to the ejection of an endpoint.
func (q Request) Ejected() { q.count(ejectionCounter) }

// BudgetExhausted counts that the request was not retried because of the budget.
func (q Request) BudgetExhausted() { q.count(budgetCounter) }

func (q Request) count(i int) {
	if q.s != nil {
		q.m.count(q.s, i)
	}
}

// count adds one to a counter of s. The first time, the counter gets a series.
func (m *Metrics) count(s *series, i int) {
	c := s.slots[i].Load()
	if c == nil {
		c = m.addCounter(s, i)
	}
	c.Add(1)
}

// addCounter gives a counter of s a series, or the one of "other" if there are too many.
func (m *Metrics) addCounter(s *series, i int) *atomic.Uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := s.slots[i].Load(); c != nil {
		return c
	}
	c := &s.own[i]
	if m.makeRoom(1, m.max, s.lastUsed.Load()) {
		m.used++
	} else {
		c = &m.other[s.direction].own[i]
	}
	s.slots[i].Store(c)
	return c
}

// attach returns the series of a key. If there are too many, it returns those of "other".
func (m *Metrics) attach(k Key, unix int64) *reference {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ref, ok := m.keys[k]; ok {
		return ref
	}
	if !m.makeRoom(fixedSeries, m.max*keyShare/100, unix) {
		return &reference{
			series:  m.other[k.Direction].series,
			retryAt: unix + int64(attachInterval/time.Second),
		}
	}
	m.used += fixedSeries
	ref := &reference{series: newSeries(k, unix)}
	m.keys[k] = ref
	return ref
}

// makeRoom evicts keys that have not been used for some time, the oldest first, until n
// more series fit below limit. It returns false if they do not fit even so.
func (m *Metrics) makeRoom(n, limit int, unix int64) bool {
	for m.used+n > limit {
		if !m.evictOldest(unix - int64(evictAfter/time.Second)) {
			return false
		}
	}
	return true
}

// evictOldest evicts the key that was not used for the longest time, if that is before a
// Unix time. It returns false if there is none.
func (m *Metrics) evictOldest(before int64) bool {
	var oldest *reference
	var key Key
	for k, ref := range m.keys {
		if used := ref.lastUsed.Load(); used <= before && ref.inFlight.Load() == 0 &&
			(oldest == nil || used < oldest.lastUsed.Load()) {
			oldest, key = ref, k
		}
	}
	if oldest == nil {
		return false
	}
	// Recorders count a request as in flight before they look at stale. So one of the two
	// sides sees the other.
	oldest.stale.Store(true)
	if oldest.inFlight.Load() != 0 {
		oldest.stale.Store(false)
		return false
	}
	delete(m.keys, key)
	m.used -= oldest.size()
	oldest.moveTo(m.other[key.Direction].series)
	return true
}

var _ prometheus.Collector = (*Metrics)(nil)
