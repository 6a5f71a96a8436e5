package lab

import (
	"fmt"
	"net/netip"
)

// Ranges that every cluster shares: nothing about an address tells which cluster it is in.
const (
	PodRange     = "10.244.0.0/16"
	ServiceRange = "10.96.0.0/16"
	NodeRange    = "172.30.0.0/24"

	// largeServiceRange is that of a large cluster: ServiceRange has 65,534 addresses.
	largeServiceRange = "10.96.0.0/14"

	// Their counterparts in clusters of both IP families.
	PodRange6     = "fd00:10:244::/48"
	ServiceRange6 = "fd00:10:96::/112"
	NodeRange6    = "fd00:172:30::/64"

	// GatewayPort is the one TCP port that the WAN lets through.
	GatewayPort = 4143
	// PublicRange holds every cluster's own block of LoadBalancer addresses.
	PublicRange = "198.18.0.0/16"

	dnsServiceIP = "10.96.0.10"
	apiServiceIP = "10.96.0.1"
	controlIP    = "172.30.0.2"
	routerIP     = "172.30.0.1"
	routerIP6    = "fd00:172:30::1"
	controlIP6   = "fd00:172:30::2"
	apiPort      = 6443

	maxClusters = 200
	maxNodes    = 50
)

// wanPlan is a cluster's place in the WAN; index counts from 1 and never changes during a cluster's life.
type wanPlan struct {
	Block   netip.Prefix // the public /24
	Masq    netip.Addr   // what the cluster's own connections come from; in Block
	FirstLB netip.Addr   // first and last address for LoadBalancer Services; in Block
	LastLB  netip.Addr
	WANEnd  netip.Prefix // the link between WAN and router
	Router  netip.Prefix
}

func planWAN(index int) wanPlan {
	n := byte(index)
	return wanPlan{
		Block:   netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, n, 0}), 24),
		Masq:    netip.AddrFrom4([4]byte{198, 18, n, 1}),
		FirstLB: netip.AddrFrom4([4]byte{198, 18, n, 10}),
		LastLB:  netip.AddrFrom4([4]byte{198, 18, n, 250}),
		WANEnd:  netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, n, 1}), 30),
		Router:  netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, n, 2}), 30),
	}
}

// nodeIP is the same for the i-th node of every cluster; i counts from 1.
func nodeIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 30, 0, byte(10 + i)}) }

// nodeIP6 is likewise.
func nodeIP6(i int) netip.Addr {
	a := prefix(NodeRange6).Addr().As16()
	a[15] = byte(16 + i)
	return netip.AddrFrom16(a)
}

// podCIDR6 is the i-th node's share of PodRange6.
func podCIDR6(i int) netip.Prefix {
	a := prefix(PodRange6).Addr().As16()
	a[7] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// podCIDR is the i-th node's share of PodRange.
func podCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i - 1), 0}), 24)
}

// Plan is what a lab was asked to be. It is written before anything is made, and kept until everything is gone.
type Plan struct {
	Clusters []ClusterPlan `json:"clusters"`
	WAN      Weather       `json:"wan"`
}

// ClusterPlan is one cluster of a Plan.
type ClusterPlan struct {
	Name    string `json:"name"`
	Index   int    `json:"index"`   // its block in the WAN, from 1
	Nodes   int    `json:"nodes"`   // at least 1
	APIPort int    `json:"apiPort"` // on the machine's loopback
	Shape
}

// Extend returns the plan with the named clusters in it; those already there keep their index, nodes, port and shape.
// freePort is called once for each new cluster.
func (p Plan) Extend(clusters []string, nodes int, shape Shape, freePort func() (int, error)) (Plan, error) {
	if err := shape.check(); err != nil {
		return Plan{}, err
	}
	if nodes < 1 || nodes > maxNodes {
		return Plan{}, fmt.Errorf("%d nodes: want 1 to %d", nodes, maxNodes)
	}
	out := Plan{Clusters: append([]ClusterPlan(nil), p.Clusters...), WAN: p.WAN}
	for _, name := range clusters {
		if err := CheckClusterName(name); err != nil {
			return Plan{}, err
		}
		if _, ok := out.find(name); ok {
			continue
		}
		if len(out.Clusters) == maxClusters {
			return Plan{}, fmt.Errorf("cluster %q: a lab holds %d clusters at most", name, maxClusters)
		}
		port, err := freePort()
		if err != nil {
			return Plan{}, fmt.Errorf("find a port for the API of cluster %q: %w", name, err)
		}
		out.Clusters = append(out.Clusters, ClusterPlan{Name: name, Index: out.freeIndex(), Nodes: nodes, APIPort: port, Shape: shape})
	}
	return out, nil
}

func (p Plan) find(name string) (ClusterPlan, bool) {
	for _, c := range p.Clusters {
		if c.Name == name {
			return c, true
		}
	}
	return ClusterPlan{}, false
}

// nodes counts those of all clusters.
func (p Plan) nodes() (n int) {
	for _, c := range p.Clusters {
		n += c.Nodes
	}
	return n
}

func (p Plan) freeIndex() int {
	used := map[int]bool{}
	for _, c := range p.Clusters {
		used[c.Index] = true
	}
	for i := 1; ; i++ {
		if !used[i] {
			return i
		}
	}
}
