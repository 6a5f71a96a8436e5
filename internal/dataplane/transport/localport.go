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

// ErrNoLocalPort reports that each local port that was tried has a connection to the
// address already.
var ErrNoLocalPort = errors.New("no local port is free for another connection to this address")

const (
	// portTries is how many local ports are tried for one connection. quickTries is how
	// many of them are tried before the kernel chooses one.
	portTries  = 1024
	quickTries = 16
	// rangeAge is how long the kernel's port ranges are cached.
	rangeAge = 10 * time.Second
	// timeWait is how long Linux keeps a connection in TIME_WAIT.
	timeWait = time.Minute
	// maxCounted bounds the addresses whose dials are counted in one timeWait.
	maxCounted = 4096
)

// LocalPorts dials from local ports, which it chooses itself for an address that is dialed
// often. A port that the kernel chooses stays in use for a minute after its connection has
// ended (TIME_WAIT). That would limit a node to about 28,000 short connections a minute to
// one address. After half of them, the kernel searches through thousands of ports for each
// connection, which takes 2 to 4 ms of CPU time. With a port that LocalPorts chooses, the
// kernel reuses a connection in TIME_WAIT at once, if both ends use TCP timestamps. But the
// kernel then passes that port over for every other process of the node for a while.
// Therefore LocalPorts chooses only from a quarter of the kernel's range, and only after
// as many connections to an address, or if the kernel has no port left. The zero value is ready
// to use.
type LocalPorts struct {
	next atomic.Uint32
	// connect replaces the kernel in tests. nil: it does not.
	connect func(network, address string, port uint16) (net.Conn, error)

	mu    sync.Mutex // guards what follows
	read  time.Time
	ports []uint16
	err   error
	// dials are connections by address since a time, and before in the timeWait before it.
	dials, before map[string]int
	since         time.Time
}

// Dial connects to a TCP address. The error wraps ErrNoLocalPort, or is the last
// attempt's.
func (l *LocalPorts) Dial(ctx context.Context, address string) (net.Conn, error) {
	c, err := l.choose(ctx, address)
	if err == nil {
		l.count(address, time.Now())
	}
	return c, err
}

// choose dials from a port that LocalPorts or the kernel chooses.
func (l *LocalPorts) choose(ctx context.Context, address string) (net.Conn, error) {
	if l.isFrequent(address, time.Now()) {
		c, err := l.dialFromOwnPort(ctx, address, quickTries)
		if !errors.Is(err, ErrNoLocalPort) {
			return c, err
		}
	}
	c, err := l.dialFrom(ctx, "tcp", 0, address)
	if !errors.Is(err, syscall.EADDRNOTAVAIL) || !l.hasSource(ctx, address) {
		return c, err
	}
	return l.dialFromOwnPort(ctx, address, portTries)
}

// hasSource reports whether this host has an address from which it can reach another one.
// If it has none, the kernel answers a dial with EADDRNOTAVAIL, as if it lacked ports. An
// example is an IPv6 destination of a host without an IPv6 address. To connect a UDP
// socket sends nothing, and needs none of the ports of TCP.
func (l *LocalPorts) hasSource(ctx context.Context, address string) bool {
	c, err := l.dialFrom(ctx, "udp", 0, address)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, syscall.EADDRNOTAVAIL)
}

// count counts a connection to an address. Addresses beyond maxCounted are not counted.
func (l *LocalPorts) count(address string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rotate(now)
	if n := l.dials[address]; n > 0 || len(l.dials) < maxCounted {
		l.dials[address] = n + 1
	}
}

// isFrequent reports whether so many connections to an address were counted that they can
// fill a quarter of the kernel's range. A dial that failed leaves no connection in
// TIME_WAIT and does not count.
func (l *LocalPorts) isFrequent(address string, now time.Time) bool {
	ports, err := l.ownPorts()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rotate(now)
	return err == nil && l.dials[address]+l.before[address] >= len(ports)
}

// rotate forgets counts that are older than twice timeWait. l.mu is held.
func (l *LocalPorts) rotate(now time.Time) {
	age := now.Sub(l.since)
	if age < timeWait {
		return
	}
	l.before = l.dials
	if age >= 2*timeWait {
		l.before = nil
	}
	l.dials, l.since = make(map[string]int), now
}

// dialFromOwnPort dials from a port that LocalPorts chooses, and tries a number of them.
func (l *LocalPorts) dialFromOwnPort(ctx context.Context, address string, tries int) (net.Conn, error) {
	ports, err := l.ownPorts()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, ErrNoLocalPort)
	}
	for range min(tries, len(ports)) {
		port := ports[int(l.next.Add(1)%uint32(len(ports)))]
		c, err := l.dialFrom(ctx, "tcp", port, address)
		if !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
			return c, err
		}
	}
	return nil, fmt.Errorf("%s: %w", address, ErrNoLocalPort)
}

// dialFrom dials from a local port; 0: the kernel chooses one. network is tcp or udp.
func (l *LocalPorts) dialFrom(ctx context.Context, network string, port uint16, address string) (
	net.Conn, error) {
	if l.connect != nil {
		return l.connect(network, address, port)
	}
	// Every socket has SO_REUSEADDR, so that LocalPorts can choose a port that the
	// kernel has chosen before.
	d := net.Dialer{Control: reuseAddress, KeepAlive: -1}
	if port != 0 {
		d.LocalAddr = &net.TCPAddr{Port: int(port)}
	}
	return d.DialContext(ctx, network, address)
}

// ownPorts returns the ports that LocalPorts may choose.
func (l *LocalPorts) ownPorts() ([]uint16, error) {
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

// readPortRange reads the ports that LocalPorts may choose from a directory of kernel
// settings.
func readPortRange(folder string) ([]uint16, error) {
	local, err := os.ReadFile(folder + "/ip_local_port_range")
	if err != nil {
		return nil, err
	}
	reserved, err := os.ReadFile(folder + "/ip_local_reserved_ports")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return parsePortRange(string(local), string(reserved))
}

// parsePortRange returns the last quarter of a port range, without the reserved ports.
func parsePortRange(local, reserved string) ([]uint16, error) {
	fields := strings.Fields(local)
	if len(fields) != 2 {
		return nil, fmt.Errorf("ip_local_port_range is %q", local)
	}
	low, lerr := strconv.ParseUint(fields[0], 10, 16)
	high, herr := strconv.ParseUint(fields[1], 10, 16)
	if lerr != nil || herr != nil || low == 0 || low > high {
		return nil, fmt.Errorf("ip_local_port_range is %q", local)
	}
	taken := make(map[uint64]bool)
	for _, part := range strings.Split(strings.TrimSpace(reserved), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, ferr := strconv.ParseUint(from, 10, 16)
		last, terr := strconv.ParseUint(to, 10, 16)
		if ferr != nil || terr != nil {
			continue // empty, or a format of a later kernel
		}
		for port := max(first, low); port <= min(last, high); port++ {
			taken[port] = true
		}
	}
	var out []uint16
	for port := high - (high-low)/4; port <= high; port++ {
		if !taken[port] {
			out = append(out, uint16(port))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("ip_local_port_range %q has no port that is not reserved", local)
	}
	return out, nil
}

func reuseAddress(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}
