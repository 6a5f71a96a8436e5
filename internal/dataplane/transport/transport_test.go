package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds what would hang if the code were wrong.
const testTimeout = 20 * time.Second

// pair returns the two ends of a real TCP connection, both tuned, closed with the test.
func pair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	dialed, accepted = c.(*net.TCPConn), s.(*net.TCPConn)
	for _, c := range []*net.TCPConn{dialed, accepted} {
		if err := Tune(c); err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(testTimeout))
		t.Cleanup(func() { c.Close() })
	}
	return dialed, accepted
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func clientConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, ServerName: "Label.Causeway.Internal", NextProtos: []string{"causeway-tunnel/2"}}
}

func serverConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"causeway-tunnel/2"}, SessionTicketsDisabled: true}
}

// tunnelOver shakes hands over two ends of a connection.
func tunnelOver(t testing.TB, dialed, accepted net.Conn) (client, server *tls.Conn) {
	t.Helper()
	c, s := WrapDialed(dialed), WrapAccepted(accepted, nil)
	client, server = tls.Client(c, clientConfig()), tls.Server(s, serverConfig())
	done := make(chan error, 1)
	go func() { done <- server.HandshakeContext(t.Context()) }()
	if err := errors.Join(client.HandshakeContext(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	c.MarkProven()
	s.MarkProven()
	return client, server
}

func tunnelPair(t testing.TB) (client, server *tls.Conn) {
	t.Helper()
	d, a := pair(t)
	return tunnelOver(t, d, a)
}

func wantReset(t *testing.T, who string, c io.Reader) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s read %d bytes and then %v, want a reset", who, n, err)
	}
}

func wantEnd(t *testing.T, who string, c io.Reader, want string) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		t.Errorf("%s read %d bytes and then %v, want %d bytes and a clean end", who, len(got), err, len(want))
	}
}

// What crypto/tls alone takes for a clean end is none here.
func TestRawEOFIsTruncation(t *testing.T) {
	for name, end := range map[string]func(*tls.Conn){
		"FIN":          func(c *tls.Conn) { c.NetConn().(*Raw).Conn.(*net.TCPConn).CloseWrite() },
		"FIN and more": func(c *tls.Conn) { c.NetConn().(*Raw).Conn.Write([]byte{23, 3, 3, 0}); c.NetConn().Close() },
	} {
		client, server := tunnelPair(t)
		if _, err := client.Write([]byte("half a mes")); err != nil {
			t.Fatal(err)
		}
		end(client)
		got, err := io.ReadAll(server)
		if !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != "half a mes" {
			t.Errorf("%s: %q, %v; want %v", name, got, err, ErrTruncated)
		}
		if name == "FIN" && !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: %v, want %v", name, err, ErrTruncated)
		}
	}
	client, server := tunnelPair(t)
	client.Close()
	wantEnd(t, "after close_notify the server", server, "")
}

func TestUnprovenBytesAreBounded(t *testing.T) {
	d, a := pair(t)
	raw := WrapAccepted(a, []byte("hello"))
	go func() {
		d.Write(make([]byte, 2*MaxUnproven))
		d.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, raw); n != MaxUnproven || !errors.Is(err, ErrUnproven) {
		t.Errorf("%d bytes, %v; want %d and %v", n, err, MaxUnproven, ErrUnproven)
	}
	raw.MarkProven()
	if n, err := io.Copy(io.Discard, raw); n != MaxUnproven+5 || !errors.Is(err, ErrTruncated) {
		t.Errorf("once proven %d bytes, %v; want the other %d", n, err, MaxUnproven+5)
	}
}

func TestRawReadsPrefixFirst(t *testing.T) {
	d, a := pair(t)
	d.Write([]byte("world"))
	b := make([]byte, 10)
	raw := WrapAccepted(a, []byte("hello"))
	if _, err := io.ReadFull(raw, b); err != nil || string(b) != "helloworld" {
		t.Errorf("%q, %v", b, err)
	}
}

// What one write makes under TLS goes to the network in one write.
func TestBatchWrites(t *testing.T) {
	client, server := tunnelPair(t)
	raw := client.NetConn().(*Raw)
	counted := &counting{Conn: raw.Conn}
	raw.Replace(counted)
	if err := raw.BatchWrites(func() error { _, err := client.Write(make([]byte, bufferSize)); return err }); err != nil {
		t.Fatal(err)
	}
	if counted.writes != 1 {
		t.Errorf("%d writes, want 1", counted.writes)
	}
	if _, err := io.ReadFull(server, make([]byte, bufferSize)); err != nil {
		t.Errorf("the server: %v", err)
	}
	client.Write(make([]byte, 10))
	if counted.writes != 2 {
		t.Errorf("%d writes after one that is not gathered, want 2", counted.writes)
	}
}

type counting struct {
	net.Conn
	writes int
}

func (c *counting) Write(b []byte) (int, error) { c.writes++; return c.Conn.Write(b) }

func TestResetIsSeenAsReset(t *testing.T) {
	client, server := tunnelPair(t)
	client.NetConn().(*Raw).Reset()
	client.NetConn().(*Raw).Reset() // twice is harmless
	wantReset(t, "server", server)
}
