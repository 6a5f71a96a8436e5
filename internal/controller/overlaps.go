package controller

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// vipRangeOverlaps is the reason of a problem: something of this cluster has an
// address in the range of virtual IPs, whose traffic agents would take.
const vipRangeOverlaps = "VIPRangeOverlaps"

// checkRanges parses the ranges of virtual IPs and refuses those that overlap each
// other or a range of the cluster.
func checkRanges(cidrs []string, clusterRanges []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, cidr := range cidrs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("range of virtual IPs: %w", err)
		}
		for _, other := range slices.Concat(clusterRanges, out) {
			if p.Overlaps(other) {
				return nil, fmt.Errorf("range of virtual IPs %v overlaps %v, which is in use: install "+
					"with another vipCIDR", p, other)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// overlaps holds the Services and pods that have an address in a range of virtual IPs.
type overlaps struct {
	ranges []netip.Prefix
	found  map[overlap]bool
}

// overlap names an object in a way that people read.
type overlap struct {
	kind string
	key  catalog.Key
}

func newOverlaps(ranges []netip.Prefix) *overlaps {
	return &overlaps{ranges: ranges, found: make(map[overlap]bool)}
}

func (o *overlaps) setService(k catalog.Key, s *corev1.Service) {
	o.set(overlap{"Service", k}, s != nil && slices.ContainsFunc(s.Spec.ClusterIPs, o.contains))
}

func (o *overlaps) setPod(k catalog.Key, p *corev1.Pod) {
	o.set(overlap{"pod", k}, p != nil && (o.contains(p.Status.PodIP) || o.contains(p.Status.HostIP)))
}

func (o *overlaps) set(which overlap, overlaps bool) {
	if overlaps {
		o.found[which] = true
	} else {
		delete(o.found, which)
	}
}

func (o *overlaps) contains(address string) bool {
	ip, err := netip.ParseAddr(address)
	return err == nil && slices.ContainsFunc(o.ranges,
		func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

// problem names the first overlap; nil: there is none.
func (o *overlaps) problem() *v1alpha1.ServiceProblem {
	var first overlap
	for which := range o.found {
		if first.kind == "" || cmp.Or(which.key.Compare(first.key), cmp.Compare(which.kind, first.kind)) < 0 {
			first = which
		}
	}
	if first.kind == "" {
		return nil
	}
	return &v1alpha1.ServiceProblem{
		Service: first.key.String(), Reason: vipRangeOverlaps,
		Message: fmt.Sprintf("the %s has an address in the range of virtual IPs, so no new mirror is "+
			"made: install with another vipCIDR", first.kind),
	}
}
