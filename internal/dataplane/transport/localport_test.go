package transport

import (
	"errors"
	"net"
	"testing"
	"time"
)

// More short connections than there are ports: each one's port is used again at once.
func TestLocalPortsAreUsedAgain(t *testing.T) {
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
	l := fewPorts(41000, 41015)
	for i := range 200 {
		c, err := l.Dial(t.Context(), ln.Addr().String())
		if err != nil {
			t.Fatalf("connection %d over 16 ports: %v", i, err)
		}
		if port := c.LocalAddr().(*net.TCPAddr).Port; port < 41000 || port > 41015 {
			t.Fatalf("it comes from port %d", port)
		}
		c.(*net.TCPConn).CloseWrite()
		c.Read(make([]byte, 1))
		c.Close()
	}
}

// fewPorts are LocalPorts with a range of their own.
func fewPorts(low, high uint16) *LocalPorts {
	return &LocalPorts{ports: portRange{low: low, high: high}, read: time.Now().Add(time.Hour)}
}

func TestNoLocalPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := fewPorts(41100, 41103)
	for range 4 {
		c, err := l.Dial(t.Context(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := l.Dial(t.Context(), ln.Addr().String()); !errors.Is(err, ErrNoLocalPort) {
		t.Errorf("a fifth over four ports: %v, want %v", err, ErrNoLocalPort)
	}
	other, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c, err := l.Dial(t.Context(), other.Addr().String())
	if err != nil {
		t.Fatalf("the same ports serve another address: %v", err)
	}
	c.Close()
}

func TestParsePortRange(t *testing.T) {
	cases := map[string]struct {
		local, reserved string
		low, high       uint16
		without         []uint16
		bad             bool
	}{
		"usual":     {local: "32768\t60999\n", reserved: "\n", low: 32768, high: 60999},
		"reserved":  {local: "1000 2000", reserved: "80,1500,1990-2010\n", low: 1000, high: 2000, without: []uint16{1500, 1990, 2000}},
		"nonsense":  {local: "a b", bad: true},
		"backwards": {local: "2000 1000", bad: true},
		"zero":      {local: "0 1000", bad: true},
		"one":       {local: "1000", bad: true},
	}
	for name, c := range cases {
		got, err := parsePortRange(c.local, c.reserved)
		if (err != nil) != c.bad || !c.bad && (got.low != c.low || got.high != c.high) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		for _, port := range c.without {
			if !got.reserved[port] {
				t.Errorf("%s: %d is not reserved", name, port)
			}
		}
	}
	if _, err := readPortRange("/proc/sys/net/ipv4"); err != nil {
		t.Errorf("this kernel's: %v", err)
	}
}
