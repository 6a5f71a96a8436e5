// Package transport moves bytes: it reads ClientHellos without answering them, dials, and carries
// connections between applications, tunnels and gateways.
//
//	gateway:  peer ──▶ ReadClientHello ─▶ Prove ─▶ Splice ══▶ agent
//	inbound:  gateway ──▶ Accepted ─▶ tls.Server ─▶ Relay ══▶ application
//	outbound: application ──▶ Dialer ─▶ Dialed ─▶ tls.Client ─▶ Relay ══▶ gateway
//
// What always holds:
//   - An end stays an end and an abort an abort. On plain TCP only FIN is an end, in a tunnel only
//     close_notify, each direction for itself; whatever else ends one side is passed to the other as a
//     reset. tls.Conn.Close sends close_notify, so nothing here aborts by it.
//   - What a side sent before it was reset is delivered before Splice resets the other, within 2 s.
//   - A slow reader is not a dead one: a connection whose peer keeps answering is never given up for
//     standing still. A peer that answers nothing is given up within about 30 s.
//   - Before a peer has proven who it is it can send MaxUnproven bytes and no more.
//   - ReadClientHello consumes the hello's records and not a byte after them.
//   - Relay and Splice return when both directions have ended and all their goroutines with them, and
//     close both connections.
package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// MaxUnproven is how many bytes a peer may send under TLS until Raw.Proven, the ClientHello included.
const MaxUnproven = 16 << 10

var (
	// ErrTruncated reports a tunnel whose TCP connection ended without close_notify. It is an
	// io.ErrUnexpectedEOF; crypto/tls by itself would take it for a clean end.
	ErrTruncated = fmt.Errorf("connection ended without close_notify: %w", io.ErrUnexpectedEOF)
	// ErrUnproven reports a peer that sent more than MaxUnproven bytes before it was proven.
	ErrUnproven = errors.New("too many bytes before the peer was proven")
	// ErrAfterEnd reports bytes that came after close_notify.
	ErrAfterEnd = errors.New("bytes after close_notify")
)

// Raw is the network connection under a tunnel's TLS. It gives back bytes already read, bounds what comes
// before the peer is proven, and makes an end of the TCP connection ErrTruncated, so that only close_notify
// is a clean end.
type Raw struct {
	net.Conn
	dialed bool
	// prefix and unproven are touched by Read alone, which TLS calls from one goroutine at a time.
	prefix   []byte
	unproven int
	proven   atomic.Bool
	patient  atomic.Bool
}

// Accepted returns what lies under the server's side of a tunnel. Reads give prefix first: the ClientHello
// that was read from c already. It takes c over.
func Accepted(c net.Conn, prefix []byte) *Raw {
	return &Raw{Conn: c, prefix: prefix, unproven: MaxUnproven}
}

// Dialed returns what lies under the client's side of a tunnel. It takes c over.
func Dialed(c net.Conn) *Raw {
	return &Raw{Conn: c, dialed: true, unproven: MaxUnproven}
}

// Proven lifts the bound on bytes. Call it once the handshake has returned without an error.
func (r *Raw) Proven() { r.proven.Store(true) }

// Read reads as net.Conn does, but never returns io.EOF: the end is ErrTruncated.
func (r *Raw) Read(b []byte) (int, error) {
	proven := r.proven.Load()
	if !proven {
		if r.unproven == 0 {
			return 0, ErrUnproven
		}
		b = b[:min(len(b), r.unproven)]
	}
	n, err := r.read(b)
	if !proven {
		r.unproven -= n
	}
	return n, err
}

func (r *Raw) read(b []byte) (int, error) {
	if len(r.prefix) > 0 {
		n := copy(b, r.prefix)
		if r.prefix = r.prefix[n:]; len(r.prefix) == 0 {
			r.prefix = nil
		}
		return n, nil
	}
	n, err := r.Conn.Read(b)
	if err == io.EOF {
		// Not io.ErrUnexpectedEOF itself, which crypto/tls turns back into io.EOF between records.
		err = ErrTruncated
	}
	return n, err
}

// SetWriteDeadline sets the deadline for writes, but does nothing while Relay has the connection: crypto/tls
// gives close_notify 5 s by itself, which a slow reader may exceed.
func (r *Raw) SetWriteDeadline(t time.Time) error {
	if r.patient.Load() {
		return nil
	}
	return r.Conn.SetWriteDeadline(t)
}

// Reset ends the connection so that the peer sees a reset, whatever was sent or received before. It sends no
// close_notify and may be called at any time, more than once and by any goroutine.
func (r *Raw) Reset() { Reset(r.Conn) }

// Reset closes c so that its peer sees a reset and not an end. Unsent data is dropped. A c that is no TCP
// connection is just closed.
func Reset(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		t.SetLinger(0) // fails only if c is closed already
	}
	c.Close()
}

// linger sets what closing TCP connections does: 0 resets them, -1 ends them with all that was written. It holds for the kernel, too,
// when it closes them for a process that was killed.
func linger(seconds int, conns ...net.Conn) {
	for _, c := range conns {
		if t, ok := c.(interface{ SetLinger(int) error }); ok {
			t.SetLinger(seconds) // fails only if c is closed already
		}
	}
}

// Passing reports whether an error of Accept is about this moment only, such as
// the lack of a file descriptor: the listener is still good.
func Passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
