package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// listen serves each accepted connection until the test ends.
func listen(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[nc] = true
			mu.Unlock()
			wg.Go(func() { serve(nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for nc := range open {
			nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// dialMux connects a client that runs until the test ends.
func dialMux(t testing.TB, addr string, cfg Config) *Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Client = true
	c := New(nc, cfg)
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(context.Background()) })
	t.Cleanup(func() {
		nc.Close()
		wg.Wait()
	})
	return c
}

func requestHead(method, target string, fields ...message.Field) *message.Head {
	return &message.Head{
		Version:   message.HTTP2,
		Method:    method,
		Target:    target,
		Scheme:    "http",
		Authority: "app.test",
		Fields:    fields,
	}
}

// echo answers with the request's target in a field, its body, and trailers.
func echo(s *Stream) {
	var h message.Head
	end, err := s.ReadHead(&h)
	if err != nil {
		return
	}
	resp := message.Head{
		Version: message.HTTP2,
		Status:  200,
		Fields:  []message.Field{{Name: "x-target", Value: h.Target}},
	}
	if end {
		s.WriteHead(&resp, []byte("hello"), true)
		return
	}
	if s.WriteHead(&resp, nil, false) != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := s.Read(buf)
		if _, werr := s.Write(buf[:n], false); werr != nil {
			return
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
	}
	s.WriteTrailers(&message.Head{Fields: []message.Field{{Name: "x-sum", Value: "done"}}})
}

func readAll(s *Stream) ([]byte, error) {
	var out bytes.Buffer
	buf := make([]byte, 32<<10)
	for {
		n, err := s.Read(buf)
		out.Write(buf[:n])
		if err == io.EOF {
			return out.Bytes(), nil
		}
		if err != nil {
			return out.Bytes(), err
		}
	}
}

// unencrypted permits HTTP/2 with prior knowledge only.
func unencrypted() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &p
}

func h2Transport(t testing.TB) *http.Transport {
	tr := &http.Transport{Protocols: unencrypted()}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func TestServesTransportOfNetHTTP(t *testing.T) {
	addr := listen(t, func(nc net.Conn) { New(nc, Config{Handle: echo}).Run(context.Background()) })
	client := &http.Client{Transport: h2Transport(t)}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			body := strings.Repeat(fmt.Sprint(i), 1<<(i%20))
			resp, err := client.Post("http://"+addr+fmt.Sprint("/", i), "", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || string(got) != body {
				t.Errorf("body of %d bytes, %v: want %d bytes", len(got), err, len(body))
			}
			if resp.Header.Get("X-Target") != fmt.Sprint("/", i) || resp.Trailer.Get("X-Sum") != "done" {
				t.Errorf("header %v, trailer %v", resp.Header, resp.Trailer)
			}
		})
	}
	wg.Wait()
}

func serveNetHTTP2(t testing.TB, h http.HandlerFunc) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, Protocols: unencrypted()}
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	t.Cleanup(func() {
		server.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestUsesServerOfNetHTTP(t *testing.T) {
	addr := serveNetHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusEarlyHints)
		sum := sha256.New()
		io.Copy(io.MultiWriter(w, sum), r.Body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
	})
	c := dialMux(t, addr, Config{})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			body := bytes.Repeat([]byte{byte(i)}, 1<<(i%21))
			var s *Stream
			var err error
			// The server does not read the whole body before it answers, so reading and
			// writing go on at the same time.
			if s, err = c.Open(requestHead("POST", "/"), nil, false); err != nil {
				t.Error(err)
				return
			}
			wg.Go(func() {
				if _, err := s.Write(body, true); err != nil {
					t.Error(err)
				}
			})
			var h message.Head
			if _, err := s.ReadHead(&h); err != nil || h.Status != 103 {
				t.Errorf("status %d, %v: want 103", h.Status, err)
			}
			if _, err := s.ReadHead(&h); err != nil || h.Status != 200 {
				t.Errorf("status %d, %v: want 200", h.Status, err)
			}
			got, err := readAll(s)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("got %d bytes, %v: want %d", len(got), err, len(body))
			}
			if !s.Trailers(&h) {
				t.Error("no trailers")
			}
			if sum, _ := h.Get("x-sum"); sum != fmt.Sprintf("%x", sha256.Sum256(body)) {
				t.Errorf("sum %q", sum)
			}
		})
	}
	wg.Wait()
	if n := c.Load(); n != 0 {
		t.Errorf("%d streams are still open", n)
	}
	if rtt, err := c.Ping(t.Context()); err != nil || rtt <= 0 {
		t.Errorf("ping: %v, %v", rtt, err)
	}
	c.GoAway()
	<-c.Done()
	if c.reason() != "graceful" {
		t.Errorf("reason %q", c.reason())
	}
	if _, err := c.Open(requestHead("GET", "/"), nil, true); !errors.Is(err, ErrClosed) {
		t.Errorf("open after the end: %v", err)
	}
}
