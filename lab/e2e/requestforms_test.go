//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/causeway-mesh/causeway/lab"
)

// The forms that requests take by hand, what is not HTTP beside them, what metrics say of
// them, and which of them a policy admits.

// deskService is an exported Service of the pod desk: bar's port, and ports on which a
// test serves.
func deskService(meta string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: desk, namespace: shop, %s}
spec:
  selector: {app: desk}
  ports:
    - {name: bar, port: 80, targetPort: 8080}
    - {name: greet, port: 7000, targetPort: 7000}
    - {name: app, port: 8081, targetPort: 8081}
    - {name: safe, port: 8443, targetPort: 8443}
---
`, meta)
}

// openDesk starts the pod desk and waits until its mirror answers.
func openDesk(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	within(t, time.Minute, "no pod of an earlier test is left", func() error {
		_, err := east.api.CoreV1().Pods("shop").Get(ctx, "desk", getOptions)
		if err == nil {
			return errNotYet
		}
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	offer(t, onePod("desk", "bar")+deskService(recognized), "desk-east")
	must(t, east.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/desk", "--timeout=60s"))
	within(t, time.Minute, "the mirror answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://desk-east.shop/")
		return err
	})
}

// A deskApp answers what the forms of HTTP need.
func deskApp() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d bytes, %v, trailer %q, host %s", r.Method, n, err, r.Trailer.Get("X-Sum"), r.Host)
	})
	m.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		n := 0
		for _, values := range r.Header {
			for _, v := range values {
				n += len(v)
			}
		}
		fmt.Fprintf(w, "%d", n)
	})
	m.HandleFunc("/trailers", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.Header().Set("X-Sum", "of the body")
	})
	m.HandleFunc("/204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	m.HandleFunc("/304", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Etag", `"v1"`)
		w.WriteHeader(http.StatusNotModified)
	})
	m.HandleFunc("/n/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.PathValue("n"))
		sleep(r.Context(), time.Duration(10-n)*5*time.Millisecond) // later ones would be earlier
		fmt.Fprintf(w, "answer %d", n)
	})
	m.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		sleep(r.Context(), 20*time.Second)
		io.WriteString(w, "late")
	})
	m.HandleFunc("/public/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "public") })
	m.HandleFunc("/private/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "private") })
	m.Handle("/ws", websocket.Handler(func(c *websocket.Conn) {
		for text := ""; websocket.Message.Receive(c, &text) == nil; {
			if websocket.Message.Send(c, text) != nil {
				return
			}
		}
	}))
	return m
}

// talk writes text on a connection of its own and reads one response to a method.
func talk(ctx context.Context, ns, address, method, text string) (*http.Response, string, error) {
	c, err := dial(ctx, ns, address)
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	go io.WriteString(c, text)
	return readResponse(bufio.NewReader(c), method)
}

func readResponse(r *bufio.Reader, method string) (*http.Response, string, error) {
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// TestFormsOfHTTP asks as people do by hand: each form is answered as the application
// alone would answer it.
func TestFormsOfHTTP(t *testing.T) {
	ctx := t.Context()
	openDesk(t)
	serveIn(t, "desk", 8081, deskApp())
	ns, address := netOf(t, west, "client"), mirrorOf(t, "desk-east", 8081)
	base := "http://desk-east.shop:8081"
	curl := func(t *testing.T, args ...string) string {
		t.Helper()
		return have(west.curl(ctx, "client", append([]string{"-sS", "-m10"}, args...)...))(t)
	}
	contains := func(t *testing.T, said string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(said, w) {
				t.Errorf("the answer has no %q: %.500q", w, said)
			}
		}
	}
	t.Run("Upload", func(t *testing.T) {
		contains(t, curl(t, "-d", strings.Repeat("a", 1000), base+"/echo"), "POST 1000 bytes, <nil>", "host desk-east.shop:8081")
	})
	t.Run("ExpectContinue", func(t *testing.T) {
		start := time.Now()
		said := curl(t, "-v", "--stderr", "-", "--expect100-timeout", "5", "-H", "Expect: 100-continue", "-d", strings.Repeat("a", 100<<10), base+"/echo")
		contains(t, said, "100 Continue", "POST 102400 bytes, <nil>")
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("it took %v: curl waited for 100 Continue", took)
		}
	})
	t.Run("ChunkedWithTrailers", func(t *testing.T) {
		_, body, err := talk(ctx, ns, address, "POST", "POST /echo HTTP/1.1\r\nHost: desk\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"+
			"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: eleven\r\n\r\n")
		must(t, err)
		contains(t, body, "POST 11 bytes, <nil>", `trailer "eleven"`)
		res, body, err := talk(ctx, ns, address, "GET", "GET /trailers HTTP/1.1\r\nHost: desk\r\nTE: trailers\r\n\r\n")
		must(t, err)
		if body != "body" || res.Trailer.Get("X-Sum") != "of the body" {
			t.Errorf("the body is %q, its trailers %v", body, res.Trailer)
		}
	})
	for _, code := range []string{"204", "304"} {
		t.Run(code, func(t *testing.T) {
			contains(t, curl(t, "-i", base+"/"+code), "HTTP/1.1 "+code)
		})
	}
	t.Run("HEAD", func(t *testing.T) {
		contains(t, curl(t, "-I", "http://desk-east.shop/download?bytes=1000000"), "200 OK", "1000000")
	})
	t.Run("HTTP10", func(t *testing.T) {
		contains(t, curl(t, "-i", "--http1.0", base+"/echo"), "200 OK", "GET 0 bytes")
	})
	t.Run("Pipelined", func(t *testing.T) {
		c := have(dial(ctx, ns, address))(t)
		defer c.Close()
		must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		var text strings.Builder
		for n := range 10 {
			fmt.Fprintf(&text, "GET /n/%d HTTP/1.1\r\nHost: desk\r\n\r\n", n)
		}
		have(io.WriteString(c, text.String()))(t)
		r := bufio.NewReader(c)
		for n := range 10 {
			if _, body, err := readResponse(r, "GET"); err != nil || body != fmt.Sprintf("answer %d", n) {
				t.Fatalf("answer %d is %q, %v", n, body, err)
			}
		}
	})
	t.Run("ManyHeaders", func(t *testing.T) {
		for _, size := range []int{16 << 10, 100 << 10, 1 << 20} {
			var head strings.Builder
			for n := range size / 1000 {
				fmt.Fprintf(&head, "X-Field-%d: %s\r\n", n, strings.Repeat("v", 1000))
			}
			res, body, err := talk(ctx, ns, address, "GET", "GET /headers HTTP/1.1\r\nHost: desk\r\n"+head.String()+"\r\n")
			switch {
			case err != nil:
				t.Errorf("%d bytes of headers: %v", size, err)
			case res.StatusCode == http.StatusRequestHeaderFieldsTooLarge:
				t.Logf("%d bytes of headers are refused with 431", size)
			case res.StatusCode == http.StatusOK && body == strconv.Itoa(size/1000*1000):
				t.Logf("%d bytes of headers are carried", size)
			default:
				t.Errorf("%d bytes of headers: %s, %.100q", size, res.Status, body)
			}
		}
	})
	t.Run("BothLengths", func(t *testing.T) {
		res, _, err := talk(ctx, ns, address, "POST", "POST /echo HTTP/1.1\r\nHost: desk\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		must(t, err)
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("a request with two lengths gets %s, want 400", res.Status)
		}
	})
	t.Run("Timeout", func(t *testing.T) {
		must(t, east.kubectl(ctx, "", "-n", "shop", "annotate", "service", "desk", "causeway.dev/timeout=500ms"))
		t.Cleanup(func() {
			must(t, east.kubectl(background(), "", "-n", "shop", "annotate", "service", "desk", "causeway.dev/timeout-"))
		})
		within(t, soon, "a slow answer gets 504", func() error {
			start := time.Now()
			said, err := west.curl(ctx, "client", "-sS", "-i", "-m3", base+"/slow")
			if err == nil && (!strings.HasPrefix(said, "HTTP/1.1 504") || !strings.Contains(strings.ToLower(said), "proxy-status: causeway; error=http_response_timeout")) {
				err = fmt.Errorf("the answer is %q", said)
			}
			if took := time.Since(start); err == nil && took > 1500*time.Millisecond {
				err = fmt.Errorf("504 came after %v", took)
			}
			return err
		})
	})
	t.Run("NoEndpoint", func(t *testing.T) {
		c := have(dial(ctx, ns, mirrorOf(t, "desk-east", 80)))(t) // kept, since new ones are refused
		defer c.Close()
		r := bufio.NewReader(c)
		ask := func() (*http.Response, error) {
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return nil, err
			}
			if _, err := io.WriteString(c, "GET /who HTTP/1.1\r\nHost: desk\r\n\r\n"); err != nil {
				return nil, err
			}
			res, _, err := readResponse(r, "GET")
			return res, err
		}
		if res := have(ask())(t); res.StatusCode != http.StatusOK {
			t.Fatalf("with an endpoint: %s", res.Status)
		}
		must(t, east.kubectl(ctx, "", "-n", "shop", "delete", "pod", "desk", "--force", "--grace-period=0"))
		sleep(ctx, 3*time.Second)
		res := have(ask())(t)
		if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || !strings.Contains(res.Header.Get("Proxy-Status"), "error=destination_unavailable") {
			t.Errorf("without an endpoint: %s, %v; want 503 with Retry-After and Proxy-Status", res.Status, res.Header)
		}
	})
}

// selfSigned is a certificate that nobody vouches for.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key := have(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"desk-east.shop"}}
	der := have(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestOpaqueBesideRequests: what is not HTTP, or is no longer, passes as it was sent.
// TestStreamsLiveOn has PostgreSQL as well.
func TestOpaqueBesideRequests(t *testing.T) {
	ctx := t.Context()
	openDesk(t)
	serveIn(t, "desk", 8081, deskApp())
	ns := netOf(t, west, "client")
	t.Run("HTTPS", func(t *testing.T) {
		listenIn(t, "desk", 8443, func(ln net.Listener) {
			serveHTTP(t, tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}), deskApp())
		})
		said := have(west.curl(ctx, "client", "-sSk", "-m10", "-d", "hello", "https://desk-east.shop:8443/echo"))(t)
		if !strings.HasPrefix(said, "POST 5 bytes, <nil>") {
			t.Errorf("the answer by HTTPS is %q", said)
		}
	})
	t.Run("ServerFirst", func(t *testing.T) {
		c := have(dial(ctx, ns, mirrorOf(t, "desk-east", 7000)))(t)
		defer c.Close()
		start := time.Now()
		said, err := line(c, 5*time.Second)
		if err != nil || !strings.HasPrefix(said, "hello from desk") || time.Since(start) > time.Second {
			t.Errorf("the greeting is %q, %v, after %v", said, err, time.Since(start))
		}
		have(io.WriteString(c, "GET good day\n"))(t) // begins as a request, but is none
		if said, err := line(c, 5*time.Second); err != nil || said != "you said GET good day\n" {
			t.Errorf("the answer is %q, %v", said, err)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		tcp := have(dial(ctx, ns, mirrorOf(t, "desk-east", 8081)))(t)
		must(t, tcp.SetDeadline(time.Now().Add(20*time.Second)))
		// A request comes first on the same connection.
		have(io.WriteString(tcp, "GET /echo HTTP/1.1\r\nHost: desk\r\n\r\n"))(t)
		if _, body, err := readResponse(bufio.NewReader(tcp), "GET"); err != nil || !strings.HasPrefix(body, "GET 0 bytes") {
			t.Fatalf("the request before the upgrade: %q, %v", body, err)
		}
		config := have(websocket.NewConfig("ws://desk-east.shop:8081/ws", "http://client.shop/"))(t)
		c := have(websocket.NewClient(config, tcp))(t)
		defer c.Close()
		for n := range 100 {
			sent, got := strings.Repeat("x", n*100+1), ""
			must(t, websocket.Message.Send(c, sent))
			if err := websocket.Message.Receive(c, &got); err != nil || got != sent {
				t.Fatalf("the echo of %d bytes has %d, %v", len(sent), len(got), err)
			}
		}
	})
	t.Run("Redis", func(t *testing.T) {
		redisAt(t)
		address := mirrorOf(t, "redis-east", 6379)
		for _, text := range []string{"PING\r\n", "*1\r\n$4\r\nPING\r\n"} {
			within(t, 10*time.Second, fmt.Sprintf("redis answers %q", text), func() error {
				c, err := dial(ctx, ns, address)
				if err != nil {
					return err
				}
				defer c.Close()
				start := time.Now()
				if _, err := io.WriteString(c, text); err != nil {
					return err
				}
				said, err := line(c, 3*time.Second)
				if err == nil && (said != "+PONG\r\n" || time.Since(start) > 900*time.Millisecond) {
					err = fmt.Errorf("%q after %v", said, time.Since(start))
				}
				return err
			})
		}
	})
}

// redisAt starts redis in the network of the pod redis.
func redisAt(t *testing.T) {
	t.Helper()
	cmd := have(east.Exec(t.Context(), lab.InPod("shop", "redis"), "bash", "-c",
		`exec -a redis-server redis-check-rdb --port 6379 --bind 0.0.0.0 --protected-mode no --save "" --dir "$1"`, "bash", t.TempDir()))(t)
	startProcess(t, cmd)
}

// TestProtocolTCP: with the annotation that says tcp, a kept connection of HTTP stays
// with one pod.
func TestProtocolTCP(t *testing.T) {
	const pods = 3
	openTeam(t, "plain", pods, barPods("plain", "plain", pods, 1))
	must(t, east.kubectl(t.Context(), "", "-n", "shop", "annotate", "service", "plain", "causeway.dev/protocol=tcp"))
	ns, address := netOf(t, west, "client"), mirrorOf(t, "plain-east", 80)
	within(t, soon, "one kept connection stays with one pod", func() error {
		k := keepHTTP(t, ns, address, false)
		got := k.askMany(t, 50, 1, 0)
		if n := k.dials.Load(); n != 1 {
			return fmt.Errorf("%d connections were opened", n)
		}
		if len(got) != 1 {
			return fmt.Errorf("%d pods answered", len(got))
		}
		return nil
	})
	got := keepHTTP(t, ns, address, false).askMany(t, 500, 1, 0)
	if len(got) != 1 {
		t.Errorf("%d pods answered one kept connection, want one: %v", len(got), got)
	}
}

// TestRequestsAreCounted: both ends count exactly the requests that were made, and the
// retries among them.
func TestRequestsAreCounted(t *testing.T) {
	const workers, each, dropped = 8, 250, 40
	ctx := t.Context()
	openDesk(t)
	var mu sync.Mutex // guards seen
	seen := make(map[string]int)
	var received atomic.Int64
	serveIn(t, "desk", 8081, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		received.Add(1)
		mu.Lock()
		seen[r.URL.Path]++
		again := seen[r.URL.Path] > 1
		mu.Unlock()
		if r.URL.Query().Has("drop") && !again {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "ok")
	}))
	read := func(c *cluster, name, direction string, more ...string) float64 {
		t.Helper()
		m := have(c.metrics(ctx, "agent"))(t)
		return count(m, name, append([]string{`direction="` + direction + `"`, `service="desk"`, `namespace="shop"`, `port="8081"`}, more...)...)
	}
	const total, retried, success = "causeway_requests_total", "causeway_request_retries_total", `code="2xx"`
	outBefore, inBefore, retriesBefore := read(west, total, "outbound"), read(east, total, "inbound"), read(west, retried, "outbound")
	servedBefore := read(west, total, "outbound", success)
	client := httpClient(t, func(ctx context.Context, address string) (net.Conn, error) {
		return dial(ctx, netOf(t, west, "client"), address)
	}, false, 0)
	url := "http://" + mirrorOf(t, "desk-east", 8081)
	failed := atomic.Int64{}
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := range each {
				query := ""
				if i%(each*workers/dropped) == 0 {
					query = "?drop"
				}
				if _, _, err := get(ctx, client, fmt.Sprintf("%s/%d/%d%s", url, w, i, query)); err != nil {
					failed.Add(1)
					t.Logf("request %d of worker %d: %v", i, w, err)
				}
			}
		})
	}
	all.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d requests failed", n)
	}
	const made = workers * each
	within(t, 5*time.Second, "both ends have counted every request", func() error {
		out, in := read(west, total, "outbound")-outBefore, read(east, total, "inbound")-inBefore
		served := read(west, total, "outbound", success) - servedBefore
		retries := read(west, retried, "outbound") - retriesBefore
		if out != made || served != made || retries != dropped || in != made+dropped || received.Load() != made+dropped {
			return fmt.Errorf("%d requests were made, %d of them dropped once, and the application received %d; "+
				"the near side counts %v, %v of them served, and %v retries, the far side %v", made, dropped, received.Load(), out, served, retries, in)
		}
		return nil
	})
}

// TestRequestPolicy: a policy with methods and paths admits those requests alone, and no
// connection that is opaque.
func TestRequestPolicy(t *testing.T) {
	ctx := t.Context()
	openDesk(t)
	serveIn(t, "desk", 8081, deskApp())
	base := "http://desk-east.shop:8081"
	ask := func(args ...string) (string, error) {
		return west.curl(ctx, "client", append([]string{"-sS", "-i", "-m5"}, args...)...)
	}
	must(t, east.kubectl(ctx, `
apiVersion: causeway.dev/v1alpha1
kind: ExportPolicy
metadata: {name: desk, namespace: shop}
spec:
  services: [desk]
  callers:
    - link: west
      namespace: shop
      serviceAccount: client
      methods: [GET]
      paths: [{prefix: /public}]
`, "apply", "-f", "-"))
	t.Cleanup(func() {
		must(t, east.kubectl(background(), "", "-n", "shop", "delete", "exportpolicy", "desk", "--ignore-not-found"))
	})
	forbidden := func(args ...string) error {
		said, err := ask(args...)
		if err == nil && (!strings.HasPrefix(said, "HTTP/1.1 403") || !strings.Contains(strings.ToLower(said), "proxy-status: causeway-peer; error=http_request_denied")) {
			err = fmt.Errorf("%v gets %q, want 403 with Proxy-Status", args, said)
		}
		return err
	}
	within(t, 5*time.Second, "another path is forbidden", func() error { return forbidden(base + "/private/x") })
	must(t, forbidden("-d", "hello", base+"/public/x"))
	must(t, forbidden("--path-as-is", base+"/public/../private/x"))
	must(t, forbidden("--path-as-is", base+"/public/%2e%2e/private/x"))
	must(t, forbidden("-I", base+"/public/x"))
	if said, err := ask(base + "/public/x"); err != nil || !strings.HasPrefix(said, "HTTP/1.1 200") || !strings.HasSuffix(said, "public") {
		t.Errorf("GET /public/x gets %q, %v", said, err)
	}
	// The answers of one connection each differ.
	ns := netOf(t, west, "client")
	c := have(dial(ctx, ns, mirrorOf(t, "desk-east", 8081)))(t)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	r := bufio.NewReader(c)
	for _, step := range []struct {
		path string
		want int
	}{{"/public/a", 200}, {"/private/a", 403}, {"/public/b", 200}} {
		have(fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: desk\r\n\r\n", step.path))(t)
		if res, _, err := readResponse(r, "GET"); err != nil || res.StatusCode != step.want {
			t.Fatalf("GET %s on a kept connection: %+v, %v; want %d", step.path, res, err, step.want)
		}
	}
	opaque := have(dial(ctx, ns, mirrorOf(t, "desk-east", 7000)))(t)
	defer opaque.Close()
	if said, err := line(opaque, 5*time.Second); err == nil || !refused(err) && !errors.Is(err, io.EOF) {
		t.Errorf("an opaque connection got %q, %v, want a refusal", said, err)
	}
}
