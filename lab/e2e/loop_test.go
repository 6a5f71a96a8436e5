//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// loopInterval is the time between two calls of a callLoop.
const loopInterval = 100 * time.Millisecond

// A callLoop opens a connection every loopInterval and asks one question on it. Calls do
// not wait for each other.
type callLoop struct {
	stop  func()
	calls sync.WaitGroup

	mu     sync.Mutex // guards what follows
	starts []time.Time
	failed []failedCall
}

// failedCall is a call of a loop that was not answered.
type failedCall struct {
	start time.Time
	err   error
}

// startLoop calls a URL from a network namespace until end, or the end of the test.
func startLoop(t *testing.T, ns, url string) *callLoop {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &callLoop{stop: cancel}
	t.Cleanup(func() { cancel(); l.calls.Wait() })
	l.calls.Go(func() {
		tick := time.NewTicker(loopInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.calls.Go(func() { l.call(ns, url) })
			}
		}
	})
	return l
}

func (l *callLoop) call(ns, url string) {
	ctx, cancel := context.WithTimeout(background(), 5*time.Second)
	defer cancel()
	start := time.Now()
	_, err := fetch(ctx, ns, url)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starts = append(l.starts, start)
	if err != nil {
		l.failed = append(l.failed, failedCall{start, err})
	}
}

// end stops the loop, waits for its calls, and returns how many it made and which failed.
func (l *callLoop) end() (calls int, failed []failedCall) {
	l.stop()
	l.calls.Wait()
	return len(l.starts), l.failed
}

// describe lists the first failed calls by their time after start.
func describe(failed []failedCall, start time.Time) string {
	var lines []string
	for _, f := range failed[:min(len(failed), 10)] {
		lines = append(lines, fmt.Sprintf("%.1f s: %v", f.start.Sub(start).Seconds(), f.err))
	}
	return strings.Join(lines, "\n")
}

// between counts the failed calls that began in a span of time.
func between(failed []failedCall, from, to time.Time) (n int) {
	for _, f := range failed {
		if !f.start.Before(from) && f.start.Before(to) {
			n++
		}
	}
	return n
}

// An echoStream is one open connection to an echo server. It speaks every 200 ms.
type echoStream struct {
	stop func()
	done chan error
}

// startEcho opens a connection to an echo server. It speaks until end, or the end of the
// test.
func startEcho(t *testing.T, ns, address string) *echoStream {
	t.Helper()
	dialing, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c := have(dial(dialing, ns, address))(t)
	ctx, stop := context.WithCancel(t.Context())
	s := &echoStream{stop: stop, done: make(chan error, 1)}
	t.Cleanup(func() { stop(); c.Close() })
	must(t, echoOnce(c)) // the connection to the agent is open before the call is
	go func() { s.done <- echoOften(ctx, c) }()
	return s
}

// echoOften writes every 200 ms and reads the echo, until ctx ends.
func echoOften(ctx context.Context, c net.Conn) error {
	for ; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
		if err := echoOnce(c); err != nil {
			return err
		}
	}
	return nil
}

func echoOnce(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len("hello")))
	return err
}

// lives returns the error that ended the connection, if one did.
func (s *echoStream) lives() error {
	select {
	case err := <-s.done:
		s.done <- err
		return fmt.Errorf("the open connection ended: %w", err)
	default:
		return nil
	}
}
