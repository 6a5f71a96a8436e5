// Package h1 reads and writes HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112), strictly.
//
//	connection ─> Reader ─> message.Head, Framing, body bytes, trailers
//	message.Head, Framing ─> AppendRequest, AppendResponse ─> connection
//	message.Head <─> AppendBlock, Parse…Block <─> frame of a multiplexed session
//
// Invariants:
//   - A message that two servers could frame differently is refused, with an *Error.
//   - Accepted heads are written again with the bytes that they had, except for
//     hop-by-hop fields and for whitespace around values.
//   - Every input is bounded by Limits. An idle Reader holds no buffer.
package h1

import (
	"bytes"
	"errors"
	"io"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// Limits bounds what a Reader accepts. Zero means the default.
type Limits struct {
	Head       int // bytes of a head without its empty line; 100 KiB
	Fields     int // fields of a head or of trailers; 256
	StartLine  int // bytes of the request line or status line, without CRLF; 32 KiB
	Trailers   int // bytes of trailers; 16 KiB
	ChunkLine  int // bytes of a chunk-size line with its extensions; 256
	EmptyLines int // empty lines before a request; 2, and none if negative
}

func (l Limits) withDefaults() Limits {
	setDefault := func(limit *int, value int) {
		if *limit == 0 {
			*limit = value
		}
	}
	setDefault(&l.Head, 100<<10)
	setDefault(&l.Fields, 256)
	setDefault(&l.StartLine, 32<<10)
	setDefault(&l.Trailers, 16<<10)
	setDefault(&l.ChunkLine, 256)
	setDefault(&l.EmptyLines, 2)
	l.StartLine = min(l.StartLine, l.Head)
	return l
}

// Waiter is a connection that can wait for input without a buffer. Reader uses it if its
// io.Reader implements it.
type Waiter interface {
	// ReadWhenReady is Read into the bytes that memory returns. It calls memory before
	// each attempt, and drop after one that has found nothing. So it waits without a
	// buffer.
	ReadWhenReady(memory func() []byte, drop func()) (int, error)
}

// Reader reads the messages of one direction of a connection, one after the other: a
// head, then its body to the end, then the next head. It is not safe for concurrent use.
//
// After an error of the connection, such as an expired deadline, the call may be
// repeated: the Reader loses nothing. After an *Error every call returns that error.
type Reader struct {
	in     buffer
	limits Limits
	failed error // the first *Error

	// What is known of the unread bytes while they are an incomplete head or trailers.
	emptyLines int // empty lines that were consumed before the head
	lines      int // whole lines
	lineStart  int // where the current line starts
	scanned    int // bytes without another line end

	body     body
	trailers []message.Field
}

// body is the state of the body that is being read.
type body struct {
	kind      Kind
	response  bool
	done      bool
	remaining int64 // bytes of the body, or of the chunk
	part      chunkPart
}

// chunkPart is what comes next in a chunked body.
type chunkPart uint8

const (
	chunkSize chunkPart = iota
	chunkData
	chunkEnd // the CRLF after a chunk's data
	chunkTrailers
)

// NewReader returns a Reader for r. If r is a Waiter, the Reader takes no buffer before
// bytes are there.
func NewReader(r io.Reader, limits Limits) *Reader {
	limits = limits.withDefaults()
	waiter, _ := r.(Waiter)
	most := max(bufferSize, limits.Head+len("\r\n"), limits.Trailers+len("\r\n"))
	reader := &Reader{
		in:     buffer{r: r, waiter: waiter, most: most},
		limits: limits,
		body:   body{done: true},
	}
	reader.in.roomFunc, reader.in.dropFunc = reader.in.room, reader.in.drop
	return reader
}

// Prepend puts bytes that the caller has read, for example to Sniff them, before what the
// Reader reads. It copies p. Call it before the first head.
func (r *Reader) Prepend(p []byte) { r.in.prepend(p) }

// Fill reads once from the connection into the buffer. Together with Buffered it serves
// Sniff. It returns io.EOF if the connection has ended, and an *Error if the buffer is
// full.
func (r *Reader) Fill() error {
	if r.in.end-r.in.start >= r.in.most {
		return errHeadLarge
	}
	return r.in.fill()
}

// Buffered returns what the Reader has read from the connection and not consumed: the
// next requests of a pipeline, or opaque bytes after an upgrade. The slice is valid until
// the next call of another method.
func (r *Reader) Buffered() []byte { return r.in.unread() }

// HasBuffer reports whether the Reader holds a buffer. It holds none while it has no
// unread bytes and no call is in progress.
func (r *Reader) HasBuffer() bool { return r.in.bytes != nil }

// Close drops unread bytes and gives the buffer back. It does not close the connection.
func (r *Reader) Close() { r.in.drop() }

// errBodyUnread is a mistake of the caller.
var errBodyUnread = errors.New("h1: the body of the previous message was not read")

// ReadRequest resets h and reads a request head into it. It blocks until the head is
// complete. It returns io.EOF if the connection ends before the first byte,
// io.ErrUnexpectedEOF if it ends within the head, and an *Error if the head is malformed.
// h remains valid when the Reader goes on. The previous message's body must have been
// read.
func (r *Reader) ReadRequest(h *message.Head) (Framing, error) {
	h.Reset()
	block, err := r.readHead(false)
	if err != nil {
		return Framing{}, err
	}
	sp, malformed := parseRequestHead(block, h, r.limits)
	var f Framing
	if malformed == nil {
		f, malformed = requestFraming(h, &sp)
	}
	if malformed != nil {
		return Framing{}, r.fail(malformed)
	}
	r.startBody(f)
	return f, nil
}

// ReadResponse is ReadRequest for a response to a request with this method. It returns
// 1xx responses like others, with framing None; the final response follows, except after
// 101. After 101, and after 2xx to CONNECT, the connection's bytes are opaque (see
// Buffered). The Status of an *Error is 502.
func (r *Reader) ReadResponse(h *message.Head, requestMethod string) (Framing, error) {
	h.Reset()
	block, err := r.readHead(true)
	if err != nil {
		return Framing{}, err
	}
	sp, malformed := parseResponseHead(block, h, r.limits)
	var f Framing
	if malformed == nil {
		f, malformed = responseFraming(h, &sp, requestMethod)
	}
	if malformed != nil {
		return Framing{}, r.fail(malformed)
	}
	r.startBody(f)
	return f, nil
}

func (r *Reader) startBody(f Framing) {
	r.emptyLines = 0
	r.body.kind = f.Kind
	r.body.remaining = f.Length
	r.body.part = chunkSize
	r.body.done = f.Kind == None || f.Kind == Length && f.Length == 0
}

// fail records the error for later calls.
func (r *Reader) fail(err *Error) error {
	r.failed = err
	if r.body.response {
		r.failed = ofResponse(err)
	}
	return r.failed
}

// readHead returns the next head without its empty line. That is the one allocation of a
// message, because all strings of the head are parts of it.
func (r *Reader) readHead(response bool) (string, error) {
	if r.failed != nil {
		return "", r.failed
	}
	if !r.body.done {
		return "", errBodyUnread
	}
	r.body.response = response
	clear(r.trailers)
	r.trailers = r.trailers[:0]
	for {
		err := r.skipEmptyLines()
		var length int
		var complete bool
		if err == nil {
			length, complete, err = r.scanLines(r.limits.Head, errHeadLarge, true)
		}
		if err != nil {
			return "", r.fail(err)
		}
		if complete {
			return r.takeLines(length), nil
		}
		if err := r.in.fill(); err != nil {
			return "", r.cut(err)
		}
	}
}

// cut turns the end of the connection within a message into io.ErrUnexpectedEOF.
func (r *Reader) cut(err error) error {
	if err == io.EOF && r.in.start < r.in.end {
		return io.ErrUnexpectedEOF
	}
	return err
}

// skipEmptyLines consumes empty lines before a request, which some clients send after a
// body. Before a response there is none.
func (r *Reader) skipEmptyLines() *Error {
	for !r.body.response && bytes.HasPrefix(r.in.unread(), []byte("\r\n")) {
		if r.emptyLines >= r.limits.EmptyLines {
			return errEmptyLines
		}
		r.emptyLines++
		r.scanned = 0
		r.in.consume(len("\r\n"))
	}
	return nil
}

// scanLines looks for the empty line that ends a head or trailers. It returns the length
// of the lines before it. It goes on where the previous call found no more bytes.
func (r *Reader) scanLines(most int, tooLarge *Error, startLine bool) (int, bool, *Error) {
	unread := r.in.unread()
	for {
		i := bytes.IndexByte(unread[r.scanned:], '\n')
		if i < 0 {
			break
		}
		end := r.scanned + i
		if err := r.checkSize(end, most, tooLarge, startLine); err != nil {
			return 0, false, err
		}
		if end == r.lineStart || unread[end-1] != '\r' {
			return 0, false, errBareLF
		}
		if end == r.lineStart+1 {
			if startLine && r.lines == 0 {
				return 0, false, errEmptyLines
			}
			return r.lineStart, true, nil
		}
		r.scanned = end + 1
		r.lineStart = r.scanned
		r.lines++
	}
	r.scanned = len(unread)
	return 0, false, r.checkSize(r.scanned, most, tooLarge, startLine)
}

// checkSize checks a number of bytes that have no further line end. The last of them may
// be the CR of one.
func (r *Reader) checkSize(size, most int, tooLarge *Error, startLine bool) *Error {
	switch {
	case startLine && r.lines == 0 && size > r.limits.StartLine+1:
		return errStartLineLong
	case size > most+1:
		return tooLarge
	}
	return nil
}

// takeLines consumes lines that scanLines has found, and the empty line.
func (r *Reader) takeLines(length int) string {
	block := string(r.in.unread()[:length])
	r.in.consume(length + len("\r\n"))
	r.lines, r.lineStart, r.scanned = 0, 0, 0
	return block
}
