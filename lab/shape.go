package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// What a cluster's network may be made of.
const (
	NFTables = "nftables" // kube-proxy's modes
	IPTables = "iptables"
	Bridge   = "bridge" // the CNI plugin that joins a node's pods by a bridge
	PTP      = "ptp"    // the one that gives each pod an interface of its own on the node
)

// Shape is how a cluster is made. It never changes during a cluster's life. The zero value is a bridge, kube-proxy in nftables
// mode, IPv4 alone, a gateway's port that the WAN can reach, and memory for a few hundred objects.
type Shape struct {
	ProxyMode string `json:"proxyMode,omitempty"` // NFTables or IPTables; empty means NFTables
	CNI       string `json:"cni,omitempty"`       // Bridge or PTP; empty means Bridge
	DualStack bool   `json:"dualStack,omitempty"` // pods, Services and nodes have IPv6 addresses too; the WAN has none
	Private   bool   `json:"private,omitempty"`   // nobody in the WAN can open a connection to the cluster; it can to others
	Large     bool   `json:"large,omitempty"`     // Kubernetes processes get the memory and the rates that tens of thousands of objects need
}

func (s Shape) check() error {
	switch s.ProxyMode {
	case "", NFTables, IPTables:
	default:
		return fmt.Errorf("kube-proxy mode %q: want %s or %s", s.ProxyMode, NFTables, IPTables)
	}
	switch s.CNI {
	case "", Bridge, PTP:
	default:
		return fmt.Errorf("CNI %q: want %s or %s", s.CNI, Bridge, PTP)
	}
	return nil
}

// pods returns the i-th node's ranges of pod addresses, that of IPv4 first.
func (s Shape) pods(i int) []netip.Prefix { return s.both(podCIDR(i), podCIDR6(i)) }

// allPods and services return the ranges of all pods, and of Services.
func (s Shape) allPods() []netip.Prefix { return s.both(prefix(PodRange), prefix(PodRange6)) }
func (s Shape) services() []netip.Prefix {
	if s.Large {
		return s.both(prefix(largeServiceRange), prefix(ServiceRange6))
	}
	return s.both(prefix(ServiceRange), prefix(ServiceRange6))
}

// node returns the addresses of the i-th node, each with its network's length.
func (s Shape) node(i int) []netip.Prefix {
	return s.both(netip.PrefixFrom(nodeIP(i), 24), netip.PrefixFrom(nodeIP6(i), 64))
}

func (s Shape) both(v4, v6 netip.Prefix) []netip.Prefix {
	if s.DualStack {
		return []netip.Prefix{v4, v6}
	}
	return []netip.Prefix{v4}
}

// heapLimit returns what limits the Go heap of one of the cluster's processes, given in
// MiB for a cluster of a few hundred objects. A process that works at its limit spends
// its time in the garbage collector, so the limits of a large cluster are eight times as
// high.
func (s Shape) heapLimit(mebibytes int) string {
	if s.Large {
		mebibytes *= 8
	}
	return fmt.Sprintf("%dMiB", mebibytes)
}

// proxyPeriod is the shortest time between two changes of kube-proxy's rules. It is
// kube-proxy's default, except in a large cluster, where each change keeps both
// processors busy for seconds.
func (s Shape) proxyPeriod() string {
	if s.Large {
		return "30s"
	}
	return "1s"
}

// memory returns heapLimit as an environment variable of a process.
func (s Shape) memory(mebibytes int) string { return "GOMEMLIMIT=" + s.heapLimit(mebibytes) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// list joins ranges as Kubernetes' flags want them.
func joined(ranges []netip.Prefix) string {
	var out []string
	for _, r := range ranges {
		out = append(out, r.String())
	}
	return strings.Join(out, ",")
}

// addresses joins the addresses alone.
func addresses(ranges []netip.Prefix) string {
	var out []string
	for _, r := range ranges {
		out = append(out, r.Addr().String())
	}
	return strings.Join(out, ",")
}
