package controller

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// catalogCopy is this replica's copy of a peer's catalog. A nil catalogCopy is empty.
type catalogCopy struct {
	services map[catalog.Key]catalog.Service
	problems map[catalog.Key][]catalog.Problem
	complete bool
}

func newCatalogCopy() *catalogCopy {
	return &catalogCopy{
		services: make(map[catalog.Key]catalog.Service),
		problems: make(map[catalog.Key][]catalog.Problem),
	}
}

// takeCatalogs brings the copies of all peers' catalogs up to date. The maps are cloned
// before a change, because writers of mirrors still read the last ones.
func (b *brain) takeCatalogs(t *thought) {
	next := make(map[string]*catalogCopy, len(t.peers))
	for name := range t.peers {
		change := b.peers.TakeCatalog(name, wire.Version{}, t.now)
		c := newCatalogCopy()
		if old := b.catalogs[name]; old != nil && !change.Whole {
			if change.IsEmpty() {
				c.services, c.problems = old.services, old.problems
			} else {
				maps.Copy(c.services, old.services)
				maps.Copy(c.problems, old.problems)
			}
		}
		c.apply(&change)
		next[name] = c
	}
	b.catalogs = next
}

func (c *catalogCopy) apply(change *peering.CatalogChange) {
	for _, s := range change.Upserts {
		c.services[s.Key()] = s
		delete(c.problems, s.Key())
	}
	for _, key := range change.Removed {
		delete(c.services, key)
		delete(c.problems, key)
	}
	maps.Copy(c.problems, change.Problems)
	c.complete = change.Complete
}

func (c *catalogCopy) sortedProblems() []catalog.Problem {
	var out []catalog.Problem
	for _, key := range slices.SortedFunc(maps.Keys(c.problems), catalog.Key.Compare) {
		out = append(out, c.problems[key]...)
	}
	catalog.SortProblems(out)
	return out
}

// wantedPeers are the peers of the Links in force.
func (t *thought) wantedPeers() map[string]peering.Want {
	trusts := t.keptTrusts()
	out := make(map[string]peering.Want, len(t.peers))
	for name, p := range t.peers {
		out[name] = peering.Want{Peer: p, StoredGateways: peering.StoredGateways(p, trusts[name])}
	}
	return out
}

// addresses indexes the IPs that this cluster uses.
func (s *snapshot) addresses() *peering.AddressIndex {
	x := &peering.AddressIndex{}
	for i := range s.pods {
		p := &s.pods[i]
		x.Add("pod/"+p.Namespace+"/"+p.Name, podAddresses(p)...)
	}
	for i := range s.services {
		svc := &s.services[i]
		x.Add("service/"+svc.Namespace+"/"+svc.Name, svc.Spec.ClusterIPs...)
	}
	for i := range s.slices {
		slice := &s.slices[i]
		if slice.Namespace != "default" || slice.Labels["kubernetes.io/service-name"] != "kubernetes" {
			continue
		}
		var ips []string
		for _, e := range slice.Endpoints {
			ips = append(ips, e.Addresses...)
		}
		x.Add("apiserver/"+slice.Name, ips...)
	}
	return x
}

func podAddresses(p *corev1.Pod) []string {
	out := []string{p.Status.HostIP}
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	for _, ip := range p.Status.HostIPs {
		out = append(out, ip.IP)
	}
	return out
}
