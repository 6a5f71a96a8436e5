// Package mux runs one HTTP/2 connection (RFC 9113), frame by frame, in either role.
package mux

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// Kind says what a header block is.
type Kind uint8

const (
	Request  Kind = iota // the first block of a request
	Response             // a final or informational (1xx) response head
	Trailers             // the block after the body
)

// Coding writes and parses header blocks of a connection that does not use HPACK. Its
// methods may run concurrently. ParseHead must not retain block. It overwrites h and
// keeps the capacity of h.Fields.
type Coding interface {
	AppendHead(dst []byte, h *message.Head) ([]byte, error)
	ParseHead(block []byte, kind Kind, h *message.Head) error
}

// WindowBudget limits the bytes of receive windows beyond the assured 64 KiB per stream.
type WindowBudget interface {
	Reserve(n int) bool
	Release(n int)
}

// Config configures a connection.
type Config struct {
	// Client makes this end open the streams. A server end calls Handle instead.
	Client bool
	// Coding replaces HPACK. Nil means HPACK.
	Coding Coding
	// MaxStreams bounds the streams that the peer may have open. Zero means 250.
	MaxStreams uint32
	// MaxHeadBytes bounds a head, counted as in SETTINGS_MAX_HEADER_LIST_SIZE. Zero means
	// 100 KiB.
	MaxHeadBytes int
	// Windows admits receive windows beyond 64 KiB per stream. Nil admits none.
	Windows WindowBudget
	// ExtendedConnect accepts CONNECT with :protocol (RFC 8441). The pseudo-header is the
	// field ":protocol" of the head.
	ExtendedConnect bool
	// Handle serves one stream of a server end. It runs in its own goroutine. When it
	// returns, a stream that is still open is reset.
	Handle func(*Stream)
	// OnGoAway is called once when the peer announces that it takes no more streams. It
	// must not block.
	OnGoAway func()
}

// Errors of Open. In each case nothing was sent, so the request may go elsewhere.
var (
	ErrTooManyStreams = errors.New("the peer's stream limit is reached")
	ErrGoingAway      = errors.New("the connection takes no more streams")
	ErrClosed         = errors.New("the connection is closed")
)

// ErrHeadTooLarge means that a received head exceeds Config.MaxHeadBytes.
var ErrHeadTooLarge = errors.New("head exceeds the limit")

// ResetError is the error of a stream that either end or the connection's end cut.
type ResetError struct {
	Code http2.ErrCode
	// NotProcessed means that the peer says it did nothing with the stream.
	NotProcessed bool
	// Local means that this end reset the stream.
	Local bool
	// Cause is why the connection ended, or nil if only the stream was reset.
	Cause error
}

func (e *ResetError) Error() string { return "stream reset: " + e.Code.String() }
func (e *ResetError) Unwrap() error { return e.Cause }

// Conn is one HTTP/2 connection. All methods may be called from any goroutine.
type Conn struct{}

// New returns a connection over nc, which Run closes. Open may be called before Run.
func New(nc net.Conn, cfg Config) *Conn { panic("todo") }

// Run exchanges the prefaces and reads frames until the connection has ended and every
// Handle has returned. It closes the net.Conn. The error is nil after a graceful end.
func (c *Conn) Run(ctx context.Context) error { panic("todo") }

// Open opens a stream (client only) and sends h and the first bytes of the body in one
// write; end says that the body is complete. What exceeds the peer's windows waits as in
// Stream.Write. The caller must read the stream to its end or call Reset.
func (c *Conn) Open(h *message.Head, body []byte, end bool) (*Stream, error) { panic("todo") }

// GoAway ends the connection gracefully: no new streams, the open ones finish, then Run
// returns. A server first announces it and still accepts what is on its way.
func (c *Conn) GoAway() { panic("todo") }

// Ping measures one round trip.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) { panic("todo") }

// RTT returns the last measured round trip, or zero.
func (c *Conn) RTT() time.Duration { panic("todo") }

// Load returns the number of open streams.
func (c *Conn) Load() int { panic("todo") }

// Idle reports whether no stream is open, and since when.
func (c *Conn) Idle() (since time.Time, idle bool) { panic("todo") }

// CanOpen reports whether Open would succeed now.
func (c *Conn) CanOpen() bool { panic("todo") }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { panic("todo") }

// Reason returns why the connection ended, as a metric's label value: "" while it is open.
func (c *Conn) Reason() string { panic("todo") }

// Stream is one request with its response. One goroutine may read while another writes.
// Reset may be called from any goroutine.
type Stream struct{}

// ID returns the stream identifier.
func (s *Stream) ID() uint32 { panic("todo") }

// Conn returns the stream's connection.
func (s *Stream) Conn() *Conn { panic("todo") }

// ReadHead waits for the next head and moves it into h, whose fields' capacity is reused.
// A server reads the request head with it. A client reads 1xx heads first, then the final
// one. end means that neither body nor trailers follow.
func (s *Stream) ReadHead(h *message.Head) (end bool, err error) { panic("todo") }

// Read reads the body. It returns io.EOF at its end, and a *ResetError after a reset.
func (s *Stream) Read(p []byte) (int, error) { panic("todo") }

// Buffered returns how many bytes of the body Read returns without blocking, and whether
// they are the last ones.
func (s *Stream) Buffered() (n int, ended bool) { panic("todo") }

// Trailers moves the trailers into h. It returns false if there are none. Call it after
// Read returned io.EOF, or after Buffered returned 0, true.
func (s *Stream) Trailers(h *message.Head) bool { panic("todo") }

// WriteHead sends a response head (a server's; 1xx heads may come before the final one)
// and the first bytes of the body in one write.
func (s *Stream) WriteHead(h *message.Head, body []byte, end bool) error { panic("todo") }

// Write sends body bytes and waits for the peer's windows. end means that these are the
// last ones and that no trailers follow.
func (s *Stream) Write(p []byte, end bool) (int, error) { panic("todo") }

// WriteTrailers sends the trailers and ends this direction.
func (s *Stream) WriteTrailers(h *message.Head) error { panic("todo") }

// Reset ends the stream in both directions and unblocks its reader and writer. On a stream
// that has ended it only frees what was not read. It is idempotent.
func (s *Stream) Reset(code http2.ErrCode) { panic("todo") }

// OnReset has fn called once when the peer resets the stream or the connection ends before
// the stream does; at once if that has happened. fn must not block. Nil removes it.
func (s *Stream) OnReset(fn func(error)) { panic("todo") }
