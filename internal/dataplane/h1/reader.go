// Package h1 reads and writes HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112), strictly.
//
//	connection ─> Reader ─> message.Head, Framing, body bytes, trailers
//	message.Head, Framing ─> AppendRequest, AppendResponse ─> connection
//	message.Head <─> AppendBlock, Parse…Block <─> frame of a multiplexed session
//
// Invariants:
//   - A message that two servers could frame differently is refused, with an *Error.
//   - Accepted heads are written again byte for byte, except for hop-by-hop fields.
//   - Every input is bounded by Limits. An idle Reader holds no buffer.
package h1

import (
	"io"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// Limits bounds what a Reader accepts. Zero means the default.
type Limits struct {
	Head       int // bytes of a head, with its first line and the empty line; 100 KiB
	Fields     int // fields of a head or of trailers; 256
	StartLine  int // bytes of the request line or status line; 32 KiB
	Trailers   int // bytes of trailers; 16 KiB
	ChunkLine  int // bytes of a chunk-size line, with extensions; 256
	EmptyLines int // empty lines before a head; 2
}

// Waiter is a connection that can wait for input without a buffer. Reader uses it if its
// io.Reader implements it.
type Waiter interface {
	// WaitReadable blocks until Read would not block: bytes, the end or an error are there.
	WaitReadable() error
}

// Reader reads the messages of one direction of a connection, one after the other: a head,
// then its body to the end, then the next head. It is not safe for concurrent use.
//
// An error of the connection, such as an expired deadline, leaves the Reader as it was, so the
// call may be repeated. After an *Error the Reader must not be used, except for Close.
type Reader struct{}

// NewReader returns a Reader that takes no buffer before bytes are there, if r is a Waiter.
func NewReader(r io.Reader, limits Limits) *Reader { panic("not implemented") }

// Prepend puts bytes that the caller has read, for example to Sniff them, before what the
// Reader reads. It copies p. Call it before the first head.
func (r *Reader) Prepend(p []byte) { panic("not implemented") }

// Fill reads once from the connection into the buffer. Together with Buffered it serves Sniff.
// It returns io.EOF if the connection has ended, and an *Error if the buffer has Limits.Head
// bytes already.
func (r *Reader) Fill() error { panic("not implemented") }

// ReadRequest resets h and reads a request head into it. It blocks until the head is complete.
// It returns io.EOF if the connection ends before the first byte, io.ErrUnexpectedEOF if it
// ends within the head, and an *Error if the head is malformed. h remains valid when the Reader
// goes on.
func (r *Reader) ReadRequest(h *message.Head) (Framing, error) { panic("not implemented") }

// ReadResponse is ReadRequest for a response to a request with this method. It returns 1xx
// responses like others, with framing None; the final response follows, except after 101. After
// 101, and after 2xx to CONNECT, the connection's bytes are opaque (see Buffered). The Status of
// an *Error is 502.
func (r *Reader) ReadResponse(h *message.Head, requestMethod string) (Framing, error) {
	panic("not implemented")
}

// ReadBody reads decoded bytes of the body. It returns io.EOF at the end, also together with
// bytes, and io.ErrUnexpectedEOF if the connection ends before the body does. It blocks only if
// it has no byte to return. len(p) must not be 0.
func (r *Reader) ReadBody(p []byte) (n int, err error) { panic("not implemented") }

// ReadBuffered is ReadBody without blocking: it does not read from the connection, and returns
// 0 and nil if the buffer has nothing more of the body. A caller that has read a head can send
// the head and the beginning of the body together.
func (r *Reader) ReadBuffered(p []byte) (n int, err error) { panic("not implemented") }

// BodyBuffered returns how many bytes ReadBuffered can return at most. For a chunked body this
// counts the chunks' framing too.
func (r *Reader) BodyBuffered() int { panic("not implemented") }

// BodyDone reports whether the last head's body and trailers have been read to their end. A
// message without body is done at once.
func (r *Reader) BodyDone() bool { panic("not implemented") }

// Trailers returns the trailers of the last message, nil before ReadBody has returned io.EOF.
// The slice is valid until the next head is read.
func (r *Reader) Trailers() []message.Field { panic("not implemented") }

// Buffered returns what the Reader has read from the connection and not consumed: the next
// requests of a pipeline, or opaque bytes after an upgrade. The slice is valid until the next
// call of any method.
func (r *Reader) Buffered() []byte { panic("not implemented") }

// HasBuffer reports whether the Reader holds a buffer. It holds none while it has no unread
// bytes and no call is in progress.
func (r *Reader) HasBuffer() bool { panic("not implemented") }

// Close drops unread bytes and gives the buffer back. It does not close the connection.
func (r *Reader) Close() { panic("not implemented") }
