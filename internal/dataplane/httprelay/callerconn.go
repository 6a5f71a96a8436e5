package httprelay

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// A CallerConn is the HTTP/1 connection of a caller. From Next on it is the Stream of
// one request, until Next is called again. Its owner closes the connection.
type CallerConn struct {
	c *transport.ReadableConn
	r *h1.Reader

	method    string
	version   message.Version
	keepAlive bool
	body      bodyWriter  // of the response
	last      atomic.Bool // no other request can follow
	received  atomic.Bool // the whole request was read
}

// NewCallerConn returns a CallerConn whose first bytes were read from c already.
func NewCallerConn(c *net.TCPConn, first []byte) *CallerConn {
	readable := transport.NewReadableConn(c)
	r := h1.NewReader(readable, h1.Limits{})
	r.Prepend(first)
	return &CallerConn{c: readable, r: r}
}

// Next reads the head of the next request, with its hop-by-hop fields. ended reports
// that it has no body. The error is io.EOF if no other request comes.
func (s *CallerConn) Next(h *message.Head) (ended bool, err error) {
	if s.last.Load() {
		return false, io.EOF
	}
	framing, err := s.r.ReadRequest(h)
	if err != nil {
		return false, err
	}
	s.method, s.version, s.keepAlive = h.Method, h.Version, h1.KeepAlive(h)
	s.body = bodyWriter{}
	ended = framing.Kind == h1.None || framing == h1.Framing{Kind: h1.Length}
	s.received.Store(ended)
	return ended, nil
}

// Rest returns the bytes that were read beyond the last head. They are valid until the
// next call of a method.
func (s *CallerConn) Rest() []byte { return s.r.Buffered() }

// CloseAfterResponse makes the current request the last one.
func (s *CallerConn) CloseAfterResponse() { s.keepAlive = false }

// errNotThisEnd reports a call of a method that only the other end has.
var errNotThisEnd = errors.New("httprelay: this end of the stream has no such method")

// ReadHead fails: Next reads the head of a request.
func (s *CallerConn) ReadHead(*message.Head) (bool, error) { return false, errNotThisEnd }

// ReadBuffered is of Stream.
func (s *CallerConn) ReadBuffered(p []byte) (int, bool, error) {
	n, err := s.r.ReadBuffered(p)
	return s.bodyRead(n, err)
}

// ReadBody is of Stream.
func (s *CallerConn) ReadBody(p []byte) (int, bool, error) {
	n, err := s.r.ReadBody(p)
	return s.bodyRead(n, err)
}

func (s *CallerConn) bodyRead(n int, err error) (int, bool, error) {
	n, end, err := bodyRead(s.r, n, err)
	if end {
		s.received.Store(true)
	}
	return n, end, err
}

// AwaitBody is of Stream.
func (s *CallerConn) AwaitBody() { awaitBody(s.c, s.r) }

// ReadTrailers is of Stream.
func (s *CallerConn) ReadTrailers(h *message.Head) bool { return copyTrailers(s.r, h) }

// WriteHead is of Stream.
func (s *CallerConn) WriteHead(h *message.Head, body []byte, end bool) error {
	if h.Status/100 == 1 {
		if s.version == message.HTTP10 {
			return nil // RFC 9110, section 15.2
		}
		return writePooled(s.c, func(b []byte) ([]byte, error) { return h1.AppendResponse(b, h, h1.Framing{}, true), nil })
	}
	if end && len(body) == 0 && hasBody(s.method, h.Status) && !h.Has("Content-Length") {
		h.Add("Content-Length", "0")
	}
	framing, err := h1.ResponseFraming(h, s.method, end && len(body) == 0, s.version)
	if err != nil {
		return err
	}
	if framing.Kind == h1.UntilClose || s.isEarly(h, end) {
		s.keepAlive = false
	}
	if s.version == message.HTTP10 || !s.keepAlive {
		setConnection(h, s.keepAlive)
	}
	s.body = newBodyWriter(framing)
	return writePooled(s.c, func(b []byte) ([]byte, error) {
		return s.body.append(h1.AppendResponse(b, h, framing, s.keepAlive), body, end)
	})
}

// isEarly reports whether a final response comes before the whole request, so that the
// rest of the request will not be read and no other request can follow. A successful
// response that is not complete does not count, because its request may go on.
func (s *CallerConn) isEarly(h *message.Head, end bool) bool {
	return !s.received.Load() && (end || h.Status >= 300)
}

// setConnection sets the field Connection of a response.
func setConnection(h *message.Head, keepAlive bool) {
	if keepAlive {
		h.Set("Connection", "keep-alive")
	} else {
		h.Set("Connection", "close")
	}
}

// hasBody reports whether a response with a status to a request with a method can have
// a body.
func hasBody(method string, status int) bool {
	return method != "HEAD" && status != 204 && status != 304 && status/100 != 1 && !(method == "CONNECT" && status/100 == 2)
}

// Write is of Stream.
func (s *CallerConn) Write(p []byte, end bool) (int, error) { return s.body.write(s.c, p, end) }

// WriteTrailers is of Stream.
func (s *CallerConn) WriteTrailers(h *message.Head) error { return s.body.writeTrailers(s.c, h) }

// StopReading is of Stream. No other request can follow.
func (s *CallerConn) StopReading() {
	s.last.Store(true)
	s.c.SetReadDeadline(past)
}

// Reset is of Stream.
func (s *CallerConn) Reset(http2.ErrCode) {
	s.last.Store(true)
	transport.Reset(s.c.TCPConn)
}

// Finish ends the current request. It reports whether another can follow. Otherwise the
// caller must close the connection, and linger reports that bytes of the request are
// still under way, so that a TCP reset could overtake the response.
func (s *CallerConn) Finish() (next, linger bool) {
	done := s.r.BodyDone()
	if !s.body.complete || !s.keepAlive || !done || s.last.Load() {
		s.last.Store(true)
		return false, !done
	}
	return true, false
}

var past = time.Unix(1, 0)
