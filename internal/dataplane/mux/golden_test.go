package mux

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

var update = flag.Bool("update", false, "rewrite the golden vectors")

// recordConn keeps what is written to it.
type recordConn struct {
	net.Conn
	mu      sync.Mutex
	written bytes.Buffer
}

func (c *recordConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.written.Write(p)
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// vector is one frame of testdata/session.json, in hex.
type vector struct {
	Session, From, Frame, Bytes string
}

// vectors splits what one end wrote into its frames.
func vectors(session, from string, b []byte) (out []vector) {
	if rest, ok := bytes.CutPrefix(b, []byte(http2.ClientPreface)); ok {
		out = append(out, vector{session, from, "preface", hex.EncodeToString(b[:len(b)-len(rest)])})
		b = rest
	}
	for len(b) > 0 {
		n := frameHeaderLen + int(b[0])<<16 + int(b[1])<<8 + int(b[2])
		out = append(out, vector{session, from, http2.FrameType(b[3]).String(), hex.EncodeToString(b[:n])})
		b = b[n:]
	}
	return out
}

// TestGoldenSession holds the bytes of a small session, which both ends of a link must
// agree on across versions.
func TestGoldenSession(t *testing.T) {
	var got []vector
	for _, session := range []string{"HTTP1", "HTTP2"} {
		synctest.Test(t, func(t *testing.T) {
			var cfg Config
			if session == "HTTP1" {
				cfg.Coding = rawCoding{}
			}
			a, b := newMemoryPair()
			near, far := &recordConn{Conn: a}, &recordConn{Conn: b}
			serverCfg := cfg
			serverCfg.Handle = echo
			server := New(far, serverCfg)
			cfg.Client = true
			client := New(near, cfg)
			done := make(chan struct{}, 2)
			go func() { server.Run(t.Context()); done <- struct{}{} }()
			synctest.Wait()
			go func() { client.Run(t.Context()); done <- struct{}{} }()
			synctest.Wait()
			req := requestHead("POST", "/a%2fb", message.Field{Name: "x-a", Value: "1"})
			s, err := client.Open(req, []byte("hello"), true)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := readResponse(s); err != nil {
				t.Error(err)
			}
			client.GoAway()
			<-done
			<-done
			got = append(got, vectors(session, "client", near.written.Bytes())...)
			got = append(got, vectors(session, "server", far.written.Bytes())...)
		})
	}
	path := filepath.Join("testdata", "session.json")
	if *update {
		raw, err := json.MarshalIndent(got, "", "  ")
		if err == nil {
			err = os.WriteFile(path, append(raw, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want []vector
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("golden session (-want +got):\n%s", d)
	}
}
