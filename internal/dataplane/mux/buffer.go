package mux

import "sync"

// chunk is a piece of a stream's receive buffer. Bytes r to w are unread.
type chunk struct {
	next *chunk
	r, w int
	buf  []byte
	pool *sync.Pool
}

const (
	smallChunk = 2 << 10
	largeChunk = 16 << 10
)

var smallChunks, largeChunks sync.Pool

func newChunk(size int) *chunk {
	pool, capacity := &smallChunks, smallChunk
	if size > smallChunk {
		pool, capacity = &largeChunks, largeChunk
	}
	if k, ok := pool.Get().(*chunk); ok {
		return k
	}
	return &chunk{buf: make([]byte, capacity), pool: pool}
}

func (k *chunk) free() {
	k.next, k.r, k.w = nil, 0, 0
	k.pool.Put(k)
}

// recvBuffer holds the unread bytes of a stream's body in a list of chunks.
type recvBuffer struct {
	first, last *chunk
	n           int
}

// append copies p. The caller bounds the buffer by the stream's window.
func (b *recvBuffer) append(p []byte) {
	b.n += len(p)
	for len(p) > 0 {
		if b.last == nil || b.last.w == len(b.last.buf) {
			// The first chunk is small, since most bodies are.
			size := len(p)
			if b.last != nil {
				size = largeChunk
			}
			k := newChunk(size)
			if b.last == nil {
				b.first = k
			} else {
				b.last.next = k
			}
			b.last = k
		}
		n := copy(b.last.buf[b.last.w:], p)
		b.last.w += n
		p = p[n:]
	}
}

// take moves up to len(p) bytes into p.
func (b *recvBuffer) take(p []byte) int {
	total := 0
	for len(p) > 0 && b.first != nil {
		k := b.first
		n := copy(p, k.buf[k.r:k.w])
		k.r += n
		total += n
		p = p[n:]
		if k.r == k.w {
			b.first = k.next
			if b.first == nil {
				b.last = nil
			}
			k.free()
		}
	}
	b.n -= total
	return total
}

// drop frees everything.
func (b *recvBuffer) drop() {
	for k := b.first; k != nil; {
		next := k.next
		k.free()
		k = next
	}
	*b = recvBuffer{}
}

// block is a pooled byte slice: a raw header block, or frames to be written.
type block struct{ b []byte }

// maxPooledBlock keeps a rare large block out of the pool.
const maxPooledBlock = 128 << 10

var blocks = sync.Pool{New: func() any { return &block{b: make([]byte, 0, 2<<10)} }}

func newBlock() *block { return blocks.Get().(*block) }

// outputs are blocks for frames to be written. They have a pool of their own, because
// they grow much larger than header blocks.
var outputs = sync.Pool{New: func() any { return &block{b: make([]byte, 0, 4<<10)} }}

func newOutput() *block { return outputs.Get().(*block) }

func freeOutput(k *block) {
	if cap(k.b) <= maxPooledBlock {
		k.b = k.b[:0]
		outputs.Put(k)
	}
}

// free may be called on nil.
func (k *block) free() {
	if k != nil && cap(k.b) <= maxPooledBlock {
		k.b = k.b[:0]
		blocks.Put(k)
	}
}
