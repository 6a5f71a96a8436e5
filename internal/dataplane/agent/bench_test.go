package agent

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// The benchmarks of this file carry calls from end to end, through both agents and the
// gateway in this process, and make the same calls directly.

// latePort leaves the choice of a port to connect: at bind the kernel would search longer
// the more connections have been.
func latePort(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}), err)
}

func (w *harness) benchDial(b *testing.B, addr net.Addr) *net.TCPConn {
	b.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(alice)}, Control: latePort}
	conn := must(d.DialContext(b.Context(), "tcp", addr.String()))(b)
	return conn.(*net.TCPConn)
}

// benchBoth runs bench through the mirror and directly.
func (w *harness) benchBoth(b *testing.B, bench func(b *testing.B, addr net.Addr)) {
	b.Run("mirror", func(b *testing.B) { bench(b, w.mirror.Addr()) })
	b.Run("direct", func(b *testing.B) { bench(b, w.app.Addr()) })
}

// BenchmarkNewConnection makes a connection for each call.
func BenchmarkNewConnection(b *testing.B) {
	w := newHarness(b, echo)
	w.benchBoth(b, func(b *testing.B, addr net.Addr) {
		for b.Loop() {
			c := w.benchDial(b, addr)
			c.SetDeadline(time.Now().Add(testTimeout))
			if answer := must(ask(c, "hello"))(b); answer != "you said hello" {
				b.Fatalf("%q", answer)
			}
			io.Copy(io.Discard, c)
			transport.Reset(c)
		}
	})
}

// BenchmarkRoundTrip sends 64 bytes there and back on a connection that stays open.
func BenchmarkRoundTrip(b *testing.B) {
	w := newHarness(b, echoLines)
	w.benchBoth(b, func(b *testing.B, addr net.Addr) {
		c := w.benchDial(b, addr)
		defer transport.Reset(c)
		buf := make([]byte, 64)
		for b.Loop() {
			must(c.Write(buf))(b)
			must(io.ReadFull(c, buf))(b)
		}
	})
}

// bulkSize is how much one operation of BenchmarkBulk carries.
const bulkSize = 64 << 20

// BenchmarkBulk carries bulkSize bytes per operation on a connection that stays open, in
// one direction. CPU time is that of the process, and so of client and application too.
func BenchmarkBulk(b *testing.B) {
	w := newHarness(b, serveBulk)
	for _, direction := range []string{"down", "up"} {
		b.Run(direction, func(b *testing.B) {
			w.benchBoth(b, func(b *testing.B, addr net.Addr) {
				c := w.benchDial(b, addr)
				defer transport.Reset(c)
				buf := make([]byte, 256<<10)
				b.SetBytes(bulkSize)
				before := cpuTime(b)
				for b.Loop() {
					up, down := uint64(0), uint64(bulkSize)
					if direction == "up" {
						up, down = bulkSize, 1
					}
					head := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, up), down)
					must(c.Write(head))(b)
					must(0, sendZeros(c, buf, up))(b)
					must(0, discard(c, buf, down))(b)
				}
				used := cpuTime(b) - before
				b.ReportMetric(used.Seconds()/(float64(b.N)*bulkSize/1e9), "cpu-s/GB")
			})
		})
	}
}

// serveBulk reads two lengths, discards as many bytes as the first says and sends as many
// as the second says, again and again.
func serveBulk(c *net.TCPConn) {
	buf := make([]byte, 256<<10)
	for {
		var head [16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		if discard(c, buf, binary.BigEndian.Uint64(head[:])) != nil ||
			sendZeros(c, buf, binary.BigEndian.Uint64(head[8:])) != nil {
			return
		}
	}
}

func sendZeros(c net.Conn, buf []byte, n uint64) error {
	for n > 0 {
		sent, err := c.Write(buf[:min(n, uint64(len(buf)))])
		if err != nil {
			return err
		}
		n -= uint64(sent)
	}
	return nil
}

func discard(c net.Conn, buf []byte, n uint64) error {
	for n > 0 {
		got, err := c.Read(buf[:min(n, uint64(len(buf)))])
		if err != nil {
			return err
		}
		n -= uint64(got)
	}
	return nil
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIdle opens a connection per operation and leaves it open after one round trip.
// It reports the memory that each one costs both agents, the gateway and their clients.
func BenchmarkIdle(b *testing.B) {
	w := newHarness(b, echoLines)
	w.benchBoth(b, func(b *testing.B, addr net.Addr) {
		var open []*net.TCPConn
		before := memoryInUse()
		for b.Loop() {
			c := w.benchDial(b, addr)
			buf := make([]byte, 64)
			must(c.Write(buf))(b)
			must(io.ReadFull(c, buf))(b)
			open = append(open, c)
		}
		after := memoryInUse()
		b.ReportMetric(float64(after-before)/float64(b.N)/1024, "KiB/connection")
		for _, c := range open {
			transport.Reset(c)
		}
	})
}

// memoryInUse returns the bytes of live objects and of stacks.
func memoryInUse() int64 {
	runtime.GC()
	runtime.GC() // the first one empties the pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
