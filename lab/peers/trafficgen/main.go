// Command trafficgen is the server and the client of `make bench-peers`. The same static
// binary runs in a pod, in a pod's network and in the network namespaces of the peers.
//
//	trafficgen serve [-listen :9000]
//	trafficgen load -target ADDRESS -pattern connect [flags]   prints a result as JSON
//	trafficgen hold -target ADDRESS -n 1000                    holds connections until stdin ends
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/lab/peers/traffic"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "trafficgen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("want a command: serve, load or hold")
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:])
	case "load":
		return load(ctx, args[1:])
	case "hold":
		return hold(ctx, args[1:])
	}
	return fmt.Errorf("unknown command %q: want serve, load or hold", args[0])
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", ":9000", "addresses and ports to listen on, separated by commas")
	_ = flags.Parse(args) // exits on an error
	g, ctx := errgroup.WithContext(ctx)
	for address := range strings.SplitSeq(*listen, ",") {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		g.Go(func() error { return traffic.Serve(ctx, ln) })
	}
	return g.Wait()
}

func load(ctx context.Context, args []string) error {
	var o traffic.Options
	var pids string
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	flags.StringVar(&o.Target, "target", "", "address and port to connect to")
	flags.StringVar(&o.Pattern, "pattern", traffic.Connect, "connect, kept, down, up, fetch, http1 or grpc")
	flags.IntVar(&o.Concurrency, "concurrency", 1, "connections at a time, or calls of grpc")
	flags.DurationVar(&o.WarmUp, "warm-up", 500*time.Millisecond, "time before the window")
	flags.DurationVar(&o.Window, "window", 3*time.Second, "time that is measured")
	flags.DurationVar(&o.Pause, "pause", 0, "pause after each operation of connect")
	flags.StringVar(&pids, "pids", "", "processes whose CPU time is recorded, separated by commas")
	flags.StringVar(&o.Cgroup, "cgroup", "", "top-level cgroup whose CPU time is recorded")
	_ = flags.Parse(args)
	for word := range strings.SplitSeq(pids, ",") {
		if word == "" {
			continue
		}
		pid, err := strconv.Atoi(word)
		if err != nil {
			return fmt.Errorf("-pids: %w", err)
		}
		o.PIDs = append(o.PIDs, pid)
	}
	result, err := traffic.Load(ctx, o)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// hold writes a line once all connections are open and have been answered.
func hold(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("hold", flag.ExitOnError)
	target := flags.String("target", "", "address and port to connect to")
	pattern := flags.String("pattern", traffic.Kept, "kept, http1 or down: what each connection carries once; the readers of down then stall")
	n := flags.Int("n", 1000, "connections")
	_ = flags.Parse(args)
	conns, err := traffic.Hold(ctx, *target, *pattern, *n)
	if err != nil {
		return err
	}
	defer traffic.CloseAll(conns)
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
