package transport

import (
	"errors"
	"net"
	"testing"
	"time"
)

// More short connections than there are ports: each one's port is used again at once.
func TestLocalPortsAreReused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1)) // our FIN: the one who dials closes first, and has TIME_WAIT
			c.Close()
		}
	}()
	l := newLocalPorts(21000, 21015)
	for i := range 200 {
		c, err := dialOwnPort(t, l, ln.Addr().String())
		if err != nil {
			t.Fatalf("connection %d over 16 ports: %v", i, err)
		}
		if port := c.LocalAddr().(*net.TCPAddr).Port; port < 21000 || port > 21015 {
			t.Fatalf("it comes from port %d", port)
		}
		c.(*net.TCPConn).CloseWrite()
		c.Read(make([]byte, 1))
		c.Close()
	}
}

// newLocalPorts are LocalPorts with ports of their own. Tests use ports below those that
// the kernel gives to programs, which may be in use at any time.
func newLocalPorts(low, high uint16) *LocalPorts {
	l := &LocalPorts{read: time.Now().Add(time.Hour)}
	for port := low; port <= high; port++ {
		l.ports = append(l.ports, port)
	}
	return l
}

// dialOwnPort dials from a port of ours, as when the kernel has none.
func dialOwnPort(t *testing.T, l *LocalPorts, address string) (net.Conn, error) {
	t.Helper()
	return l.dialFromOwnPort(t.Context(), address)
}

func TestNoLocalPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := newLocalPorts(21100, 21103)
	for range 4 {
		c, err := dialOwnPort(t, l, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := dialOwnPort(t, l, ln.Addr().String()); !errors.Is(err, ErrNoLocalPort) {
		t.Errorf("a fifth over four ports: %v, want %v", err, ErrNoLocalPort)
	}
	other, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c, err := dialOwnPort(t, l, other.Addr().String())
	if err != nil {
		t.Fatalf("the same ports serve another address: %v", err)
	}
	c.Close()
}

func TestParsePortRange(t *testing.T) {
	cases := map[string]struct {
		local, reserved   string
		low, high, number int // of ours
		bad               bool
	}{
		"usual":        {local: "32768\t60999\n", reserved: "\n", low: 53942, high: 60999, number: 7058},
		"reserved":     {local: "1000 2000", reserved: "80,1500,1990-2010\n", low: 1750, high: 1989, number: 240},
		"all reserved": {local: "1000 2000", reserved: "1-65535", bad: true},
		"one":          {local: "1000 1000", low: 1000, high: 1000, number: 1},
		"to the end":   {local: "65532 65535", low: 65535, high: 65535, number: 1},
		"nonsense":     {local: "a b", bad: true},
		"backwards":    {local: "2000 1000", bad: true},
		"zero":         {local: "0 1000", bad: true},
		"half":         {local: "1000", bad: true},
	}
	for name, c := range cases {
		got, err := parsePortRange(c.local, c.reserved)
		if (err != nil) != c.bad {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !c.bad && (len(got) != c.number || int(got[0]) != c.low || int(got[len(got)-1]) != c.high) {
			t.Errorf("%s: %d ports, %d to %d; want %d, %d to %d", name, len(got), got[0], got[len(got)-1], c.number, c.low, c.high)
		}
	}
	if _, err := readPortRange("/proc/sys/net/ipv4"); err != nil {
		t.Errorf("this kernel's: %v", err)
	}
}

// The kernel chooses as long as it has a port: ports of ours are lost to others for a
// while.
func TestLocalPortsPreferKernelChoice(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := newLocalPorts(41200, 41201)
	c, err := l.Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if port := c.LocalAddr().(*net.TCPAddr).Port; port == 41200 || port == 41201 {
		t.Errorf("it comes from port %d, of ours", port)
	}
}
