package httprelay

import (
	"io"
	"net"
	"sync"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// bodyRead turns a result of an h1.Reader into one of a Stream.
func bodyRead(r *h1.Reader, n int, err error) (int, bool, error) {
	if err == io.EOF {
		return n, true, nil
	}
	return n, err == nil && r.BodyDone(), err
}

func awaitBody(c *transport.ReadableConn, r *h1.Reader) {
	if r.BodyBuffered() == 0 && !r.BodyDone() {
		c.WaitReadable() // ReadBody finds its error
	}
}

func copyTrailers(r *h1.Reader, h *message.Head) bool {
	h.Fields = append(h.Fields[:0], r.Trailers()...)
	return len(h.Fields) > 0
}

// An UnsentError reports a failed write of which no byte was sent.
type UnsentError struct{ err error }

func (e *UnsentError) Error() string { return e.err.Error() }

// Unwrap returns the error of the connection.
func (e *UnsentError) Unwrap() error { return e.err }

// writePooled writes what appendTo appends to an empty buffer, in one write. If no byte
// of it was sent, the error is an UnsentError.
func writePooled(c net.Conn, appendTo func([]byte) ([]byte, error)) error {
	buf := outputs.Get().(*[]byte)
	defer outputs.Put(buf)
	b, err := appendTo((*buf)[:0])
	if err != nil {
		return err
	}
	if cap(b) <= maxPooled {
		*buf = b[:0]
	}
	n, err := c.Write(b)
	if err != nil && n == 0 {
		return &UnsentError{err}
	}
	return err
}

const maxPooled = 64 << 10

var outputs = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}
