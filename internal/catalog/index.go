package catalog

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Config is what an Index must know about its cluster.
type Config struct {
	// TrustDomain is the trust domain of this cluster.
	TrustDomain string
	// Namespace is Causeway's own namespace.
	Namespace string
}

// Index decides which Services this cluster exports, and keeps the decisions up to date.
// Set methods record one changed object and mark the Services that depend on it; Flush
// decides the marked Services again. The cost is proportional to what changed.
//
// The Index keeps the given objects and never changes them; the caller must not change
// them either. An Index has one owner and no locks: it is not safe for concurrent use.
type Index struct {
	config     Config
	services   map[Key]*entry
	namespaces map[string]*namespace
	// sliceOwners holds, by EndpointSlice, the Service that it belongs to.
	sliceOwners map[Key]*entry
	pods        podIndex
	// agents holds the nodes that have a ready agent.
	agents map[string]string
	links  linkIndex
	dirty  []*entry

	scratch scratch
}

// Change is a new decision about one Service.
type Change struct {
	Key Key
	// Export is nil if the Service is not exported.
	Export *Export
	// Problems says, sorted, what prevents all or a part of the export. A Service that
	// is not to be exported has none.
	Problems []Problem
}

// NewIndex returns an Index without objects.
func NewIndex(c Config) *Index {
	return &Index{
		config:      c,
		services:    make(map[Key]*entry),
		namespaces:  make(map[string]*namespace),
		sliceOwners: make(map[Key]*entry),
		pods:        newPodIndex(),
		links:       newLinkIndex(),
	}
}

// staleness says which inputs of a decision may have changed. Endpoints are always
// decided again.
type staleness uint8

const (
	staleEndpoints staleness = 1 << iota
	// staleService: the Service itself changed, or its selection by a ServiceExport.
	staleService
	// staleAdmission: other Links may admit the Service now.
	staleAdmission
	// stalePolicies: other ExportPolicies may select the Service now.
	stalePolicies

	staleAll = staleEndpoints | staleService | staleAdmission | stalePolicies
)

// entry holds the objects that bear one Service's name, and the decision about it.
type entry struct {
	key       Key
	namespace *namespace
	service   *corev1.Service // nil: the Service does not exist
	// requested by a ServiceExport.
	serviceExport bool
	slices        []*discoveryv1.EndpointSlice // sorted by name
	// stale is not zero while the entry is in Index.dirty.
	stale    staleness
	decision *decision // nil: the Service is not to be exported
}

// empty reports whether nothing bears the name any more.
func (e *entry) empty() bool {
	return e.service == nil && !e.serviceExport && len(e.slices) == 0 && e.decision == nil
}

// requested reports whether a label or a ServiceExport exports the Service. A
// ServiceExport may name a Service that does not exist, which is then a problem.
func (e *entry) requested() bool {
	if e.service == nil {
		return e.serviceExport
	}
	asked := e.serviceExport || e.service.Labels[v1alpha1.ExportLabel] == "true" ||
		e.service.Labels[v1alpha1.LinkerdExportLabel] == "true"
	return asked && e.service.DeletionTimestamp.IsZero()
}

// namespace holds what concerns all Services of one namespace.
type namespace struct {
	name string
	// known is false until the Namespace object was set.
	known  bool
	labels labels.Set
	// entries counts all entries of the namespace; decided holds those with a decision.
	entries int
	decided map[string]*entry

	exportPolicies map[string]*v1alpha1.ExportPolicy
	sortedPolicies []v1alpha1.ExportPolicy // nil: not sorted yet
	ingress        map[string]*ingressPolicy

	// covering are the rules of the Links that cover the namespace, as of rulesVersion.
	covering     []*linkRules
	rulesVersion uint64
}

// SetService records a Service; nil means that it does not exist.
func (x *Index) SetService(k Key, s *corev1.Service) {
	e := x.entry(k, s != nil)
	if e == nil {
		return
	}
	e.service = s
	x.mark(e, staleAll)
}

// SetServiceExport records the metadata of a ServiceExport of either version; nil means
// that it does not exist.
func (x *Index) SetServiceExport(k Key, o *metav1.PartialObjectMetadata) {
	exists := o != nil && o.DeletionTimestamp.IsZero()
	e := x.entry(k, exists)
	if e == nil || e.serviceExport == exists {
		return
	}
	e.serviceExport = exists
	x.mark(e, staleAll)
}

// SetEndpointSlice records an EndpointSlice; nil means that it does not exist. It ignores
// the EndpointSlices of mirrors, because a mirror is never exported.
func (x *Index) SetEndpointSlice(k Key, s *discoveryv1.EndpointSlice) {
	var owner *entry
	if s != nil && s.Labels[discoveryv1.LabelServiceName] != "" &&
		s.Labels[v1alpha1.ManagedByLabel] != v1alpha1.ManagedBy {
		owner = x.entry(Key{Namespace: k.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}, true)
	}
	if old := x.sliceOwners[k]; old != nil && old != owner {
		if i, ok := old.findSlice(k.Name); ok {
			old.slices = slices.Delete(old.slices, i, i+1)
		}
		delete(x.sliceOwners, k)
		x.mark(old, staleEndpoints)
	}
	if owner == nil {
		return
	}
	x.sliceOwners[k] = owner
	if i, ok := owner.findSlice(k.Name); ok {
		owner.slices[i] = s
	} else {
		owner.slices = slices.Insert(owner.slices, i, s)
	}
	x.mark(owner, staleEndpoints)
}

func (e *entry) findSlice(name string) (int, bool) {
	return slices.BinarySearchFunc(e.slices, name, func(s *discoveryv1.EndpointSlice, name string) int {
		return strings.Compare(s.Name, name)
	})
}

// SetPod records a pod; nil means that it does not exist. It marks the Services whose
// EndpointSlices refer to the pod, if the change can matter to them.
func (x *Index) SetPod(k Key, p *corev1.Pod) { x.pods.set(k, p, x.markPod) }

func (x *Index) markPod(p *podState) {
	for _, e := range p.referrers {
		x.mark(e, staleEndpoints)
	}
}

// SetAgents replaces the addresses of ready agents, by node. It marks the Services that
// have pods on nodes whose agent became ready or stopped being ready.
func (x *Index) SetAgents(agents map[string]string) {
	if maps.Equal(agents, x.agents) {
		return
	}
	old := x.agents
	x.agents = maps.Clone(agents)
	for node := range old {
		if _, ready := agents[node]; !ready {
			x.pods.eachOn(node, x.markPod)
		}
	}
	for node := range agents {
		if _, ready := old[node]; !ready {
			x.pods.eachOn(node, x.markPod)
		}
	}
}

// SetNamespace records a Namespace; nil means that it does not exist. Only its labels
// matter. While a Namespace is unknown, no namespaceSelector of a Link selects it.
func (x *Index) SetNamespace(name string, o *corev1.Namespace) {
	n := x.namespace(name)
	defer x.dropNamespace(n)
	known, set := o != nil, labels.Set(nil)
	if known {
		set = o.Labels
	}
	if known == n.known && maps.Equal(set, n.labels) {
		return
	}
	before := *n
	n.known, n.labels = known, set
	differs := func(r *linkRules) bool { return r.covers(n) != r.covers(&before) }
	if !slices.ContainsFunc(x.links.sorted(), differs) {
		return
	}
	n.rulesVersion = 0
	for _, e := range n.decided {
		x.mark(e, staleAdmission)
	}
}

// SetExportPolicy records an ExportPolicy; nil means that it does not exist.
func (x *Index) SetExportPolicy(k Key, p *v1alpha1.ExportPolicy) {
	n := x.namespace(k.Namespace)
	defer x.dropNamespace(n)
	old := n.setExportPolicy(k.Name, p)
	if sameSpec(old, p) {
		return
	}
	for name, e := range n.decided {
		if selectsService(old, name) || selectsService(p, name) {
			x.mark(e, stalePolicies)
		}
	}
}

// SetNetworkPolicy records a NetworkPolicy; nil means that it does not exist.
func (x *Index) SetNetworkPolicy(k Key, p *networkingv1.NetworkPolicy) {
	n := x.namespace(k.Namespace)
	defer x.dropNamespace(n)
	old, next := n.ingress[k.Name], readIngressPolicy(p)
	if old.equal(next) {
		return
	}
	if next == nil {
		delete(n.ingress, k.Name)
	} else {
		if n.ingress == nil {
			n.ingress = make(map[string]*ingressPolicy)
		}
		n.ingress[k.Name] = next
	}
	for _, e := range n.decided {
		for _, pod := range e.decision.pods {
			pod.ingress = nil
		}
		x.mark(e, staleEndpoints)
	}
}

// SetLink records a Link; nil means that it does not exist. The caller passes nil for a
// Link that is invalid or on standby.
func (x *Index) SetLink(name string, l *v1alpha1.Link) {
	rules, changed := x.links.set(name, l)
	if !changed {
		return
	}
	// Most Services share few sets of Links, so each set is converted once.
	converted := make(map[*linkSet]*linkSet)
	for _, n := range x.namespaces {
		covers := rules.covers(n)
		for _, e := range n.decided {
			d := e.decision
			if e.stale&staleAdmission != 0 || d.links.has(name) == (covers && rules.admits(e.service)) {
				continue // Flush finds out, or nothing changes
			}
			set := converted[d.links]
			if set == nil {
				set = x.links.toggle(d.links, name)
				converted[d.links] = set
			}
			x.links.move(e, set)
			x.mark(e, staleEndpoints)
		}
	}
}

// MarkDirty makes the next Flush decide a Service again from its objects, whether or
// not anything changed.
func (x *Index) MarkDirty(k Key) {
	if e := x.services[k]; e != nil {
		x.mark(e, staleAll)
	}
}

// Keys returns, sorted, the Services that are exported or have a problem.
func (x *Index) Keys() []Key {
	var out []Key
	for _, n := range x.namespaces {
		for _, e := range n.decided {
			if e.decision.export != nil || len(e.decision.problems) > 0 {
				out = append(out, e.key)
			}
		}
	}
	slices.SortFunc(out, Key.Compare)
	return out
}

// Service returns the Service of that name; nil if there is none. It must not be changed.
func (x *Index) Service(k Key) *corev1.Service {
	if e := x.services[k]; e != nil {
		return e.service
	}
	return nil
}

// Pod returns the pod of that name; nil if there is none. It must not be changed.
func (x *Index) Pod(k Key) *corev1.Pod {
	if s := x.pods.byName[k]; s != nil {
		return s.pod
	}
	return nil
}

// Get returns the last decision about a Service: a nil Export if it is not exported.
func (x *Index) Get(k Key) (*Export, []Problem) {
	e := x.services[k]
	if e == nil || e.decision == nil {
		return nil, nil
	}
	return e.decision.export, e.decision.problems
}

// Flush decides the marked Services again and returns, sorted by Key, those whose
// decision changed.
func (x *Index) Flush() []Change {
	if len(x.dirty) == 0 {
		return nil
	}
	var out []Change
	for _, e := range x.dirty {
		stale := e.stale
		e.stale = 0
		if x.decide(e, stale) {
			c := Change{Key: e.key}
			if d := e.decision; d != nil {
				c.Export, c.Problems = d.export, d.problems
			}
			out = append(out, c)
		}
		x.drop(e)
	}
	clear(x.dirty)
	x.dirty = x.dirty[:0]
	slices.SortFunc(out, func(a, b Change) int { return a.Key.Compare(b.Key) })
	return out
}

// entry returns the entry of a Service. If there is none, it makes one or returns nil.
func (x *Index) entry(k Key, create bool) *entry {
	e := x.services[k]
	if e == nil && create {
		e = &entry{key: k, namespace: x.namespace(k.Namespace)}
		e.namespace.entries++
		x.services[k] = e
	}
	return e
}

// mark makes the next Flush decide e again. An entry that is not to be exported
// needs no decision.
func (x *Index) mark(e *entry, s staleness) {
	if e.stale == 0 {
		if e.decision == nil && !e.requested() {
			x.drop(e)
			return
		}
		x.dirty = append(x.dirty, e)
	}
	e.stale |= s
}

// drop removes an entry that holds nothing.
func (x *Index) drop(e *entry) {
	if e.stale != 0 || !e.empty() || x.services[e.key] != e {
		return
	}
	delete(x.services, e.key)
	e.namespace.entries--
	x.dropNamespace(e.namespace)
}

func (x *Index) namespace(name string) *namespace {
	n := x.namespaces[name]
	if n == nil {
		n = &namespace{name: name, decided: make(map[string]*entry)}
		x.namespaces[name] = n
	}
	return n
}

// dropNamespace removes a namespace that holds nothing.
func (x *Index) dropNamespace(n *namespace) {
	if n.entries == 0 && !n.known && len(n.exportPolicies) == 0 && len(n.ingress) == 0 {
		delete(x.namespaces, n.name)
	}
}
