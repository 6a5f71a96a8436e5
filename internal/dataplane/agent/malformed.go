package agent

import (
	"errors"
	"net/http"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
)

// A malformedBody is the error of a caller's request whose body is malformed.
type malformedBody struct{ cause *h1.Error }

func (e malformedBody) Error() string { return e.cause.Error() }
func (e malformedBody) Unwrap() error { return e.cause }

// explainBody replaces the error of a result by a malformedBody if the caller has sent a
// malformed body.
func explainBody(r *httprelay.Result) {
	if !r.FromErr {
		return // most requests; errors.As would allocate
	}
	if bad := (*h1.Error)(nil); errors.As(r.Err, &bad) {
		r.Err = malformedBody{bad}
	}
}

func isMalformedBody(err error) bool {
	bad := malformedBody{}
	return errors.As(err, &bad)
}

// isCallerGone reports whether a request has ended because its caller has gone.
func isCallerGone(r httprelay.Result) bool { return r.FromErr && !isMalformedBody(r.Err) }

// malformedRejection returns how a request that cannot be read is counted.
func malformedRejection(bad *h1.Error) reqmetrics.Rejection {
	switch bad.Status {
	case http.StatusRequestURITooLong, http.StatusRequestHeaderFieldsTooLarge:
		return reqmetrics.RejectedTooLarge
	}
	return reqmetrics.RejectedMalformed
}
