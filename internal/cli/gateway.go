package cli

import (
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/internal/dataplane/gateway"
)

func (a *app) gateway() *cobra.Command {
	o := gateway.Options{Listen: ":4143", Metrics: ":9464", Probes: ":9465", IdentityDir: identityDir, TokenFile: tokenFile, Version: Version()}
	c := newProcess("gateway", "Hand connections of linked clusters to the agents of this one", func(c *cobra.Command, log *slog.Logger) error {
		if err := required(c, "controller"); err != nil {
			return err
		}
		o.Log = log
		return gateway.Run(c.Context(), o)
	})
	c.Flags().StringVar(&o.Controller, "controller", "", "address of the controllers' node stream, host:port")
	c.Flags().DurationVar(&o.Drain, "drain", time.Minute, "how long open connections go on after the process is asked to stop")
	limitFlag(c, &o.Limits.Connections, "max-connections", "most open connections; 0: 50,000. Fewer if memory or descriptors do not suffice")
	limitFlag(c, &o.Limits.ConnectionsPerLink, "max-connections-per-link", "most open connections from one linked cluster; 0: half of all")
	return c
}
