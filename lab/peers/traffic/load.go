package traffic

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/lab/peers/proc"
)

// The patterns of load.
const (
	Connect = "connect" // connect, one message there and back, close
	Kept    = "kept"    // one message there and back, on a kept connection
	Down    = "down"    // bulk from the server
	Up      = "up"      // bulk to the server
	Fetch   = "fetch"   // connect, FetchSize bytes from the server, close
	HTTP1   = "http1"   // GET over HTTP/1.1, on a kept connection
	GRPC    = "grpc"    // unary calls, at most 64 at a time on each kept connection
)

// FetchSize is the number of bytes of one operation of Fetch.
const FetchSize = 64_000_000

// dialTimeout bounds a connect and the first answer, so that a broken chain fails a run.
const dialTimeout = 10 * time.Second

// Options describe one run of the load generator.
type Options struct {
	Target      string        // address and port
	Pattern     string        // Connect and others
	Concurrency int           // connections at a time, or calls of gRPC
	WarmUp      time.Duration // from the first answers to the begin of the window
	Window      time.Duration // what is measured
	Pause       time.Duration // after each operation
	PIDs        []int         // processes whose CPU time is recorded
	Cgroup      string        // top-level cgroup whose CPU time is recorded; empty means none
}

// A Result is what happened in the window.
type Result struct {
	Seconds    float64         `json:"seconds"`
	Operations int             `json:"operations"` // that ended in the window
	Bytes      int64           `json:"bytes"`      // of bulk data
	P50        float64         `json:"p50"`        // seconds of an operation
	P99        float64         `json:"p99"`
	Errors     int             `json:"errors"` // connections that failed, at any time of the run
	LastError  string          `json:"lastError,omitempty"`
	CPU        map[int]float64 `json:"cpu"`     // seconds of each process of Options.PIDs
	LoadCPU    float64         `json:"loadCPU"` // seconds of the load generator itself
	Cgroup     float64         `json:"cgroup"`  // seconds of all processes of Options.Cgroup
	Machine    float64         `json:"machine"` // seconds of all programs together
}

// Phases of a run, in their order.
const (
	warmingUp int32 = iota
	measuring
	ended
)

// A run is one execution of Load. A worker owns one connection at a time.
type run struct {
	Options
	phase   atomic.Int32
	ready   sync.WaitGroup // of workers that have been answered once, or have failed
	workers []*worker
}

type worker struct {
	run      *run
	calls    int // of gRPC at a time
	answered sync.Once
	took     []float64    // seconds of each operation in the window
	bytes    atomic.Int64 // of bulk data, warm-up included
	errors   int
	lastErr  error
}

// Load generates load and returns what happened in the window. It returns an error if the
// target does not answer at first, or if a kept connection breaks.
func Load(ctx context.Context, o Options) (Result, error) {
	r := &run{Options: o}
	loop, err := r.loop()
	if err != nil {
		return Result{}, err
	}
	g, ctx := errgroup.WithContext(ctx)
	workers, calls := o.Concurrency, 1
	if o.Pattern == GRPC {
		workers = (o.Concurrency + callsPerConn - 1) / callsPerConn
		calls = o.Concurrency / workers
	}
	r.ready.Add(workers)
	for range workers {
		w := &worker{run: r, calls: calls}
		r.workers = append(r.workers, w)
		g.Go(func() error {
			defer w.markAnswered()
			return loop(ctx, w)
		})
	}
	var result Result
	g.Go(func() (err error) {
		defer r.phase.Store(ended)
		result, err = r.measure(ctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	var all []float64
	for _, w := range r.workers {
		all = append(all, w.took...)
		result.Errors += w.errors
		if w.lastErr != nil {
			result.LastError = w.lastErr.Error()
		}
	}
	slices.Sort(all)
	result.Operations, result.P50, result.P99 = len(all), percentile(all, 50), percentile(all, 99)
	return result, nil
}

func (r *run) loop() (func(context.Context, *worker) error, error) {
	switch r.Pattern {
	case Connect:
		return connectLoop, nil
	case Kept:
		return keptLoop, nil
	case Down:
		return downLoop, nil
	case Up:
		return upLoop, nil
	case Fetch:
		return fetchLoop, nil
	case HTTP1:
		return http1Loop, nil
	case GRPC:
		return grpcLoop, nil
	}
	return nil, fmt.Errorf("unknown pattern %q", r.Pattern)
}

// measure waits for the window's begin and end and reads the clocks at both.
func (r *run) measure(ctx context.Context) (Result, error) {
	r.ready.Wait()
	if err := sleep(ctx, r.WarmUp); err != nil {
		return Result{}, err
	}
	before, err := r.read()
	if err != nil {
		return Result{}, err
	}
	r.phase.Store(measuring)
	if err := sleep(ctx, r.Window); err != nil {
		return Result{}, err
	}
	r.phase.Store(ended)
	after, err := r.read()
	if err != nil {
		return Result{}, err
	}
	return after.since(before), nil
}

// readings are all clocks and counters at one moment.
type readings struct {
	at                    time.Time
	bytes                 int64
	cpu                   map[int]float64
	load, cgroup, machine float64
}

func (r *run) read() (readings, error) {
	now := readings{at: time.Now(), cpu: map[int]float64{}}
	for _, w := range r.workers {
		now.bytes += w.bytes.Load()
	}
	var err error
	if now.load, err = proc.CPU(selfPID); err != nil {
		return now, err
	}
	if now.machine, err = proc.MachineCPU(); err != nil {
		return now, err
	}
	if r.Options.Cgroup != "" {
		if now.cgroup, err = proc.CgroupCPU(r.Options.Cgroup); err != nil {
			return now, err
		}
	}
	for _, pid := range r.PIDs {
		if now.cpu[pid], err = proc.CPU(pid); err != nil {
			return now, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
		}
	}
	return now, nil
}

func (after readings) since(before readings) Result {
	out := Result{
		Seconds: after.at.Sub(before.at).Seconds(),
		Bytes:   after.bytes - before.bytes,
		LoadCPU: after.load - before.load,
		Cgroup:  after.cgroup - before.cgroup,
		Machine: after.machine - before.machine,
		CPU:     map[int]float64{},
	}
	for pid, cpu := range after.cpu {
		out.CPU[pid] = cpu - before.cpu[pid]
	}
	return out
}

func (w *worker) markAnswered() { w.answered.Do(w.run.ready.Done) }

func (w *worker) ended() bool { return w.run.phase.Load() == ended }

// record notes an operation that has just ended.
func (w *worker) record(begun time.Time) {
	w.markAnswered()
	if w.run.phase.Load() == measuring {
		w.took = append(w.took, time.Since(begun).Seconds())
	}
}

// open connects and sends a request. The operating system ends a connection whose peer is
// silent for too long, because deadline bounds all of its use.
func (w *worker) open(ctx context.Context, op Op, deadline time.Time) (net.Conn, error) {
	c, err := dial(ctx, w.run.Target)
	if err != nil {
		return nil, err
	}
	request := make([]byte, MessageSize)
	request[0] = byte(op)
	err = c.SetDeadline(deadline)
	if err == nil {
		_, err = c.Write(request)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// dial connects without keepalive probes, which would cost the client system calls only.
func dial(ctx context.Context, target string) (net.Conn, error) {
	return (&net.Dialer{Timeout: dialTimeout, KeepAlive: -1}).DialContext(ctx, "tcp", target)
}

// runDeadline is when a kept connection is given up at the latest.
func (r *run) runDeadline() time.Time { return time.Now().Add(2*dialTimeout + r.WarmUp + r.Window) }

// connectLoop counts failed connections and goes on, unless the very first one fails.
func connectLoop(ctx context.Context, w *worker) error {
	message := make([]byte, MessageSize)
	for first := true; !w.ended(); first = false {
		begun := time.Now()
		err := w.exchange(ctx, message)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && first:
			return err
		case err != nil:
			w.errors++
			w.lastErr = err
			err = sleep(ctx, 10*time.Millisecond)
		default:
			w.record(begun)
			err = sleep(ctx, w.run.Pause)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) exchange(ctx context.Context, message []byte) error {
	c, err := w.open(ctx, opEcho, time.Now().Add(dialTimeout))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.ReadFull(c, message)
	return err
}

func keptLoop(ctx context.Context, w *worker) error {
	c, err := w.open(ctx, opEcho, w.run.runDeadline())
	if err != nil {
		return err
	}
	defer c.Close()
	message := make([]byte, MessageSize)
	if _, err := io.ReadFull(c, message); err != nil {
		return err
	}
	for !w.ended() {
		begun := time.Now()
		if _, err := c.Write(message); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, message); err != nil {
			return err
		}
		w.record(begun)
	}
	return ctx.Err()
}

func downLoop(ctx context.Context, w *worker) error {
	return bulkLoop(ctx, w, opSend, net.Conn.Read)
}

func upLoop(ctx context.Context, w *worker) error {
	return bulkLoop(ctx, w, opDiscard, net.Conn.Write)
}

func bulkLoop(ctx context.Context, w *worker, op Op, move func(net.Conn, []byte) (int, error)) error {
	c, err := w.open(ctx, op, w.run.runDeadline())
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, bulkSize)
	for !w.ended() {
		n, err := move(c, buf)
		w.bytes.Add(int64(n))
		if err != nil {
			return err
		}
		w.markAnswered()
	}
	return ctx.Err()
}

// fetchLoop downloads FetchSize bytes over one connection after another.
func fetchLoop(ctx context.Context, w *worker) error {
	buf := make([]byte, bulkSize)
	for !w.ended() {
		begun := time.Now()
		if err := w.fetch(ctx, buf); err != nil {
			return err
		}
		w.record(begun)
		if err := sleep(ctx, w.run.Pause); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (w *worker) fetch(ctx context.Context, buf []byte) error {
	c, err := w.open(ctx, opSend, w.run.runDeadline())
	if err != nil {
		return err
	}
	defer c.Close()
	for left := FetchSize; left > 0; {
		n, err := c.Read(buf)
		if left -= n; err != nil {
			return err
		}
	}
	return nil
}

// percentile returns a percentile of sorted figures, and 0 for no figures, because JSON
// has no NaN.
func percentile(sorted []float64, p int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(math.Ceil(float64(len(sorted)*p)/100))-1]
}

// sleep waits for d. It returns the context's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
