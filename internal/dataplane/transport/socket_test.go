package transport

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func wantTuned(t *testing.T, c *net.TCPConn) {
	t.Helper()
	for name, o := range map[string]struct{ level, option, want int }{
		"keepalive":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"idle":          {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		"interval":      {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10},
		"count":         {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 6},
		"user timeout":  {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000},
		"without delay": {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	} {
		err := control(c, func(fd int) error {
			got, err := unix.GetsockoptInt(fd, o.level, o.option)
			if err == nil && got != o.want {
				t.Errorf("%s: %d, want %d", name, got, o.want)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTune(t *testing.T) {
	c, _ := pair(t)
	wantTuned(t, c)
	c.Close()
	if err := Tune(c); err == nil {
		t.Error("a closed connection was tuned")
	}
}

func TestIngressInterface(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]struct{ network, listen, dial string }{
		"IPv4":                    {"tcp4", "127.0.0.1:0", "127.0.0.1"},
		"IPv4, any address":       {"tcp4", "0.0.0.0:0", "127.0.0.2"},
		"IPv6":                    {"tcp6", "[::1]:0", "::1"},
		"IPv4 over a IPv6 socket": {"tcp", "[::]:0", "127.0.0.1"},
	} {
		ln, err := net.Listen(a.network, a.listen)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		d, err := net.Dial("tcp", net.JoinHostPort(a.dial, port))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c, err := ln.Accept()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := IngressInterface(c.(*net.TCPConn)); err != nil || got != lo.Index {
			t.Errorf("%s: interface %d, %v; want %d", name, got, err, lo.Index)
		}
		c.Close()
		if got, err := IngressInterface(c.(*net.TCPConn)); err == nil {
			t.Errorf("%s: a closed connection came by interface %d", name, got)
		}
		d.Close()
		ln.Close()
	}
}

func TestIsTransient(t *testing.T) {
	for name, c := range map[string]struct {
		why  string
		err  error
		want bool
	}{
		"no descriptor": {"others will close theirs", &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}, true},
		"aborted":       {"that caller has gone, the next has not", unix.ECONNABORTED, true},
		"closed":        {"no more will come", net.ErrClosed, false},
		"none":          {"nothing has failed", nil, false},
	} {
		if got := IsTransient(c.err); got != c.want {
			t.Errorf("%s: %v, want %v: %s", name, got, c.want, c.why)
		}
	}
}
