package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/lab"
)

// execFlags say where a command runs: in one place exactly.
type execFlags struct {
	cluster, pod, node string
	onNode, router, cp bool
	wan                bool
}

func execCommand(o *lab.Options) *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use:   "exec (--wan | --cluster CLUSTER (--pod NS/NAME | --node[=NAME] | --router | --control-plane)) -- COMMAND…",
		Short: "Run a command of this machine somewhere in the lab",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			f.onNode = c.Flags().Changed("node")
			// `--node NAME` reads as `--node` and an argument before the dashes.
			if at := c.ArgsLenAtDash(); at == 1 && f.onNode && f.node == anyNode {
				f.node, args = args[0], args[1:]
			}
			if f.node == anyNode {
				f.node = ""
			}
			if f.wan {
				return attach(l.WAN().Command(c.Context(), args...))
			}
			target, err := find(l, f.cluster)
			if err != nil {
				return err
			}
			where, err := f.where()
			if err != nil {
				return err
			}
			cmd, err := target.Exec(c.Context(), where, args...)
			if err != nil {
				return err
			}
			return attach(cmd)
		},
	}
	c.Flags().StringVar(&f.cluster, "cluster", "", "which cluster")
	c.Flags().StringVar(&f.pod, "pod", "", "in the network of this pod, with its resolver: NAMESPACE/NAME")
	c.Flags().StringVar(&f.node, "node", "", "on this node; the first if no name is given")
	c.Flags().Lookup("node").NoOptDefVal = anyNode
	c.Flags().BoolVar(&f.router, "router", false, "in the namespace of the cluster's router and bridge")
	c.Flags().BoolVar(&f.cp, "control-plane", false, "in the namespace of the API server")
	c.Flags().BoolVar(&f.wan, "wan", false, "between the clusters")
	c.MarkFlagsOneRequired("wan", "cluster")
	c.MarkFlagsMutuallyExclusive("wan", "pod", "node", "router", "control-plane")
	return c
}

// anyNode stands for the first node; no node has such a name.
const anyNode = "*"

func (f execFlags) where() (lab.Where, error) {
	switch {
	case f.router:
		return lab.AtRouter(), nil
	case f.cp:
		return lab.AtControlPlane(), nil
	case f.onNode:
		return lab.OnNode(f.node), nil
	case f.pod != "":
		ns, pod, ok := strings.Cut(f.pod, "/")
		if !ok {
			return lab.Where{}, fmt.Errorf("pod %q: want NAMESPACE/NAME", f.pod)
		}
		return lab.InPod(ns, pod), nil
	}
	return lab.Where{}, errors.New("say where: --pod NAMESPACE/NAME, --node, --router or --control-plane")
}

// attach runs cmd on this command's own streams.
func attach(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitStatus(max(exit.ExitCode(), 1))
	}
	return err
}
