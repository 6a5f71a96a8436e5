//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// threads run functions in a network namespace. Close them when nothing more is to run.
type threads struct {
	jobs chan func()
	done sync.WaitGroup
}

// startThreads starts n threads in a network namespace. They end with the test.
func startThreads(t *testing.T, ns string, n int) *threads {
	t.Helper()
	p := &threads{jobs: make(chan func())}
	for range n {
		p.done.Go(func() {
			_, err := inside(ns, func() (struct{}, error) {
				for job := range p.jobs {
					job()
				}
				return struct{}{}, nil
			})
			if err != nil {
				panic(fmt.Sprintf("enter the network namespace %s: %v", ns, err))
			}
		})
	}
	t.Cleanup(func() { close(p.jobs); p.done.Wait() })
	return p
}

// loadAddress is the environment variable that makes this program a load: it then runs no
// tests. A process of its own does not wait behind the goroutines of an attack.
const loadAddress = "CAUSEWAY_E2E_LOAD"

// steadyRate is how many connections a second a load opens.
const steadyRate = 50

// runLoad opens new connections to an address at a fixed rate, each of which asks for one
// small answer, until its standard input ends. Then it prints a loadReport. A connection's
// time begins when it is due, so a delay counts for the connections behind it, too.
func runLoad(address string, input io.Reader, report io.Writer) error {
	ctx, stop := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, input); stop() }()
	var calls sync.WaitGroup
	var mu sync.Mutex // guards r
	var r loadReport
	start := time.Now()
	for n := time.Duration(1); ; n++ {
		due := start.Add(n * time.Second / steadyRate)
		if sleep(ctx, time.Until(due)); ctx.Err() != nil {
			break
		}
		calls.Go(func() {
			err := askOnce(address)
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			r.Times = append(r.Times, took)
			if err != nil {
				r.Failures = append(r.Failures, fmt.Sprintf("%.2f s after the start: %v", due.Sub(start).Seconds(), err))
			}
		})
	}
	calls.Wait()
	return json.NewEncoder(report).Encode(r)
}

// A loadReport is what a load has measured.
type loadReport struct {
	Times    []time.Duration
	Failures []string
}

// askOnce opens a connection, asks for one answer and reads it to its end.
func askOnce(address string) error {
	deadline := time.Now().Add(15 * time.Second)
	dialer := net.Dialer{Deadline: deadline}
	c, err := dialer.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(deadline)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bar\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && !strings.HasPrefix(string(answer), "HTTP/1.1 200") {
		err = fmt.Errorf("answered %.80q", answer)
	}
	return err
}

// A steadyLoad is a process that runs runLoad.
type steadyLoad struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	output bytes.Buffer
}

// startLoad starts a load from a network namespace. It ends with the test at the latest.
func startLoad(t *testing.T, ns, address string) *steadyLoad {
	t.Helper()
	l := &steadyLoad{cmd: exec.CommandContext(t.Context(), "nsenter", "--net="+ns, have(os.Executable())(t))}
	l.cmd.Env = append(os.Environ(), loadAddress+"="+address)
	l.cmd.Stdout, l.cmd.Stderr = &l.output, os.Stderr
	l.stdin = have(l.cmd.StdinPipe())(t)
	must(t, l.cmd.Start())
	return l
}

// stop stops the load, waits for its last answers, and returns what it has measured.
func (l *steadyLoad) stop(t *testing.T) figure {
	t.Helper()
	l.stdin.Close()
	must(t, l.cmd.Wait())
	var r loadReport
	must(t, json.Unmarshal(l.output.Bytes(), &r))
	f := figure{calls: len(r.Times), fails: r.Failures}
	if f.calls > 0 {
		slices.Sort(r.Times)
		f.p50, f.p99 = r.Times[f.calls/2], r.Times[f.calls*99/100]
	}
	return f
}

// A figure is what a load has measured.
type figure struct {
	calls    int
	fails    []string
	p50, p99 time.Duration
	// tcpMiB is the most memory that the machine's sockets held meanwhile.
	tcpMiB int
}

func (f figure) String() string {
	return fmt.Sprintf("%d calls, %d failures, p50 %s, p99 %s, sockets held %d MiB", f.calls, len(f.fails), milliseconds(f.p50),
		milliseconds(f.p99), f.tcpMiB)
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }

// dialers open connections from a network namespace, from several source addresses in turn.
type dialers struct {
	pool    *threads
	sources []netip.Addr
	next    atomic.Uint64
}

// dial opens a connection. It gives up when ctx ends.
func (d *dialers) dial(ctx context.Context, address string) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: 3 * time.Second, KeepAlive: -1}
	if len(d.sources) > 0 {
		from := d.sources[d.next.Add(1)%uint64(len(d.sources))]
		dialer.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	type result struct {
		conn net.Conn
		err  error
	}
	dialed := make(chan result, 1)
	job := func() {
		c, err := dialer.DialContext(ctx, "tcp", address)
		dialed <- result{c, err}
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case d.pool.jobs <- job:
	}
	r := <-dialed
	if r.err != nil {
		return nil, r.err
	}
	c := r.conn.(*net.TCPConn)
	c.SetLinger(0) // thousands of closed connections would keep their ports for a minute
	return c, nil
}

// paced calls do total times, perSecond times a second and each in a goroutine, until ctx
// ends. It waits for all calls and returns how many there were.
func paced(ctx context.Context, perSecond, total int, do func()) (n int) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for start := time.Now(); n < total && ctx.Err() == nil; sleep(ctx, 2*time.Millisecond) {
		due := int(time.Since(start).Seconds()*float64(perSecond)) + 1
		for ; n < min(due, total); n++ {
			calls.Go(do)
		}
	}
	return n
}
