// Package mux runs one HTTP/2 connection (RFC 9113), frame by frame, in either role. A
// head is coded by HPACK or, between agents, as HTTP/1 writes it.
//
//	net.Conn → read loop → stream's heads and body → ReadHead, Read
//	net.Conn ← flusher   ← pending frames          ← Open, WriteHead, Write
//
// Invariants:
//   - One goroutine reads frames. It never writes to the connection and never waits for
//     a stream, so a slow stream does not delay others.
//   - A writer appends frames to the pending buffer. If no flush is in progress it
//     flushes what is pending, so frames of many streams share one write.
//   - Conn.mu guards everything that is not marked as the read loop's.
//   - A goroutine calls Handle for one stream after the other. Those that are not needed
//     for a while end.
//   - Memory is bounded: 64 KiB of body per open stream, more only if the WindowBudget
//     admits it, two write buffers, and MaxHeadBytes per head.
package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
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
	// ResetRate is how many streams per second the peer may reset before they are
	// answered, or make this end reset, beyond those that were answered. Zero means 100.
	// A connection that many callers share needs more, because their timeouts reset
	// streams.
	ResetRate int
	// Received are the bytes, at most 32 KiB, that were read from the connection before,
	// for instance to recognize HTTP/2. With them a *net.TCPConn needs no wrapper, and
	// only such a connection holds no read buffer while it is idle.
	Received []byte
	// Windows admits receive windows beyond 64 KiB per stream. Nil admits none.
	Windows WindowBudget
	// Handle serves one stream of a server end. It may block, because its goroutine
	// serves no other stream meanwhile. When it returns, a stream that is still open is
	// reset.
	Handle func(*Stream)
	// OnGoAway is called once when the peer announces that it takes no more streams. It
	// must not block.
	OnGoAway func()
	// OnFault is called for each Fault of the peer. It must not block, and may be called
	// from several goroutines at once. Nil: faults are not reported.
	OnFault func(Fault)
	// RefusalFields are fields of the response to a request whose head is too large.
	RefusalFields []message.Field
}

const (
	defaultMaxStreams   = 250
	defaultMaxHeadBytes = 100 << 10
	firstMaxStreams     = 100      // a client's open streams until SETTINGS arrive
	assumedMaxStreams   = 1000     // the same if SETTINGS name no limit
	readBufferSize      = 32 << 10 // more than a header frame of the largest size
	maxFrameSize        = 16 << 10
	prefaceTimeout      = 10 * time.Second
	// goAwayDelay bounds the wait for the PING between the two GOAWAY frames of a server.
	goAwayDelay = time.Second
	// lastWriteTimeout bounds the write of the last frames, and lingerTimeout the wait
	// for the peer to close after them.
	lastWriteTimeout = time.Second
	lingerTimeout    = 500 * time.Millisecond
	lingerBytes      = 256 << 10
	maxStreamID      = 1<<31 - 1
)

// Errors of Open. In each case nothing was sent, so the request may go elsewhere.
var (
	ErrTooManyStreams = errors.New("the peer's stream limit is reached")
	ErrGoingAway      = errors.New("the connection takes no more streams")
	ErrClosed         = errors.New("the connection is closed")
)

// Conn is one HTTP/2 connection. All methods may be called from any goroutine.
type Conn struct {
	nc  net.Conn
	cfg Config

	// The read loop's own.
	br         readBuffer
	fr         *http2.Framer
	decoder    headDecoder
	recvWindow int       // what the peer may still send on the connection
	wake       []*Stream // streams with news for their reader or writer
	starting   []*Stream // streams whose Handle is to be started
	resets     []*Stream // streams whose OnReset is due
	announced  bool      // OnGoAway is due
	faults     []Fault   // OnFault is due for them

	mu      sync.Mutex
	streams map[uint32]*Stream
	nextID  uint32 // a client's next stream
	lastID  uint32 // the highest stream that the peer opened
	recent  recentResets

	out     output
	encoder headEncoder
	send    sendWindow
	peer    peerSettings
	rtt     roundTrips
	floods  floodLimits

	handlers    int
	workers     workers
	goingAway   bool // this end announced it
	goAwaySent  bool // a server's last GOAWAY is sent: later streams are ignored
	peerGoAway  bool
	peerLastID  uint32
	goAwayTimer *time.Timer
	finishing   bool // the connection ends gracefully
	idleSince   time.Time
	end         *endError // set once, when the connection has ended
	done        chan struct{}
	owned       sync.WaitGroup // Handle goroutines and flushes in the background
}

// peerSettings are the peer's SETTINGS.
type peerSettings struct {
	maxStreams    uint32
	initialWindow int
	maxFrame      int
	received      bool
	acksDue       int // SETTINGS that the peer has not acknowledged
}

// endError says why a connection ended.
type endError struct {
	code   http2.ErrCode
	reason string // that of a Fault, if the end is one
	cause  error  // nil after a graceful end
	remote bool   // the peer ended it: no GOAWAY is sent
}

func (e *endError) Error() string {
	if e.cause == nil {
		return "http2 connection ended: " + e.reason
	}
	return "http2 connection ended: " + e.reason + ": " + e.cause.Error()
}

func (e *endError) Unwrap() error { return e.cause }

// lingers reports whether the peer is to get the last frames before the socket is closed.
func (e *endError) lingers(client bool) bool { return !client && !e.remote && e.reason != "canceled" }

// New returns a connection over nc, whose deadlines Run sets and which it closes. Open
// may be called before Run.
func New(nc net.Conn, cfg Config) *Conn {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = defaultMaxStreams
	}
	if cfg.MaxHeadBytes == 0 {
		cfg.MaxHeadBytes = defaultMaxHeadBytes
	}
	if cfg.ResetRate == 0 {
		cfg.ResetRate = defaultResetRate
	}
	if tcp, ok := nc.(*net.TCPConn); ok {
		nc = socket.NewConn(tcp)
	}
	c := &Conn{
		nc:         nc,
		cfg:        cfg,
		recvWindow: connWindow,
		streams:    map[uint32]*Stream{},
		nextID:     1,
		done:       make(chan struct{}),
		idleSince:  time.Now(),
		peerLastID: maxStreamID,
		peer: peerSettings{
			maxStreams:    firstMaxStreams,
			initialWindow: defaultWindow,
			maxFrame:      maxFrameSize,
			acksDue:       1,
		},
		send: sendWindow{left: defaultWindow},
	}
	c.br.init(nc, cfg.Received, c.deliver)
	c.fr = http2.NewFramer(io.Discard, &c.br)
	c.fr.SetMaxReadFrameSize(maxFrameSize)
	c.decoder.init(cfg.MaxHeadBytes)
	c.encoder.init()
	c.out.drained.L = &c.mu
	c.floods = newFloodLimits(time.Now(), cfg.ResetRate)
	c.mu.Lock()
	c.appendPreface()
	c.mu.Unlock()
	return c
}

// Run exchanges the prefaces and reads frames until the connection has ended and every
// Handle has returned. It closes the net.Conn. The error is nil after a graceful end,
// also if the peer closes while no stream is open.
func (c *Conn) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.end == nil {
			c.endLocked(&endError{code: http2.ErrCodeNo, reason: "canceled", cause: ctx.Err()})
			c.interruptRead()
		}
	})
	defer stop()
	c.nc.SetReadDeadline(time.Now().Add(prefaceTimeout))
	c.mu.Lock()
	if !c.out.deadline {
		c.nc.SetWriteDeadline(time.Time{})
	}
	c.flushInBackground()
	c.mu.Unlock()
	err := c.readFrames()
	c.close(err)
	c.br.free()
	c.owned.Wait()
	if c.end.cause != nil {
		return c.end
	}
	return nil
}

// close ends the streams, sends what is pending and GOAWAY, and closes the net.Conn.
func (c *Conn) close(err error) {
	c.mu.Lock()
	if c.end == nil {
		c.endLocked(c.classify(err))
	}
	end := c.end
	if !end.remote && !(c.goAwaySent && end.code == http2.ErrCodeNo) {
		// A connection that ends by the peer's mistake names it in the debug data.
		c.appendGoAway(c.lastID, end.code, end.reason)
	}
	c.nc.SetWriteDeadline(time.Now().Add(lastWriteTimeout))
	for c.out.flushing {
		c.out.drained.Wait()
	}
	if !end.remote {
		c.writePending()
	}
	c.wakeStreams()
	c.mu.Unlock()
	c.callHooks()
	if end.isFault() && c.cfg.OnFault != nil {
		c.cfg.OnFault(Fault{Reason: end.reason, Err: end.cause})
	}
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok && end.lingers(c.cfg.Client) {
		// Closing a socket with unread bytes resets it, and the peer would lose the last
		// frames. So wait for the peer's end of stream.
		if half.CloseWrite() == nil {
			c.nc.SetReadDeadline(time.Now().Add(lingerTimeout))
			io.CopyN(io.Discard, c.nc, lingerBytes)
		}
	}
	c.nc.Close()
	close(c.done)
}

// classify turns an error of the read loop into the reason of the end.
func (c *Conn) classify(err error) *endError {
	var end *endError
	var code http2.ConnectionError
	switch {
	case errors.As(err, &end):
		return end
	case c.finishing:
		return &endError{reason: "graceful"}
	case errors.Is(err, io.EOF) && len(c.streams) == 0:
		return &endError{reason: "peer_closed", remote: true}
	case errors.As(err, &code):
		return &endError{code: http2.ErrCode(code), reason: reasonOf(http2.ErrCode(code)), cause: err}
	case errors.Is(err, http2.ErrFrameTooLarge):
		return &endError{code: http2.ErrCodeFrameSize, reason: "frame_size", cause: err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &endError{code: http2.ErrCodeSettingsTimeout, reason: "preface_timeout", cause: err}
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return &endError{code: http2.ErrCodeInternal, reason: "connection_lost", cause: err, remote: true}
}

// endLocked records the end and fails all streams.
func (c *Conn) endLocked(end *endError) {
	c.end = end
	c.stopWorkers()
	if c.goAwayTimer != nil {
		c.goAwayTimer.Stop()
	}
	var called []*Stream
	for _, s := range c.streams {
		code := end.code
		if code == http2.ErrCodeNo {
			code = http2.ErrCodeCancel
		}
		c.failStream(s, &ResetError{
			Code:         code,
			NotProcessed: s.id > c.peerLastID,
			Cause:        end,
		})
		if s.onReset != nil {
			called = append(called, s)
		}
	}
	for _, s := range c.send.waiting {
		s.wakeWriter()
	}
	c.send.waiting = nil
	c.rtt.failPings()
	c.out.drained.Broadcast()
	if len(called) > 0 {
		c.owned.Add(1)
		go func() {
			defer c.owned.Done()
			for _, s := range called {
				s.callOnReset()
			}
		}()
	}
}

// interruptRead makes a blocked read of the read loop return.
func (c *Conn) interruptRead() { c.nc.SetReadDeadline(time.Unix(1, 0)) }

// GoAway ends the connection gracefully: no new streams, the open ones finish, then Run
// returns. A server announces it first and still accepts what is on its way: only a round
// trip later does it name the last stream.
func (c *Conn) GoAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.goingAway || c.end != nil {
		return
	}
	c.goingAway = true
	if c.cfg.Client {
		c.finishIfDone()
		return
	}
	c.appendGoAway(maxStreamID, http2.ErrCodeNo, "")
	c.appendPing(false, pingData(pingGoAway, 0))
	c.goAwayTimer = time.AfterFunc(goAwayDelay, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sendLastGoAway()
		c.flushInBackground()
	})
	c.flushInBackground()
}

// sendLastGoAway sends a server's second GOAWAY, which names the last accepted stream.
func (c *Conn) sendLastGoAway() {
	if c.goAwaySent || c.end != nil {
		return
	}
	c.goAwaySent = true
	c.appendGoAway(c.lastID, http2.ErrCodeNo, "")
	c.finishIfDone()
}

// finishIfDone ends a connection that takes no more streams and has none.
func (c *Conn) finishIfDone() {
	last := c.goAwaySent
	if c.cfg.Client {
		last = c.goingAway || c.peerGoAway
	}
	if last && len(c.streams) == 0 && !c.finishing && c.end == nil {
		c.finishing = true
		c.interruptRead()
	}
}

// Streams returns how many streams are open, and how many a client has opened so far.
func (c *Conn) Streams() (open int, opened uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams), c.nextID / 2
}

// FailUnanswered resets the streams with OpenOptions.Repeatable that have no response
// head yet. Their readers get a *ResetError with the cause.
func (c *Conn) FailUnanswered(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		if s.repeatable && !s.gotFinal && s.err == nil {
			c.appendReset(s.id, http2.ErrCodeCancel)
			c.recent.add(s.id)
			c.failStream(s, &ResetError{Code: http2.ErrCodeCancel, Local: true, Cause: cause})
		}
	}
	c.flushInBackground()
}

// Load returns the number of open streams.
func (c *Conn) Load() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// Idle reports whether no stream is open, and since when.
func (c *Conn) Idle() (since time.Time, idle bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idleSince, len(c.streams) == 0
}

// CanOpen reports whether Open would succeed now.
func (c *Conn) CanOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mayOpen() == nil
}

func (c *Conn) mayOpen() error {
	switch {
	case c.end != nil || c.finishing:
		return ErrClosed
	case c.goingAway || c.peerGoAway || c.nextID > maxStreamID:
		return ErrGoingAway
	case uint32(len(c.streams)) >= c.peer.maxStreams:
		return ErrTooManyStreams
	}
	return nil
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// endHandle ends a stream whose Handle has returned.
func (c *Conn) endHandle(s *Stream) {
	code := http2.ErrCodeCancel
	if s.sentEnd {
		code = http2.ErrCodeNo // the rest of the request is not needed
	}
	c.resetLocal(s, code)
	c.handlers--
	c.flushInBackground()
}

// remove takes a stream that has ended in both directions out of the connection.
func (c *Conn) remove(s *Stream) {
	if s.removed {
		return
	}
	s.removed = true
	delete(c.streams, s.id)
	s.releaseWindow()
	if len(c.streams) == 0 {
		c.idleSince = time.Now()
		c.finishIfDone()
	}
}
