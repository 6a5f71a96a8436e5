package cli

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/agent"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/vipguard"
)

func (a *app) agent() *cobra.Command {
	o := agent.Options{PodDir: podDir, CacheDir: filepath.Join(nodeDir, vipguard.AgentFolder), Metrics: []string{"127.0.0.1:9464"}, IdentityDir: identityDir, TokenFile: tokenFile, Version: Version()}
	var postQuantum bool
	var metricsIP netip.Addr
	c := newProcess("agent", "Carry local pods' calls to linked clusters, and theirs to local pods", func(c *cobra.Command, log *slog.Logger) error {
		if err := required(c, "controller"); err != nil {
			return err
		}
		if metricsIP.IsValid() {
			o.Metrics = append(o.Metrics, netip.AddrPortFrom(metricsIP, clusterinfo.MetricsPort).String())
		}
		o.Log, o.KeyExchange = log, identity.KeyExchangeOf(postQuantum)
		return agent.Run(c.Context(), o)
	})
	c.Flags().StringVar(&o.Controller, "controller", "", "address of the controllers' node stream, host:port")
	c.Flags().DurationVar(&o.Drain, "drain", time.Minute, "how long open connections go on after the process is asked to stop")
	c.Flags().TextVar(&metricsIP, "metrics-ip", netip.Addr{}, "another `IP` on whose port 9464 metrics are served, beside the loopback's")
	postQuantumFlag(c, &postQuantum)
	c.AddCommand(newProbe("Ask the agent of this pod whether it is ready", func() error { return agent.Ready(context.Background(), podDir) }))
	return c
}
