package vipguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inode tells sockets apart: copies of one have the same.
func inode(t *testing.T, l *Listeners, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	fd, ok := l.held[name]
	if !ok {
		t.Fatalf("no listener %q", name)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// acceptAndReply accepts one connection on the first VIP port and says name.
func acceptAndReply(t *testing.T, l *Listeners, name string) {
	t.Helper()
	conn, err := l.All()["vip4/0"].Accept()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, name)
	conn.Close()
}

func read(t *testing.T, conn net.Conn) string {
	t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustDial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := dial(t, aVIP4, 4200)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestAgentCrashLosesNoCaller(t *testing.T) {
	g := startGuard(t, Options{}, nil)
	l, stop := startAgent(t, g.opts.PodDir)
	if n := len(l.All()); n != 65 {
		t.Fatalf("%d listeners, want 65", n)
	}
	l.Ready()
	first := inode(t, l, "vip4/0")
	stop()
	queued := mustDial(t)
	next, _ := startAgent(t, g.opts.PodDir)
	next.Ready()
	acceptAndReply(t, next, "next")
	if got := read(t, queued); got != "next" {
		t.Errorf("the caller in the queue was told %q", got)
	}
	if got := inode(t, next, "vip4/0"); got != first {
		t.Errorf("the next agent has socket %d, want %d", got, first)
	}
}

func TestGuardRestartLosesNoCaller(t *testing.T) {
	g := startGuard(t, Options{}, nil)
	l, _ := startAgent(t, g.opts.PodDir)
	l.Ready()
	g.stop()
	queued := mustDial(t)
	again := startGuard(t, g.opts, nil)
	newcomer, _ := startAgent(t, again.opts.PodDir)
	for name := range l.All() {
		if a, b := inode(t, l, name), inode(t, newcomer, name); a != b {
			t.Errorf("the restarted guard has another socket for %q: %d, not %d", name, b, a)
		}
	}
	acceptAndReply(t, l, "still here")
	if got := read(t, queued); got != "still here" {
		t.Errorf("the caller was told %q", got)
	}
}

// An agent that drains holds no listener: else callers would wait in queues that nobody
// empties.
func TestYieldRefusesQueuedCallers(t *testing.T) {
	g := startGuard(t, Options{Grace: 50 * time.Millisecond}, nil)
	l, _ := startAgent(t, g.opts.PodDir)
	l.Ready()
	await(t, g.logs, "agent serves callers")
	open := mustDial(t)
	conn, err := l.All()["vip4/0"].Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Yield()
	await(t, g.logs, "no agent: callers are refused")
	if _, err := dial(t, aVIP4, 4200); !refused(err) {
		t.Errorf("after the guard's grace a caller gets %v, want refused", err)
	}
	g.stop()
	if _, err := dial(t, aVIP4, 4200); !refused(err) {
		t.Errorf("without guard a caller gets %v, want refused: nobody else holds the listener", err)
	}
	fmt.Fprint(conn, "drained")
	conn.Close()
	if got := read(t, open); got != "drained" {
		t.Errorf("a connection that was open is told %q", got)
	}
}

func TestNoAgentRefusesCallers(t *testing.T) {
	g := startGuard(t, Options{Grace: 50 * time.Millisecond}, nil)
	l, stop := startAgent(t, g.opts.PodDir)
	await(t, g.logs, "no agent: callers are refused") // it has not said ready
	if _, err := dial(t, aVIP4, 4200); !refused(err) {
		t.Errorf("no agent accepts: %v, want refused", err)
	}
	accepted := make(chan struct{})
	go func() { defer close(accepted); acceptAndReply(t, l, "revived") }()
	l.Ready()
	await(t, g.logs, "agent serves callers")
	open := mustDial(t)
	if got := read(t, open); got != "revived" {
		t.Errorf("the caller was told %q", got)
	}
	<-accepted
	stop()
	await(t, g.logs, "no agent: callers are refused")
	if _, err := dial(t, aVIP4, 4200); !refused(err) {
		t.Errorf("agent gone: %v, want refused", err)
	}
}

func TestUpgradeHandsOverListeners(t *testing.T) {
	node := t.TempDir()
	older := startGuard(t, Options{NodeDir: node, Grace: 50 * time.Millisecond}, nil)
	oldAgent, stopOld := startAgent(t, older.opts.PodDir)
	oldAgent.Ready()
	// The newer guard wants another table: until its agent is ready the older
	// one rules, and they must not fight.
	writes := newCountingKernel(vip4)
	newer := startGuard(t, Options{NodeDir: node, Grace: 50 * time.Millisecond, CIDRs: []netip.Prefix{vip4}}, writes)
	newAgent, stopNew := startAgent(t, newer.opts.PodDir)
	if a, b := inode(t, oldAgent, "vip4/0"), inode(t, newAgent, "vip4/0"); a != b {
		t.Errorf("the newer guard has another socket: %d, not %d", b, a)
	}
	if err := Ready(newer.opts.PodDir); !errors.Is(err, ErrNotReady) {
		t.Errorf("while the older rules the newer is %v, want ErrNotReady", err)
	}
	if len(writes.writes) != 0 {
		t.Errorf("the newer guard wrote %v before its agent was ready", <-writes.writes)
	}
	newAgent.Ready()
	await(t, writes.writes, Change{Part: PartRuleset})
	await(t, newer.logs, "agent serves callers")
	stopOld()
	// The older guard has lost its agent, and would shut the listeners down.
	caller := mustDial(t)
	acceptAndReply(t, newAgent, "new")
	if got := read(t, caller); got != "new" {
		t.Errorf("the caller was told %q", got)
	}
	older.stop()
	stopNew()
	await(t, newer.logs, "no agent: callers are refused")
}

func TestWrongUIDIsRefused(t *testing.T) {
	g := startGuard(t, Options{AgentUID: 12345}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	path := filepath.Join(g.opts.PodDir, guardSocket)
	await(t, g.logs, "mended the node")
	var p *peer
	for p == nil && ctx.Err() == nil {
		p, _ = dialPeer(ctx, path, os.Getuid())
	}
	if p == nil {
		t.Fatal("no guard")
	}
	defer p.Close()
	if got, err := requestListeners(p); err == nil {
		t.Errorf("root is not the agent, but was given %d listeners", len(got))
	}
	if err := Ready(g.opts.PodDir); err != nil {
		t.Errorf("root may ask: %v", err)
	}

	srv, err := newServer(filepath.Join(t.TempDir(), "s.sock"), -1, []int{54321}, g.opts.Log)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	stopped, stop := context.WithCancel(t.Context())
	go func() {
		served <- srv.run(stopped, func(*peer, message) { t.Error("a stranger was served") })
	}()
	stranger, err := dialPeer(ctx, srv.path, os.Getuid())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := requestListeners(stranger); err == nil {
		t.Errorf("a stranger was given %d listeners", len(got))
	}
	stranger.Close()
	if p, err := dialPeer(ctx, srv.path, 54321); err == nil {
		p.Close()
		t.Error("a client must not talk to a server of another user")
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// as runs do with the rights of another user, on a thread that ends with it.
func as(uid, gid int, do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		const keep = ^uintptr(0)
		unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
		unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep)
		unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
		do()
	}()
	<-done
}

func TestAgentIsNotRoot(t *testing.T) {
	const uid, gid = 12345, 54321
	pod := t.TempDir()
	for _, dir := range []string{pod, filepath.Dir(pod)} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	g := startGuard(t, Options{PodDir: pod, AgentUID: uid, AgentGID: gid}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log, _ := newLogs(t)
	as(uid, gid, func() {
		l, err := TakeListeners(ctx, pod, AgentOptions{Log: log})
		if err != nil {
			t.Errorf("the agent: %v", err)
			return
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	as(uid+1, gid, func() {
		if l, err := tryTakeListeners(ctx, pod, AgentOptions{Log: log}); err == nil {
			l.Close()
			t.Error("another user of the agent's group was given the listeners")
		}
	})
	as(uid, gid+1, func() {
		if l, err := tryTakeListeners(ctx, pod, AgentOptions{Log: log}); !errors.Is(err, os.ErrPermission) {
			t.Errorf("another group may open the socket: %v %v", l, err)
		}
	})
	as(uid, gid, func() {
		guards := filepath.Join(g.opts.NodeDir, guardsFolder)
		if _, err := os.ReadDir(guards); !errors.Is(err, os.ErrPermission) {
			t.Errorf("the agent may look into the guards' folder: %v", err)
		}
	})
}

func TestTakeListenersEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := TakeListeners(ctx, t.TempDir(), AgentOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the context's error", err)
	}
	if err := Ready(t.TempDir()); err == nil || errors.Is(err, ErrNotReady) {
		t.Errorf("no guard: %v", err)
	}
}

func TestShutdownKeepsPortAndConnections(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:4300", "[::]:4300"} {
		t.Run(addr, func(t *testing.T) {
			e := endpoint{"vip4/0", netip.MustParseAddrPort(addr)}
			fd, err := bind(e)
			if err != nil {
				t.Fatal(err)
			}
			s := sockets{e.name: fd}
			defer s.close()
			ln, err := newListener(e.name, fd)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			loop := netip.MustParseAddr("127.0.0.1")
			if e.addr.Addr().Is6() {
				loop = netip.IPv6Loopback()
			}
			before, err := dial(t, loop, 4300)
			if err != nil {
				t.Fatal(err)
			}
			served, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer served.Close()
			for range 2 { // both are safe to repeat
				if err := s.shutdown(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := dial(t, loop, 4300); !refused(err) {
				t.Errorf("shut down: %v, want refused", err)
			}
			if thief, err := bind(e); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("another could bind the port while it was shut down: %v", err)
				unix.Close(thief)
			}
			for range 2 {
				if err := s.listen(); err != nil {
					t.Fatalf("with a connection open: %v", err)
				}
			}
			after, err := dial(t, loop, 4300)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ln.Accept(); err != nil {
				t.Errorf("accept after the revival: %v", err)
			} else {
				again.Close()
			}
			after.Close()
			fmt.Fprint(served, "x")
			if _, err := before.Read(make([]byte, 1)); err != nil {
				t.Errorf("a connection of before is broken: %v", err)
			}
			if thief, err := bind(e); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("another could bind the port: %v", err)
				unix.Close(thief)
			}
		})
	}
}

func TestAdoptRejectsOtherSockets(t *testing.T) {
	want := endpoint{"vip4/0", netip.MustParseAddrPort("0.0.0.0:4301")}
	cases := map[string]struct {
		why  string
		make func() (int, error)
		keep bool
	}{
		"the listener": {"it is the one", func() (int, error) { return bind(want) }, true},
		"another port": {"a node's address may have changed", func() (int, error) {
			return bind(endpoint{"vip4/0", netip.MustParseAddrPort("0.0.0.0:4302")})
		}, false},
		"UDP": {"no listener at all", func() (int, error) {
			return unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		}, false},
		"a file": {"no socket at all", func() (int, error) {
			return unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			fd, err := tc.make()
			if err != nil {
				t.Fatal(err)
			}
			held := sockets{}
			held.adopt(sockets{want.name: fd}, []endpoint{want})
			defer held.close()
			if _, kept := held[want.name]; kept != tc.keep {
				t.Errorf("%s: kept %v", tc.why, kept)
			}
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); (err == nil) != tc.keep {
				t.Errorf("what is not kept must be closed: %v", err)
			}
		})
	}
}
