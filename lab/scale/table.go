package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// A row is one line of the result.
type row struct {
	What     string
	Causeway string
	Beside   string // what the plain client or the relay did in the same run
	Ratio    string
	Wanted   string
}

// writeTable writes the rows as a Markdown table.
func writeTable(w io.Writer, rows []row) error {
	var out strings.Builder
	out.WriteString("| measure | Causeway | beside it | ratio | wanted |\n| --- | --- | --- | --- | --- |\n")
	for _, r := range rows {
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s |\n", r.What, r.Causeway, r.Beside, r.Ratio, r.Wanted)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// ratioRow compares two figures that are written in the same format.
func ratioRow(what, format string, causeway, beside float64, wanted string) row {
	return row{
		What:     what,
		Causeway: fmt.Sprintf(format, causeway),
		Beside:   fmt.Sprintf(format, beside),
		Ratio:    ratio(causeway, beside),
		Wanted:   wanted,
	}
}

func ratio(a, b float64) string {
	if b == 0 || math.IsNaN(a) || math.IsNaN(b) {
		return "none"
	}
	return fmt.Sprintf("%.2f", a/b)
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

// percentile returns the smallest figure that at least p percent do not exceed, and NaN
// for no figures.
func percentile(figures []float64, p float64) float64 {
	if len(figures) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(figures))
	rank := int(math.Ceil(p / 100 * float64(len(s))))
	return s[max(rank, 1)-1]
}

// thousands writes a number with commas.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// countsByName writes counts as "3 links, 1 secrets", sorted by name.
func countsByName(counts map[string]int) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprintf("%d %s", counts[name], name))
	}
	if len(out) == 0 {
		return "0"
	}
	return strings.Join(out, ", ")
}
