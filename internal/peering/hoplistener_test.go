package peering

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/grpctls"
)

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial() net.Conn {
	far, near := net.Pipe()
	p.conns <- near
	return far
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// closed reports whether the far end of c was closed without a byte.
func closed(c net.Conn) bool {
	n, err := c.Read(make([]byte, 1))
	return n == 0 && errors.Is(err, io.EOF)
}

// listening runs a HopListener in fake time, passes it to do, and waits for its end.
func listening(t *testing.T, do func(t *testing.T, p *pipes, l *HopListener, end func())) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPipes()
		l := NewHopListener(p, route.HopKey{1}, discardLog, prometheus.NewRegistry())
		var running sync.WaitGroup
		running.Go(func() { l.Run(ctx) })
		do(t, p, l, cancel)
		cancel()
		running.Wait()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after the end returns %v, want net.ErrClosed", err)
		}
	})
}

func header(t *testing.T, key route.HopKey, hello []byte, at time.Time) []byte {
	t.Helper()
	end := netip.MustParseAddrPort("192.0.2.1:4143")
	h, err := route.Header{Source: end, Destination: end, Link: "east", Time: at}.Marshal(key, hello)
	if err != nil {
		t.Fatal(err)
	}
	return append(h, hello...)
}

func TestHopListenerRefuses(t *testing.T) {
	hello := []byte("a hello")
	for name, c := range map[string]struct {
		why    string
		bytes  func(t *testing.T) []byte
		reason string
		after  time.Duration
	}{
		"no header": {
			why:    "a TLS connection that bypasses the gateway must never reach gRPC",
			bytes:  func(*testing.T) []byte { return bytes.Repeat([]byte{22, 3, 1}, 20) },
			reason: route.Reason(route.ErrNotAHeader),
		},
		"bad MAC": {
			why:    "only a gateway of this cluster may hand connections over",
			bytes:  func(t *testing.T) []byte { return header(t, route.HopKey{2}, hello, time.Now()) },
			reason: route.Reason(route.ErrBadMAC),
		},
		"old": {
			why: "a recorded header must not be usable for long",
			bytes: func(t *testing.T) []byte {
				return header(t, route.HopKey{1}, hello,
					time.Now().Add(-route.HeaderWindow-time.Second))
			},
			reason: "stale",
		},
		"other hello": {
			why: "the header authenticates one ClientHello only",
			bytes: func(t *testing.T) []byte {
				b := header(t, route.HopKey{1}, hello, time.Now())
				b[len(b)-1]++
				return b
			}, reason: route.Reason(route.ErrHelloMismatch),
		},
		"slow": {
			why:    "a silent connection must not hold a slot",
			bytes:  func(*testing.T) []byte { return nil },
			reason: "read_failed",
			after:  headerTimeout,
		},
		"half a one": {
			why:    "nor one that stops after the first bytes",
			bytes:  func(t *testing.T) []byte { return header(t, route.HopKey{1}, hello, time.Now())[:20] },
			reason: "read_failed",
			after:  headerTimeout,
		},
	} {
		t.Run(name, func(t *testing.T) {
			listening(t, func(t *testing.T, p *pipes, l *HopListener, _ func()) {
				far, start := p.dial(), time.Now()
				defer far.Close()
				go far.Write(c.bytes(t)) // ends with far
				if !closed(far) {
					t.Fatalf("%s: the connection stays open", c.why)
				}
				synctest.Wait()
				if took := time.Since(start); took != c.after {
					t.Errorf("%s: closed after %v, want %v", c.why, took, c.after)
				}
				if n := testutil.ToFloat64(l.refused.WithLabelValues(c.reason)); n != 1 {
					t.Errorf("%s: counted %v times as %s", c.why, n, c.reason)
				}
			})
		})
	}
}

// A connection whose label was opened with the key of an invite never reaches the catalog
// server.
func TestHopListenerSeparatesInvites(t *testing.T) {
	listening(t, func(t *testing.T, p *pipes, l *HopListener, _ func()) {
		from := netip.MustParseAddrPort("192.0.2.7:999")
		h, err := route.Header{
			Source:      from,
			Destination: from,
			Link:        route.InviteName("east"),
			Time:        time.Now(),
		}.Marshal(route.HopKey{1}, []byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		far := p.dial()
		defer far.Close()
		go far.Write(append(h, "hello"...)) // ends with far
		c, err := l.Invites().Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := c.RemoteAddr().String(); got != from.String() {
			t.Errorf("remote address %s, want %s", got, from)
		}
		select {
		case <-l.streams:
			t.Error("the connection is offered to the catalog server too")
		default:
		}
	})
}

func TestHopListenerCountsFromZero(t *testing.T) {
	listening(t, func(t *testing.T, _ *pipes, l *HopListener, _ func()) {
		if got, want := testutil.CollectAndCount(l.refused), len(route.Reasons())+1; got != want {
			t.Errorf("%d reasons are counted from the start, want %d", got, want)
		}
	})
}

func TestHopListenerLimitsUnread(t *testing.T) {
	listening(t, func(t *testing.T, p *pipes, l *HopListener, _ func()) {
		var waiting []net.Conn
		for range maxUnread {
			waiting = append(waiting, p.dial())
		}
		over := p.dial()
		if !closed(over) {
			t.Error("one connection more than maxUnread stays open")
		}
		if n := testutil.ToFloat64(l.refused.WithLabelValues("too_many")); n != 1 {
			t.Errorf("counted %v times", n)
		}
		bubble.Pass(headerTimeout)
		next := p.dial()
		go next.Write(header(t, route.HopKey{1}, []byte("hello"), time.Now()))
		if _, err := l.Accept(); err != nil {
			t.Errorf("slots of silent connections must be free again: %v", err)
		}
		for _, c := range append(waiting, over, next) {
			c.Close()
		}
	})
}

func TestHopListenerClosesPendingConnectionsAtEnd(t *testing.T) {
	listening(t, func(t *testing.T, p *pipes, l *HopListener, end func()) {
		silent, offered := p.dial(), p.dial()
		go offered.Write(header(t, route.HopKey{1}, []byte("hello"), time.Now()))
		synctest.Wait()
		end() // before anything is accepted
		if !closed(silent) || !closed(offered) {
			t.Error("a connection that was not accepted must be closed")
		}
	})
}

// A catalog stream sends little, but does so for weeks: its bytes must not be bounded
// once the peer is authenticated.
func TestHopListenerDoesNotBoundAuthenticatedPeers(t *testing.T) {
	listening(t, func(t *testing.T, p *pipes, l *HopListener, _ func()) {
		hello, later := make([]byte, 300), make([]byte, 4*transport.MaxUnproven)
		rand.Read(hello)
		rand.Read(later)
		far := p.dial()
		go func() {
			far.Write(header(t, route.HopKey{1}, hello, time.Now()))
			far.Write(later)
			far.Close()
		}()
		// gRPC sees the connection behind the server's limit of connections.
		accepted, err := grpctls.Limit(l, 10, nil).Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		conn, proven := transport.GuardAccepted(accepted)
		got := make([]byte, len(hello))
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, hello) {
			t.Fatalf("the ClientHello must come first: %v", err)
		}
		proven()
		rest, err := io.ReadAll(conn)
		if !errors.Is(err, transport.ErrTruncated) || !bytes.Equal(rest, later) {
			t.Errorf("read %d bytes of %d: %v", len(rest), len(later), err)
		}
	})
}

func TestHopListenerBoundsUnauthenticatedPeers(t *testing.T) {
	listening(t, func(t *testing.T, p *pipes, l *HopListener, _ func()) {
		far := p.dial()
		defer far.Close()
		go func() {
			far.Write(header(t, route.HopKey{1}, []byte("hello"), time.Now()))
			far.Write(make([]byte, 4*transport.MaxUnproven))
		}()
		accepted, err := grpctls.Limit(l, 10, nil).Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		conn, _ := transport.GuardAccepted(accepted)
		n, err := io.Copy(io.Discard, conn)
		if !errors.Is(err, transport.ErrUnproven) || n != transport.MaxUnproven {
			t.Errorf("an unauthenticated peer sent %d bytes: %v", n, err)
		}
	})
}
