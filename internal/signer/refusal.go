package signer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Each error of this package wraps one of these.
var (
	// ErrUnauthenticated means that the token is not valid for any process of Causeway.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrForbidden means that the holder of the token may not have the certificate.
	ErrForbidden = errors.New("forbidden")
	// ErrRateLimited means that the node has made too many requests.
	ErrRateLimited = errors.New("too many requests")
	// ErrInvalid means that the request is malformed. Do not retry it.
	ErrInvalid = errors.New("invalid request")
	// ErrUnavailable means that the decision is not possible now. Retry, if possible with
	// another replica.
	ErrUnavailable = errors.New("temporarily unavailable")
)

// Reasons of refusals, as values of a metric label.
const (
	ReasonToken        = "token"         // invalid, expired, or too long
	ReasonAudience     = "audience"      // for another audience
	ReasonAccount      = "account"       // not a ServiceAccount of Causeway
	ReasonUnbound      = "unbound"       // not bound to a pod and a node
	ReasonPod          = "pod"           // the pod does not exist, has finished, or moved
	ReasonUnchecked    = "unchecked"     // the API server or the cache returned an error
	ReasonRole         = "role"          // the caller is not an agent
	ReasonRate         = "rate"          // the node exceeded its rate limit
	ReasonName         = "name"          // not a valid name of a ServiceAccount
	ReasonOwnNamespace = "own_namespace" // in the namespace of Causeway
	ReasonNoPod        = "no_pod"        // no live pod of the ServiceAccount on the node
	ReasonCSR          = "request"       // invalid certificate request
	ReasonIssuer       = "issuer"        // the issuer has expired
	reasonOther        = "other"         // a bug: the error has no reason
)

func authenticationReasons() []string {
	return []string{
		ReasonToken, ReasonAudience, ReasonAccount, ReasonUnbound, ReasonPod, ReasonUnchecked, reasonOther,
	}
}

// Reasons returns all reasons, sorted.
func Reasons() []string {
	reasons := append(authenticationReasons(),
		ReasonRole, ReasonRate, ReasonName, ReasonOwnNamespace, ReasonNoPod, ReasonCSR, ReasonIssuer)
	slices.Sort(reasons)
	return reasons
}

// Reason returns the reason of an error, which is one of Reasons, or "" if err is nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	return reasonOther
}

// refusal is the type of all errors of this package.
type refusal struct {
	kind   error
	reason string
	err    error
}

func refuse(kind error, reason, format string, args ...any) error {
	return &refusal{kind, reason, fmt.Errorf(format, args...)}
}

func (r *refusal) Error() string { return r.err.Error() }

func (r *refusal) Unwrap() []error { return []error{r.kind, r.err} }

// GRPCStatus returns the gRPC status of the error, so that a gRPC handler can return the
// error unchanged.
func (r *refusal) GRPCStatus() *status.Status {
	code := codes.Internal
	switch r.kind {
	case ErrUnauthenticated:
		code = codes.Unauthenticated
	case ErrForbidden:
		code = codes.PermissionDenied
	case ErrRateLimited:
		code = codes.ResourceExhausted
	case ErrInvalid:
		code = codes.InvalidArgument
	case ErrUnavailable:
		code = codes.Unavailable
	}
	return status.New(code, r.Error())
}

// refusals returns a counter of refusals that exports each reason from zero.
func refusals(name, help string, reasons []string) *prometheus.CounterVec {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reason"})
	for _, reason := range reasons {
		vec.WithLabelValues(reason)
	}
	return vec
}
