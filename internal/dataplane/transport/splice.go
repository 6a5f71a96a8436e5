package transport

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

const (
	// fullReads consecutive full reads make a direction bulk, which the kernel then
	// splices.
	fullReads = 2
	// A direction stays bulk while minBulkBytes bytes pass in each bulkPeriod.
	bulkPeriod   = time.Second
	minBulkBytes = 1 << 20
	// resetGrace is how long after the failure of one side the other side may read what
	// the failed side had sent.
	resetGrace = 2 * time.Second
)

// Splice relays bytes between two TCP connections until both directions have ended with
// FIN, one side fails, or ctx ends, and all its goroutines have ended. It first writes
// earlyData to b. It forwards FIN as FIN, each direction separately. Any other end of
// one side resets the other. Before that, the other side gets what the failed side had
// sent, for at most resetGrace. The end of ctx resets both at once.
//
// Small data goes through a buffer that is held only while bytes move. The kernel
// splices bulk data. Splice owns both connections: it clears their deadlines and closes
// them.
func Splice(ctx context.Context, a, b *net.TCPConn, earlyData []byte) Result {
	s := &splice{proxyPair: proxyPair{first: a, second: b}, earlyData: earlyData}
	toSecond := make(chan struct{})
	return s.run(ctx,
		func() {
			defer close(toSecond)
			s.relay(a, b, First, Second, &s.sent)
		},
		func() {
			s.relay(b, a, Second, First, &s.received)
			<-toSecond
			s.passReset()
		})
}

type splice struct {
	proxyPair
	earlyData []byte
	bulk      atomic.Int64 // bytes that the kernel spliced

	failure sync.Mutex // guards what follows
	failed  Side       // Neither: no side has failed
	err     error      // why it failed
	until   time.Time  // the latest time to reset the other side
	read    [3]bool    // by Side: its end was read
}

// relay copies one direction to its end.
func (s *splice) relay(src, dst *net.TCPConn, from, to Side, count *atomic.Int64) {
	if from == First && len(s.earlyData) > 0 {
		if _, err := dst.Write(s.earlyData); err != nil {
			s.failAfterDelivery(to, err)
			return
		}
		s.earlyData = nil
	}
	side, err := s.copy(src, dst, from, to, count)
	if err == io.EOF {
		err = s.checkFIN(from, src)
	}
	if err != nil {
		s.failAfterDelivery(side, err)
		return
	}
	if err := s.sendFIN(to, dst); err != nil {
		s.failAfterDelivery(to, err)
		return
	}
	if s.directionEnded() || !s.recordRead(from) {
		return
	}
	if err := awaitReset(src); err != nil && !s.bothEnded() {
		s.failAfterDelivery(from, err)
	}
}

// copy copies until src's end, which is io.EOF, or an error and its side.
func (s *splice) copy(src, dst *net.TCPConn, from, to Side, count *atomic.Int64) (Side, error) {
	in, err := newSource(src)
	if err != nil {
		return from, err
	}
	out := socket.NewConn(dst)
	for full := 0; ; {
		if err := in.read(); err != nil {
			return from, err
		}
		n := in.n
		_, err := out.Write(in.buf[:n])
		in.release()
		if err != nil {
			return to, err
		}
		count.Add(int64(n))
		if full++; n < bufferSize {
			full = 0
		}
		if full < fullReads {
			continue
		}
		full = 0
		if side, err := s.copyBulk(src, dst, from, to, count); err != nil {
			return side, err
		}
	}
}

// copyBulk lets the kernel copy until few bytes come, dst stalls or no pipe is
// available.
func (s *splice) copyBulk(src, dst *net.TCPConn, from, to Side, count *atomic.Int64) (Side, error) {
	b, err := newBulk(src, dst, func(t time.Time) { s.setWriteDeadline(dst, t) })
	if err != nil {
		return from, err
	}
	since, moved := time.Now(), 0
	for {
		if _, err := b.fill(); err == errNoPipe {
			return from, nil
		} else if err != nil {
			return from, err
		}
		n, stalled, err := b.drain()
		count.Add(int64(n))
		s.bulk.Add(int64(n))
		if err != nil {
			return to, err
		}
		if moved += n; stalled {
			return from, nil
		}
		if now := time.Now(); now.Sub(since) >= bulkPeriod {
			if moved < minBulkBytes {
				return from, nil
			}
			since, moved = now, 0
		}
	}
}

// failAfterDelivery records that a side has failed, unless one has already. It ends the
// direction to that side at once. It ends the direction from it when all that the side
// had sent is written, or resetGrace has passed. passReset then resets both.
func (s *splice) failAfterDelivery(side Side, err error) {
	s.failure.Lock()
	defer s.failure.Unlock()
	if s.failed != Neither {
		return
	}
	s.failed, s.err, s.until = side, err, time.Now().Add(resetGrace)
	failed, other := s.first, s.second
	if side == Second {
		failed, other = other, failed
	}
	past := time.Unix(1, 0)
	failed.SetDeadline(s.until) // as a safeguard, because a failed connection does not block
	if s.read[side] {
		failed.SetReadDeadline(past)
	}
	other.SetReadDeadline(past)
	other.SetWriteDeadline(s.until)
}

// recordRead records that a side's end was read. It returns false if a side has failed
// meanwhile.
func (s *splice) recordRead(side Side) bool {
	s.failure.Lock()
	defer s.failure.Unlock()
	s.read[side] = true
	return s.failed == Neither
}

// setWriteDeadline sets the write deadline of a side. A failure caps it. The zero time
// is no deadline.
func (s *splice) setWriteDeadline(c *net.TCPConn, t time.Time) {
	s.failure.Lock()
	defer s.failure.Unlock()
	if s.failed != Neither && (t.IsZero() || t.After(s.until)) {
		t = s.until
	}
	c.SetWriteDeadline(t)
}

// passReset resets both sides if one has failed. It first waits until the peer of the
// other side has received what was written to it. Both directions must have ended.
func (s *splice) passReset() {
	if s.failed == Neither {
		return
	}
	other := s.first
	if s.failed == First {
		other = s.second
	}
	awaitDelivery(other.(*net.TCPConn), time.Until(s.until))
	s.fail(s.failed, s.err)
}
