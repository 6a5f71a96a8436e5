package transport

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// testMemory is a budget of most bytes.
type testMemory struct {
	mu         sync.Mutex
	most, used int
	peak       int
}

func (m *testMemory) Reserve(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.used+n > m.most {
		return false
	}
	m.used += n
	m.peak = max(m.peak, m.used)
	return true
}

func (m *testMemory) Release(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= n
}

func (m *testMemory) get() (used, peak int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, m.peak
}

// queued returns how many bytes the kernel holds for the proxies of a path.
func (l *testPath) queued(t *testing.T) (total int) {
	t.Helper()
	for _, c := range l.sockets {
		err := control(c, func(fd int) error {
			in, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
			out, oerr := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
			total += in + out
			return errors.Join(err, oerr)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return total
}

// fill writes to c until nothing has been accepted for a while, and returns how many
// bytes were.
func fill(t *testing.T, c *net.TCPConn) (total int) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Write(b)
		if total += n; err != nil {
			c.SetWriteDeadline(time.Now().Add(testTimeout))
			return total
		}
	}
}

func TestStalledReaderHoldsLittle(t *testing.T) {
	for name, first := range map[string]int{
		"from the start":       0,
		"after a large answer": 64 << 20,
	} {
		t.Run(name, func(t *testing.T) {
			memory := &testMemory{}
			l := newTestPathOf(t, true, memory)
			l.app.SetReadBuffer(64 << 10) // bytes in it are the application's
			go func() { l.srv.Write(make([]byte, first)) }()
			if _, err := io.CopyN(io.Discard, l.app, int64(first)); err != nil {
				t.Fatal(err)
			}
			fill(t, l.srv)
			const most = 1 << 20
			if got := l.queued(t); got > most {
				t.Errorf("the proxies' sockets hold %d bytes, want at most %d", got, most)
			} else {
				t.Logf("the proxies' sockets hold %d bytes", got)
			}
		})
	}
}

// Bytes in one direction do not wait for a reader of the other one, although CREDIT
// comes behind what that reader does not take.
func TestDirectionsDoNotBlockEachOther(t *testing.T) {
	const size = 32 << 20
	for name, ends := range map[string]func(*testPath) (stalls, reads *net.TCPConn){
		"the caller stalls": func(l *testPath) (*net.TCPConn, *net.TCPConn) { return l.app, l.srv },
		"the server stalls": func(l *testPath) (*net.TCPConn, *net.TCPConn) { return l.srv, l.app },
	} {
		t.Run(name, func(t *testing.T) {
			forEachTestPath(t, func(t *testing.T, l *testPath) {
				stalls, reads := ends(l)
				for _, c := range []*net.TCPConn{l.app, l.srv} {
					c.SetDeadline(time.Now().Add(3 * testTimeout))
				}
				backlog := fill(t, reads)
				var upload sync.WaitGroup
				upload.Go(func() {
					if _, err := io.CopyN(stalls, endlessReader{}, size); err != nil {
						t.Errorf("send: %v", err)
					}
					stalls.CloseWrite()
				})
				if n, err := io.Copy(io.Discard, reads); n != size || err != nil {
					t.Errorf("received %d of %d bytes, %v, while %d wait in the other direction", n, size, err, backlog)
				}
				upload.Wait()
				reads.CloseWrite()
				if n, err := io.Copy(io.Discard, stalls); n != int64(backlog) || err != nil {
					t.Errorf("then received %d of %d bytes, %v", n, backlog, err)
				}
				wantClean(t, l)
				wantReusable(t, l)
			})
		})
	}
}

// Both ends write and neither reads, until both read.
func TestBothStalledThenReleased(t *testing.T) {
	const size = 16 << 20
	forEachTestPath(t, func(t *testing.T, l *testPath) {
		want := sha256.Sum256(make([]byte, size))
		for _, c := range []*net.TCPConn{l.app, l.srv} {
			c.SetDeadline(time.Now().Add(3 * testTimeout))
		}
		release := make(chan struct{})
		var both sync.WaitGroup
		for _, c := range []*net.TCPConn{l.app, l.srv} {
			both.Go(func() {
				if _, err := c.Write(make([]byte, size)); err != nil {
					t.Errorf("send: %v", err)
				}
				c.CloseWrite()
			})
			both.Go(func() {
				<-release
				got := sha256.New()
				if n, err := io.Copy(got, c); err != nil || !bytes.Equal(got.Sum(nil), want[:]) {
					t.Errorf("received %d of %d bytes, %v, or others than were sent", n, size, err)
				}
			})
		}
		<-time.After(300 * time.Millisecond)
		close(release)
		both.Wait()
		wantClean(t, l)
	})
}

// Without memory each direction keeps the assured window, and all bytes still arrive.
func TestExchangeWithoutMemory(t *testing.T) {
	const size = 8 << 20
	l := newTestPathOf(t, true, &testMemory{})
	go func() { l.srv.Write(make([]byte, size)); l.srv.CloseWrite() }()
	if n, err := io.Copy(io.Discard, l.app); n != size || err != nil {
		t.Errorf("received %d bytes, %v", n, err)
	}
	l.app.CloseWrite()
	wantClean(t, l)
}

func TestWindowGrowsFromMemory(t *testing.T) {
	const size = 64 << 20
	for _, most := range []int{1 << 20, 64 << 20} {
		memory := &testMemory{most: most}
		l := newTestPathOf(t, true, memory)
		go func() { l.srv.Write(make([]byte, size)); l.srv.CloseWrite() }()
		if n, err := io.Copy(io.Discard, l.app); n != size || err != nil {
			t.Errorf("received %d bytes, %v", n, err)
		}
		l.app.CloseWrite()
		wantClean(t, l)
		used, peak := memory.get()
		if peak == 0 || used != 0 {
			t.Errorf("%d bytes were reserved of %d, and %d are still", peak, most, used)
		}
	}
}

// An exchange in which nothing moves keeps no window that others could use, and gets one
// again when bytes move.
func TestIdleExchangeReleasesWindows(t *testing.T) {
	const size = 32 << 20
	memory := &testMemory{most: 64 << 20}
	l := newTestPathOf(t, true, memory)
	for _, c := range []*net.TCPConn{l.app, l.srv} {
		c.SetDeadline(time.Now().Add(10 * testTimeout))
	}
	for range 2 {
		go l.srv.Write(make([]byte, size))
		if _, err := io.CopyN(io.Discard, l.app, size); err != nil {
			t.Fatal(err)
		}
		if used, _ := memory.get(); used == 0 {
			t.Error("no window has grown")
		}
		for deadline := time.Now().Add(4 * sweepInterval); ; <-time.After(100 * time.Millisecond) {
			used, _ := memory.get()
			if used == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes are still reserved", used)
			}
		}
	}
	l.app.CloseWrite()
	l.srv.CloseWrite()
	wantClean(t, l)
}

func TestFlowControlViolationsResetSession(t *testing.T) {
	for name, violate := range map[string]func(*tunnel.Conn) error{
		"too much data": func(far *tunnel.Conn) error {
			b := make([]byte, tunnel.PrefixLen+tunnel.MaxData)
			tunnel.PutPrefix(b, tunnel.TypeData, tunnel.MaxData)
			for range 100 {
				if _, err := far.Write(b); err != nil {
					return nil // it was reset
				}
			}
			return nil
		},
		"credit for nothing": func(far *tunnel.Conn) error {
			return tunnel.WriteCredit(far, tunnel.Credit{Taken: 1, Window: assuredWindow, Own: assuredWindow})
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, far, wait := startExchange(t)
			if err := violate(far); err != nil {
				t.Fatal(err)
			}
			if got := wait(); got.Reason != FlowControl || got.Side != Second || got.Reusable {
				t.Errorf("%+v, want %v", got, FlowControl)
			}
		})
	}
}

// A far side that permits much and takes nothing still gets no more than this side's own
// window.
func TestOwnWindowBoundsSender(t *testing.T) {
	app, far, wait := startExchange(t)
	credit := tunnel.Credit{Window: 1 << 30, Own: assuredWindow}
	if err := tunnel.WriteCredit(far, credit); err != nil {
		t.Fatal(err)
	}
	go io.Copy(app, endlessReader{})
	got := 0
	far.SetReadDeadline(time.Now().Add(testTimeout))
	for got < MaxWindow*3/4 {
		kind, n, err := far.Next()
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		if kind == tunnel.TypeCredit {
			if c, err := far.ReadCredit(); err != nil || c.Own > MaxWindow {
				t.Fatalf("%+v, %v", c, err)
			}
			continue
		}
		far.ConsumePrefix()
		if _, err := io.CopyN(io.Discard, far, int64(n)); err != nil {
			t.Fatal(err)
		}
		got += n
	}
	far.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	n, _ := io.Copy(io.Discard, far)
	if total := got + int(n); total > MaxWindow+MaxWindow/64 { // with prefixes
		t.Errorf("%d bytes came, more than the window of %d", total, MaxWindow)
	}
	Reset(app)
	RawOf(far).Reset()
	wait()
}

// delayed copies src to dst, each byte half a round trip later. It ends with src.
func delayed(dst, src *net.TCPConn, half time.Duration) {
	type segment struct {
		at time.Time
		b  []byte
	}
	segments := make(chan segment, 1<<12)
	go func() {
		defer close(segments)
		for {
			b := make([]byte, 16<<10)
			n, err := src.Read(b)
			if err != nil {
				return
			}
			segments <- segment{time.Now().Add(half), b[:n]}
		}
	}()
	for s := range segments {
		<-time.After(time.Until(s.at))
		if _, err := dst.Write(s.b); err != nil {
			src.SetReadDeadline(past)
		}
	}
	dst.CloseWrite()
}

// The window becomes large enough for a path of 60 ms.
func TestWindowGrowsOverDelay(t *testing.T) {
	const rtt, size = 60 * time.Millisecond, 32 << 20
	dialed, in := pair(t)
	out, accepted := pair(t)
	var path sync.WaitGroup
	path.Go(func() { delayed(out, in, rtt/2) })
	path.Go(func() { delayed(in, out, rtt/2) })
	nearTun, farTun := tunnelOver(t, dialed, accepted)
	for name, up := range map[string]bool{"down": false, "up": true} {
		memory := &testMemory{most: 64 << 20}
		l := testPathOver(t, tunnel.NewConn(nearTun), tunnel.NewConn(farTun), memory)
		src, dst := l.srv, l.app
		if up {
			src, dst = dst, src
		}
		start := time.Now()
		go func() { src.Write(make([]byte, size)); src.CloseWrite() }()
		if n, err := io.Copy(io.Discard, dst); n != size || err != nil {
			t.Errorf("%s: received %d bytes, %v", name, n, err)
		}
		took := time.Since(start)
		dst.CloseWrite()
		wantClean(t, l)
		_, peak := memory.get()
		t.Logf("%s: %d MiB in %v, %d bytes of windows at both ends", name, size>>20, took, peak)
		if peak < 2*(1<<20-assuredWindow) {
			t.Errorf("%s: only %d bytes of windows at both ends", name, peak)
		}
	}
	RawOf(tunnel.NewConn(nearTun)).Reset()
	RawOf(tunnel.NewConn(farTun)).Reset()
	path.Wait()
}
