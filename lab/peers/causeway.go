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
	pod       = "end"   // in both clusters: the client's, and the first server's
	mirror    = "end-east"
	mirrorAll = "ends-east" // of all servers
)

// A pair is two linked clusters with Causeway: west has the client, east the server.
type pair struct {
	bench      *bench
	west, east *lab.Cluster
	netns      string // of the client's pod
	targets    targets
	server     int // process id

	// Only for peers in the lab.
	way    way
	direct endpoint // leads to the server
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

// startPods starts the same pod in both clusters and further servers in east. It exports
// those in east and waits for the mirrors in west. In west only the pod's network is used.
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
	_, err = kubectl(ctx, p.east, "-n", namespace, "scale", "deployment/more", fmt.Sprintf("--replicas=%d", servers-1))
	if err != nil {
		return err
	}
	if _, err := kubectl(ctx, p.east, "-n", namespace, "rollout", "status", "deployment/more", "--timeout=120s"); err != nil {
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
	tcp, err := p.mirrorAddress(ctx, mirror)
	if err != nil {
		return err
	}
	all, err := p.mirrorAddress(ctx, mirrorAll)
	p.targets = targets{tcp, all, all}
	if err != nil || !p.bench.measuresPeersInLab() {
		return err
	}
	return p.preparePeers(ctx)
}

// mirrorAddress waits for a mirror in west.
func (p *pair) mirrorAddress(ctx context.Context, name string) (address string, err error) {
	err = poll(ctx, time.Minute, 500*time.Millisecond, func() error {
		ip, err := kubectl(ctx, p.west, "-n", namespace, "get", "service", name,
			"-o", "jsonpath={.spec.clusterIP}")
		address = fmt.Sprintf("%s:%d", ip, serverPort)
		return err
	})
	return address, err
}

// A part is the pods of one component in one cluster, which have a role in the chain.
type part struct {
	cluster   *lab.Cluster
	role      string
	component string // the label of the pods and the name of their container
}

// causewayPath replaces the agents of both clusters and the gateways of east, so that
// their memory begins as small as that of a peer that was just started.
func (b *bench) causewayPath(ctx context.Context) (*path, error) {
	p := b.pair
	parts := []part{
		{p.west, roleA, "agent"},
		{p.east, roleGateway, "gateway"},
		{p.east, roleB, "agent"},
	}
	pids := make([][]int, len(parts))
	g, gctx := errgroup.WithContext(ctx)
	for i, x := range parts {
		g.Go(func() (err error) {
			pids[i], err = x.replace(gctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := &path{
		netns:   p.netns,
		targets: p.targets,
		server:  p.server,
		running: func() error { return nil }, // the kubelet starts what has ended
		stop:    func() {},
	}
	for i, x := range parts {
		for _, pid := range pids[i] {
			out.proxies = append(out.proxies, proxy{role: x.role, pid: pid})
		}
	}
	return out, nil
}

// replace deletes the pods and returns the processes of those that take their place. The
// short grace period does no harm, because no connection is open.
func (x part) replace(ctx context.Context) ([]int, error) {
	selector := "app.kubernetes.io/component=" + x.component
	deleted, err := kubectl(ctx, x.cluster, "-n", system, "delete", "pod",
		"-l", selector, "--grace-period=1", "-o", "name")
	if err != nil {
		return nil, err
	}
	count := strings.Count(deleted, "\n")
	var pids []int
	err = poll(ctx, time.Minute, 200*time.Millisecond, func() error {
		pods, err := kubectl(ctx, x.cluster, "-n", system, "get", "pods", "-l", selector,
			"-o", `jsonpath={range .items[*]}{.metadata.name} `+
				`{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err != nil {
			return err
		}
		names := readyPods(pods)
		if len(names) != count {
			return fmt.Errorf("%d of %d pods of %s's %s are ready",
				len(names), count, x.cluster.Name(), x.component)
		}
		pids = nil
		for _, name := range names {
			found, err := x.cluster.FindContainer(ctx, system, name, x.component)
			if err != nil {
				return err
			}
			pids = append(pids, found.PID)
		}
		return nil
	})
	return pids, err
}

// readyPods returns the names in lines such as "NAME True".
func readyPods(lines string) []string {
	var out []string
	for line := range strings.Lines(lines) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == "True" {
			out = append(out, f[0])
		}
	}
	return out
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
