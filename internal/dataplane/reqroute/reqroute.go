// Package reqroute decides what happens to a request by the rules of Gateway API routes:
// which rule matches, which backend gets the request, and how filters change it. It opens
// no connections, starts no goroutines, reads no clock and draws no random numbers.
//
//	Compile ─▶ Rules.Match(head) ─▶ Route ─┬▶ Location                   a redirect
//	                                       ├▶ Pick                       a backend by weight
//	                                       ├▶ EditRequest, EditResponse
//	                                       ├▶ Mirrors                    copies
//	                                       └▶ Policy                     timeouts, retries
//
// What always holds:
//   - Paths are compared in normal form. What is sent has the original bytes, unless a
//     filter changes them.
//   - A filter changes no field that frames a message, names its host, concerns one
//     connection or belongs to Causeway.
//   - A rule with a filter that is not valid answers its requests with an error. It never
//     forwards them without the filter.
//   - If a match is not valid, every request gets an error.
//   - Regular expressions run in linear time, on values of bounded length. Their sum is
//     bounded, in instructions, and so is their work for one request.
package reqroute

import (
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// maxMatches bounds what Compile accepts. More matches are not valid.
const maxMatches = 1024

// A Rule is what happens to the requests of some matches.
type Rule struct {
	// Name is that of the route, for logs.
	Name string
	// Filters apply to every request of the rule, and before those of its backend.
	Filters  Filters
	Backends []Backend
	// Timeout bounds a request with all its tries, and BackendTimeout bounds one try.
	// nil: the settings of the backend hold. 0: no bound.
	Timeout, BackendTimeout *time.Duration
	// Retry is nil if the settings of the backend hold.
	Retry *Retry
}

// PathKind is how a path is compared.
type PathKind uint8

// The ways to compare a path. A prefix consists of whole segments.
const (
	AnyPath PathKind = iota
	ExactPath
	PathPrefix
	PathRegex
)

// A Match is a set of conditions, all of which a request must meet.
type Match struct {
	// Rule is the index of the rule.
	Rule     int
	PathKind PathKind
	Path     string
	// Method is compared with case. Empty: every method.
	Method         string
	Headers, Query []ValueMatch
	// GRPC: the request is one of gRPC.
	GRPC bool
	// Unknown reports a condition that this version does not know. It is not valid.
	Unknown bool
}

// A ValueMatch compares a field of the head or a parameter of the query.
type ValueMatch struct {
	Name, Value string
	// Regex: Value is a regular expression that must match the whole value.
	Regex bool
}

// Filters change a request or its response, or answer the request.
type Filters struct {
	Request, Response []FieldChanges // one after the other
	Redirect          *Redirect
	Rewrite           *Rewrite
	Mirrors           []Mirror
	// Unknown reports a filter that this version does not know. It is not valid.
	Unknown bool
}

// FieldChanges change the fields of a head. First Set replaces fields, then Add appends
// them, then Remove removes fields.
type FieldChanges struct {
	Set, Add []message.Field
	Remove   []string
}

// PathChangeKind is how a path is changed.
type PathChangeKind uint8

// The ways to change a path.
const (
	KeepPath PathChangeKind = iota
	ReplacePath
	// ReplacePrefix replaces what the rule's match of kind PathPrefix matched.
	ReplacePrefix
)

// A PathChange changes the path of a request and keeps its query.
type PathChange struct {
	Kind  PathChangeKind
	Value string
}

// A Redirect answers a request with another address. Empty parts are those of the
// request.
type Redirect struct {
	// Scheme is http or https.
	Scheme, Hostname string
	// Port is 0 for the port of Scheme, or without a Scheme for that which the request
	// names.
	Port   uint16
	Path   PathChange
	Status int // 301, 302, 303, 307 or 308
}

// A Rewrite changes where a request claims to go, before it is sent.
type Rewrite struct {
	Hostname string // empty: as it is
	Path     PathChange
}

// A Mirror sends copies of requests to another backend.
type Mirror struct {
	To Ref
	// Numerator of Denominator requests are copied.
	Numerator, Denominator uint32
}

// A Ref names a port of a frontend of this cluster.
type Ref struct {
	Namespace, Name string
	// Index is that of the frontend's listener port.
	Index int
}

// A Backend gets a share of the requests of a rule. If its Name is empty, the share gets
// status 500.
type Backend struct {
	Ref
	Weight uint32
	// Filters are those of this backend, without Redirect.
	Filters Filters
}

// Retry says which responses are followed by another try.
type Retry struct {
	// Attempts is the most retries of one request. nil: that of the backend, but at least
	// one.
	Attempts *int
	// Codes are statuses. They hold for each method, because a route can match methods.
	Codes []int
	// Backoff is the least time between two tries. 0: the default.
	Backoff time.Duration
}
