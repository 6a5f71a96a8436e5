package transport

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestReadWhenReady: what a read returns, and that it holds no memory while it waits.
func TestReadWhenReady(t *testing.T) {
	near, far := pair(t)
	c := NewReadableConn(near)
	var held, attempts atomic.Int32
	buf := make([]byte, 8)
	read := func() (string, error) {
		n, err := c.ReadWhenReady(
			func() []byte { held.Add(1); attempts.Add(1); return buf },
			func() { held.Add(-1) })
		return string(buf[:n]), err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if got, err := read(); got != "hello" || err != nil || held.Swap(0) != 1 {
			t.Errorf("%q, %v", got, err)
		}
	}()
	for end := time.Now().Add(5 * time.Second); attempts.Load() == 0 || held.Load() != 0; {
		if time.Now().After(end) {
			t.Fatalf("holds %d buffers while it waits, after %d attempts", held.Load(), attempts.Load())
		}
	}
	if !c.IsQuiet() {
		t.Error("not quiet while nothing has come")
	}
	far.Write([]byte("hello"))
	<-done
	near.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := read(); !errors.Is(err, os.ErrDeadlineExceeded) || held.Load() != 0 {
		t.Errorf("after the deadline: %v, %d buffers held", err, held.Load())
	}
	near.SetReadDeadline(time.Time{})
	far.CloseWrite()
	if err := c.WaitReadable(); err != nil {
		t.Error(err)
	}
	if _, err := read(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	Reset(far)
	near, far = pair(t)
	c = NewReadableConn(near)
	Reset(far)
	if _, err := read(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %v", err)
	}
}
