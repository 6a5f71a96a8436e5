package mux

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxPending is the number of pending bytes from which on writers wait.
	maxPending = 64 << 10
	// maxControl bounds the frames beyond maxPending that answer the peer's frames. A
	// peer that causes more does not read.
	maxControl = 64 << 10
	// gatherBelow is the number of pending bytes below which a flush lets other
	// goroutines add their frames first.
	gatherBelow = 8 << 10
	// stuckTimeout is how long a write may last after the stream whose goroutine makes it
	// was reset.
	stuckTimeout = 5 * time.Second

	frameHeaderLen = 9
)

// output is the pending buffer and the state of the flush.
type output struct {
	pending  *block // nil if nothing is pending
	excess   int    // how many bytes beyond maxPending a head has added to pending
	flushing bool
	drained  sync.Cond // a flush has ended
	deadline bool      // a write deadline is set
}

func (o *output) len() int {
	if o.pending == nil {
		return 0
	}
	return len(o.pending.b)
}

func (o *output) full() bool { return o.len() >= maxPending }

// flush writes what is pending, unless another goroutine does so already. It releases the
// lock meanwhile and reports whether it did. What others add during the write is flushed
// in the background. The goroutine that calls is that of the stream s.
func (c *Conn) flush(s *Stream) bool {
	if c.out.flushing || c.out.len() == 0 || c.end != nil {
		return false
	}
	c.out.flushing = true
	s.flushing = true
	c.gather()
	c.writePending()
	s.flushing = false
	c.continueFlush()
	return true
}

// gather lets other goroutines add their frames to a small flush.
func (c *Conn) gather() {
	if len(c.streams) > 1 && c.out.len() < gatherBelow {
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
}

// continueFlush ends a flush, or hands it to the background if more is pending.
func (c *Conn) continueFlush() {
	c.out.flushing = false
	c.flushInBackground()
	if !c.out.flushing {
		c.out.drained.Broadcast()
	}
}

// flushInBackground flushes in a goroutine of its own, for callers that must not block.
func (c *Conn) flushInBackground() {
	if c.out.flushing || c.out.len() == 0 || c.end != nil {
		return
	}
	c.out.flushing = true
	c.owned.Add(1)
	go func() {
		defer c.owned.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		for c.out.len() > 0 && c.end == nil {
			c.gather()
			c.writePending()
		}
		c.out.flushing = false
		c.out.drained.Broadcast()
	}()
}

// writePending makes one write. It releases the lock meanwhile.
func (c *Conn) writePending() {
	out := c.out.pending
	if out == nil {
		return
	}
	c.out.pending, c.out.excess = nil, 0
	c.mu.Unlock()
	_, err := c.nc.Write(out.b)
	freeOutput(out)
	c.mu.Lock()
	if err != nil && c.end == nil {
		reason := "connection_lost"
		if c.out.deadline {
			reason = "peer_not_reading"
		}
		c.endLocked(&endError{code: http2.ErrCodeInternal, reason: reason, cause: err, remote: true})
		c.interruptRead()
	}
	if c.out.deadline && c.end == nil {
		c.out.deadline = false
		c.nc.SetWriteDeadline(time.Time{})
	}
	c.passTurn()
}

// grow returns the pending buffer for appending a frame. If the buffer has grown too far
// it also ends the connection.
func (c *Conn) grow() *block {
	if c.out.pending == nil {
		c.out.pending = newOutput()
	}
	if len(c.out.pending.b)-c.out.excess > maxPending+maxControl && c.end == nil {
		c.endLocked(&endError{
			code:   http2.ErrCodeEnhanceYourCalm,
			reason: "peer_not_reading",
			cause:  errors.New("the peer does not read the frames that it causes"),
		})
		c.interruptRead()
	}
	return c.out.pending
}

func appendFrameHeader(b []byte, n int, t http2.FrameType, flags http2.Flags, id uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func (c *Conn) appendPreface() {
	out := c.grow()
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.cfg.MaxHeadBytes)},
	}
	if c.cfg.Client {
		out.b = append(out.b, http2.ClientPreface...)
		settings = append(settings, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		settings = append(settings, http2.Setting{
			ID:  http2.SettingMaxConcurrentStreams,
			Val: c.cfg.MaxStreams,
		})
	}
	out.b = appendFrameHeader(out.b, 6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		out.b = binary.BigEndian.AppendUint16(out.b, uint16(s.ID))
		out.b = binary.BigEndian.AppendUint32(out.b, s.Val)
	}
	c.appendWindowUpdate(0, connWindow-defaultWindow)
}

func (c *Conn) appendSettingsAck() {
	out := c.grow()
	out.b = appendFrameHeader(out.b, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
}

func (c *Conn) appendPing(ack bool, data [8]byte) {
	out := c.grow()
	var flags http2.Flags
	if ack {
		flags = http2.FlagPingAck
	}
	out.b = appendFrameHeader(out.b, len(data), http2.FramePing, flags, 0)
	out.b = append(out.b, data[:]...)
}

func (c *Conn) appendGoAway(lastID uint32, code http2.ErrCode, debug string) {
	out := c.grow()
	if code == http2.ErrCodeNo {
		debug = ""
	}
	out.b = appendFrameHeader(out.b, 8+len(debug), http2.FrameGoAway, 0, 0)
	out.b = binary.BigEndian.AppendUint32(out.b, lastID)
	out.b = binary.BigEndian.AppendUint32(out.b, uint32(code))
	out.b = append(out.b, debug...)
}

func (c *Conn) appendReset(id uint32, code http2.ErrCode) {
	out := c.grow()
	out.b = appendFrameHeader(out.b, 4, http2.FrameRSTStream, 0, id)
	out.b = binary.BigEndian.AppendUint32(out.b, uint32(code))
}

func (c *Conn) appendWindowUpdate(id uint32, n int) {
	out := c.grow()
	out.b = appendFrameHeader(out.b, 4, http2.FrameWindowUpdate, 0, id)
	out.b = binary.BigEndian.AppendUint32(out.b, uint32(n))
}

// appendBlock appends HEADERS and, for a large block, CONTINUATION frames.
func (c *Conn) appendBlock(id uint32, head []byte, end bool) {
	out := c.grow()
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		n := min(len(head), c.peer.maxFrame)
		if n == len(head) {
			flags |= http2.FlagHeadersEndHeaders
		}
		out.b = appendFrameHeader(out.b, n, kind, flags, id)
		out.b = append(out.b, head[:n]...)
		if head = head[n:]; len(head) == 0 {
			return
		}
		kind, flags = http2.FrameContinuation, 0
	}
}

// writeBody appends DATA frames as the windows and the pending buffer permit, and waits
// for them otherwise. It flushes before it waits and at the end. With end set the last
// frame ends the stream.
func (c *Conn) writeBody(s *Stream, p []byte, end bool) (int, error) {
	sent, yield := 0, false
	for len(p) > 0 || end {
		if err := s.writeError(); err != nil {
			c.quitTurn(s)
			c.passTurn()
			return sent, err
		}
		n := min(len(p), s.sendWindow, c.send.left, c.peer.maxFrame)
		switch {
		case (n > 0 || len(p) == 0) && !c.out.full() && !yield:
			last := end && n == len(p)
			c.appendData(s, p[:n], last)
			sent += n
			if p = p[n:]; last {
				end = false
			}
			c.quitTurn(s) // a window update may have come before its turn
			yield = len(p) > 0 && len(c.send.waiting) > 0
		case c.flush(s):
		case yield && len(c.send.waiting) == 0:
			yield = false
		case yield:
			// Streams that wait take turns, one frame each.
			yield = false
			c.queueTurn(s)
			c.passTurn()
			s.awaitWrite()
		case len(p) > 0 && s.sendWindow <= 0:
			c.quitTurn(s)
			c.passTurn()
			s.awaitWrite()
		default:
			c.queueTurn(s)
			s.awaitWrite()
		}
	}
	c.quitTurn(s)
	c.passTurn()
	c.flush(s)
	return sent, nil
}

// waitForSpace waits until the pending buffer takes a head. It does not write itself, so
// that Reset ends the wait at once.
func (c *Conn) waitForSpace(s *Stream) error {
	for {
		if err := s.writeError(); err != nil {
			c.quitTurn(s)
			c.passTurn()
			return err
		}
		if !c.out.full() {
			c.quitTurn(s)
			return nil
		}
		c.flushInBackground()
		c.queueTurn(s)
		s.awaitWrite()
	}
}

func (c *Conn) appendData(s *Stream, p []byte, last bool) {
	out := c.grow()
	var flags http2.Flags
	if last {
		flags = http2.FlagDataEndStream
	}
	out.b = appendFrameHeader(out.b, len(p), http2.FrameData, flags, s.id)
	out.b = append(out.b, p...)
	s.sendWindow -= len(p)
	c.send.left -= len(p)
	c.floods.sentData()
	if last {
		c.endSent(s)
	}
}

// endSent marks the sending direction as ended.
func (c *Conn) endSent(s *Stream) {
	s.sentEnd = true
	if s.recvEnded {
		c.floods.answered()
		c.remove(s)
	}
}
