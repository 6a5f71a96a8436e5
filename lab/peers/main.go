// Command peers measures Causeway beside Envoy and HAProxy on one machine and prints
// Markdown tables. Each chain carries TCP from a client to a server, with mutual TLS
// between its places.
//
//	hack/bench-peers [-chains direct,envoy,haproxy,causeway] [-measures connect1,idle] [-runs 5]
//
//	direct           client ─────────────────────────────────────▶ server
//	envoy, haproxy   client ─▶ A ══ mTLS ══▶ gateway ══ mTLS ══▶ B ─▶ server
//	causeway         client ─▶ agent ═══════ gateway ═ mTLS ══▶ agent ─▶ server
//
// The proxies of the peers, and the ends of direct, are in network namespaces A, gateway
// and B that a router joins. Causeway runs in two linked clusters of a lab: the client in
// the network of a pod of west, the server in a pod of east. The chains lab-direct,
// lab-envoy and lab-haproxy are the same as those without lab-, but on the longer way of
// Causeway. A and B are in the network of a node, and the gateway is in that of a pod
// behind a LoadBalancer Service.
//
// What always holds:
//   - The same server and the same load generator are at both ends of every chain.
//   - Every round measures each chain in turn, by all measures of a phase, so that a slow
//     minute of the machine affects all chains.
//   - A peer makes a whole TLS handshake for each connection and hop.
//   - Namespaces, processes, clusters and files of a run are removed at its end, unless
//     -keep is given. `lab down` with the lab's name removes what a killed run left.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/causeway-mesh/causeway/lab"
	"github.com/causeway-mesh/causeway/lab/peers/proc"
)

// maxIdle is below the number of connections that config/haproxy.cfg allows.
const maxIdle = 5000

// A bench is one run.
type bench struct {
	name               string // of the lab
	chains             []string
	measures           []measure
	window             time.Duration
	rtt                time.Duration // of the measure wan
	runs, retries      int
	idle               int // connections
	calm               float64
	bin, images, image string // where the causeway command and the images are, and its name
	envoy, trafficgen  string // binaries
	profiles           string // folder for perf's recordings; empty: none

	dir            string // of configurations, keys and logs
	places         places
	ca             *authority
	server         *process
	pair           *pair // nil without a chain in the lab
	softIRQThreads []int
	windows        []window
	failures       map[string]int // by what was said
	begun          time.Time
	record         *json.Encoder // of windows; nil means no record
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "delay" {
		exit(delayMain(os.Args[2:]))
	}
	b := &bench{begun: time.Now(), failures: map[string]int{}}
	var chains, measures, record string
	var keep bool
	var total time.Duration
	flag.StringVar(&b.name, "name", "peers", "name of the lab")
	flag.StringVar(&chains, "chains", strings.Join(allChains, ","), "chains to measure")
	flag.StringVar(&measures, "measures", strings.Join(measureNames(), ","), "measures to take")
	flag.DurationVar(&b.window, "window", 3*time.Second, "length of each measured window")
	flag.DurationVar(&b.rtt, "rtt", 60*time.Millisecond, "round trip of the measure wan")
	flag.IntVar(&b.runs, "runs", 5, "rounds, of which the medians count")
	flag.IntVar(&b.retries, "retries", 1, "times to repeat a disturbed window, of which the calmest counts")
	flag.IntVar(&b.idle, "idle", 1000, "connections of the measure idle")
	flag.Float64Var(&b.calm, "calm", 0.15, "share of the machine above which other programs disturb a window")
	flag.StringVar(&record, "record", "", "file to which every window is written, as a line of JSON")
	flag.StringVar(&b.profiles, "profile", "", "folder for perf profiles of Causeway, which cost CPU time")
	flag.DurationVar(&total, "timeout", 2*time.Hour, "limit of the run")
	flag.BoolVar(&keep, "keep", false, "leave everything standing; remove it with: bin/lab --name NAME down")
	flag.StringVar(&b.bin, "bin", "../bin", "folder of the causeway command")
	flag.StringVar(&b.images, "images", "../build", "folder of the image archives")
	flag.StringVar(&b.image, "image", os.Getenv("CAUSEWAY_IMAGE"), "name of Causeway's image")
	flag.StringVar(&b.envoy, "envoy", "envoy", "Envoy's binary")
	flag.StringVar(&b.trafficgen, "trafficgen", "../build/trafficgen", "binary of server and load generator")
	flag.Parse()
	if err := b.choose(chains, measures); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, total)
	defer cancel()
	exit(b.runAndRemove(ctx, record, keep))
}

// exit ends the program. It reports an error.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// delayMain delays packets in its network namespace until a signal ends it.
func delayMain(args []string) error {
	flags := flag.NewFlagSet("delay", flag.ExitOnError)
	rtt := flags.Duration("rtt", 60*time.Millisecond, "round trip")
	_ = flags.Parse(args) // exits on an error
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return lab.RunWeather(ctx, lab.Weather{RTT: *rtt}, slog.New(slog.DiscardHandler))
}

func measureNames() []string {
	var out []string
	for _, m := range allMeasures {
		out = append(out, m.name)
	}
	return out
}

// choose checks the flags. Chains and measures keep their usual order.
func (b *bench) choose(chains, measures string) error {
	var err error
	if b.chains, err = selected("chain", chains, allChains); err != nil {
		return err
	}
	names, err := selected("measure", measures, measureNames())
	if err != nil {
		return err
	}
	for _, m := range allMeasures {
		if slices.Contains(names, m.name) {
			b.measures = append(b.measures, m)
		}
	}
	if b.runs < 1 || b.retries < 0 || b.window < 100*time.Millisecond {
		return errors.New("want at least one run and a window of 100ms")
	}
	if b.idle < 1 || b.idle > maxIdle {
		return fmt.Errorf("-idle %d: want 1 to %d", b.idle, maxIdle)
	}
	if b.trafficgen, err = filepath.Abs(b.trafficgen); err != nil {
		return err
	}
	return nil
}

// selected returns those of all that the list names, in the order of all.
func selected(kind, list string, all []string) ([]string, error) {
	want := strings.Split(list, ",")
	for _, name := range want {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("unknown %s %q: choose from %s", kind, name, strings.Join(all, ", "))
		}
	}
	unwanted := func(name string) bool { return !slices.Contains(want, name) }
	return slices.DeleteFunc(slices.Clone(all), unwanted), nil
}

// runAndRemove measures, prints what was measured, also after a failure, and removes
// everything.
func (b *bench) runAndRemove(ctx context.Context, record string, keep bool) error {
	if record != "" {
		f, err := os.Create(record)
		if err != nil {
			return err
		}
		defer f.Close()
		b.record = json.NewEncoder(f)
	}
	// What a killed run left would be in the way.
	if err := lab.Down(ctx, b.labOptions()); err != nil {
		return err
	}
	err := b.run(ctx)
	if len(b.windows) > 0 {
		fmt.Print(b.heading(context.WithoutCancel(ctx)))
		fmt.Print(b.report().markdown())
		for _, f := range slices.Sorted(maps.Keys(b.failures)) {
			fmt.Printf("\nfailed %d times: %s\n", b.failures[f], f)
		}
	}
	if keep {
		b.progress("all is left standing; remove it with: bin/lab --name %s down", b.name)
		return err
	}
	return errors.Join(err, lab.Down(context.WithoutCancel(ctx), b.labOptions()))
}

func (b *bench) report() report {
	return report{chains: b.chains, windows: b.windows, calm: b.calm, idle: b.idle}
}

// heading says when, where and with what the run was made.
func (b *bench) heading(ctx context.Context) string {
	var programs []string
	for _, p := range []struct {
		chains []string // that need the program
		name   string
		argv   []string
	}{
		{[]string{chainEnvoy, chainLabEnvoy}, "Envoy", []string{b.envoy, "--version"}},
		{[]string{chainHAProxy, chainLabHAProxy}, "HAProxy", []string{"haproxy", "-v"}},
		{[]string{chainCauseway}, "Causeway", []string{filepath.Join(b.bin, "causeway"), "version"}},
	} {
		used := func(chain string) bool { return slices.Contains(p.chains, chain) }
		if !slices.ContainsFunc(b.chains, used) {
			continue
		}
		out, err := output(exec.CommandContext(ctx, p.argv[0], p.argv[1:]...))
		if err != nil {
			out = "" // the run itself has failed if the program is missing
		}
		programs = append(programs, strings.TrimSpace(p.name+" "+parseVersion(out)))
	}
	return fmt.Sprintf("%s, %d processors, medians of %d rounds, windows of %v, %.0f min in all. %s.\n\n",
		b.begun.Format(time.DateOnly), runtime.NumCPU(), b.runs, b.window, time.Since(b.begun).Minutes(),
		strings.Join(programs, ", "))
}

// versionNumber matches 1.40.0 and 2.6.12-1+deb12u4, and Git's description of a commit.
var versionNumber = regexp.MustCompile(`\b(v?[0-9]+\.[0-9]+\.[0-9]+[0-9a-z.+~-]*|[0-9a-f]{7,12}(-dirty)?)(\s|/|$)`)

// parseVersion returns the first version number in what a program says about itself.
func parseVersion(out string) string {
	found := versionNumber.FindStringSubmatch(out)
	if found == nil {
		return ""
	}
	return found[1]
}

func (b *bench) run(ctx context.Context) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	for _, ph := range allPhases {
		chosen := slices.DeleteFunc(slices.Clone(b.measures), func(m measure) bool { return m.phase != ph })
		if len(chosen) == 0 {
			continue
		}
		if err := b.runRounds(ctx, chosen, ph); err != nil {
			return err
		}
	}
	if len(b.failures) > 0 {
		return errors.New("some measures failed; the report names them")
	}
	return nil
}

// prepare raises all that stands for the whole run. The lab comes first, because lab.Up
// removes what it finds under its name.
func (b *bench) prepare(ctx context.Context) error {
	// The peers inherit this limit: Go gives its children the original one otherwise.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	var err error
	if b.softIRQThreads, err = proc.SoftIRQThreads(); err != nil {
		return err
	}
	inLab := func(chain string) bool { return slices.Contains(labChains, chain) }
	if slices.ContainsFunc(b.chains, inLab) {
		if b.pair, err = b.raisePair(ctx); err != nil {
			return err
		}
	}
	if b.profiles != "" {
		if err := os.MkdirAll(b.profiles, 0o700); err != nil {
			return err
		}
	}
	b.dir = filepath.Join(lab.DefaultState, b.name, "bench") // lab.Down removes it
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	if b.ca, err = newAuthority(b.dir); err != nil {
		return err
	}
	for _, role := range []string{roleA, roleGateway, roleB} {
		if err := b.ca.issue(role); err != nil {
			return err
		}
	}
	b.places = newPlaces(b.name)
	if err := b.places.raise(ctx); err != nil {
		return err
	}
	var listen []string
	for _, server := range b.places.way().servers {
		listen = append(listen, server.String())
	}
	b.server, err = startProcess(b.dir, b.places.b.netns, "server", b.trafficgen,
		"serve", "-listen", strings.Join(listen, ","))
	return err
}

// runRounds measures every chain in turn by the measures of a phase, and repeats that.
func (b *bench) runRounds(ctx context.Context, chosen []measure, ph phase) error {
	if ph == farPhase {
		stop, err := b.places.delay(ctx, b.dir, b.rtt)
		if err != nil {
			return err
		}
		defer stop()
		if b.pair != nil {
			if err := b.setRTT(ctx, b.rtt); err != nil {
				return err
			}
		}
	}
	for round := range b.runs {
		for _, chain := range b.chains {
			err := b.measureChain(ctx, chain, chosen, round)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.fail(err)
			}
		}
	}
	return nil
}

// measureChain starts a chain, takes the chosen measures and stops the chain. After a
// measure has failed, the next one is taken.
func (b *bench) measureChain(ctx context.Context, chain string, chosen []measure, round int) error {
	p, err := b.startPath(ctx, chain)
	if err != nil {
		return err
	}
	defer p.stop()
	for _, m := range chosen {
		w, err := b.takeCalm(ctx, p, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			b.fail(fmt.Errorf("chain %s, measure %s: %w", chain, m.name, err))
			continue
		}
		w.Chain, w.Measure, w.Round = chain, m.name, round
		b.windows = append(b.windows, w)
		b.progress("round %d of %d, %-11s %-9s %s", round+1, b.runs, chain, m.name, w.summary())
		if b.record != nil {
			if err := b.record.Encode(w); err != nil {
				return fmt.Errorf("write the record: %w", err)
			}
		}
	}
	return nil
}

// fail notes what failed for the end of the report.
func (b *bench) fail(err error) {
	b.failures[err.Error()]++
	b.progress("%v", err)
}

// progress writes a line to the standard error, which leaves the standard output to the
// report.
func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "[%4.0f s] %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
}
