//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// An earlyRequest is a request that a server answers before it has read all of it.
type earlyRequest struct {
	begin string // the first bytes
	size  int    // the number of bytes that follow them
	end   string // and then the last bytes
	want  int    // the status of the answer
	// server is the field Server of the answer. It is empty if Causeway answers.
	server string
}

const headOfGet = "GET /early HTTP/1.1\r\nHost: desk\r\nX-Long: "

// earlyRequests are answered early by the server of serveEarly.
var earlyRequests = map[string]earlyRequest{
	"413 to an upload": {
		begin:  fmt.Sprintf("PUT /early HTTP/1.1\r\nHost: desk\r\nContent-Length: %d\r\n\r\n", 100<<20),
		size:   100 << 20,
		want:   http.StatusRequestEntityTooLarge,
		server: "desk",
	},
	"431 to a long head": {
		begin:  headOfGet,
		size:   48 << 10,
		end:    "\r\n\r\n",
		want:   http.StatusRequestHeaderFieldsTooLarge,
		server: "desk",
	},
}

// tooLongForCauseway is a request whose head is longer than Causeway reads.
var tooLongForCauseway = earlyRequest{
	begin: headOfGet,
	size:  8 << 20,
	end:   "\r\n\r\n",
	want:  http.StatusRequestHeaderFieldsTooLarge,
}

// serveEarly serves in the network of a pod of east. It reads a few KiB of a request,
// answers, and closes the connection, so that the kernel resets it.
func serveEarly(t *testing.T, pod string, port int) {
	t.Helper()
	listenIn(t, pod, port, func(ln net.Listener) {
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { answerEarly(c) })
			}
		})
		t.Cleanup(func() { ln.Close(); serving.Wait() })
	})
}

func answerEarly(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReaderSize(c, 2<<10)
	method, err := r.Peek(len("PUT"))
	if err != nil {
		return
	}
	status := http.StatusRequestHeaderFieldsTooLarge
	if bytes.Equal(method, []byte("PUT")) {
		status = http.StatusRequestEntityTooLarge
	}
	fmt.Fprintf(c, "HTTP/1.1 %d Early\r\nServer: desk\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly", status)
}

// send sends the request until it is answered, and returns an error if the answer is not
// the one that is wanted.
func (e earlyRequest) send(ctx context.Context, ns, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := dial(ctx, ns, address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		rest := bytes.Repeat([]byte("a"), min(e.size, 64<<10))
		_, err := io.WriteString(c, e.begin)
		for n := 0; n < e.size && err == nil; n += len(rest) {
			_, err = c.Write(rest[:min(len(rest), e.size-n)])
		}
		if err == nil { // otherwise it is the reset that follows the answer
			io.WriteString(c, e.end)
		}
	}()
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil {
		_, err = io.Copy(io.Discard, answer.Body)
	}
	c.Close()
	<-sent
	if err != nil {
		return err
	}
	if server := answer.Header.Get("Server"); answer.StatusCode != e.want || server != e.server {
		return errors.New(answer.Status + " from the server " + server)
	}
	return nil
}

// TestEarlyAnswersArrive: the caller receives the answer of an application that answers
// before it has read the request and then resets the connection. The same holds for an
// early answer of Causeway. The test covers recognized and opaque ports, with a short and a
// long round trip.
func TestEarlyAnswersArrive(t *testing.T) {
	ctx := t.Context()
	openDesk(t)
	serveEarly(t, "desk", 8081)
	serveEarly(t, "desk", 8443)
	must(t, east.kubectl(ctx, "", "-n", "shop", "annotate", "service", "desk", "causeway.dev/protocol=8081=http1,8443=tcp"))
	client, requests, opaque := netOf(t, west, "client"), mirrorOf(t, "desk-east", 8081), mirrorOf(t, "desk-east", 8443)
	within(t, soon, "only one port is recognized", func() error {
		byApplication := tooLongForCauseway
		byApplication.server = "desk"
		return errors.Join(tooLongForCauseway.send(ctx, client, requests), byApplication.send(ctx, client, opaque))
	})
	for _, rtt := range []time.Duration{0, 60 * time.Millisecond} {
		if rtt > 0 {
			worsenWAN(t, lab.Weather{RTT: rtt})
			serves(t)
		}
		for what, e := range earlyRequests {
			e.sendMany(t, fmt.Sprintf("opaque, %v: %s", rtt, what), client, opaque)
			e.sendMany(t, fmt.Sprintf("recognized, %v: %s", rtt, what), client, requests)
		}
		tooLongForCauseway.sendMany(t, fmt.Sprintf("recognized, %v: 431 by Causeway", rtt), client, requests)
	}
}

// sendMany sends the request 40 times, and fails the test unless each is answered as it
// must be.
func (e earlyRequest) sendMany(t *testing.T, what, ns, address string) {
	t.Helper()
	const times, atOnce = 40, 8
	start := time.Now()
	lost := make(chan error, times)
	var calls sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for range times {
		slots <- struct{}{}
		calls.Go(func() {
			defer func() { <-slots }()
			if err := e.send(t.Context(), ns, address); err != nil {
				lost <- err
			}
		})
	}
	calls.Wait()
	t.Logf("%s: %d answers in %.1f s", what, times-len(lost), time.Since(start).Seconds())
	if n := len(lost); n > 0 {
		t.Errorf("%s: %d of %d answers were lost, one with: %v", what, n, times, <-lost)
	}
}
