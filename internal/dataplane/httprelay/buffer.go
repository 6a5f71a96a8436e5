package httprelay

import "sync"

const (
	// bufferSize is how much of a body is moved at a time.
	bufferSize = 32 << 10
	// smallBufferSize holds most bodies that come together with their head. A request
	// holds its buffer while frames of others join its write, so many are in use at once.
	smallBufferSize = 4 << 10
)

// A buffer is a part of a body. It belongs to a pool.
type buffer struct {
	b    []byte
	pool *bufferPool
}

func (b *buffer) free() { b.pool.free.Put(b) }

// A bufferPool has buffers of one size.
type bufferPool struct {
	size int
	free sync.Pool
}

func (p *bufferPool) get() *buffer {
	if b, ok := p.free.Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, p.size), pool: p}
}

var (
	smallBuffers = bufferPool{size: smallBufferSize}
	largeBuffers = bufferPool{size: bufferSize}
)

// readBuffered is ReadBuffered of a stream into a buffer, which is large only if it must
// be. The caller must free it, also after an error.
func readBuffered(s Stream) (buf *buffer, n int, end bool, err error) {
	buf = smallBuffers.get()
	n, end, err = s.ReadBuffered(buf.b)
	if err != nil || end || n < len(buf.b) {
		return buf, n, end, err
	}
	large := largeBuffers.get()
	copy(large.b, buf.b)
	buf.free()
	more, end, err := s.ReadBuffered(large.b[n:])
	return large, n + more, end, err
}
