// Package transport moves bytes: it reads ClientHellos without answering them, dials, and carries
// connections between applications, tunnels and gateways.
//
//	gateway:  peer ──▶ ReadClientHello ─▶ Prove ─▶ Splice ══▶ agent
//	inbound:  gateway ──▶ Accepted ─▶ tls.Server ─▶ Exchange ══▶ application
//	outbound: application ──▶ Dialer ─▶ Dialed ─▶ tls.Client ─▶ Exchange ══▶ gateway
//
// What always holds:
//   - Each direction ends at the far end as it ended at the near one: a clean end by a
//     clean end, a reset by a reset. On TCP only FIN is a clean end; in a session only
//     END is. The bytes sent before a reset are delivered before it.
//   - A session that breaks resets the application's connection, because truncation is
//     not a clean end.
//   - A slow reader is not dead. A connection whose peer answers is never ended because
//     no bytes move. A peer that answers nothing is dead after 60 to 80 s, so a network
//     outage of less than a minute ends no open connection.
//   - Before a peer has proven who it is it can send MaxUnproven bytes and no more.
//   - ReadClientHello consumes the hello's records and not a byte after them.
//   - Exchange and Splice return when both directions have ended and all their goroutines with
//     them. Splice closes both connections, Exchange the application's.
package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// MaxUnproven is how many bytes a peer may send under TLS until Raw.Proven, the ClientHello included.
const MaxUnproven = 16 << 10

var (
	// ErrTruncated reports a session whose TCP connection ended without close_notify, or within
	// an exchange. It is an io.ErrUnexpectedEOF; crypto/tls by itself would take the former for
	// a clean end.
	ErrTruncated = fmt.Errorf("session ended too early: %w", io.ErrUnexpectedEOF)
	// ErrUnproven reports a peer that sent more than MaxUnproven bytes before it was proven.
	ErrUnproven = errors.New("too many bytes before the peer was proven")
)

// Raw is the network connection under a tunnel's TLS. It gives back bytes already read, bounds what comes
// before the peer is proven, and makes an end of the TCP connection ErrTruncated, so that only close_notify
// is a clean end.
type Raw struct {
	net.Conn
	// prefix and unproven are touched by Read alone, which TLS calls from one goroutine at a time.
	prefix   []byte
	unproven int
	proven   atomic.Bool

	hurried atomic.Bool
	sent    keyUse

	writing sync.Mutex // guards gathered, and is held while bytes are written
	// gathered is what Gather holds back; nil outside of it.
	gathered []byte
}

// Accepted returns what lies under the server's side of a tunnel. Reads give prefix first: the ClientHello
// that was read from c already. It takes c over.
func Accepted(c net.Conn, prefix []byte) *Raw {
	return &Raw{Conn: c, prefix: prefix, unproven: MaxUnproven}
}

// Dialed returns what lies under the client's side of a tunnel. It takes c over.
func Dialed(c net.Conn) *Raw {
	return &Raw{Conn: c, unproven: MaxUnproven}
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

// Hurry makes later writes fail that do not fit into the send buffer: crypto/tls would wait up to
// 5 s with its close_notify for a peer that reads nothing.
func (r *Raw) Hurry() {
	r.hurried.Store(true)
	r.SetWriteDeadline(time.Time{})
}

// SetWriteDeadline sets the deadline for writes, which after Hurry is a moment away at most.
func (r *Raw) SetWriteDeadline(t time.Time) error {
	if soon := time.Now().Add(hurry); r.hurried.Load() && (t.IsZero() || t.After(soon)) {
		t = soon
	}
	return r.Conn.SetWriteDeadline(t)
}

const hurry = 10 * time.Millisecond

// Write writes as net.Conn does, but within Gather later. TLS calls it with one record at
// a time. The error is ErrRecordLimit once its key may encrypt no more.
func (r *Raw) Write(b []byte) (int, error) {
	if err := r.sent.add(len(b)); err != nil {
		return 0, err
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.gathered == nil {
		return r.Conn.Write(b)
	}
	r.gathered = append(r.gathered, b...)
	return len(b), nil
}

// Gather calls write, which writes through TLS, and sends all the records that this makes in one
// write to the network. It must not be called concurrently; TLS may write by itself meanwhile.
func (r *Raw) Gather(write func() error) error {
	buf := gatherPool.Get().(*[]byte)
	defer gatherPool.Put(buf)
	r.gather((*buf)[:0])
	err := write()
	r.writing.Lock()
	defer r.writing.Unlock()
	all := r.gathered
	r.gathered, *buf = nil, all[:0]
	if err != nil {
		return err
	}
	_, err = r.Conn.Write(all)
	return err
}

func (r *Raw) gather(into []byte) {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.gathered = into
}

// gatherPool holds room for what a buffer becomes under TLS.
var gatherPool = sync.Pool{New: func() any {
	b := make([]byte, 0, bufferSize+bufferSize/16)
	return &b
}}

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

// linger sets what Close does to TCP connections: 0 resets them, and -1 sends all written
// bytes and FIN. It also applies when the kernel closes them because the process was
// killed.
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
