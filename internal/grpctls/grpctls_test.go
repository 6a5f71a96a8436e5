package grpctls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/test/bufconn"

	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/grpctls/grpctlstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const alpn = "causeway-test/1"

// pipe returns the two ends of a connection that buffers a few bytes, as TCP does.
func pipe(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln := bufconn.Listen(4 << 10)
	accepted := make(chan net.Conn)
	go func() {
		c, _ := ln.Accept() // the dial below reports failures
		accepted <- c
	}()
	client, err := ln.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	t.Cleanup(func() { client.Close(); server.Close(); ln.Close() })
	return client, server
}

// rejectAll is a VerifyConnection that rejects every peer.
func rejectAll(tls.ConnectionState) error { return errors.New("rejected") }

func TestServerHandshake(t *testing.T) {
	cases := map[string]struct {
		why    string
		client func(*tls.Config)
		server func(*tls.Config)
		fails  bool
		want   error // the error, if the test checks it
	}{
		"valid": {
			why: "a client with the right protocol and certificate is accepted",
		},
		"no ALPN": {
			why:    "crypto/tls accepts a client without ALPN",
			fails:  true,
			want:   grpctls.ErrALPN,
			client: func(c *tls.Config) { c.NextProtos = nil },
		},
		"another plane": {
			why:    "the peer of a tunnel must not connect to the controller",
			fails:  true,
			client: func(c *tls.Config) { c.NextProtos = []string{"causeway-tunnel/2"} },
		},
		"h2": {
			why:    "a standard gRPC client must not connect",
			fails:  true,
			client: func(c *tls.Config) { c.NextProtos = []string{"h2"} },
		},
		"TLS 1.2": {
			why:   "TLS 1.3 is required even if the tls.Config allows an older version",
			fails: true,
			want:  grpctls.ErrSession,
			client: func(c *tls.Config) {
				c.NextProtos, c.MinVersion, c.MaxVersion = []string{alpn}, tls.VersionTLS12, tls.VersionTLS12
			},
			server: func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 },
		},
		"no certificate": {
			why:    "the tls.Config requires a client certificate",
			fails:  true,
			client: func(c *tls.Config) { c.Certificates = nil },
		},
		"rejected": {
			why:    "VerifyConnection of the tls.Config decides about the client",
			fails:  true,
			server: func(c *tls.Config) { c.VerifyConnection = rejectAll },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			serverTLS, clientTLS := grpctlstest.Pair(t, "west")
			clientTLS.NextProtos = []string{alpn}
			if tc.client != nil {
				tc.client(clientTLS)
			}
			if tc.server != nil {
				tc.server(serverTLS)
			}
			near, far := pipe(t)
			go func() { // ends when the pipe is closed
				c := tls.Client(near, clientTLS)
				_ = c.HandshakeContext(t.Context())
				_, _ = io.Copy(io.Discard, c)
			}()
			var reported error
			proven := false
			creds := grpctls.New(grpctls.Config{
				ALPN:   []string{alpn},
				TLS:    grpctlstest.Config(serverTLS),
				Guard:  func(c net.Conn) (net.Conn, func()) { return c, func() { proven = true } },
				Failed: func(err error) { reported = err },
			})
			conn, auth, err := creds.ServerHandshake(far)
			if (err != nil) != tc.fails || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want one: %v, of kind %v: %s", err, tc.fails, tc.want, tc.why)
			}
			if reported != err || proven == tc.fails {
				t.Errorf("reported %v, proven %v, after error %v: %s", reported, proven, err, tc.why)
			}
			if err != nil {
				return
			}
			defer conn.Close()
			ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: auth})
			state, ok := grpctls.State(ctx)
			if !ok || state.PeerCertificates[0].Subject.CommonName != "west" {
				t.Errorf("State has peer certificates %v, want those of west", state.PeerCertificates)
			}
			if err := credentials.CheckSecurityLevel(auth, credentials.PrivacyAndIntegrity); err != nil {
				t.Errorf("gRPC would not send tokens on the connection: %v", err)
			}
			grpctls.CloseConn(ctx)
			if _, err := conn.Write([]byte("x")); err == nil {
				t.Error("the connection is open after CloseConn")
			}
		})
	}
}

// TestVersionsAreNegotiated: two versions of Causeway agree on the best protocol that
// both know.
func TestVersionsAreNegotiated(t *testing.T) {
	newer, older := []string{"plane/3", "plane/2"}, []string{"plane/2"}
	for name, tc := range map[string]struct {
		client, server []string
		want           string // empty: none
	}{
		"both newer":     {newer, newer, "plane/3"},
		"newer client":   {newer, older, "plane/2"},
		"newer server":   {older, newer, "plane/2"},
		"none in common": {newer, []string{"plane/1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			serverTLS, clientTLS := grpctlstest.Pair(t, "west")
			clientTLS.ServerName = grpctlstest.ServerName
			near, far := pipe(t)
			agreed := make(chan string, 1)
			caller := grpctls.New(grpctls.Config{ALPN: tc.client, TLS: grpctlstest.Config(clientTLS)})
			called := grpctls.New(grpctls.Config{ALPN: tc.server, TLS: grpctlstest.Config(serverTLS)})
			go func() { // ends when the pipe is closed
				_, auth, err := caller.ClientHandshake(t.Context(), "", near)
				agreed <- protocolOf(t, auth, err)
			}()
			_, auth, err := called.ServerHandshake(far)
			server, client := protocolOf(t, auth, err), <-agreed
			if server != tc.want || client != tc.want {
				t.Errorf("server %q (%v), client %q, want %q", server, err, client, tc.want)
			}
		})
	}
}

// protocolOf returns the protocol that a handshake agreed on, or nothing after an error.
func protocolOf(t *testing.T, auth credentials.AuthInfo, err error) string {
	if err != nil {
		return ""
	}
	state, ok := grpctls.State(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: auth}))
	if !ok {
		t.Error("a handshake without a TLS state")
	}
	return state.NegotiatedProtocol
}

func TestClientHandshakeRequiresALPN(t *testing.T) {
	serverTLS, clientTLS := grpctlstest.Pair(t, "west")
	serverTLS.NextProtos = nil
	near, far := pipe(t)
	go func() { _ = tls.Server(far, serverTLS).HandshakeContext(t.Context()) }()
	creds := grpctls.New(grpctls.Config{ALPN: []string{alpn}, TLS: grpctlstest.Config(clientTLS)})
	if _, _, err := creds.ClientHandshake(t.Context(), "", near); !errors.Is(err, grpctls.ErrALPN) {
		t.Errorf("handshake with a server without ALPN: error %v, want ErrALPN", err)
	}
	if clientTLS.NextProtos != nil {
		t.Error("the handshake changed the tls.Config")
	}
	if _, err := near.Write([]byte("x")); err == nil {
		t.Error("the connection is open after a failed handshake")
	}
}

func TestHandshakeTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		serverTLS, _ := grpctlstest.Pair(t, "west")
		_, far := pipe(t)
		start := time.Now()
		creds := grpctls.New(grpctls.Config{ALPN: []string{alpn}, TLS: grpctlstest.Config(serverTLS)})
		_, _, err := creds.ServerHandshake(far)
		if err == nil || time.Since(start) != grpctls.HandshakeTimeout {
			t.Errorf("handshake with a silent client ended after %v with %v, want an error after %v",
				time.Since(start), err, grpctls.HandshakeTimeout)
		}
	})
}

func TestStateWithoutHandshake(t *testing.T) {
	if _, ok := grpctls.State(context.Background()); ok {
		t.Error("State of a context without a connection returns true")
	}
	grpctls.CloseConn(context.Background()) // does not panic
}

// queue is a listener that accepts the connections in conns.
type queue struct {
	net.Listener
	conns chan net.Conn
}

func (q queue) Accept() (net.Conn, error) { return <-q.conns, nil }

func TestLimit(t *testing.T) {
	q := queue{conns: make(chan net.Conn, 4)}
	connect := func() (far net.Conn) {
		near, far := net.Pipe()
		q.conns <- near
		return far
	}
	refused := 0
	ln := grpctls.Limit(q, 2, func() { refused++ })
	accept := func() net.Conn {
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	connect()
	connect()
	one := accept()
	accept()
	excess := connect()
	third := make(chan net.Conn)
	go func() { third <- accept() }()
	if _, err := excess.Read(make([]byte, 1)); err == nil {
		t.Error("a connection beyond the limit is open")
	}
	one.Close()
	one.Close() // the second Close has no effect
	connect()
	<-third
	if refused != 1 {
		t.Errorf("refused was called %d times, want 1", refused)
	}
}
