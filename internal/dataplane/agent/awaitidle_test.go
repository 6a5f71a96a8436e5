package agent

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// An application may answer, and read what it was sent long after. Its session is not
// used again before that: the next call would wait behind the upload.
func TestSessionIsReusedAfterIdleFrame(t *testing.T) {
	const upload = 4 << 20
	free, took := make(chan struct{}), make(chan int64, 1)
	var calls atomic.Int64
	w := newHarness(t, func(c *net.TCPConn) {
		if calls.Add(1) > 1 {
			echo(c)
			return
		}
		io.ReadFull(c, make([]byte, 10))
		io.WriteString(c, "accepted")
		c.CloseWrite()
		<-free
		n, _ := io.Copy(io.Discard, c)
		took <- n + 10
	})
	c := w.dial(alice)
	go func() { c.Write(make([]byte, upload)); c.CloseWrite() }()
	if answer, err := io.ReadAll(c); string(answer) != "accepted" || err != nil {
		t.Fatalf("%q, %v", answer, err)
	}
	for range 5 {
		start := time.Now()
		if answer, err := w.call(alice, "next"); err != nil || answer != "you said next" || time.Since(start) > 3*time.Second {
			t.Errorf("another call: %q, %v after %v", answer, err, time.Since(start))
		}
	}
	close(free)
	if n := <-took; n != upload {
		t.Errorf("the application has read %d bytes of %d", n, upload)
	}
}

// secondEndpoint lists another pod of the Service at the gateway, which east's agent
// has as edit says.
func (w *harness) secondEndpoint(edit func(*wire.Pod), accepts bool) {
	pod := &wire.Pod{Uid: "bar-1", Namespace: "shop", Name: "bar-1", ServiceAccount: "bar", Ips: []string{"127.77.2.9"}, Live: true}
	edit(pod)
	w.eastView = maps.Clone(w.eastView)
	maps.Copy(w.eastView, w.view(&wire.Resource{Body: &wire.Resource_Pod{Pod: pod}}))
	w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		r.GetExport().Pods = append(r.GetExport().Pods, &wire.ExportPod{Uid: "bar-1", Accepts: accepts, Targets: r.GetExport().Pods[0].Targets})
	})
	w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) {
		r.GetRoute().Generation++
		r.GetRoute().Endpoints = append(r.GetRoute().Endpoints, &wire.Endpoint{Id: []byte("endpoin2"), PodUid: "bar-1", Upstream: "agent/node"})
	})
	w.push()
}

// An endpoint whose agent refuses HELLO is passed over, although it is the one with the
// fewest exchanges.
func TestEndpointRefusingHelloIsSkipped(t *testing.T) {
	w := newHarness(t, echoLines)
	w.secondEndpoint(func(p *wire.Pod) { p.Terminating = true }, false)
	for i := range 20 {
		c := w.dial(alice)
		defer c.Close()
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

// An endpoint that the gateway does not lead to is not asked for by each call anew.
func TestUnreachableEndpointIsSkipped(t *testing.T) {
	w := newHarness(t, echo)
	w.secondEndpoint(func(*wire.Pod) {}, true)
	w.change(&w.gatewayView, "route/1024", func(r *wire.Resource) {
		r.GetRoute().Endpoints[1].Upstream = "agent/gone"
		r.GetRoute().Generation++
	})
	if _, err := w.call(alice, "hello"); err != nil {
		t.Fatal(err)
	}
	set, _ := w.west.endpointCache.lookup(aliceAccount, aliceBar)
	w.west.endpointCache.recordAnswer(aliceAccount, aliceBar, tunnel.Answer{ // as a gateway tells that does not know yet
		Code: tunnel.Code_OK, Ready: append(slices.Clone(set.ready), route.EndpointID([]byte("endpoin2"))), ReadyCount: 2, Generation: set.generation + 1,
	}, "")
	for range 60 {
		if _, err := w.call(alice, "hello"); err != nil {
			t.Fatal(err)
		}
	}
	if made := w.sessionCount(sessionMade) + w.sessionCount(sessionPreconnected); made > 15 {
		t.Errorf("%d sessions were made for 60 calls that follow each other", made)
	}
}

// With the last pod of its namespace on a node the node's agent loses its exports, too.
// What that pod said last is delivered all the same.
func TestLastBytesOfLastPodInNamespaceAreDelivered(t *testing.T) {
	reply := make(chan int64)
	w := newHarness(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 3))
		n := fill(t, c)
		c.CloseWrite()
		reply <- n
		io.Copy(io.Discard, c)
	})
	c := w.dial(alice)
	io.WriteString(c, "all")
	n := <-reply
	w.edit(&w.eastView, "pod/bar-0", nil)
	w.edit(&w.eastView, "export/shop/bar", nil)
	w.push()
	if got, err := io.Copy(io.Discard, c); got != n || err != nil {
		t.Errorf("%d bytes came of %d, %v", got, n, err)
	}
	c.Close()
}

// A peer that never says that it has taken an exchange holds its caller's agent for a
// while only.
func TestAwaitIdleTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		s := &clientSession{conn: tunnel.NewConn(near)}
		start := time.Now()
		err := s.awaitIdle(t.Context(), awaitIdleTimeout)
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != awaitIdleTimeout {
			t.Errorf("%v after %v, want %v after %v", err, took, context.DeadlineExceeded, awaitIdleTimeout)
		}
		go func() { tunnel.WriteOpen(far, 0, nil) }()
		near.SetReadDeadline(time.Time{})
		if err := s.awaitIdle(t.Context(), awaitIdleTimeout); !errors.Is(err, tunnel.ErrUnexpectedFrame) {
			t.Errorf("another frame: %v, want %v", err, tunnel.ErrUnexpectedFrame)
		}
	})
}
