// Package transport moves bytes. It reads ClientHellos without answering them, dials,
// and relays connections between applications, tunnels and gateways.
//
//	gateway:  peer ──▶ ReadClientHello ─▶ RelayUntilProven ─▶ Splice ══▶ agent
//	inbound:  gateway ──▶ WrapAccepted ─▶ tls.Server ─▶ Exchange ══▶ application
//	outbound: application ──▶ Dialer ─▶ WrapDialed ─▶ tls.Client ─▶ Exchange ══▶ gateway
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
//   - Each direction of an exchange has at most its window under way between the two
//     applications' connections. A direction whose reader stalls does not block the other.
//   - Before a peer is authenticated it can send at most MaxUnproven bytes.
//   - ReadClientHello consumes the records of the hello and no byte after them.
//   - Exchange and Splice return when both directions have ended and all their
//     goroutines with them. Splice closes both connections, Exchange the application's.
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

	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

// MaxUnproven is how many bytes a peer may send under TLS before Raw.MarkProven. It
// includes the ClientHello.
const MaxUnproven = 16 << 10

var (
	// ErrTruncated reports a session whose TCP connection ended without close_notify,
	// or within an exchange. It is an io.ErrUnexpectedEOF. crypto/tls alone would
	// report the first case as a clean end.
	ErrTruncated = fmt.Errorf("session ended too early: %w", io.ErrUnexpectedEOF)
	// ErrUnproven reports a peer that sent more than MaxUnproven bytes before it was
	// authenticated.
	ErrUnproven = errors.New("too many bytes before the peer was authenticated")
)

// Raw is the network connection under a tunnel's TLS. It returns bytes that were read
// before, bounds the bytes before the peer is authenticated, and reports the end of the
// TCP connection as ErrTruncated, so that only close_notify is a clean end.
type Raw struct {
	net.Conn          // only Replace changes it
	conn     net.Conn // for Read and Write: Conn, or a *socket.Conn of it
	// Only Read uses prefix and unproven. TLS calls it from one goroutine at a time.
	prefix   []byte
	unproven int
	proven   atomic.Bool

	failSlow atomic.Bool
	sent     keyUse

	writeMu sync.Mutex // guards batch, and is held while bytes are written
	// batch holds the bytes of BatchWrites; nil outside of it.
	batch []byte
}

// WrapAccepted returns the Raw of the server's side of a tunnel. Reads return prefix
// first, which is the ClientHello that was read from c. The Raw owns c.
func WrapAccepted(c net.Conn, prefix []byte) *Raw {
	r := &Raw{prefix: prefix, unproven: MaxUnproven}
	r.Replace(c)
	return r
}

// WrapDialed returns the Raw of the client's side of a tunnel. The Raw owns c.
func WrapDialed(c net.Conn) *Raw {
	r := &Raw{unproven: MaxUnproven}
	r.Replace(c)
	return r
}

// Replace makes c the connection under TLS, for example to remove a wrapper that only the
// handshake needed. The caller must ensure that no Read or Write is in progress.
func (r *Raw) Replace(c net.Conn) {
	r.Conn, r.conn = c, c
	if tcp, ok := c.(*net.TCPConn); ok {
		r.conn = socket.NewConn(tcp)
	}
}

// MarkProven removes the bound on bytes. Call it when the handshake has succeeded.
func (r *Raw) MarkProven() { r.proven.Store(true) }

// Read reads as net.Conn does, but never returns io.EOF. The end is ErrTruncated.
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
	n, err := r.conn.Read(b)
	if err == io.EOF {
		// Not io.ErrUnexpectedEOF itself, which crypto/tls turns back into io.EOF
		// between records.
		err = ErrTruncated
	}
	return n, err
}

// FailSlowWrites makes later writes fail if they do not fit into the send buffer.
// Otherwise crypto/tls would wait up to 5 s to send close_notify to a peer that reads
// nothing.
func (r *Raw) FailSlowWrites() {
	r.failSlow.Store(true)
	r.SetWriteDeadline(time.Time{})
}

// SetWriteDeadline sets the deadline of writes. After FailSlowWrites the deadline is at
// most slowWrite away.
func (r *Raw) SetWriteDeadline(t time.Time) error {
	if soon := time.Now().Add(slowWrite); r.failSlow.Load() && (t.IsZero() || t.After(soon)) {
		t = soon
	}
	return r.Conn.SetWriteDeadline(t)
}

const slowWrite = 10 * time.Millisecond

// Write writes as net.Conn does, but within Gather later. TLS calls it with one record at
// a time. The error is ErrRecordLimit once its key may encrypt no more.
func (r *Raw) Write(b []byte) (int, error) {
	if err := r.sent.add(len(b)); err != nil {
		return 0, err
	}
	r.writeMu.Lock()
	defer r.writeMu.Unlock()
	if r.batch == nil {
		return r.conn.Write(b)
	}
	r.batch = append(r.batch, b...)
	return len(b), nil
}

// BatchWrites calls write, which writes through TLS, and sends all resulting records in
// one write to the network. It must not be called concurrently. TLS may write
// concurrently.
func (r *Raw) BatchWrites(write func() error) error {
	buf := batchPool.Get().(*[]byte)
	defer batchPool.Put(buf)
	r.startBatch((*buf)[:0])
	err := write()
	r.writeMu.Lock()
	defer r.writeMu.Unlock()
	all := r.batch
	r.batch, *buf = nil, all[:0]
	if err != nil {
		return err
	}
	_, err = r.conn.Write(all)
	return err
}

func (r *Raw) startBatch(into []byte) {
	r.writeMu.Lock()
	defer r.writeMu.Unlock()
	r.batch = into
}

// batchPool holds buffers for the TLS records of one plaintext buffer.
var batchPool = sync.Pool{New: func() any {
	b := make([]byte, 0, bufferSize+bufferSize/16)
	return &b
}}

// Reset ends the connection so that the peer sees a reset. It sends no close_notify.
// Any goroutine may call it at any time, more than once.
func (r *Raw) Reset() { Reset(r.Conn) }

// Reset closes c so that its peer sees a reset instead of FIN. Unsent data is dropped.
// If c is not a TCP connection, Reset only closes it.
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

// IsTransient reports whether an error of Accept is temporary, such as the lack of a
// file descriptor, so that the listener remains usable.
func IsTransient(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
