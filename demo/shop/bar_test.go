package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHandler(t *testing.T) {
	const mib = 1 << 20
	h := handler("bar-1", "east", 1)
	cases := map[string]struct {
		why, path string
		code      int
		check     func(body []byte) error
	}{
		"who": {
			why: "a caller sees which cluster answered", path: "/", code: http.StatusOK,
			check: func(b []byte) error { return equal("bar served by bar-1 in east\n", string(b)) },
		},
		"download": {
			why: "a download has exactly the length asked for", path: fmt.Sprintf("/download?bytes=%d", mib+1), code: http.StatusOK,
			check: func(b []byte) error { return equal(mib+1, len(b)) },
		},
		"same bytes": {
			why: "the checksum of a download is known beforehand", path: fmt.Sprintf("/checksum?bytes=%d", mib+1), code: http.StatusOK,
			check: func(b []byte) error {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, fmt.Sprintf("/download?bytes=%d", mib+1), nil))
				return equal(fmt.Sprintf("%x\n", sha256.Sum256(w.Body.Bytes())), string(b))
			},
		},
		"name": {
			why: "callers count which pod answers", path: "/who?work=1ns", code: http.StatusOK,
			check: func(b []byte) error { return equal("bar-1", string(b)) },
		},
		"rest": {
			why: "callers see which pod answered, also if the response ends later", path: "/who?rest=1ns", code: http.StatusOK,
			check: func(b []byte) error { return equal("bar-1", string(b)) },
		},
		"caller": {
			why: "a pod that receives no identity reports none", path: "/caller", code: http.StatusOK,
			check: func(b []byte) error { return equal("bar-1", string(b)) },
		},
		"no time":       {why: "a typing error is not an answer at once", path: "/who?work=long", code: http.StatusBadRequest},
		"no size":       {why: "a typing error is not an endless download", path: "/download", code: http.StatusBadRequest},
		"negative size": {why: "likewise", path: "/download?bytes=-1", code: http.StatusBadRequest},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, tc.path, nil))
			if w.Code != tc.code {
				t.Fatalf("%s: GET %s answers %d, want %d", tc.why, tc.path, w.Code, tc.code)
			}
			if tc.check != nil {
				if err := tc.check(w.Body.Bytes()); err != nil {
					t.Errorf("%s: GET %s: %v", tc.why, tc.path, err)
				}
			}
		})
	}
}

func equal[T comparable](want, got T) error {
	if want != got {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

// serveTCP accepts on a loopback port for the length of the test and returns a connection to it.
func serveTCP(t *testing.T, serve func(net.Conn) error) *net.TCPConn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- accept(ctx, ln, serve) }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c.(*net.TCPConn)
}

func TestGreetSpeaksFirst(t *testing.T) {
	c := serveTCP(t, func(c net.Conn) error { return greet(c, "bar-1", "east") })
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); err != nil || line != "hello from bar-1 in east\n" {
		t.Fatalf("the greeting is %q, %v", line, err)
	}
	fmt.Fprintln(c, "good day")
	if line, err := r.ReadString('\n'); err != nil || line != "you said good day\n" {
		t.Errorf("the answer is %q, %v", line, err)
	}
}

func TestEchoPassesTheEndOn(t *testing.T) {
	c := serveTCP(t, echo)
	if _, err := io.Copy(c, goods(1000)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	want, _ := io.ReadAll(goods(1000))
	if err != nil || string(got) != string(want) {
		t.Errorf("the echo gave %d bytes back, %v; want the 1000 sent and then the end", len(got), err)
	}
}

func TestRoles(t *testing.T) {
	for _, args := range [][]string{nil, {"foo"}, {"bar", "client"}} {
		if err := run(t.Context(), args, func(string) string { return "" }); err == nil {
			t.Errorf("shop %s starts", strings.Join(args, " "))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"client"}, nil); err != nil {
		t.Errorf("a client ends with %v", err)
	}
}

// exhausted is a listener that first reports that the process has too many open files.
type exhausted struct {
	net.Listener
	reported bool
}

func (e *exhausted) Accept() (net.Conn, error) {
	if !e.reported {
		e.reported = true
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return e.Listener.Accept()
}

// The lab floods an echo with connections, and compares Causeway with it.
func TestAcceptGoesOnWithoutFiles(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- accept(ctx, &exhausted{Listener: ln}, echo) }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintln(c, "hello")
	if got, err := bufio.NewReader(c).ReadString('\n'); got != "hello\n" {
		t.Errorf("the echo answers %q, %v", got, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
