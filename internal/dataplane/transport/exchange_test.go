package transport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// testPath is all that lies between a caller and an application: two exchanges and, if
// wanted, a gateway's splice.
//
//	app ── plain ── Exchange ══ session ══ [Splice] ══ session ══ Exchange ── plain ── srv
type testPath struct {
	app, srv *net.TCPConn
	cancel   context.CancelCauseFunc // ends the near exchange
	wait     func() (near, far Result)
	sessions [2]*tunnel.Conn // the near one's, the far one's
	sockets  []*net.TCPConn  // of the proxies
}

func newTestPath(t testing.TB, gateway bool) *testPath {
	t.Helper()
	return newTestPathOf(t, gateway, nil)
}

// newTestPathOf returns a testPath whose exchanges share a memory.
func newTestPathOf(t testing.TB, gateway bool, memory Memory) *testPath {
	t.Helper()
	dialed, accepted := pair(t)
	sockets := []*net.TCPConn{dialed}
	var splice sync.WaitGroup
	if gateway {
		onward, end := pair(t)
		in := accepted
		sockets = append(sockets, in, onward)
		splice.Go(func() { Splice(t.Context(), in, onward, nil) })
		accepted = end
	}
	sockets = append(sockets, accepted)
	nearTun, farTun := tunnelOver(t, dialed, accepted)
	near, far := tunnel.NewConn(nearTun), tunnel.NewConn(farTun)
	t.Cleanup(func() {
		RawOf(near).Reset()
		RawOf(far).Reset()
		splice.Wait()
	})
	l := testPathOver(t, near, far, memory)
	l.sockets = append(l.sockets, sockets...)
	return l
}

// testPathOver begins an exchange.
func testPathOver(t testing.TB, nearSession, farSession *tunnel.Conn, memory Memory) *testPath {
	t.Helper()
	app, nearPlain := pair(t)
	farPlain, srv := pair(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	var goroutines sync.WaitGroup
	var near, far Result
	goroutines.Go(func() { near = Exchange(ctx, nearPlain, nearSession, memory, nil) })
	goroutines.Go(func() { far = Exchange(t.Context(), farPlain, farSession, memory, nil) })
	wait := func() (Result, Result) { goroutines.Wait(); return near, far }
	t.Cleanup(func() { cancel(nil); Reset(app); Reset(srv); wait() })
	return &testPath{app, srv, cancel, wait, [2]*tunnel.Conn{nearSession, farSession}, []*net.TCPConn{nearPlain, farPlain}}
}

func forEachTestPath(t *testing.T, do func(*testing.T, *testPath)) {
	for name, gateway := range map[string]bool{"direct": false, "over a gateway": true} {
		t.Run(name, func(t *testing.T) { do(t, newTestPath(t, gateway)) })
	}
}

// wantReusable holds another exchange over the sessions of one that is over.
func wantReusable(t *testing.T, l *testPath) {
	t.Helper()
	near, far := l.wait()
	if !near.Reusable || !far.Reusable {
		t.Errorf("near %+v, far %+v: the session should be ready for another exchange", near, far)
		return
	}
	// The next exchange is opened as agents do it, so that a late RESET is passed over.
	opened := make(chan error, 1)
	go func() {
		_, err := l.sessions[1].ReadOpen()
		opened <- errors.Join(err, tunnel.WriteOpenAnswer(l.sessions[1], tunnel.Code_OK))
	}()
	if err := errors.Join(l.sessions[0].OpenNext(t.Context(), 0, nil), <-opened); err != nil {
		t.Errorf("the next OPEN: %v", err)
		return
	}
	next := testPathOver(t, l.sessions[0], l.sessions[1], nil)
	io.WriteString(next.app, "again")
	next.app.CloseWrite()
	wantEnd(t, "server", next.srv, "again")
	io.WriteString(next.srv, "and again")
	next.srv.Close()
	wantEnd(t, "caller", next.app, "and again")
	wantClean(t, next)
}

func wantClean(t *testing.T, l *testPath) {
	t.Helper()
	near, far := l.wait()
	if !near.Clean() || !far.Clean() || near.Side != Neither || near.Err != nil {
		t.Errorf("near %+v, far %+v, want clean ends", near, far)
	}
	if near.Sent != far.Received || near.Received != far.Sent {
		t.Errorf("near %+v and far %+v disagree on the bytes", near, far)
	}
}

func TestHalfCloseByCaller(t *testing.T) {
	forEachTestPath(t, func(t *testing.T, l *testPath) {
		io.WriteString(l.app, "request")
		l.app.CloseWrite()
		wantEnd(t, "server", l.srv, "request")
		reply := string(bytes.Repeat([]byte("r"), 300_000))
		io.WriteString(l.srv, reply)
		l.srv.Close()
		wantEnd(t, "caller", l.app, reply)
		wantClean(t, l)
		wantReusable(t, l)
	})
}

func TestHalfCloseByServer(t *testing.T) {
	forEachTestPath(t, func(t *testing.T, l *testPath) {
		io.WriteString(l.srv, "220 ready")
		l.srv.CloseWrite()
		wantEnd(t, "caller", l.app, "220 ready")
		io.WriteString(l.app, "upload")
		l.app.Close()
		wantEnd(t, "server", l.srv, "upload")
		wantClean(t, l)
		wantReusable(t, l)
	})
}

func TestResetByCaller(t *testing.T) {
	forEachTestPath(t, func(t *testing.T, l *testPath) {
		io.WriteString(l.app, "x")
		io.ReadFull(l.srv, make([]byte, 1))
		Reset(l.app)
		wantReset(t, "server", l.srv)
		near, far := l.wait()
		if near.Side != First || near.Reason != WasReset || far.Side != Second || far.Reason != WasReset {
			t.Errorf("near %+v, far %+v", near, far)
		}
		wantReusable(t, l)
	})
}

func TestResetByServer(t *testing.T) {
	forEachTestPath(t, func(t *testing.T, l *testPath) {
		io.WriteString(l.srv, "half an ans")
		io.ReadFull(l.app, make([]byte, 11))
		Reset(l.srv)
		wantReset(t, "caller", l.app)
		near, far := l.wait()
		if near.Side != Second || far.Side != First || far.Reason != WasReset {
			t.Errorf("near %+v, far %+v", near, far)
		}
		wantReusable(t, l)
	})
}

// The caller has sent FIN, and dies while nothing moves: nobody reads from it and
// nobody writes to it.
func TestResetAfterHalfClose(t *testing.T) {
	for name, side := range map[string]func(*testPath) (dies, learns *net.TCPConn){
		"caller": func(l *testPath) (*net.TCPConn, *net.TCPConn) { return l.app, l.srv },
		"server": func(l *testPath) (*net.TCPConn, *net.TCPConn) { return l.srv, l.app },
	} {
		t.Run(name, func(t *testing.T) {
			forEachTestPath(t, func(t *testing.T, l *testPath) {
				dies, learns := side(l)
				dies.CloseWrite()
				wantEnd(t, "the other", learns, "")
				Reset(dies)
				wantBroken(t, learns)
				wantReusable(t, l)
			})
		})
	}
}

// wantBroken waits for an error on a connection whose FIN was read already.
func wantBroken(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(testTimeout))
	if err := awaitReset(c); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("%v, want a reset", err)
	}
}

func TestCancelResetsBothEnds(t *testing.T) {
	for cause, reason := range map[error]Reason{context.Canceled: Canceled, ErrDrained: Drained,
		fmt.Errorf("wrapped: %w", ErrNotRenewed): NotRenewed} {
		forEachTestPath(t, func(t *testing.T, l *testPath) {
			io.WriteString(l.app, "x")
			io.ReadFull(l.srv, make([]byte, 1))
			l.cancel(cause)
			wantReset(t, "caller", l.app)
			wantReset(t, "server", l.srv)
			near, _ := l.wait()
			if near.Side != Neither || near.Reason != reason || !errors.Is(near.Err, cause) {
				t.Errorf("near %+v, want %v", near, reason)
			}
		})
	}
}

// startExchange is one exchange whose session's far end is in the test's hands.
func startExchange(t *testing.T) (app *net.TCPConn, far *tunnel.Conn, wait func() Result) {
	app, plain := pair(t)
	near, end := tunnelPair(t)
	done := make(chan Result, 1)
	go func() { done <- Exchange(t.Context(), plain, tunnel.NewConn(near), nil, nil) }()
	t.Cleanup(func() { Reset(app); end.NetConn().(*Raw).Reset() })
	return app, tunnel.NewConn(end), func() Result { return <-done }
}

// writeData writes DATA.
func writeData(t *testing.T, c *tunnel.Conn, what string) {
	t.Helper()
	b := append(make([]byte, tunnel.PrefixLen), what...)
	tunnel.PutPrefix(b, tunnel.TypeData, len(what))
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// readFrames takes one frame and its body.
func readFrames(t *testing.T, c *tunnel.Conn, want tunnel.Type) string {
	t.Helper()
	got, n, err := c.Next()
	if err != nil || got != want {
		t.Fatalf("%v, %v; want %v", got, err, want)
	}
	c.ConsumePrefix()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSessionBreaks(t *testing.T) {
	rawOf := func(c *tunnel.Conn) *net.TCPConn { return RawOf(c).Conn.(*net.TCPConn) }
	cases := map[string]struct {
		why    string
		abort  func(far *tunnel.Conn)
		reason Reason
	}{
		"FIN":          {"a killed gateway or agent, or someone on the path", func(far *tunnel.Conn) { rawOf(far).Close() }, Truncated},
		"half FIN":     {"an injected FIN", func(far *tunnel.Conn) { rawOf(far).CloseWrite() }, Truncated},
		"close_notify": {"it ends a session, and not an exchange", func(far *tunnel.Conn) { far.Conn.(*tls.Conn).CloseWrite() }, Truncated},
		"reset":        {"an abort of the far side", func(far *tunnel.Conn) { Reset(rawOf(far)) }, WasReset},
		"garbage": {"a record that was tampered with", func(far *tunnel.Conn) {
			rawOf(far).Write([]byte{23, 3, 3, 0, 30, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0})
		}, Failed},
		"another frame":  {"none but its own belong to an exchange", func(far *tunnel.Conn) { tunnel.WriteOpenAnswer(far, tunnel.Code_OK) }, Failed},
		"OPEN":           {"exchanges follow each other", func(far *tunnel.Conn) { tunnel.WriteOpen(far, 0, nil) }, Failed},
		"IDLE":           {"the exchange is not over", func(far *tunnel.Conn) { tunnel.WriteEmpty(far, tunnel.TypeIdle) }, Failed},
		"DATA after END": {"END is the last frame", func(far *tunnel.Conn) { tunnel.WriteEmpty(far, tunnel.TypeEnd); writeData(t, far, "more") }, Failed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			app, far, wait := startExchange(t)
			writeData(t, far, "half an ans")
			io.ReadFull(app, make([]byte, 11))
			c.abort(far)
			if name == "DATA after END" {
				wantEnd(t, "application", app, "")
				wantBroken(t, app)
			} else {
				wantReset(t, "application", app)
			}
			if got := wait(); got.Side != Second || got.Reason != c.reason || got.Reusable {
				t.Errorf("%+v, want reason %v of the second side: %s", got, c.reason, c.why)
			}
		})
	}
}

// END ends one direction. If then the session ends although we have more to say, the
// far side has gone, and the application must not believe that it was heard.
func TestSessionGoneAfterEnd(t *testing.T) {
	app, far, wait := startExchange(t)
	tunnel.WriteEmpty(far, tunnel.TypeEnd)
	wantEnd(t, "application", app, "")
	RawOf(far).Conn.Close()
	wantBroken(t, app)
	if got := wait(); got.Side != Second || got.Reason != Truncated {
		t.Errorf("%+v, want it truncated", got)
	}
}

// Bytes that were read before a reset are delivered before the reset is passed on: an
// application's early answer reaches a caller who is still uploading.
// TestIdleFollowsLastFrame: the far side answers our last frame by IDLE, perhaps before the
// goroutine that wrote it goes on.
func TestIdleFollowsLastFrame(t *testing.T) {
	for range 100 {
		app, far, wait := startExchange(t)
		tunnel.WriteEmpty(far, tunnel.TypeEnd)
		if _, err := io.ReadAll(app); err != nil {
			t.Fatal(err)
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			if got, _, err := far.Next(); err != nil || got != tunnel.TypeEnd {
				t.Errorf("%v, %v; want END", got, err)
			}
			tunnel.WriteEmpty(far, tunnel.TypeIdle)
		}()
		app.CloseWrite()
		r := wait()
		<-answered
		if !r.Clean() || !r.Reusable {
			t.Fatalf("the exchange ends with %v: %v", r.Reason, r.Err)
		}
	}
}

func TestExchangeDeliversEarlyAnswer(t *testing.T) {
	answer := string(bytes.Repeat([]byte("413 "), 1024))
	for range 40 {
		l := newTestPath(t, true)
		go io.Copy(l.app, endlessReader{})
		io.ReadFull(l.srv, make([]byte, 1000))
		io.WriteString(l.srv, answer)
		l.srv.Close() // with unread bytes: the kernel says reset
		if got, _ := io.ReadAll(io.LimitReader(l.app, int64(len(answer)))); string(got) != answer {
			near, far := l.wait()
			t.Fatalf("the caller read %d bytes of %d; near %+v, far %+v", len(got), len(answer), near, far)
		}
		near, far := l.wait()
		if near.Reason != WasReset || far.Reason != WasReset {
			t.Fatalf("near %+v, far %+v, want resets", near, far)
		}
	}
}

// A far side that takes no RESET loses its session.
func TestUnreadResetBreaksSession(t *testing.T) {
	t.Run("no answer", func(t *testing.T) {
		app, far, wait := startExchange(t)
		Reset(app)
		readFrames(t, far, tunnel.TypeReset)
		if got := wait(); got.Reusable || got.Side != First || got.Reason != WasReset {
			t.Errorf("%+v", got)
		}
	})
	t.Run("endless data", func(t *testing.T) {
		app, far, wait := startExchange(t)
		Reset(app)
		go func() {
			b := make([]byte, tunnel.PrefixLen+tunnel.MaxData)
			tunnel.PutPrefix(b, tunnel.TypeData, tunnel.MaxData)
			for {
				if _, err := far.Write(b); err != nil {
					return
				}
			}
		}()
		if got := wait(); got.Reusable || got.Reason != WasReset && got.Reason != FlowControl {
			t.Errorf("%+v", got)
		}
	})
	t.Run("some data and END", func(t *testing.T) {
		app, far, wait := startExchange(t)
		Reset(app)
		readFrames(t, far, tunnel.TypeReset)
		writeData(t, far, "what crossed the reset")
		tunnel.WriteEmpty(far, tunnel.TypeEnd)
		if got := wait(); !got.Reusable || got.Reason != WasReset {
			t.Errorf("%+v", got)
		}
	})
}

// An END that could not be written is no end, although the other side's END was in our
// buffers.
func TestLostLastFrameBreaksSession(t *testing.T) {
	app, plain := pair(t)
	near, end := tunnelPair(t)
	session, far := tunnel.NewConn(near), tunnel.NewConn(end)
	raw := RawOf(session)
	raw.Replace(&failingWriter{TCPConn: raw.Conn.(*net.TCPConn)})
	done := make(chan Result, 1)
	go func() { done <- Exchange(t.Context(), plain, session, nil, nil) }()
	app.CloseWrite()
	<-raw.Conn.(*failingWriter).tried()
	tunnel.WriteEmpty(far, tunnel.TypeEnd)
	if got := <-done; got.Clean() || got.Reusable {
		t.Errorf("%+v: what was said before has not reached the far side", got)
	}
	RawOf(far).Reset()
}

// failingWriter fails to write as a connection that was reset.
type failingWriter struct {
	*net.TCPConn
	once sync.Once
	did  chan struct{}
}

func (c *failingWriter) tried() chan struct{} {
	c.once.Do(func() { c.did = make(chan struct{}) })
	return c.did
}

func (c *failingWriter) Write([]byte) (int, error) {
	did := c.tried()
	select {
	case <-did:
	default:
		close(did)
	}
	return 0, unix.ECONNRESET
}

// The application must not see a reset where the tunnel ended cleanly, nor lose bytes
// written just before.
func TestRepeatedExchangesEndCleanly(t *testing.T) {
	for range 50 {
		l := newTestPath(t, true)
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
	forEachTestPath(t, func(t *testing.T, l *testPath) {
		l.app.SetDeadline(time.Now().Add(3 * testTimeout))
		l.srv.SetDeadline(time.Now().Add(3 * testTimeout))
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

func BenchmarkExchange(b *testing.B) {
	l := newTestPath(b, true)
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
