package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/causeway-mesh/causeway/lab"
)

// apiServer is the address of each cluster's API server in the cluster's own network.
const apiServer = "172.30.0.2:6443"

// A cluster is one of the pair, with an administrator's clients. The clients dial the API
// server from the network of the cluster's node, as the controllers do, and not through
// the lab's forwarder, which would add a copy to every byte.
type cluster struct {
	*lab.Cluster
	api *kubernetes.Clientset // speaks protobuf, as the controllers do for built-in kinds
	dyn dynamic.Interface
	raw *rest.RESTClient // for watches whose bytes are counted, and for metrics
}

func newCluster(c *lab.Cluster) (*cluster, error) {
	cfg, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	ns, err := c.NodeNetns("")
	if err != nil {
		return nil, err
	}
	cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialFrom(ctx, ns, network, apiServer)
	}
	cfg.WarningHandler = rest.NoWarnings{}
	out := &cluster{Cluster: c}
	if out.dyn, err = dynamic.NewForConfig(cfg); err != nil {
		return nil, fmt.Errorf("create a dynamic client of %s: %w", c.Name(), err)
	}
	plain := rest.CopyConfig(cfg)
	plain.NegotiatedSerializer = rawSerializer()
	if out.raw, err = rest.UnversionedRESTClientFor(plain); err != nil {
		return nil, fmt.Errorf("create a raw client of %s: %w", c.Name(), err)
	}
	typed := rest.CopyConfig(cfg)
	typed.ContentType = "application/vnd.kubernetes.protobuf"
	typed.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	if out.api, err = kubernetes.NewForConfig(typed); err != nil {
		return nil, fmt.Errorf("create a client of %s: %w", c.Name(), err)
	}
	return out, nil
}

// dialFrom dials from the network namespace at path.
func dialFrom(ctx context.Context, path, network, address string) (conn net.Conn, err error) {
	nerr := inNetns(path, func() { conn, err = new(net.Dialer).DialContext(ctx, network, address) })
	return conn, errors.Join(nerr, err)
}

// listenIn listens in the network namespace at path.
func listenIn(path, address string) (ln net.Listener, err error) {
	nerr := inNetns(path, func() { ln, err = net.Listen("tcp", address) })
	return ln, errors.Join(nerr, err)
}

// inNetns calls f in the network namespace at path. A socket stays in the namespace in
// which it was opened.
func inNetns(path string, f func()) error {
	done := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine and no other
		// goroutine runs in the foreign namespace.
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	return <-done
}

// kubectl runs a kubectl command with the given standard input.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) error {
	cmd := c.Kubectl(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	_, err := output(cmd)
	return err
}

// causeway runs the causeway command of the repository against the cluster and returns its
// standard output.
func (c *cluster) causeway(ctx context.Context, bin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "causeway"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return output(cmd)
}

// output runs a command and returns its standard output. The error includes what the
// command wrote to its standard error.
func output(cmd *exec.Cmd) (string, error) {
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(log.String()))
	}
	return out.String(), nil
}

// poll calls do until it returns nil, for at most limit. Its error wraps the last error
// of do.
func poll(ctx context.Context, limit, interval time.Duration, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := do()
		if err == nil {
			return nil
		}
		if sleep(ctx, interval) != nil {
			return fmt.Errorf("gave up after %v: %w", limit, err)
		}
	}
}

// sleep waits for d. It returns the context's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
