package h1

import (
	"io"
	"sync"
)

// bufferSize holds nearly every head. A larger head gets a buffer of its own.
const bufferSize = 16 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// maxEmptyReads is how often a connection may return neither bytes nor an error.
const maxEmptyReads = 100

// buffer holds bytes that were read from a connection and not consumed. It has memory
// only while there are such bytes or a read is in progress.
type buffer struct {
	r      io.Reader
	waiter Waiter // nil if r is none
	most   int    // the largest size

	// room and drop, for the waiter: allocated once and not for each read.
	roomFunc func() []byte
	dropFunc func()

	pooled     *[bufferSize]byte // nil if bytes is not from the pool
	bytes      []byte            // nil if there is no memory
	start, end int               // bytes[start:end] are unread
	err        error             // what r returned together with bytes
}

func (b *buffer) unread() []byte { return b.bytes[b.start:b.end] }

// fill adds at least one byte to the unread ones, or returns an error. The unread bytes
// must be fewer than b.most. It waits without memory if it can.
func (b *buffer) fill() error {
	if err := b.err; err != nil {
		b.err = nil
		return err
	}
	n, err := 0, error(nil)
	if b.bytes == nil && b.waiter != nil {
		n, err = b.waiter.ReadWhenReady(b.roomFunc, b.dropFunc)
	} else {
		n, err = readSome(b.r, b.room())
	}
	b.end += n
	if n > 0 {
		b.err = err
		return nil
	}
	b.release()
	return err
}

// room returns memory after the unread bytes.
func (b *buffer) room() []byte {
	b.makeRoom()
	return b.bytes[b.end:]
}

// makeRoom makes sure that there is memory after the unread bytes.
func (b *buffer) makeRoom() {
	switch {
	case b.bytes == nil:
		b.pooled = buffers.Get().(*[bufferSize]byte)
		b.bytes = b.pooled[:]
	case b.end < len(b.bytes):
	case b.start > 0:
		b.end = copy(b.bytes, b.unread())
		b.start = 0
	default:
		b.grow(min(2*len(b.bytes), b.most))
	}
}

func (b *buffer) grow(size int) {
	larger := make([]byte, size)
	n := copy(larger, b.unread())
	b.drop()
	b.bytes, b.end = larger, n
}

// consume marks n unread bytes as read, and gives the memory back after the last one.
func (b *buffer) consume(n int) {
	b.start += n
	b.release()
}

// release gives the memory back if there are no unread bytes.
func (b *buffer) release() {
	if b.bytes != nil && b.start == b.end {
		b.drop()
	}
}

func (b *buffer) drop() {
	if b.pooled != nil {
		buffers.Put(b.pooled)
	}
	b.pooled, b.bytes, b.start, b.end = nil, nil, 0, 0
}

// prepend puts a copy of p before the unread bytes.
func (b *buffer) prepend(p []byte) {
	if len(p) == 0 {
		return
	}
	both := append(p[:len(p):len(p)], b.unread()...)
	if b.bytes == nil {
		b.makeRoom()
	}
	if len(both) > len(b.bytes) {
		b.grow(len(both))
	}
	b.start, b.end = 0, copy(b.bytes, both)
}

// take copies unread bytes to p and consumes them.
func (b *buffer) take(p []byte) int {
	n := copy(p, b.unread())
	b.consume(n)
	return n
}

// readDirect reads from the connection to p, past the buffer, which must have no unread
// bytes.
func (b *buffer) readDirect(p []byte) (int, error) {
	if err := b.err; err != nil {
		b.err = nil
		return 0, err
	}
	n, err := readSome(b.r, p)
	if n > 0 {
		b.err = err
		return n, nil
	}
	return 0, err
}

func readSome(r io.Reader, p []byte) (int, error) {
	for range maxEmptyReads {
		if n, err := r.Read(p); n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}
