package transport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// line is all that lies between a caller and an application: two relays and, if wanted, a gateway's splice.
//
//	app ── plain ── Relay ══ tunnel ══ [Splice] ══ tunnel ══ Relay ── plain ── srv
type line struct {
	app, srv *net.TCPConn
	cancel   context.CancelFunc // ends the near relay
	wait     func() (near, far Result)
}

func newLine(t testing.TB, gateway bool) *line {
	t.Helper()
	app, nearPlain := pair(t)
	farPlain, srv := pair(t)
	dialed, accepted := pair(t)
	var goroutines sync.WaitGroup
	if gateway {
		onward, end := pair(t)
		in := accepted
		goroutines.Go(func() { Splice(t.Context(), in, onward, nil) })
		accepted = end
	}
	nearTun, farTun := tunnelOver(t, dialed, accepted)
	ctx, cancel := context.WithCancel(t.Context())
	var near, far Result
	goroutines.Go(func() { near = Relay(ctx, nearPlain, nearTun) })
	goroutines.Go(func() { far = Relay(t.Context(), farPlain, farTun) })
	wait := func() (Result, Result) { goroutines.Wait(); return near, far }
	t.Cleanup(func() { cancel(); Reset(app); Reset(srv); wait() })
	return &line{app, srv, cancel, wait}
}

func onLines(t *testing.T, do func(*testing.T, *line)) {
	for name, gateway := range map[string]bool{"direct": false, "over a gateway": true} {
		t.Run(name, func(t *testing.T) { do(t, newLine(t, gateway)) })
	}
}

func wantClean(t *testing.T, l *line) {
	t.Helper()
	near, far := l.wait()
	if !near.Clean() || !far.Clean() || near.Side != Neither || near.Err != nil {
		t.Errorf("near %+v, far %+v, want clean ends", near, far)
	}
	if near.Forth != far.Back || near.Back != far.Forth {
		t.Errorf("near %+v and far %+v disagree on the bytes", near, far)
	}
}

func TestHalfCloseByCaller(t *testing.T) {
	onLines(t, func(t *testing.T, l *line) {
		io.WriteString(l.app, "request")
		l.app.CloseWrite()
		wantEnd(t, "server", l.srv, "request")
		reply := string(bytes.Repeat([]byte("r"), 300_000))
		io.WriteString(l.srv, reply)
		l.srv.Close()
		wantEnd(t, "caller", l.app, reply)
		wantClean(t, l)
	})
}

func TestHalfCloseByServer(t *testing.T) {
	onLines(t, func(t *testing.T, l *line) {
		io.WriteString(l.srv, "220 ready")
		l.srv.CloseWrite()
		wantEnd(t, "caller", l.app, "220 ready")
		io.WriteString(l.app, "upload")
		l.app.Close()
		wantEnd(t, "server", l.srv, "upload")
		wantClean(t, l)
	})
}

func TestResetByCaller(t *testing.T) {
	onLines(t, func(t *testing.T, l *line) {
		io.WriteString(l.app, "x")
		io.ReadFull(l.srv, make([]byte, 1))
		Reset(l.app)
		wantReset(t, "server", l.srv)
		near, far := l.wait()
		if near.Side != First || near.Reason != WasReset || far.Side != Second || far.Reason != WasReset {
			t.Errorf("near %+v, far %+v", near, far)
		}
	})
}

func TestResetByServer(t *testing.T) {
	onLines(t, func(t *testing.T, l *line) {
		io.WriteString(l.srv, "half an ans")
		io.ReadFull(l.app, make([]byte, 11))
		Reset(l.srv)
		wantReset(t, "caller", l.app)
		near, far := l.wait()
		if near.Side != Second || far.Side != First || far.Reason != WasReset {
			t.Errorf("near %+v, far %+v", near, far)
		}
	})
}

// The caller has sent FIN, and dies while nothing moves: nobody reads from it and nobody writes to it.
func TestResetAfterHalfClose(t *testing.T) {
	for name, side := range map[string]func(*line) (dies, learns *net.TCPConn){
		"caller": func(l *line) (*net.TCPConn, *net.TCPConn) { return l.app, l.srv },
		"server": func(l *line) (*net.TCPConn, *net.TCPConn) { return l.srv, l.app },
	} {
		t.Run(name, func(t *testing.T) {
			onLines(t, func(t *testing.T, l *line) {
				dies, learns := side(l)
				dies.CloseWrite()
				wantEnd(t, "the other", learns, "")
				Reset(dies)
				wantBroken(t, learns)
				l.wait()
			})
		})
	}
}

// wantBroken waits for an error on a connection whose FIN was read already.
func wantBroken(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if err := awaitReset(c); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("%v, want a reset", err)
	}
}

func TestCancelResetsBothEnds(t *testing.T) {
	onLines(t, func(t *testing.T, l *line) {
		io.WriteString(l.app, "x")
		io.ReadFull(l.srv, make([]byte, 1))
		l.cancel()
		wantReset(t, "caller", l.app)
		wantReset(t, "server", l.srv)
		near, _ := l.wait()
		if near.Side != Neither || near.Reason != Cancelled || !errors.Is(near.Err, context.Canceled) {
			t.Errorf("near %+v", near)
		}
	})
}

// relayed is one relay whose tunnel's far end is in the test's hands.
func relayed(t *testing.T) (app *net.TCPConn, far *tls.Conn, wait func() Result) {
	app, plain := pair(t)
	near, far := tunnel(t)
	done := make(chan Result, 1)
	go func() { done <- Relay(t.Context(), plain, near) }()
	t.Cleanup(func() { Reset(app); far.NetConn().(*Raw).Reset() })
	return app, far, func() Result { return <-done }
}

func TestTunnelAborts(t *testing.T) {
	rawOf := func(c *tls.Conn) *net.TCPConn { return c.NetConn().(*Raw).Conn.(*net.TCPConn) }
	cases := map[string]struct {
		why    string
		abort  func(far *tls.Conn)
		reason Reason
	}{
		"FIN without close_notify": {"a killed gateway or agent, or someone on the path", func(far *tls.Conn) { rawOf(far).Close() }, Truncated},
		"half FIN":                 {"an injected FIN", func(far *tls.Conn) { rawOf(far).CloseWrite() }, Truncated},
		"reset":                    {"an abort of the far side", func(far *tls.Conn) { Reset(rawOf(far)) }, WasReset},
		"garbage": {"a record that was tampered with", func(far *tls.Conn) {
			rawOf(far).Write([]byte{23, 3, 3, 0, 30, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0})
		}, Failed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			app, far, wait := relayed(t)
			io.WriteString(far, "half an ans")
			io.ReadFull(app, make([]byte, 11))
			c.abort(far)
			wantReset(t, "application", app)
			if got := wait(); got.Side != Second || got.Reason != c.reason {
				t.Errorf("%+v, want reason %v of the second side: %s", got, c.reason, c.why)
			}
		})
	}
}

// close_notify ends one direction. If then the TCP connection ends although we have more to say, the far
// side has gone, and the application must not believe that it was heard.
func TestTunnelGoneAfterCloseNotify(t *testing.T) {
	app, far, wait := relayed(t)
	far.CloseWrite()
	wantEnd(t, "application", app, "")
	far.NetConn().Close()
	wantBroken(t, app)
	if got := wait(); got.Side != Second || got.Reason != Truncated {
		t.Errorf("%+v, want it truncated", got)
	}
}

func TestBytesAfterCloseNotify(t *testing.T) {
	app, far, wait := relayed(t)
	far.CloseWrite()
	wantEnd(t, "application", app, "")
	far.NetConn().(*Raw).Conn.SetWriteDeadline(time.Time{})
	far.NetConn().(*Raw).Conn.Write([]byte("more"))
	wantBroken(t, app)
	if got := wait(); !errors.Is(got.Err, ErrAfterEnd) {
		t.Errorf("%+v, want %v", got, ErrAfterEnd)
	}
}

// The application must not see a reset where the tunnel ended cleanly, nor lose bytes written just before.
func TestCleanEndOftenEnough(t *testing.T) {
	for range 50 {
		l := newLine(t, true)
		io.WriteString(l.app, "GET")
		io.ReadFull(l.srv, make([]byte, 3))
		io.WriteString(l.srv, "answer")
		l.srv.Close()
		wantEnd(t, "caller", l.app, "answer")
		l.app.Close()
		wantClean(t, l)
	}
}

func TestBulkBothWays(t *testing.T) {
	const size = 64 << 20
	onLines(t, func(t *testing.T, l *line) {
		l.app.SetDeadline(time.Now().Add(3 * patience))
		l.srv.SetDeadline(time.Now().Add(3 * patience))
		var both sync.WaitGroup
		for seed, ends := range [][2]*net.TCPConn{{l.app, l.srv}, {l.srv, l.app}} {
			sent, got := sha256.New(), sha256.New()
			both.Go(func() {
				src := rand.NewChaCha8([32]byte{byte(seed)})
				if _, err := io.CopyN(io.MultiWriter(ends[0], sent), src, size); err != nil {
					t.Errorf("send: %v", err)
				}
				ends[0].CloseWrite()
			})
			both.Go(func() {
				if n, err := io.Copy(got, ends[1]); n != size || err != nil {
					t.Errorf("received %d bytes, %v", n, err)
				}
			})
			defer func() {
				if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
					t.Error("other bytes came than were sent")
				}
			}()
		}
		both.Wait()
		wantClean(t, l)
	})
}

// The kernel tells of a reset once. A reader who comes after a writer was told sees an end, which must not be
// passed on as one: a server would take half an upload for the whole.
func TestAnEndAfterAResetIsNone(t *testing.T) {
	app, plain := pair(t)
	c := &carriage{first: plain}
	Reset(app)
	if _, err := io.Copy(plain, neverEnding{}); !errors.Is(err, unix.ECONNRESET) {
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

type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { return len(b), nil }

func TestAFINIsAnEnd(t *testing.T) {
	for name, ours := range map[string]bool{"before ours": false, "after ours": true} {
		app, plain := pair(t)
		c := &carriage{first: plain}
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

// A slow reader's peer answers every probe: it must not be taken for dead by the user timeout.
func TestCarriageLiftsTheUserTimeout(t *testing.T) {
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

// What a killed process leaves open the kernel closes, by FIN unless it was told otherwise beforehand. Tests on real clusters kill.
func TestCarriageLeavesResetsToTheKernel(t *testing.T) {
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
		"silent":            {"data is sent again and again", unix.TCPInfo{Unacked: 1, Last_ack_recv: 20_000, Retransmits: 5}, true},
		"slow reader":       {"its probes are answered", unix.TCPInfo{Last_ack_recv: 100_000, Probes: 1}, false},
		"shut, then silent": {"its probes are not answered", unix.TCPInfo{Last_ack_recv: 30_000, Probes: 6}, true},
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
	s := &splice{carriage: carriage{first: plainA, second: plainB}, early: []byte("header")}
	done := make(chan Result, 1)
	go func() {
		done <- s.run(t.Context(),
			func() { s.carry(plainA, plainB, First, Second, &s.forth) },
			func() { s.carry(plainB, plainA, Second, First, &s.back) })
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
	if r := <-done; !r.Clean() || r.Forth != size {
		t.Errorf("%+v", r)
	}
	if s.bulk.Load() < size/2 {
		t.Errorf("%d of %d bytes went the kernel's way", s.bulk.Load(), size)
	}
}

// A client that sent FIN and then dies while nothing moves: the gateway neither reads from it nor writes to it.
func TestSpliceNoticesAResetAfterFIN(t *testing.T) {
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
				for a.SetWriteDeadline(time.Now().Add(patience)) == nil {
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

func BenchmarkRelayLine(b *testing.B) {
	l := newLine(b, true)
	l.app.SetDeadline(time.Time{})
	l.srv.SetDeadline(time.Time{})
	go io.Copy(l.srv, l.srv)
	buf := make([]byte, 1024)
	for b.Loop() {
		l.app.Write(buf)
		if _, err := io.ReadFull(l.app, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// crypto/tls gives its close_notify 5 s and lets no write after it have any: a reader may be slower.
func TestRelayHasPatience(t *testing.T) {
	app, plain := pair(t)
	near, far := tunnel(t)
	done := make(chan Result, 1)
	go func() { done <- Relay(t.Context(), plain, near) }()
	io.WriteString(app, "x")
	io.ReadFull(far, make([]byte, 1)) // by now it runs
	if err := near.NetConn().(*Raw).SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(app, "more")
	app.CloseWrite()
	if rest, err := io.ReadAll(far); err != nil || string(rest) != "more" {
		t.Errorf("after a deadline that TLS has set for itself: %q, %v", rest, err)
	}
	far.CloseWrite()
	far.NetConn().Close()
	<-done
}

// Whoever closes first keeps the port for a minute: that should be the side with all the ports, which accepted.
func TestDiallerLetsTheOtherCloseFirst(t *testing.T) {
	app, far, wait := relayed(t)
	app.Close()
	wantEnd(t, "far side", far, "")
	far.CloseWrite()
	raw := far.NetConn().(*Raw).Conn
	raw.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := raw.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the dialling side closed at once: %d bytes, %v", n, err)
	}
	raw.Close()
	if got := wait(); !got.Clean() {
		t.Errorf("%+v, want a clean end", got)
	}
}
