package h1

import (
	"bytes"
	"io"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

const typicalRequest = "GET /api/v1/products/4711?currency=EUR&expand=stock HTTP/1.1\r\n" +
	"Host: bar-east.shop.svc.cluster.local:8080\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\n" +
	"Accept: application/json, text/plain, */*\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\n" +
	"Accept-Language: en-US,en;q=0.9\r\n" +
	"Authorization: Bearer eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.e30\r\n" +
	"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n" +
	"X-Request-Id: 7d0c9e5c-1f3b-4d0e-9c39-6b9d9f3f1f2a\r\n" +
	"Cookie: session=abcdef0123456789; theme=dark\r\n" +
	"Connection: keep-alive\r\n\r\n"

// repeated is a connection that sends the same bytes again and again, one message per
// read.
type repeated struct{ message []byte }

func (r repeated) Read(p []byte) (int, error) { return copy(p, r.message), nil }

func BenchmarkReadRequest(b *testing.B) {
	r := NewReader(repeated{[]byte(typicalRequest)}, Limits{})
	var h message.Head
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.ReadRequest(&h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseBlock(b *testing.B) {
	var h message.Head
	r := NewReader(repeated{[]byte(typicalRequest)}, Limits{})
	if _, err := r.ReadRequest(&h); err != nil {
		b.Fatal(err)
	}
	StripHop(&h)
	block := AppendBlock(nil, &h)
	b.ReportAllocs()
	for b.Loop() {
		if err := ParseRequestBlock(block, &h, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendRequest(b *testing.B) {
	var h message.Head
	r := NewReader(repeated{[]byte(typicalRequest)}, Limits{})
	f, err := r.ReadRequest(&h)
	if err != nil {
		b.Fatal(err)
	}
	StripHop(&h)
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = AppendRequest(out[:0], &h, f)
	}
}

func BenchmarkReadChunkedBody(b *testing.B) {
	message1 := []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
	for range 8 {
		message1 = AppendChunk(message1, bytes.Repeat([]byte("x"), 1000))
	}
	message1 = AppendLastChunk(message1, nil)
	r := NewReader(repeated{message1}, Limits{})
	var h message.Head
	p := make([]byte, 32<<10)
	b.SetBytes(8000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.ReadResponse(&h, "GET"); err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := r.ReadBody(p); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}
