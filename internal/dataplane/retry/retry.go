// Package retry decides whether a failed request is sent again. It opens no connections,
// starts no goroutines and reads no clock.
//
//	failed attempt ─▶ Policy.Decide ─▶ retry after a delay ─▶ Budget.Withdraw ─▶ send again
//
// What always holds:
//   - A request is never sent again after a byte of its response went to the caller.
//   - A request is never sent again without the whole of its body.
//   - By default a request that the far side may have processed is sent again only if its
//     method is GET, HEAD or OPTIONS.
//   - Retries are at most a fifth of the requests of a key, and ten per second.
//
// docs/design/0025-balancing.md has the rules and the reasons for each constant.
package retry

import (
	"math/rand/v2"
	"slices"
	"time"
)

// docs/design/0025-balancing.md has the reasons for these.
const (
	defaultMaxRetries = 2
	baseDelay         = 25 * time.Millisecond
	maxDelayDoublings = 5 // a delay is at most 800 ms
)

// Failure is how an attempt failed.
type Failure uint8

const (
	// NotProcessed is a request that the far side says no application has seen: a refused
	// stream, a stream above the last one of a GOAWAY, a session that closed before OPEN
	// was read.
	NotProcessed Failure = iota + 1
	// ConnectFailed is a connection to the pod that could not be made, so that the pod
	// has seen nothing.
	ConnectFailed
	// Reset is a connection or stream that broke after the request was sent.
	Reset
	// TryTimeout is Policy.PerTryTimeout without a response.
	TryTimeout
	// Status is a response with the HTTP status Attempt.Status.
	Status
	// GRPCStatus is a gRPC response that is Trailers-Only and has the status
	// Attempt.GRPCStatus.
	GRPCStatus
	// GoingAway is NotProcessed because the far side ends the session, as in a drain. The
	// request is sent again once even if the policy has no retries.
	GoingAway
)

// Body is the state of the body of a request.
type Body uint8

const (
	// BodyUnsent is a body of which nothing has been sent, or no body.
	BodyUnsent Body = iota
	// BodyKept is a body of which the caller holds all that has been sent.
	BodyKept
	// BodyLost is a body of which something was sent that is not held any more.
	BodyLost
)

// Attempt describes an attempt that failed.
type Attempt struct {
	Method        string
	Failure       Failure
	Status        int
	GRPCStatus    uint32
	ResponseBegun bool // a byte of a final response went to the caller
	Body          Body
	// Tries is the number of attempts so far, with this one. It is at least 1.
	Tries int
	// Elapsed is the time since the request came.
	Elapsed time.Duration
}

// Conditions is a set of failures.
type Conditions uint8

// The failures that a policy can name.
const (
	OnReset            Conditions = 1 << iota
	OnTryTimeout                  // of PerTryTimeout
	OnGatewayErrors               // 502, 503 and 504
	OnServerErrors                // 500 to 599
	OnConnectionFailed            // NotProcessed, GoingAway and ConnectFailed, with any method
)

// Policy says which requests are sent again. Use Default for the defaults. The zero value
// sends nothing again, except once after GoingAway.
type Policy struct {
	// MaxRetries is the most retries of one request.
	MaxRetries int
	// PerTryTimeout is the most time from sending an attempt to the head of its response.
	// 0 means no limit.
	PerTryTimeout time.Duration
	// Timeout is the most time for all attempts. 0 means no limit.
	Timeout time.Duration
	// On are the failures after which a request is sent again, if its method is one of
	// Methods.
	On Conditions
	// Statuses are further HTTP statuses, under the same condition.
	Statuses []int
	// StatusesOfAnyMethod reports that Methods does not matter for Statuses.
	StatusesOfAnyMethod bool
	// MinDelay is the least time between two tries, if the far side may have processed
	// the first.
	MinDelay time.Duration
	// GRPCStatuses is the set of gRPC statuses after which a request is sent again: bit n
	// is status n. Methods does not matter for them, because each gRPC request is a POST.
	GRPCStatuses uint32
	// Methods are the methods that may be sent again although the far side may have
	// processed the request.
	Methods []string
}

// Default returns the policy of a Service for which none is configured.
func Default() Policy {
	return Policy{
		MaxRetries: defaultMaxRetries,
		On:         OnConnectionFailed | OnReset | OnTryTimeout,
		Methods:    []string{"GET", "HEAD", "OPTIONS"},
	}
}

// Reason says why a request is sent again, or why not.
type Reason uint8

// The reasons for a retry, and then those against it.
const (
	ReasonNotProcessed Reason = iota
	ReasonConnectFailed
	ReasonReset
	ReasonTryTimeout
	ReasonStatus
	ReasonGRPCStatus

	ReasonResponseBegun
	ReasonBodyLost
	ReasonMaxRetries
	ReasonTimeout
	ReasonMethod
	ReasonNotConfigured
)

var reasonNames = [...]string{
	ReasonNotProcessed:  "not_processed",
	ReasonConnectFailed: "connect_failed",
	ReasonReset:         "reset",
	ReasonTryTimeout:    "try_timeout",
	ReasonStatus:        "status",
	ReasonGRPCStatus:    "grpc_status",
	ReasonResponseBegun: "response_begun",
	ReasonBodyLost:      "body_not_kept",
	ReasonMaxRetries:    "max_retries",
	ReasonTimeout:       "timeout",
	ReasonMethod:        "method",
	ReasonNotConfigured: "not_configured",
}

// String returns the reason as the value of a metric label.
func (r Reason) String() string { return reasonNames[r] }

// RetryReasons returns the reasons of which Decide gives one for each retry.
func RetryReasons() []Reason {
	return []Reason{ReasonNotProcessed, ReasonConnectFailed, ReasonReset, ReasonTryTimeout, ReasonStatus,
		ReasonGRPCStatus}
}

// Decision is whether to send a request again.
type Decision struct {
	Retry bool
	// Delay is the time to wait before. It is 0 without Retry.
	Delay  time.Duration
	Reason Reason
}

// Decide decides whether a request is sent again after a failed attempt. If it says so,
// the caller asks a Budget next. Random returns random bits; nil means rand.Uint64 of
// math/rand/v2.
func (p *Policy) Decide(a Attempt, random func() uint64) Decision {
	if random == nil {
		random = rand.Uint64
	}
	reason, wanted := p.wants(a)
	switch {
	case a.ResponseBegun:
		return Decision{Reason: ReasonResponseBegun}
	case !wanted:
		return Decision{Reason: reason}
	case a.Body == BodyLost:
		return Decision{Reason: ReasonBodyLost}
	case a.Tries > p.MaxRetries && !a.moves():
		return Decision{Reason: ReasonMaxRetries}
	}
	delay := p.retryDelay(a, random)
	if p.Timeout > 0 && a.Elapsed+delay >= p.Timeout {
		return Decision{Reason: ReasonTimeout}
	}
	return Decision{Retry: true, Delay: delay, Reason: reason}
}

// moves reports that the request only changes its session, which is no retry.
func (a *Attempt) moves() bool { return a.Failure == GoingAway && a.Tries <= 1 }

// wants reports whether the policy has the failure, and the reason.
func (p *Policy) wants(a Attempt) (Reason, bool) {
	var reason Reason
	var configured bool
	switch a.Failure {
	case NotProcessed, ConnectFailed, GoingAway:
		switch {
		case p.On&OnConnectionFailed == 0 && !a.moves():
			return ReasonNotConfigured, false
		case a.Failure == ConnectFailed:
			return ReasonConnectFailed, true
		}
		return ReasonNotProcessed, true
	case GRPCStatus:
		if a.GRPCStatus < 32 && p.GRPCStatuses&(1<<a.GRPCStatus) != 0 {
			return ReasonGRPCStatus, true
		}
		return ReasonNotConfigured, false
	case Reset:
		reason, configured = ReasonReset, p.On&OnReset != 0
	case TryTimeout:
		reason, configured = ReasonTryTimeout, p.On&OnTryTimeout != 0
	case Status:
		reason, configured = ReasonStatus, p.NamesStatus(a.Status)
	}
	if !configured {
		return ReasonNotConfigured, false
	}
	if a.Failure == Status && p.StatusesOfAnyMethod && slices.Contains(p.Statuses, a.Status) {
		return reason, true
	}
	if !slices.Contains(p.Methods, a.Method) {
		return ReasonMethod, false
	}
	return reason, true
}

// NamesStatus reports whether a request whose response has an HTTP status may be sent
// again, if its method may.
func (p *Policy) NamesStatus(status int) bool {
	return p.On&OnGatewayErrors != 0 && status >= 502 && status <= 504 ||
		p.On&OnServerErrors != 0 && status >= 500 && status <= 599 ||
		slices.Contains(p.Statuses, status)
}

// retryDelay returns MinDelay and a random part of 25 ms, which doubles with each try.
// The first retry of a request that no pod has seen does not wait, because another
// endpoint can take it.
func (p *Policy) retryDelay(a Attempt, random func() uint64) time.Duration {
	if a.Tries <= 1 && (a.Failure == NotProcessed || a.Failure == ConnectFailed || a.Failure == GoingAway) {
		return 0
	}
	longest := baseDelay << min(max(a.Tries-1, 0), maxDelayDoublings)
	return p.MinDelay + time.Duration(random()%uint64(longest))
}

// TryTimeout returns the time that the next attempt has until the head of its response,
// and whether there is a limit. Elapsed is the time since the request came. If no time is
// left, the result is not positive.
func (p *Policy) TryTimeout(elapsed time.Duration) (time.Duration, bool) {
	switch {
	case p.Timeout == 0:
		return p.PerTryTimeout, p.PerTryTimeout > 0
	case p.PerTryTimeout == 0:
		return p.Timeout - elapsed, true
	}
	return min(p.PerTryTimeout, p.Timeout-elapsed), true
}
