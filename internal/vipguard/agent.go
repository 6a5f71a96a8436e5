package vipguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The retry intervals of the agent.
const (
	dialRetryInterval   = 200 * time.Millisecond
	acceptRetryInterval = 100 * time.Millisecond
)

// AgentOptions configure the agent's side. The zero value works in production.
type AgentOptions struct {
	// GuardUID is the user that the guard runs as; 0: root.
	GuardUID int
	// Log receives problems with the guard; nil: slog.Default.
	Log *slog.Logger
}

// Listeners holds the node's listening sockets for the agent. While they are open, the
// guard counts the agent as present, once Ready was called.
type Listeners struct {
	dir       string
	opts      AgentOptions
	held      sockets
	listeners map[string]net.Listener
	srv       *server

	mu    sync.Mutex // guards what follows, and held
	conn  *peer      // nil while there is no guard
	ready bool
}

// TakeListeners gets the listeners from the guard of this pod, at podDir. It waits for
// a guard until ctx ends. The caller must then call Serve once, at once, and finally
// Close.
func TakeListeners(ctx context.Context, podDir string, o AgentOptions) (*Listeners, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	for {
		l, err := tryTakeListeners(ctx, podDir, o)
		if err == nil {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("take listeners from vip-guard: %w: last try: %w", context.Cause(ctx), err)
		case <-time.After(dialRetryInterval):
		}
	}
}

func tryTakeListeners(ctx context.Context, podDir string, o AgentOptions) (*Listeners, error) {
	conn, err := dialPeer(ctx, filepath.Join(podDir, guardSocket), o.GuardUID)
	if err != nil {
		return nil, err
	}
	// The server must exist before the agent receives a listener. A guard that restarts
	// after that must find the process that holds its ports.
	srv, err := newServer(filepath.Join(podDir, agentSocket), os.Getegid(), []int{o.GuardUID}, o.Log)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("serve the guard: %w", err)
	}
	held, err := requestListeners(conn)
	if err != nil {
		conn.Close()
		srv.close()
		return nil, err
	}
	l := &Listeners{dir: podDir, opts: o, held: held, listeners: map[string]net.Listener{}, srv: srv, conn: conn}
	for name, fd := range held {
		if l.listeners[name], err = newListener(name, fd); err != nil {
			delete(l.listeners, name)
			return nil, errors.Join(fmt.Errorf("listener %q: %w", name, err), l.Close())
		}
	}
	return l, nil
}

// All returns the listeners by name: Hop, "vip4/0" to "vip4/31" if the node has an IPv4
// VIP range, and "vip6/0" to "vip6/31" if it has an IPv6 one. Index returns the port
// index of a name. Accept blocks while the guard has a listener shut down. It fails
// only if the listener is closed or broken. Closing a listener does not affect its
// copies in other processes. Connections remember the interface by which they came in
// (IP_PKTOPTIONS, IPV6_2292PKTOPTIONS).
func (l *Listeners) All() map[string]net.Listener { return l.listeners }

// Ready tells the guard, and every later one, that this agent accepts connections.
// Until then the agent does not count as present. Then the guard refuses callers after
// its grace time, and an older agent stays in charge.
func (l *Listeners) Ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready = true
	l.announce()
}

// Yield closes the listeners, while connections that came through them continue. The
// next agent accepts the queued connections. If no other process holds the listeners,
// because the whole pod ends, the kernel refuses callers from now on. Otherwise the
// guard does so after its grace time.
func (l *Listeners) Yield() {
	for _, ln := range l.listeners {
		ln.Close() // fails only if it is closed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil && l.ready {
		l.conn.send(message{Type: msgAway}) // it fails only if the guard has ended
	}
	l.ready = false
	l.held.close()
	l.held = nil
}

// Refuse makes the guard refuse new connections to these prefixes, and to no others, by a
// TCP reset. They must lie within the VIP ranges, and be at most MaxRefused. The guard
// forgets them after RefuseTimeout, so the caller repeats them before that. Refuse blocks
// for at most some seconds. The error says that no guard could be reached.
func (l *Listeners) Refuse(prefixes []netip.Prefix) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil || !l.ready {
		return errors.New("not connected to vip-guard")
	}
	for {
		n := min(len(prefixes), maxPrefixes)
		m := message{Type: msgRefuse, Prefixes: prefixes[:n], More: len(prefixes) > n}
		if err := l.conn.send(m); err != nil {
			l.conn.Close() // Serve notices it and dials again
			return fmt.Errorf("refuse virtual IPs: %w", err)
		}
		if prefixes = prefixes[n:]; len(prefixes) == 0 {
			return nil
		}
	}
}

// announce sends the agent's readiness to the guard. l.mu is held.
func (l *Listeners) announce() {
	if l.conn == nil || !l.ready {
		return
	}
	if err := l.conn.send(message{Type: msgReady}); err != nil {
		l.conn.Close() // Serve detects it and redials
	}
}

// Serve hands the listeners to a restarted guard that requests them, and stays
// connected to the guard, until ctx ends. Then it returns nil. It returns an error if
// the socket for the guard breaks.
func (l *Listeners) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.srv.run(ctx, l.serveGuard) })
	group.Go(func() error { l.maintainConn(ctx); return nil })
	return group.Wait()
}

func (l *Listeners) serveGuard(p *peer, first message) {
	if first.Type != msgTake {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := handOff(p, l.held); err != nil {
		l.opts.Log.Warn("listeners not given to the guard", "error", err)
	}
}

// maintainConn keeps a connection to the guard until ctx ends. It reconnects when a
// guard has ended.
func (l *Listeners) maintainConn(ctx context.Context) {
	for {
		l.mu.Lock()
		conn := l.conn
		l.mu.Unlock()
		if conn != nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			awaitClose(conn)
			stop()
			conn.Close()
			l.setConn(nil)
			if ctx.Err() == nil {
				l.opts.Log.Warn("lost vip-guard: listeners are kept until it is back")
			}
		}
		if !l.redial(ctx) {
			return
		}
	}
}

// redial connects to the next guard. It returns false if ctx ended first.
func (l *Listeners) redial(ctx context.Context) bool {
	for {
		conn, err := dialPeer(ctx, filepath.Join(l.dir, guardSocket), l.opts.GuardUID)
		if err == nil {
			if err = conn.send(message{Type: msgHere}); err == nil {
				l.setConn(conn)
				return true
			}
			conn.Close()
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(dialRetryInterval):
		}
	}
}

func (l *Listeners) setConn(conn *peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	l.announce()
}

// Close closes the listeners. It must be called after Serve has returned. The next
// agent accepts the queued connections.
func (l *Listeners) Close() error {
	var errs []error
	l.srv.close()
	for _, ln := range l.listeners {
		if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	l.held.close()
	l.held = nil
	return errors.Join(errs...)
}

// listener is a TCP listener that the guard may shut down and reopen.
type listener struct {
	*net.TCPListener
	once   sync.Once
	closed chan struct{}
}

// newListener returns a listener that has its own copy of fd.
func newListener(name string, fd int) (net.Listener, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	f := os.NewFile(uintptr(dup), name)
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("is no TCP listener but %v", ln.Addr())
	}
	return &listener{TCPListener: tcp, closed: make(chan struct{})}, nil
}

// Accept waits for a caller. If the guard has shut the listener down (EINVAL), Accept
// retries.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptTCP()
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return nil, err
		}
		select {
		case <-l.closed:
			return nil, net.ErrClosed
		case <-time.After(acceptRetryInterval):
		}
	}
}

// Close ends Accept. The socket stays open in other processes.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.TCPListener.Close()
}
