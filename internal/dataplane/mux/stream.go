package mux

import (
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// ErrHeadTooLarge means that a received head exceeds Config.MaxHeadBytes.
var ErrHeadTooLarge = errors.New("head exceeds the limit")

// ErrStopped is the error of a Read after StopReading.
var ErrStopped = errors.New("this end has stopped reading")

// errEnded means that this end has already ended its direction of the stream.
var errEnded = errors.New("the stream's sending direction has ended")

// ResetError is the error of a stream that either end reset, or that the connection's end
// cut.
type ResetError struct {
	Code http2.ErrCode
	// NotProcessed means that the peer says it did nothing with the stream.
	NotProcessed bool
	// GoingAway means that it did nothing because it ends the connection in good order:
	// its GOAWAY, without an error, left the stream out.
	GoingAway bool
	// Local means that this end reset the stream.
	Local bool
	// Cause is why the connection ended. It is nil if only the stream was reset, except
	// that it is ErrHeadTooLarge for a stream that this end reset for its head.
	Cause error
}

func (e *ResetError) Error() string {
	if e.Cause != nil {
		return "stream reset with " + e.Code.String() + ": " + e.Cause.Error()
	}
	return "stream reset with " + e.Code.String()
}

func (e *ResetError) Unwrap() error { return e.Cause }

// Stream is one request with its response. One goroutine may read while another writes.
// Reset and OnReset may be called from any goroutine.
type Stream struct {
	conn *Conn
	id   uint32

	// All below is guarded by conn.mu. The fields are ordered so that a Stream fits into
	// 288 bytes, since there is one for each request.
	removed    bool // it is not in conn.streams any more
	dropped    bool // this end reads no more
	repeatable bool // opened with OpenOptions.Repeatable
	deaf       bool // StopReading was called
	waking     bool // in conn.wake

	gotFinal    bool // receiving: the next block is trailers
	recvEnded   bool
	headRequest bool // its response has no body; its length says nothing

	answering bool // sending: a server has sent a head
	sentEnd   bool
	waiting   bool // in conn.send.waiting
	flushing  bool // its goroutine writes to the connection

	readCond  sync.Cond
	writeCond *sync.Cond  // of a writer that has waited; nil: none has
	err       *ResetError // set once, when the stream is cut
	onReset   func(error)

	// Receiving.
	firstHead   [1]headEntry
	heads       []headEntry // not yet read
	trailers    headEntry
	buffer      recvBuffer
	recvWindow  int // what the peer may still send
	window      int // the size of the window
	unannounced int // read, but not yet announced by a window update
	reserved    int // of the window, from the budget
	// taken is how many bytes the reader has taken since measuredFrom. Padding is no
	// progress of the reader and does not count.
	taken        int
	measuredFrom time.Time
	declared     int64
	received     int64

	sendWindow int
}

// awaitWrite waits until wakeWriter is called. conn.mu is held.
func (s *Stream) awaitWrite() {
	if s.writeCond == nil {
		s.writeCond = sync.NewCond(&s.conn.mu)
	}
	s.writeCond.Wait()
}

// wakeWriter wakes the writer if it waits.
func (s *Stream) wakeWriter() {
	if s.writeCond != nil {
		s.writeCond.Signal()
	}
}

// headEntry is a received head: decoded, or a raw block that its reader parses.
type headEntry struct {
	head *message.Head
	raw  *block
	end  bool
}

func (e headEntry) empty() bool { return e.head == nil && e.raw == nil }

func (e headEntry) free() {
	if e.head != nil {
		freeHead(e.head)
	}
	if e.raw != nil {
		e.raw.free()
	}
}

func (c *Conn) newStream() *Stream {
	s := &Stream{
		conn:       c,
		recvWindow: streamWindow,
		window:     streamWindow,
		sendWindow: c.peer.initialWindow,
		declared:   -1,
	}
	s.readCond.L = &c.mu
	s.heads = s.firstHead[:0]
	return s
}

// ID returns the stream identifier.
func (s *Stream) ID() uint32 { return s.id }

// Conn returns the stream's connection.
func (s *Stream) Conn() *Conn { return s.conn }

// OpenOptions are the options of OpenWith. Open uses the zero value.
type OpenOptions struct {
	// Repeatable lets FailUnanswered end the request. The sender then sends it again.
	Repeatable bool
	// Opening is called with the stream before OpenWith waits, so that another goroutine
	// can end the wait by Reset. It is called at most once, and must not block. Nil:
	// none.
	Opening func(*Stream)
}

// Open opens a stream (client only) and sends h and the first bytes of the body in one
// write; end says that the body is complete. If the body exceeds the peer's windows, Open
// waits as Write does. An error means that nothing was sent; an end of the stream during
// the wait is returned by ReadHead instead. The caller must call Reset, unless it has
// sent the whole request and has read the whole response.
func (c *Conn) Open(h *message.Head, body []byte, end bool) (*Stream, error) {
	return c.OpenWith(h, body, end, OpenOptions{})
}

// OpenWith is Open with options. If another goroutine calls Reset before OpenWith has
// sent anything, the error is a *ResetError.
func (c *Conn) OpenWith(h *message.Head, body []byte, end bool, o OpenOptions) (*Stream, error) {
	raw, err := c.encodeRaw(h)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mayOpen(); err != nil {
		raw.free()
		return nil, err
	}
	s := c.newStream()
	s.headRequest = h.Method == "HEAD"
	s.repeatable = o.Repeatable
	if o.Opening != nil {
		c.mu.Unlock()
		o.Opening(s)
		c.mu.Lock()
	}
	err = c.waitForSpace(s)
	if err == nil {
		err = c.mayOpen()
	}
	if err != nil {
		c.passTurn()
		raw.free()
		return nil, err
	}
	s.sendWindow = c.peer.initialWindow
	s.id = c.nextID
	c.nextID += 2
	c.streams[s.id] = s
	c.appendHead(s, h, raw, end && len(body) == 0)
	if len(body) == 0 {
		c.passTurn()
		c.flush(s)
	} else {
		c.writeBody(s, body, end)
	}
	return s, nil
}

// ReadHead waits for the next head and moves it into h, whose fields' capacity is reused.
// A server reads the request head with it. A client reads 1xx heads first, then the final
// one. end means that neither body nor trailers follow. The error is a *ResetError or
// that of Coding.ParseHead, after which the stream is reset.
func (s *Stream) ReadHead(h *message.Head) (end bool, err error) {
	c := s.conn
	c.mu.Lock()
	for len(s.heads) == 0 {
		if s.err != nil {
			c.mu.Unlock()
			return false, s.err
		}
		if s.gotFinal {
			c.mu.Unlock()
			return false, io.EOF // the final head was read before
		}
		s.readCond.Wait()
	}
	e := s.heads[0]
	s.heads = s.heads[:copy(s.heads, s.heads[1:])]
	c.mu.Unlock()
	kind := Request
	if c.cfg.Client {
		kind = Response
	}
	if err := c.moveHead(e, kind, h); err != nil {
		s.Reset(http2.ErrCodeProtocol)
		return false, err
	}
	return e.end, nil
}

// moveHead moves a received head into h and frees the entry.
func (c *Conn) moveHead(e headEntry, kind Kind, h *message.Head) error {
	defer e.free()
	if e.raw != nil {
		return c.cfg.Coding.ParseHead(e.raw.b, kind, h)
	}
	*h, *e.head = *e.head, *h
	return nil
}

// Read reads the body. It returns io.EOF at its end. After a reset by the peer it returns
// what arrived before, then a *ResetError.
func (s *Stream) Read(p []byte) (int, error) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.buffer.n == 0 {
		switch {
		case s.deaf:
			return 0, ErrStopped
		case s.recvEnded && !s.dropped:
			return 0, io.EOF
		case s.err != nil:
			return 0, s.err
		case len(p) == 0:
			return 0, nil
		}
		s.readCond.Wait()
	}
	n := s.buffer.take(p)
	s.taken += n
	c.consumed(s, n)
	return n, nil
}

// ReadBuffered reads bytes of the body that have come, without waiting. end reports that
// the body ends after them.
func (s *Stream) ReadBuffered(p []byte) (n int, end bool) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.buffer.n > 0 && len(p) > 0 {
		n = s.buffer.take(p)
		s.taken += n
		c.consumed(s, n)
	}
	return n, s.buffer.n == 0 && s.recvEnded && !s.dropped
}

// AwaitBody waits until Read would not, so that a reader needs no buffer while the body
// pauses.
func (s *Stream) AwaitBody() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.buffer.n == 0 && !s.recvEnded && s.err == nil && !s.deaf {
		s.readCond.Wait()
	}
}

// StopReading drops what has come of the body and what still comes, and unblocks its
// reader, whose error is ErrStopped. The other direction of the stream goes on. A server
// calls it if it needs no more of a request than it has read.
func (s *Stream) StopReading() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	s.deaf = true
	s.buffer.drop()
	s.readCond.Broadcast()
}

// Buffered returns how many bytes of the body Read returns without blocking, and whether
// they are the last ones.
func (s *Stream) Buffered() (n int, ended bool) {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.buffer.n, s.recvEnded && !s.dropped
}

// Trailers moves the trailers into h. It returns false if there are none. Call it after
// Read returned io.EOF, or once Buffered returns 0 and true.
func (s *Stream) Trailers(h *message.Head) bool {
	c := s.conn
	c.mu.Lock()
	e := s.trailers
	s.trailers = headEntry{}
	c.mu.Unlock()
	if e.empty() {
		return false
	}
	err := c.moveHead(e, Trailers, h)
	if err != nil && c.cfg.OnFault != nil {
		c.cfg.OnFault(Fault{Reason: faultMalformedHead, Err: err})
	}
	return err == nil
}

// writeError returns why nothing can be sent.
func (s *Stream) writeError() error {
	switch {
	case s.err != nil:
		return s.err
	case s.conn.end != nil:
		return ErrClosed
	case s.sentEnd:
		return errEnded
	}
	return nil
}

// WriteHead sends a response head (a server's; 1xx heads may come before the final one)
// and the first bytes of the body in one write. It waits as Write does.
func (s *Stream) WriteHead(h *message.Head, body []byte, end bool) error {
	return s.writeBlock(h, body, end)
}

// WriteTrailers sends the trailers and ends this direction.
func (s *Stream) WriteTrailers(h *message.Head) error { return s.writeBlock(h, nil, true) }

func (s *Stream) writeBlock(h *message.Head, body []byte, end bool) error {
	c := s.conn
	raw, err := c.encodeRaw(h)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.waitForSpace(s); err != nil {
		raw.free()
		return err
	}
	s.answering = true
	c.appendHead(s, h, raw, end && len(body) == 0)
	if len(body) == 0 {
		c.passTurn()
		c.flush(s)
		return nil
	}
	_, err = c.writeBody(s, body, end)
	return err
}

// Write sends body bytes and waits for the peer's windows. end means that these are the
// last ones and that no trailers follow. After a *ResetError with ErrCodeNo the response
// may still be read to its end: the peer does not need the rest of the request.
func (s *Stream) Write(p []byte, end bool) (int, error) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.writeError(); err != nil {
		return 0, err
	}
	return c.writeBody(s, p, end)
}

// Reset ends the stream in both directions, frees what was not read, and unblocks its
// reader and writer. It is idempotent. On a stream that has ended it only frees.
func (s *Stream) Reset(code http2.ErrCode) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resetLocal(s, code)
	if s.flushing {
		// Its goroutine writes frames of all streams, which is not to last for ever.
		c.out.deadline = true
		c.nc.SetWriteDeadline(time.Now().Add(stuckTimeout))
	}
	c.flushInBackground()
}

// OnReset has fn called once when the stream is cut by another than Reset: the peer reset
// it or broke the protocol, or the connection ended. If that has happened fn is called at
// once. fn must not block. Nil removes it.
func (s *Stream) OnReset(fn func(error)) {
	c := s.conn
	c.mu.Lock()
	s.onReset = fn
	cut := s.err != nil && !(s.err.Local && s.dropped)
	c.mu.Unlock()
	if cut {
		s.callOnReset()
	}
}

func (s *Stream) callOnReset() {
	s.conn.mu.Lock()
	fn, err := s.onReset, s.err
	s.onReset = nil
	s.conn.mu.Unlock()
	if fn != nil && err != nil {
		fn(err)
	}
}

// resetLocal is Reset with the lock held.
func (c *Conn) resetLocal(s *Stream, code http2.ErrCode) {
	if !s.removed && s.id != 0 && c.end == nil {
		c.appendReset(s.id, code)
		c.recent.add(s.id)
	}
	if !s.dropped {
		s.dropped = true
		s.buffer.drop()
		for _, e := range s.heads {
			e.free()
		}
		s.heads = nil
		s.trailers.free()
		s.trailers = headEntry{}
		s.onReset = nil
	}
	if s.removed && s.err == nil {
		s.err = errFreed // the usual end, for which nothing is allocated
	} else if s.err == nil {
		s.err = &ResetError{Code: code, Local: true}
	}
	c.failStream(s, s.err)
	s.releaseWindow()
}

// errFreed is the error of a stream that had ended before it was reset.
var errFreed = &ResetError{Local: true}

// failStream cuts a stream. Its reader still gets what has arrived, unless this end has
// dropped it.
func (c *Conn) failStream(s *Stream, err *ResetError) {
	if s.err == nil {
		s.err = err
	}
	c.quitTurn(s)
	c.remove(s)
	s.readCond.Signal()
	s.wakeWriter()
}

// streamError resets a stream because of the peer's mistake. The error is one of the
// connection: the peer makes too many.
func (c *Conn) streamError(s *Stream, code http2.ErrCode) error {
	err := http2.StreamError{StreamID: s.id, Code: code}
	return c.streamFault(s, code, Fault{Reason: reasonOf(code), Err: err})
}

// malformedHead is streamError for a head that cannot be read.
func (c *Conn) malformedHead(s *Stream, err error) error {
	return c.streamFault(s, http2.ErrCodeProtocol, Fault{Reason: faultMalformedHead, Err: err})
}

// streamFault is streamError for a fault that the caller describes.
func (c *Conn) streamFault(s *Stream, code http2.ErrCode, f Fault) error {
	c.fault(f)
	c.appendReset(s.id, code)
	c.recent.add(s.id)
	c.failStream(s, &ResetError{Code: code, Local: true})
	if s.onReset != nil {
		c.resets = append(c.resets, s)
	}
	return c.floods.chargeReset()
}
