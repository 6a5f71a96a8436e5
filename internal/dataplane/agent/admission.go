package agent

import (
	"net/netip"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// admitLinks returns the Links of a state as the decision needs them.
func (s *state) admitLinks() []admit.Link {
	links := make([]admit.Link, 0, len(s.links))
	for _, p := range s.links {
		links = append(links, admit.Link{
			Name: p.name, UID: p.uid, TrustDomain: p.trustDomain, Suspended: p.suspended, DefaultDeny: p.defaultDeny,
		})
	}
	return links
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
			policy.Callers = append(policy.Callers, callerOf(c))
		}
		for _, c := range p.RequestCallers {
			policy.Requests = append(policy.Requests, requestRuleOf(c))
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

func callerOf(c *wire.Caller) admit.Caller {
	return admit.Caller{
		Link: c.GetLink(), Namespace: c.GetNamespace(), ServiceAccount: c.GetServiceAccount(), SPIFFEID: c.GetSpiffeId(),
	}
}

func requestRuleOf(c *wire.RequestCaller) admit.RequestRule {
	out := admit.RequestRule{Caller: callerOf(c.Caller), Methods: c.Methods}
	for _, p := range c.Paths {
		out.Paths = append(out.Paths, admit.Path{Exact: p.GetExact(), Prefix: p.GetPrefix()})
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
