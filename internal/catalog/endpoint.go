package catalog

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/internal/kube"
)

// Endpoint is one pod that backs an Export.
type Endpoint struct {
	PodUID string
	Node   string
	// Host is the name of the pod below the Service in DNS; empty if it has none.
	Host string
	// IP is the address on which the Service's EndpointSlice and the pod agree.
	IP netip.Addr
	// Ready reports that the EndpointSlice says so, the pod is not terminating, and its
	// node has a ready agent.
	Ready bool
	// Serving reports that the pod passes its readiness check, terminating or not, and
	// that its node has a ready agent.
	Serving bool
	// Accepts reports that the endpoint takes new connections: it is ready, or it is
	// terminating and serving while no endpoint of the Service is ready (KEP-1669).
	Accepts bool
	// Targets holds the container port by Service port number, without ports that the
	// pod lacks. Endpoints with equal Targets share one map.
	Targets map[uint16]uint16
	// Isolated are the Service ports, sorted, whose container port NetworkPolicies
	// isolate and do not open to every source. Only callers that an ExportPolicy names
	// may connect to these.
	Isolated []uint16
}

func (e *Endpoint) equal(o *Endpoint) bool {
	return e.PodUID == o.PodUID && e.Node == o.Node && e.Host == o.Host && e.IP == o.IP &&
		e.Ready == o.Ready && e.Serving == o.Serving && e.Accepts == o.Accepts &&
		maps.Equal(e.Targets, o.Targets) && sameSlice(e.Isolated, o.Isolated)
}

// candidate is a pod that an EndpointSlice names and that may back the Service.
type candidate struct {
	// order is the position among all endpoints of the EndpointSlices.
	order                       int
	state                       *podState
	pod                         *corev1.Pod
	ip                          netip.Addr
	ready, serving, terminating bool
	// ports are those of the EndpointSlices, for Services that accept these.
	ports []portTarget
}

// portTarget is a Service port and the container port that it leads to.
type portTarget struct {
	port, target uint16
}

// readEndpoints decides what the pods decide: endpoints, identities, hosts, readiness.
// The last decision's memory is used again where nothing changed.
func (x *Index) readEndpoints(e *entry, next *Export, ps *problems) {
	s, d := &x.scratch, e.decision
	x.findCandidates(e, ps)
	x.pods.relate(e, s.pods, s.visit)

	var old []Endpoint
	if d.export != nil {
		old = d.export.Endpoints
	}
	anyReady := slices.ContainsFunc(s.candidates, func(c candidate) bool { return c.ready })
	s.endpoints, s.accounts = s.endpoints[:0], s.accounts[:0]
	next.Ready = false
	rest := old
	for i := range s.candidates {
		c := &s.candidates[i]
		for len(rest) > 0 && rest[0].PodUID < string(c.pod.UID) {
			rest = rest[1:]
		}
		out := Endpoint{
			PodUID:  string(c.pod.UID),
			Node:    c.pod.Spec.NodeName,
			Host:    hostOf(e.service, c.pod),
			IP:      c.ip,
			Ready:   c.ready,
			Serving: c.serving,
			Accepts: c.ready || !anyReady && c.serving && c.terminating,
		}
		like := make([]*Endpoint, 0, 2) // endpoints whose memory this one can share
		if len(rest) > 0 && rest[0].PodUID == out.PodUID {
			like = append(like, &rest[0])
		}
		if i > 0 {
			like = append(like, &s.endpoints[i-1])
		}
		s.targets = appendTargets(s.targets[:0], e.service, c)
		out.Targets = shareTargets(s.targets, like)
		out.Isolated = x.isolatedPorts(e, c, like)
		next.Ready = next.Ready || out.Accepts
		s.endpoints = append(s.endpoints, out)
		if a := account(c.pod); len(s.accounts) == 0 || s.accounts[len(s.accounts)-1] != a {
			s.accounts = append(s.accounts, a)
		}
	}
	if next.Endpoints = old; !sameEndpoints(old, s.endpoints) {
		next.Endpoints = slices.Clone(s.endpoints)
	}
	x.addHosts(next, ps)
	x.addIdentities(e, next, ps)
}

// findCandidates fills x.scratch with the pods that the EndpointSlices refer to, and with
// those of them that back the Service, once each and sorted by UID.
func (x *Index) findCandidates(e *entry, ps *problems) {
	s := &x.scratch
	clear(s.candidates)
	s.candidates, s.pods = s.candidates[:0], s.pods[:0]
	s.visit++
	optIn := acceptsEndpoints(e.service)
	if e.decision.selector == nil && !optIn {
		return
	}
	foreign, hostNetwork := false, false
	for _, slice := range e.slices {
		for i := range slice.Endpoints {
			ref := slice.Endpoints[i].TargetRef
			if ref == nil || ref.Kind != "Pod" || ref.Namespace != "" && ref.Namespace != e.key.Namespace {
				foreign = true
				continue
			}
			state := x.pods.refer(ref.UID, Key{Namespace: e.key.Namespace, Name: ref.Name})
			if state.visit != s.visit {
				state.visit = s.visit
				s.pods = append(s.pods, state)
			}
			pod := state.pod
			switch {
			case pod == nil: // the pod is gone, or its event has not arrived yet
			case pod.Namespace != e.key.Namespace,
				!optIn && !e.decision.selector.Matches(labels.Set(pod.Labels)):
				foreign = true
			case pod.Spec.HostNetwork:
				hostNetwork = true
			default:
				x.addCandidate(e, slice, i, state)
			}
		}
	}
	if foreign {
		ps.add(e.key, ForeignEndpoint, "an EndpointSlice of the Service names an endpoint "+
			"that is not a pod of the Service's namespace and selector: it is ignored")
	}
	if hostNetwork {
		ps.add(e.key, HostNetworkUnsupported,
			"pods on the host network share their node's address: linked clusters cannot call them")
	}
	s.candidates = mergeCandidates(s.candidates)
}

// addCandidate adds the pod of state, which endpoint i of the slice refers to, if the pod
// lives and has the endpoint's address.
func (x *Index) addCandidate(e *entry, slice *discoveryv1.EndpointSlice, i int, state *podState) {
	ep, pod := &slice.Endpoints[i], state.pod
	address, own := ownAddress(pod, ep.Addresses)
	if !own || pod.Spec.NodeName == "" || kube.PodFinished(pod) {
		return
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return
	}
	_, agent := x.agents[pod.Spec.NodeName]
	ready := ep.Conditions.Ready == nil || *ep.Conditions.Ready
	serving := ready
	if ep.Conditions.Serving != nil {
		serving = *ep.Conditions.Serving
	}
	c := candidate{
		order:       len(x.scratch.candidates),
		state:       state,
		pod:         pod,
		ip:          ip,
		terminating: !pod.DeletionTimestamp.IsZero(),
		serving:     agent && serving,
	}
	if ep.Conditions.Terminating != nil && *ep.Conditions.Terminating {
		c.terminating = true
	}
	c.ready = agent && ready && !c.terminating
	if e.decision.selector == nil {
		c.ports = slicePorts(e.service, slice)
	}
	x.scratch.candidates = append(x.scratch.candidates, c)
}

// mergeCandidates sorts candidates by UID and makes one of those of the same pod, as the
// two slices of a dual-stack Service give. The lowest address wins.
func mergeCandidates(all []candidate) []candidate {
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(strings.Compare(string(a.pod.UID), string(b.pod.UID)), a.order-b.order)
	})
	out := all[:0]
	for _, c := range all {
		if len(out) == 0 || out[len(out)-1].pod.UID != c.pod.UID {
			out = append(out, c)
			continue
		}
		last := &out[len(out)-1]
		last.terminating = last.terminating || c.terminating
		last.serving = last.serving || c.serving
		last.ready = (last.ready || c.ready) && !last.terminating
		last.ports = append(last.ports, c.ports...)
		if c.ip.Less(last.ip) {
			last.ip = c.ip
		}
	}
	return out
}

// slicePorts returns the container ports that a slice gives to the TCP ports of a Service
// without a selector. Ports are matched by name, as kube-proxy does.
func slicePorts(svc *corev1.Service, slice *discoveryv1.EndpointSlice) []portTarget {
	var out []portTarget
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if protocolOf(p) != corev1.ProtocolTCP {
			continue
		}
		for _, q := range slice.Ports {
			tcp := q.Protocol == nil || *q.Protocol == corev1.ProtocolTCP || *q.Protocol == ""
			named := q.Name == nil && p.Name == "" || q.Name != nil && *q.Name == p.Name
			if tcp && named && q.Port != nil && *q.Port > 0 && *q.Port <= 65535 {
				out = append(out, portTarget{uint16(p.Port), uint16(*q.Port)})
				break
			}
		}
	}
	return out
}

// appendTargets resolves the TCP ports of a Service in a pod. The Service and the pod
// decide; the ports of an EndpointSlice count only for a Service without a selector,
// whose owner writes the slices and opted in.
func appendTargets(out []portTarget, svc *corev1.Service, c *candidate) []portTarget {
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if protocolOf(p) != corev1.ProtocolTCP {
			continue
		}
		number := uint16(p.Port)
		if j := slices.IndexFunc(c.ports, func(t portTarget) bool { return t.port == number }); j >= 0 {
			out = append(out, c.ports[j])
		} else if port, ok := target(p, c.pod); ok {
			out = append(out, portTarget{number, port})
		}
	}
	return out
}

func target(p *corev1.ServicePort, pod *corev1.Pod) (uint16, bool) {
	switch {
	case p.TargetPort.Type == intstr.String:
		return namedPort(pod, p.TargetPort.StrVal)
	case p.TargetPort.IntVal == 0:
		return uint16(p.Port), true
	}
	return uint16(p.TargetPort.IntVal), true
}

// shareTargets returns targets as a map: that of an endpoint with equal ones, if there
// is.
func shareTargets(targets []portTarget, like []*Endpoint) map[uint16]uint16 {
	for _, e := range like {
		differs := func(t portTarget) bool { return e.Targets[t.port] != t.target }
		if len(e.Targets) == len(targets) && !slices.ContainsFunc(targets, differs) {
			return e.Targets
		}
	}
	out := make(map[uint16]uint16, len(targets))
	for _, t := range targets {
		out[t.port] = t.target
	}
	return out
}

// isolatedPorts returns the Service ports in x.scratch.targets that NetworkPolicies
// isolate in the pod.
func (x *Index) isolatedPorts(e *entry, c *candidate, like []*Endpoint) []uint16 {
	s := &x.scratch
	if c.state.ingress == nil {
		c.state.ingress = ingressOf(c.pod, e.namespace.ingress)
	}
	s.isolated = s.isolated[:0]
	for _, t := range s.targets {
		if !c.state.ingress.open(t.target) {
			s.isolated = append(s.isolated, t.port)
		}
	}
	if len(s.isolated) == 0 {
		return nil
	}
	slices.Sort(s.isolated)
	for _, l := range like {
		if slices.Equal(l.Isolated, s.isolated) {
			return l.Isolated
		}
	}
	return slices.Clone(s.isolated)
}

// addHosts fills in the names of the endpoints. Of two pods of one name, as when a pod
// terminates and its successor runs, the name is ready if either accepts connections.
func (x *Index) addHosts(e *Export, ps *problems) {
	e.Hosts = nil
	if !e.Headless {
		return
	}
	ready := make(map[string]bool)
	for _, ep := range e.Endpoints {
		if ep.Host != "" {
			ready[ep.Host] = ready[ep.Host] || ep.Accepts
		}
	}
	names := slices.Sorted(maps.Keys(ready))
	if len(names) > MaxHosts {
		ps.add(e.Key(), TooManyHostnames,
			"the Service has more than %d named pods: linked clusters cannot call the others by name",
			MaxHosts)
		names = names[:MaxHosts]
	}
	for _, name := range names {
		e.Hosts = append(e.Hosts, Host{Name: name, Ready: ready[name]})
	}
}

// addIdentities fills in the SPIFFE IDs of the ServiceAccounts in x.scratch.
func (x *Index) addIdentities(e *entry, next *Export, ps *problems) {
	s, d := &x.scratch, e.decision
	slices.Sort(s.accounts)
	s.accounts = slices.Compact(s.accounts)
	if len(s.accounts) > MaxIdentities {
		tooManyIdentities(next.Key(), ps)
	}
	if d.export != nil && slices.Equal(s.accounts, d.accounts) {
		next.Identities = d.export.Identities
		return
	}
	d.accounts = slices.Clone(s.accounts)
	next.Identities = nil
	prefix := "spiffe://" + x.config.TrustDomain + "/ns/" + e.key.Namespace + "/sa/"
	for _, name := range s.accounts[:min(len(s.accounts), MaxIdentities)] {
		next.Identities = append(next.Identities, prefix+name)
	}
}

func tooManyIdentities(k Key, ps *problems) {
	ps.add(k, TooManyIdentities,
		"more than %d ServiceAccounts back the Service: calls to pods of the others fail", MaxIdentities)
}
