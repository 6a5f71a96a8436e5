package signer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What every error of this package wraps one of.
var (
	// ErrUnauthenticated: the token is nobody's whom we know.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrForbidden: the holder of the token may not have that.
	ErrForbidden = errors.New("forbidden")
	// ErrRateLimited: the node asks too often.
	ErrRateLimited = errors.New("too many requests")
	// ErrInvalid: the request can never be granted to anybody.
	ErrInvalid = errors.New("invalid request")
	// ErrUnavailable: it cannot be decided now; ask again, perhaps another replica.
	ErrUnavailable = errors.New("cannot be decided now")
)

// Reasons of refusals, fit to be the values of a metric's label.
const (
	ReasonToken        = "token"         // unknown to the API server, expired, or too long
	ReasonAudience     = "audience"      // meant for somebody else
	ReasonAccount      = "account"       // not one of Causeway's own
	ReasonUnbound      = "unbound"       // names no pod and node
	ReasonPod          = "pod"           // its pod is gone, over or elsewhere
	ReasonUnchecked    = "unchecked"     // the API server or the view of it did not answer
	ReasonRole         = "role"          // not an agent
	ReasonRate         = "rate"          // too often
	ReasonName         = "name"          // no ServiceAccount can be called so
	ReasonOwnNamespace = "own_namespace" // Causeway's own
	ReasonNoPod        = "no_pod"        // no live pod of that account on that node
	ReasonCSR          = "request"       // not a request for a P-256 key by its holder
	ReasonIssuer       = "issuer"        // the issuer has expired
	reasonOther        = "other"         // never, unless by mistake
)

func authenticationReasons() []string {
	return []string{ReasonToken, ReasonAudience, ReasonAccount, ReasonUnbound, ReasonPod, ReasonUnchecked, reasonOther}
}

// Reasons returns every reason there is, sorted.
func Reasons() []string {
	reasons := append(authenticationReasons(),
		ReasonRole, ReasonRate, ReasonName, ReasonOwnNamespace, ReasonNoPod, ReasonCSR, ReasonIssuer)
	slices.Sort(reasons)
	return reasons
}

// Reason returns why err refused: one of Reasons, or "" for nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	return reasonOther
}

// refusal is every error of this package.
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

// GRPCStatus tells gRPC's code for the sentinel, so that a server may return the
// error as it is.
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

// refusals counts refusals, each reason from zero.
func refusals(name, help string, reasons []string) *prometheus.CounterVec {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"reason"})
	for _, reason := range reasons {
		vec.WithLabelValues(reason)
	}
	return vec
}
