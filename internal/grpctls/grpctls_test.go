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

// pipe returns two ends with a little room, as TCP has.
func pipe(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln := bufconn.Listen(4 << 10)
	accepted := make(chan net.Conn)
	go func() {
		c, _ := ln.Accept() // the dial below tells what goes wrong
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

// refuses is a VerifyConnection that believes nobody.
func refuses(tls.ConnectionState) error { return errors.New("not this one") }

func TestServerHandshake(t *testing.T) {
	cases := map[string]struct {
		why    string
		client func(*tls.Config)
		server func(*tls.Config)
		want   error // nil with fails: any
		fails  bool
	}{
		"both ends right": {why: "it must work at all"},
		"no ALPN": {why: "crypto/tls lets a client without ALPN through", fails: true, want: grpctls.ErrALPN,
			client: func(c *tls.Config) { c.NextProtos = nil }},
		"another plane": {why: "a tunnel's peer must not speak to the controller", fails: true,
			client: func(c *tls.Config) { c.NextProtos = []string{"causeway-tunnel/1"} }},
		"gRPC's own ALPN": {why: "a stray gRPC client is no client of ours", fails: true,
			client: func(c *tls.Config) { c.NextProtos = []string{"h2"} }},
		"TLS 1.2": {why: "even where a config forgets to say so", fails: true, want: grpctls.ErrSession,
			client: func(c *tls.Config) {
				c.NextProtos, c.MinVersion, c.MaxVersion = []string{alpn}, tls.VersionTLS12, tls.VersionTLS12
			},
			server: func(c *tls.Config) { c.MinVersion = tls.VersionTLS12 }},
		"no certificate": {why: "the config's demands stand", fails: true,
			client: func(c *tls.Config) { c.Certificates = nil }},
		"not believed": {why: "the config's verification stands", fails: true,
			server: func(c *tls.Config) { c.VerifyConnection = refuses }},
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
			go func() { // ended by the pipe
				c := tls.Client(near, clientTLS)
				_ = c.HandshakeContext(t.Context())
				_, _ = io.Copy(io.Discard, c)
			}()
			var told error
			proven := false
			creds := grpctls.New(grpctls.Config{ALPN: alpn, TLS: grpctlstest.Config(serverTLS),
				Guard:  func(c net.Conn) (net.Conn, func()) { return c, func() { proven = true } },
				Failed: func(err error) { told = err }})
			conn, auth, err := creds.ServerHandshake(far)
			if (err != nil) != tc.fails || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("%s: got %v, want failure %v of %v", tc.why, err, tc.fails, tc.want)
			}
			if told != err || proven == tc.fails {
				t.Errorf("%s: told %v and proven %v of %v", tc.why, told, proven, err)
			}
			if err != nil {
				return
			}
			defer conn.Close()
			ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: auth})
			state, ok := grpctls.State(ctx)
			if !ok || state.PeerCertificates[0].Subject.CommonName != "west" {
				t.Errorf("the state must say who the peer is, got %v", state.PeerCertificates)
			}
			if err := credentials.CheckSecurityLevel(auth, credentials.PrivacyAndIntegrity); err != nil {
				t.Errorf("gRPC sends tokens only where it is safe: %v", err)
			}
			grpctls.Cut(ctx)
			if _, err := conn.Write([]byte("x")); err == nil {
				t.Error("a cut connection must be closed")
			}
		})
	}
}

func TestClientHandshake(t *testing.T) {
	serverTLS, clientTLS := grpctlstest.Pair(t, "west")
	serverTLS.NextProtos = nil // a server of no plane
	near, far := pipe(t)
	go func() { _ = tls.Server(far, serverTLS).HandshakeContext(t.Context()) }()
	creds := grpctls.New(grpctls.Config{ALPN: alpn, TLS: grpctlstest.Config(clientTLS)})
	if _, _, err := creds.ClientHandshake(t.Context(), "", near); !errors.Is(err, grpctls.ErrALPN) {
		t.Errorf("a server that names no plane is not ours, got %v", err)
	}
	if clientTLS.NextProtos != nil {
		t.Error("the caller's config must not be changed")
	}
	if _, err := near.Write([]byte("x")); err == nil {
		t.Error("a refused connection must be closed")
	}
}

func TestHandshakeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		serverTLS, _ := grpctlstest.Pair(t, "west")
		_, far := pipe(t)
		start := time.Now()
		creds := grpctls.New(grpctls.Config{ALPN: alpn, TLS: grpctlstest.Config(serverTLS)})
		_, _, err := creds.ServerHandshake(far)
		if err == nil || time.Since(start) != grpctls.HandshakeTimeout {
			t.Errorf("who says nothing is given %v, this one had %v (%v)", grpctls.HandshakeTimeout, time.Since(start), err)
		}
	})
}

func TestStateOfStrangers(t *testing.T) {
	if _, ok := grpctls.State(context.Background()); ok {
		t.Error("a connection without our handshake proves nothing")
	}
	grpctls.Cut(context.Background()) // and there is nothing to cut
}

// queue is a listener of connections that are there already.
type queue struct {
	net.Listener
	conns chan net.Conn
}

func (q queue) Accept() (net.Conn, error) { return <-q.conns, nil }

func TestLimit(t *testing.T) {
	q := queue{conns: make(chan net.Conn, 4)}
	arrive := func() (far net.Conn) {
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
	arrive()
	arrive()
	one := accept()
	accept()
	past := arrive()
	third := make(chan net.Conn)
	go func() { third <- accept() }()
	if _, err := past.Read(make([]byte, 1)); err == nil {
		t.Error("a connection past the limit must be closed")
	}
	one.Close()
	one.Close() // counts once
	arrive()
	<-third
	if refused != 1 {
		t.Errorf("one connection was past the limit, %d were told", refused)
	}
}
