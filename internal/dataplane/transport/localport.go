package transport

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoLocalPort reports that every local port that was tried has a connection to the address.
var ErrNoLocalPort = errors.New("no local port is free for another connection to this address")

const (
	// portTries is how many local ports are tried for one connection.
	portTries = 64
	// rangeAge is how old what is known of the kernel's ranges of ports may be.
	rangeAge = 10 * time.Second
)

// LocalPorts dials from local ports that it chooses itself. A port that the kernel
// chooses stays in use for a minute after its connection has ended (TIME_WAIT). That
// would limit a node to about 28,000 short connections a minute to one address. With a
// port that LocalPorts chooses, the kernel reuses a connection in TIME_WAIT at once, if
// both ends use TCP timestamps. The zero value is ready to use.
type LocalPorts struct {
	next atomic.Uint32

	mu    sync.Mutex // guards what follows
	read  time.Time
	ports portRange
	err   error
}

// A portRange is low to high, both included, without those that are reserved.
type portRange struct {
	low, high uint16
	reserved  map[uint16]bool
}

// Dial connects to a TCP address. The error wraps ErrNoLocalPort, or is the last attempt's.
func (l *LocalPorts) Dial(ctx context.Context, address string) (net.Conn, error) {
	ports, err := l.known()
	if err != nil {
		return new(net.Dialer).DialContext(ctx, "tcp", address) // the kernel chooses
	}
	count := uint32(ports.high-ports.low) + 1
	for range min(portTries, int(count)) {
		port := ports.low + uint16(l.next.Add(1)%count)
		if ports.reserved[port] {
			continue
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(port)}, Control: reuseAddress, KeepAlive: -1}
		c, err := d.DialContext(ctx, "tcp", address)
		if !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
			return c, err
		}
	}
	return nil, fmt.Errorf("%s: %w", address, ErrNoLocalPort)
}

// known returns the kernel's range of local ports.
func (l *LocalPorts) known() (portRange, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.read.IsZero() {
		l.next.Store(rand.Uint32())
	}
	if now := time.Now(); now.Sub(l.read) > rangeAge {
		l.ports, l.err = readPortRange("/proc/sys/net/ipv4")
		l.read = now
	}
	return l.ports, l.err
}

// readPortRange reads the kernel's ranges of local ports from a folder.
func readPortRange(folder string) (portRange, error) {
	local, err := os.ReadFile(folder + "/ip_local_port_range")
	if err != nil {
		return portRange{}, err
	}
	reserved, err := os.ReadFile(folder + "/ip_local_reserved_ports")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return portRange{}, err
	}
	return parsePortRange(string(local), string(reserved))
}

func parsePortRange(local, reserved string) (portRange, error) {
	fields := strings.Fields(local)
	if len(fields) != 2 {
		return portRange{}, fmt.Errorf("ip_local_port_range is %q", local)
	}
	low, lerr := strconv.ParseUint(fields[0], 10, 16)
	high, herr := strconv.ParseUint(fields[1], 10, 16)
	if lerr != nil || herr != nil || low == 0 || low > high {
		return portRange{}, fmt.Errorf("ip_local_port_range is %q", local)
	}
	out := portRange{uint16(low), uint16(high), make(map[uint16]bool)}
	for _, part := range strings.Split(strings.TrimSpace(reserved), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, ferr := strconv.ParseUint(from, 10, 16)
		last, terr := strconv.ParseUint(to, 10, 16)
		if ferr != nil || terr != nil {
			continue // none, or what a later kernel writes
		}
		for port := max(first, low); port <= min(last, high); port++ {
			out.reserved[uint16(port)] = true
		}
	}
	return out, nil
}

func reuseAddress(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}
