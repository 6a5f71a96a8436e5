package transport

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// More short connections than there are ports: each one's port is used again at once.
func TestLocalPortsAreReused(t *testing.T) {
	address := serveFIN(t)
	l := newLocalPorts(21000, 21015)
	for i := range 200 {
		c, err := dialOwnPort(t, l, address)
		if err != nil {
			t.Fatalf("connection %d over 16 ports: %v", i, err)
		}
		if port := c.LocalAddr().(*net.TCPAddr).Port; port < 21000 || port > 21015 {
			t.Fatalf("it comes from port %d", port)
		}
		closeFirst(c)
	}
}

// serveFIN returns the address of a server that closes connections after their client has.
func serveFIN(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1)) // our FIN
			c.Close()
		}
	}()
	return ln.Addr().String()
}

// closeFirst closes a connection to serveFIN, so that this end has TIME_WAIT.
func closeFirst(c net.Conn) {
	c.(*net.TCPConn).CloseWrite()
	c.Read(make([]byte, 1))
	c.Close()
}

// TestFrequentAddressUsesOwnPorts: the kernel chooses the ports of the first dials of an
// address. Its search takes long when many of them are in TIME_WAIT.
func TestFrequentAddressUsesOwnPorts(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := newLocalPorts(21200, 21203)
	for i := range 12 {
		c, err := l.Dial(t.Context(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // after the ports of ours, the kernel's are used again
		port := c.LocalAddr().(*net.TCPAddr).Port
		if own := port >= 21200 && port <= 21203; own != (i >= 4 && i < 8) {
			t.Errorf("connection %d comes from port %d", i, port)
		}
	}
}

// TestFrequentAddresses: connections count for one to two minutes, and each address for itself.
func TestFrequentAddresses(t *testing.T) {
	l := newLocalPorts(21200, 21203)
	start := time.Now()
	for _, step := range []struct {
		at      time.Duration
		address string
		dials   int
		want    bool // of the last dial
	}{
		{0, "a", 4, false},
		{0, "a", 1, true},
		{0, "b", 4, false},
		{timeWait, "a", 1, true},
		{timeWait, "b", 1, true},
		{2 * timeWait, "a", 1, false}, // one dial of the minute before counts
		{5 * timeWait, "b", 4, false}, // those of b are over
	} {
		var got bool
		for range step.dials {
			got = l.isFrequent(step.address, start.Add(step.at))
			l.count(step.address, start.Add(step.at))
		}
		if got != step.want {
			t.Errorf("%s after %v: %v, want %v", step.address, step.at, got, step.want)
		}
	}
	for i := range 2 * maxCounted {
		l.count(strconv.Itoa(i), start.Add(5*timeWait))
	}
	if n := len(l.dials); n > maxCounted {
		t.Errorf("%d addresses are counted", n)
	}
}

// BenchmarkLocalPorts makes b.N short connections to one address. The kernel's search for a
// port becomes slow after 14,000 of them within a minute:
//
//	unshare -n sh -c 'ip link set lo up; sysctl -w net.ipv4.tcp_tw_reuse=0
//	  go test ./internal/dataplane/transport -run "^$" -bench LocalPorts -benchtime 20000x'
func BenchmarkLocalPorts(b *testing.B) {
	var l LocalPorts
	for name, dial := range map[string]func(context.Context, string) (net.Conn, error){
		"LocalPorts": l.Dial,
		"kernel": func(ctx context.Context, address string) (net.Conn, error) {
			return l.dialFrom(ctx, "tcp", 0, address)
		},
	} {
		b.Run(name, func(b *testing.B) {
			address := serveFIN(b)
			for b.Loop() {
				c, err := dial(b.Context(), address)
				if err != nil {
					b.Fatal(err)
				}
				closeFirst(c)
			}
		})
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
	return l.dialFromOwnPort(t.Context(), address, portTries)
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

// TestNoSourceAddress: the kernel answers with the same error if the host has no address
// from which it can reach another one. That is no lack of ports, and other ports do not help.
func TestNoSourceAddress(t *testing.T) {
	missing := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}
	for name, tc := range map[string]struct {
		udp   error // of a UDP socket
		ports bool  // the error says that ports are used up
		dials int   // of TCP
	}{
		"no source address": {missing, false, 1},
		"no port":           {nil, true, 1 + 4},
		"a firewall":        {syscall.EPERM, true, 1 + 4}, // it says nothing about addresses
	} {
		t.Run(name, func(t *testing.T) {
			l, dials := newLocalPorts(21300, 21303), 0
			l.connect = func(network, _ string, _ uint16) (net.Conn, error) {
				if network == "tcp" {
					dials++
					return nil, missing
				}
				here, there := net.Pipe()
				there.Close()
				return here, tc.udp
			}
			_, err := l.Dial(t.Context(), "[2001:db8::1]:80")
			if got := errors.Is(err, ErrNoLocalPort); got != tc.ports || !got && !errors.Is(err, syscall.EADDRNOTAVAIL) {
				t.Errorf("%v, want ErrNoLocalPort: %v", err, tc.ports)
			}
			if dials != tc.dials {
				t.Errorf("%d dials, want %d", dials, tc.dials)
			}
		})
	}
}

// TestFailedDialsDoNotCount: an address that cannot be reached does not become frequent.
func TestFailedDialsDoNotCount(t *testing.T) {
	l := newLocalPorts(21400, 21403)
	l.connect = func(string, string, uint16) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	for range 100 {
		if _, err := l.Dial(t.Context(), "192.0.2.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
	if l.isFrequent("192.0.2.1:80", time.Now()) {
		t.Error("an address that refuses all connections is frequent")
	}
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

// The kernel chooses the port for an address that is dialed seldom, because ports of ours
// are lost to others for a while.
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
