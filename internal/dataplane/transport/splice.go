package transport

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fullReads in a row make a direction bulk, which the kernel then splices.
	fullReads = 2
	// A direction stays bulk while bulkLeast bytes pass in each bulkTime.
	bulkTime  = time.Second
	bulkLeast = 1 << 20
	// resetGrace is how long after the failure of one side the other may take what the
	// failed side had sent.
	resetGrace = 2 * time.Second
)

// Splice carries bytes between two TCP connections until both directions have ended with
// FIN, one side fails, or ctx ends, and returns when all its goroutines have. It first
// writes early to b. FIN is passed on as FIN, each direction for itself. Any other end of
// one side resets the other, but first the other gets what the failed side had sent, for
// at most resetGrace. The end of ctx resets both at once.
//
// Small data goes through a buffer that is held only while it moves; bulk is spliced in
// the kernel. Splice takes both connections over, clears their deadlines and closes them.
func Splice(ctx context.Context, a, b *net.TCPConn, early []byte) Result {
	s := &splice{carriage: carriage{first: a, second: b}, early: early}
	forth := make(chan struct{})
	return s.run(ctx,
		func() {
			defer close(forth)
			s.carry(a, b, First, Second, &s.forth)
		},
		func() {
			s.carry(b, a, Second, First, &s.back)
			<-forth
			s.passReset()
		})
}

type splice struct {
	carriage
	early []byte
	bulk  atomic.Int64 // bytes that the kernel spliced

	failure sync.Mutex // guards what follows
	failed  Side       // Neither: no side has failed
	err     error      // why it failed
	until   time.Time  // when the other side is reset at the latest
	read    [3]bool    // by Side: its end was read
}

// carry copies one direction to its end.
func (s *splice) carry(src, dst *net.TCPConn, from, to Side, count *atomic.Int64) {
	if from == First && len(s.early) > 0 {
		if _, err := dst.Write(s.early); err != nil {
			s.failAfterDelivery(to, err)
			return
		}
		s.early = nil
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
	if s.end() || !s.noteEnd(from) {
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
	for full := 0; ; {
		if err := in.read(); err != nil {
			return from, err
		}
		n := in.n
		_, err := dst.Write(in.buf[:n])
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

// copyBulk lets the kernel copy until little comes, dst stalls or there is no pipe.
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
		if now := time.Now(); now.Sub(since) >= bulkTime {
			if moved < bulkLeast {
				return from, nil
			}
			since, moved = now, 0
		}
	}
}

// failAfterDelivery notes that a side has failed, unless one has already. It ends the
// direction to that side at once, and the direction from it when all that the side had
// sent is written, or resetGrace has passed. passReset then ends the rest.
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
	failed.SetDeadline(s.until) // a failed connection does not block; this is for certainty
	if s.read[side] {
		failed.SetReadDeadline(past)
	}
	other.SetReadDeadline(past)
	other.SetWriteDeadline(s.until)
}

// noteEnd notes that a side's end was read. It returns false if a side has failed
// meanwhile.
func (s *splice) noteEnd(side Side) bool {
	s.failure.Lock()
	defer s.failure.Unlock()
	s.read[side] = true
	return s.failed == Neither
}

// setWriteDeadline sets the deadline of writes to a side, but no later one than a failure
// has set. The zero time is none.
func (s *splice) setWriteDeadline(c *net.TCPConn, t time.Time) {
	s.failure.Lock()
	defer s.failure.Unlock()
	if s.failed != Neither && (t.IsZero() || t.After(s.until)) {
		t = s.until
	}
	c.SetWriteDeadline(t)
}

// passReset resets both sides if one has failed: the other one after its peer has
// received what was written to it. Both directions must have ended.
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
