package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/causeway-mesh/causeway/lab"
)

func printStatus(out io.Writer, l *lab.Lab) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "PROCESS\tSTATE\tPIDS\tRSS MiB\tPSS MiB")
	var rss, pss uint64
	for _, p := range l.Processes() {
		state := "ended"
		if p.Running {
			state = "runs"
		}
		rss, pss = rss+p.RSS, pss+p.PSS
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\n", p.Name, state, len(p.PIDs), p.RSS>>20, p.PSS>>20)
	}
	fmt.Fprintf(w, "all\t\t\t%d\t%d\n", rss>>20, pss>>20)
	return w.Flush()
}
