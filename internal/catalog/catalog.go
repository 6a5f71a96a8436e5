// Package catalog decides what this cluster exports, and which parts of a peer's
// catalog this cluster can use.
//
//	objects by key ──Index.Set…──▶ Index ──Flush──▶ changed Exports and Problems
//	Export ──Service(routes)──▶ the Service that peers see
//	a peer's Service ──Validate──▶ usable Service, problems
//
// What always holds:
//   - Decisions use only the given objects: no clock, no network, no cluster.
//   - The same objects, set in any order, give the same decisions.
//   - A Service is exported only if its owner asks for it, by a label or a
//     ServiceExport. A mirror is never exported, and neither is a Service of
//     Causeway's own namespace.
//   - An endpoint is a live pod of the Service's namespace, at the pod's own address.
//     The Service's selector must select the pod. Only a Service without a selector
//     whose owner opts in takes pods from its EndpointSlices alone.
//   - A peer sees only Services that its Link's export rules admit, only ports that
//     have a route, no address, and no label of Causeway's or Linkerd's.
package catalog

import (
	"maps"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// Kinds of the multi-cluster SIG's ServiceExport, which asks to export the Service of
// the same name. Index reads only their metadata, so that the cluster does not need the
// CRD and this module does not need its Go types.
var (
	ServiceExportV1Beta1  = schema.GroupVersion{Group: mcsGroup, Version: "v1beta1"}.WithKind("ServiceExport")
	ServiceExportV1Alpha1 = schema.GroupVersion{
		Group:   mcsGroup,
		Version: "v1alpha1",
	}.WithKind("ServiceExport")
)

const mcsGroup = "multicluster.x-k8s.io"

// ServiceExportKinds lists the supported versions of ServiceExport, preferred first.
func ServiceExportKinds() []schema.GroupVersionKind {
	return []schema.GroupVersionKind{ServiceExportV1Beta1, ServiceExportV1Alpha1}
}

// Export is one exported Service. Exports are shared, so they must not be changed after
// Flush has returned them.
type Export struct {
	Namespace, Name string
	// Ports are the TCP ports, sorted by number. They have no route: see Service.
	Ports []Port
	// OtherPorts are those of other protocols. Peers see them, but no connection to
	// them can cross a Link.
	OtherPorts []Port
	// Identities are the SPIFFE IDs of the endpoints, ready or not, sorted.
	Identities []string
	// Ready reports whether at least one endpoint accepts new connections.
	Ready                  bool
	SessionAffinity        Affinity
	SessionAffinitySeconds uint32
	// Headless reports that the Service has no address of its own. Hosts are its pods
	// that have a name in DNS, sorted.
	Headless bool
	Hosts    []Host
	// Labels and Annotations are those that peers may see.
	Labels, Annotations map[string]string
	// Settings are the traffic settings that peers see.
	Settings trafficsettings.Settings
	// ForwardIdentity concerns this cluster's agents alone.
	ForwardIdentity trafficsettings.ForwardIdentity
	// Links are the names of the Links whose export rules admit the Service, sorted.
	// Exports with the same Links share one slice.
	Links []string
	// Policies are the ExportPolicies that select the Service, sorted by name. If there
	// is none, the Links alone decide who may call.
	Policies []v1alpha1.ExportPolicy
	// Endpoints are sorted by pod UID.
	Endpoints []Endpoint
}

// Key returns the name of the Service.
func (e Export) Key() Key { return Key{Namespace: e.Namespace, Name: e.Name} }

// Service returns the export as a peer sees it. The function route returns the route id
// of a port, or 0 if the port has none yet; ports without a route are left out. If no
// port has a route, the result is the zero Service.
func (e Export) Service(route func(name, protocol string) uint32) Service {
	ports := make([]Port, 0, len(e.Ports)+len(e.OtherPorts))
	for _, p := range e.Ports {
		if p.Route = route(p.Name, p.Protocol); p.Route != 0 {
			p.Isolated = e.isolates(p.Port)
			ports = append(ports, p)
		}
	}
	if len(ports) == 0 {
		return Service{}
	}
	ports = append(ports, e.OtherPorts[:min(len(e.OtherPorts), MaxPorts-len(ports))]...)
	slices.SortFunc(ports, comparePorts)
	return Service{
		Namespace:              e.Namespace,
		Name:                   e.Name,
		Ports:                  ports,
		Identities:             e.Identities,
		Ready:                  e.Ready,
		SessionAffinity:        e.SessionAffinity,
		SessionAffinitySeconds: e.SessionAffinitySeconds,
		Headless:               e.Headless,
		Hosts:                  e.Hosts,
		Labels:                 e.Labels,
		Annotations:            e.Annotations,
		Settings:               e.Settings,
	}
}

// isolates reports whether NetworkPolicies isolate a port at some endpoint, and no
// ExportPolicy selects the Service.
func (e *Export) isolates(port uint16) bool {
	return len(e.Policies) == 0 && slices.ContainsFunc(e.Endpoints, func(ep Endpoint) bool {
		return slices.Contains(ep.Isolated, port)
	})
}

// equal reports whether e and o are the same decision.
func (e *Export) equal(o *Export) bool {
	return e.Namespace == o.Namespace && e.Name == o.Name && e.Ready == o.Ready &&
		e.SessionAffinity == o.SessionAffinity && e.SessionAffinitySeconds == o.SessionAffinitySeconds &&
		e.Headless == o.Headless && sameSlice(e.Ports, o.Ports) && sameSlice(e.OtherPorts, o.OtherPorts) &&
		sameSlice(e.Identities, o.Identities) && sameSlice(e.Links, o.Links) && sameSlice(e.Hosts, o.Hosts) &&
		maps.Equal(e.Labels, o.Labels) && maps.Equal(e.Annotations, o.Annotations) &&
		e.Settings == o.Settings && e.ForwardIdentity == o.ForwardIdentity &&
		samePolicies(e.Policies, o.Policies) && sameEndpoints(e.Endpoints, o.Endpoints)
}

// sameSlice is slices.Equal, with a shortcut for slices that share memory.
func sameSlice[T comparable](a, b []T) bool { return shared(a, b) || slices.Equal(a, b) }

// shared reports whether a and b are the same slice.
func shared[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func samePolicies(a, b []v1alpha1.ExportPolicy) bool {
	return shared(a, b) || slices.EqualFunc(a, b, func(p, q v1alpha1.ExportPolicy) bool {
		return p.Name == q.Name && reflect.DeepEqual(p.Spec, q.Spec)
	})
}

func sameEndpoints(a, b []Endpoint) bool {
	return shared(a, b) || slices.EqualFunc(a, b, func(x, y Endpoint) bool { return x.equal(&y) })
}
