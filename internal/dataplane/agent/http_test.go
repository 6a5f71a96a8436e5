package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// serveHTTP returns a function for newHarness that serves each connection by a handler, as
// HTTP/1 or as HTTP/2 with prior knowledge.
func serveHTTP(h http.HandlerFunc) func(*net.TCPConn) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return func(c *net.TCPConn) {
		ln := &oneConn{conn: c, closed: make(chan struct{})}
		s := &http.Server{Handler: h, Protocols: protocols, ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				ln.end()
			}
		}}
		s.Serve(ln)
	}
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
	ended  sync.Once
}

func (l *oneConn) Accept() (c net.Conn, err error) {
	l.once.Do(func() { c = l.conn })
	if c != nil {
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}
func (l *oneConn) end()           { l.ended.Do(func() { close(l.closed) }) }
func (l *oneConn) Close() error   { l.end(); return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// client returns an HTTP client whose connections come from a pod.
func (w *harness) client(pod string, h2 bool) *http.Client {
	w.learnClientFirst()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	t := &http.Transport{Protocols: protocols, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return w.tryDial(pod)
	}}
	w.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: testTimeout}
}

// eachVersion runs a test with HTTP/1 and with HTTP/2.
func eachVersion(t *testing.T, do func(t *testing.T, h2 bool)) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "http1", true: "http2"}[h2], func(t *testing.T) { do(t, h2) })
	}
}

func TestRequests(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			rw.Header().Set("X-Path", r.RequestURI)
			rw.Header().Set("X-Host", r.Host)
			fmt.Fprintf(rw, "%s %d", r.Method, len(body))
		}))
		c := w.client(alice, h2)
		for _, n := range []int{0, 1, 1000, 100 << 10, 3 << 20} {
			for i := range 3 {
				resp, err := c.Post("http://bar-east/a%2fb/../c?d=e", "text/plain", bytes.NewReader(make([]byte, n)))
				if err != nil {
					t.Fatalf("%d bytes, request %d: %v", n, i, err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if want := fmt.Sprintf("POST %d", n); err != nil || string(got) != want {
					t.Errorf("%d bytes: %q, %v, want %q", n, got, err, want)
				}
				if path := resp.Header.Get("X-Path"); path != "/a%2fb/../c?d=e" {
					t.Errorf("the application received path %q", path)
				}
			}
		}
		if n := w.dials.Load(); n > 2 {
			t.Errorf("the application was dialed %d times for 15 requests in a row", n)
		}
	})
}

func TestRequestStreams(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		payload := make([]byte, 5<<20)
		rand.Read(payload)
		w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			http.NewResponseController(rw).EnableFullDuplex() // fails for HTTP/2, which always is
			switch r.URL.Path {
			case "/down":
				rw.Write(payload)
			case "/trailers":
				rw.Header().Set("Trailer", "X-Sum")
				io.WriteString(rw, "hello")
				rw.Header().Set("X-Sum", "42")
			case "/events":
				for i := range 3 {
					fmt.Fprintf(rw, "event %d\n", i)
					http.NewResponseController(rw).Flush()
					r.Body.Read(make([]byte, 1)) // the caller answers each
				}
			case "/early":
				rw.WriteHeader(http.StatusRequestEntityTooLarge)
				io.WriteString(rw, "too large")
			}
		}))
		c := w.client(alice, h2)
		get := func(path string) (*http.Response, string) {
			t.Helper()
			resp, err := c.Get("http://bar-east" + path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			return resp, string(b)
		}
		if _, body := get("/down"); body != string(payload) {
			t.Errorf("a download of %d bytes has %d", len(payload), len(body))
		}
		if resp, body := get("/trailers"); body != "hello" || resp.Trailer.Get("X-Sum") != "42" {
			t.Errorf("body %q, trailers %v", body, resp.Trailer)
		}
		body, answers := io.Pipe()
		req, _ := http.NewRequest("POST", "http://bar-east/events", body)
		go io.WriteString(answers, "x")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		for i := range 3 {
			if !lines.Scan() || lines.Text() != fmt.Sprintf("event %d", i) {
				t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
			}
			go io.WriteString(answers, "x")
		}
		answers.Close()
		resp.Body.Close()
		resp, err = c.Post("http://bar-east/early", "text/plain", io.LimitReader(zeros{}, 64<<20))
		if err != nil {
			t.Fatalf("an early answer: %v", err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 413 || string(b) != "too large" {
			t.Errorf("status %d, %q", resp.StatusCode, b)
		}
		resp.Body.Close()
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestUpgrade: a connection that is upgraded goes on as an opaque one, with the bytes of
// its request as they came.
func TestUpgrade(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil || req.Header.Get("Upgrade") != "websocket" {
			t.Errorf("the application received %v, %v", req, err)
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(c, r)
	})
	w.learnClientFirst()
	answer, err := w.call(alice, "GET /chat HTTP/1.1\r\nHost: bar-east\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
	if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 101 ") || !strings.HasSuffix(answer, "\r\n\r\nhello") {
		t.Errorf("%q, %v", answer, err)
	}
}

// TestMalformedRequest: what two servers could read differently is refused at the caller's
// node.
func TestMalformedRequest(t *testing.T) {
	w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) { t.Error("the application received a request") }))
	w.learnClientFirst()
	answer, err := w.call(alice, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	if err != nil || !strings.HasPrefix(answer, "HTTP/1.1 400 ") || !strings.Contains(answer, "Proxy-Status: causeway; error=http_request_error") {
		t.Errorf("%q, %v", answer, err)
	}
}

// TestRequestWithoutResponse: what the mesh answers in place of an application.
func TestRequestWithoutResponse(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, func(c *net.TCPConn) {
			c.Read(make([]byte, 1000))
			transport.Reset(c)
		})
		resp, err := w.client(alice, h2).Post("http://bar-east/", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 502 || resp.Header.Get("Proxy-Status") == "" || resp.Header.Get("causeway-error") != "" {
			t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
			t.Log(w.logs[0].all("request failed", "error"), w.logs[1].all("request refused", "error"))
		}
		if n := w.dials.Load(); n != 1 && !h2 { // an HTTP/2 connection may end before the request is sent
			t.Errorf("a POST that an application may have processed was sent %d times", n)
		}
	})
}

// TestCallerOfRequestLeaves: a request whose caller has gone also ends at the
// application, and does not count as a failure of the mesh.
func TestCallerOfRequestLeaves(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		came, gone := make(chan bool, 1), make(chan bool, 1)
		w := newHarness(t, serveHTTP(func(_ http.ResponseWriter, r *http.Request) {
			came <- true
			<-r.Context().Done()
			gone <- true
		}))
		taps := [2]*reqlog.Tap{}
		taps[0], taps[1] = w.tapBoth()
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://bar-east/", nil)
		failed := make(chan error, 1)
		go func() {
			resp, err := w.client(alice, h2).Do(req)
			if err == nil {
				resp.Body.Close()
			}
			failed <- err
		}()
		<-came
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		select {
		case <-gone:
		case <-time.After(testTimeout):
			t.Error("the application goes on with a request whose caller has left")
		}
		for _, tap := range taps {
			if r := nextRecord(t, tap); r.Reason != reasonCallerGone || r.Status != 0 {
				t.Errorf("record: %s", r)
			}
		}
		for _, reason := range reasons(outbound) {
			if n := refusals(w.west, outbound, reason); n > 0 {
				t.Errorf("%v refusals at the caller's node: %s", n, reason)
			}
		}
		for _, reason := range reasons(inbound) {
			if n := refusals(w.east, inbound, reason); n > 0 {
				t.Errorf("%v refusals at the application's node: %s", n, reason)
			}
		}
	})
}

// TestConcurrentRequests: many requests at a time share sessions.
func TestConcurrentRequests(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			rw.Write(body)
		}))
		c := w.client(alice, h2)
		var callers sync.WaitGroup
		for i := range 50 {
			callers.Go(func() {
				for j := range 20 {
					want := strings.Repeat(fmt.Sprintf("%d/%d ", i, j), 1+i*j)
					resp, err := c.Post("http://bar-east/", "text/plain", strings.NewReader(want))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || string(got) != want {
						t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
					}
				}
			})
		}
		callers.Wait()
		if made := len(w.west.requests.all()); made > 2 {
			t.Errorf("%d sessions for 50 requests at a time", made)
		}
	})
}

// TestForwardIdentity: an application that asks for it learns who calls, and a caller
// cannot claim to be another one.
func TestForwardIdentity(t *testing.T) {
	const caller = "spiffe://west-1/ns/shop/sa/alice"
	eachVersion(t, func(t *testing.T, h2 bool) {
		for way, want := range map[wire.ForwardIdentity]string{
			wire.ForwardIdentity_NONE:   "[] [] [] []",
			wire.ForwardIdentity_HEADER: "[" + caller + "] [] [] []",
		} {
			w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				fmt.Fprint(rw, r.Header.Values("Causeway-Client-Id"), r.Header["Causeway_client_id"], r.Trailer.Values("Causeway-Client-Id"), r.Header["Causeway-Error"])
			}))
			w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().ForwardIdentity = way })
			req, _ := http.NewRequest("POST", "http://bar-east/", io.MultiReader(strings.NewReader("hello")))
			const other = "spiffe://west-1/ns/shop/sa/bob"
			req.Header = http.Header{"Causeway-Client-Id": {other}, "Causeway_client_id": {other}, "Causeway-Error": {"other"}}
			req.Trailer = http.Header{"Causeway-Client-Id": {other}}
			resp, err := w.client(alice, h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(got) != want {
				t.Errorf("%v: the application received %s, %v, want %s", way, got, err, want)
			}
		}
	})
}

// TestForwardIdentityRefusesOpaque: the agent cannot see requests on an opaque
// connection. They could claim any identity to an application that trusts the field.
func TestForwardIdentityRefusesOpaque(t *testing.T) {
	const forged = "Causeway-Client-Id: spiffe://west-1/ns/shop/sa/bob\r\n"
	const upgrade = "GET / HTTP/1.1\r\nHost: bar-east\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + forged + "\r\n"
	for name, sent := range map[string]string{
		"upgrade":             upgrade,
		"not recognized":      "\nGET / HTTP/1.1\r\nHost: bar-east\r\n" + forged + "\r\n",
		"unknown to the mesh": "get / HTTP/1.1\r\nHost: bar-east\r\n" + forged + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, func(*net.TCPConn) { t.Error("the application was reached") })
			w.learnClientFirst()
			w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().ForwardIdentity = wire.ForwardIdentity_HEADER })
			answer, err := w.call(alice, sent)
			wantReset(t, answer, err)
			w.wantRefusal(w.east, inbound, "requests_only")
		})
	}
	t.Run("declared as opaque", func(t *testing.T) {
		w := newHarness(t, echo)
		w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
			r.GetExport().ForwardIdentity = wire.ForwardIdentity_HEADER
			r.GetExport().Ports[0].Declared = wire.Protocol_TCP
		})
		if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
			t.Errorf("%q, %v", answer, err)
		}
	})
}

func TestProxyProtocol(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Error(err)
			return
		}
		tlvs, err := h.TLVs()
		if err != nil || len(tlvs) != 1 {
			t.Errorf("%v, %v", tlvs, err)
			return
		}
		ssl, err := tlvparse.SSL(tlvs[0])
		if err != nil {
			t.Error(err)
		}
		name, _ := ssl.ClientCN()
		sent, _ := io.ReadAll(r)
		fmt.Fprintf(c, "%s says %s", name, sent)
	})
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().ForwardIdentity = wire.ForwardIdentity_PROXY_V2 })
	if got, err := w.call(alice, "\x16hello"); err != nil || got != "spiffe://west-1/ns/shop/sa/alice says \x16hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestMaxRequests: the exporter bounds the requests that one node has in flight.
func TestMaxRequests(t *testing.T) {
	came, answer := make(chan bool), make(chan bool)
	w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) { came <- true; <-answer }))
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
		backendOf(r).Settings = &wire.TrafficSettings{MaxRequests: 1}
	})
	c := w.client(alice, false)
	first := make(chan error, 1)
	go func() {
		resp, err := c.Get("http://bar-east/")
		if err == nil {
			resp.Body.Close()
		}
		first <- err
	}()
	<-came
	resp, err := c.Get("http://bar-east/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(resp.Header.Get("Proxy-Status"), "circuit_open") {
		t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
	}
	answer <- true
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestRefusingGatewayIsNoOpenCircuit: requests that exceed the bound of those that wait,
// because all gateways refuse connections, fail for that reason.
func TestRefusingGatewayIsNoOpenCircuit(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) { t.Error("the application was reached") }))
		closed := listen(t, "127.0.0.1")
		closed.Close()
		w.change(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = closed.Addr().String() })
		w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
			backendOf(r).Settings = &wire.TrafficSettings{MaxPendingRequests: 2}
		})
		var wait sync.WaitGroup
		get := func() {
			resp, err := w.client(alice, h2).Get("http://bar-east/")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(resp.Header.Get("Proxy-Status"), reasonUnreachable) {
				t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
			}
		}
		wait.Go(get)
		wait.Go(get)
		eventually(t, "two requests wait", func() bool {
			c := &w.west.pendingCircuits
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.counts[remotePort{"link-to-east", "shop", "bar", 80}] == 2 && w.west.monitor.isRefused("link-to-east")
		})
		for range 8 {
			get()
		}
		wait.Wait()
		w.wantRefusal(w.west, outbound, reasonUnreachable)
		if n := counted(t, w.west, "causeway_requests_rejected_total", "reason=no_endpoint"); n != 10 {
			t.Errorf("%d requests count as without an endpoint, want 10", n)
		}
	})
}

// TestMaxPendingRequests: the exporter bounds the requests of one node that wait for a
// session.
func TestMaxPendingRequests(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) { t.Error("the application was reached") }))
		silent := listen(t, "127.0.0.1") // its kernel accepts, and no agent answers
		defer silent.Close()
		w.change(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = silent.Addr().String() })
		w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
			backendOf(r).Settings = &wire.TrafficSettings{MaxPendingRequests: 2, TimeoutMs: proto.Uint32(1500)}
		})
		var wait sync.WaitGroup
		defer wait.Wait()
		start := func() {
			wait.Go(func() {
				resp, err := w.client(alice, h2).Get("http://bar-east/")
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != 504 {
					t.Errorf("a request that waits: status %d, want 504", resp.StatusCode)
				}
			})
		}
		pending := func() uint32 {
			c := &w.west.pendingCircuits
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.counts[remotePort{"link-to-east", "shop", "bar", 80}]
		}
		start()
		start()
		eventually(t, "two requests wait", func() bool { return pending() == 2 })
		resp, err := w.client(alice, h2).Get("http://bar-east/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(resp.Header.Get("Proxy-Status"), "circuit_open") {
			t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
		}
		eventually(t, "no request waits", func() bool { return pending() == 0 })
		start()
		eventually(t, "another one may wait", func() bool { return pending() == 1 })
	})
}

// TestMaxConnections: the exporter bounds the connections of one node. Further ones are
// reset, because what they carry is not known yet.
func TestMaxConnections(t *testing.T) {
	for name, tc := range map[string]struct {
		app        func(*net.TCPConn)
		send, want string
	}{
		"opaque": {func(c *net.TCPConn) { io.Copy(c, c) }, "\x16hello", "\x16hello"},
		"http1": {serveHTTP(func(http.ResponseWriter, *http.Request) {}),
			"GET / HTTP/1.1\r\nHost: bar-east\r\n\r\n", "HTTP/1.1 200 OK"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, tc.app)
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				backendOf(r).Settings = &wire.TrafficSettings{MaxConnections: 2}
			})
			w.learnClientFirst()
			exchange := func(c *net.TCPConn) error {
				if _, err := io.WriteString(c, tc.send); err != nil {
					return err
				}
				got := make([]byte, len(tc.want))
				_, err := io.ReadFull(c, got)
				if err == nil && string(got) != tc.want {
					t.Errorf("the answer is %q", got)
				}
				return err
			}
			open := []*net.TCPConn{w.dial(alice), w.dial(bob)}
			for _, c := range open {
				if err := exchange(c); err != nil {
					t.Fatal(err)
				}
			}
			c, err := w.tryDial(alice)
			if err == nil {
				err = exchange(c)
			}
			wantReset(t, "a third connection", err)
			w.wantRefusal(w.west, outbound, reasonCircuitOpen)
			open[0].Close()
			eventually(t, "another connection is accepted", func() bool {
				c, err := w.tryDial(alice)
				return err == nil && exchange(c) == nil
			})
		})
	}
}

// TestRequestTimeout: a request that the exporter bounds ends at the application too.
func TestRequestTimeout(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
			backendOf(r).Settings = &wire.TrafficSettings{TimeoutMs: proto.Uint32(100)}
		})
		resp, err := w.client(alice, h2).Get("http://bar-east/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 504 || !strings.Contains(resp.Header.Get("Proxy-Status"), "error=http_response_timeout") {
			t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
		}
	})
}

// Trailers arrive also if they came together with the head of the request.
func TestTrailersOfShortRequest(t *testing.T) {
	w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %v %s", body, err, r.Trailer.Get("X-Sum"))
	}))
	w.learnClientFirst()
	c, err := w.tryDial(alice)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(testTimeout))
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: bar\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"+
		"5\r\nhello\r\n0\r\nX-Sum: five\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "hello <nil> five" {
		t.Errorf("the application received %q, %v", got, err)
	}
}

// TestRetryAfterDrop: a GET whose connection the application drops is sent again, and its
// caller sees the answer alone.
func TestRetryAfterDrop(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		var requests atomic.Int64
		w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			if requests.Add(1) == 1 {
				panic(http.ErrAbortHandler)
			}
			io.WriteString(rw, "hello")
		}))
		resp, err := w.client(alice, h2).Get("http://bar-east/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
			t.Errorf("status %d, %q, %v", resp.StatusCode, body, err)
		}
	})
}

// TestAppRetry tests which requests the agent sends to an application again.
func TestAppRetry(t *testing.T) {
	refused := &mux.ResetError{Code: http2.ErrCodeRefusedStream, NotProcessed: true}
	reset, unsent := &mux.ResetError{Code: http2.ErrCodeCancel}, &httprelay.UnsentError{}
	cases := map[string]struct {
		why                        string
		reused, canceled, replayed bool
		err                        error
		try                        int
		want                       bool
	}{
		"nothing sent":         {why: "an idle connection had ended before", reused: true, replayed: true, err: unsent, want: true},
		"nothing sent, again":  {why: "a new connection fails too", replayed: true, err: unsent},
		"idle connection":      {why: "the application may have processed it", reused: true, replayed: true, err: io.EOF},
		"new connection":       {why: "the request may have made the application fail", replayed: true, err: io.EOF},
		"body lost":            {why: "the application would get a part of it", reused: true, err: unsent},
		"caller gone":          {why: "no one waits for the response", reused: true, canceled: true, replayed: true, err: unsent},
		"refused":              {why: "the application did not process it", replayed: true, err: refused, want: true},
		"refused, body lost":   {why: "the application would get a part of it", err: refused},
		"refused, caller gone": {why: "no one waits for the response", canceled: true, replayed: true, err: refused},
		"refused often":        {why: "the application refuses each try", replayed: true, err: refused, try: openTries - 1},
		"reset":                {why: "the application may have processed it", replayed: true, err: reset},
	}
	for name, tc := range cases {
		f := &appRequest{reused: tc.reused, canceled: tc.canceled}
		if got := f.retry(httprelay.Failure{Try: tc.try, Err: tc.err, Replayable: tc.replayed}); got != tc.want {
			t.Errorf("%s: %v, want %v, because %s", name, got, tc.want, tc.why)
		}
	}
}

// TestIdleAppConnectionHadEnded: if nothing of a request was written because an idle
// connection had ended, the agent sends the request over a new one, with any method.
func TestIdleAppConnectionHadEnded(t *testing.T) {
	ln := listen(t, "127.0.0.1")
	defer ln.Close()
	c := must(net.Dial("tcp", ln.Addr().String()))(t).(*net.TCPConn)
	defer c.Close()
	c.CloseWrite() // so it looks quiet, and writes fail
	r := &inboundRequests{in: new(inboundConn), protocol: tunnel.Protocol_HTTP1}
	r.apps.idle = []idleApp{{AppConn: httprelay.NewAppConn(c)}}
	f := &appRequest{session: r}
	_, err := f.open(0, &message.Head{Method: "POST", Target: "/", Version: message.HTTP11}, nil, true)
	if err == nil || !f.retry(httprelay.Failure{Err: err, Replayable: true}) {
		t.Errorf("%v: the request is not sent again", err)
	}
}

// TestReusedAppConnectionFails: if an application ends a kept connection after it has received
// a request, the policy for retries decides, at the caller's agent, which counts each one.
func TestReusedAppConnectionFails(t *testing.T) {
	none, idempotent := &wire.TrafficSettings{Retries: proto.Uint32(0)}, &wire.TrafficSettings{RetryOn: uint32(trafficsettings.RetryReset | trafficsettings.RetryIdempotent)}
	for name, tc := range map[string]struct {
		method   string
		settings *wire.TrafficSettings
		retries  int
	}{
		"GET":                {"GET", nil, 1},
		"HEAD":               {"HEAD", nil, 1},
		"OPTIONS":            {"OPTIONS", nil, 1},
		"TRACE":              {"TRACE", nil, 0},
		"PUT":                {"PUT", nil, 0},
		"DELETE":             {"DELETE", nil, 0},
		"POST":               {"POST", nil, 0},
		"GET, no retries":    {"GET", none, 0},
		"DELETE, no retries": {"DELETE", none, 0},
		"DELETE, idempotent": {"DELETE", idempotent, 1},
		"PUT, idempotent":    {"PUT", idempotent, 1},
		"POST, idempotent":   {"POST", idempotent, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var received atomic.Int64
			w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/drop" && received.Add(1) == 1 {
					panic(http.ErrAbortHandler)
				}
			}))
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { backendOf(r).Settings = tc.settings })
			c := w.client(alice, false)
			for _, path := range []string{"warm", "drop"} {
				req, _ := http.NewRequest(tc.method, "http://bar-east/"+path, nil)
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if path == "warm" { // the far agent keeps the connection
					eventually(t, "the request has ended", func() bool { return counted(t, w.east, "causeway_requests_total") == 1 })
				}
				if failed := path == "drop" && tc.retries == 0; failed != (resp.StatusCode >= 500) {
					t.Errorf("%s: status %d", path, resp.StatusCode)
				}
			}
			if n := w.dials.Load(); n != int64(1+tc.retries) {
				t.Fatalf("%d connections: the request was not sent on a kept one", n)
			}
			if n := received.Load(); n != int64(1+tc.retries) {
				t.Errorf("the application received it %d times, want %d", n, 1+tc.retries)
			}
			const metric = "causeway_request_retries_total"
			if near, far := counted(t, w.west, metric), counted(t, w.east, metric); near != tc.retries || far != 0 {
				t.Errorf("%d retries counted near and %d far, want %d and 0", near, far, tc.retries)
			}
		})
	}
}

// counted returns the sum of a counter of an agent's requests. Each of labels is a label of
// the series that count, as name=value.
func counted(t *testing.T, a *Agent, name string, labels ...string) (n int) {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(a.requestMetrics)
	for _, f := range must(r.Gather())(t) {
		if f.GetName() == name {
			for _, m := range f.Metric {
				has := make(map[string]bool)
				for _, l := range m.Label {
					has[l.GetName()+"="+l.GetValue()] = true
				}
				if !slices.ContainsFunc(labels, func(l string) bool { return !has[l] }) {
					n += int(m.Counter.GetValue())
				}
			}
		}
	}
	return n
}

// TestCallerLeavesWhileRequestIsSent: if the caller goes while the application does not
// read the first bytes of its request, the request ends.
func TestCallerLeavesWhileRequestIsSent(t *testing.T) {
	for _, protocol := range []tunnel.Protocol{tunnel.Protocol_HTTP1, tunnel.Protocol_HTTP2} {
		t.Run(protocol.String(), func(t *testing.T) {
			ln := listen(t, "127.0.0.1")
			defer ln.Close()
			c := must(net.Dial("tcp", ln.Addr().String()))(t).(*net.TCPConn)
			defer c.Close()
			far := must(ln.Accept())(t) // it reads nothing
			defer far.Close()
			r := &inboundRequests{in: new(inboundConn), protocol: protocol}
			if protocol == tunnel.Protocol_HTTP1 {
				r.apps.idle = []idleApp{{AppConn: httprelay.NewAppConn(c)}}
			} else {
				m := mux.New(c, mux.Config{Client: true})
				ran := make(chan error, 1)
				go func() { ran <- m.Run(t.Context()) }()
				defer func() { c.Close(); <-ran }()
				r.apps.muxes = []*mux.Conn{m}
			}
			f := &appRequest{session: r}
			opened := make(chan error, 1)
			go func() {
				_, err := f.open(0, &message.Head{Method: "POST", Target: "/", Version: message.HTTP11}, make([]byte, 64<<20), false)
				opened <- err
			}()
			eventually(t, "the request is sent", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.to != nil })
			f.cancel(f.use)
			select {
			case err := <-opened:
				if err == nil {
					t.Error("no error")
				}
			case <-time.After(testTimeout):
				t.Error("the agent still sends the request")
			}
		})
	}
}

// TestLateCancel: a cancel that comes after a request has ended ends neither the next request
// of its connection nor the one that uses its memory again.
func TestLateCancel(t *testing.T) {
	ln := listen(t, "127.0.0.1")
	defer ln.Close()
	c := must(net.Dial("tcp", ln.Addr().String()))(t).(*net.TCPConn)
	defer c.Close()
	f := appRequests.Get().(*appRequest)
	f.session = &inboundRequests{in: new(inboundConn), protocol: tunnel.Protocol_HTTP1}
	late := f.use
	f.app = httprelay.NewAppConn(c)
	f.session.in.podGrace.add(c)
	next := &fakeReset{}
	f.attach(next)
	f.release()
	f.cancel(late)
	if next.reset {
		t.Error("the connection was reset after it was released")
	}
	f.free()
	f.cancel(late)
	if f.isCanceled() {
		t.Error("the next use is canceled")
	}
}

// fakeReset records whether it was reset.
type fakeReset struct {
	httprelay.Stream
	reset bool
}

func (f *fakeReset) Reset(http2.ErrCode) { f.reset = true }

// TestRequestsShareDial: requests that arrive while the agent dials an application wait
// for that dial and start no other, even if it fails.
func TestRequestsShareDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p appConns
		dials, failed := 0, errors.New("the pod does not answer")
		dial := func() (*mux.Conn, error) {
			dials++
			<-time.After(podTimeout)
			return nil, failed
		}
		var requests sync.WaitGroup
		start := time.Now()
		for range 10 {
			requests.Go(func() {
				if _, err := p.share(dial); err != failed {
					t.Error(err)
				}
			})
		}
		requests.Wait()
		if took := time.Since(start); dials != 1 || took != podTimeout {
			t.Errorf("%d dials in %v", dials, took)
		}
		if _, err := p.share(dial); err != failed || dials != 2 {
			t.Errorf("the next request: %v after %d dials", err, dials)
		}
	})
}

// TestNotProcessedByApp: if an application did not process a request, the caller's agent
// may send it to another endpoint.
func TestNotProcessedByApp(t *testing.T) {
	got := refusalOf(&mux.ResetError{Code: http2.ErrCodeRefusedStream, NotProcessed: true})
	if got.Status != 503 || !got.NotProcessed {
		t.Errorf("%+v", got)
	}
	if got := refusalOf(&mux.ResetError{Code: http2.ErrCodeCancel}); got.Status != 502 || got.NotProcessed {
		t.Errorf("after the application has received it: %+v", got)
	}
}

// TestRequestPolicy: an ExportPolicy may name methods and paths. A denial is final, and
// its caller learns which side denied.
func TestRequestPolicy(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) {}))
		w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
			r.GetExport().Policies = []*wire.Policy{{Name: "reads", RequestCallers: []*wire.RequestCaller{{
				Caller:  &wire.Caller{Link: "west"},
				Methods: []string{"GET"},
				Paths:   []*wire.PathMatch{{Match: &wire.PathMatch_Prefix{Prefix: "/public"}}},
			}}}}
		})
		c := w.client(alice, h2)
		denied := 0.0
		for _, tc := range []struct {
			method, path string
			status       int
		}{
			{"GET", "/public/a", 200}, {"GET", "/private", 403}, {"POST", "/public/a", 403},
			{"GET", "/public/../private", 403}, {"GET", "/public%2f..%2fprivate", 403}, {"GET", "/publicity", 403},
		} {
			req, _ := http.NewRequest(tc.method, "http://bar-east", nil)
			req.URL.Opaque = tc.path
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if tc.status == 403 {
				denied++
			}
			status := resp.Header.Get("Proxy-Status")
			if resp.StatusCode != tc.status || tc.status == 403 && !strings.HasPrefix(status, "causeway-peer; error=http_request_denied") {
				t.Errorf("%s %s: status %d, %q, want %d", tc.method, tc.path, resp.StatusCode, status, tc.status)
			}
		}
		if n := refusals(w.east, inbound, admit.RequestDenied.String()); n != denied {
			t.Errorf("%v requests were denied at the far side, want %v: a denial must not be tried again", n, denied)
		}
	})
}

// TestTimeoutIncludesTheWaitForASession: a peer that does not answer does not make a
// request exceed its timeout.
func TestTimeoutIncludesTheWaitForASession(t *testing.T) {
	w := newHarness(t, func(*net.TCPConn) { t.Error("the application was dialed") })
	silent := listen(t, "127.0.0.1")
	defer silent.Close()
	w.change(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = silent.Addr().String() })
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
		backendOf(r).Settings = &wire.TrafficSettings{TimeoutMs: proto.Uint32(200)}
	})
	start := time.Now()
	resp, err := w.client(alice, false).Get("http://bar-east/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if took := time.Since(start); resp.StatusCode != 504 || took > handshakeTimeout/2 {
		t.Errorf("status %d after %v, want 504 after 200 ms", resp.StatusCode, took)
	}
	if status := resp.Header.Get("Proxy-Status"); status != `causeway; error=http_response_timeout; details="request_timeout"` {
		t.Errorf("Proxy-Status %q", status)
	}
}
