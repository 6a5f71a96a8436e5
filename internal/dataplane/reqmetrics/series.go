package reqmetrics

import (
	"strconv"
	"sync/atomic"

	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

// The counters of a key that get a series when they are first used, by index.
const (
	codeClasses  = 6  // none, 1xx to 5xx
	grpcStatuses = 18 // 0 to 16, and other
	retryReasons = retry.ReasonGRPCStatus + 1

	codeCounter      = 0
	grpcCounter      = codeCounter + codeClasses
	retryCounter     = grpcCounter + grpcStatuses
	rejectionCounter = retryCounter + int(retryReasons)
	ejectionCounter  = rejectionCounter + int(rejections)
	budgetCounter    = ejectionCounter + 1
	counters         = budgetCounter + 1
)

// fixedSeries is the number of series that each key has: those of the histogram, and
// in_flight and two of bytes.
const fixedSeries = len(bounds) + 3 + 3

// codeNames are label values. A request without a status got no response, or is a TCP
// connection.
var codeNames = [codeClasses]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

var grpcNames = [grpcStatuses]string{
	"OK",
	"CANCELLED",
	"UNKNOWN",
	"INVALID_ARGUMENT",
	"DEADLINE_EXCEEDED",
	"NOT_FOUND",
	"ALREADY_EXISTS",
	"PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION",
	"ABORTED",
	"OUT_OF_RANGE",
	"UNIMPLEMENTED",
	"INTERNAL",
	"UNAVAILABLE",
	"DATA_LOSS",
	"UNAUTHENTICATED",
	other,
}

// GRPCStatusName returns the name of a gRPC status as in metrics, such as UNAVAILABLE, or
// "other".
func GRPCStatusName(status uint32) string { return grpcNames[min(status, grpcStatuses-1)] }

// counterOf returns the index of the counter for a result. A request with a gRPC status
// counts under that alone, because its HTTP status is 200.
func counterOf(res Result) int {
	if res.HasGRPCStatus {
		return grpcCounter + int(min(res.GRPCStatus, grpcStatuses-1))
	}
	if class := res.Status / 100; class >= 1 && class <= 5 {
		return codeCounter + class
	}
	return codeCounter
}

// series is the set of series of one key, or of "other".
type series struct {
	direction Direction
	labels    []string // values of keyLabels

	lastUsed      atomic.Int64 // Unix time
	inFlight      atomic.Int64
	requestBytes  atomic.Uint64
	responseBytes atomic.Uint64
	duration      histogram
	exemplars     exemplars // of duration

	// slots are the counters to use: nil before the first use, then one of own or of the
	// series of "other". Metrics.mu guards changes.
	slots [counters]atomic.Pointer[atomic.Uint64]
	own   [counters]atomic.Uint64
}

func newSeries(k Key, unix int64) *series {
	s := &series{direction: k.Direction, labels: []string{
		k.Direction.String(),
		k.Link,
		k.Namespace,
		k.Service,
		strconv.Itoa(int(k.Port)),
		k.Workload,
		k.Protocol.String(),
	}}
	s.lastUsed.Store(unix)
	return s
}

// has reports whether the counter i is a series of s.
func (s *series) has(i int) bool { return s.slots[i].Load() == &s.own[i] }

// size returns the number of series.
func (s *series) size() int {
	n := fixedSeries
	for i := range s.slots {
		if s.has(i) {
			n++
		}
	}
	return n
}

// moveTo adds all counts of s to those of to. No request of s may be in flight.
func (s *series) moveTo(to *series) {
	for i := range s.own {
		to.own[i].Add(s.own[i].Load())
	}
	to.requestBytes.Add(s.requestBytes.Load())
	to.responseBytes.Add(s.responseBytes.Load())
	s.duration.moveTo(&to.duration)
}
