package main

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/lab/peers/traffic"
)

// rateWindow is a second in which a chain made so many connections, each for 1 ms of CPU.
func rateWindow(chain string, round, connections int, others float64) window {
	return window{
		Chain:   chain,
		Measure: connect1,
		Round:   round,
		Result:  traffic.Result{Seconds: 1, Operations: connections, P50: 0.001},
		CPU:     map[string]float64{roleA: float64(connections) / 1000},
		Others:  others,
	}
}

func idleWindow(chain string, round int, resident, kernel float64) window {
	w := window{Chain: chain, Measure: idle, Round: round, Memory: &memory{Kernel: kernel}}
	if resident > 0 {
		w.Memory.Resident = map[string]float64{roleA: resident, roleGateway: 1}
	}
	return w
}

func TestMarkdown(t *testing.T) {
	direct := rateWindow(chainDirect, 0, 1000, 0)
	direct.CPU = nil
	r := report{
		chains: []string{chainDirect, chainEnvoy, chainHAProxy, chainCauseway},
		calm:   0.1,
		idle:   20,
		windows: []window{
			direct,
			rateWindow(chainEnvoy, 0, 100, 0.05),
			rateWindow(chainHAProxy, 0, 50, 0.05),
			rateWindow(chainCauseway, 0, 300, 0.05),
			rateWindow(chainEnvoy, 1, 200, 0.2),
			rateWindow(chainHAProxy, 1, 250, 0.05),
			rateWindow(chainCauseway, 1, 400, 0.3),
			idleWindow(chainDirect, 0, 0, 4),
			idleWindow(chainEnvoy, 0, 30, 14),
			idleWindow(chainCauseway, 0, 20, 9),
		},
	}
	const want = `New connections: connect, 64 bytes there and back, close:

| | direct | envoy | haproxy | causeway | Causeway / better peer | wanted |
| --- | --- | --- | --- | --- | --- | --- |
| 1 at a time, per second | 1000 | 150 †1 | 150 | 350 †1 | 2.50 (2.00–3.00) | ≥ 2 |
| 1 at a time, p50, ms | 1.00 | 1.00 †1 | 1.00 | 1.00 †1 | 1.00 (1.00–1.00) | ≤ 0.5 |
| 1 at a time, CPU of the proxies, µs each |  | 1000 †1 | 1000 | 1000 †1 | 1.00 (1.00–1.00) | ≤ 0.5 |

Memory of 20 idle connections that were answered once:

| | direct | envoy | haproxy | causeway | Causeway / better peer | wanted |
| --- | --- | --- | --- | --- | --- | --- |
| resident memory of all proxies, KiB each |  | 31.0 |  | 21.0 | 0.68 | ≤ 100 KiB |
| resident memory of A, KiB each |  | 30.0 |  | 20.0 | 0.67 | ≤ 44 KiB |
| resident memory of the gateway, KiB each |  | 1.0 |  | 1.0 | 1.00 | ≤ 12 KiB |
| resident memory of B, KiB each |  | 0.0 |  | 0.0 |  | ≤ 44 KiB |
| kernel memory beyond that of direct, KiB each |  | 10 |  | 5 | 0.50 |  |

CPU time of other programs, as a share of the machine. †N marks a figure of which N windows were above 10 %.

| chain | median | most | disturbed windows |
| --- | --- | --- | --- |
| direct | 0 % | 0 % | 0 of 1 |
| envoy | 12 % | 20 % | 1 of 2 |
| haproxy | 5 % | 5 % | 0 of 2 |
| causeway | 18 % | 30 % | 1 of 2 |
`
	if diff := cmp.Diff(want, r.markdown()); diff != "" {
		t.Errorf("markdown (-want +got):\n%s", diff)
	}
}

func TestBetterPeer(t *testing.T) {
	cases := map[string]struct {
		why            string
		envoy, haproxy []int
		higher         bool
		want           string
	}{
		"higher": {
			why:     "the faster peer counts",
			envoy:   []int{100},
			haproxy: []int{90},
			higher:  true,
			want:    chainEnvoy,
		},
		"lower": {
			why:     "the cheaper peer counts",
			envoy:   []int{100},
			haproxy: []int{90},
			want:    chainHAProxy,
		},
		"medians": {
			why:     "one lucky round counts little",
			envoy:   []int{1, 1, 999},
			haproxy: []int{2, 2, 2},
			higher:  true,
			want:    chainHAProxy,
		},
		"one absent": {
			why:     "a peer that is not measured is not better",
			haproxy: []int{90},
			higher:  true,
			want:    chainHAProxy,
		},
		"none": {why: "without peers there is no ratio"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var r report
			for i, n := range c.envoy {
				r.windows = append(r.windows, rateWindow(chainEnvoy, i, n, 0))
			}
			for i, n := range c.haproxy {
				r.windows = append(r.windows, rateWindow(chainHAProxy, i, n, 0))
			}
			got := r.betterPeer(figure{measure: connect1, value: window.rate, higher: c.higher}, ownGroup)
			if got != c.want {
				t.Errorf("betterPeer = %q, want %q: %s", got, c.want, c.why)
			}
		})
	}
}

// Peers on Causeway's way have a ratio of their own, and what a chain of the lab adds
// is counted beyond the direct one of the lab.
func TestPeersInTheLab(t *testing.T) {
	labDirect := rateWindow(chainLabDirect, 0, 500, 0)
	labDirect.CPU = nil
	r := report{
		chains: []string{chainEnvoy, chainLabDirect, chainLabEnvoy, chainCauseway},
		calm:   0.1,
		idle:   20,
		windows: []window{
			rateWindow(chainEnvoy, 0, 100, 0),
			labDirect,
			rateWindow(chainLabEnvoy, 0, 50, 0),
			rateWindow(chainCauseway, 0, 200, 0),
			idleWindow(chainLabDirect, 0, 0, 4),
			idleWindow(chainLabEnvoy, 0, 30, 14),
			idleWindow(chainCauseway, 0, 20, 9),
		},
	}
	for _, line := range []string{
		"| | envoy | lab-direct | lab-envoy | causeway |" +
			" Causeway / better peer | Causeway / better peer in the lab | wanted |",
		"| 1 at a time, per second | 100 | 500 | 50 | 200 | 2.00 | 4.00 | ≥ 2 |",
		"| kernel memory beyond that of direct, KiB each |  |  | 10 | 5 |  | 0.50 |  |",
	} {
		if !strings.Contains(r.markdown(), line+"\n") {
			t.Errorf("markdown lacks the line\n%s\nin\n%s", line, r.markdown())
		}
	}
}

func TestPairedRatios(t *testing.T) {
	got := pairedRatios(map[int]float64{0: 2, 1: 9, 2: 3, 3: 1}, map[int]float64{0: 4, 2: 3, 3: 0})
	if diff := cmp.Diff([]float64{0.5, 1}, got); diff != "" {
		t.Errorf("a round that lacks one side, or has nothing there, has no ratio (-want +got):\n%s", diff)
	}
}

func TestMedian(t *testing.T) {
	for want, figures := range map[float64][]float64{2: {3, 1, 2}, 2.5: {4, 1, 3, 2}} {
		if got := median(figures); got != want {
			t.Errorf("median(%v) = %v, want %v", figures, got, want)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("no figures must have no median")
	}
}

// Every measure must have a row, because a row is all that a reader sees of it.
func TestEveryMeasureHasARow(t *testing.T) {
	rows := map[string]bool{}
	for _, section := range allTables(1) {
		for _, f := range section.figures {
			rows[f.measure] = true
			if strings.Contains(f.what, "|") {
				t.Errorf("%q would break the table", f.what)
			}
		}
	}
	for _, m := range allMeasures {
		if !rows[m.name] {
			t.Errorf("measure %s has no row", m.name)
		}
	}
}
