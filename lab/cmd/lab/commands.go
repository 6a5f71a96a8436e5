package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-mesh/causeway/lab"
)

func rootCommand() *cobra.Command {
	o := &lab.Options{}
	root := &cobra.Command{
		Use:           "lab",
		Short:         "Make and break throw-away real Kubernetes clusters on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	start := time.Now()
	o.Progress = func(line string) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(start).Seconds(), line)
	}
	root.PersistentFlags().StringVar(&o.Name, "name", lab.DefaultName, "the lab's name; labs of different names stand side by side")
	root.PersistentFlags().StringVar(&o.State, "state", lab.DefaultState, "folder that holds a folder for each lab")
	root.AddCommand(upCommand(o), downCommand(o), statusCommand(o), buildCommand(o), kubeconfigCommand(o), kubectlCommand(o),
		loadImageCommand(o), imageCommand(), execCommand(o), powerCommand(o), faultCommand(o), firewallCommand(o), selfcheckCommand(o),
		cloudCommand(o), weatherCommand())
	return root
}

func upCommand(o *lab.Options) *cobra.Command {
	var weather lab.Weather
	c := &cobra.Command{
		Use:   "up",
		Short: "Make clusters, or repair what is missing of them",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("wan-rtt") || c.Flags().Changed("wan-loss") {
				o.WAN = &weather
			}
			_, err := lab.Up(c.Context(), *o)
			return err
		},
	}
	c.Flags().StringVar(&o.Shape.ProxyMode, "proxy-mode", lab.NFTables, "kube-proxy's mode in each new cluster: nftables or iptables")
	c.Flags().StringVar(&o.Shape.CNI, "cni", lab.Bridge, "how pods of each new cluster are joined to their node: bridge or ptp")
	c.Flags().BoolVar(&o.Shape.DualStack, "dual-stack", false, "each new cluster has IPv6 beside IPv4")
	c.Flags().BoolVar(&o.Shape.Large, "large", false, "each new cluster has memory and request rates for tens of thousands of objects")
	c.Flags().BoolVar(&o.Shape.Private, "private", false, "nobody can open a connection to a new cluster; it can to others")
	c.Flags().DurationVar(&weather.RTT, "wan-rtt", 0, "how long the WAN takes there and back, from now on")
	c.Flags().Float64Var(&weather.Loss, "wan-loss", 0, "percentage of packets that the WAN loses, from now on")
	c.Flags().StringSliceVar(&o.Clusters, "clusters", nil, "clusters that are to be there; those there already stay")
	c.Flags().IntVar(&o.Nodes, "nodes", 1, "nodes of each new cluster")
	return c
}

func downCommand(o *lab.Options) *cobra.Command {
	var clusters []string
	c := &cobra.Command{
		Use:   "down",
		Short: "Remove the lab and all that belongs to it, or some of its clusters",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(clusters) > 0 {
				return lab.Remove(c.Context(), *o, clusters...)
			}
			return lab.Down(c.Context(), *o)
		},
	}
	c.Flags().StringSliceVar(&clusters, "clusters", nil, "only these clusters; the others go on")
	return c
}

func buildCommand(o *lab.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Install the packages and build the binaries that a lab needs, and make none",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := lab.EnsurePackages(c.Context(), o.Progress); err != nil {
				return err
			}
			_, err := lab.Build(c.Context(), o.Progress)
			return err
		},
	}
}

func statusCommand(o *lab.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say what runs, and how much memory it takes",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			return printStatus(c.OutOrStdout(), l)
		},
	}
}

func kubeconfigCommand(o *lab.Options) *cobra.Command {
	var content bool
	c := &cobra.Command{
		Use:   "kubeconfig [CLUSTER]",
		Short: "Print the path of a kubeconfig for a cluster, or of one with a context for each",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			path := l.Kubeconfig()
			if len(args) == 1 {
				cluster, err := find(l, args[0])
				if err != nil {
					return err
				}
				path = cluster.Kubeconfig()
			}
			if !content {
				fmt.Fprintln(c.OutOrStdout(), path)
				return nil
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("read the kubeconfig: %w", err)
			}
			_, err = c.OutOrStdout().Write(raw)
			return err
		},
	}
	c.Flags().BoolVar(&content, "content", false, "print the kubeconfig itself")
	return c
}

func kubectlCommand(o *lab.Options) *cobra.Command {
	var cluster string
	c := &cobra.Command{
		Use:   "kubectl --cluster CLUSTER -- ARGS…",
		Short: "Run kubectl, for a machine that has none",
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			target, err := find(l, cluster)
			if err != nil {
				return err
			}
			return attach(target.Kubectl(c.Context(), args...))
		},
	}
	c.Flags().StringVar(&cluster, "cluster", "", "which cluster")
	return c
}

func loadImageCommand(o *lab.Options) *cobra.Command {
	var clusters []string
	c := &cobra.Command{
		Use:   "load-image FILE.tar…",
		Short: "Import images into every node",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			targets := l.Clusters()
			if len(clusters) > 0 {
				targets = nil
				for _, name := range clusters {
					t, err := find(l, name)
					if err != nil {
						return err
					}
					targets = append(targets, t)
				}
			}
			for _, t := range targets {
				for _, tar := range args {
					if err := t.LoadImage(c.Context(), tar); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	c.Flags().StringSliceVar(&clusters, "clusters", nil, "only these clusters")
	return c
}

func imageCommand() *cobra.Command {
	var img lab.Image
	var files, labels []string
	var out string
	c := &cobra.Command{
		Use:   "image --entrypoint PATH --file SOURCE:/PATH[:MODE] --tag NAME --out FILE.tar",
		Short: "Make a container image of files of this machine",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, f := range files {
				parsed, err := lab.ParseImageFile(f)
				if err != nil {
					return err
				}
				img.Files = append(img.Files, parsed)
			}
			img.Labels = map[string]string{}
			for _, l := range labels {
				k, v, ok := strings.Cut(l, "=")
				if !ok {
					return fmt.Errorf("label %q: want KEY=VALUE", l)
				}
				img.Labels[k] = v
			}
			if out == "" {
				return errors.New("say with --out where the image goes")
			}
			return img.WriteFile(out)
		},
	}
	c.Flags().StringArrayVar(&img.Entrypoint, "entrypoint", nil, "the entrypoint; again for its arguments")
	c.Flags().StringArrayVar(&img.Tags, "tag", nil, "the image's name")
	c.Flags().StringVar(&img.User, "user", "", "UID[:GID]; root if empty")
	c.Flags().StringArrayVar(&img.Env, "env", nil, "KEY=VALUE")
	c.Flags().StringArrayVar(&labels, "label", nil, "KEY=VALUE")
	c.Flags().StringArrayVar(&files, "file", nil, "SOURCE:/PATH[:MODE]")
	c.Flags().StringVar(&out, "out", "", "the archive to write")
	return c
}

func powerCommand(o *lab.Options) *cobra.Command {
	var cluster, node string
	c := &cobra.Command{Use: "power", Short: "Take a node's power away, or give it back"}
	verb := func(use, short string, f func(*lab.Cluster, *cobra.Command) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			target, err := find(l, cluster)
			if err != nil {
				return err
			}
			return f(target, c)
		}}
	}
	c.PersistentFlags().StringVar(&cluster, "cluster", "", "which cluster")
	c.PersistentFlags().StringVar(&node, "node", "", "which node; the first if empty")
	c.AddCommand(
		verb("off", "Stop a node dead: nothing tells its peers", func(t *lab.Cluster, c *cobra.Command) error { return t.KillNode(c.Context(), node) }),
		verb("on", "Start a node again", func(t *lab.Cluster, c *cobra.Command) error { return t.StartNode(c.Context(), node) }),
	)
	return c
}

func firewallCommand(o *lab.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "firewall",
		Short: "Print what the WAN's firewall let through and what it refused",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			l, err := lab.OpenWith(*o)
			if err != nil {
				return err
			}
			f, err := l.Firewall(c.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "admitted %d packets\nanswered %d packets\nrefused %d packets\n", f.Admitted.Packets, f.Answered.Packets, f.Refused.Packets)
			return nil
		},
	}
}

// cloudCommand is what Up starts for each cluster; nobody types it.
func cloudCommand(o *lab.Options) *cobra.Command {
	var cluster string
	c := &cobra.Command{
		Use:    "cloud",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return lab.RunCloud(c.Context(), *o, cluster, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	c.Flags().StringVar(&cluster, "cluster", "", "which cluster")
	return c
}

func find(l *lab.Lab, name string) (*lab.Cluster, error) {
	if c := l.Cluster(name); c != nil {
		return c, nil
	}
	var have []string
	for _, c := range l.Clusters() {
		have = append(have, c.Name())
	}
	return nil, fmt.Errorf("lab %q has no cluster %q, only %s", l.Name(), name, strings.Join(have, ", "))
}
