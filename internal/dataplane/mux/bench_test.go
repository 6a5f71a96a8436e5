package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// rawCoding is a minimal coding for tests: a first line, then fields.
type rawCoding struct{}

func (rawCoding) AppendHead(dst []byte, h *message.Head) ([]byte, error) {
	switch {
	case h.Method != "":
		dst = append(dst, h.Method...)
		dst = append(dst, ' ')
		dst = append(dst, h.Target...)
		dst = append(dst, " HTTP/1.1\r\n"...)
	case h.Status != 0:
		dst = append(dst, "HTTP/1.1 "...)
		dst = append(dst, statusText(h.Status)...)
		dst = append(dst, ' ')
		dst = append(dst, h.Reason...)
		dst = append(dst, "\r\n"...)
	}
	for i := range h.Fields {
		dst = append(dst, h.Fields[i].Name...)
		dst = append(dst, ": "...)
		dst = append(dst, h.Fields[i].Value...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...), nil
}

var errRaw = errors.New("malformed raw block")

func (rawCoding) ParseHead(block []byte, kind Kind, h *message.Head) error {
	*h = message.Head{Version: message.HTTP11, Fields: h.Fields[:0]}
	text := string(block)
	text, ok := strings.CutSuffix(text, "\r\n\r\n")
	if !ok {
		return errRaw
	}
	if kind != Trailers {
		var line string
		line, text, _ = strings.Cut(text, "\r\n")
		if kind == Request {
			h.Method, line, _ = strings.Cut(line, " ")
			h.Target, _, ok = strings.Cut(line, " ")
		} else if ok = len(line) >= 12; ok {
			h.Status = int(line[9]-'0')*100 + int(line[10]-'0')*10 + int(line[11]-'0')
			_, h.Reason, _ = strings.Cut(line[12:], " ")
		}
		if !ok {
			return errRaw
		}
	}
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\r\n")
		name, value, ok := strings.Cut(line, ": ")
		if !ok {
			return errRaw
		}
		h.Fields = append(h.Fields, message.Field{Name: name, Value: value})
	}
	return nil
}

var kibibyte = bytes.Repeat([]byte("x"), 1<<10)

// answerKibibyte answers with a body of 1 KiB. Its values are static, so that the
// benchmark counts the allocations of the package.
func answerKibibyte(s *Stream) {
	h := newHead()
	defer freeHead(h)
	if _, err := s.ReadHead(h); err != nil {
		return
	}
	h.Fields = append(h.Fields[:0],
		message.Field{Name: "content-length", Value: "1024"},
		message.Field{Name: "content-type", Value: "application/octet-stream"},
		message.Field{Name: "date", Value: "Mon, 30 Nov 2026 03:00:00 GMT"})
	*h = message.Head{Version: message.HTTP2, Status: 200, Fields: h.Fields}
	s.WriteHead(h, kibibyte, true)
}

var benchFields = []message.Field{
	{Name: "user-agent", Value: "bench/1.0"},
	{Name: "accept", Value: "*/*"},
	{Name: "accept-encoding", Value: "gzip"},
}

func getKibibyte(c *Conn, h, req *message.Head, buf []byte) error {
	s, err := c.Open(req, nil, true)
	if err != nil {
		return err
	}
	if _, err := s.ReadHead(h); err != nil {
		return err
	}
	for total := 0; ; {
		n, err := s.Read(buf)
		total += n
		if err == io.EOF {
			if total != 1024 {
				return errors.New("short body")
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func benchmarkUnary(b *testing.B, cfg Config, parallelism int, client, server net.Conn) {
	cfg.Handle = answerKibibyte
	go New(server, cfg).Run(context.Background())
	cfg.Client, cfg.Handle = true, nil
	c := New(client, cfg)
	ran := make(chan struct{})
	go func() { c.Run(context.Background()); close(ran) }()
	req := requestHead("GET", "/", benchFields...)
	if err := getKibibyte(c, new(message.Head), req, make([]byte, 4096)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetParallelism(parallelism)
	b.ResetTimer()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		var h message.Head
		buf := make([]byte, 4096)
		for pb.Next() {
			if err := getKibibyte(c, &h, req, buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	c.GoAway()
	<-ran
}

// reportCPU reports the processor time of both ends per request, which other load on the
// machine does not distort.
func reportCPU(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	return func() { b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op") }
}

func tcpPair(b testing.TB) (net.Conn, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// concurrencies are in streams per processor.
var concurrencies = map[string]int{"c=1": 1, "c=16": 16, "c=128": 128}

// BenchmarkUnary measures a request with a response of 1 KiB, both ends in this process.
func BenchmarkUnary(b *testing.B) {
	for _, name := range []string{"c=1", "c=16", "c=128"} {
		n := concurrencies[name]
		for coding, cfg := range map[string]Config{
			"hpack": {MaxStreams: 1000},
			"raw":   {MaxStreams: 1000, Coding: rawCoding{}},
		} {
			b.Run("tcp/"+coding+"/"+name, func(b *testing.B) {
				client, server := tcpPair(b)
				benchmarkUnary(b, cfg, n, client, server)
			})
			b.Run("memory/"+coding+"/"+name, func(b *testing.B) {
				client, server := newMemoryPair()
				benchmarkUnary(b, cfg, n, client, server)
			})
		}
	}
}

// BenchmarkUnaryNetHTTP2 is the same exchange with the Transport and Server of net/http.
func BenchmarkUnaryNetHTTP2(b *testing.B) {
	addr := serveNetHTTP2(b, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Content-Length"] = []string{"1024"}
		h["Content-Type"] = []string{"application/octet-stream"}
		h["Date"] = []string{"Mon, 30 Nov 2026 03:00:00 GMT"}
		w.Write(kibibyte)
	})
	client := &http.Client{Transport: h2Transport(b)}
	for _, name := range []string{"c=1", "c=16", "c=128"} {
		b.Run("tcp/"+name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(concurrencies[name])
			defer reportCPU(b)()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := client.Get("http://" + addr + "/")
					if err != nil {
						b.Error(err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		})
	}
}
