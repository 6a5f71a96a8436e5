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

// How often a client tries again.
const (
	retryDial   = 200 * time.Millisecond
	retryAccept = 100 * time.Millisecond
)

// AgentOptions are the agent's. The zero value works in production.
type AgentOptions struct {
	// GuardUID is the user that the guard runs as; 0: root.
	GuardUID int
	// Log tells of trouble with the guard; nil: slog.Default.
	Log *slog.Logger
}

// Listeners are the node's listening sockets in the agent's hands. While they
// are open the guard counts the agent as there, once Ready was called.
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

// Take asks the guard of this pod, at podDir, for the listeners. It waits for a
// guard until ctx ends. The caller runs Serve at once, once, and ends with Close.
func Take(ctx context.Context, podDir string, o AgentOptions) (*Listeners, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	for {
		l, err := takeOnce(ctx, podDir, o)
		if err == nil {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("take listeners from vip-guard: %w: last try: %w", context.Cause(ctx), err)
		case <-time.After(retryDial):
		}
	}
}

func takeOnce(ctx context.Context, podDir string, o AgentOptions) (*Listeners, error) {
	conn, err := dialPeer(ctx, filepath.Join(podDir, guardSocket), o.GuardUID)
	if err != nil {
		return nil, err
	}
	// Before there is anything to give: a guard that restarts from here on must
	// find who holds its ports.
	srv, err := newServer(filepath.Join(podDir, agentSocket), os.Getegid(), []int{o.GuardUID}, o.Log)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("serve the guard: %w", err)
	}
	held, err := take(conn)
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

// All returns the listeners by name: Hop, "vip4/0" to "vip4/31" if the node has
// an IPv4 VIP range, and "vip6/0" to "vip6/31" likewise. Index tells the port
// index. Accept waits through the times when the guard has shut a listener down,
// and fails only once the listener is closed or broken. Closing one does not disturb
// the copies of others. Connections remember the interface they came in by
// (IP_PKTOPTIONS, IPV6_2292PKTOPTIONS).
func (l *Listeners) All() map[string]net.Listener { return l.listeners }

// Ready tells the guard, and every later one, that this agent accepts
// connections now. Until then it does not count as there: after the guard's
// grace callers are refused, and an older agent keeps its say.
func (l *Listeners) Ready() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready = true
	l.announce()
}

// Yield gives the listeners up while connections that came by them go on: what
// waits in their queues is the next agent's. Where nobody else holds them, as when the
// whole pod goes, callers are refused from now on; else after the guard's grace.
func (l *Listeners) Yield() {
	for _, ln := range l.listeners {
		ln.Close() // fails only if it is closed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil && l.ready {
		l.conn.send(message{Type: msgAway}) // a guard that cannot be told is gone
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

// announce tells the guard what it must know. l.mu is held.
func (l *Listeners) announce() {
	if l.conn == nil || !l.ready {
		return
	}
	if err := l.conn.send(message{Type: msgReady}); err != nil {
		l.conn.Close() // Serve hears it and dials anew
	}
}

// Serve gives the listeners to a restarted guard that asks for them, and keeps
// the agent's presence at the guard, until ctx ends; then it returns nil. It
// returns an error if the socket for the guard breaks.
func (l *Listeners) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.srv.run(ctx, l.serveGuard) })
	group.Go(func() error { l.stay(ctx); return nil })
	return group.Wait()
}

func (l *Listeners) serveGuard(p *peer, first message) {
	if first.Type != msgTake {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := give(p, l.held); err != nil {
		l.opts.Log.Warn("listeners not given to the guard", "error", err)
	}
}

// stay is connected to the guard until ctx ends, to a new one if one dies.
func (l *Listeners) stay(ctx context.Context) {
	for {
		l.mu.Lock()
		conn := l.conn
		l.mu.Unlock()
		if conn != nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			waitGone(conn)
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

// redial finds the next guard; false: ctx ended first.
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
		case <-time.After(retryDial):
		}
	}
}

func (l *Listeners) setConn(conn *peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	l.announce()
}

// Close gives the listeners up. It is called after Serve has returned. Callers
// in the queues wait for the next agent.
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

// listener is a TCP listener that the guard may shut down and revive.
type listener struct {
	*net.TCPListener
	once   sync.Once
	closed chan struct{}
}

// newListener makes a listener of its own copy of fd.
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

// Accept waits for a caller. A listener that is shut down (EINVAL) has none.
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
		case <-time.After(retryAccept):
		}
	}
}

// Close ends Accept. The socket lives on in other processes.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.TCPListener.Close()
}
