// Command generate writes docs/metrics.md. It takes the path as its argument.
package main

import (
	"fmt"
	"os"

	"github.com/causeway-mesh/causeway/internal/metricsdoc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "generate: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want the path of the page, got %d arguments", len(args))
	}
	metrics, err := metricsdoc.Metrics()
	if err != nil {
		return err
	}
	return os.WriteFile(args[0], []byte(metricsdoc.Markdown(metrics)), 0o644)
}
