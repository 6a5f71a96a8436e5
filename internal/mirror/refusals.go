package mirror

import (
	"encoding/json"
	"errors"
	"hash/fnv"
	"regexp"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// maxAnswer bounds how much of an API server's answer a problem repeats, in bytes.
const maxAnswer = 256

// refusals holds the writes for one mirror that the API server has refused, by the object
// that they are about. Such a write is not tried again for retryRefused, unless it is
// going to write something else. The zero value is empty.
type refusals map[string]refusal

// refusal is one refused write.
type refusal struct {
	content uint64 // of the Change
	until   time.Time
	problem Problem
}

// standing returns the refusal that still stands against c.
func (r refusals) standing(c Change, now time.Time) (refusal, bool) {
	if len(r) == 0 {
		return refusal{}, false
	}
	f, ok := r[c.about()]
	return f, ok && now.Before(f.until) && f.content == c.content()
}

// content is equal for Changes that write the same. It depends neither on what others
// have in the object nor on its version.
func (c Change) content() uint64 {
	h := fnv.New64a()
	h.Write([]byte(c.Op.String()))
	h.Write(c.body())
	return h.Sum64()
}

// body is what c sends: an object, a patch, or the UID of what is to be deleted.
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
	if err != nil { // objects of Kubernetes always marshal
		return nil
	}
	return body
}

// isRefusal reports whether err is an answer of the API server about the one object of a
// write. Lost connections, timeouts, gateways, and an API server that is busy or does not
// know us concern every write.
func isRefusal(err error) bool {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) ||
		apierrors.IsTooManyRequests(err) {
		return false
	}
	code := answer.Status().Code
	const badRequest, unauthorized, internalError = 400, 401, 500 // RFC 9110, section 15
	return code != unauthorized && code >= badRequest && code <= internalError
}

// nearEnd is the near end of a connection, whose port differs each time.
var nearEnd = regexp.MustCompile(`\S+->`)

// answerText is the API server's answer as one bounded line, which stays the same as long
// as the cause does.
func answerText(err error) string {
	s := nearEnd.ReplaceAllString(strings.Join(strings.Fields(err.Error()), " "), "")
	if len(s) <= maxAnswer {
		return s
	}
	return strings.ToValidUTF8(s[:maxAnswer], "") + "…"
}
