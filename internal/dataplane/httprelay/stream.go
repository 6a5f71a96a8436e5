// Package httprelay forwards one request at a time: from the stream on which it came to
// a stream that it opens, with retries before the response begins.
//
//	caller ──▶ from ─▶ Forward ─▶ Open ──▶ to        the request, and again if a try fails
//	caller ◀── from ◀─ Forward ◀────────── to        the response
//
// What always holds:
//   - The request is sent again only if Retry admits it, if nothing of a final response
//     was forwarded, and if every body byte that was sent before is still kept.
//   - A body is kept only until the response begins. Once ReplayBytes are kept and sent,
//     the next read drops them, so at most one buffer more is kept.
//   - Neither direction waits for the other. A response may come, and end, before the
//     request has been read.
//   - A body that is cut short is never forwarded as one that is complete.
//   - Forward returns when both directions have ended and its goroutine with them.
package httprelay

import (
	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// A Stream is one request and its response, as one of the two ends sees them. The end
// that received the request reads the request and writes the response; the end that
// made it does the opposite. One goroutine may read while another writes. Reset may be
// called at any time.
type Stream interface {
	// ReadHead reads the next head into h. It blocks. The head of a final response
	// follows any number of informational ones (1xx). end reports that neither a body
	// nor trailers follow.
	ReadHead(h *message.Head) (end bool, err error)
	// ReadBuffered reads bytes of the body that have come, without waiting. end reports
	// that the body ends after them.
	ReadBuffered(p []byte) (n int, end bool, err error)
	// ReadBody is ReadBuffered, but waits for bytes or the end.
	ReadBody(p []byte) (n int, end bool, err error)
	// AwaitBody waits until ReadBody would not. So no buffer is held while a body pauses.
	AwaitBody()
	// ReadTrailers stores the trailers in h, after the end of the body. It reports whether
	// there are any.
	ReadTrailers(h *message.Head) bool
	// WriteHead writes a head and the first bytes of the body, in one write. end
	// reports that the message ends after them.
	WriteHead(h *message.Head, body []byte, end bool) error
	// Write writes bytes of the body. It blocks while the other side reads slowly.
	Write(p []byte, end bool) (int, error)
	// WriteTrailers ends the message with trailers.
	WriteTrailers(h *message.Head) error
	// StopReading drops the rest of a body, and interrupts its reader. The other
	// direction goes on.
	StopReading()
	// Reset ends both directions of the stream, and interrupts everything that waits
	// for it.
	Reset(code http2.ErrCode)
}
