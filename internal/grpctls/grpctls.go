// Package grpctls provides gRPC transport credentials with the TLS rules of Causeway: a
// tls.Config of the caller, ALPN protocols of one plane, TLS 1.3, and no session
// resumption.
//
//	net.Conn ─Guard▶ bounded ─handshake, 5 s▶ ALPN, version, no resumption ─▶ gRPC
//
// The TLS credentials of gRPC require the ALPN protocol "h2". With them, a client of one
// plane could connect to the server of another plane.
//
// Invariants:
//   - No byte of HTTP/2 is read from a peer before the handshake is complete and the peer
//     has agreed on an ALPN protocol of the plane.
//   - This package does not authenticate peers. The tls.Config does so in
//     VerifyConnection, and a handler can read the result from State.
package grpctls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// HandshakeTimeout is the longest duration of a handshake.
const HandshakeTimeout = 5 * time.Second

var (
	// ErrALPN reports a peer that did not agree on an ALPN protocol of the plane.
	ErrALPN = errors.New("peer did not agree on an ALPN protocol of the plane")
	// ErrSession reports a session that was resumed or has another version than TLS 1.3.
	ErrSession = errors.New("TLS session was resumed or is not TLS 1.3")
)

// Guard wraps a connection before its handshake, for example to bound the bytes that are
// read before the peer is authenticated. proven is called after a successful handshake.
// Neither result may be nil.
type Guard func(net.Conn) (guarded net.Conn, proven func())

// Config configures the handshakes. ALPN and TLS are required.
type Config struct {
	// ALPN are the protocols of the plane, one for each version, best first. They replace
	// the protocols of each tls.Config.
	ALPN []string
	// TLS returns the tls.Config for one handshake. It is called for each handshake, so
	// that certificates and roots can change. The result is not modified.
	TLS func() (*tls.Config, error)
	// Guard wraps each connection. If nil, connections are not wrapped.
	Guard Guard
	// Failed is called with the error of each failed handshake. gRPC passes on only the
	// text of such an error. If nil, it is not called.
	Failed func(error)
}

// New returns transport credentials for a gRPC server or client.
func New(c Config) credentials.TransportCredentials { return creds{c} }

type creds struct{ Config }

// ClientHandshake implements credentials.TransportCredentials.
func (c creds) ClientHandshake(ctx context.Context, _ string,
	conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.report(c.handshake(ctx, conn, tls.Client))
}

// ServerHandshake implements credentials.TransportCredentials.
func (c creds) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	// gRPC passes no context here. HandshakeTimeout ends the handshake.
	return c.report(c.handshake(context.Background(), conn, tls.Server))
}

// report returns its arguments, and calls Failed if there is an error.
func (c creds) report(conn net.Conn, auth credentials.AuthInfo,
	err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil && c.Failed != nil {
		c.Failed(err)
	}
	return conn, auth, err
}

// handshake completes the TLS handshake on conn. It closes conn if it fails.
func (c creds) handshake(ctx context.Context, conn net.Conn,
	side func(net.Conn, *tls.Config) *tls.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := c.TLS()
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("prepare TLS: %w", err)
	}
	config = config.Clone()
	config.NextProtos = slices.Clone(c.ALPN)
	raw, proven := conn, func() {}
	if c.Guard != nil {
		conn, proven = c.Guard(conn)
	}
	// The limit is a context, because gRPC has set its own deadline on conn.
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
	// crypto/tls accepts a peer that offers no ALPN protocol.
	if !slices.Contains(c.ALPN, state.NegotiatedProtocol) {
		return fmt.Errorf("want one of %q, got %q: %w", c.ALPN, state.NegotiatedProtocol, ErrALPN)
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

// OverrideServerName implements credentials.TransportCredentials. It always fails,
// because the server name is part of the tls.Config.
func (c creds) OverrideServerName(string) error {
	return errors.New("set the server name in the tls.Config")
}

// info is the result of a handshake.
type info struct {
	credentials.CommonAuthInfo
	state tls.ConnectionState
	raw   net.Conn
}

// AuthType implements credentials.AuthInfo.
func (info) AuthType() string { return "causeway-tls" }

// State returns the TLS state of the connection of the gRPC call with context ctx. It
// returns false if the connection does not use credentials of this package.
func State(ctx context.Context) (tls.ConnectionState, bool) {
	i, ok := infoFrom(ctx)
	return i.state, ok
}

// CloseConn closes the connection of the gRPC call with context ctx, which ends all calls
// on it. Use it if the peer does not read: after a handler returns, gRPC keeps queued
// messages in memory until the peer has read them.
func CloseConn(ctx context.Context) {
	if i, ok := infoFrom(ctx); ok {
		i.raw.Close()
	}
}

func infoFrom(ctx context.Context) (info, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return info{}, false
	}
	i, ok := p.AuthInfo.(info)
	return i, ok
}
