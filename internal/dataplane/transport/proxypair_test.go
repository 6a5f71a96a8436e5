package transport

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel tells of a reset once. A reader who comes after a writer was told sees an
// end, which must not be passed on as one: a server would take half an upload for the
// whole.
func TestEOFAfterResetIsAReset(t *testing.T) {
	app, plain := pair(t)
	c := &proxyPair{first: plain}
	Reset(app)
	if _, err := io.Copy(plain, endlessReader{}); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("writer was told %v", err)
	}
	src, err := newSource(plain)
	if err != nil {
		t.Fatal(err)
	}
	if err := src.read(); err != io.EOF {
		t.Fatalf("reader was told %v: the kernel has changed its ways, and checkFIN may go", err)
	}
	if err := c.checkFIN(First, plain); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

type endlessReader struct{}

func (endlessReader) Read(b []byte) (int, error) { return len(b), nil }

func TestFINIsCleanEnd(t *testing.T) {
	for name, ours := range map[string]bool{"before ours": false, "after ours": true} {
		app, plain := pair(t)
		c := &proxyPair{first: plain}
		if ours {
			if err := c.sendFIN(First, plain); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, "application", app, "")
		}
		app.CloseWrite()
		wantEnd(t, "relay", plain, "")
		if err := c.checkFIN(First, plain); err != nil {
			t.Errorf("%s: %v, want none", name, err)
		}
	}
}

// A slow reader's peer answers every probe: it must not be taken for dead by the user
// timeout.
func TestSpliceClearsUserTimeout(t *testing.T) {
	a, plainA := pair(t)
	b, plainB := pair(t)
	done := make(chan Result, 1)
	go func() { done <- Splice(t.Context(), plainA, plainB, nil) }()
	io.WriteString(a, "x")
	io.ReadFull(b, make([]byte, 1))
	for _, c := range []*net.TCPConn{plainA, plainB} {
		var ms int
		if err := control(c, func(fd int) (err error) {
			ms, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			return err
		}); err != nil || ms != 0 {
			t.Errorf("user timeout %d ms, %v; want none", ms, err)
		}
	}
	Reset(a)
	<-done
}

// What a killed process leaves open the kernel closes, by FIN unless it was told
// otherwise beforehand. Tests on real clusters kill.
func TestSpliceSetsLingerForKill(t *testing.T) {
	a, nearPlain := pair(t)
	nearTun, far := pair(t)
	lingers := func() int {
		var on int
		if err := control(nearPlain, func(fd int) (err error) {
			on, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LINGER)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return on
	}
	if lingers() != 0 {
		t.Fatal("it lingers from the start: the test shows nothing")
	}
	var goroutines sync.WaitGroup
	goroutines.Go(func() { Splice(t.Context(), nearPlain, nearTun, []byte("first")) })
	io.ReadFull(far, make([]byte, 5)) // by now it runs
	if lingers() != 1 {
		t.Error("a process killed now would end its connections as if they were done")
	}
	a.CloseWrite()
	io.WriteString(far, "the rest")
	far.CloseWrite()
	wantEnd(t, "caller", a, "the rest")
	goroutines.Wait()
}

func TestDead(t *testing.T) {
	cases := map[string]struct {
		why  string
		info unix.TCPInfo
		dead bool
	}{
		"idle":              {"nothing was asked of the peer", unix.TCPInfo{Last_ack_recv: 60_000}, false},
		"busy":              {"acknowledgements come", unix.TCPInfo{Unacked: 10, Last_ack_recv: 5, Retransmits: 1}, false},
		"slow path":         {"a lossy path retransmits, but is heard", unix.TCPInfo{Unacked: 10, Last_ack_recv: 2_000, Retransmits: 6}, false},
		"just sent":         {"after idleness the last answer is old at first", unix.TCPInfo{Unacked: 1, Last_ack_recv: 25_000, Retransmits: 1}, false},
		"silent":            {"data is sent again and again", unix.TCPInfo{Unacked: 1, Last_ack_recv: 60_000, Retransmits: 5}, true},
		"slow reader":       {"its probes are answered", unix.TCPInfo{Last_ack_recv: 100_000, Probes: 1}, false},
		"shut, then silent": {"its probes are not answered", unix.TCPInfo{Last_ack_recv: 60_000, Probes: 6}, true},
	}
	for name, c := range cases {
		if got := dead(&c.info); got != c.dead {
			t.Errorf("%s: dead %v, want %v: %s", name, got, c.dead, c.why)
		}
	}
}

func TestSpliceWritesFirstBytesAndUsesTheKernel(t *testing.T) {
	a, plainA := pair(t)
	b, plainB := pair(t)
	s := &splice{proxyPair: proxyPair{first: plainA, second: plainB}, earlyData: []byte("header")}
	done := make(chan Result, 1)
	go func() {
		done <- s.run(t.Context(),
			func() { s.relay(plainA, plainB, First, Second, &s.sent) },
			func() { s.relay(plainB, plainA, Second, First, &s.received) })
	}()
	const size = 32 << 20
	go func() {
		a.Write(make([]byte, size))
		a.CloseWrite()
	}()
	got, err := io.ReadAll(b)
	if err != nil || len(got) != size+6 || string(got[:6]) != "header" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	b.Close()
	wantEnd(t, "a", a, "")
	if r := <-done; !r.Clean() || r.Sent != size {
		t.Errorf("%+v", r)
	}
	if s.bulk.Load() < size/2 {
		t.Errorf("%d of %d bytes went the kernel's way", s.bulk.Load(), size)
	}
}

// A client that sent FIN and then dies while nothing moves: the gateway neither reads
// from it nor writes to it.
func TestSpliceDetectsResetAfterFIN(t *testing.T) {
	a, plainA := pair(t)
	b, plainB := pair(t)
	done := make(chan Result, 1)
	go func() { done <- Splice(t.Context(), plainA, plainB, nil) }()
	a.CloseWrite()
	wantEnd(t, "b", b, "")
	Reset(a)
	wantBroken(t, b)
	Reset(b)
	if r := <-done; r.Side != First || r.Reason != WasReset {
		t.Errorf("%+v, want a reset by the first side", r)
	}
}

func TestSpliceAborts(t *testing.T) {
	for name, bulk := range map[string]int{"small": 10, "bulk": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			a, plainA := pair(t)
			b, plainB := pair(t)
			done := make(chan Result, 1)
			go func() { done <- Splice(t.Context(), plainA, plainB, nil) }()
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for a.SetWriteDeadline(time.Now().Add(testTimeout)) == nil {
					if _, err := a.Write(make([]byte, bulk)); err != nil {
						return
					}
				}
			}()
			io.ReadFull(b, make([]byte, bulk))
			Reset(b)
			if r := <-done; r.Side != Second || r.Reason != WasReset {
				t.Errorf("%+v, want a reset by the second side", r)
			}
			<-sent
		})
	}
}
