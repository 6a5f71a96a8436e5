// Package grpctls lets gRPC speak TLS as the rest of Causeway does: with our own
// tls.Config, one ALPN per plane, TLS 1.3 and no resumed session.
//
//	net.Conn ─Guard▶ bounded ─handshake, 5 s▶ ALPN, version, no resumption ─▶ gRPC
//
// gRPC's own TLS credentials insist on the ALPN "h2", which would let a client of
// one plane speak to another.
//
// What always holds:
//   - No byte of HTTP/2 is read from a peer that has not finished the handshake
//     and named the plane's ALPN.
//   - Who the peer is, and whether it may, is decided by the tls.Config alone
//     (VerifyConnection) and by who reads State; nothing here trusts anybody.
package grpctls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// HandshakeTimeout bounds a handshake.
const HandshakeTimeout = 5 * time.Second

var (
	// ErrALPN reports a peer that did not agree on the plane's protocol.
	ErrALPN = errors.New("the peer did not agree on the protocol (ALPN)")
	// ErrSession reports a session of another version than TLS 1.3, or a resumed one.
	ErrSession = errors.New("the TLS session is not a fresh one of TLS 1.3")
)

// Guard wraps a connection before its handshake, for example to bound what may be
// read before the peer has proven itself. proven is called when the handshake is
// done. Both results are required.
type Guard func(net.Conn) (guarded net.Conn, proven func())

// Config tells how to shake hands. ALPN and TLS are required.
type Config struct {
	// ALPN is the plane's protocol. It is set as the only one of every tls.Config.
	ALPN string
	// TLS returns the tls.Config for the next handshake. It is asked each time, so
	// that certificates and roots can change. The result is not modified.
	TLS func() (*tls.Config, error)
	// Guard is put around each connection; nil means none.
	Guard Guard
	// Failed is told of each handshake that failed, since gRPC makes plain text of
	// the error; nil means nobody.
	Failed func(error)
}

// New returns transport credentials for a gRPC server or client.
func New(c Config) credentials.TransportCredentials { return creds{c} }

type creds struct{ Config }

// ClientHandshake implements credentials.TransportCredentials.
func (c creds) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.tell(c.handshake(ctx, conn, tls.Client))
}

// ServerHandshake implements credentials.TransportCredentials.
func (c creds) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// gRPC gives no context here; the handshake's own deadline ends it.
	return c.tell(c.handshake(context.Background(), conn, tls.Server))
}

// tell passes on what handshake returns, and a failure to Failed as well.
func (c creds) tell(conn net.Conn, auth credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil && c.Failed != nil {
		c.Failed(err)
	}
	return conn, auth, err
}

// handshake proves both ends, or closes conn.
func (c creds) handshake(ctx context.Context, conn net.Conn, side func(net.Conn, *tls.Config) *tls.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := c.TLS()
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("prepare TLS: %w", err)
	}
	config = config.Clone()
	config.NextProtos = []string{c.ALPN}
	raw, proven := conn, func() {}
	if c.Guard != nil {
		conn, proven = c.Guard(conn)
	}
	// A context and not a deadline on conn: gRPC has set one of its own there.
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	tlsConn := side(conn, config)
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("TLS handshake with %v: %w", raw.RemoteAddr(), err)
	}
	state := tlsConn.ConnectionState()
	if err := c.check(state); err != nil {
		tlsConn.Close()
		return nil, nil, fmt.Errorf("TLS session with %v: %w", raw.RemoteAddr(), err)
	}
	proven()
	return tlsConn, info{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		state:          state,
		raw:            raw,
	}, nil
}

func (c creds) check(state tls.ConnectionState) error {
	// crypto/tls lets a peer without ALPN through.
	if state.NegotiatedProtocol != c.ALPN {
		return fmt.Errorf("want %q, got %q: %w", c.ALPN, state.NegotiatedProtocol, ErrALPN)
	}
	if state.Version != tls.VersionTLS13 || state.DidResume {
		return ErrSession
	}
	return nil
}

// Info implements credentials.TransportCredentials.
func (c creds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (c creds) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials. The name comes
// with the tls.Config.
func (c creds) OverrideServerName(string) error {
	return errors.New("set the server name in the tls.Config")
}

// info is what the handshake proved.
type info struct {
	credentials.CommonAuthInfo
	state tls.ConnectionState
	raw   net.Conn
}

// AuthType implements credentials.AuthInfo.
func (info) AuthType() string { return "causeway-tls" }

// State returns the TLS state of the connection that the call with ctx came on. It
// returns false for a connection without credentials of this package.
func State(ctx context.Context) (tls.ConnectionState, bool) {
	i, ok := from(ctx)
	return i.state, ok
}

// Cut closes the connection that the call with ctx came on, with all its calls. It
// is for a peer that takes nothing: returning from a handler leaves what was
// queued for the peer in memory until the peer takes it.
func Cut(ctx context.Context) {
	if i, ok := from(ctx); ok {
		i.raw.Close()
	}
}

func from(ctx context.Context) (info, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return info{}, false
	}
	i, ok := p.AuthInfo.(info)
	return i, ok
}
