package agent

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
)

// What agents read of gRPC: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.

// grpcStatusOf returns the gRPC status in trailers, or in the head of a Trailers-Only
// response.
func grpcStatusOf(h *message.Head) (uint32, bool) {
	value, ok := h.Get("Grpc-Status")
	if !ok {
		return 0, false // ParseUint would allocate its error
	}
	return parseGRPCStatus(value)
}

func parseGRPCStatus(value string) (uint32, bool) {
	if value == "" {
		return 0, false
	}
	status, err := strconv.ParseUint(value, 10, 5)
	return uint32(status), err == nil
}

// Statuses of gRPC.
const (
	grpcResourceExhausted = 8
	grpcUnavailable       = 14
)

// httpStatusOfGRPC returns the HTTP status that says the same about an endpoint as a gRPC
// status.
func httpStatusOfGRPC(status uint32) int {
	switch {
	case status == grpcUnavailable:
		return http.StatusServiceUnavailable
	case status == grpcResourceExhausted:
		return http.StatusTooManyRequests
	case reqlog.IsServerError(status):
		return http.StatusInternalServerError
	}
	return http.StatusOK
}

func isGRPC(h *message.Head) bool {
	value, _ := h.Get("Content-Type")
	const grpc = "application/grpc"
	return len(value) >= len(grpc) && value[:len(grpc)] == grpc
}

// grpcTimeout returns how long the caller of gRPC waits, as the field says by the "Timeout"
// of the protocol: at most 8 digits and a unit.
func grpcTimeout(h *message.Head) (time.Duration, bool) {
	if !isGRPC(h) {
		return 0, false
	}
	value, ok := h.Get("Grpc-Timeout")
	if !ok || len(value) < 2 || len(value) > 9 {
		return 0, false
	}
	unit, ok := grpcUnits[value[len(value)-1]]
	n, err := strconv.ParseUint(value[:len(value)-1], 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	return time.Duration(min(n, uint64(math.MaxInt64/unit))) * unit, true
}

var grpcUnits = map[byte]time.Duration{
	'H': time.Hour, 'M': time.Minute, 'S': time.Second,
	'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond,
}
