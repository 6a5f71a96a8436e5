package httprelay

import (
	"errors"
	"net"
	"sync/atomic"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// An AppConn is an HTTP/1 connection to an application. From Send on it is the Stream of
// one request, until Send is called again. Its owner closes the connection.
type AppConn struct {
	c *transport.ReadableConn
	r *h1.Reader

	method    string
	body      bodyWriter // of the request
	keepAlive bool
	final     bool // the head of the final response was read
	broken    atomic.Bool
}

// NewAppConn returns an AppConn over a new connection.
func NewAppConn(c *net.TCPConn) *AppConn {
	readable := transport.NewReadableConn(c)
	return &AppConn{c: readable, r: h1.NewReader(readable, h1.Limits{})}
}

// Conn returns the connection.
func (a *AppConn) Conn() *net.TCPConn { return a.c.TCPConn }

// IsQuiet reports whether the connection is open and has nothing to read.
func (a *AppConn) IsQuiet() bool { return a.c.IsQuiet() }

// Send sends a request: its head, without hop-by-hop fields, and the first bytes of its
// body. The error is an UnsentError if the connection had ended before.
func (a *AppConn) Send(h *message.Head, body []byte, end bool) error {
	framing, err := h1.RequestFraming(h, end && len(body) == 0)
	if err != nil {
		return err
	}
	a.method, a.final, a.keepAlive = h.Method, false, false
	a.body = newBodyWriter(framing)
	return writePooled(a.c, func(b []byte) ([]byte, error) {
		return a.body.append(h1.AppendRequest(b, h, framing), body, end)
	})
}

// ReadHead is of Stream.
func (a *AppConn) ReadHead(h *message.Head) (end bool, err error) {
	framing, err := a.r.ReadResponse(h, a.method)
	if err != nil {
		return false, err
	}
	if h.Status/100 == 1 && h.Status != 101 {
		h1.StripHop(h)
		return false, nil
	}
	a.final = true
	a.keepAlive = h1.KeepAlive(h) && framing.Kind != h1.UntilClose && h.Status != 101
	h1.StripHop(h)
	return framing.Kind == h1.None || framing == h1.Framing{Kind: h1.Length}, nil
}

// ReadBuffered is of Stream.
func (a *AppConn) ReadBuffered(p []byte) (int, bool, error) {
	n, err := a.r.ReadBuffered(p)
	return bodyRead(a.r, n, err)
}

// ReadBody is of Stream.
func (a *AppConn) ReadBody(p []byte) (int, bool, error) {
	n, err := a.r.ReadBody(p)
	return bodyRead(a.r, n, err)
}

// AwaitBody is of Stream.
func (a *AppConn) AwaitBody() { awaitBody(a.c, a.r) }

// ReadTrailers is of Stream.
func (a *AppConn) ReadTrailers(h *message.Head) bool { return copyTrailers(a.r, h) }

// WriteHead fails: Send sends the head of a request.
func (a *AppConn) WriteHead(*message.Head, []byte, bool) error { return errNotThisEnd }

// Write is of Stream.
func (a *AppConn) Write(p []byte, end bool) (int, error) { return a.body.write(a.c, p, end) }

// WriteTrailers is of Stream.
func (a *AppConn) WriteTrailers(h *message.Head) error { return a.body.writeTrailers(a.c, h) }

// StopReading is of Stream.
func (a *AppConn) StopReading() { a.Reset(http2.ErrCodeCancel) }

// Reset is of Stream.
func (a *AppConn) Reset(http2.ErrCode) {
	a.broken.Store(true)
	transport.Reset(a.c.TCPConn)
}

// Reusable reports whether the connection can carry another request.
func (a *AppConn) Reusable() bool {
	return a.final && a.keepAlive && a.body.complete && a.r.BodyDone() && len(a.r.Buffered()) == 0 && !a.broken.Load()
}

// A bodyWriter writes a body with its framing, and keeps to its length.
type bodyWriter struct {
	framing  h1.Framing
	left     int64 // of a body with a length
	complete bool
}

func newBodyWriter(f h1.Framing) bodyWriter { return bodyWriter{framing: f, left: f.Length} }

// errLength reports a body whose length is not that of its head.
var errLength = errors.New("the body is not as long as Content-Length says")

// take counts the next part of the body.
func (w *bodyWriter) take(n int, end bool) error {
	if w.framing.Kind != h1.Length {
		return nil
	}
	if w.left -= int64(n); w.left < 0 || end && w.left > 0 {
		return errLength
	}
	return nil
}

// append appends the next part of the body. end reports that it is the last one.
func (w *bodyWriter) append(b, body []byte, end bool) ([]byte, error) {
	if err := w.take(len(body), end); err != nil {
		return nil, err
	}
	w.complete = end
	switch {
	case w.framing.Kind == h1.None:
		w.complete = true // such as the response to HEAD
	case w.framing.Kind != h1.Chunked:
		b = append(b, body...)
	default:
		if len(body) > 0 {
			b = h1.AppendChunk(b, body)
		}
		if end {
			b = h1.AppendLastChunk(b, nil)
		}
	}
	return b, nil
}

// write writes the next part of the body to c.
func (w *bodyWriter) write(c net.Conn, p []byte, end bool) (int, error) {
	if w.framing.Kind == h1.Chunked {
		err := writePooled(c, func(b []byte) ([]byte, error) { return w.append(b, p, end) })
		return len(p), err
	}
	if err := w.take(len(p), end); err != nil {
		return 0, err
	}
	if w.complete = end; len(p) == 0 || w.framing.Kind == h1.None {
		return len(p), nil
	}
	return c.Write(p)
}

// writeTrailers ends the body. Only a chunked body can have trailers; others lose them.
func (w *bodyWriter) writeTrailers(c net.Conn, h *message.Head) error {
	if w.framing.Kind == h1.Chunked {
		err := writePooled(c, func(b []byte) ([]byte, error) { return h1.AppendLastChunk(b, h.Fields), nil })
		w.complete = err == nil
		return err
	}
	_, err := w.write(c, nil, true)
	return err
}
