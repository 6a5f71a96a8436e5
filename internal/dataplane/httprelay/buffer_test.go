package httprelay

import (
	"strings"
	"testing"
)

// TestReadBuffered: all that has come of a body is read at once, up to bufferSize, so that
// it is written together with its head.
func TestReadBuffered(t *testing.T) {
	for _, size := range []int{0, 1, smallBufferSize - 1, smallBufferSize, smallBufferSize + 1, bufferSize, bufferSize + 1} {
		body := strings.Repeat("0123456789abcdef!", size/17+1)[:size]
		s := newFake()
		s.pending = body
		buf, n, end, err := readBuffered(s)
		if want := min(size, bufferSize); n != want || end || err != nil || string(buf.b[:n]) != body[:n] {
			t.Errorf("%d bytes: %d, %v, %v, want %d", size, n, end, err, want)
		}
		if large := len(buf.b) == bufferSize; large != (size >= smallBufferSize) {
			t.Errorf("%d bytes are in a buffer of %d", size, len(buf.b))
		}
		buf.free()
	}
}
