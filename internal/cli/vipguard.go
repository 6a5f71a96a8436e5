package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/internal/vipguard"
)

// agentID is the uid and gid that the chart gives the agent.
const agentID = 64144

func (a *app) vipGuard() *cobra.Command {
	o := vipguard.Options{PodDir: podDir, NodeDir: nodeDir, AgentUID: agentID, AgentGID: agentID}
	var vips, pods, services prefixList
	c := newProcess("vip-guard", "Keep a node's routes, rule and listening sockets for virtual IPs", func(c *cobra.Command, log *slog.Logger) error {
		if err := required(c, "node-ip", "vip-cidrs"); err != nil {
			return err
		}
		o.CIDRs, o.ReservedCIDRs, o.Log = vips, slices.Concat(pods, services), log
		return vipguard.Run(c.Context(), o)
	})
	c.Flags().TextVar(&o.NodeIP, "node-ip", netip.Addr{}, "the node's own address (default $NODE_IP)")
	c.Flags().Var(&vips, "vip-cidrs", "ranges of the virtual IPs")
	c.Flags().Var(&pods, "pod-cidrs", "the cluster's pod ranges, which virtual IPs must not overlap")
	c.Flags().Var(&services, "service-cidrs", "the cluster's Service ranges, which virtual IPs must not overlap")
	c.AddCommand(newProbe("Ask the vip-guard of this pod whether it is ready", func() error { return vipguard.Ready(podDir) }))
	c.AddCommand(&cobra.Command{
		Use:   "clean",
		Short: "Remove vip-guard's routes, rule and sockets from this node",
		Long: `Remove vip-guard's routes, rule and sockets from this node, as uninstall does on each.

Mirrors, agents and guards must be gone before: a guard puts back what is removed, and a call of a mirror would leave
the node.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return cleanNode(c.Context(), nodeDir) },
	})
	return c
}

// cleanNode removes what guards left behind: in the kernel, and in dir, their folder on the node.
func cleanNode(ctx context.Context, dir string) error {
	if err := vipguard.Clean(ctx); err != nil {
		return fmt.Errorf("clean the node: %w", err)
	}
	return emptyFolder(dir)
}

// emptyFolder removes all that is in dir. The folder itself, a mount in a pod, stays; one that is missing is empty.
func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clean the node's folder: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clean the node's folder: %w", err)
		}
	}
	return nil
}
