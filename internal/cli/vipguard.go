package cli

import (
	"log/slog"
	"net/netip"
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
		o.CIDRs, o.Taken, o.Log = vips, slices.Concat(pods, services), log
		return vipguard.Run(c.Context(), o)
	})
	c.Flags().TextVar(&o.NodeIP, "node-ip", netip.Addr{}, "the node's own address (default $NODE_IP)")
	c.Flags().Var(&vips, "vip-cidrs", "ranges of the virtual IPs")
	c.Flags().Var(&pods, "pod-cidrs", "the cluster's pod ranges, which virtual IPs must not overlap")
	c.Flags().Var(&services, "service-cidrs", "the cluster's Service ranges, which virtual IPs must not overlap")
	c.AddCommand(newProbe("Ask the vip-guard of this pod whether it is ready", func() error { return vipguard.Ready(podDir) }))
	return c
}
