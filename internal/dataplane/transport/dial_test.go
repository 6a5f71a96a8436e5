package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errRefused = errors.New("refused")

// dialPlan is what happens at an address: after a time an error or a connection.
type dialPlan struct {
	after time.Duration
	err   error
}

// network counts the connections made and still open.
type network struct {
	plans map[string]dialPlan

	mu     sync.Mutex // guards what follows
	dialed []string
	open   map[string]net.Conn
}

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, address)
	n.mu.Unlock()
	p := n.plans[address]
	select {
	case <-time.After(p.after):
	case <-ctx.Done():
		if p.err == nil && p.after < time.Hour {
			break // the connection was made just as we gave up
		}
		return nil, ctx.Err()
	}
	if p.err != nil {
		return nil, p.err
	}
	c, s := net.Pipe()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open[address] = s
	return c, nil
}

func TestDialFirst(t *testing.T) {
	const ms = time.Millisecond
	cases := map[string]struct {
		why   string
		plans map[string]dialPlan
		index int
		took  time.Duration
		tried int
		err   error
	}{
		"first answers":            {"the next is not troubled", map[string]dialPlan{"a": {100 * ms, nil}, "b": {}}, 0, 100 * ms, 1, nil},
		"first refuses":            {"the next is tried at once", map[string]dialPlan{"a": {10 * ms, errRefused}, "b": {5 * ms, nil}}, 1, 15 * ms, 2, nil},
		"first is silent":          {"the next is tried after 250 ms", map[string]dialPlan{"a": {time.Hour, nil}, "b": {5 * ms, nil}}, 1, 255 * ms, 2, nil},
		"first is slow and wins":   {"a late answer counts", map[string]dialPlan{"a": {300 * ms, nil}, "b": {400 * ms, nil}}, 0, 300 * ms, 2, nil},
		"second refuses meanwhile": {"the first is waited for", map[string]dialPlan{"a": {400 * ms, nil}, "b": {1 * ms, errRefused}}, 0, 400 * ms, 2, nil},
		"all refuse":               {"the error has every reason", map[string]dialPlan{"a": {0, errRefused}, "b": {0, errRefused}}, 0, 0, 2, errRefused},
		"all are silent":           {"each attempt ends after 3 s", map[string]dialPlan{"a": {time.Hour, nil}, "b": {time.Hour, nil}}, 0, 3250 * ms, 2, context.DeadlineExceeded},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{plans: c.plans, open: map[string]net.Conn{}}
				start := time.Now()
				conn, index, err := Dialer{Dial: n.dial}.DialFirst(t.Context(), "a", "b")
				if took := time.Since(start); took != c.took || index != c.index || len(n.dialed) != c.tried || !errors.Is(err, c.err) {
					t.Errorf("index %d, %v after %v, %d tried; want %d, %v after %v, %d: %s", index, err, took, len(n.dialed), c.index, c.err, c.took, c.tried, c.why)
				}
				if (conn != nil) == (c.err != nil) {
					t.Errorf("connection %v with error %v", conn, err)
				}
				for address, s := range n.open {
					if address == []string{"a", "b"}[c.index] && c.err == nil {
						continue
					}
					if _, err := s.Read(make([]byte, 1)); err != io.EOF {
						t.Errorf("loser %s is still open: %v", address, err)
					}
				}
				if conn != nil {
					conn.Close()
				}
			})
		})
	}
}

func TestDialFirstWithoutAddress(t *testing.T) {
	if _, _, err := (Dialer{}).DialFirst(t.Context()); !errors.Is(err, ErrNoAddress) {
		t.Errorf("%v, want %v", err, ErrNoAddress)
	}
}

func TestDialFirstEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{plans: map[string]dialPlan{"a": {time.Hour, nil}}, open: map[string]net.Conn{}}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, _, err := Dialer{Dial: n.dial}.DialFirst(ctx, "a", "b", "c")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 100*time.Millisecond || len(n.dialed) != 1 {
			t.Errorf("%v after %v, %d dialled; want the context's end and one", err, time.Since(start), len(n.dialed))
		}
	})
}

func TestDialTunes(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, _, err := Dialer{}.DialFirst(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wantTuned(t, conn.(*net.TCPConn))
}
