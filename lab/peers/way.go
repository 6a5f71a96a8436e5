package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// A way is where the parts of a peer's chain are and how each reaches the next.
type way struct {
	client        string // network namespace, a name or a path
	a, gateway, b spot
	servers       []endpoint
	server        int  // process id of the first server
	serverInLab   bool // it is in the lab's cgroup
}

// A spot is where a proxy listens.
type spot struct {
	netns, address string
	reach          func(port int) endpoint // where the part before it connects to
}

type endpoint struct {
	Host string
	Port int
}

func (e endpoint) String() string { return fmt.Sprintf("%s:%d", e.Host, e.Port) }

// plainSpot returns a spot that is reached at the address and the ports on which its
// proxy listens.
func plainSpot(netns, address string) spot {
	return spot{netns, address, func(port int) endpoint { return endpoint{address, port} }}
}

// ownWay returns the way through the benchmark's own namespaces.
func (b *bench) ownWay() way {
	w := b.places.way()
	w.server = b.server.pid()
	return w
}

func (b *bench) measuresPeersInLab() bool {
	return slices.ContainsFunc(b.chains, func(chain string) bool {
		return chain != chainCauseway && slices.Contains(labChains, chain)
	})
}

// gatewayServices are the Services of config/peers.yaml in front of the peers' gateway, by
// the port of the gateway. The firewall of the lab's WAN lets one port through, so each
// port has a Service with an address of its own.
var gatewayServices = map[int]string{
	tcpPort:   "gateway-tcp",
	http1Port: "gateway-http1",
	http2Port: "gateway-http2",
}

// preparePeers creates what the peers need in the lab, and sets the way that they share
// with Causeway. A is where the agent of west is, and B is where the agent of east is.
// The gateway is a pod of east behind LoadBalancer Services, as Causeway's gateway is.
func (p *pair) preparePeers(ctx context.Context) error {
	manifest, err := configs.ReadFile("config/peers.yaml")
	if err != nil {
		return err
	}
	if err := apply(ctx, p.east, string(manifest)); err != nil {
		return err
	}
	if _, err := kubectl(ctx, p.east, "-n", namespace, "wait", "pod/gateway",
		"--for=condition=Ready", "--timeout=60s"); err != nil {
		return err
	}
	w := way{client: p.netns, server: p.server, serverInLab: true}
	if w.a, err = nodeSpot(ctx, p.west); err != nil {
		return err
	}
	if w.b, err = nodeSpot(ctx, p.east); err != nil {
		return err
	}
	if w.gateway, err = p.gatewaySpot(ctx); err != nil {
		return err
	}
	for _, selector := range []string{"app=end", "app=more"} {
		addresses, err := kubectl(ctx, p.east, "-n", namespace, "get", "pods", "-l", selector,
			"-o", "jsonpath={.items[*].status.podIP}")
		if err != nil {
			return err
		}
		for _, address := range strings.Fields(addresses) {
			w.servers = append(w.servers, endpoint{address, serverPort})
		}
	}
	if len(w.servers) != servers {
		return fmt.Errorf("%d servers have an address, want %d", len(w.servers), servers)
	}
	p.way = w
	p.direct, err = p.loadBalancer(ctx, "direct")
	return err
}

// nodeSpot returns the spot in the network of the first node, at the node's own address.
func nodeSpot(ctx context.Context, c *lab.Cluster) (spot, error) {
	netns, err := c.NodeNetns("")
	if err != nil {
		return spot{}, err
	}
	address, err := kubectl(ctx, c, "get", "node", c.Nodes()[0],
		"-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	if err != nil {
		return spot{}, err
	}
	// A dual-stack node lists its IPv4 address first.
	fields := strings.Fields(address)
	if len(fields) == 0 {
		return spot{}, fmt.Errorf("node %s has no address", c.Nodes()[0])
	}
	return plainSpot(netns, fields[0]), setSysctls(ctx, netns, manyConnections)
}

func (p *pair) gatewaySpot(ctx context.Context) (spot, error) {
	netns, err := p.east.PodNetns(ctx, namespace, "gateway")
	if err != nil {
		return spot{}, err
	}
	address, err := kubectl(ctx, p.east, "-n", namespace, "get", "pod", "gateway",
		"-o", "jsonpath={.status.podIP}")
	if err != nil {
		return spot{}, err
	}
	balancers := map[int]endpoint{}
	for port, service := range gatewayServices {
		if balancers[port], err = p.loadBalancer(ctx, service); err != nil {
			return spot{}, err
		}
	}
	reach := func(port int) endpoint { return balancers[port] }
	return spot{netns, address, reach}, setSysctls(ctx, netns, manyConnections)
}

// loadBalancer waits for the address of a LoadBalancer Service of east.
func (p *pair) loadBalancer(ctx context.Context, service string) (out endpoint, err error) {
	err = poll(ctx, time.Minute, 200*time.Millisecond, func() error {
		address, err := kubectl(ctx, p.east, "-n", namespace, "get", "service", service,
			"-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if err == nil && address == "" {
			err = errors.New("it has no address yet")
		}
		out = endpoint{address, lab.GatewayPort}
		return err
	})
	if err != nil {
		return endpoint{}, fmt.Errorf("wait for Service %s: %w", service, err)
	}
	return out, nil
}

// directPath leads from the client's pod to the server's pod without a proxy, on the way
// of Causeway between the clusters.
func (p *pair) directPath() *path {
	to := p.direct.String()
	return &path{
		netns:   p.netns,
		targets: targets{to, to, to},
		server:  p.server,
		running: func() error { return nil }, // the kubelet starts what has ended
		stop:    func() {},
	}
}
