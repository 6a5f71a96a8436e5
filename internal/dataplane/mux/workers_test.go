package mux

import (
	"testing"
	"testing/synctest"
	"unsafe"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// idleWorkers returns how many workers are idle once all goroutines are blocked.
func (c *Conn) idleWorkers() int {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.workers.idle)
}

// TestWorkersServeStreams: a new goroutine is made only if no worker is idle. Workers
// that are not needed for a trim interval end. So do all when the connection ends.
func TestWorkersServeStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := startPeer(t, Config{Handle: func(s *Stream) {
			<-release
			s.WriteHead(&message.Head{Status: 200}, nil, true)
		}})
		defer p.close()
		next := uint32(1)
		serve := func(streams int) {
			for range streams {
				p.headers(next, getBlock(), true)
				next += 2
			}
			for range streams {
				release <- struct{}{}
			}
			synctest.Wait()
			if n := p.conn.Load(); n != 0 {
				t.Errorf("%d of %d streams are still open", n, streams)
			}
		}
		want := func(when string, want int) {
			t.Helper()
			if n := p.conn.idleWorkers(); n != want {
				t.Errorf("%s: %d idle workers, want %d", when, n, want)
			}
		}
		serve(3)
		want("after three streams at once", 3)
		serve(1)
		serve(2)
		want("after fewer streams", 3)
		bubble.Pass(trimInterval)
		want("after a trim interval in which all were needed", 3)
		serve(1)
		bubble.Pass(trimInterval)
		want("after one in which one was needed", 1)
		serve(4)
		want("after four streams at once", 4)
		bubble.Pass(3 * trimInterval)
		want("after a pause", 0)
		serve(2)
		want("at the end", 2) // p.close waits until they have ended
	})
}

// TestStreamSize: a stream is allocated for each request, and the next larger size class
// of the allocator has 320 bytes.
func TestStreamSize(t *testing.T) {
	if size := unsafe.Sizeof(Stream{}); size > 288 {
		t.Errorf("a Stream has %d bytes, want at most 288", size)
	}
}
