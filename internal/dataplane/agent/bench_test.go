package agent

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// latePort leaves the choice of a port to connect: at bind the kernel would search longer the more connections have been.
func latePort(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}), err)
}

// BenchmarkNewConnection is the whole way of a call on a connection of its own, both agents and the gateway in this process,
// beside the same call of the app without them.
func BenchmarkNewConnection(b *testing.B) {
	w := newWorld(b, echo)
	call := func(b *testing.B, addr net.Addr) {
		b.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(alice)}, Control: latePort}
		conn := must(d.DialContext(b.Context(), "tcp", addr.String()))(b)
		c := conn.(*net.TCPConn)
		defer transport.Reset(c)
		c.SetDeadline(time.Now().Add(tooLong))
		if answer := must(ask(c, "hello"))(b); answer != "you said hello" {
			b.Fatalf("%q", answer)
		}
		io.Copy(io.Discard, c)
	}
	b.Run("mirror", func(b *testing.B) {
		for b.Loop() {
			call(b, w.mirror.Addr())
		}
	})
	b.Run("direct", func(b *testing.B) {
		for b.Loop() {
			call(b, w.app.Addr())
		}
	})
}
