package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestEarlyResponse: if an application answers before it has the whole body, no other
// request can follow on the connection, and the response says so.
func TestEarlyResponse(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { // net/http waits for bodies
		for r := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if req.URL.Query().Has("read") {
				if req.Header.Get("Expect") != "" {
					io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
				}
				io.Copy(io.Discard, req.Body)
			}
			var status int
			fmt.Sscanf(req.URL.Path, "/%d", &status)
			body := "Content-Length: 5\r\n\r\nhello"
			if status == 204 {
				body = "\r\n"
			}
			fmt.Fprintf(c, "HTTP/1.1 %d X\r\n%s", status, body)
		}
	})
	w.learnClientFirst()
	for target, wantClose := range map[string]bool{
		"/401": true, "/417": true, "/302": true, "/200": true, "/204": true, "/401?read": false, "/200?read": false,
	} {
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			for _, framing := range []string{"Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"} {
				t.Run(target+expect+framing, func(t *testing.T) {
					c := w.dial(alice)
					defer c.Close()
					fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: a\r\n%s%s\r\n", target, expect, framing)
					r := bufio.NewReader(c)
					if !wantClose {
						if expect != "" {
							if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 100 {
								t.Fatalf("%v, %v, want 100", resp, err)
							}
						}
						body := "hello"
						if strings.HasPrefix(framing, "T") {
							body = "5\r\nhello\r\n0\r\n\r\n"
						}
						io.WriteString(c, body)
					}
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Error(err)
					}
					if resp.Close != wantClose || !strings.HasPrefix(target[1:], fmt.Sprint(resp.StatusCode)) {
						t.Errorf("%d, Connection: close is %v, want %v", resp.StatusCode, resp.Close, wantClose)
					}
					if wantClose {
						if _, err := r.ReadByte(); err != io.EOF {
							t.Errorf("after the response: %v, want its end", err)
						}
						return
					}
					io.WriteString(c, "GET /204 HTTP/1.1\r\nHost: a\r\n\r\n")
					if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 204 {
						t.Errorf("the next request: %v, %v", resp, err)
					}
				})
			}
		}
	}
}

// TestClientsOfEarlyResponses: a client that waits for 100 (Continue) and is refused makes
// its next request over another connection.
func TestClientsOfEarlyResponses(t *testing.T) {
	w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			http.Error(rw, "who are you?", http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(r.Body)
		rw.Write(body)
	}))
	c := w.client(alice, false)
	c.Transport.(*http.Transport).ExpectContinueTimeout = testTimeout
	for range 5 {
		for status, secret := range map[int]string{401: "", 200: "secret"} {
			body := strings.Repeat("a", 100<<10)
			req, _ := http.NewRequest("POST", "http://bar-east/", strings.NewReader(body))
			req.Header.Set("Expect", "100-continue")
			if secret != "" {
				req.Header.Set("Authorization", secret)
			}
			start := time.Now()
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != status || status == 200 && string(got) != body {
				t.Errorf("%d bytes, status %d, %v, want %d", len(got), resp.StatusCode, err, status)
			}
			if took := time.Since(start); took > testTimeout/2 {
				t.Errorf("status %d after %v", status, took)
			}
		}
	}
}
