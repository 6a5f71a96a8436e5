package httprelay

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// ErrorField is a field of responses between agents. The far agent removes it from
// responses of applications and sets it in its own: it then holds the kind of the error
// (RFC 9209, section 2.3), the reason as a metric's label, and notProcessed if no
// application has received anything.
const ErrorField = "causeway-error"

const notProcessed = "not-processed"

// A MeshError is a response that Causeway makes in place of an application.
type MeshError struct {
	// Side names the intermediary in Proxy-Status. Empty: the far side, which uses
	// ErrorField instead.
	Side string
	// Status is the HTTP status.
	Status int
	// Kind is an error type of RFC 9209, section 2.3.
	Kind string
	// Reason is as in metrics.
	Reason string
	// NotProcessed reports that no application has received anything.
	NotProcessed bool
	// GRPC: the request was one of gRPC, which has statuses of its own.
	GRPC bool
	// Version is that of the request.
	Version message.Version
}

// AnswerError writes e as the whole response. It returns the error of the stream.
func AnswerError(to Stream, e MeshError) error {
	h := &message.Head{Version: e.Version, Status: e.Status}
	if h.Version != message.HTTP2 {
		h.Reason = http.StatusText(e.Status)
	}
	body := []byte("causeway: " + e.Reason + "\n")
	if e.GRPC {
		body, h.Status = nil, 200
		h.Add("content-type", "application/grpc")
		h.Add("grpc-status", grpcStatus(e.Status))
		h.Add("grpc-message", "causeway: "+e.Reason)
	} else {
		h.Add("content-type", "text/plain; charset=utf-8")
		h.Add("content-length", strconv.Itoa(len(body)))
		if e.Status == 503 {
			h.Add("retry-after", "1")
		}
	}
	h.Fields = append(h.Fields, e.Field())
	return to.WriteHead(h, body, true)
}

// Field returns the field that says who has made the response, and why.
func (e MeshError) Field() message.Field {
	if e.Side == "" {
		return message.Field{Name: ErrorField, Value: e.encode()}
	}
	return message.Field{Name: "proxy-status", Value: e.Side + "; " + ProxyStatus(e.encode())}
}

func (e MeshError) encode() string {
	value := e.Kind + " " + e.Reason
	if e.NotProcessed {
		value += " " + notProcessed
	}
	return value
}

// IsNotProcessed reports whether the value of an ErrorField says that no application has
// received anything.
func IsNotProcessed(value string) bool { return strings.HasSuffix(value, " "+notProcessed) }

// ProxyStatus returns the parameters of Proxy-Status for the value of an ErrorField, which
// a peer may have written.
func ProxyStatus(value string) string {
	kind, _, _ := strings.Cut(value, " ")
	return "error=" + token(kind) + "; details=\"" + ErrorReason(value) + "\""
}

// ErrorReason returns the reason in the value of an ErrorField, which a peer may have
// written.
func ErrorReason(value string) string {
	_, rest, _ := strings.Cut(value, " ")
	reason, _, _ := strings.Cut(rest, " ")
	return token(reason)
}

// ErrorKind returns the kind of an error of RFC 9209 in the value of an ErrorField.
func ErrorKind(value string) string {
	kind, _, _ := strings.Cut(value, " ")
	return kind
}

// token returns a name without what a structured field does not allow.
func token(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return -1
	}, s[:min(len(s), 64)])
}

// grpcStatus returns the gRPC status for an HTTP status of Causeway.
func grpcStatus(status int) string {
	switch status {
	case 400:
		return "13" // INTERNAL
	case 404:
		return "12" // UNIMPLEMENTED
	case 403:
		return "7" // PERMISSION_DENIED
	case 431:
		return "8" // RESOURCE_EXHAUSTED
	case 504:
		return "4" // DEADLINE_EXCEEDED
	}
	return "14" // UNAVAILABLE
}
