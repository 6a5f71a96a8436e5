package agent

import (
	"errors"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// An application that does not accept connections for a while, because its accept queue
// is full, must not make requests fail. The far agent dials it for podTimeout, and then
// refuses the request, so that another endpoint can take it. If no other endpoint is
// left, the caller's agent sends the request again with awaitField. The far agent then
// waits for as long as the caller does.

// awaitField is a field of requests between agents. With it, the far agent waits up to
// maxAppTimeout for an application that does not answer. The far agent removes the field.
const awaitField = "causeway-await-application"

// redialPause is the time between the first two dials for a request that waits. It doubles
// with each further dial, up to maxRedialPause, because a dial can fail at once, for
// example without a route to the pod.
const (
	redialPause    = 100 * time.Millisecond
	maxRedialPause = 2 * time.Second
)

// sendToWait reports whether a request that failed is sent again with awaitField, and
// adds the field. This is not a retry, because no application has received anything. It
// happens at most once for a request.
func (r *outboundRequest) sendToWait(f httprelay.Failure) bool {
	if !r.canWait(f) || !r.conn.agent.shares.outboundWaiting.Acquire(r.backend.account) {
		return false
	}
	r.waits = true
	r.head.Add(awaitField, "1")
	r.endFailedSpan(f)
	return true
}

// canWait reports whether a request failed because no application answered the dial of
// the far agent, so that the request can be sent again with awaitField.
func (r *outboundRequest) canWait(f httprelay.Failure) bool {
	return !r.waits && f.Replayable && isAppSilent(f)
}

// isAppSilent reports whether the far agent says that no application answered its dial.
func isAppSilent(f httprelay.Failure) bool {
	if f.Response == nil {
		return false
	}
	value, far := f.Response.Get(httprelay.ErrorField)
	return far && httprelay.IsNotProcessed(value) && httprelay.ErrorReason(value) == reasonPodTimeout
}

// hasWaited reports whether a request was sent to wait and no application answered in that
// time. After any other failure of such a request it removes awaitField, so that further
// tries do not wait.
func (r *outboundRequest) hasWaited(f httprelay.Failure) bool {
	if !r.waits {
		return false
	}
	r.head.Del(awaitField)
	return isAppSilent(f)
}

// hasTriedAll reports whether the request was sent to each endpoint that the peer reports.
func (r *outboundRequest) hasTriedAll() bool {
	b := r.backend
	b.agent.learnEndpoints(b.group, b.out, time.Now())
	return b.group.isCovered(r.tried)
}

// takeWait removes awaitField from a request and reports whether it was there.
func takeWait(h *message.Head) bool {
	_, waits := h.Get(awaitField)
	if waits {
		h.Del(awaitField)
	}
	return waits
}

// mustWait reports whether a request continues to wait for an application that could not
// be dialed. It does so if the caller's agent has sent awaitField. It also does so if
// that agent may be unable to send the request again, because it has sent too much of the
// body. body is the part of the body that was taken from the stream.
func (f *appRequest) mustWait(err error, body []byte) bool {
	r := (*refusal)(nil)
	if !errors.As(err, &r) || r.code != tunnel.Code_POD_TIMEOUT || f.isCanceled() ||
		f.session.ctx.Err() != nil || time.Since(f.start) >= maxAppTimeout {
		return false
	}
	if f.waits {
		return true
	}
	unread, _ := f.stream.Buffered()
	return len(body)+unread >= httprelay.ReplayBytes
}
