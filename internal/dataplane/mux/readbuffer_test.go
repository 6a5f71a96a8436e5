package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

// TestIdleTCPConnectionHoldsNoReadBuffer also covers a read across the end of what has
// arrived, and the end of the connection.
func TestIdleTCPConnectionHoldsNoReadBuffer(t *testing.T) {
	far, near := tcpPair(t)
	reads := 0
	var b readBuffer
	b.init(socket.NewConn(near.(*net.TCPConn)), []byte("first"), func() error { reads++; return nil })
	defer b.free()
	idle := func() {
		t.Helper()
		near.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := b.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("peek: %v", err)
		}
		if b.buf != nil {
			t.Error("there is a buffer")
		}
		near.SetReadDeadline(time.Time{})
	}
	if p, err := b.Peek(5); string(p) != "first" || err != nil || reads != 0 {
		t.Errorf("peek: %q, %v, after %d reads", p, err, reads)
	}
	b.Discard(5)
	idle()
	io.WriteString(far, "abc")
	if p, err := b.Peek(2); string(p) != "ab" || err != nil {
		t.Errorf("peek: %q, %v", p, err)
	}
	b.Discard(1)
	io.WriteString(far, "def")
	if p, err := b.Peek(5); string(p) != "bcdef" || err != nil || b.Buffered() != 5 {
		t.Errorf("peek: %q, %v", p, err)
	}
	b.Discard(5)
	idle()
	io.WriteString(far, "g")
	far.Close()
	if p, err := b.Peek(2); string(p) != "g" || err != io.EOF {
		t.Errorf("peek: %q, %v", p, err)
	}
	b.Discard(1)
	if err := b.Discard(1); err != io.EOF {
		t.Errorf("discard: %v", err)
	}
}

// TestReceivedBytesComeFirst: what was read to recognize HTTP/2 is the begin of the
// preface.
func TestReceivedBytesComeFirst(t *testing.T) {
	addr := listen(t, func(nc net.Conn) {
		received := make([]byte, 20)
		if _, err := io.ReadFull(nc, received); err != nil {
			t.Error(err)
		}
		New(nc, Config{Handle: echo, Received: received}).Run(context.Background())
	})
	c := dialMux(t, addr, Config{})
	s, err := c.Open(requestHead("GET", "/"), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := readResponse(s); status != 200 || err != nil {
		t.Errorf("response %d, %v", status, err)
	}
}

// TestLastFramesArriveBeforeTheClose: a client that still sends gets the GOAWAY, not a
// connection reset.
func TestLastFramesArriveBeforeTheClose(t *testing.T) {
	var wg sync.WaitGroup
	defer wg.Wait()
	far, near := tcpPair(t)
	c := New(near, Config{Handle: func(s *Stream) {
		s.WriteHead(&message.Head{Status: 200}, nil, true)
	}})
	wg.Go(func() { c.Run(context.Background()) })
	io.WriteString(far, http2.ClientPreface)
	fr := http2.NewFramer(far, far)
	fr.AllowIllegalWrites = true
	fr.WriteSettings()
	fr.WriteData(1, true, nil) // on an idle stream
	for range 100 {
		fr.WritePing(false, [8]byte{})
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("no GOAWAY: %v", err)
		}
		if f.Header().Type == http2.FrameGoAway {
			break
		}
	}
	far.Close()
}
