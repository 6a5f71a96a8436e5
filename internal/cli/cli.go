// Package cli is the causeway command: it turns words into one call, and the answer into text.
//
//	argv ─▶ flags ─▶ one function of another package ─▶ answer on stdout; progress, errors and hints on stderr
//
// What always holds:
//   - Nothing but what was asked for is written to stdout, so that it can be piped.
//   - An error is one sentence; where there is a next step, a hint follows it.
//   - It holds no rule that another client would need too.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Main runs the command line args (without the program's name) until it is done or ctx ends, and returns the exit
// code: 0 done, 1 failed, 2 wrongly called. Only if stdin is a terminal is anything read from it.
func Main(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer) int {
	return run(ctx, args, &app{stdin: stdin, terminal: isTerminal(stdin), stdout: stdout, stderr: stderr, connect: connect})
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// app is what verbs share.
type app struct {
	stdin          io.Reader
	terminal       bool // somebody sits at stdin
	stdout, stderr io.Writer
	// connect reaches the cluster that the flags name. Tests put a fake in its place.
	connect func(clusterFlags, io.Writer) (cluster, error)
}

func run(ctx context.Context, args []string, a *app) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	called, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if s := (*silent)(nil); errors.As(err, &s) {
		return 1
	}
	fmt.Fprintf(a.stderr, "causeway: %v\n", err)
	var h *hinted
	if errors.As(err, &h) {
		fmt.Fprintf(a.stderr, "hint: %s\n", h.hint)
		return h.code
	}
	if !a.entered(called) {
		fmt.Fprintf(a.stderr, "hint: `%s --help` tells what it takes\n", called.CommandPath())
		return 2
	}
	return 1
}

const enteredKey = "entered"

// entered reports whether c's own code ran: if not, an error is about how it was called.
func (a *app) entered(c *cobra.Command) bool { return c.Annotations[enteredKey] != "" }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "causeway",
		Short:         "Call Services of other clusters as if they were here",
		Long:          "Causeway mirrors Kubernetes Services between clusters and carries the traffic, with mutual TLS under the caller's own identity.",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(c *cobra.Command, _ []string) {
			if c.Annotations == nil {
				c.Annotations = map[string]string{}
			}
			c.Annotations[enteredKey] = "yes"
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetCompletionCommandGroupID(operator)
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true, GroupID: operator})
	root.AddGroup(
		&cobra.Group{ID: operator, Title: "Commands:"},
		&cobra.Group{ID: process, Title: "Processes, which the chart runs:"},
	)
	root.AddCommand(
		a.install(), a.uninstall(), a.identity(), a.link(), a.invite(), a.join(), a.unlink(), a.links(), a.services(), a.stat(), a.tap(), a.ledger(), a.check(), a.rotate(),
		a.version(),
		a.controller(), a.gateway(), a.agent(), a.vipGuard(), a.canary(),
	)
	return root
}

// Groups of verbs in the help text.
const (
	operator = "operator"
	process  = "process"
)

// hinted is an error with the user's next step.
type hinted struct {
	err  error
	hint string
	code int
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// silent is an error of which the answer on stdout has said all.
type silent struct{ error }

// withHint adds what the user can do about err.
func withHint(err error, hint string) error { return &hinted{err: err, hint: hint, code: 1} }
