package mirror

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// Want is one mirror as it should be. It must not be changed once a Writer has it.
type Want struct {
	// Entry is its entry in the ledger, already stored.
	Entry ledger.Mirror
	// Ready is whether the source has ready endpoints.
	Ready bool
	// Known: the peer has described the source since this process began. Otherwise Ready,
	// Labels and Annotations mean nothing, and the mirror keeps what it has.
	Known bool
	// Labels and Annotations are those to copy from the source.
	Labels, Annotations map[string]string
}

// Have is what stands, as far as it concerns one mirror. The objects are the cache's and
// are not changed.
type Have struct {
	// Service is the one that has the mirror's name; nil: there is none.
	Service *corev1.Service
	// Slices are those with Causeway's marks that belong to a Service of that name, and
	// those that have the names of the mirror's slices.
	Slices []*discoveryv1.EndpointSlice
	// Companions are the mirrors of the named pods that a headless mirror lists.
	Companions []Companion
	// NamespaceExists: objects can be created in the namespace.
	NamespaceExists bool
	// NamespaceTerminating: the namespace is being deleted.
	NamespaceTerminating bool
	// Collecting: we have just deleted the Service, and Kubernetes is deleting its
	// slices.
	Collecting bool
}

// Companion is the mirror of one named pod.
type Companion struct {
	Want *Want
	// Service has the name of the mirror; nil: there is none.
	Service *corev1.Service
	// Ready is what the mirror's own slice is to show.
	Ready bool
}

// Op is what a Change does. The zero Op is none.
type Op int

// The operations.
const (
	Create Op = iota + 1
	Update
	Delete
)

// String is the operation in lower case, as in metrics and logs.
func (o Op) String() string { return [...]string{"none", "create", "update", "delete"}[o] }

// Change is one write. Exactly one of Namespace, Service and Slice is set: the object as
// it should be, or the one to delete. Namespaces are only created.
type Change struct {
	Op        Op
	Namespace *corev1.Namespace
	Service   *corev1.Service
	Slice     *discoveryv1.EndpointSlice
	// Was is what an Update starts from.
	Was client.Object
	// Orphaned: the slice is deleted because no mirror stands behind it. The caches of
	// Services and slices are not in step, so the Service must be missed by a live read.
	Orphaned bool
}

// isContent reports whether c updates an object and leaves the endpoints as they are.
func (c Change) isContent() bool { return c.Op == Update && !c.changesEndpoints() }

// isUrgent reports whether neither c nor changes that are made together with c may be
// held. This is so if c creates the Service, or changes endpoints, owners, or the Service
// that a slice belongs to.
func (c Change) isUrgent() bool {
	switch {
	case c.Op == Delete:
		return false
	case c.Op == Create:
		return c.Service != nil
	case c.changesEndpoints():
		return true
	}
	is, was := c.Object(), c.Was
	return !slices.EqualFunc(is.GetOwnerReferences(), was.GetOwnerReferences(), sameRef) ||
		is.GetLabels()[discoveryv1.LabelServiceName] != was.GetLabels()[discoveryv1.LabelServiceName]
}

// changesEndpoints reports whether c updates a slice to list other endpoints, or the same
// ones with another readiness.
func (c Change) changesEndpoints() bool {
	if c.Slice == nil || c.Op != Update {
		return false
	}
	was, is := c.Was.(*discoveryv1.EndpointSlice), c.Slice
	return !equality.Semantic.DeepEqual(was.Endpoints, is.Endpoints)
}

// Object returns the object that c is about.
func (c Change) Object() client.Object {
	switch {
	case c.Namespace != nil:
		return c.Namespace
	case c.Slice != nil:
		return c.Slice
	}
	return c.Service
}

// String is such as "create service shop/bar-east".
func (c Change) String() string { return fmt.Sprintf("%v %s", c.Op, c.about()) }

// about names the object, such as "service shop/bar-east".
func (c Change) about() string {
	switch {
	case c.Namespace != nil:
		return "namespace " + c.Namespace.Name
	case c.Slice != nil:
		return "slice " + keyOf(c.Slice).String()
	}
	return "service " + keyOf(c.Service).String()
}

func keyOf(o client.Object) catalog.Key {
	return catalog.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// PlanMirror decides what to write so that one mirror becomes what it should be: orphaned
// slices are deleted first, then the namespace, the Service and its slices are made or
// repaired, in this order. k is the mirror's name. A nil w is a mirror that is not
// wanted. ready is what its slices are to show. PlanMirror is pure; if nothing differs it
// returns nil and allocates nothing.
func PlanMirror(s *Scope, k catalog.Key, w *Want, ready bool, have Have) ([]Change, []Problem) {
	p := planner{Scope: s, key: k, want: w, ready: ready, have: have}
	ours := have.Service != nil && s.ours(have.Service, w)
	p.deleteStray(ours)
	if w != nil {
		p.ensure(ours)
	} else if ours && s.Complete && have.Service.DeletionTimestamp.IsZero() {
		p.changes = append(p.changes, Change{
			Op:      Delete,
			Service: have.Service,
		}) // Kubernetes collects its slices
	}
	return p.changes, p.problems
}

// planner is the state of one PlanMirror.
type planner struct {
	*Scope
	key      catalog.Key
	want     *Want
	ready    bool
	have     Have
	changes  []Change
	problems []Problem
}

// deleteStray deletes the Link's slices that have no mirror of the Link, because each of
// them would add our VIP to another Service. It also deletes slices that a mirror does
// not need. A slice that another controller made for a Service that bears our labels is
// left alone, unless it would mix other endpoints under a mirror.
func (p *planner) deleteStray(ours bool) {
	if p.want == nil && p.have.Service == nil && p.have.Collecting {
		return
	}
	for _, slice := range p.have.Slices {
		if !marked(slice.Labels, p.Link.Name) || !slice.DeletionTimestamp.IsZero() ||
			slice.Labels[discoveryv1.LabelServiceName] != p.key.Name {
			continue
		}
		switch {
		case !ours:
			if by := slice.Labels[discoveryv1.LabelManagedBy]; by == sliceManager || by == "" {
				p.changes = append(p.changes, Change{Op: Delete, Slice: slice, Orphaned: true})
			}
		case p.want != nil && !p.want.expects(slice): // of a family that is gone, or of another controller
			p.changes = append(p.changes, Change{Op: Delete, Slice: slice})
		}
	}
}

// ensure makes or repairs the mirror.
func (p *planner) ensure(ours bool) {
	svc := p.have.Service
	switch {
	case !p.Rules.allowed(p.key.Namespace):
		p.problem(NamespaceNotAllowed, notAllowed)
		return
	case !p.ensureNamespace():
		p.problem(NamespaceMissing, namespaceMissing)
		return
	case svc != nil && !ours && p.left(svc):
		p.problem(NameTaken, earlierLink)
		return
	case svc != nil && !ours:
		p.problem(NameTaken, serviceInTheWay)
		return
	case svc != nil && !svc.DeletionTimestamp.IsZero():
		return // once it is gone it is made again
	case svc != nil && p.owned(svc) && isHeadless(svc) != p.want.isHeadlessParent():
		// Kubernetes does not change an ordinary Service into a headless one or back.
		p.changes = append(p.changes, Change{Op: Delete, Service: svc})
		return
	}
	var owner types.UID
	switch {
	case svc == nil:
		p.changes = append(p.changes, Change{Op: Create, Service: p.service(p.want, nil)})
	case p.serviceDiffers(p.want, svc):
		owner = svc.UID
		p.changes = append(p.changes, Change{Op: Update, Service: p.service(p.want, svc), Was: svc})
	default:
		owner = svc.UID
	}
	for _, vip := range p.want.Entry.VIPs {
		p.ensureSlice(vip, owner)
	}
}

// ensureNamespace reports whether the namespace is there, or going to be made by this
// plan.
func (p *planner) ensureNamespace() bool {
	if p.have.NamespaceExists {
		return true
	}
	if !p.Rules.createNamespaces || p.have.NamespaceTerminating {
		return false
	}
	p.changes = append(p.changes, Change{Op: Create, Namespace: p.newNamespace(p.key.Namespace)})
	return true
}

// newNamespace is a namespace for mirrors. It has no owner, because others may use it
// when the Link is gone.
func (s *Scope) newNamespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name,
		Labels: map[string]string{
			v1alpha1.ManagedByLabel: v1alpha1.ManagedBy,
			v1alpha1.LinkLabel:      s.Link.Name,
		},
	}}
}

// ensureSlice makes or repairs the slice of one VIP.
func (p *planner) ensureSlice(vip netip.Addr, owner types.UID) {
	slice := p.sliceFor(vip)
	if slice != nil && !slice.DeletionTimestamp.IsZero() {
		return // once it is gone it is made again
	}
	var one [1]target // the usual case stays on the stack
	targets := one[:]
	if p.want.isHeadlessParent() {
		targets = p.listed(vip.Is4())
	} else {
		one[0] = target{ip: vip, ready: p.ready}
	}
	switch {
	case slice == nil || p.deletes(slice):
		p.changes = append(p.changes, Change{Op: Create, Slice: p.slice(p.want, vip, owner, targets, nil)})
	case !marked(slice.Labels, p.Link.Name) && !ownedByService(slice, owner):
		p.problems = append(p.problems, problem(keyOf(slice), NameTaken, sliceInTheWay))
	case p.sliceDiffers(p.want, vip, owner, targets, slice):
		should := p.slice(p.want, vip, owner, targets, slice)
		p.changes = append(p.changes, Change{Op: Update, Slice: should, Was: slice})
	}
}

func (p *planner) sliceFor(vip netip.Addr) *discoveryv1.EndpointSlice {
	for _, slice := range p.have.Slices {
		if isSliceName(slice.Name, p.want.Entry.MirrorName, vip) {
			return slice
		}
	}
	return nil
}

// deletes reports whether the plan deletes slice.
func (p *planner) deletes(slice *discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(p.changes, func(c Change) bool { return c.Op == Delete && c.Slice == slice })
}

// listed returns the addresses, in one family, of the mirrors of the named pods, by name.
// A mirror without an address of that family is listed once it has one.
func (p *planner) listed(v4 bool) []target {
	var out []target
	for _, c := range p.have.Companions {
		if c.Service == nil || !p.ours(c.Service, c.Want) || !c.Service.DeletionTimestamp.IsZero() {
			continue
		}
		if ip, ok := clusterIP(c.Service, v4); ok {
			out = append(out, target{ip: ip, hostname: c.Want.Entry.Hostname, ready: c.Ready})
		}
	}
	slices.SortFunc(out, func(a, b target) int { return strings.Compare(a.hostname, b.hostname) })
	return out
}

func (p *planner) problem(reason, message string) {
	p.problems = append(p.problems, problem(p.key, reason, message))
}
