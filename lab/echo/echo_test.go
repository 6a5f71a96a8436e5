package main

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
)

// asked runs the client and returns what it prints.
func asked(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	err := runClient(t.Context(), args, &out)
	return out.String(), err
}

func testServer() *server { return &server{hostname: "echo-v1-0", version: "v1"} }

func TestHTTP(t *testing.T) {
	ts := httptest.NewUnstartedServer(testServer().httpServer(8080).Handler)
	ts.Config.Protocols = testServer().httpServer(0).Protocols
	ts.Start()
	defer ts.Close()
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		out, err := asked(t, ts.URL+"/a?codes=503", "--method=POST", "-H", "Color:blue", "-H", "Host:other", "--count=2",
			fmt.Sprintf("--http2=%v", protocol == "HTTP/2.0"))
		if err != nil {
			t.Fatal(err)
		}
		responses := strings.Split(out, "\n\n")
		if len(responses) != 2 {
			t.Fatalf("%d responses in %q", len(responses), out)
		}
		for i, response := range responses {
			for _, want := range []string{"] StatusCode=503", "] ResponseHeader=Content-Type:text/plain", " body] Host=other",
				" body] Hostname=echo-v1-0", " body] Method=POST", " body] Proto=" + protocol, " body] RequestHeader=Color:blue",
				" body] ServicePort=8080", " body] ServiceVersion=v1", " body] URL=/a?codes=503"} {
				if want = fmt.Sprintf("[%d", i) + want; !strings.Contains(response+"\n", want+"\n") {
					t.Errorf("%s: the output lacks %q:\n%s", protocol, want, response)
				}
			}
		}
	}
}

func TestGRPC(t *testing.T) {
	ln := listenLocal(t)
	g := testServer().grpcServer(7070)
	go g.Serve(ln)
	defer g.Stop()
	out, err := asked(t, "grpc://"+ln.Addr().String(), "-H", "Color:blue")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[0] StatusCode=200", "[0 body] Hostname=echo-v1-0", "[0 body] RequestHeader=color:blue"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
}

func TestTCP(t *testing.T) {
	ln := listenLocal(t)
	context.AfterFunc(t.Context(), func() { ln.Close() })
	go testServer().serveTCP(ln, 9090)
	out, err := asked(t, "--msg", "hello", "tcp://"+ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[0 body] StatusCode=200", "[0 body] Echo=hello", "[0 body] Hostname=echo-v1-0"} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
}

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestCodes(t *testing.T) {
	for list, want := range map[string]int{"": 200, "404": 404, "503:0,201:5": 201, "503:0": 200} {
		if got, err := pickCode(list); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", list, got, err, want)
		}
	}
	for _, list := range []string{"x", "100", "200:x", "200:-1", ","} {
		if _, err := pickCode(list); err == nil {
			t.Errorf("%q: no error", list)
		}
	}
}

func TestArguments(t *testing.T) {
	s, err := parseServer(strings.Fields("--tcp=9090 --port=8080 --grpc=7070 --port=8443 --tls=8443 --crt=/cert.crt --key=/cert.key"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.tcp, s.http, s.grpc, s.tls); got != "[9090] [8080 8443] [7070] [8443]" {
		t.Errorf("got %s", got)
	}
	if _, err := s.certificate(); err != nil {
		t.Errorf("without a file of a certificate: %v", err)
	}
	for _, args := range [][]string{{}, {"echo"}, {"http://a", "http://b"}, {"ftp://a"}, {"http://a", "-H", "x"}} {
		if _, err := asked(t, args...); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
