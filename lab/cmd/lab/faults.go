package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/lab"
)

func faultCommand(o *lab.Options) *cobra.Command {
	c := &cobra.Command{Use: "fault", Short: "Break something, and mend it"}
	c.AddCommand(
		pairCommand(o, "cut CLUSTER CLUSTER", "Lose every packet between two clusters", (*lab.Lab).Cut),
		pairCommand(o, "mend CLUSTER CLUSTER", "Take cut back", (*lab.Lab).Mend),
		addressCommand(o, "hole ADDRESS", "Lose every packet to and from an address of the WAN", (*lab.Lab).BlackHole),
		addressCommand(o, "fill ADDRESS", "Take hole back", (*lab.Lab).Fill),
		clusterCommand(o, "narrow CLUSTER", "Lose every packet to a cluster that is longer than 1300 bytes",
			func(l *lab.Lab, ctx context.Context, cluster string) error { return l.Narrow(ctx, cluster, 1300) }),
		clusterCommand(o, "widen CLUSTER", "Take narrow back", (*lab.Lab).Widen),
		addressCommand(o, "strict ADDRESS", "Reset connections whose ClientHello needs two segments", (*lab.Lab).Strict),
		addressCommand(o, "lenient ADDRESS", "Take strict back", (*lab.Lab).Lenient),
		addressCommand(o, "lose-hellos ADDRESS", "Lose each ClientHello that needs two segments", (*lab.Lab).LoseHellos),
		addressCommand(o, "pass-hellos ADDRESS", "Take lose-hellos back", (*lab.Lab).PassHellos),
		processCommand(o, "freeze CLUSTER PROCESS", "Stop a process dead: kube-apiserver, west-1/kubelet, shop/client/shop",
			syscall.SIGSTOP, (*lab.Cluster).Freeze),
		processCommand(o, "thaw CLUSTER PROCESS", "Let a frozen process go on", syscall.SIGCONT, (*lab.Cluster).Thaw),
		processCommand(o, "kill CLUSTER PROCESS", "End a process; `lab up` starts it again, a kubelet its containers",
			syscall.SIGKILL, (*lab.Cluster).Kill),
		restartCommand(o),
	)
	return c
}

func pairCommand(o *lab.Options, use, short string, do func(*lab.Lab, context.Context, string, string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(2), RunE: func(c *cobra.Command, args []string) error {
		l, err := lab.OpenWith(*o)
		if err != nil {
			return err
		}
		return do(l, c.Context(), args[0], args[1])
	}}
}

func clusterCommand(o *lab.Options, use, short string, do func(*lab.Lab, context.Context, string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		l, err := lab.OpenWith(*o)
		if err != nil {
			return err
		}
		return do(l, c.Context(), args[0])
	}}
}

func addressCommand(o *lab.Options, use, short string, do func(*lab.Lab, context.Context, netip.Addr) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		l, err := lab.OpenWith(*o)
		if err != nil {
			return err
		}
		address, err := netip.ParseAddr(args[0])
		if err != nil {
			return fmt.Errorf("%q is no address: %w", args[0], err)
		}
		return do(l, c.Context(), address)
	}}
}

// processCommand does its verb to a process of the lab's, or sends the signal that means the same to a container of a pod.
func processCommand(o *lab.Options, use, short string, signal syscall.Signal, do func(*lab.Cluster, string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(2), RunE: func(c *cobra.Command, args []string) error {
		l, err := lab.OpenWith(*o)
		if err != nil {
			return err
		}
		cluster, err := find(l, args[0])
		if err != nil {
			return err
		}
		if parts := strings.Split(args[1], "/"); len(parts) == 3 {
			return cluster.KillContainer(c.Context(), parts[0], parts[1], parts[2], signal)
		}
		return do(cluster, args[1])
	}}
}

func restartCommand(o *lab.Options) *cobra.Command {
	return &cobra.Command{Use: "restart CLUSTER [NODE]", Short: "Take a node's power away, of the first if none is named, and give it back at once",
		Args: cobra.RangeArgs(1, 2), RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			cluster, err := find(l, args[0])
			if err != nil {
				return err
			}
			return cluster.RestartNode(c.Context(), strings.Join(args[1:], ""))
		}}
}

// weatherCommand is what Up starts in the WAN; nobody types it.
func weatherCommand() *cobra.Command {
	var w lab.Weather
	c := &cobra.Command{
		Use:    "weather",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return lab.RunWeather(c.Context(), w, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	c.Flags().DurationVar(&w.RTT, "rtt", 0, "there and back")
	c.Flags().Float64Var(&w.Loss, "loss", 0, "percentage of packets")
	return c
}
