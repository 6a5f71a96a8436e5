package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// frames is a connection that gives what it was made of.
type frames struct {
	net.Conn // nil: nothing else is called
	io.Reader
}

func (f frames) Read(b []byte) (int, error) { return f.Reader.Read(b) }

// data returns a DATA frame.
func data(n int) []byte {
	b := make([]byte, tunnel.PrefixLen+n)
	tunnel.PutPrefix(b, tunnel.TypeData, n)
	return b
}

func empty(t tunnel.Type) []byte {
	var b [tunnel.PrefixLen]byte
	tunnel.PutPrefix(b[:], t, 0)
	return b[:]
}

func TestReadPayload(t *testing.T) {
	end := empty(tunnel.TypeEnd)
	cases := map[string]struct {
		why  string
		in   [][]byte
		want int
		err  error
	}{
		"one frame": {
			why: "what a client sends",
			in:  [][]byte{data(64), end}, want: 64,
		},
		"empty": {
			why: "a payload may be empty",
			in:  [][]byte{end},
		},
		"two frames": {
			why: "the server sees frames, not writes",
			in:  [][]byte{data(1), data(2), end}, want: 3,
		},
		"largest": {
			why: "the bound counts bytes",
			in:  [][]byte{data(MaxPayload - 1), data(1), end}, want: MaxPayload,
		},
		"one too many": {
			why: "memory is bounded",
			in:  [][]byte{data(MaxPayload), data(1), end}, err: tunnel.ErrFrameTooLong,
		},
		"empty frames": {
			why: "they could be sent without end",
			in:  [][]byte{data(0), end}, err: tunnel.ErrBadFrame,
		},
		"reset": {
			why: "a probe has no application that resets",
			in:  [][]byte{empty(tunnel.TypeReset)}, err: tunnel.ErrUnexpectedFrame,
		},
		"no end": {
			why: "truncation is an error",
			in:  [][]byte{data(5)}, err: io.EOF,
		},
		"cut": {
			why: "truncation is an error",
			in:  [][]byte{data(5)[:6]}, err: io.ErrUnexpectedEOF,
		},
	}
	for name, c := range cases {
		got, err := readPayload(tunnel.NewConn(frames{Reader: bytes.NewReader(bytes.Join(c.in, nil))}))
		if len(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %d bytes, %v; want %d, %v: %s", name, len(got), err, c.want, c.err, c.why)
		}
	}
}

func FuzzReadPayload(f *testing.F) {
	f.Add(append(data(3), empty(tunnel.TypeEnd)...))
	f.Add(data(0))
	f.Add(empty(tunnel.TypeIdle))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readPayload(tunnel.NewConn(frames{Reader: bytes.NewReader(in)}))
		if len(got) > MaxPayload || err != nil && got != nil {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

func TestOptionsAreBounded(t *testing.T) {
	for _, n := range []int{-1, MaxPayload + 1} {
		if _, r := Open(t.Context(), Options{Payload: n}); r.Err == nil || r.Stage != StageDial {
			t.Errorf("a probe with %d bytes: %+v", n, r)
		}
	}
}

// A probe of a peer that says nothing ends with its context, without a byte received.
func TestProbeEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // which never answers
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r := Run(ctx, Options{Address: ln.Addr().String(), TLS: clientTLS(t)})
	if r.Stage != StageTLS || !errors.Is(r.Err, context.DeadlineExceeded) || !r.LastByte.IsZero() {
		t.Errorf("%+v", r)
	}
}

func clientTLS(t *testing.T) *tls.Config {
	t.Helper()
	verify := func(tls.ConnectionState) error { return nil }
	return identity.ClientTLS(identity.PlaneTunnel, "peer.test", nil, verify)
}
