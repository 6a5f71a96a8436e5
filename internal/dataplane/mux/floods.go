package mux

import (
	"errors"
	"time"

	"golang.org/x/net/http2"
)

// Limits against peers that cost more than they use. docs/design/0024 explains each.
const (
	controlRate  = 10 // frames per second that carry no work
	controlBurst = 100
	// defaultResetRate and resetBurst limit the streams that were reset before their
	// answer.
	defaultResetRate = 100
	resetBurst       = 100
	// maxRecentResets is how many streams that this end reset are remembered.
	maxRecentResets = 1024
	// Each DATA frame that this end sends permits the peer a window update of the stream,
	// one of the connection, and a PING that measures the round trip.
	creditsPerData = 3
	maxCredits     = 3000
	// smallIncrement is the size below which a window update needs an explanation. The
	// number of larger ones is bounded by the window itself.
	smallIncrement = 4 << 10
	// smallFragment is the size below which a header fragment that is not the last one
	// counts as a control frame.
	smallFragment = 1 << 10
	// maxHeadQueue bounds the informational heads that are not read yet.
	maxHeadQueue = 16
	// blockFactor times MaxHeadBytes bounds an encoded header block. A head between the
	// two limits is refused alone, because its block can still be decoded.
	blockFactor = 2
)

// bucket is a token bucket.
type bucket struct {
	tokens, rate, burst float64
	last                time.Time
}

func newBucket(now time.Time, rate, burst float64) bucket {
	return bucket{tokens: burst, rate: rate, burst: burst, last: now}
}

// take spends one token and reports whether there was one.
func (b *bucket) take(now time.Time) bool {
	if elapsed := now.Sub(b.last).Seconds(); elapsed > 0 {
		b.tokens = min(b.burst, b.tokens+elapsed*b.rate)
		b.last = now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// refund adds one token.
func (b *bucket) refund() { b.tokens = min(b.burst, b.tokens+1) }

// floodLimits counts what a peer sends without need.
type floodLimits struct {
	control bucket // frames that carry no work
	reset   bucket // streams that ended before their answer
	credits int    // window updates and PINGs that DATA frames of this end explain
}

func newFloodLimits(now time.Time, resetRate int) floodLimits {
	return floodLimits{
		control: newBucket(now, controlRate, controlBurst),
		reset:   newBucket(now, float64(resetRate), float64(max(resetRate, resetBurst))),
	}
}

// sentData is called for each DATA frame that this end sends.
func (f *floodLimits) sentData() { f.credits = min(maxCredits, f.credits+creditsPerData) }

// opened is called for each stream that the peer opens or answers: it explains one
// control frame, for instance PRIORITY.
func (f *floodLimits) opened() { f.control.refund() }

// answered is called for each stream that ended in order.
func (f *floodLimits) answered() { f.reset.refund() }

// chargeControl charges a frame that carries no work.
func (f *floodLimits) chargeControl(reason string) error {
	if f.control.take(time.Now()) {
		return nil
	}
	return calm(reason, "too many frames without content")
}

// chargeExplained charges a window update or a PING.
func (f *floodLimits) chargeExplained(reason string) error {
	if f.credits > 0 {
		f.credits--
		return nil
	}
	return f.chargeControl(reason)
}

// chargeReset charges a stream that the peer reset, or made this end reset.
func (f *floodLimits) chargeReset() error {
	if f.reset.take(time.Now()) {
		return nil
	}
	return calm("rapid_reset", "too many streams were reset before their answer")
}

func calm(reason, text string) error {
	return &endError{code: http2.ErrCodeEnhanceYourCalm, reason: reason, cause: errors.New(text)}
}

func protocolError(text string) error {
	return &endError{code: http2.ErrCodeProtocol, reason: "protocol_error", cause: errors.New(text)}
}

func connError(code http2.ErrCode, text string) error {
	return &endError{code: code, reason: reasonOf(code), cause: errors.New(text)}
}

// reasonOf returns the label value for a code.
func reasonOf(code http2.ErrCode) string {
	switch code {
	case http2.ErrCodeProtocol:
		return "protocol_error"
	case http2.ErrCodeFlowControl:
		return "flow_control"
	case http2.ErrCodeStreamClosed:
		return "stream_closed"
	case http2.ErrCodeFrameSize:
		return "frame_size"
	case http2.ErrCodeCompression:
		return "compression"
	case http2.ErrCodeEnhanceYourCalm:
		return "enhance_your_calm"
	}
	return "internal"
}

// recentResets are the last streams that this end reset. The peer may not know it yet, so
// frames on them are no error.
type recentResets struct {
	known map[uint32]struct{}
	order []uint32 // the same, as a ring once it is full
	next  int
}

func (r *recentResets) add(id uint32) {
	if r.known == nil {
		r.known = map[uint32]struct{}{}
	}
	r.known[id] = struct{}{}
	if len(r.order) < maxRecentResets {
		r.order = append(r.order, id)
		return
	}
	delete(r.known, r.order[r.next])
	r.order[r.next] = id
	r.next = (r.next + 1) % maxRecentResets
}

func (r *recentResets) has(id uint32) bool {
	_, ok := r.known[id]
	return ok
}
