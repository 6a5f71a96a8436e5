package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/lab/peers/proc"
	"github.com/causeway-mesh/causeway/lab/peers/traffic"
)

// A measure is one kind of load.
type measure struct {
	name        string // as the flag -measures has it
	pattern     string // of traffic
	concurrency int
	phase       phase
	pause       time.Duration // after each operation
	beside      []held        // connections that are open meanwhile
}

// held are connections that have been answered once.
type held struct {
	pattern string // of traffic.Hold
	n       int
}

// A phase is a part of a run. All rounds of one precede those of the next.
type phase int

const (
	idlePhase     phase = iota // first, because other load leaves memory behind
	idleHTTPPhase              // of its own, so that the proxies are new
	nearPhase                  // without a delay
	farPhase                   // with a round trip between A and the gateway
)

var allPhases = []phase{idlePhase, idleHTTPPhase, nearPhase, farPhase}

func (p phase) isIdle() bool { return p == idlePhase || p == idleHTTPPhase }

// Names of the measures.
const (
	connect1  = "connect1"
	connect16 = "connect16"
	kept      = "kept"
	down1     = "down1"
	up1       = "up1"
	down8     = "down8"
	up8       = "up8"
	crowded   = "crowded"
	idle      = "idle"
	wan       = "wan"
	wan64     = "wan64"
	fetch     = "fetch"
	http1     = "http1"
	http32    = "http32"
	http256   = "http256"
	grpc1     = "grpc1"
	grpc32    = "grpc32"
	grpc256   = "grpc256"
	idleHTTP  = "idlehttp"
)

// allMeasures is in the order in which a chain is measured.
var allMeasures = []measure{
	{name: idle, pattern: traffic.Kept, phase: idlePhase},
	{name: idleHTTP, pattern: traffic.HTTP1, phase: idleHTTPPhase},
	{name: connect1, pattern: traffic.Connect, concurrency: 1, phase: nearPhase},
	{name: connect16, pattern: traffic.Connect, concurrency: 16, phase: nearPhase},
	{name: kept, pattern: traffic.Kept, concurrency: 1, phase: nearPhase},
	{name: down1, pattern: traffic.Down, concurrency: 1, phase: nearPhase},
	{name: up1, pattern: traffic.Up, concurrency: 1, phase: nearPhase},
	{name: down8, pattern: traffic.Down, concurrency: 8, phase: nearPhase},
	{name: up8, pattern: traffic.Up, concurrency: 8, phase: nearPhase},
	{
		name: crowded, pattern: traffic.Down, concurrency: 1, phase: nearPhase,
		beside: []held{{traffic.Kept, crowdIdle}, {traffic.Down, crowdStalled}},
	},
	{name: http1, pattern: traffic.HTTP1, concurrency: 1, phase: nearPhase},
	{name: http32, pattern: traffic.HTTP1, concurrency: 32, phase: nearPhase},
	{name: http256, pattern: traffic.HTTP1, concurrency: 256, phase: nearPhase},
	{name: grpc1, pattern: traffic.GRPC, concurrency: 1, phase: nearPhase},
	{name: grpc32, pattern: traffic.GRPC, concurrency: 32, phase: nearPhase},
	{name: grpc256, pattern: traffic.GRPC, concurrency: 256, phase: nearPhase},
	{name: wan, pattern: traffic.Connect, concurrency: 1, phase: farPhase, pause: farPause},
	{name: wan64, pattern: traffic.Connect, concurrency: 64, phase: farPhase, pause: farPause},
	{name: fetch, pattern: traffic.Fetch, concurrency: 1, phase: farPhase},
}

const (
	// crowdIdle and crowdStalled are the numbers of idle connections and of stalled
	// readers during the measure crowded.
	crowdIdle    = 1000
	crowdStalled = 100

	warmUp = 500 * time.Millisecond

	// Over the WAN a caller is in no hurry, so its connections are those of a pair that
	// is used, and not those of a loop.
	farPause  = 500 * time.Millisecond
	farWarmUp = 2 * time.Second
	farWindow = 6 * time.Second

	// settle is how long memory may change after the last idle connection was opened.
	settle = 2 * time.Second
)

// A window is what one measure of one chain saw in one round.
type window struct {
	Chain   string             `json:"chain"`
	Measure string             `json:"measure"`
	Round   int                `json:"round"`
	Result  traffic.Result     `json:"result"`
	CPU     map[string]float64 `json:"cpu,omitempty"`    // seconds of the proxies of each role
	Memory  *memory            `json:"memory,omitempty"` // of idle connections
	Others  float64            `json:"others"`           // share of the machine that other programs took
	// Profile is the number of samples of the proxies by share; nil: not recorded.
	Profile map[string]int `json:"profile,omitempty"`
}

// memory is what each idle connection adds, in KiB.
type memory struct {
	Resident map[string]float64 `json:"resident"` // of the proxies of each role
	Kernel   float64            `json:"kernel"`   // of the machine
}

// takeCalm runs one measure on a path, again if other programs disturb it. It returns the
// window that they disturbed least.
func (b *bench) takeCalm(ctx context.Context, p *path, m measure) (window, error) {
	best, err := b.take(ctx, p, m)
	for try := 0; err == nil && try < b.retries && b.report().disturbed(best); try++ {
		var w window
		if w, err = b.take(ctx, p, m); err == nil && w.Others < best.Others {
			best = w
		}
	}
	return best, err
}

// take runs one measure on a path.
func (b *bench) take(ctx context.Context, p *path, m measure) (window, error) {
	if m.phase.isIdle() {
		return b.takeIdle(ctx, p, m)
	}
	warm, length := warmUp, b.window
	if m.phase == farPhase {
		warm, length = farWarmUp, max(b.window, farWindow)
	}
	chainPIDs := []int{p.server}
	for _, x := range p.proxies {
		chainPIDs = append(chainPIDs, x.pid)
	}
	release, err := b.hold(ctx, p, m.beside)
	if err != nil {
		return window{}, err
	}
	defer release()
	endProfile, err := b.startProfile(ctx, p, m, warm, length)
	if err != nil {
		return window{}, err
	}
	out, err := output(inNetns(ctx, p.netns, b.trafficgen, "load",
		"-target", p.targets.of(m.pattern),
		"-pattern", m.pattern,
		"-concurrency", strconv.Itoa(m.concurrency),
		"-warm-up", warm.String(),
		"-window", length.String(),
		"-pause", m.pause.String(),
		"-pids", joinInts(slices.Concat(chainPIDs, b.softIRQThreads)),
		"-cgroup", b.cgroup(),
	))
	profile, profileErr := endProfile()
	if err := errors.Join(err, profileErr); err != nil {
		return window{}, err
	}
	w := window{CPU: map[string]float64{}, Profile: profile}
	if err := json.Unmarshal([]byte(out), &w.Result); err != nil {
		return window{}, fmt.Errorf("decode the result of trafficgen: %w", err)
	}
	for _, x := range p.proxies {
		w.CPU[x.role] += w.Result.CPU[x.pid]
	}
	// The lab's cgroup has counted the other processes of the chain already.
	w.Others = others(w.Result, slices.Concat(p.outside, b.softIRQThreads), runtime.NumCPU())
	return w, nil
}

// hold opens connections and holds them until release is called.
func (b *bench) hold(ctx context.Context, p *path, all []held) (release func(), err error) {
	var releases []func() error
	release = func() {
		for _, r := range releases {
			_ = r() // a failure here does not concern the measure
		}
	}
	for _, h := range all {
		r, err := startHold(b.holdCommand(ctx, p, h))
		if err != nil {
			release()
			return nil, err
		}
		releases = append(releases, r)
	}
	return release, nil
}

func (b *bench) holdCommand(ctx context.Context, p *path, h held) *exec.Cmd {
	return inNetns(ctx, p.netns, b.trafficgen, "hold",
		"-target", p.targets.of(h.pattern), "-pattern", h.pattern, "-n", strconv.Itoa(h.n))
}

// others returns the share of the machine's processors that was used neither by the lab
// nor by the load generator nor by the counted processes.
func others(r traffic.Result, counted []int, processors int) float64 {
	rest := r.Machine - r.LoadCPU - r.Cgroup
	for _, pid := range counted {
		rest -= r.CPU[pid]
	}
	return max(rest, 0) / r.Seconds / float64(processors)
}

// takeIdle opens connections that were answered once and returns what each of them adds.
func (b *bench) takeIdle(ctx context.Context, p *path, m measure) (window, error) {
	before, err := readMemory(p)
	if err != nil {
		return window{}, err
	}
	release, err := startHold(b.holdCommand(ctx, p, held{m.pattern, b.idle}))
	if err != nil {
		return window{}, err
	}
	err = sleep(ctx, settle)
	var after memory
	if err == nil {
		after, err = readMemory(p)
	}
	if err := errors.Join(err, release()); err != nil {
		return window{}, err
	}
	grown := after.since(before, b.idle)
	return window{Memory: &grown}, nil
}

// startHold starts the command and waits until it holds its connections. release ends it.
func startHold(cmd *exec.Cmd) (release func() error, err error) {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release = func() error {
		_ = stdin.Close() // Wait closes it, too
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("hold connections: %w: %s", err, bytes.TrimSpace(log.Bytes()))
		}
		return nil
	}
	// Each connection has a deadline, so this does not block forever.
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("hold connections: unexpected output %q", line), release())
	}
	return release, nil
}

// readMemory returns the memory that is used now, in KiB.
func readMemory(p *path) (memory, error) {
	m := memory{Resident: map[string]float64{}}
	for _, x := range p.proxies {
		kib, err := proc.Resident(x.pid)
		if err != nil {
			return m, fmt.Errorf("read the memory of process %d: %w", x.pid, err)
		}
		m.Resident[x.role] += kib
	}
	var err error
	m.Kernel, err = proc.Kernel()
	return m, err
}

// since returns the growth for each of n connections.
func (m memory) since(before memory, n int) memory {
	out := memory{Resident: map[string]float64{}, Kernel: (m.Kernel - before.Kernel) / float64(n)}
	for role, kib := range m.Resident {
		out.Resident[role] = (kib - before.Resident[role]) / float64(n)
	}
	return out
}

// rate returns operations per second.
func (w window) rate() float64 { return float64(w.Result.Operations) / w.Result.Seconds }

// gbits returns bulk data in Gbit/s.
func (w window) gbits() float64 { return float64(w.Result.Bytes) * 8 / 1e9 / w.Result.Seconds }

// cpuPerOperation returns the microseconds of all proxies, and NaN without proxies.
func (w window) cpuPerOperation() float64 {
	if len(w.CPU) == 0 || w.Result.Operations == 0 {
		return math.NaN()
	}
	return sum(w.CPU) * 1e6 / float64(w.Result.Operations)
}

// cpuPerGB returns the seconds of the proxies of these roles, and NaN without proxies.
func (w window) cpuPerGB(roles ...string) float64 {
	if len(w.CPU) == 0 || w.Result.Bytes == 0 {
		return math.NaN()
	}
	var cpu float64
	for _, role := range roles {
		cpu += w.CPU[role]
	}
	return cpu / (float64(w.Result.Bytes) / 1e9)
}

// residentKiB returns the growth of the proxies of these roles, and NaN without proxies.
func (w window) residentKiB(roles ...string) float64 {
	if w.Memory == nil || len(w.Memory.Resident) == 0 {
		return math.NaN()
	}
	var kib float64
	for _, role := range roles {
		kib += w.Memory.Resident[role]
	}
	return kib
}

// summary is a line of progress.
func (w window) summary() string {
	var s string
	r := w.Result
	switch {
	case w.Memory != nil:
		s = fmt.Sprintf("resident %.0f KiB, kernel %.0f KiB each", sum(w.Memory.Resident), w.Memory.Kernel)
	case r.Bytes > 0:
		s = fmt.Sprintf("%.2f Gbit/s", w.gbits())
		if len(w.CPU) > 0 {
			s += fmt.Sprintf(", CPU %.2f s/GB", w.cpuPerGB(roleA, roleGateway, roleB))
		}
	default:
		s = fmt.Sprintf("%.0f /s, p50 %.3f, p99 %.3f ms", w.rate(), r.P50*1e3, r.P99*1e3)
		if len(w.CPU) > 0 {
			s += fmt.Sprintf(", CPU %.0f µs each", w.cpuPerOperation())
		}
	}
	if w.Memory == nil {
		s += fmt.Sprintf(", others %.0f %%", 100*w.Others)
	}
	if r.Errors > 0 {
		s += fmt.Sprintf(", %d errors, the last: %s", r.Errors, r.LastError)
	}
	return s
}

func sum[K comparable](m map[K]float64) (total float64) {
	for _, v := range m {
		total += v
	}
	return total
}

func joinInts(list []int) string {
	var words []string
	for _, n := range slices.Compact(slices.Sorted(slices.Values(list))) {
		words = append(words, strconv.Itoa(n))
	}
	return strings.Join(words, ",")
}
