package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/agent"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/vipguard"
)

func (a *app) agent() *cobra.Command {
	o := agent.Options{PodDir: podDir, CacheDir: filepath.Join(nodeDir, vipguard.AgentFolder), Metrics: []string{"127.0.0.1:9464"}, IdentityDir: identityDir, TokenFile: tokenFile, Version: Version()}
	var postQuantum bool
	accessLog, access := false, reqlog.Config{}
	var metricsIP netip.Addr
	c := newProcess("agent", "Carry local pods' calls to linked clusters, and theirs to local pods", func(c *cobra.Command, log *slog.Logger) error {
		if err := required(c, "controller"); err != nil {
			return err
		}
		if metricsIP.IsValid() {
			o.Metrics = append(o.Metrics, netip.AddrPortFrom(metricsIP, clusterinfo.MetricsPort).String())
		}
		o.Log, o.KeyExchange = log, identity.KeyExchangeOf(postQuantum)
		if access.Sample < 0 || access.Sample > 1 {
			return fmt.Errorf("--access-log-sample must be from 0 to 1, not %v", access.Sample)
		}
		if accessLog {
			o.AccessLog, o.AccessLogTo = &access, c.OutOrStdout()
		}
		return agent.Run(c.Context(), o)
	})
	c.Flags().StringVar(&o.Controller, "controller", "", "address of the controllers' node stream, host:port")
	c.Flags().DurationVar(&o.Drain, "drain", time.Minute, "how long open connections go on after the process is asked to stop")
	limitFlag(c, &o.Limits.Connections, "max-connections", "most open connections in each direction; 0: 20,000. Fewer if memory or descriptors do not suffice")
	limitFlag(c, &o.Limits.ConnectionsPerLink, "max-connections-per-link", "most open connections in each direction to or from one linked cluster; 0: half of all")
	limitFlag(c, &o.Limits.ConnectionsPerPod, "max-connections-per-pod", "most open connections of one local pod; 0: half of all. The pods of a ServiceAccount together have at most a quarter of all, or this number if it is larger")
	limitFlag(c, &o.Limits.ConnectionRatePerPod, "max-connection-rate-per-pod", "most new connections of one local pod per second, with bursts of twice as many; 0: 2,000")
	c.Flags().StringVar(&o.TraceEndpoint, "tracing-endpoint", "", "URL of an OTLP collector that speaks gRPC, such as http://collector.observability:4317; empty: no traces")
	c.Flags().Float64Var(&o.TraceRatio, "tracing-ratio", 0, "part of the requests without a trace for which one is begun, 0 to 1")
	c.Flags().StringVar(&o.TraceCAFile, "tracing-ca-file", "", "certificates that sign the collector's; ignored if the file does not exist")
	c.Flags().BoolVar(&accessLog, "access-log", false, "write a line of JSON to stdout for each request that has ended")
	c.Flags().Float64Var(&access.Sample, "access-log-sample", 1, "share of requests in the access log, from 0 to 1")
	c.Flags().BoolVar(&access.Failures, "access-log-failures", true, "log each request that failed, even if it is not in the share")
	c.Flags().BoolVar(&access.Query, "access-log-query", false, "record the query of requests, which may hold secrets")
	fromPod(c, "pod-name", &o.PodName, "name of this pod")
	c.Flags().TextVar(&metricsIP, "metrics-ip", netip.Addr{}, "another `IP` on whose port 9464 metrics are served, beside the loopback's")
	postQuantumFlag(c, &postQuantum)
	c.AddCommand(newProbe("Ask the agent of this pod whether it is ready", func() error { return agent.Ready(context.Background(), podDir) }))
	return c
}
