package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/lab"
)

const (
	system    = "causeway-system"
	namespace = "bench" // of the pods of config/workload.yaml
	pod       = "end"   // in both clusters: the client's and the server's
	mirror    = "end-east"
)

// A pair is two linked clusters with Causeway: west has the client, east the server.
type pair struct {
	bench      *bench
	west, east *lab.Cluster
	netns      string // of the client's pod
	target     string // address and port of the mirror
	server     int    // process id
}

func (b *bench) labOptions() lab.Options {
	return lab.Options{
		Name:     b.name,
		Clusters: []string{"west", "east"},
		Progress: func(line string) { b.progress("%s", line) },
	}
}

// raisePair makes the lab, installs and links Causeway, and starts the pods.
func (b *bench) raisePair(ctx context.Context) (*pair, error) {
	ctx, cancel := context.WithTimeout(ctx, 12*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, b.labOptions())
	if err != nil {
		return nil, fmt.Errorf("raise the lab: %w", err)
	}
	p := &pair{bench: b, west: l.Cluster("west"), east: l.Cluster("east")}
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range []*lab.Cluster{p.west, p.east} {
		g.Go(func() error { return p.install(gctx, c) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	b.progress("Causeway is installed in both clusters")
	if err := errors.Join(p.link(ctx, p.west, p.east), p.link(ctx, p.east, p.west)); err != nil {
		return nil, err
	}
	return p, p.startPods(ctx)
}

// install loads the images and runs `causeway install`, which returns once all is ready.
func (p *pair) install(ctx context.Context, c *lab.Cluster) error {
	for _, image := range []string{"causeway.tar", "trafficgen.tar"} {
		if err := c.LoadImage(ctx, filepath.Join(p.bench.images, image)); err != nil {
			return err
		}
	}
	_, tag, ok := strings.Cut(p.bench.image, ":")
	if !ok {
		return fmt.Errorf("image %q has no tag: run hack/bench-peers, which names it", p.bench.image)
	}
	_, err := p.causeway(ctx, c, "install", "--cluster-name", c.Name(), "--set", "image.tag="+tag)
	return err
}

// causeway runs the causeway command against a cluster.
func (p *pair) causeway(ctx context.Context, c *lab.Cluster, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bench.bin, "causeway"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig())
	return output(cmd)
}

// link applies the public half of one cluster in the other.
func (p *pair) link(ctx context.Context, from, to *lab.Cluster) error {
	err := poll(ctx, time.Minute, 500*time.Millisecond, func() error {
		half, err := p.causeway(ctx, from, "identity")
		if err != nil {
			return err
		}
		if !strings.Contains(half, "gateways:") {
			return fmt.Errorf("%s does not know the address of its gateway yet", from.Name())
		}
		return apply(ctx, to, half)
	})
	if err != nil {
		return fmt.Errorf("link %s to %s: %w", to.Name(), from.Name(), err)
	}
	return nil
}

func apply(ctx context.Context, c *lab.Cluster, manifest string) error {
	cmd := c.Kubectl(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	_, err := output(cmd)
	return err
}

func kubectl(ctx context.Context, c *lab.Cluster, args ...string) (string, error) {
	return output(c.Kubectl(ctx, args...))
}

// startPods starts the same pod in both clusters, exports the one in east and waits for
// its mirror in west. In west only the pod's network is used.
func (p *pair) startPods(ctx context.Context) error {
	workload, err := configs.ReadFile("config/workload.yaml")
	if err != nil {
		return err
	}
	service, err := configs.ReadFile("config/service.yaml")
	if err != nil {
		return err
	}
	for _, c := range []*lab.Cluster{p.west, p.east} {
		if err := apply(ctx, c, string(workload)); err != nil {
			return err
		}
	}
	if err := apply(ctx, p.east, string(service)); err != nil {
		return err
	}
	for _, c := range []*lab.Cluster{p.west, p.east} {
		_, err := kubectl(ctx, c, "-n", namespace, "wait", "pod/"+pod,
			"--for=condition=Ready", "--timeout=60s")
		if err != nil {
			return err
		}
	}
	if p.netns, err = p.west.PodNetns(ctx, namespace, pod); err != nil {
		return err
	}
	// The peers' client has the same settings.
	if err := setSysctls(ctx, p.netns, manyConnections); err != nil {
		return err
	}
	server, err := p.east.FindContainer(ctx, namespace, pod, "trafficgen")
	if err != nil {
		return err
	}
	p.server = server.PID
	return poll(ctx, time.Minute, 500*time.Millisecond, func() error {
		address, err := kubectl(ctx, p.west, "-n", namespace, "get", "service", mirror,
			"-o", "jsonpath={.spec.clusterIP}")
		p.target = fmt.Sprintf("%s:%d", address, serverPort)
		return err
	})
}

// causewayPath replaces the agents of both clusters and the gateways of east, so that
// their memory begins as small as that of a peer that was just started.
func (b *bench) causewayPath(ctx context.Context) (*path, error) {
	p := b.pair
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return restart(gctx, p.west, "daemonset/causeway-agent") })
	g.Go(func() error { return restart(gctx, p.east, "daemonset/causeway-agent") })
	g.Go(func() error { return restart(gctx, p.east, "deployment/causeway-gateway") })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := &path{
		netns:   p.netns,
		target:  p.target,
		server:  p.server,
		running: func() error { return nil }, // the kubelet starts what has ended
		stop:    func() {},
	}
	for _, part := range []struct {
		cluster         *lab.Cluster
		role, component string
	}{
		{p.west, roleA, "agent"},
		{p.east, roleGateway, "gateway"},
		{p.east, roleB, "agent"},
	} {
		pids, err := containerPIDs(ctx, part.cluster, part.component)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			out.proxies = append(out.proxies, proxy{role: part.role, pid: pid})
		}
	}
	return out, nil
}

func restart(ctx context.Context, c *lab.Cluster, workload string) error {
	if _, err := kubectl(ctx, c, "-n", system, "rollout", "restart", workload); err != nil {
		return err
	}
	_, err := kubectl(ctx, c, "-n", system, "rollout", "status", workload, "--timeout=120s")
	return err
}

// containerPIDs returns the processes of a component's pods, once none of them is being
// deleted. The container is named like the component.
func containerPIDs(ctx context.Context, c *lab.Cluster, component string) ([]int, error) {
	var out []int
	err := poll(ctx, time.Minute, 500*time.Millisecond, func() error {
		pods, err := kubectl(ctx, c, "-n", system, "get", "pods",
			"-l", "app.kubernetes.io/component="+component,
			"-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{"\n"}{end}`)
		if err != nil {
			return err
		}
		out = nil
		for line := range strings.Lines(pods) {
			f := strings.Fields(line)
			if len(f) > 1 {
				return fmt.Errorf("pod %s of %s is still being deleted", f[0], c.Name())
			}
			found, err := c.FindContainer(ctx, system, f[0], component)
			if err != nil {
				return err
			}
			out = append(out, found.PID)
		}
		if len(out) == 0 {
			return fmt.Errorf("%s has no %s", c.Name(), component)
		}
		return nil
	})
	return out, err
}

// setRTT sets the round trip between the clusters.
func (b *bench) setRTT(ctx context.Context, rtt time.Duration) error {
	o := b.labOptions()
	o.WAN = &lab.Weather{RTT: rtt}
	if _, err := lab.Up(ctx, o); err != nil {
		return fmt.Errorf("set the WAN's round trip: %w", err)
	}
	return nil
}
