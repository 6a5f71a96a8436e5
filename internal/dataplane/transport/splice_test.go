package transport

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// spliced is a Splice between a client and a server that the test plays.
type spliced struct {
	client, server *net.TCPConn
	done           chan Result
}

func newSpliced(t *testing.T) *spliced {
	t.Helper()
	client, near := pair(t)
	far, server := pair(t)
	s := &spliced{client, server, make(chan Result, 1)}
	ended := make(chan struct{})
	go func() { defer close(ended); s.done <- Splice(t.Context(), near, far, nil) }()
	t.Cleanup(func() { Reset(client); Reset(server); <-ended })
	return s
}

func (s *spliced) wait(t *testing.T) Result {
	t.Helper()
	select {
	case r := <-s.done:
		return r
	case <-time.After(testTimeout):
		t.Fatal("Splice does not return")
		return Result{}
	}
}

// upload writes for ever, until the connection breaks or the deadline is over.
func upload(c *net.TCPConn) error {
	_, err := io.Copy(struct{ io.Writer }{c}, endlessReader{})
	return err
}

// A server that refuses an upload answers and closes without reading the rest, which
// resets. Its answer must reach the client although writes to the server fail first.
func TestSpliceDeliversEarlyAnswer(t *testing.T) {
	answer := bytes.Repeat([]byte("413 "), 1<<10)
	for range 40 {
		s := newSpliced(t)
		var uploading sync.WaitGroup
		uploading.Go(func() { upload(s.client) })
		if err := AwaitReadable(s.server, testTimeout); err != nil {
			t.Fatal(err)
		}
		if _, err := s.server.Write(answer); err != nil {
			t.Fatal(err)
		}
		s.server.Close() // its receive queue is not empty: a reset
		// The error of the reset may have gone to the writer.
		if got, _ := io.ReadAll(s.client); !bytes.Equal(got, answer) {
			t.Errorf("the client received %d of %d bytes", len(got), len(answer))
		}
		if r := s.wait(t); r.Side != Second || r.Reason != WasReset {
			t.Errorf("%+v, want a reset by the second side", r)
		}
		uploading.Wait()
	}
}

// What waits in the gateway's queues when a side resets is delivered, too.
func TestSpliceDeliversQueuedBytesBeforeReset(t *testing.T) {
	s := newSpliced(t)
	s.client.SetReadBuffer(4 << 10)
	if _, err := s.client.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	if err := AwaitReadable(s.server, testTimeout); err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 48<<10)
	for i := range sent {
		sent[i] = byte(rand.Int())
	}
	s.server.SetWriteDeadline(time.Now().Add(testTimeout))
	if _, err := s.server.Write(sent); err != nil {
		t.Fatal(err)
	}
	awaitDelivery(s.server, testTimeout) // the gateway has it
	s.server.Close()
	if got, _ := io.ReadAll(s.client); !bytes.Equal(got, sent) {
		t.Errorf("the client received %d of %d bytes, or others", len(got), len(sent))
	}
	if r := s.wait(t); r.Side != Second || r.Reason != WasReset {
		t.Errorf("%+v, want a reset by the second side", r)
	}
}

// A client that does not read cannot keep the connection of a server that is gone.
func TestSpliceDeliveryTimesOut(t *testing.T) {
	t.Parallel()
	s := newSpliced(t)
	s.server.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	if err := upload(s.server); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%v, want full queues", err)
	}
	go upload(s.client) // so that a write to the server fails
	Reset(s.server)
	if r := s.wait(t); r.Side != Second || r.Reason != WasReset {
		t.Errorf("%+v, want a reset by the second side", r)
	}
}

// A direction that has ended does not delay the reset of the other.
func TestSplicePassesResetAtOnceWithEmptyQueue(t *testing.T) {
	s := newSpliced(t)
	s.client.CloseWrite()
	wantEnd(t, "server", s.server, "")
	begun := time.Now()
	Reset(s.server)
	wantReset(t, "client", s.client)
	if took := time.Since(begun); took >= resetGrace {
		t.Errorf("took %v", took)
	}
}

// Pipes are few: readers that take nothing must not hold any, and lose nothing either.
func TestStalledReadersHoldNoPipe(t *testing.T) {
	const readers = 50
	type stalled struct {
		*spliced
		sent [sha256.Size]byte
		n    int64
	}
	all := make([]stalled, readers)
	var writing sync.WaitGroup
	for i := range all {
		s := &all[i]
		s.spliced = newSpliced(t)
		writing.Go(func() {
			sum := sha256.New()
			src := rand.NewChaCha8([32]byte{byte(i)})
			buf := make([]byte, 64<<10)
			s.server.SetWriteDeadline(time.Now().Add(time.Second))
			for {
				src.Read(buf)
				n, err := s.server.Write(buf)
				sum.Write(buf[:n])
				s.n += int64(n)
				if err != nil {
					break
				}
			}
			sum.Sum(s.sent[:0])
		})
	}
	writing.Wait() // every queue is full
	for end := time.Now().Add(testTimeout); pipes.inUse() > 0; {
		if time.Now().After(end) {
			t.Fatalf("%d pipes are held for readers that take nothing", pipes.inUse())
		}
	}
	for i := range all {
		s := &all[i]
		s.server.CloseWrite()
		s.client.CloseWrite()
		sum := sha256.New()
		s.client.SetReadDeadline(time.Now().Add(testTimeout))
		n, err := io.Copy(struct{ io.Writer }{sum}, s.client)
		if n != s.n || err != nil || [sha256.Size]byte(sum.Sum(nil)) != s.sent {
			t.Errorf("reader %d received %d of %d bytes, or others, %v", i, n, s.n, err)
		}
	}
}

func TestPipePoolIsBounded(t *testing.T) {
	p := pipePool{max: 2}
	a, b := p.get(), p.get()
	if a == nil || b == nil || a == b {
		t.Fatalf("%v and %v, want two pipes", a, b)
	}
	if p.get() != nil {
		t.Error("a pipe beyond the bound")
	}
	p.put(a, true)
	if got := p.get(); got != a {
		t.Errorf("%v, want the one that was put back", got)
	}
	p.put(a, false)
	if got := p.get(); got == nil || got == a {
		t.Errorf("%v, want another for the one that was not empty", got)
	} else {
		p.put(got, true)
	}
	p.put(b, true)
	for _, idle := range p.idle {
		idle.close()
	}
	if p.inUse() != 0 {
		t.Errorf("%d in use at the end", p.inUse())
	}
}

// When all pipes are in use, bulk is copied.
func TestBulkWithoutPipes(t *testing.T) {
	setMost := func(n int) {
		pipes.mu.Lock()
		defer pipes.mu.Unlock()
		pipes.max = n
	}
	setMost(0)
	defer setMost(maxPipes)
	s := newSpliced(t)
	const size = 8 << 20
	go func() {
		s.server.Write(make([]byte, size))
		s.server.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, s.client); n != size || err != nil {
		t.Errorf("received %d bytes, %v", n, err)
	}
	s.client.CloseWrite()
	if r := s.wait(t); !r.Clean() {
		t.Errorf("%+v, want a clean end", r)
	}
}

// What bulk costs, from one socket through a Splice to another.
func BenchmarkSpliceBulk(b *testing.B) {
	client, near := pair(b)
	far, server := pair(b)
	done := make(chan Result, 1)
	go func() { done <- Splice(b.Context(), near, far, nil) }()
	client.SetDeadline(time.Time{})
	server.SetDeadline(time.Time{})
	const chunk = 1 << 20
	b.SetBytes(chunk)
	go func() {
		buf := make([]byte, chunk)
		for {
			if _, err := server.Write(buf); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, chunk)
	for b.Loop() {
		if _, err := io.ReadFull(client, buf); err != nil {
			b.Fatal(err)
		}
	}
	Reset(client)
	Reset(server)
	<-done
}
