package agent

import (
	"encoding/binary"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// BenchmarkResponseBody downloads 64 MiB over HTTP/2 with each request. It reports the CPU
// time for each GB.
func BenchmarkResponseBody(b *testing.B) {
	const size = 64 << 20
	w := newHarness(b, serveBodies(size, new(atomic.Int64)))
	w.benchBoth(b, func(b *testing.B, addr net.Addr) {
		c := w.benchDial(b, addr)
		defer c.Close()
		must(c.Write(bodyPreface(1<<31 - 1)))(b)
		more := rawFrame(http2.FrameWindowUpdate, 0, binary.BigEndian.AppendUint32(nil, size))
		b.SetBytes(size)
		start := cpuTime(b)
		buf, rest := make([]byte, 256<<10), 0
		for i := range b.N {
			id := uint32(2*i + 1)
			must(c.Write(getBody.appendTo(nil, id)))(b)
			for ended := false; !ended; {
				must(0, readRawFrames(c, buf, &rest, func(t http2.FrameType, flags http2.Flags, of uint32) {
					carries := t == http2.FrameData || t == http2.FrameHeaders
					ended = ended || of == id && carries && flags.Has(http2.FlagDataEndStream)
				}))(b)
			}
			must(c.Write(more))(b)
		}
		b.ReportMetric((cpuTime(b)-start).Seconds()/float64(b.N)/size*1e9, "cpu-s/GB")
	})
}

// BenchmarkStalledResponses makes b.N requests of HTTP/2, 100 on each connection. Their
// responses have long bodies of which the client permits no byte. It reports the memory
// and the CPU time for each, and how much of its body the application has written.
func BenchmarkStalledResponses(b *testing.B) {
	const streams = 100
	var written atomic.Int64
	w := newHarness(b, serveBodies(1<<30, &written))
	before, start := memoryInUse(), cpuTime(b)
	buf := make([]byte, 64<<10)
	for n := 0; n < b.N; n += streams {
		c := w.benchDial(b, w.mirror.Addr())
		defer c.Close()
		out := bodyPreface(0)
		missing := min(streams, b.N-n)
		for i := range missing {
			out = getBody.appendTo(out, uint32(2*i+1))
		}
		must(c.Write(out))(b)
		for rest := 0; missing > 0; {
			must(0, readRawFrames(c, buf, &rest, func(t http2.FrameType, _ http2.Flags, _ uint32) {
				if t == http2.FrameHeaders {
					missing--
				}
			}))(b)
		}
	}
	for last := int64(-1); last != written.Load(); <-time.After(200 * time.Millisecond) {
		last = written.Load()
	}
	b.ReportMetric((cpuTime(b)-start).Seconds()*1e6/float64(b.N), "cpu-µs/each")
	b.ReportMetric(float64(written.Load())/1024/float64(b.N), "written-KiB/each")
	b.ReportMetric(float64(memoryInUse()-before)/1024/float64(b.N), "KiB/each")
}

// serveBodies returns an application of HTTP/2 that answers with bodies of size bytes, and
// counts in written what it has written of them.
func serveBodies(size int, written *atomic.Int64) func(*net.TCPConn) {
	body := make([]byte, 32<<10)
	return serveHTTP(func(w http.ResponseWriter, _ *http.Request) {
		for sent := 0; sent < size; {
			n, err := w.Write(body)
			if err != nil {
				return
			}
			sent += n
			written.Add(int64(n))
		}
	})
}

// bodyPreface begins a connection whose streams have a receive window.
func bodyPreface(window uint32) []byte {
	b := append([]byte(http2.ClientPreface), rawFrame(http2.FrameSettings, 0,
		binary.BigEndian.AppendUint32([]byte{0, byte(http2.SettingInitialWindowSize)}, window))...)
	return append(b, rawFrame(http2.FrameWindowUpdate, 0, binary.BigEndian.AppendUint32(nil, 1<<31-1<<16))...)
}

var getBody = rawStream{rawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream,
	append([]byte{0x82, 0x86}, rawFields(":path", "/", ":authority", "bar-east")...))} // GET, http
