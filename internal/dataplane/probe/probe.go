// Package probe tests the path to a peer's agent by an echo, and answers such tests. A
// probe is an ordinary session (package tunnel) under the identity of probes. It leads to
// no application:
//
//	client ── HELLO, OPEN, DATA, END ──▶ server   in one write
//	client ◀── answers, DATA, END, IDLE ─ server  the same bytes, in one write
//
// What always holds:
//   - An echo has at most MaxPayload bytes, and takes at most EchoTimeout.
//   - A session carries one echo after the other, and nothing else.
//   - The server stores nothing and dials nothing.
package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

const (
	// MaxPayload is how many bytes an echo carries in each direction at most.
	MaxPayload = 16 << 10
	// DefaultPayload is how many it carries unless Options say otherwise.
	DefaultPayload = 64
	// EchoTimeout bounds an echo at the server.
	EchoTimeout = 5 * time.Second
)

// hello is the HELLO of every probe. Port 7 is that of the echo protocol (RFC 862).
var hello = tunnel.Hello{Namespace: "causeway", Service: "probe", Port: 7}

// Stage is a step of a probe.
type Stage string

// The stages, in their order.
const (
	// StageDial connects to the gateway's address.
	StageDial Stage = "dial"
	// StageTLS ends the handshake with the agent.
	StageTLS Stage = "tls"
	// StageHello awaits the answers to HELLO and OPEN.
	StageHello Stage = "hello"
	// StageEcho awaits the payload.
	StageEcho Stage = "echo"
	// StageDone follows the last stage: the probe was answered.
	StageDone Stage = "answered"
)

// Stages returns all stages in their order.
func Stages() []Stage { return []Stage{StageDial, StageTLS, StageHello, StageEcho, StageDone} }

// Options say what a probe does.
type Options struct {
	// Address is the gateway's, host:port.
	Address string
	// TLS is the client's configuration, of which every session needs its own: the server
	// name is a sealed label for route.Probe.
	TLS *tls.Config
	// Payload is the number of bytes in each direction; 0 means DefaultPayload. At most
	// MaxPayload.
	Payload int
	// MaxSegment bounds the TCP segments in both directions (TCP_MAXSEG), so that a probe
	// passes where large packets are lost; 0: the kernel decides.
	MaxSegment int
}

// Result is what came of a probe.
type Result struct {
	// Stage is the one that failed, or StageDone.
	Stage Stage
	// Connect, Handshake and Echo are how long the stages took that were passed. Echo
	// includes StageHello.
	Connect, Handshake, Echo time.Duration
	// LastByte is when the last byte came from the gateway; zero: none came.
	LastByte time.Time
	// Unacknowledged is true if the probe failed while the gateway had not acknowledged
	// bytes that were sent and retransmitted. Then packets to the gateway are lost.
	Unacknowledged bool
	// Err is why the stage failed; nil: the probe was answered. A *tunnel.Refused is the
	// far agent's answer.
	Err error
}

// Run makes one probe, and ends its session. It blocks until the answer comes, the probe
// fails, or ctx ends.
func Run(ctx context.Context, o Options) Result {
	s, result := Open(ctx, o)
	if s != nil {
		s.Close()
	}
	return result
}

// A Session is open between two echoes. Its methods must not be called concurrently.
type Session struct {
	conn *tunnel.Conn
	raw  *transport.Raw
	in   *timedConn
}

// Open makes a probe and keeps its session, which the caller must close. If the probe
// fails, there is no session.
func Open(ctx context.Context, o Options) (*Session, Result) {
	payload := o.Payload
	if payload == 0 {
		payload = DefaultPayload
	}
	if payload < 0 || payload > MaxPayload {
		err := fmt.Errorf("probe with %d bytes: at most %d are possible", payload, MaxPayload)
		return nil, Result{Stage: StageDial, Err: err}
	}
	start := time.Now()
	conn, err := dial(ctx, o)
	if err != nil {
		return nil, Result{Stage: StageDial, Err: err}
	}
	in := &timedConn{Conn: conn}
	raw := transport.WrapDialed(in)
	connected := time.Now()
	r := Result{Stage: StageTLS, Connect: connected.Sub(start)}
	fail := func(err error) (*Session, Result) {
		if tcp, ok := conn.(*net.TCPConn); ok {
			r.Unacknowledged = transport.HasUnacked(tcp)
		}
		raw.Reset()
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(err, cause)
		}
		r.Err, r.LastByte = err, in.last()
		return nil, r
	}
	client := tls.Client(raw, o.TLS)
	if err := handshake(ctx, client); err != nil {
		return fail(fmt.Errorf("TLS with %s: %w", o.Address, err))
	}
	raw.MarkProven()
	shaken := time.Now()
	r.Stage, r.Handshake = StageHello, shaken.Sub(connected)
	s := &Session{conn: tunnel.NewConn(client), raw: raw, in: in}
	if r.Stage, err = s.exchange(ctx, payload, true); err != nil {
		return fail(err)
	}
	r.Echo, r.LastByte = time.Since(shaken), in.last()
	return s, r
}

// handshake is HandshakeContext, but leaves the connection open when ctx ends, so that
// the kernel can say what was acknowledged.
func handshake(ctx context.Context, c *tls.Conn) error {
	stop := afterfunc.Start(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err := c.HandshakeContext(context.WithoutCancel(ctx))
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// Echo makes another probe over the session. It blocks until the answer comes, the probe
// fails, or ctx ends. After an error the caller must close the session.
func (s *Session) Echo(ctx context.Context, payload int) Result {
	start := time.Now()
	stage, err := s.exchange(ctx, payload, false)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = errors.Join(err, cause)
	}
	r := Result{Stage: stage, Echo: time.Since(start), Err: err}
	if last := s.in.last(); last.After(start) {
		r.LastByte = last
	}
	return r
}

// Close ends the session.
func (s *Session) Close() {
	s.raw.FailSlowWrites()
	s.conn.Close()
}

// exchange sends a payload and reads it back. It returns the stage that failed.
func (s *Session) exchange(ctx context.Context, payload int, first bool) (Stage, error) {
	stop := afterfunc.Start(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
	stage, err := s.echo(payload, first)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return stage, err
}

func (s *Session) echo(payload int, first bool) (Stage, error) {
	sent := make([]byte, payload)
	rand.Read(sent) // never fails, see its doc
	err := s.raw.BatchWrites(func() error {
		var err error
		if first {
			err = tunnel.WriteHelloOpen(s.conn, hello, EchoTimeout, sent)
		} else {
			err = tunnel.WriteOpen(s.conn, EchoTimeout, sent)
		}
		if err != nil {
			return err
		}
		return tunnel.WriteEmpty(s.conn, tunnel.TypeEnd)
	})
	if err != nil {
		return StageHello, err
	}
	if first {
		if _, err := s.conn.ReadHelloAnswer(); err != nil {
			return StageHello, fmt.Errorf("HELLO: %w", err)
		}
	}
	if err := s.conn.ReadOpenAnswer(); err != nil {
		return StageHello, fmt.Errorf("OPEN: %w", err)
	}
	got, err := readPayload(s.conn)
	if err != nil {
		return StageEcho, err
	}
	if !bytes.Equal(got, sent) {
		return StageEcho, errors.New("the far agent answers with other bytes")
	}
	if err := s.conn.ReadIdle(); err != nil {
		return StageEcho, err
	}
	return StageDone, nil
}

// readPayload reads DATA up to END.
func readPayload(conn *tunnel.Conn) ([]byte, error) {
	var out []byte
	for {
		t, n, err := conn.Next()
		if err != nil {
			return nil, fmt.Errorf("read a probe: %w", err)
		}
		switch {
		case t == tunnel.TypeEnd:
			conn.ConsumePrefix()
			return out, nil
		case t != tunnel.TypeData:
			return nil, fmt.Errorf("%v in a probe: %w", t, tunnel.ErrUnexpectedFrame)
		case n == 0:
			return nil, fmt.Errorf("empty %v in a probe: %w", t, tunnel.ErrBadFrame)
		case len(out)+n > MaxPayload:
			return nil, fmt.Errorf("probe of more than %d bytes: %w", MaxPayload, tunnel.ErrFrameTooLong)
		}
		conn.ConsumePrefix()
		start := len(out)
		out = append(out, make([]byte, n)...)
		if _, err := io.ReadFull(conn.Conn, out[start:]); err != nil {
			return nil, fmt.Errorf("read a probe: %w", err)
		}
	}
}

// dial connects to the gateway's address.
func dial(ctx context.Context, o Options) (net.Conn, error) {
	dialer := net.Dialer{KeepAlive: -1} // transport.Tune sets it
	if o.MaxSegment > 0 {
		dialer.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, o.MaxSegment)
			}); cerr != nil {
				return cerr
			}
			return err
		}
	}
	conn, err := dialer.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := transport.Tune(tcp); err != nil {
			tcp.Close()
			return nil, err
		}
	}
	return conn, nil
}

// timedConn is a connection that records when the last byte came.
type timedConn struct {
	net.Conn
	at atomic.Pointer[time.Time] // nil: never. It has a monotonic reading.
}

func (c *timedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		now := time.Now()
		c.at.Store(&now)
	}
	return n, err
}

// SetLinger lets transport.Reset reset the connection.
func (c *timedConn) SetLinger(seconds int) error {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		return t.SetLinger(seconds)
	}
	return nil
}

func (c *timedConn) last() time.Time {
	if at := c.at.Load(); at != nil {
		return *at
	}
	return time.Time{}
}
