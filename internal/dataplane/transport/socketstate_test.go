package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestIsQuiet(t *testing.T) {
	cases := map[string]struct {
		why string
		do  func(far *net.TCPConn)
		end bool // something comes
	}{
		"nothing": {why: "it waits for its caller", do: func(*net.TCPConn) {}},
		"bytes": {
			why: "they would be an alert",
			do:  func(far *net.TCPConn) { far.Write([]byte("x")) },
			end: true,
		},
		"an end":  {why: "the far side stops", do: func(far *net.TCPConn) { far.Close() }, end: true},
		"a reset": {why: "a gateway was killed", do: func(far *net.TCPConn) { Reset(far) }, end: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			near, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			far, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			tc.do(far.(*net.TCPConn))
			for end := time.Now().Add(5 * time.Second); IsQuiet(near.(*net.TCPConn)) == tc.end; {
				if time.Now().After(end) {
					t.Fatalf("quiet: %v: %s", tc.end, tc.why)
				}
			}
		})
	}
	closed := &net.TCPConn{}
	if IsQuiet(closed) {
		t.Error("a connection that is none is quiet")
	}
}

func TestAwaitReadable(t *testing.T) {
	cases := map[string]struct {
		why  string
		do   func(far *net.TCPConn)
		want error
	}{
		"bytes": {why: "the call begins", do: func(far *net.TCPConn) { far.Write([]byte("hello")) }},
		"nothing": {
			why:  "it may wait for a greeting",
			do:   func(*net.TCPConn) {},
			want: os.ErrDeadlineExceeded,
		},
		"an end":  {why: "a probe", do: func(far *net.TCPConn) { far.Close() }, want: io.EOF},
		"a reset": {why: "a scanner", do: func(far *net.TCPConn) { Reset(far) }, want: syscall.ECONNRESET},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			far, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			near, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			tc.do(far.(*net.TCPConn))
			wait := 5 * time.Second
			if tc.want == os.ErrDeadlineExceeded {
				wait = 10 * time.Millisecond
			}
			if err := AwaitReadable(near.(*net.TCPConn), wait); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v: %s", err, tc.want, tc.why)
			}
			if tc.want == nil {
				got := make([]byte, 5)
				if _, err := io.ReadFull(near, got); err != nil || string(got) != "hello" {
					t.Errorf("the bytes are %q, %v: they must stay", got, err)
				}
			}
		})
	}
}
