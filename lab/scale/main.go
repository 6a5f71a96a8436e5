// Command scale measures Causeway's control plane on a pair of real clusters of the lab,
// beside a plain client on the same API servers in the same run, and prints one Markdown
// table. It sees Causeway from outside only: Kubernetes objects, /proc, and what the API
// servers record and measure. Simulated peers and agents speak Causeway's own protocols.
//
//	hack/bench-scale [-mirrors 2000] [-parts rate,latency,restart,links,exports,pods]
//
//	raise the pair, simulate pods
//	 └▶ few exports ──────────▶ latency, memory
//	 └▶ fill, small bulk ─────▶ rate, ledger, CPU ─▶ latency, memory
//	 └▶ fill, large bulk ─────▶ rate, ledger, CPU ─▶ latency, memory
//	 └▶ restart of the importer's controllers
//	simulated peers
//	 └▶ linked to the importer, which mirrors them ─▶ memory of each Link, CPU, latency
//	 └▶ linked to the exporter, and subscribed ─────▶ one changed export until all know
//	simulated nodes of the exporter, which mirrors, too ─▶ a pod's status until its node knows
//
// What always holds:
//   - Every step is bounded in time. A stage that the controllers do not reach becomes a
//     row that says how far they came, and the stages that build on it are left out.
//   - What is compared runs in turn and in the same run, never in two runs.
//   - The lab is removed at the end, unless -keep is given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/lab"
)

const (
	// maxServices is the highest quota that a Link takes.
	maxServices = 10000
	// headroom is for probes, which must fit below the quota, too.
	headroom = 10

	fewMirrors     = 15
	smallBulkEnd   = 2000
	fewestForLarge = 4000 // below it there is no large bulk
)

// The parts that can be chosen. Memory is always measured.
const (
	partRate    = "rate"
	partLatency = "latency"
	partRestart = "restart"
	partLinks   = "links"
	partExports = "exports"
	partPods    = "pods"
)

var allParts = []string{partRate, partLatency, partRestart, partLinks, partExports, partPods}

// A bench is one run.
type bench struct {
	mirrors, pods, rounds, samples int
	links, linkServices, nodes     int           // simulated peers, Services of each, nodes with a stream
	limit                          time.Duration // for one step
	bulkLimit                      time.Duration // for one step with all simulated peers or nodes
	parts                          []string
	bin, images, image             string // where the causeway command and the image are, and its name

	lab                *lab.Lab
	importer, exporter *cluster
	exporterPeers      *peers // nil: not linked yet
	observer           *observer
	present            int // exports that stay and are mirrored
	probes             int // exports that were made and removed
	rows               []row
	begun              time.Time
}

func main() {
	b := &bench{begun: time.Now()}
	var name, parts string
	var keep bool
	var total time.Duration
	flag.StringVar(&name, "name", "scale", "name of the lab")
	flag.IntVar(&b.mirrors, "mirrors", maxServices, "mirrors at the end; 2000 is a quick look")
	flag.IntVar(&b.pods, "pods", 5000, "simulated pods in each cluster")
	flag.IntVar(&b.rounds, "rounds", 3, "rounds of a bulk, of which the median counts")
	flag.IntVar(&b.samples, "samples", 100, "single exports to measure at each size")
	flag.StringVar(&parts, "parts", strings.Join(allParts, ","), "parts to run")
	flag.DurationVar(&b.limit, "limit", 5*time.Minute, "limit of each step; a row names a step that exceeds it")
	flag.IntVar(&b.links, "links", 200, "simulated peers of each cluster")
	flag.IntVar(&b.linkServices, "link-services", 300, "Services that each simulated peer exports at most")
	flag.IntVar(&b.nodes, "nodes", 1000, "simulated nodes with a node stream")
	flag.DurationVar(&b.bulkLimit, "bulk-limit", 20*time.Minute, "limit of each step with all simulated peers or nodes")
	flag.DurationVar(&total, "timeout", 3*time.Hour, "limit of the run")
	flag.BoolVar(&keep, "keep", false, "leave the lab standing; remove it with: bin/lab --name NAME down")
	flag.StringVar(&b.bin, "bin", "../bin", "folder of the causeway command")
	flag.StringVar(&b.images, "images", "../build", "folder of the image archives")
	flag.StringVar(&b.image, "image", os.Getenv("CAUSEWAY_IMAGE"), "name of Causeway's image")
	flag.Parse()
	b.parts = strings.Split(parts, ",")
	if err := b.check(); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, total)
	defer cancel()
	if err := b.runInLab(ctx, name, keep); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func (b *bench) check() error {
	for _, p := range b.parts {
		if !slices.Contains(allParts, p) {
			return fmt.Errorf("unknown part %q: choose from %s", p, strings.Join(allParts, ", "))
		}
	}
	if b.mirrors < 2*fewMirrors || b.mirrors > maxServices {
		return fmt.Errorf("-mirrors %d: want %d to %d", b.mirrors, 2*fewMirrors, maxServices)
	}
	if b.pods < 0 || b.pods%mirrorNamespaceCount != 0 {
		return fmt.Errorf("-pods %d: want a multiple of %d", b.pods, mirrorNamespaceCount)
	}
	if b.rounds < 1 || b.samples < 1 {
		return errors.New("-rounds and -samples: want at least 1")
	}
	if b.links < 1 || b.links > 1000 || b.linkServices < 1 || b.linkServices > maxServices-headroom {
		return fmt.Errorf("-links %d -link-services %d: want 1 to 1000, and 1 to %d", b.links, b.linkServices, maxServices-headroom)
	}
	if b.nodes < 1 || b.nodes > 5000 {
		return fmt.Errorf("-nodes %d: want 1 to 5000", b.nodes)
	}
	return nil
}

// runs reports whether one of the parts was chosen.
func (b *bench) runs(parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return slices.Contains(b.parts, p) })
}

// runInLab raises the lab, runs the parts, prints what was measured, also after a failure,
// and removes the lab.
func (b *bench) runInLab(ctx context.Context, name string, keep bool) error {
	o := lab.Options{
		Name:     name,
		Clusters: []string{"west", "east"},
		Shape:    lab.Shape{Large: true},
		Progress: func(s string) { b.progress("%s", s) },
	}
	err := b.run(ctx, o)
	if len(b.rows) > 0 {
		err = errors.Join(err, writeTable(os.Stdout, b.rows))
		fmt.Printf("\n%d processors; %s simulated pods in each cluster; %d rounds; %.0f min in all\n",
			runtime.NumCPU(), thousands(b.pods), b.rounds, time.Since(b.begun).Minutes())
	}
	if keep {
		b.progress("the lab %q stands; remove it with: bin/lab --name %s down", name, name)
		return err
	}
	return errors.Join(err, lab.Down(context.WithoutCancel(ctx), o))
}

func (b *bench) run(ctx context.Context, o lab.Options) error {
	if err := b.raise(ctx, o); err != nil {
		return err
	}
	watchCtx, stop := context.WithCancel(ctx)
	defer stop()
	var err error
	if b.observer, err = observe(watchCtx, b.importer, mirrorNamespaces()); err != nil {
		return err
	}
	if b.pods > 0 {
		b.progress("simulating %d pods in each cluster", b.pods)
		g, gctx := errgroup.WithContext(ctx)
		for _, c := range b.pair() {
			g.Go(func() error { return b.simulatePods(gctx, watchCtx, c, b.pods) })
		}
		if err := g.Wait(); err != nil {
			return fmt.Errorf("simulate pods: %w", err)
		}
	}
	if b.runs(partRate, partLatency, partRestart) {
		if err := b.measure(ctx); err != nil && !errors.Is(err, errNotReached) {
			return err // errNotReached has a row
		}
	}
	for _, p := range []struct {
		name string
		run  func(ctx, life context.Context) error
	}{{partLinks, b.linksPart}, {partExports, b.exportsPart}, {partPods, b.podsPart}} {
		if !b.runs(p.name) {
			continue
		}
		err := p.run(ctx, watchCtx)
		if errors.Is(err, errNotReached) {
			b.add(row{What: fmt.Sprintf("the rest of part %s", p.name), Causeway: "left out: " + err.Error()})
		} else if err != nil {
			return fmt.Errorf("part %s: %w", p.name, err)
		}
	}
	return nil
}

// A stage is a number of mirrors to be reached, and what is measured on the way and there.
type stage struct {
	from, to int // from 0: the way is not measured
}

// stages returns the numbers of mirrors at which the benchmarks stop.
func stages(mirrors int) []stage {
	small := min(mirrors, smallBulkEnd)
	out := []stage{{to: fewMirrors}, {from: small / 4, to: small}}
	if mirrors >= fewestForLarge {
		top := min(mirrors, maxServices-headroom)
		out = append(out, stage{from: mirrors * 8 / 10, to: top})
	} else if mirrors > small {
		out = append(out, stage{to: mirrors})
	}
	return out
}

// measure runs the stages and then the restart. Its error is errNotReached, with a row for
// it, if the controllers were too slow for a stage.
func (b *bench) measure(ctx context.Context) error {
	all := stages(b.mirrors)
	for i, s := range all {
		err := b.measureStage(ctx, s)
		if errors.Is(err, errNotReached) {
			b.add(row{What: fmt.Sprintf("mirrors present: %s", thousands(s.to)), Causeway: err.Error()})
			for _, later := range all[i+1:] {
				b.add(row{What: fmt.Sprintf("mirrors present: %s", thousands(later.to)), Causeway: "left out"})
			}
			return err
		}
		if err != nil {
			return err
		}
	}
	if b.runs(partRestart) {
		return b.restart(ctx)
	}
	return nil
}

func (b *bench) measureStage(ctx context.Context, s stage) error {
	if s.from > 0 && b.runs(partRate) {
		if err := b.bulk(ctx, s.from, s.to); err != nil {
			return err
		}
	} else if err := b.fill(ctx, s.to); err != nil {
		return err
	}
	if b.runs(partLatency) {
		if err := b.latency(ctx); err != nil {
			return err
		}
	}
	return b.memory(ctx)
}

// memory adds the resident memory of every controller.
func (b *bench) memory(ctx context.Context) error {
	if err := b.settle(ctx, fmt.Sprintf("before memory was read, %s present", thousands(b.present))); err != nil {
		return err
	}
	for _, c := range b.pair() {
		used, err := c.usage(ctx)
		if err != nil {
			return err
		}
		who, wanted := "importer", ""
		if c == b.exporter {
			who = "exporter"
		}
		if b.present >= maxServices-headroom {
			wanted = "≤ 200 MiB"
		}
		b.add(row{
			What:     fmt.Sprintf("RSS of the %s's controllers, leader first, %s present", who, thousands(b.present)),
			Causeway: used.memory(),
			Wanted:   wanted,
		})
	}
	return nil
}

func (b *bench) pair() []*cluster { return []*cluster{b.importer, b.exporter} }

// add appends rows to the result and shows them at once.
func (b *bench) add(rows ...row) {
	for _, r := range rows {
		b.progress("%s: %s | %s | %s", r.What, r.Causeway, r.Beside, r.Ratio)
	}
	b.rows = append(b.rows, rows...)
}

// progress writes a line to the standard error, which leaves the standard output to the
// table.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%4.0f s] %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
}
