package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// The benchmark of this file sends requests on kept connections, each with one request at
// a time. Client and application exchange bytes that were written before, so that they
// cost as little as can be.

// benchConns are the numbers of kept connections.
var benchConns = []int{1, 32, 256}

// BenchmarkRequests sends b.N requests through the mirror, then as many directly. It
// reports the CPU time and the allocations of a request through the mirror beyond those of
// a direct one, and the latencies as multiples of the direct ones.
func BenchmarkRequests(b *testing.B) {
	for _, p := range []benchProtocol{http1Get, grpcUnary} {
		b.Run(p.name, func(b *testing.B) {
			w := newHarness(b, p.serve)
			for _, conns := range benchConns {
				b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) { w.benchRequests(b, p, conns) })
			}
		})
	}
}

// A benchProtocol is one kind of requests.
type benchProtocol struct {
	name  string
	serve func(*net.TCPConn) // the application
	// client returns a function that makes one request and reads its response.
	client func(*net.TCPConn) (func() error, error)
}

func (w *harness) benchRequests(b *testing.B, p benchProtocol, conns int) {
	// Both sets of connections are open during both halves.
	mirror, direct := w.benchClients(b, p, conns, w.mirror.Addr()), w.benchClients(b, p, conns, w.app.Addr())
	defer mirror.close()
	defer direct.close()
	runtime.GC()
	b.ResetTimer()
	via := mirror.run(b)
	b.StopTimer()
	base := direct.run(b)
	b.ReportMetric((via.cpu-base.cpu).Seconds()*1e6/float64(b.N), "cpu-µs/req")
	b.ReportMetric(base.cpu.Seconds()*1e6/float64(b.N), "direct-cpu-µs/req")
	b.ReportMetric(float64(via.allocs-base.allocs)/float64(b.N), "allocs/req")
	b.ReportMetric(float64(via.bytes-base.bytes)/float64(b.N), "B/req")
	b.ReportMetric(float64(via.percentile(50).Microseconds()), "p50-µs")
	b.ReportMetric(float64(via.percentile(50))/float64(base.percentile(50)), "p50-ratio")
	b.ReportMetric(float64(via.percentile(99))/float64(base.percentile(99)), "p99-ratio")
}

type benchClients struct {
	conns []*net.TCPConn
	calls []func() error
}

func (w *harness) benchClients(b *testing.B, p benchProtocol, conns int, addr net.Addr) *benchClients {
	b.Helper()
	s := &benchClients{}
	for range conns {
		c := w.benchDial(b, addr)
		call := must(p.client(c))(b)
		must(0, call())(b)
		s.conns, s.calls = append(s.conns, c), append(s.calls, call)
	}
	return s
}

func (s *benchClients) close() {
	for _, c := range s.conns {
		transport.Reset(c)
	}
}

// A benchCost is what some requests took.
type benchCost struct {
	cpu           time.Duration
	allocs, bytes uint64
	latencies     []time.Duration // in order
}

func (c *benchCost) percentile(p int) time.Duration {
	return c.latencies[min(len(c.latencies)-1, len(c.latencies)*p/100)]
}

// run makes b.N requests over all connections.
func (s *benchClients) run(b *testing.B) *benchCost {
	b.Helper()
	cost := &benchCost{latencies: make([]time.Duration, b.N)}
	var next atomic.Int64
	var clients sync.WaitGroup
	var failed sync.Once
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := cpuTime(b)
	for _, call := range s.calls {
		clients.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				began := time.Now()
				if err := call(); err != nil {
					failed.Do(func() { b.Error(err) })
					return
				}
				cost.latencies[i] = time.Since(began)
			}
		})
	}
	clients.Wait()
	cost.cpu = cpuTime(b) - start
	runtime.ReadMemStats(&after)
	cost.allocs, cost.bytes = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	slices.Sort(cost.latencies)
	return cost
}

// http1Get is a GET of 1 KiB with the fields that a usual client and server send.
var http1Get = benchProtocol{
	name: "http1",
	serve: func(c *net.TCPConn) {
		c.SetDeadline(time.Time{})
		response := []byte("HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 30 Nov 2026 04:00:00 GMT\r\n" +
			"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024))
		buf := make([]byte, 4<<10)
		for {
			n, err := c.Read(buf)
			if err != nil || !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
				return
			}
			if _, err := c.Write(response); err != nil {
				return
			}
		}
	},
	client: func(c *net.TCPConn) (func() error, error) {
		request := []byte("GET /items/1 HTTP/1.1\r\nHost: bar-east\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
		buf := make([]byte, 4<<10)
		return func() error {
			if _, err := c.Write(request); err != nil {
				return err
			}
			total, want := 0, -1
			for total != want {
				n, err := c.Read(buf[total:])
				if err != nil {
					return err
				}
				total += n
				if head := bytes.Index(buf[:total], []byte("\r\n\r\n")); want < 0 && head >= 0 {
					want = head + 4 + 1024
				}
			}
			if !bytes.HasPrefix(buf, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("%q", buf[:total])
			}
			return nil
		}, nil
	},
}

// grpcUnary is a call of gRPC with 64 bytes each way.
var grpcUnary = benchProtocol{name: "grpc", serve: serveRawGRPC, client: rawGRPCClient}

// rawFields are a header block without Huffman coding and without the dynamic table.
func rawFields(fields ...string) (block []byte) {
	for i := 0; i < len(fields); i += 2 {
		block = append(block, 0, byte(len(fields[i])))
		block = append(block, fields[i]...)
		block = append(block, byte(len(fields[i+1])))
		block = append(block, fields[i+1]...)
	}
	return block
}

func rawFrame(t http2.FrameType, flags http2.Flags, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(t))
	b = append(b, byte(flags), 0, 0, 0, 0)
	return append(b, payload...)
}

// rawPreface is SETTINGS and a window for all that the benchmark carries.
var rawPreface = slices.Concat(rawFrame(http2.FrameSettings, 0, nil),
	rawFrame(http2.FrameWindowUpdate, 0, binary.BigEndian.AppendUint32(nil, 1<<31-1<<16)))

var rawMessage = append([]byte{0, 0, 0, 0, 64}, make([]byte, 64)...)

// A rawStream is frames of one stream, whose identifier is written into each.
type rawStream [][]byte

func (r rawStream) appendTo(b []byte, id uint32) []byte {
	for _, frame := range r {
		at := len(b)
		b = append(b, frame...)
		binary.BigEndian.PutUint32(b[at+5:], id)
	}
	return b
}

// readRawFrames makes one read and calls each for the frames that are complete. The rest
// stays at the beginning of buf.
func readRawFrames(c *net.TCPConn, buf []byte, rest *int, each func(t http2.FrameType, flags http2.Flags, id uint32)) error {
	n, err := c.Read(buf[*rest:])
	if err != nil {
		return err
	}
	b := buf[:*rest+n]
	for len(b) >= 9 {
		size := 9 + int(binary.BigEndian.Uint32(b)>>8)
		if len(b) < size {
			break
		}
		each(http2.FrameType(b[3]), http2.Flags(b[4]), binary.BigEndian.Uint32(b[5:]))
		b = b[size:]
	}
	*rest = copy(buf, b)
	return nil
}

func serveRawGRPC(c *net.TCPConn) {
	c.SetDeadline(time.Time{})
	buf := make([]byte, 64<<10)
	if _, err := io.ReadFull(c, buf[:len(http2.ClientPreface)]); err != nil {
		return
	}
	response := rawStream{
		rawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, append([]byte{0x88}, rawFields("content-type", "application/grpc")...)),
		rawFrame(http2.FrameData, 0, rawMessage),
		rawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, rawFields("grpc-status", "0", "grpc-message", "")),
	}
	if _, err := c.Write(rawPreface); err != nil {
		return
	}
	var out []byte
	for rest := 0; ; out = out[:0] {
		err := readRawFrames(c, buf, &rest, func(t http2.FrameType, flags http2.Flags, id uint32) {
			if t == http2.FrameData && flags.Has(http2.FlagDataEndStream) {
				out = response.appendTo(out, id)
			}
		})
		if err != nil {
			return
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}
}

func rawGRPCClient(c *net.TCPConn) (func() error, error) {
	request := rawStream{
		rawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, append([]byte{0x83, 0x86}, // POST, http
			rawFields(":path", "/bench.Echo/Say", ":authority", "bar-east", "content-type", "application/grpc", "te", "trailers", "user-agent", "bench")...)),
		rawFrame(http2.FrameData, http2.FlagDataEndStream, rawMessage),
	}
	if _, err := c.Write(append([]byte(http2.ClientPreface), rawPreface...)); err != nil {
		return nil, err
	}
	buf, out := make([]byte, 16<<10), make([]byte, 0, 1<<10)
	rest, next := 0, uint32(1)
	return func() error {
		id := next
		next += 2
		if _, err := c.Write(request.appendTo(out[:0], id)); err != nil {
			return err
		}
		ended, data := false, 0
		for !ended {
			err := readRawFrames(c, buf, &rest, func(t http2.FrameType, flags http2.Flags, of uint32) {
				if t == http2.FrameData && of == id {
					data++
				}
				ended = ended || of == id && (t == http2.FrameRSTStream || t == http2.FrameHeaders && flags.Has(http2.FlagHeadersEndStream))
			})
			if err != nil {
				return err
			}
		}
		if data == 0 {
			return errors.New("a response without a message")
		}
		return nil
	}, nil
}
