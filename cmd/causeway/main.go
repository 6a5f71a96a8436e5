// Command causeway is all of Causeway: what operators type, and the processes that the chart runs.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/causeway-mesh/causeway/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
