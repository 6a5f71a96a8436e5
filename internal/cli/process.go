package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-mesh/causeway/internal/logpipe"
)

// Folders that the chart mounts.
const (
	podDir      = "/run/causeway-pod"      // shared by agent and vip-guard of one pod
	nodeDir     = "/run/causeway"          // the node's own
	identityDir = "/etc/causeway/identity" // ConfigMap causeway-identity
	tokenFile   = "/var/run/secrets/causeway/token"
)

// newProcess is a verb that the chart runs until its context ends. It answers to no arguments.
func newProcess(use, short string, runE func(*cobra.Command, *slog.Logger) error) *cobra.Command {
	var level slog.Level
	c := &cobra.Command{Use: use, Short: short, GroupID: process, Args: cobra.NoArgs}
	c.Flags().TextVar(&level, "log-level", slog.LevelInfo, "debug or info")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := fromEnvironment(c); err != nil {
			return err
		}
		lines := logpipe.New(c.ErrOrStderr())
		defer lines.Close()
		return runE(c, newLogger(lines, level, use))
	}
	return c
}

// postQuantumFlag adds the flag of processes that dial peers.
func postQuantumFlag(c *cobra.Command, p *bool) {
	c.Flags().BoolVar(p, "post-quantum", true, "offer peers a post-quantum key share beside the classical one")
}

// limitFlag adds a flag for a limit. The value must not be negative; 0 means the default.
func limitFlag(c *cobra.Command, p *int, name, usage string) {
	c.Flags().Var((*limit)(p), name, usage)
}

// limit is the value of a limitFlag.
type limit int

func (l *limit) String() string { return strconv.Itoa(int(*l)) }
func (l *limit) Type() string   { return "number" }

func (l *limit) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 31)
	*l = limit(n)
	return err
}

// newProbe is a verb that asks a running process of the same pod whether it is ready.
func newProbe(short string, ask func() error) *cobra.Command {
	return &cobra.Command{
		Use: "ready", Short: short, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return ask() },
	}
}

// newLogger writes JSON lines to w, and the Kubernetes libraries' own remarks among them.
func newLogger(w io.Writer, level slog.Level, role string) *slog.Logger {
	h := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	l := slog.New(h).With("role", role)
	klog.SetSlogLogger(l)
	log.SetLogger(logr.FromSlogHandler(l.Handler()))
	return l
}

// environment names the variable that stands in for a flag which was not given. The chart sets them from the pod's
// own fields.
var environment = map[string]string{
	"node-ip":   "NODE_IP",
	"pod-name":  "POD_NAME",
	"pod-uid":   "POD_UID",
	"namespace": "POD_NAMESPACE",
}

// fromEnvironment sets the flags that were not given from the environment.
func fromEnvironment(c *cobra.Command) error {
	for _, flag := range slices.Sorted(maps.Keys(environment)) {
		variable, value := environment[flag], os.Getenv(environment[flag])
		if f := c.Flags().Lookup(flag); f == nil || f.Changed || value == "" {
			continue
		}
		if err := c.Flags().Set(flag, value); err != nil {
			return fmt.Errorf("environment variable %s: %w", variable, err)
		}
	}
	return nil
}

// fromPod adds flags that take a field of the pod, with the environment variable that the chart sets.
func fromPod(c *cobra.Command, flag string, to *string, what string) {
	c.Flags().StringVar(to, flag, "", what+" (default $"+environment[flag]+")")
}

// required returns an error that names the first flag without a value.
func required(c *cobra.Command, flags ...string) error {
	for _, name := range flags {
		if v := c.Flags().Lookup(name).Value.String(); v != "" && v != "[]" && v != "invalid IP" {
			continue
		}
		if env := environment[name]; env != "" {
			return fmt.Errorf("--%s or $%s must be set", name, env)
		}
		return fmt.Errorf("--%s must be set", name)
	}
	return nil
}

// prefixList is a flag of CIDRs, comma separated; an empty one is an empty list.
type prefixList []netip.Prefix

func (l *prefixList) Set(s string) error {
	*l = nil
	for text := range strings.SplitSeq(s, ",") {
		if text == "" {
			continue
		}
		p, err := parsePrefix(text)
		if err != nil {
			return err
		}
		*l = append(*l, p)
	}
	return nil
}

func (l *prefixList) Type() string { return "CIDRs" }

func (l *prefixList) String() string {
	texts := make([]string, len(*l))
	for i, p := range *l {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil && p != p.Masked() {
		err = errors.New("it has bits set beyond its length")
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a range of addresses: %w", s, err)
	}
	return p, nil
}
