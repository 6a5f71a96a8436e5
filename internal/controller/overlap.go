package controller

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

// vipRangeOverlaps is the reason of a problem: something of this cluster has an
// address in the range of virtual IPs, whose traffic agents would take.
const vipRangeOverlaps = "VIPRangeOverlaps"

// checkRanges parses the ranges of virtual IPs and refuses those that overlap each
// other or what is taken.
func checkRanges(cidrs []string, taken []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, cidr := range cidrs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("range of virtual IPs: %w", err)
		}
		for _, other := range slices.Concat(taken, out) {
			if p.Overlaps(other) {
				return nil, fmt.Errorf("range of virtual IPs %v overlaps %v, which is in use: install with another vipCIDR", p, other)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// overlap returns the first Service or pod with an address in one of ranges; nil:
// there is none.
func overlap(ranges []netip.Prefix, s *snapshot) *v1alpha1.ServiceProblem {
	holds := func(address string) bool {
		ip, err := netip.ParseAddr(address)
		return err == nil && slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
	}
	kind, first := "", ""
	consider := func(k, name string) {
		if first == "" || name < first {
			kind, first = k, name
		}
	}
	for i := range s.services {
		if svc := &s.services[i]; slices.ContainsFunc(svc.Spec.ClusterIPs, holds) {
			consider("Service", svc.Namespace+"/"+svc.Name)
		}
	}
	for i := range s.pods {
		if p := &s.pods[i]; holds(p.Status.PodIP) || holds(p.Status.HostIP) {
			consider("pod", p.Namespace+"/"+p.Name)
		}
	}
	if first == "" {
		return nil
	}
	return &v1alpha1.ServiceProblem{
		Service: first, Reason: vipRangeOverlaps,
		Message: fmt.Sprintf("the %s has an address in the range of virtual IPs, so no new mirror is made: install with another vipCIDR", kind),
	}
}

// onlyGiven leaves of wants what has its VIPs already.
func onlyGiven(wants []ledger.Peer, book ledger.Book) []ledger.Peer {
	out := slices.Clone(wants)
	for i, p := range out {
		given := make(map[[3]string]bool)
		for _, m := range book.Link(p.Link) {
			given[[3]string{m.Namespace, m.Service, m.Hostname}] = true
		}
		out[i].Mirrors = slices.DeleteFunc(slices.Clone(p.Mirrors), func(w ledger.MirrorWant) bool {
			return !given[[3]string{w.Namespace, w.Service, w.Hostname}]
		})
	}
	return out
}
