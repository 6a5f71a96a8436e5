// Command shop is the demo's and the lab tests' services, all in one small binary.
//
//	shop bar       HTTP/1 and HTTP/2 on :8080, gRPC on :9000, a server-first greeter on :7000, an echo on :7001
//	shop client    does nothing, so that there is a pod to call from
//
// What always holds:
//   - An answer names the pod and the cluster that gave it, from $POD_NAME and $CLUSTER.
//   - With $SLOWNESS, the work that callers of /who ask for takes that many times as long.
//   - Downloads of one length are the same bytes everywhere; a download that ends early ends as an error.
//   - An echo passes on the end of what it was sent, and ends its own side only then.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv); err != nil {
		fmt.Fprintf(os.Stderr, "shop: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string) error {
	if len(args) != 1 {
		return errors.New("say which: shop bar, or shop client")
	}
	switch args[0] {
	case "bar":
		slowness, err := strconv.Atoi(cmp.Or(getenv("SLOWNESS"), "1"))
		if err != nil {
			return fmt.Errorf("SLOWNESS: %w", err)
		}
		return bar(ctx, getenv("POD_NAME"), getenv("CLUSTER"), slowness)
	case "client":
		<-ctx.Done()
		return nil
	}
	return fmt.Errorf("%q is not a role: want bar or client", args[0])
}

// bar serves its ports until ctx ends.
func bar(ctx context.Context, pod, cluster string, slowness int) error {
	group, ctx := errgroup.WithContext(ctx)
	listen := func(address string, serve func(context.Context, net.Listener) error) {
		group.Go(func() error {
			ln, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			return serve(ctx, ln)
		})
	}
	listen(":8080", func(ctx context.Context, ln net.Listener) error {
		return serveHTTP(ctx, ln, handler(pod, cluster, slowness))
	})
	listen(":9000", func(ctx context.Context, ln net.Listener) error { return serveGRPC(ctx, ln, pod) })
	listen(":7000", func(ctx context.Context, ln net.Listener) error {
		return accept(ctx, ln, func(c net.Conn) error { return greet(c, pod, cluster) })
	})
	listen(":7001", func(ctx context.Context, ln net.Listener) error { return accept(ctx, ln, echo) })
	slog.Info("bar opens", "pod", pod, "cluster", cluster)
	return group.Wait()
}

// serveHTTP serves h on ln until ctx ends; requests under way then end with it.
func serveHTTP(ctx context.Context, ln net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
