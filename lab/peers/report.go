package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/lab/peers/traffic"
)

// A figure is a row of a table: one number of each chain.
type figure struct {
	what, measure, format string
	value                 func(window) float64
	higher                bool   // is better
	beyondDirect          bool   // the figure of the chain without proxies in the same round is subtracted
	wanted                string // of the ratio, unless a unit says otherwise
}

// A table is one section of the report.
type table struct {
	title   string
	figures []figure
}

func p50ms(w window) float64     { return w.Result.P50 * 1e3 }
func p99ms(w window) float64     { return w.Result.P99 * 1e3 }
func fetchRate(w window) float64 { return traffic.FetchSize / 1e6 / w.Result.P50 }
func p50us(w window) float64     { return w.Result.P50 * 1e6 }

// allTables are the report. The wanted values are those of the project for a path of two
// agents and a gateway that does not terminate TLS.
func allTables(idleConnections int) []table {
	return []table{
		{"New connections: connect, 64 bytes there and back, close", slices.Concat(
			connectFigures("1 at a time", connect1),
			connectFigures("16 at a time", connect16),
		)},
		{"A kept connection: 64 bytes there and back", []figure{
			{what: "p50, µs", measure: kept, format: "%.0f", value: p50us, wanted: "≤ 1"},
			{
				what:    "CPU of the proxies, µs each",
				measure: kept,
				format:  "%.0f",
				value:   window.cpuPerOperation,
				wanted:  "≤ 1",
			},
		}},
		{"Bulk", slices.Concat(
			bulkFigures("1 connection, down", down1),
			bulkFigures("1 connection, up", up1),
			bulkFigures("8 connections, down", down8),
			bulkFigures("8 connections, up", up8),
			bulkFigures(fmt.Sprintf("1 connection, down, beside %d idle ones and %d stalled readers",
				crowdIdle, crowdStalled), crowded),
		)},
		{fmt.Sprintf("Memory of %d idle connections that were answered once", idleConnections), []figure{
			residentFigure("resident memory of all proxies", "≤ 100 KiB", roleA, roleGateway, roleB),
			residentFigure("resident memory of A", "≤ 44 KiB", roleA),
			residentFigure("resident memory of the gateway", "≤ 12 KiB", roleGateway),
			residentFigure("resident memory of B", "≤ 44 KiB", roleB),
			{
				what:         "kernel memory beyond that of direct, KiB each",
				measure:      idle,
				format:       "%.0f",
				value:        func(w window) float64 { return w.Memory.Kernel },
				beyondDirect: true,
			},
		}},
		{fmt.Sprintf("Memory of %d idle client connections that have each made one request over HTTP/1.1", idleConnections), []figure{
			residentHTTPFigure("resident memory of all proxies", "≤ 1", roleA, roleGateway, roleB),
			residentHTTPFigure("resident memory of A", "", roleA),
			residentHTTPFigure("resident memory of the gateway", "", roleGateway),
			residentHTTPFigure("resident memory of B", "", roleB),
		}},
		{"GET of 1 KiB over HTTP/1.1, on kept connections", slices.Concat(
			requestFigures("1 connection", http1),
			requestFigures("32 connections", http32),
			requestFigures("256 connections", http256),
		)},
		{"Unary calls of gRPC with a response of 1 KiB, on one connection for each 64 calls", slices.Concat(
			requestFigures("1 call", grpc1),
			requestFigures("32 calls", grpc32),
			requestFigures("256 calls", grpc256),
		)},
		{"A new connection every half second, over a WAN", []figure{
			{what: "p50, ms", measure: wan, format: "%.1f", value: p50ms, wanted: "≤ 0.5"},
			{what: "64 at a time, p50, ms", measure: wan64, format: "%.1f", value: p50ms, wanted: "≤ 0.5"},
			{what: "64 at a time, p99, ms", measure: wan64, format: "%.1f", value: p99ms, wanted: "≤ 0.5"},
		}},
		{"Downloads of 64 MB over a WAN, each over a new connection", []figure{
			{what: "MB/s by the median time", measure: fetch, format: "%.1f", value: fetchRate, higher: true, wanted: "≥ 1"},
		}},
	}
}

func connectFigures(what, measure string) []figure {
	return []figure{
		{
			what:    what + ", per second",
			measure: measure,
			format:  "%.0f",
			value:   window.rate,
			higher:  true,
			wanted:  "≥ 2",
		},
		{what: what + ", p50, ms", measure: measure, format: "%.2f", value: p50ms, wanted: "≤ 0.5"},
		{
			what:    what + ", CPU of the proxies, µs each",
			measure: measure,
			format:  "%.0f",
			value:   window.cpuPerOperation,
			wanted:  "≤ 0.5",
		},
	}
}

func bulkFigures(what, measure string) []figure {
	perGB := func(roles ...string) func(window) float64 {
		return func(w window) float64 { return w.cpuPerGB(roles...) }
	}
	return []figure{
		{
			what:    what + ", Gbit/s",
			measure: measure,
			format:  "%.2f",
			value:   window.gbits,
			higher:  true,
			wanted:  "≥ 1",
		},
		{
			what:    what + ", CPU of the proxies, s/GB",
			measure: measure,
			format:  "%.2f",
			value:   perGB(roleA, roleGateway, roleB),
			wanted:  "≤ 1",
		},
		{
			what:    what + ", CPU of the gateway, s/GB",
			measure: measure,
			format:  "%.2f",
			value:   perGB(roleGateway),
			wanted:  "≤ 0.3",
		},
	}
}

// requestFigures are the rows of a measure of requests.
func requestFigures(what, measure string) []figure {
	return []figure{
		{
			what:    what + ", per second",
			measure: measure,
			format:  "%.0f",
			value:   window.rate,
			higher:  true,
			wanted:  "≥ 1",
		},
		{what: what + ", p50, ms", measure: measure, format: "%.2f", value: p50ms, wanted: "≤ 1"},
		{what: what + ", p99, ms", measure: measure, format: "%.2f", value: p99ms, wanted: "≤ 1"},
		{
			what:    what + ", CPU of the proxies, µs each",
			measure: measure,
			format:  "%.0f",
			value:   window.cpuPerOperation,
			wanted:  "≤ 1",
		},
	}
}

func residentHTTPFigure(what, wanted string, roles ...string) figure {
	f := residentFigure(what, wanted, roles...)
	f.measure = idleHTTP
	return f
}

func residentFigure(what, wanted string, roles ...string) figure {
	return figure{
		what:    what + ", KiB each",
		measure: idle,
		format:  "%.1f",
		value:   func(w window) float64 { return w.residentKiB(roles...) },
		wanted:  wanted,
	}
}

// A report is the windows of a run and what is needed to show them.
type report struct {
	chains  []string // in the order of the columns
	windows []window
	calm    float64 // the largest share of others in a window that is not disturbed
	idle    int     // connections
}

// disturbed reports whether other programs took too much of the machine. Memory does not
// depend on them.
func (r report) disturbed(w window) bool { return w.Memory == nil && w.Others > r.calm }

// markdown returns one table for each section that has figures, and one of the CPU time
// that other programs took.
func (r report) markdown() string {
	var out strings.Builder
	for _, t := range allTables(r.idle) {
		var rows strings.Builder
		for _, f := range t.figures {
			rows.WriteString(r.row(f))
		}
		if rows.Len() == 0 {
			continue
		}
		fmt.Fprintf(&out, "%s:\n\n| |", t.title)
		for _, chain := range r.chains {
			fmt.Fprintf(&out, " %s |", chain)
		}
		for _, g := range r.peerGroups() {
			fmt.Fprintf(&out, " %s |", g.title)
		}
		columns := strings.Repeat(" --- |", len(r.chains)+len(r.peerGroups())+2)
		fmt.Fprintf(&out, " wanted |\n|%s\n%s\n", columns, rows.String())
	}
	out.WriteString(r.profile())
	out.WriteString(r.disturbance())
	return out.String()
}

// profile returns a table of the shares of CPU time of Causeway's proxies by measure. It
// is empty if there are no profiles.
func (r report) profile() string {
	var measures []string
	counts, totals := map[[2]string]int{}, map[string]int{} // by share and measure
	for _, w := range r.windows {
		if w.Profile != nil && !slices.Contains(measures, w.Measure) {
			measures = append(measures, w.Measure)
		}
		for share, n := range w.Profile {
			counts[[2]string{share, w.Measure}] += n
			totals[w.Measure] += n
		}
	}
	if len(measures) == 0 {
		return ""
	}
	var out strings.Builder
	fmt.Fprintf(&out, "CPU time of Causeway's proxies, of all rounds:\n\n| | %s |\n| --- |%s\n",
		strings.Join(measures, " | "), strings.Repeat(" --- |", len(measures)))
	for _, share := range allShares {
		fmt.Fprintf(&out, "| %s |", share)
		for _, m := range measures {
			fmt.Fprintf(&out, " %.0f %% |", 100*float64(counts[[2]string{share, m}])/float64(totals[m]))
		}
		out.WriteString("\n")
	}
	out.WriteString("\n")
	return out.String()
}

// row returns a figure's line, and nothing if no chain has the figure.
func (r report) row(f figure) string {
	cells, any := "", false
	for _, chain := range r.chains {
		cell := r.cell(f, chain)
		any = any || cell != ""
		cells += fmt.Sprintf(" %s |", cell)
	}
	if !any {
		return ""
	}
	for _, g := range r.peerGroups() {
		cells += fmt.Sprintf(" %s |", r.ratioCell(f, g))
	}
	return fmt.Sprintf("| %s |%s %s |\n", f.what, cells, f.wanted)
}

// A peerGroup is a group of peers on the same way. Causeway is compared with the better
// one of them.
type peerGroup struct {
	title string
	peers []string // chains
}

var (
	ownGroup = peerGroup{"Causeway / better peer", []string{chainEnvoy, chainHAProxy}}
	labGroup = peerGroup{"Causeway / better peer in the lab", []string{chainLabEnvoy, chainLabHAProxy}}
)

// peerGroups returns the groups of which a peer was measured, or ownGroup if there are
// none.
func (r report) peerGroups() (out []peerGroup) {
	for _, g := range []peerGroup{ownGroup, labGroup} {
		measured := func(chain string) bool { return slices.Contains(r.chains, chain) }
		if slices.ContainsFunc(g.peers, measured) {
			out = append(out, g)
		}
	}
	if out == nil {
		return []peerGroup{ownGroup}
	}
	return out
}

// cell is the median of a chain's figure, with the number of disturbed windows.
func (r report) cell(f figure, chain string) string {
	byRound := r.values(f, chain)
	if len(byRound) == 0 {
		return ""
	}
	marked := 0
	for _, w := range r.windows {
		if w.Chain == chain && w.Measure == f.measure && r.disturbed(w) {
			marked++
		}
	}
	cell := fmt.Sprintf(f.format, median(values(byRound)))
	if marked > 0 {
		cell += fmt.Sprintf(" †%d", marked)
	}
	return cell
}

// values returns a chain's figure by round.
func (r report) values(f figure, chain string) map[int]float64 {
	out := map[int]float64{}
	for _, w := range r.windows {
		if w.Chain == chain && w.Measure == f.measure {
			if v := f.value(w); !math.IsNaN(v) {
				out[w.Round] = v
			}
		}
	}
	if !f.beyondDirect {
		return out
	}
	directChain := chainDirect
	if slices.Contains(labChains, chain) && slices.Contains(r.chains, chainLabDirect) {
		directChain = chainLabDirect
	}
	if chain == directChain {
		return nil
	}
	plain := f
	plain.beyondDirect = false
	direct := r.values(plain, directChain)
	for round := range out {
		d, ok := direct[round]
		if !ok {
			delete(out, round)
			continue
		}
		out[round] -= d
	}
	return out
}

// ratioCell is the median of the ratios of the rounds, with the least and the most.
func (r report) ratioCell(f figure, g peerGroup) string {
	ours := r.values(f, chainCauseway)
	theirs := r.values(f, r.betterPeer(f, g))
	ratios := pairedRatios(ours, theirs)
	switch len(ratios) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("%.2f", ratios[0])
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(ratios), slices.Min(ratios), slices.Max(ratios))
}

// betterPeer returns the peer of a group with the better median, and an empty name if none
// has one.
func (r report) betterPeer(f figure, g peerGroup) string {
	best, bestValue := "", math.NaN()
	for _, peer := range g.peers {
		v := median(values(r.values(f, peer)))
		if math.IsNaN(v) {
			continue
		}
		if best == "" || (v > bestValue) == f.higher && v != bestValue {
			best, bestValue = peer, v
		}
	}
	return best
}

// pairedRatios returns ours / theirs of each round that has both, by round.
func pairedRatios(ours, theirs map[int]float64) []float64 {
	var out []float64
	for _, round := range sortedKeys(ours) {
		if t, ok := theirs[round]; ok && t != 0 {
			out = append(out, ours[round]/t)
		}
	}
	return out
}

// disturbance says how much CPU time other programs took, and how many windows they
// disturbed.
func (r report) disturbance() string {
	var out strings.Builder
	for _, chain := range r.chains {
		var shares []float64
		marked := 0
		for _, w := range r.windows {
			if w.Chain != chain || w.Memory != nil {
				continue
			}
			shares = append(shares, 100*w.Others)
			if r.disturbed(w) {
				marked++
			}
		}
		if len(shares) == 0 {
			continue
		}
		fmt.Fprintf(&out, "| %s | %.0f %% | %.0f %% | %d of %d |\n",
			chain, median(shares), slices.Max(shares), marked, len(shares))
	}
	if out.Len() == 0 {
		return ""
	}
	return fmt.Sprintf("CPU time of other programs, as a share of the machine. "+
		"†N marks a figure of which N windows were above %.0f %%.\n\n"+
		"| chain | median | most | disturbed windows |\n"+
		"| --- | --- | --- | --- |\n%s", 100*r.calm, out.String())
}

// median returns NaN for no figures.
func median(figures []float64) float64 {
	if len(figures) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(figures))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func sortedKeys(m map[int]float64) []int {
	var out []int
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func values(m map[int]float64) []float64 {
	var out []float64
	for _, k := range sortedKeys(m) {
		out = append(out, m[k])
	}
	return out
}
