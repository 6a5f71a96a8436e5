package socket

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns both ends of a connection.
func pair(t testing.TB) (*Conn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return NewConn(near.(*net.TCPConn)), far.(*net.TCPConn)
}

func TestConnCarriesBytesBothWays(t *testing.T) {
	c, far := pair(t)
	sent := make([]byte, 8<<20) // more than both queues hold
	rand.Read(sent)
	go func() {
		if n, err := c.Write(sent); n != len(sent) || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
		c.CloseWrite()
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes arrived, %v", len(got), len(sent), err)
	}
	go func() { far.Write(sent); far.CloseWrite() }()
	if got, err = io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
}

// Errors are those of package net, because callers test for them and log their texts.
func TestConnErrorsAreThoseOfNet(t *testing.T) {
	past := time.Unix(1, 0)
	cases := map[string]struct {
		damage func(c *Conn, far *net.TCPConn)
		write  bool
		is     error
		text   string
	}{
		"read deadline": {
			damage: func(c *Conn, _ *net.TCPConn) { c.SetReadDeadline(past) },
			is:     os.ErrDeadlineExceeded, text: "read tcp 127.",
		},
		"write deadline": {
			damage: func(c *Conn, _ *net.TCPConn) { c.SetWriteDeadline(past) },
			write:  true, is: os.ErrDeadlineExceeded, text: "write tcp 127.",
		},
		"closed, read": {
			damage: func(c *Conn, _ *net.TCPConn) { c.Close() },
			is:     net.ErrClosed, text: "read tcp 127.",
		},
		"closed, write": {
			damage: func(c *Conn, _ *net.TCPConn) { c.Close() },
			write:  true, is: net.ErrClosed, text: "write tcp 127.",
		},
		"ended": {
			damage: func(_ *Conn, far *net.TCPConn) { far.CloseWrite() },
			is:     io.EOF, text: "EOF",
		},
		"reset": {
			damage: func(_ *Conn, far *net.TCPConn) { far.SetLinger(0); far.Close() },
			is:     syscall.ECONNRESET, text: "read: connection reset by peer",
		},
		"closed for writing": {
			damage: func(c *Conn, _ *net.TCPConn) { c.CloseWrite() },
			write:  true, is: syscall.EPIPE, text: "write: broken pipe",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			c, far := pair(t)
			tc.damage(c, far)
			do := c.Read
			if tc.write {
				do = c.Write
			}
			n, err := do(make([]byte, 1))
			if n != 0 || !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%d, %v, want an error that is %v and contains %q", n, err, tc.is, tc.text)
			}
		})
	}
}

func TestInterruptedWriteReturnsCount(t *testing.T) {
	c, far := pair(t)
	p := make([]byte, 64<<20)
	go func() {
		io.ReadFull(far, make([]byte, 1)) // the write has begun
		c.SetWriteDeadline(time.Unix(1, 0))
	}()
	n, err := c.Write(p)
	if n == 0 || n == len(p) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("wrote %d, %v, want a part and os.ErrDeadlineExceeded", n, err)
	}
}

func TestWriteNowDoesNotWait(t *testing.T) {
	c, far := pair(t)
	p := make([]byte, 64<<20)
	n, err := c.WriteNow(p)
	if n == 0 || n == len(p) || err != nil {
		t.Errorf("wrote %d, %v, want a part", n, err)
	}
	if more, err := c.WriteNow(p[n:]); more == len(p)-n || err != nil {
		t.Errorf("wrote %d more, %v", more, err)
	}
	far.SetLinger(0)
	far.Close()
	c.Raw().Read(func(fd uintptr) bool { return !IsQuiet(fd) })
	if n, err := c.WriteNow(p); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("wrote %d after a reset, %v", n, err)
	}
}

func TestEmptyOperations(t *testing.T) {
	c, _ := pair(t)
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if n, err := c.Write(nil); n != 0 || err != nil {
		t.Errorf("write %d, %v", n, err)
	}
}

func TestOperationsAllocateNothing(t *testing.T) {
	c, far := pair(t)
	p := make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() {
		far.Write(p)
		if _, err := io.ReadFull(c, p); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(far, p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestIsQuiet(t *testing.T) {
	c, far := pair(t)
	quiet := func() (quiet bool) {
		if err := c.Raw().Control(func(fd uintptr) { quiet = IsQuiet(fd) }); err != nil {
			t.Fatal(err)
		}
		return quiet
	}
	if !quiet() {
		t.Error("a connection without bytes is not quiet")
	}
	far.Write([]byte("x"))
	if err := c.Raw().Read(func(fd uintptr) bool { return !IsQuiet(fd) }); err != nil || quiet() {
		t.Errorf("a connection with a byte is quiet, %v", err)
	}
	c.Raw().Control(func(fd uintptr) {
		if n, err := Peek(fd, make([]byte, 8)); n != 1 || err != nil {
			t.Errorf("peek: %d, %v", n, err)
		}
	})
	if n, err := c.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Errorf("read after peek: %d, %v", n, err)
	}
	c.Raw().Control(func(fd uintptr) {
		if n, err := Peek(fd, make([]byte, 8)); n != 0 || err != unix.EAGAIN {
			t.Errorf("peek without bytes: %d, %v", n, err)
		}
	})
	far.Close()
	if err := c.Raw().Read(func(fd uintptr) bool { return !IsQuiet(fd) }); err != nil || quiet() {
		t.Errorf("a connection with a FIN is quiet, %v", err)
	}
}

func TestSplice(t *testing.T) {
	c, far := pair(t)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	far.Write([]byte("hello"))
	var n int
	var err error
	c.Raw().Read(func(fd uintptr) bool {
		n, err = Splice(fd, uintptr(pipe[1]), 1<<10)
		return err != unix.EAGAIN
	})
	if n != 5 || err != nil {
		t.Fatalf("moved %d, %v", n, err)
	}
	c.Raw().Control(func(fd uintptr) {
		if n, err := Splice(fd, uintptr(pipe[1]), 1<<10); n != 0 || err != unix.EAGAIN {
			t.Errorf("moved %d without bytes, %v", n, err)
		}
		if n, err := Splice(uintptr(pipe[0]), fd, 1<<10); n != 5 || err != nil {
			t.Errorf("moved %d back, %v", n, err)
		}
	})
	p := make([]byte, 5)
	if _, err := io.ReadFull(far, p); err != nil || string(p) != "hello" {
		t.Errorf("%q came back, %v", p, err)
	}
}
