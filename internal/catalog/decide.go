package catalog

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// decision is what the Index decided about a Service that a label or a ServiceExport
// exports.
type decision struct {
	// selector is the Service's; nil if it selects no pods.
	selector labels.Selector
	// serviceProblems are the problems of the Service itself, not of its endpoints.
	serviceProblems []Problem
	// links admit the Service, or would if it could be exported.
	links *linkSet
	// pods are those that its EndpointSlices refer to.
	pods     []*podState
	accounts []string // ServiceAccounts of its endpoints, sorted

	export   *Export // nil: not exported
	problems []Problem
}

// scratch is memory that every decision uses again.
type scratch struct {
	export     Export
	problems   problems
	candidates []candidate
	endpoints  []Endpoint
	pods       []*podState
	accounts   []string
	targets    []portTarget
	isolated   []uint16
	visit      uint64
}

// decide brings the decision about e up to date and reports whether it changed.
func (x *Index) decide(e *entry, stale staleness) bool {
	if !e.requested() {
		return x.retract(e)
	}
	if e.decision == nil {
		e.decision = &decision{}
		e.namespace.decided[e.key.Name] = e
		stale = staleAll
	}
	d := e.decision
	if stale&staleAdmission != 0 {
		x.links.move(e, x.links.admitting(e))
	}
	if stale&staleService == 0 && d.export == nil {
		return false // endpoints cannot make the Service exportable
	}
	ps := &x.scratch.problems
	ps.list = ps.list[:0]
	next := &x.scratch.export
	if stale&staleService != 0 {
		*next = Export{Namespace: e.key.Namespace, Name: e.key.Name}
		exportable := x.readService(e, next, ps)
		d.serviceProblems = slices.Clone(ps.list)
		if !exportable {
			next = nil
		}
	} else {
		*next = *d.export
		ps.list = append(ps.list, d.serviceProblems...)
	}
	if next == nil {
		x.scratch.visit++
		x.pods.relate(e, nil, x.scratch.visit)
	} else {
		next.Links = d.links.names
		if stale&(staleService|stalePolicies) != 0 {
			next.Policies = e.namespace.policiesFor(e.key.Name)
		}
		x.readEndpoints(e, next, ps)
		reportIsolation(next, ps)
		reportForgeable(next, ps)
	}
	return x.commit(e, next, ps.sorted())
}

// commit stores a decision if it differs from the last one, and reports whether it does.
func (x *Index) commit(e *entry, next *Export, found []Problem) bool {
	d := e.decision
	newProblems := !slices.Equal(found, d.problems)
	if newProblems {
		x.links.removeProblems(e)
		d.problems = append([]Problem(nil), found...) // nil if there is none
		x.links.addProblems(e)
	}
	if next == nil && d.export == nil || next != nil && d.export != nil && next.equal(d.export) {
		return newProblems
	}
	if next == nil {
		d.export = nil
		x.links.count(d.links, nil)
		return true
	}
	if d.export == nil {
		x.links.count(nil, d.links)
	}
	export := *next
	d.export = &export
	return true
}

// retract removes the decision about a Service that is no longer to be exported, and
// reports whether that is a change.
func (x *Index) retract(e *entry) bool {
	d := e.decision
	if d == nil {
		return false
	}
	changed := x.commit(e, nil, nil)
	x.scratch.visit++
	x.pods.relate(e, nil, x.scratch.visit)
	x.links.move(e, nil)
	delete(e.namespace.decided, e.key.Name)
	e.decision = nil
	return changed
}

// readService decides what the Service alone decides, and reports whether it can be
// exported at all.
func (x *Index) readService(e *entry, next *Export, ps *problems) bool {
	svc := e.service
	if reason, message := x.refusal(svc); reason != "" {
		ps.add(e.key, reason, "%s", message)
		return false
	}
	next.addPorts(svc)
	switch {
	case len(next.Ports) == 0:
		ps.add(e.key, NoTCPPort, "the Service has no TCP port, and only TCP can cross a Link: add a TCP port")
		return false
	case len(next.Ports) > MaxPorts:
		ps.add(e.key, TooManyPorts,
			"the Service has more than %d TCP ports: split it into several Services", MaxPorts)
		return false
	case len(next.OtherPorts) > 0:
		ps.add(e.key, ProtocolUnsupported, "linked clusters can call only the TCP ports of the Service")
	}
	var whole bool
	if next.Labels, next.Annotations, whole = shownMetadata(svc.Labels, svc.Annotations); !whole {
		ps.add(e.key, MetadataTooLarge,
			"linked clusters see only %d KiB of the Service's labels and annotations: shorten them",
			maxMetadata>>10)
	}
	next.readSettings(svc, ps)
	next.SessionAffinity, next.SessionAffinitySeconds = affinity(svc)
	next.Headless = svc.Spec.ClusterIP == corev1.ClusterIPNone
	e.decision.selector = nil
	if len(svc.Spec.Selector) > 0 {
		e.decision.selector = labels.SelectorFromValidatedSet(svc.Spec.Selector)
	} else if !acceptsEndpoints(svc) {
		ps.add(e.key, SelectorMissing,
			"the Service has no selector, so that no pod belongs to it and calls from linked clusters fail: "+
				"add a selector, or the annotation %s: \"true\" "+
				"if its EndpointSlices refer to pods of its namespace",
			v1alpha1.ExportEndpointsAnnotation)
	}
	return true
}

// acceptsEndpoints reports whether the owner of a Service without a selector accepts the
// endpoints that its EndpointSlices name.
func acceptsEndpoints(svc *corev1.Service) bool {
	return len(svc.Spec.Selector) == 0 && svc.Annotations[v1alpha1.ExportEndpointsAnnotation] == "true"
}

// refusal returns why a Service cannot be exported at all, or no reason if it can.
func (x *Index) refusal(svc *corev1.Service) (reason, message string) {
	switch {
	case svc == nil:
		return ServiceMissing, "a ServiceExport has this name, but there is no Service: " +
			"create the Service or delete the ServiceExport"
	case isMirror(svc):
		return MirrorNotExported, "the Service is a mirror of a linked cluster's Service " +
			"and is not exported again: remove the export label or the ServiceExport"
	case svc.Namespace == x.config.Namespace:
		return OwnNamespace, "Services of Causeway's own namespace are never exported: " +
			"remove the export label or the ServiceExport"
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return ExternalNameUnsupported, "a Service of type ExternalName has no pods and cannot be " +
			"exported: " +
			"use a Service of type ClusterIP"
	case len(svc.Spec.Ports) == 0:
		return NoPorts, "the Service has no ports: add a TCP port"
	}
	return "", ""
}

// isMirror reports whether Causeway created svc for a Link. Either the labels or the
// owner suffice, so that a tenant who removes one cannot export a peer's Service.
func isMirror(svc *corev1.Service) bool {
	if svc.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy && svc.Labels[v1alpha1.LinkLabel] != "" {
		return true
	}
	return slices.ContainsFunc(svc.OwnerReferences, v1alpha1.IsLinkReference)
}

func (e *Export) addPorts(svc *corev1.Service) {
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		port := Port{Name: p.Name, Protocol: string(protocolOf(p)), Port: uint16(p.Port)}
		if p.AppProtocol != nil {
			port.AppProtocol = *p.AppProtocol
		}
		if port.Protocol == string(corev1.ProtocolTCP) {
			e.Ports = append(e.Ports, port)
		} else {
			e.OtherPorts = append(e.OtherPorts, port)
		}
	}
	slices.SortFunc(e.Ports, comparePorts)
	slices.SortFunc(e.OtherPorts, comparePorts)
}

// readSettings reads the traffic settings of the Service's annotations.
func (e *Export) readSettings(svc *corev1.Service, ps *problems) {
	ports := make([]uint16, len(e.Ports))
	for i, p := range e.Ports {
		ports[i] = p.Port
	}
	declared := trafficsettings.Parse(svc.Annotations, ports)
	e.Settings, e.ForwardIdentity = declared.Settings, declared.ForwardIdentity
	e.Settings.PreferSameZone = trafficsettings.OfTrafficDistribution(svc.Spec.TrafficDistribution)
	for i, p := range declared.Protocols {
		e.Ports[i].Declared = p
	}
	for _, f := range declared.Faults {
		ps.add(e.Key(), InvalidTrafficSettings, "the annotation %s is ignored where it is not valid: %s",
			f.Annotation, f.Message)
	}
}

func protocolOf(p *corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

func affinity(svc *corev1.Service) (Affinity, uint32) {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return AffinityNone, 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	c := svc.Spec.SessionAffinityConfig
	if c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return AffinityClientIP, uint32(seconds)
}

// reportIsolation adds a Problem if NetworkPolicies isolate ports of the endpoints and no
// ExportPolicy says which callers may connect all the same.
func reportIsolation(e *Export, ps *problems) {
	if len(e.Policies) > 0 {
		return
	}
	var ports, last []uint16
	for i := range e.Endpoints {
		if isolated := e.Endpoints[i].Isolated; !shared(isolated, last) {
			ports = append(ports, isolated...)
			last = isolated
		}
	}
	if len(ports) == 0 {
		return
	}
	ps.add(e.Key(), NetworkPolicyIsolates,
		"NetworkPolicies do not admit every source to the pods behind port %s, "+
			"so that calls from linked clusters are refused there: create an ExportPolicy that selects "+
			"the Service and names the callers",
		listPorts(ports))
}

// reportForgeable adds a Problem if the application receives its callers' identities,
// and no NetworkPolicy keeps pods of this cluster from claiming one.
func reportForgeable(e *Export, ps *problems) {
	if e.ForwardIdentity == trafficsettings.ForwardNone {
		return
	}
	var ports []uint16
	for i := range e.Endpoints {
		for port := range e.Endpoints[i].Targets {
			if !slices.Contains(e.Endpoints[i].Isolated, port) {
				ports = append(ports, port)
			}
		}
	}
	if len(ports) == 0 {
		return
	}
	ps.add(e.Key(), IdentityForgeable,
		"agents tell the application who calls, but every pod can connect to the pods behind port %s "+
			"and claim any identity: isolate them by a NetworkPolicy, "+
			"and create an ExportPolicy that names the callers",
		listPorts(ports))
}

// listPorts returns the distinct numbers, sorted, as text. It changes ports.
func listPorts(ports []uint16) string {
	slices.Sort(ports)
	var names []string
	for _, p := range slices.Compact(ports) {
		names = append(names, fmt.Sprint(p))
	}
	return strings.Join(names, ", ")
}
