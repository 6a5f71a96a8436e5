package mux

import (
	"encoding/binary"
	"errors"
	"io"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// deliver starts and wakes the goroutines of streams that got frames, and flushes what
// the read loop has appended.
func (c *Conn) deliver() error {
	c.mu.Lock()
	if c.end != nil {
		c.mu.Unlock()
		return c.end
	}
	c.wakeStreams()
	for i, s := range c.starting {
		c.startHandle(s)
		c.starting[i] = nil
	}
	c.starting = c.starting[:0]
	c.flushInBackground()
	c.mu.Unlock()
	c.callHooks()
	return nil
}

func (c *Conn) wakeStreams() {
	for i, s := range c.wake {
		s.waking = false
		s.readCond.Signal()
		s.wakeWriter()
		c.wake[i] = nil
	}
	c.wake = c.wake[:0]
}

// callHooks calls OnReset, OnGoAway and OnFault, without the lock.
func (c *Conn) callHooks() {
	for i, s := range c.resets {
		s.callOnReset()
		c.resets[i] = nil
	}
	c.resets = c.resets[:0]
	if c.announced {
		c.announced = false
		c.cfg.OnGoAway()
	}
	c.reportFaults()
}

// wakeLater has deliver wake the reader and the writer of s.
func (c *Conn) wakeLater(s *Stream) {
	if !s.waking {
		s.waking = true
		c.wake = append(c.wake, s)
	}
}

// readFrames is the read loop.
func (c *Conn) readFrames() error {
	if !c.cfg.Client {
		preface, err := c.br.Peek(len(http2.ClientPreface))
		if err != nil {
			return err
		}
		if string(preface) != http2.ClientPreface {
			return protocolError("the client preface is wrong")
		}
		c.br.Discard(len(preface))
	}
	for first := true; ; first = false {
		fh, err := c.peekFrameHeader()
		if err != nil {
			return err
		}
		if first {
			if fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck) {
				return protocolError("the first frame is not SETTINGS")
			}
			c.mu.Lock()
			if c.end == nil && !c.finishing {
				c.nc.SetReadDeadline(time.Time{})
			}
			c.mu.Unlock()
		}
		if err := c.readFrame(fh); err != nil {
			return err
		}
	}
}

// peekFrameHeader waits for the next frame and returns its header, which stays in the
// read buffer.
func (c *Conn) peekFrameHeader() (http2.FrameHeader, error) {
	b, err := c.br.Peek(frameHeaderLen)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return http2.FrameHeader{}, err
	}
	fh := http2.FrameHeader{
		Length:   uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		Type:     http2.FrameType(b[3]),
		Flags:    http2.Flags(b[4]),
		StreamID: binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
	if fh.Length > maxFrameSize {
		return fh, http2.ErrFrameTooLarge
	}
	return fh, nil
}

// readFrame handles DATA and HEADERS from the read buffer. The framer reads the others,
// and a CONTINUATION frame that follows no HEADERS is an error to it.
func (c *Conn) readFrame(fh http2.FrameHeader) error {
	switch fh.Type {
	case http2.FrameData:
		c.br.Discard(frameHeaderLen)
		return c.readData(fh)
	case http2.FrameHeaders:
		c.br.Discard(frameHeaderLen)
		return c.readHeaders(fh)
	}
	f, err := c.fr.ReadFrame()
	var stream http2.StreamError
	if errors.As(err, &stream) {
		// The framer finds some mistakes that concern one stream only.
		c.mu.Lock()
		defer c.mu.Unlock()
		if s := c.streams[stream.StreamID]; s != nil {
			return c.streamError(s, stream.Code)
		}
		return c.ifIdle(stream.StreamID, "frame")
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.applySettings(f)
	case *http2.PingFrame:
		return c.answerPing(f)
	case *http2.WindowUpdateFrame:
		return c.updateWindow(f.StreamID, f.Increment)
	case *http2.RSTStreamFrame:
		return c.peerReset(f)
	case *http2.GoAwayFrame:
		return c.peerGoesAway(f)
	case *http2.PushPromiseFrame:
		return protocolError("PUSH_PROMISE is disabled")
	}
	// PRIORITY and unknown frames are ignored.
	return c.floods.chargeControl("ignored_frame_flood")
}

// ifIdle returns an error if no stream with this id was ever opened.
func (c *Conn) ifIdle(id uint32, frame string) error {
	if c.isIdle(id) {
		return protocolError(frame + " on an idle stream")
	}
	return nil
}

func (c *Conn) isIdle(id uint32) bool {
	if c.cfg.Client {
		return id%2 == 0 || id >= c.nextID
	}
	return id%2 == 0 || id > c.lastID
}

// afterClose handles DATA and HEADERS on a stream that is not open.
func (c *Conn) afterClose(id uint32) error {
	switch {
	case c.isIdle(id):
		return protocolError("frame on an idle stream")
	case c.cfg.Client, c.recent.has(id):
		return nil // it was on its way when this end reset the stream
	}
	c.appendReset(id, http2.ErrCodeStreamClosed)
	return c.floods.chargeReset()
}

// readData handles DATA. The payload moves from the read buffer to the stream's, as it
// arrives.
func (c *Conn) readData(fh http2.FrameHeader) error {
	if fh.StreamID == 0 {
		return protocolError("DATA on stream 0")
	}
	size := int(fh.Length)
	body, padding := size, 0
	if fh.Flags.Has(http2.FlagDataPadded) {
		if size == 0 {
			return connError(http2.ErrCodeFrameSize, "DATA without its pad length")
		}
		b, err := c.br.Peek(1)
		if err != nil {
			return err
		}
		padding = int(b[0])
		c.br.Discard(1)
		if body = size - 1 - padding; body < 0 {
			return protocolError("padding exceeds the frame")
		}
	}
	ended := fh.Flags.Has(http2.FlagDataEndStream)
	s, err := c.admitData(fh.StreamID, size, body, ended)
	if err != nil {
		return err
	}
	for left := body; left > 0; {
		if _, err := c.br.Peek(1); err != nil {
			return err
		}
		piece, _ := c.br.Peek(min(left, c.br.Buffered()))
		if s != nil {
			c.mu.Lock()
			if !s.dropped && !s.deaf && s.err == nil {
				s.buffer.append(piece)
				c.wakeLater(s)
			}
			c.mu.Unlock()
		}
		left -= len(piece)
		c.br.Discard(len(piece))
	}
	if err := c.br.Discard(padding); err != nil {
		return err
	}
	if ended && s != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.recvEnd(s)
	}
	return nil
}

// admitData accounts for a DATA frame. It returns nil if its payload is to be discarded.
func (c *Conn) admitData(id uint32, size, body int, ended bool) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recvWindow -= size; c.recvWindow < 0 {
		return nil, connError(http2.ErrCodeFlowControl, "DATA exceeds the connection's window")
	}
	if c.recvWindow < connWindow/2 {
		c.appendWindowUpdate(0, connWindow-c.recvWindow)
		c.recvWindow = connWindow
	}
	s := c.streams[id]
	switch {
	case s == nil:
		return nil, c.afterClose(id)
	case s.recvEnded:
		return nil, c.streamError(s, http2.ErrCodeStreamClosed)
	case !s.gotFinal:
		return nil, c.streamError(s, http2.ErrCodeProtocol)
	case size > s.recvWindow:
		return nil, connError(http2.ErrCodeFlowControl, "DATA exceeds the stream's window")
	}
	s.recvWindow -= size
	s.received += int64(body)
	if s.declared >= 0 && s.received > s.declared {
		return nil, c.streamError(s, http2.ErrCodeProtocol)
	}
	if body == 0 && !ended {
		if err := c.floods.chargeControl("empty_data_flood"); err != nil {
			return nil, err
		}
	}
	if size > body {
		c.consumed(s, size-body)
	}
	return s, nil
}

// recvEnd handles END_STREAM.
func (c *Conn) recvEnd(s *Stream) error {
	if s.err != nil {
		return nil
	}
	if s.declared >= 0 && s.received != s.declared && !(s.headRequest && s.received == 0) {
		return c.streamError(s, http2.ErrCodeProtocol)
	}
	s.recvEnded = true
	if s.sentEnd {
		c.floods.answered()
		c.remove(s)
	}
	c.wakeLater(s)
	return nil
}

// readHeaders reads a header block: HEADERS and its CONTINUATION frames.
func (c *Conn) readHeaders(fh http2.FrameHeader) error {
	if fh.StreamID == 0 {
		return protocolError("HEADERS on stream 0")
	}
	fragment, err := c.br.Peek(int(fh.Length))
	if err != nil {
		return err
	}
	if fragment, err = headerFragment(fh, fragment); err != nil {
		return err
	}
	id, ended := fh.StreamID, fh.Flags.Has(http2.FlagHeadersEndStream)
	var raw *block
	if c.cfg.Coding != nil {
		raw = newBlock()
	} else {
		c.decoder.begin()
	}
	total, tooLarge := 0, false
	for {
		last := fh.Flags.Has(http2.FlagHeadersEndHeaders)
		total += len(fragment)
		if total > blockFactor*c.cfg.MaxHeadBytes {
			return calm("head_too_large", "a header block exceeds its limit")
		}
		if !last && len(fragment) < smallFragment {
			if err := c.chargeFragment(); err != nil {
				return err
			}
		}
		switch {
		case raw == nil:
			if _, err := c.decoder.hpack.Write(fragment); err != nil {
				return decodeError(err)
			}
		case total <= c.cfg.MaxHeadBytes:
			raw.b = append(raw.b, fragment...)
		default:
			tooLarge = true
		}
		c.br.Discard(int(fh.Length))
		if last {
			break
		}
		if fh, err = c.peekFrameHeader(); err != nil {
			return err
		}
		if fh.Type != http2.FrameContinuation || fh.StreamID != id {
			return protocolError("header frames are not contiguous")
		}
		c.br.Discard(frameHeaderLen)
		if fragment, err = c.br.Peek(int(fh.Length)); err != nil {
			return err
		}
	}
	if raw == nil {
		if err := c.decoder.hpack.Close(); err != nil {
			return decodeError(err)
		}
		tooLarge = c.decoder.tooLarge
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	entry := headEntry{raw: raw, end: ended}
	if raw == nil {
		entry.head = c.decoder.head
	}
	kept, err := c.receiveHead(id, entry, tooLarge)
	if !kept {
		entry.free()
	}
	return err
}

func (c *Conn) chargeFragment() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floods.chargeControl("continuation_flood")
}

func decodeError(err error) error {
	if errors.Is(err, hpack.ErrStringLength) {
		return calm("head_too_large", "a field exceeds the limit of a head")
	}
	return &endError{code: http2.ErrCodeCompression, reason: "compression", cause: err}
}

// headerFragment strips padding and priority from the payload of HEADERS.
func headerFragment(fh http2.FrameHeader, p []byte) ([]byte, error) {
	padding := 0
	if fh.Flags.Has(http2.FlagHeadersPadded) {
		if len(p) == 0 {
			return nil, connError(http2.ErrCodeFrameSize, "HEADERS without its pad length")
		}
		padding, p = int(p[0]), p[1:]
	}
	if fh.Flags.Has(http2.FlagHeadersPriority) {
		if len(p) < 5 {
			return nil, connError(http2.ErrCodeFrameSize, "HEADERS without its priority")
		}
		p = p[5:]
	}
	if padding > len(p) {
		return nil, protocolError("padding exceeds the frame")
	}
	return p[:len(p)-padding], nil
}

// receiveHead gives a complete block to its stream, or opens one. It returns whether the
// entry is kept.
func (c *Conn) receiveHead(id uint32, e headEntry, tooLarge bool) (kept bool, err error) {
	s := c.streams[id]
	switch {
	case s == nil && !c.cfg.Client && id%2 == 1 && id > c.lastID:
		return c.acceptStream(id, e, tooLarge)
	case s == nil:
		return false, c.afterClose(id)
	case s.recvEnded:
		return false, c.streamError(s, http2.ErrCodeStreamClosed)
	case tooLarge:
		f := Fault{Reason: faultHeadTooLarge, Err: ErrHeadTooLarge}
		err := c.streamFault(s, http2.ErrCodeEnhanceYourCalm, f)
		s.err.Cause = ErrHeadTooLarge
		return false, err
	case s.gotFinal:
		return c.receiveTrailers(s, e)
	}
	informational := false
	if e.raw != nil {
		informational = isInformational(e.raw.b)
	} else {
		if err := c.decoder.check(Response); err != nil {
			return false, c.malformedHead(s, err)
		}
		informational = e.head.Status < 200
	}
	switch {
	case informational && e.end:
		return false, c.streamError(s, http2.ErrCodeProtocol)
	case informational && len(s.heads) >= maxHeadQueue:
		return false, c.streamError(s, http2.ErrCodeEnhanceYourCalm)
	case informational:
	default:
		s.gotFinal = true
		c.floods.opened()
		if e.raw == nil {
			s.declared = c.decoder.length
			if e.head.Status == 304 || e.head.Status == 204 {
				s.headRequest = true
			}
		}
	}
	s.heads = append(s.heads, e)
	c.wakeLater(s)
	if e.end {
		return true, c.recvEnd(s)
	}
	return true, nil
}

func (c *Conn) receiveTrailers(s *Stream, e headEntry) (kept bool, err error) {
	if !e.end {
		return false, c.streamError(s, http2.ErrCodeProtocol)
	}
	if e.raw == nil {
		if err := c.decoder.check(Trailers); err != nil {
			return false, c.malformedHead(s, err)
		}
	}
	s.trailers = e
	return true, c.recvEnd(s)
}

// acceptStream opens a stream for a request.
func (c *Conn) acceptStream(id uint32, e headEntry, tooLarge bool) (kept bool, err error) {
	c.lastID = id
	var malformed error
	if e.raw == nil && !tooLarge {
		malformed = c.decoder.check(Request)
	}
	switch {
	case c.goAwaySent:
		return false, nil // the last GOAWAY says that it is not processed
	case tooLarge:
		return false, c.headTooLarge(id, e.end)
	case malformed != nil:
		c.fault(Fault{Reason: faultMalformedHead, Err: malformed})
		c.appendReset(id, http2.ErrCodeProtocol)
		c.recent.add(id)
		return false, c.floods.chargeReset()
	case uint32(len(c.streams)) >= c.cfg.MaxStreams, uint32(c.handlers) >= 2*c.cfg.MaxStreams:
		// Handle may go on for a while after its stream was reset, so the number of its
		// goroutines has a limit as well.
		c.fault(Fault{Reason: faultTooManyStreams, Err: errTooManyStreams})
		c.appendReset(id, http2.ErrCodeRefusedStream)
		c.recent.add(id)
		return false, c.floods.chargeReset()
	}
	s := c.newStream()
	s.id, s.gotFinal = id, true
	if e.raw == nil {
		s.declared = c.decoder.length
	}
	s.heads = append(s.heads, e)
	c.streams[id] = s
	c.handlers++
	c.floods.opened()
	c.starting = append(c.starting, s)
	if e.end {
		return true, c.recvEnd(s)
	}
	return true, nil
}

// applySettings handles SETTINGS.
func (c *Conn) applySettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if c.peer.acksDue > 0 {
			c.peer.acksDue--
			return nil
		}
		return c.floods.chargeControl("settings_flood")
	}
	if err := c.floods.chargeControl("settings_flood"); err != nil {
		return err
	}
	if !c.peer.received {
		c.peer.received = true
		c.peer.maxStreams = assumedMaxStreams
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingHeaderTableSize:
			c.encoder.hpack.SetMaxDynamicTableSize(min(s.Val, tableSize))
		case http2.SettingMaxConcurrentStreams:
			c.peer.maxStreams = s.Val
		case http2.SettingMaxFrameSize:
			c.peer.maxFrame = min(int(s.Val), maxFrameSize)
		case http2.SettingEnablePush:
			if c.cfg.Client && s.Val != 0 {
				return protocolError("a server enables PUSH")
			}
		case http2.SettingInitialWindowSize:
			delta := int(s.Val) - c.peer.initialWindow
			c.peer.initialWindow = int(s.Val)
			for _, s := range c.streams {
				if s.sendWindow += delta; s.sendWindow > maxWindow {
					return connError(http2.ErrCodeFlowControl, "a stream's window overflows")
				}
				if delta > 0 {
					c.wakeLater(s)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.appendSettingsAck()
	return nil
}

func (c *Conn) answerPing(f *http2.PingFrame) error {
	if f.IsAck() {
		if c.pingAcked(f.Data) {
			return nil
		}
		return c.floods.chargeControl("ping_flood")
	}
	if err := c.floods.chargeExplained("ping_flood"); err != nil {
		return err
	}
	c.appendPing(true, f.Data)
	return nil
}

// peerReset handles RST_STREAM.
func (c *Conn) peerReset(f *http2.RSTStreamFrame) error {
	s := c.streams[f.StreamID]
	if s == nil {
		if err := c.ifIdle(f.StreamID, "RST_STREAM"); err != nil {
			return err
		}
		return c.floods.chargeReset()
	}
	refused := f.ErrCode == http2.ErrCodeRefusedStream && c.cfg.Client && !s.gotFinal
	c.failStream(s, &ResetError{Code: f.ErrCode, NotProcessed: refused})
	if s.onReset != nil {
		c.resets = append(c.resets, s)
	}
	if c.cfg.Client || s.answering {
		return nil
	}
	return c.floods.chargeReset()
}

// peerGoesAway handles GOAWAY.
func (c *Conn) peerGoesAway(f *http2.GoAwayFrame) error {
	if f.LastStreamID > c.peerLastID {
		return protocolError("GOAWAY raises the last stream")
	}
	if c.peerGoAway {
		if err := c.floods.chargeControl("goaway_flood"); err != nil {
			return err
		}
	}
	c.peerLastID = f.LastStreamID
	if !c.peerGoAway {
		c.peerGoAway = true
		c.announced = c.cfg.OnGoAway != nil
	}
	if c.cfg.Client {
		for id, s := range c.streams {
			if id > f.LastStreamID {
				c.failStream(s, &ResetError{
					Code:         http2.ErrCodeRefusedStream,
					NotProcessed: true,
					GoingAway:    f.ErrCode == http2.ErrCodeNo,
				})
				if s.onReset != nil {
					c.resets = append(c.resets, s)
				}
			}
		}
		c.finishIfDone()
	}
	return nil
}
