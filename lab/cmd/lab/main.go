// Command lab makes and breaks throw-away real Kubernetes clusters on this machine. Package lab says what always holds.
//
//	lab up --clusters west,east     lab exec --cluster west --pod shop/client -- curl http://bar-east/
//	lab down                        lab kubeconfig west
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// exitStatus is how a command that ran in the lab ended, passed on.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("the command ended with status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	var exit exitStatus
	switch {
	case err == nil:
	case errors.As(err, &exit):
		os.Exit(int(exit)) // the command in the lab has said what was wrong
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}
