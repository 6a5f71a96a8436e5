package mirror

import (
	"encoding/json"
	"errors"
	"hash/fnv"
	"maps"
	"regexp"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// saidAtMost bounds what a problem repeats of the API server's answer, in bytes.
const saidAtMost = 256

// refusals holds the writes of a Link that the API server did not accept, by the
// object that they are about. A write is in it for retryRejected at most, and is
// not tried again meanwhile; one of other content is.
type refusals map[string]refusal

// refusal is one write that was not accepted.
type refusal struct {
	content uint64 // of the Change
	until   time.Time
	problem Problem
}

// forget drops what may be tried again.
func (r refusals) forget(now time.Time) {
	maps.DeleteFunc(r, func(_ string, f refusal) bool { return !now.Before(f.until) })
}

// of returns the refusal that still stands against c.
func (r refusals) of(c Change, now time.Time) (refusal, bool) {
	f, ok := r[c.about()]
	return f, ok && now.Before(f.until) && f.content == c.content()
}

// content is equal for Changes that write the same. What others have in the
// object, and its version, are no part of it.
func (c Change) content() uint64 {
	h := fnv.New64a()
	h.Write([]byte(c.Op.String()))
	h.Write(c.body())
	return h.Sum64()
}

// body is what c sends: an object, a patch, or the UID of what shall go.
func (c Change) body() []byte {
	var body []byte
	var err error
	switch c.Op {
	case Create:
		body, err = json.Marshal(c.Object())
	case Update:
		body, err = client.MergeFrom(c.Was).Data(c.Object())
	case Delete:
		body = []byte(c.Object().GetUID())
	}
	if err != nil { // Kubernetes' objects always marshal
		return nil
	}
	return body
}

// refused reports whether err is an answer of the API server about the one object
// of a write. Lost connections, timeouts, gateways and an API server that is busy
// or does not know us concern every write.
func refused(err error) bool {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) {
		return false
	}
	code := answer.Status().Code
	const badRequest, unauthorized, internalError = 400, 401, 500 // RFC 9110, section 15
	return code != unauthorized && code >= badRequest && code <= internalError
}

// from is the near end of a connection, which is another every time.
var from = regexp.MustCompile(`\S+->`)

// said is what the API server said: one line, bounded, and the same as long as it means the same.
func said(err error) string {
	s := from.ReplaceAllString(strings.Join(strings.Fields(err.Error()), " "), "")
	if len(s) <= saidAtMost {
		return s
	}
	return strings.ToValidUTF8(s[:saidAtMost], "") + "…"
}
