package cli

import (
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/internal/controller"
	"github.com/causeway-mesh/causeway/internal/identity"
)

func (a *app) controller() *cobra.Command {
	o := controller.Options{Version: Version()}
	var vips, pods, services prefixList
	var postQuantum bool
	c := newProcess("controller", "Export and import catalogs, sign identities, tell agents and gateways what they must know", func(c *cobra.Command, log *slog.Logger) error {
		if err := required(c, "cluster-name", "vip-cidrs", "namespace", "pod-name"); err != nil {
			return err
		}
		for _, p := range vips {
			o.VIPCIDRs = append(o.VIPCIDRs, p.String())
		}
		o.ClusterRanges, o.Log = slices.Concat(pods, services), log
		o.KeyExchange = identity.KeyExchangeOf(postQuantum)
		return controller.Run(c.Context(), o)
	})
	c.Flags().StringVar(&o.ClusterName, "cluster-name", "", "name of this cluster, the beginning of its trust domain")
	c.Flags().StringVar(&o.CASecret, "ca-secret", "", "Secret in which somebody else keeps this cluster's root (default the cluster makes its own)")
	postQuantumFlag(c, &postQuantum)
	c.Flags().Var(&pods, "pod-cidrs", "the cluster's pod ranges, which virtual IPs must not overlap")
	c.Flags().Var(&services, "service-cidrs", "the cluster's Service ranges, which virtual IPs must not overlap")
	c.Flags().Var(&vips, "vip-cidrs", "ranges of the virtual IPs, one for each IP family")
	fromPod(c, "namespace", &o.Namespace, "Causeway's own namespace")
	fromPod(c, "pod-name", &o.PodName, "this replica's name")
	return c
}
