// Command generate writes the Grafana dashboards of the chart. It takes the path of their
// directory as its argument.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/causeway-mesh/causeway/internal/monitoring"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "generate: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want the path of the directory, got %d arguments", len(args))
	}
	files, err := monitoring.Files()
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(args[0], name), content, 0o644); err != nil {
			return fmt.Errorf("write a dashboard: %w", err)
		}
	}
	return nil
}
