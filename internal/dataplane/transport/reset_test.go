package transport

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"
)

// A reset at once would drop what the peer has not received yet.
func TestResetDelivered(t *testing.T) {
	c, peer := pair(t)
	c.SetWriteBuffer(1 << 20)
	peer.SetReadBuffer(32 << 10)
	sent := bytes.Repeat([]byte("x"), 128<<10)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); ResetDelivered(c, testTimeout) }()
	got, err := io.ReadAll(peer)
	if len(got) != len(sent) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("received %d of %d bytes, then %v, want all and a reset", len(got), len(sent), err)
	}
	<-done
}

func TestResetDeliveredTimesOut(t *testing.T) {
	c, peer := pair(t)
	c.SetWriteBuffer(1 << 20)
	peer.SetReadBuffer(32 << 10)
	c.SetWriteDeadline(time.Now().Add(testTimeout))
	if _, err := c.Write(make([]byte, 128<<10)); err != nil {
		t.Fatal(err)
	}
	ResetDelivered(c, 50*time.Millisecond)
	if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a peer that does not read gets %v, want a reset", err)
	}
}

func TestResetDeliveredSkipsBrokenConnection(t *testing.T) {
	c, peer := pair(t)
	peer.SetReadBuffer(32 << 10)
	c.SetWriteBuffer(1 << 20)
	if _, err := c.Write(make([]byte, 128<<10)); err != nil {
		t.Fatal(err)
	}
	Reset(peer)
	begun := time.Now()
	ResetDelivered(c, testTimeout)
	if took := time.Since(begun); took >= testTimeout {
		t.Errorf("waited %v for a peer that is gone", took)
	}
}
