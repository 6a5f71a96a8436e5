package agent

import (
	"net/netip"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// admission is what the one decision reads, from the same view as s.
func admission(s *state, view map[string]*wire.Resource) *admit.State {
	var links []admit.Link
	for _, p := range s.links {
		links = append(links, admit.Link{
			Name: p.name, UID: p.uid, TrustDomain: p.trustDomain, Suspended: p.suspended, DefaultDeny: p.defaultDeny,
		})
	}
	var exports []admit.Export
	var pods []admit.Pod
	for _, r := range view {
		switch body := r.Body.(type) {
		case *wire.Resource_Export:
			exports = append(exports, exportOf(body.Export))
		case *wire.Resource_Pod:
			pods = append(pods, podOf(body.Pod))
		}
	}
	return admit.NewState(links, exports, pods)
}

func exportOf(e *wire.Export) admit.Export {
	out := admit.Export{
		Namespace: e.Namespace, Service: e.Service, Links: e.Links,
		Backing: make(map[string]map[uint32]uint32, len(e.Pods)),
		Accepts: make(map[string]bool, len(e.Pods)), Isolated: make(map[string][]uint32),
	}
	for _, p := range e.Ports {
		out.Ports = append(out.Ports, p.Port)
	}
	for _, p := range e.Policies {
		policy := admit.Policy{Name: p.Name}
		for _, c := range p.Callers {
			policy.Callers = append(policy.Callers, admit.Caller{
				Link: c.Link, Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, SPIFFEID: c.SpiffeId,
			})
		}
		out.Policies = append(out.Policies, policy)
	}
	for _, p := range e.Pods {
		out.Backing[p.Uid], out.Accepts[p.Uid] = p.Targets, p.Accepts
		if len(p.IsolatedPorts) > 0 {
			out.Isolated[p.Uid] = p.IsolatedPorts
		}
	}
	return out
}

func podOf(p *wire.Pod) admit.Pod {
	out := admit.Pod{
		UID: p.Uid, Namespace: p.Namespace, Name: p.Name, Live: p.Live, Terminating: p.Terminating,
	}
	for _, ip := range p.Ips {
		if addr, err := netip.ParseAddr(ip); err == nil {
			out.IPs = append(out.IPs, addr.Unmap())
		}
	}
	return out
}
