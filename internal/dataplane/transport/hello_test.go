package transport

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// captured is a connection that keeps what is written to it and then ends.
type captured struct {
	replayConn
	wrote bytes.Buffer
}

func (c *captured) Write(b []byte) (int, error) { return c.wrote.Write(b) }

// helloOf returns the hello that crypto/tls sends for a config.
func helloOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	c := &captured{replayConn: replayConn{r: bytes.NewReader(nil)}}
	if err := tls.Client(c, config).Handshake(); err == nil {
		t.Fatal("a handshake without a server")
	}
	return c.wrote.Bytes()
}

// inRecords cuts a hello's message into records of at most size bytes.
func inRecords(hello []byte, size int) []byte {
	var out []byte
	for part := range slices.Chunk(hello[5:], size) {
		out = append(out, 22, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(len(part)))
		out = append(out, part...)
	}
	return out
}

// streamed is a connection that gives bytes and then err.
func streamed(t *testing.T, b []byte) net.Conn {
	d, a := pair(t)
	go func() {
		d.Write(b)
		d.CloseWrite()
	}()
	return a
}

func TestReadClientHello(t *testing.T) {
	hello := helloOf(t, clientConfig())
	cases := map[string][]byte{
		"one record": hello,
		"8 records":  inRecords(hello, (len(hello)-5+7)/8),
		"split after a byte": slices.Concat(
			inRecords(hello[:6], 1),
			inRecords(append(make([]byte, 5), hello[6:]...), 4000),
		),
	}
	for name, raw := range cases {
		t.Run(name, func(t *testing.T) {
			conn := streamed(t, append(slices.Clone(raw), "rest"...))
			got, err := ReadClientHello(conn, testTimeout)
			if err != nil {
				t.Fatal(err)
			}
			want := ClientHello{raw, "label.causeway.internal", []string{"causeway-tunnel/2"}}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			wantEnd(t, "after the hello the connection", conn, "rest")
			if again, err := ParseClientHello(raw); err != nil || !cmp.Equal(again, want) {
				t.Errorf("parsed from its bytes: %+v, %v", again, err)
			}
		})
	}
}

func TestReadClientHelloRefuses(t *testing.T) {
	hello := helloOf(t, clientConfig())
	long := clientConfig()
	for range 40 {
		long.NextProtos = append(long.NextProtos, strings.Repeat("x", 250))
	}
	edit := func(at int, b ...byte) []byte {
		c := slices.Clone(hello)
		copy(c[at:], b)
		return c
	}
	announced := edit(6, 0xff, 0xff, 0xff)
	longer := append(edit(3, byte((len(hello)-4)>>8), byte(len(hello)-4)), 0)
	cases := map[string]struct {
		why    string
		in     []byte
		err    error
		reason string
	}{
		"nothing":           {"health checks open and close", nil, io.EOF, "closed"},
		"cut in the header": {"an end is not a hello", hello[:3], io.ErrUnexpectedEOF, "read_failed"},
		"cut in the record": {"an end is not a hello", hello[:50], io.ErrUnexpectedEOF, "read_failed"},
		"HTTP":              {"not TLS", []byte("GET / HTTP/1.1\r\n\r\n"), ErrNotTLS, "not_tls"},
		"alert":             {"not a handshake", []byte{21, 3, 3, 0, 2, 2, 40}, ErrNotTLS, "not_tls"},
		"empty record":      {"it brings nothing", []byte{22, 3, 1, 0, 0}, ErrNotTLS, "not_tls"},
		"server hello":      {"a message of another kind", edit(5, 2), ErrBadHello, "bad_hello"},
		"announces 16 MiB":  {"memory is bounded", announced, ErrHelloTooLong, "hello_too_long"},
		"really long":       {"memory is bounded", helloOf(t, long), ErrHelloTooLong, "hello_too_long"},
		"9 records":         {"work is bounded", inRecords(hello, 20), ErrHelloTooLong, "hello_too_long"},
		"second message":    {"the rest of the record would be lost", longer, ErrBadHello, "bad_hello"},
		"garbled":           {"crypto/tls has the last word", edit(43, 0xff), ErrBadHello, "bad_hello"},
	}
	for name, c := range cases {
		_, err := ReadClientHello(streamed(t, c.in), testTimeout)
		reason := HelloReason(err)
		if !errors.Is(err, c.err) || reason != c.reason || !slices.Contains(HelloReasons(), reason) {
			t.Errorf("%s: %v (%s), want %v (%s): %s", name, err, reason, c.err, c.reason, c.why)
		}
	}
	if _, err := ParseClientHello(append(slices.Clone(hello), 1)); !errors.Is(err, ErrBadHello) {
		t.Errorf("bytes after the hello: %v, want %v", err, ErrBadHello)
	}
}

// One byte a second keeps a connection busy no longer than the timeout for all of the
// hello.
func TestReadClientHelloTimeout(t *testing.T) {
	hello := helloOf(t, clientConfig())
	synctest.Test(t, func(t *testing.T) {
		slow, conn := net.Pipe()
		defer conn.Close()
		go func() {
			for i := range hello {
				if _, err := slow.Write(hello[i : i+1]); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		}()
		start := time.Now()
		_, err := ReadClientHello(conn, 3*time.Second)
		took := time.Since(start)
		if !errors.Is(err, os.ErrDeadlineExceeded) || HelloReason(err) != "hello_timeout" || took != 3*time.Second {
			t.Errorf("%v after %v, want a timeout after 3s", err, took)
		}
		slow.Close()
		bubble.Pass(2 * time.Second) // the writer wakes and ends
	})
}

// The agent gets a hello that the gateway has read, and completes the handshake with it.
func TestHandshakeAfterReadClientHello(t *testing.T) {
	d, a := pair(t)
	client := tls.Client(WrapDialed(d), clientConfig())
	done := make(chan error, 1)
	go func() { done <- client.HandshakeContext(t.Context()) }()
	hello, err := ReadClientHello(a, testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	server := tls.Server(WrapAccepted(a, hello.Raw), serverConfig())
	if err := errors.Join(server.HandshakeContext(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
}

func TestRefuse(t *testing.T) {
	d, a := pair(t)
	client := tls.Client(d, clientConfig())
	go func() {
		if _, err := ReadClientHello(a, testTimeout); err == nil {
			Refuse(a)
		}
	}()
	var alert tls.AlertError
	err := client.HandshakeContext(t.Context())
	var op *net.OpError
	named := errors.As(err, &op) && strings.Contains(op.Err.Error(), "unrecognized name")
	if !errors.As(err, &alert) && !named {
		t.Errorf("%v, want the alert", err)
	}
}

func FuzzClientHello(f *testing.F) {
	hello := helloOf(f, clientConfig())
	f.Add(hello)
	f.Add(inRecords(hello, 300))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		raw, err := readHelloRecords(r)
		if read := len(b) - r.Len(); read > route.MaxHello+5 {
			t.Fatalf("%d bytes read", read)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(raw, b[:len(b)-r.Len()]) {
			t.Fatal("what was read is not what is handed on")
		}
		h, err := parseHello(raw)
		again, err2 := ParseClientHello(raw)
		if (err == nil) != (err2 == nil) || !cmp.Equal(h, again) {
			t.Fatalf("gateway and agent disagree: %+v, %v and %+v, %v", h, err, again, err2)
		}
	})
}
