package mux

import (
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

// readBuffer is the read loop's buffer. Unlike bufio.Reader it holds no memory while a
// TCP connection is idle: it waits until the socket is readable before it takes a buffer.
// With other connections, TLS for instance, it keeps one.
type readBuffer struct {
	nc     net.Conn
	before func() error // called before each read of nc
	raw    syscall.RawConn
	ready  func(fd uintptr) bool // readReady, as a value that is made once

	buf  *readBlock // nil if there is none
	r, w int        // buf[r:w] is unread

	// The result of readReady.
	n   int
	err error
}

type readBlock [readBufferSize]byte

var readBlocks = sync.Pool{New: func() any { return new(readBlock) }}

// init prepares the buffer. The bytes that were received before are returned first.
func (b *readBuffer) init(nc net.Conn, received []byte, before func() error) {
	b.nc, b.before = nc, before
	if tcp, ok := nc.(*socket.Conn); ok {
		b.raw, b.ready = tcp.Raw(), b.readReady
	}
	if len(received) > 0 {
		b.buf = readBlocks.Get().(*readBlock)
		b.w = copy(b.buf[:], received)
	}
}

// Buffered returns the number of bytes that Peek returns without a read.
func (b *readBuffer) Buffered() int { return b.w - b.r }

// Peek returns the next n bytes, at most readBufferSize. They are valid until the next
// call of Peek, Read or Discard. With an error it returns what there is.
func (b *readBuffer) Peek(n int) ([]byte, error) {
	for b.w-b.r < n {
		if err := b.fill(); err != nil {
			return b.unread(), err
		}
	}
	return b.unread()[:n], nil
}

func (b *readBuffer) unread() []byte {
	if b.buf == nil {
		return nil
	}
	return b.buf[b.r:b.w]
}

// Discard skips n bytes.
func (b *readBuffer) Discard(n int) error {
	for n > 0 {
		if b.r == b.w {
			if err := b.fill(); err != nil {
				return err
			}
		}
		skipped := min(n, b.w-b.r)
		b.r += skipped
		n -= skipped
	}
	return nil
}

// Read is for the framer.
func (b *readBuffer) Read(p []byte) (int, error) {
	if b.r == b.w {
		if err := b.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.unread())
	b.r += n
	return n, nil
}

// fill makes one read.
func (b *readBuffer) fill() error {
	if b.r == b.w {
		b.r, b.w = 0, 0
		if b.raw != nil {
			b.free()
		}
	} else if b.r > 0 {
		b.w = copy(b.buf[:], b.buf[b.r:b.w])
		b.r = 0
	}
	if err := b.before(); err != nil {
		return err
	}
	if b.buf == nil && b.raw != nil {
		b.n, b.err = 0, nil
		if err := b.raw.Read(b.ready); err != nil {
			return err
		}
		b.w = b.n
		return b.err
	}
	if b.buf == nil {
		b.buf = readBlocks.Get().(*readBlock)
	}
	n, err := b.nc.Read(b.buf[b.w:])
	b.w += n
	if n > 0 {
		return nil
	}
	return err
}

// readReady reads from a socket into a buffer that it takes. It returns false if nothing
// has arrived, and is then called again once the socket is readable.
func (b *readBuffer) readReady(fd uintptr) bool {
	buf := readBlocks.Get().(*readBlock)
	n, err := socket.Read(fd, buf[:])
	switch {
	case err == nil && n > 0:
		b.buf, b.n = buf, n
		return true
	case err == nil:
		b.err = io.EOF
	case err != syscall.EAGAIN:
		b.err = &net.OpError{Op: "read", Net: "tcp", Err: err}
	}
	readBlocks.Put(buf)
	return err != syscall.EAGAIN
}

// free returns the buffer.
func (b *readBuffer) free() {
	if b.buf != nil {
		readBlocks.Put(b.buf)
		b.buf = nil
	}
}
