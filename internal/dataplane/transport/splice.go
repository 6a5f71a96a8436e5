package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// fullReads in a row make a direction bulk, which the kernel then splices.
	fullReads = 2
	// bulkTime is how long a direction stays bulk before it is asked again whether it is.
	bulkTime = time.Second
	// bulkLeast is what must have passed in bulkTime for a direction to stay bulk.
	bulkLeast = 1 << 20
	bulkMost  = 1 << 40
)

// Splice carries bytes between two TCP connections until both directions have ended with FIN, one side
// aborts, or ctx ends, and returns once nothing of it runs any more. It first writes first to b. FIN is
// passed on as FIN, each direction for itself; any other end of one side resets the other.
//
// Small data goes through a buffer that is held only while it moves; bulk is spliced in the kernel. Splice
// takes both connections over, clears their deadlines and closes them.
func Splice(ctx context.Context, a, b *net.TCPConn, first []byte) Result {
	s := &splice{carriage: carriage{first: a, second: b}, early: first}
	return s.run(ctx,
		func() { s.carry(a, b, First, Second, &s.forth) },
		func() { s.carry(b, a, Second, First, &s.back) })
}

type splice struct {
	carriage
	early []byte
	bulk  atomic.Int64 // bytes that went the kernel's way
}

// carry copies one direction to its end.
func (s *splice) carry(src, dst *net.TCPConn, from, to Side, count *atomic.Int64) {
	if from == First && len(s.early) > 0 {
		if _, err := dst.Write(s.early); err != nil {
			s.fail(to, err)
			return
		}
		s.early = nil
	}
	side, err := s.copy(src, dst, from, to, count)
	if err == io.EOF {
		err = s.checkFIN(from, src)
	}
	if err != nil {
		s.fail(side, err)
		return
	}
	if err := s.sendFIN(to, dst); err != nil {
		s.fail(to, err)
		return
	}
	if s.end() {
		return
	}
	if err := awaitReset(src); err != nil && !s.bothEnded() {
		s.fail(from, err)
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

// copyBulk lets the kernel copy while much comes. Its pipe is taken for bulkTime at a time, never while
// the connection idles for longer.
func (s *splice) copyBulk(src, dst *net.TCPConn, from, to Side, count *atomic.Int64) (Side, error) {
	defer src.SetReadDeadline(time.Time{})
	for {
		if err := src.SetReadDeadline(time.Now().Add(bulkTime)); err != nil {
			return from, err
		}
		n, err := dst.ReadFrom(&io.LimitedReader{R: src, N: bulkMost})
		count.Add(n)
		s.bulk.Add(n)
		switch {
		case err == nil:
			return from, io.EOF
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if closed(dst) {
				return to, err
			}
			return from, err
		case n < bulkLeast:
			return from, nil
		}
	}
}

// closed reports whether the kernel has given a connection up, which tells whose error splice returned.
func closed(c *net.TCPConn) bool {
	const tcpClose = 7 // include/net/tcp_states.h
	info, err := tcpInfo(c)
	return err != nil || info.State == tcpClose
}

func tcpInfo(c *net.TCPConn) (*unix.TCPInfo, error) {
	conn, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var info *unix.TCPInfo
	if cerr := conn.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); cerr != nil {
		return nil, cerr
	}
	return info, err
}
