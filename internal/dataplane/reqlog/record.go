// Package reqlog holds the records of finished requests, and hands them to those who want
// them: the access log and open taps.
//
//	request ends ─▶ Hub.Wants ─no one──▶ nothing is made
//	                    └─▶ Record ─▶ Hub.Publish ─┬▶ AccessLog ─▶ JSON lines
//	                                               └▶ Tap (filter, rate) ─▶ its reader
//
// What always holds:
//   - While the access log is off and no tap is open, a request costs one atomic load.
//   - Publish never blocks. What finds no room is dropped and counted.
//   - What callers send is bounded in a Record.
//   - A Record does not change once it was published.
//
// docs/design/0029-tap-and-access-logs.md has the reasons.
package reqlog

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxPath is the most bytes of a path in a Record, and maxMethod those of a method.
const (
	MaxPath   = 2 << 10
	maxMethod = 32
)

// The kinds of a Record.
const (
	KindRequest    = "request"
	KindConnection = "connection"
)

// The directions of a Record, seen from the node that made it.
const (
	Outbound = "outbound"
	Inbound  = "inbound"
)

// Record is one finished request, or one finished connection without recognized requests.
// Its JSON form is that of access logs and of "causeway tap -o json"; docs/using.md
// documents the fields.
type Record struct {
	// Time is when the request's head had arrived, or the connection was carried.
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// Direction is Outbound for calls of local pods, and Inbound for calls to them.
	Direction string `json:"direction"`
	Link      string `json:"link"`
	// Peer is the trust domain of the other cluster.
	Peer string `json:"peer"`
	// Namespace, Service and Port are those of the exported Service in its own cluster.
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Port      uint32 `json:"port"`
	// Mirror is the namespace/name of the local Service that was called. It is empty if
	// the direction is inbound.
	Mirror string `json:"mirror,omitempty"`
	// Caller is the SPIFFE ID of the caller.
	Caller string `json:"caller"`
	// Workload and Pod are the local pod's namespace/ServiceAccount and namespace/name.
	// The local pod is the caller if the direction is outbound.
	Workload string `json:"workload"`
	Pod      string `json:"pod,omitempty"`
	// Endpoint is the far endpoint, by the name that the peer gave it, or the address of
	// the local application. It is empty if none was reached.
	Endpoint string `json:"endpoint,omitempty"`
	// Protocol is http1, http2, grpc or tcp.
	Protocol string `json:"protocol"`
	// Method, Path and Query are those of a request. Path has at most MaxPath bytes, as
	// they were sent. Query is set only if Config.Query is.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	Query  string `json:"query,omitempty"`
	// Status is the status that the caller received; 0: none.
	Status int `json:"status,omitempty"`
	// GRPCStatus is the gRPC status that the caller received; nil: none.
	GRPCStatus *uint32 `json:"grpcStatus,omitempty"`
	// Duration is the time until the response or the connection ended, in seconds, and
	// FirstByte that until the response's head had arrived; 0: there was none.
	Duration  float64 `json:"durationSeconds"`
	FirstByte float64 `json:"firstByteSeconds,omitempty"`
	// RequestBytes and ResponseBytes are the bytes of the bodies, or those that the
	// caller of a connection sent and received.
	RequestBytes  int64 `json:"requestBytes"`
	ResponseBytes int64 `json:"responseBytes"`
	// Tries is how many times the request was sent.
	Tries int `json:"tries,omitempty"`
	// Reason is why the mesh refused or ended it, as a label of the agents' metrics.
	Reason string `json:"reason,omitempty"`
	// Claimed is true for a connection that was refused, if the Service that the peer
	// named is not exported, or is not in the namespace of the pod to which the gateway
	// led the peer. Only readers of all namespaces see the record.
	Claimed bool `json:"claimed,omitempty"`
	// TraceID is that of the request's traceparent, if it has one.
	TraceID string `json:"traceId,omitempty"`
}

// SetTarget sets the method and the path of a request, and its query if withQuery is
// true. It copies what it keeps.
func (r *Record) SetTarget(method, target string, withQuery bool) {
	path, query, _ := strings.Cut(target, "?")
	r.Method, r.Path = strings.Clone(cut(method, maxMethod)), strings.Clone(cut(path, MaxPath))
	if withQuery {
		r.Query = strings.Clone(cut(query, MaxPath))
	}
}

func cut(s string, most int) string { return s[:min(len(s), most)] }

// TraceID returns the trace identifier of a traceparent (W3C Trace Context, version 00
// and later ones that begin like it), or nothing if it is malformed.
func TraceID(traceparent string) string {
	const idAt, idEnd, parentEnd, size = 3, 35, 52, 55
	s := traceparent
	if len(s) < size || s[2] != '-' || s[idEnd] != '-' || s[parentEnd] != '-' || s[:2] == "ff" ||
		len(s) > size && (s[:2] == "00" || s[size] != '-') {
		return ""
	}
	id := s[idAt:idEnd]
	for _, part := range []string{s[:2], id, s[idEnd+1 : parentEnd], s[parentEnd+1 : size]} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return ""
		}
	}
	if strings.Trim(id, "0") == "" {
		return ""
	}
	return strings.Clone(id)
}

// Failed reports whether the mesh or the application failed: no response, a status of
// 5xx, a gRPC status that is an error of the server, or a reason of the mesh.
func (r *Record) Failed() bool {
	switch {
	case r.Reason != "":
		return true
	case r.GRPCStatus != nil && IsServerError(*r.GRPCStatus):
		return true
	}
	return r.Kind == KindRequest && (r.Status == 0 || r.Status >= 500)
}

// IsServerError reports whether a gRPC status is an error of the server, as "causeway
// stat" counts it.
func IsServerError(status uint32) bool {
	switch status {
	// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS.
	case 2, 4, 12, 13, 14, 15:
		return true
	}
	return false
}

// Concerns reports whether a reader with rights in a local namespace may see r: the
// mirror or the exported Service is in it, or the local pod is. A record
// that is Claimed concerns no namespace.
func (r *Record) Concerns(namespace string) bool {
	in := func(name string) bool { ns, _, ok := strings.Cut(name, "/"); return ok && ns == namespace }
	return namespace != "" && !r.Claimed &&
		(in(r.Workload) || in(r.Mirror) || r.Direction == Inbound && r.Namespace == namespace)
}

// AppendJSON appends r as one line of JSON.
func (r *Record) AppendJSON(b []byte) []byte {
	line, err := json.Marshal(r)
	if err != nil { // a time outside of the years 0 to 9999, or a number that is not finite
		line, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	return append(append(b, line...), '\n')
}

// String returns r as one line for people. It contains no control characters.
func (r *Record) String() string {
	var b strings.Builder
	arrow := "→"
	if r.Direction == Inbound {
		arrow = "←"
	}
	target := fmt.Sprintf("%s/%s:%d", r.Namespace, r.Service, r.Port)
	if r.Mirror != "" {
		target = fmt.Sprintf("%s:%d", r.Mirror, r.Port)
	}
	at := r.Time.UTC().Format("15:04:05.000")
	fmt.Fprintf(&b, "%s %s %s %s %s %s", at, arrow, r.Link, r.Caller, target, r.Protocol)
	if r.Kind == KindRequest {
		path := r.Path
		if r.Query != "" {
			path += "?" + r.Query
		}
		path = strings.ReplaceAll(path, " ", "%20") // the end of the path stays visible
		fmt.Fprintf(&b, " %s %s %s", dash(r.Method), dash(path), dash(number(r.Status)))
	}
	if r.Claimed {
		b.WriteString(" claimed")
	}
	if r.GRPCStatus != nil {
		fmt.Fprintf(&b, " grpc=%d", *r.GRPCStatus)
	}
	fmt.Fprintf(&b, " %s in=%d out=%d", milliseconds(r.Duration), r.RequestBytes, r.ResponseBytes)
	if r.Tries > 1 {
		fmt.Fprintf(&b, " tries=%d", r.Tries)
	}
	for _, f := range [][2]string{
		{"pod", r.Pod},
		{"endpoint", r.Endpoint},
		{"reason", r.Reason},
		{"trace", r.TraceID},
	} {
		if f[1] != "" {
			fmt.Fprintf(&b, " %s=%s", f[0], f[1])
		}
	}
	return printable(b.String())
}

// printable replaces what could control a terminal.
func printable(s string) string {
	if strings.IndexFunc(s, isUnprintable) < 0 {
		return s
	}
	return strings.Map(func(c rune) rune {
		if isUnprintable(c) {
			return '?'
		}
		return c
	}, s)
}

func isUnprintable(c rune) bool { return c != ' ' && !strconv.IsGraphic(c) || c == '�' }

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func milliseconds(seconds float64) string {
	return strconv.FormatFloat(seconds*1000, 'f', 1, 64) + "ms"
}

// Line is one line of what an agent sends to the reader of a tap. A Line without fields
// only shows that the agent is there.
type Line struct {
	Record *Record `json:"record,omitempty"`
	// Dropped is how many records were dropped since the last Line that has it, because
	// of the rate or because the reader was too slow.
	Dropped uint64 `json:"dropped,omitempty"`
	// End is why the agent ends the tap. It is the last Line.
	End string `json:"end,omitempty"`
}

// MaxLine is the most bytes of a Line in JSON that ParseLine reads. Each byte of a path
// can become six.
const MaxLine = 64 << 10

// ParseLine reads a Line of JSON.
func ParseLine(b []byte) (Line, error) {
	var l Line
	if len(b) > MaxLine {
		return l, fmt.Errorf("a line of %d bytes is too long", len(b))
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return Line{}, fmt.Errorf("read a record: %w", err)
	}
	return l, nil
}
