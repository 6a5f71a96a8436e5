package mux

import (
	"context"
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"
)

const (
	defaultWindow   = 1<<16 - 1 // RFC 9113, section 6.9.2
	maxWindow       = 1<<31 - 1
	streamWindow    = 64 << 10 // assured to each stream
	maxStreamWindow = 4 << 20
	// connWindow is the connection's window. It is refilled as frames arrive, because the
	// windows of the streams already bound the memory. So unread streams cannot use it
	// up.
	connWindow = 16 << 20
	// longRoundTrip is the round trip from which a window grows to four times its size,
	// because each step takes a round trip.
	longRoundTrip = 5 * time.Millisecond
	// measureInterval is the least time between two PINGs that measure the path.
	measureInterval = 150 * time.Millisecond
	// minRoundTrip and maxRoundTrip bound the round trip that windows grow by. On a
	// shorter path the processes of both ends take longer than the path. The upper bound
	// holds against a peer that delays its answers.
	minRoundTrip = time.Millisecond
	maxRoundTrip = time.Second
	// leastAge is how long the least round trip is valid, at least. The path may become
	// longer.
	leastAge = 10 * time.Second
)

// WindowBudget limits the bytes of receive windows beyond the assured 64 KiB per stream.
// Its methods must not block.
type WindowBudget interface {
	Reserve(n int) bool
	Release(n int)
}

// sendWindow is the peer's window for the connection, with the streams that wait for it
// or for space in the pending buffer, in the order of their arrival.
type sendWindow struct {
	left    int
	waiting []*Stream
}

// queueTurn queues s for what the connection can send.
func (c *Conn) queueTurn(s *Stream) {
	if !s.waiting {
		s.waiting = true
		c.send.waiting = append(c.send.waiting, s)
	}
}

// passTurn wakes the stream that has waited longest, if the connection can send.
func (c *Conn) passTurn() {
	if len(c.send.waiting) == 0 || c.send.left <= 0 || c.out.full() {
		return
	}
	s := c.send.waiting[0]
	c.send.waiting[0] = nil
	c.send.waiting = c.send.waiting[1:]
	s.waiting = false
	s.wakeWriter()
}

// quitTurn removes s from the queue.
func (c *Conn) quitTurn(s *Stream) {
	if !s.waiting {
		return
	}
	s.waiting = false
	for i, other := range c.send.waiting {
		if other == s {
			c.send.waiting = append(c.send.waiting[:i], c.send.waiting[i+1:]...)
			return
		}
	}
}

// consumed accounts for n bytes that left the receive buffer, or for padding, which never
// enters it. It announces a new window once half of it is free.
func (c *Conn) consumed(s *Stream, n int) {
	s.unannounced += n
	if s.recvEnded || s.removed {
		if s.buffer.n == 0 {
			s.releaseWindow()
		}
		return
	}
	if s.unannounced < s.window/2 {
		return
	}
	c.growWindow(s)
	c.appendWindowUpdate(s.id, s.unannounced)
	s.recvWindow += s.unannounced
	s.unannounced = 0
	c.flushInBackground()
}

// growWindow enlarges the window of s if it limits the rate: if the reader has taken a
// whole window within two round trips. Other streams do not matter, so the window of a
// stalled reader stays as it is.
func (c *Conn) growWindow(s *Stream) {
	if c.cfg.Windows == nil || s.window >= maxStreamWindow {
		return
	}
	c.measure()
	if s.removed {
		return // because measure has ended the connection
	}
	now := time.Now()
	if s.measuredFrom.IsZero() {
		s.measuredFrom, s.taken = now, 0
		return
	}
	if s.taken < s.window {
		return
	}
	rtt := c.rtt.least()
	limits := rtt > 0 && now.Sub(s.measuredFrom) <= 2*rtt
	s.measuredFrom, s.taken = now, 0
	if !limits {
		return
	}
	factor := 2
	if rtt >= longRoundTrip {
		factor = 4
	}
	more := min(maxStreamWindow, factor*s.window) - s.window
	if c.cfg.Windows.Reserve(more) {
		s.window += more
		s.reserved += more
		s.unannounced += more
	}
}

// releaseWindow returns the reserved bytes once nothing more can use them.
func (s *Stream) releaseWindow() {
	if s.reserved > 0 && (s.dropped || s.buffer.n == 0) {
		s.conn.cfg.Windows.Release(s.reserved)
		s.reserved = 0
	}
}

// roundTrips measures the round trip of the path.
type roundTrips struct {
	last time.Duration // 0: not yet measured
	// recent is the least round trip since a time, and older that of the period of
	// leastAge before it; 0: none was measured.
	recent, older time.Duration
	since         time.Time

	measuring bool
	sent      time.Time // of the last PING that measures
	pings     map[uint64]*ping
	nextPing  uint64
	probes    int // that are not answered
}

type ping struct {
	sent  time.Time
	rtt   time.Duration
	acked bool
	done  chan struct{}
}

const (
	pingMeasure = 'm'
	pingUser    = 'u'
	pingGoAway  = 'g'
	pingProbe   = 'p'
)

func pingData(kind byte, n uint64) (data [8]byte) {
	binary.BigEndian.PutUint64(data[:], n)
	data[0] = kind
	return data
}

// record records a measured round trip.
func (r *roundTrips) record(rtt time.Duration, now time.Time) {
	r.last = rtt
	switch age := now.Sub(r.since); {
	case age >= 2*leastAge:
		r.older, r.recent, r.since = 0, rtt, now
	case age >= leastAge:
		r.older, r.recent, r.since = r.recent, rtt, now
	default:
		r.recent = min(r.recent, rtt)
	}
}

// least returns the least round trip that was measured lately, within minRoundTrip and
// maxRoundTrip. It is 0 before the first measurement. A path that is full and a peer that
// answers late have longer round trips, which would let windows grow too soon.
func (r *roundTrips) least() time.Duration {
	if r.last == 0 {
		return 0
	}
	rtt := r.recent
	if r.older > 0 {
		rtt = min(rtt, r.older)
	}
	return min(max(rtt, minRoundTrip), maxRoundTrip)
}

// measure sends a PING, unless one is on its way or the last one is recent.
func (c *Conn) measure() {
	r := &c.rtt
	now := time.Now()
	if r.measuring || now.Sub(r.sent) < measureInterval {
		return
	}
	r.measuring, r.sent = true, now
	c.appendPing(false, pingData(pingMeasure, 0))
}

// pingAcked handles the answer to a PING of ours. It returns false if there was none.
func (c *Conn) pingAcked(data [8]byte) bool {
	r := &c.rtt
	kind := data[0]
	data[0] = 0
	n := binary.BigEndian.Uint64(data[:])
	switch {
	case kind == pingMeasure && r.measuring:
		r.measuring = false
		now := time.Now()
		r.record(now.Sub(r.sent), now)
	case kind == pingProbe && r.probes > 0:
		r.probes--
	case kind == pingGoAway && c.goingAway:
		c.sendLastGoAway()
	case kind == pingUser && r.pings[n] != nil:
		p := r.pings[n]
		delete(r.pings, n)
		now := time.Now()
		p.rtt, p.acked = now.Sub(p.sent), true
		r.record(p.rtt, now)
		close(p.done)
	default:
		return false
	}
	return true
}

func (r *roundTrips) failPings() {
	for _, p := range r.pings {
		close(p.done)
	}
	r.pings = nil
}

// Ping measures one round trip. It fails with ErrClosed or the context's error.
func (c *Conn) Ping(ctx context.Context) (time.Duration, error) {
	c.mu.Lock()
	if c.end != nil {
		c.mu.Unlock()
		return 0, ErrClosed
	}
	r := &c.rtt
	r.nextPing++
	n, p := r.nextPing, &ping{sent: time.Now(), done: make(chan struct{})}
	if r.pings == nil {
		r.pings = map[uint64]*ping{}
	}
	r.pings[n] = p
	c.appendPing(false, pingData(pingUser, n))
	c.flushInBackground()
	c.mu.Unlock()
	select {
	case <-p.done:
		if !p.acked {
			return 0, ErrClosed
		}
		return p.rtt, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(r.pings, n)
		c.mu.Unlock()
		return 0, ctx.Err()
	}
}

// Probe sends a PING and does not wait for its answer, so that a peer that is alive sends
// something.
func (c *Conn) Probe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		return
	}
	c.rtt.probes++
	c.appendPing(false, pingData(pingProbe, 0))
	c.flushInBackground()
}

// RTT returns the last measured round trip, or zero.
func (c *Conn) RTT() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rtt.last
}

// updateWindow handles WINDOW_UPDATE.
func (c *Conn) updateWindow(id, increment uint32) error {
	if increment < smallIncrement {
		if err := c.floods.chargeExplained("window_update_flood"); err != nil {
			return err
		}
	}
	if id == 0 {
		c.send.left += int(increment)
		if increment == 0 {
			return protocolError("window update of zero")
		}
		if c.send.left > maxWindow {
			return connError(http2.ErrCodeFlowControl, "the connection's window overflows")
		}
		c.passTurn()
		return nil
	}
	s := c.streams[id]
	if s == nil {
		return c.ifIdle(id, "window update")
	}
	if increment == 0 {
		return c.streamError(s, http2.ErrCodeProtocol)
	}
	s.sendWindow += int(increment)
	if s.sendWindow > maxWindow {
		return c.streamError(s, http2.ErrCodeFlowControl)
	}
	c.wakeLater(s)
	return nil
}
