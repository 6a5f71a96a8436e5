package h1

import (
	"bytes"
	"io"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// ReadBody reads decoded bytes of the body. It returns io.EOF at the end, also together
// with bytes, and io.ErrUnexpectedEOF if the connection ends before the body does. It
// blocks only if it has no byte to return. len(p) must not be 0.
func (r *Reader) ReadBody(p []byte) (n int, err error) { return r.readBody(p, true) }

// ReadBuffered is ReadBody without blocking: it does not read from the connection, and
// returns 0 and nil if the buffer has nothing more of the body. A caller that has read a
// head can send the head and the beginning of the body together.
func (r *Reader) ReadBuffered(p []byte) (n int, err error) { return r.readBody(p, false) }

// BodyBuffered returns how many bytes ReadBuffered can return at most. For a chunked body
// this counts the chunks' framing too.
func (r *Reader) BodyBuffered() int {
	buffered := r.in.end - r.in.start
	switch {
	case r.body.done:
		return 0
	case r.body.kind == Length && int64(buffered) > r.body.remaining:
		return int(r.body.remaining)
	}
	return buffered
}

// BodyDone reports whether the last head's body and trailers have been read to their end.
// A message without body is done at once.
func (r *Reader) BodyDone() bool { return r.body.done }

// Trailers returns the trailers of the last message, nil before ReadBody has returned
// io.EOF. The slice is valid until the next head is read.
func (r *Reader) Trailers() []message.Field {
	if len(r.trailers) == 0 {
		return nil
	}
	return r.trailers
}

func (r *Reader) readBody(p []byte, block bool) (n int, err error) {
	switch {
	case r.failed != nil:
		return 0, r.failed
	case r.body.done:
		return 0, io.EOF
	case r.body.kind == Chunked:
		return r.readChunked(p, block)
	case r.body.kind == UntilClose:
		n, err = r.readPlain(p, block)
		r.body.done = err == io.EOF
		return n, err
	}
	if int64(len(p)) > r.body.remaining {
		p = p[:r.body.remaining]
	}
	n, err = r.readPlain(p, block)
	r.body.remaining -= int64(n)
	if r.body.remaining == 0 {
		r.body.done = true
		return n, io.EOF
	}
	return n, unexpected(err)
}

// readPlain reads bytes that have no framing, first from the buffer.
func (r *Reader) readPlain(p []byte, block bool) (int, error) {
	if r.in.start < r.in.end {
		return r.in.take(p), nil
	}
	if !block {
		return 0, nil
	}
	return r.in.readDirect(p)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readChunked decodes chunks until p is full or the next byte would have to be waited
// for.
func (r *Reader) readChunked(p []byte, block bool) (n int, err error) {
	for n < len(p) {
		got, more, malformed := r.nextPart(p[n:])
		n += got
		switch {
		case malformed != nil:
			return n, r.fail(malformed)
		case r.body.done:
			return n, io.EOF
		case more:
			continue
		case n > 0 || !block:
			return n, nil
		}
		if r.body.part == chunkData && r.body.remaining >= int64(len(p)) {
			n, err = r.in.readDirect(p)
			r.countData(n)
			return n, unexpected(err)
		}
		if err := r.in.fill(); err != nil {
			return 0, unexpected(err)
		}
	}
	return n, nil
}

// nextPart takes the next part of a chunked body from the buffer. more is false if the
// buffer has not all of it.
func (r *Reader) nextPart(p []byte) (n int, more bool, err *Error) {
	switch r.body.part {
	case chunkSize:
		more, err = r.takeChunkSize()
	case chunkData:
		if int64(len(p)) > r.body.remaining {
			p = p[:r.body.remaining]
		}
		n = r.in.take(p)
		r.countData(n)
		more = n > 0
	case chunkEnd:
		more, err = r.takeChunkEnd()
	case chunkTrailers:
		more, err = r.takeTrailers()
	}
	return n, more, err
}

func (r *Reader) countData(n int) {
	r.body.remaining -= int64(n)
	if r.body.remaining == 0 {
		r.body.part = chunkEnd
	}
}

func (r *Reader) takeChunkSize() (bool, *Error) {
	unread := r.in.unread()
	end := bytes.IndexByte(unread, '\n')
	switch {
	case end > r.limits.ChunkLine+1 || end < 0 && len(unread) > r.limits.ChunkLine+1:
		return false, errChunkLineLong
	case end < 0:
		return false, nil
	case end == 0 || unread[end-1] != '\r':
		return false, errBareLF
	}
	size, err := parseChunkSize(unread[:end-1])
	if err != nil {
		return false, err
	}
	r.in.consume(end + 1)
	r.body.remaining = size
	r.body.part = chunkData
	if size == 0 {
		r.body.part = chunkTrailers
	}
	return true, nil
}

// maxChunkDigits is how many hexadecimal digits surely fit an int64.
const maxChunkDigits = 15

// parseChunkSize parses a line without its CRLF, and drops extensions.
func parseChunkSize(line []byte) (int64, *Error) {
	var size int64
	digits := 0
	for digits < len(line) && isHex(line[digits]) {
		if digits == maxChunkDigits {
			return 0, errChunkSize
		}
		size = size<<4 | int64(hexValue(line[digits]))
		digits++
	}
	extensions := line[digits:]
	if bytes.IndexByte(extensions, '\r') >= 0 {
		return 0, errBareCR
	}
	if digits == 0 || len(extensions) > 0 && extensions[0] != ';' {
		return 0, errChunkSize
	}
	for _, c := range extensions {
		if charSets[c]&inValue == 0 {
			return 0, errChunkSize
		}
	}
	return size, nil
}

func hexValue(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

func (r *Reader) takeChunkEnd() (bool, *Error) {
	unread := r.in.unread()
	if len(unread) > 0 && unread[0] != '\r' || len(unread) > 1 && unread[1] != '\n' {
		return false, errChunkEnd
	}
	if len(unread) < len("\r\n") {
		return false, nil
	}
	r.in.consume(len("\r\n"))
	r.body.part = chunkSize
	return true, nil
}

// takeTrailers ends the body.
func (r *Reader) takeTrailers() (bool, *Error) {
	length, complete, err := r.scanLines(r.limits.Trailers, errTrailersLarge, false)
	if err != nil || !complete {
		return false, err
	}
	block := r.takeLines(length)
	r.body.done = true
	if block == "" {
		return true, nil
	}
	fields, sp, err := parseFields(block, r.trailers, r.limits.Fields)
	if err == nil {
		err = checkTrailers(&sp)
	}
	if err != nil {
		return false, err
	}
	r.trailers = fields
	return true, nil
}
