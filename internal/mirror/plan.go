package mirror

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// Desired is what shall stand for one Link.
type Desired struct {
	Link *v1alpha1.Link
	// Own is Causeway's namespace.
	Own string
	// Version is Causeway's, for the annotation.
	Version string
	// Complete: Mirrors is everything, and other mirrors of the Link go away.
	Complete bool
	Mirrors  []Want
}

// Want is one mirror.
type Want struct {
	// Entry is its live entry in the ledger.
	Entry v1alpha1.LedgerMirror
	// Ready is what the mirror shall show.
	Ready bool
	// Heard: the peer has told of the source since this process began. Otherwise
	// Labels and Annotations are not known, and the mirror keeps what it has.
	Heard bool
	// Labels and Annotations are those to take over from the source.
	Labels, Annotations map[string]string
}

// Have is what stands, as far as it concerns the Link. It is not changed.
type Have struct {
	// Services are those that the Link owns, those that have the name of a
	// mirror of its, and those that a slice of its is for.
	Services map[catalog.Key]*corev1.Service
	// Slices are those that bear the Link's marks or the name of one of its slices.
	Slices map[catalog.Key]*discoveryv1.EndpointSlice
	// Namespaces holds those that exist and are not going away, Leaving those that are.
	Namespaces, Leaving map[string]bool
}

// Op is what a Change does. The zero Op is none.
type Op int

// The operations, in the order in which a plan has them for different mirrors.
const (
	Create Op = iota + 1
	Update
	Delete
)

// String is the operation in lower case, as metrics and logs have it.
func (o Op) String() string { return [...]string{"none", "create", "update", "delete"}[o] }

// Change is one write. Exactly one of Namespace, Service and Slice is set: the
// object as it shall be, or the one to delete. Namespaces are only ever created.
type Change struct {
	Op        Op
	Namespace *corev1.Namespace
	Service   *corev1.Service
	Slice     *discoveryv1.EndpointSlice
	// Was is what an Update starts from.
	Was client.Object
	// Orphan: a slice to be deleted because its Service, of this name, is not
	// there or not ours.
	Orphan string
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

// Plan decides what to write so that what stands becomes what shall stand: first
// slices that are loose are deleted, then mirrors are made and repaired in the
// order of their names, headless ones last, each Service before its slices, then
// Services deleted.
func Plan(want Desired, have Have) ([]Change, []Problem) {
	p := planner{
		Desired: want, have: have, rules: targets(want.Link),
		wanted:     make(map[catalog.Key]Want, len(want.Mirrors)),
		companions: make(map[catalog.Key][]Want),
		made:       make(map[string]bool),
		loose:      make(map[catalog.Key]bool),
	}
	for _, w := range want.Mirrors {
		p.wanted[w.key()] = w
		if w.Entry.Hostname != "" {
			p.companions[w.source()] = append(p.companions[w.source()], w)
		}
	}
	p.deleteLoose()
	keys := sortedKeys(p.wanted)
	for _, k := range keys {
		if w := p.wanted[k]; !w.lists() {
			p.mirror(k, w)
		}
	}
	for _, k := range keys {
		if w := p.wanted[k]; w.lists() {
			p.mirror(k, w) // what it lists stands already, or is listed next time
		}
	}
	if want.Complete {
		p.deleteUnwanted()
	}
	catalog.SortProblems(p.problems)
	return p.changes, p.problems
}

// planner is the state of one Plan.
type planner struct {
	Desired
	have   Have
	rules  rules
	made   map[string]bool // namespaces that the plan makes
	wanted map[catalog.Key]Want
	// companions are the wants of named pods, by the Service that they are pods of.
	companions map[catalog.Key][]Want
	loose      map[catalog.Key]bool // slices that the plan deletes
	changes    []Change
	problems   []Problem
}

// deleteLoose deletes the Link's slices that no mirror of the Link stands behind:
// each would lend our VIP to somebody else's Service. What another controller made,
// as for a Service that a person gave our labels, is no business of ours, unless it
// would mix others' endpoints under a mirror.
func (p *planner) deleteLoose() {
	for _, k := range sortedKeys(p.have.Slices) {
		slice := p.have.Slices[k]
		if !marked(slice.Labels, p.Link.Name) || !slice.DeletionTimestamp.IsZero() {
			continue
		}
		of := catalog.Key{Namespace: k.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
		svc := p.have.Services[of]
		w, wanted := p.wanted[of]
		switch {
		case svc == nil || !(p.owned(svc) || wanted && p.ours(svc, w)):
			if by := slice.Labels[discoveryv1.LabelManagedBy]; by == sliceManager || by == "" {
				p.deleteSlice(k, of.Name)
			}
		case wanted && !expected(w, slice): // of a family that is no more, or renamed
			p.deleteSlice(k, "")
		}
	}
}

// expected reports whether w has a slice of that name and kind.
func expected(w Want, slice *discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(w.vips(), func(vip netip.Addr) bool {
		return slice.Name == sliceName(w.Entry.MirrorName, vip) && slice.AddressType == family(vip)
	})
}

func (p *planner) deleteSlice(k catalog.Key, orphan string) {
	p.loose[k] = true
	p.changes = append(p.changes, Change{Op: Delete, Slice: p.have.Slices[k], Orphan: orphan})
}

// mirror makes or repairs one mirror.
func (p *planner) mirror(k catalog.Key, w Want) {
	svc := p.have.Services[k]
	switch {
	case !p.rules.allowed(k.Namespace, p.Own):
		p.problems = append(p.problems, problem(k, NamespaceNotAllowed, notAllowed))
		return
	case !p.namespace(k.Namespace):
		p.problems = append(p.problems, problem(k, NamespaceMissing, namespaceMissing))
		return
	case svc != nil && !p.ours(svc, w):
		p.problems = append(p.problems, p.nameTaken(k, svc))
		return
	case svc != nil && !svc.DeletionTimestamp.IsZero():
		return // once it is gone it is made anew
	case svc != nil && p.owned(svc) && headless(svc) != w.lists():
		p.changes = append(p.changes, Change{Op: Delete, Service: svc}) // Kubernetes turns no such Service into the other
		return
	}
	should := p.service(w, svc)
	switch {
	case svc == nil:
		p.changes = append(p.changes, Change{Op: Create, Service: should})
	case !equality.Semantic.DeepEqual(should, svc):
		p.changes = append(p.changes, Change{Op: Update, Service: should, Was: svc})
	}
	for _, vip := range w.vips() {
		p.slice(w, vip, should.UID)
	}
}

// namespace reports whether a namespace is there, having made it if that is our part.
func (p *planner) namespace(name string) bool {
	if p.have.Namespaces[name] || p.made[name] {
		return true
	}
	rules := p.Link.Spec.Import
	if rules == nil || !rules.CreateNamespaces || p.have.Leaving[name] {
		return false
	}
	p.made[name] = true
	p.changes = append(p.changes, Change{Op: Create, Namespace: p.newNamespace(name)})
	return true
}

func (p *planner) nameTaken(k catalog.Key, svc *corev1.Service) Problem {
	if p.left(svc) {
		return problem(k, NameTaken, "a mirror of an earlier Link of this name still stands: it is made anew once Kubernetes has collected that one")
	}
	return problem(k, NameTaken, "a Service of that name is here already and is not Causeway's: rename or delete it to have the mirror")
}

// slice makes or repairs the slice of one VIP.
func (p *planner) slice(w Want, vip netip.Addr, owner types.UID) {
	k := catalog.Key{Namespace: w.Entry.MirrorNamespace, Name: sliceName(w.Entry.MirrorName, vip)}
	slice := p.have.Slices[k]
	if slice != nil && !slice.DeletionTimestamp.IsZero() {
		return // once it is gone it is made anew
	}
	if slice != nil && !p.loose[k] && !marked(slice.Labels, p.Link.Name) && !ownedByService(slice, owner) {
		p.problems = append(p.problems, problem(k, NameTaken, "an EndpointSlice of that name is here already and is not Causeway's: delete it to have the mirror"))
		return
	}
	if slice == nil || p.loose[k] {
		p.changes = append(p.changes, Change{Op: Create, Slice: p.endpointSlice(w, vip, owner, p.endpoints(w, vip), nil)})
		return
	}
	if should := p.endpointSlice(w, vip, owner, p.endpoints(w, vip), slice); !equality.Semantic.DeepEqual(should, slice) {
		p.changes = append(p.changes, Change{Op: Update, Slice: should, Was: slice})
	}
}

// endpoints returns what the slice of one VIP lists: the VIP, or if the mirror is
// headless the addresses, in the VIP's family, of the mirrors of its named pods.
func (p *planner) endpoints(w Want, vip netip.Addr) []discoveryv1.Endpoint {
	if !w.lists() {
		return []discoveryv1.Endpoint{endpoint(vip, "", w.Ready)}
	}
	var out []discoveryv1.Endpoint
	for _, c := range p.companions[w.source()] {
		svc := p.have.Services[c.key()]
		if svc == nil || !p.ours(svc, c) || !svc.DeletionTimestamp.IsZero() {
			continue
		}
		if ip, ok := clusterIP(svc, vip.Is4()); ok {
			out = append(out, endpoint(ip, c.Entry.Hostname, c.Ready))
		}
	}
	slices.SortFunc(out, func(a, b discoveryv1.Endpoint) int { return strings.Compare(*a.Hostname, *b.Hostname) })
	return out
}

func ownedByService(slice *discoveryv1.EndpointSlice, owner types.UID) bool {
	for _, o := range slice.OwnerReferences {
		if owner != "" && o.Kind == "Service" && o.UID == owner {
			return true
		}
	}
	return false
}

// deleteUnwanted deletes the mirrors that the Link owns and nobody wants. Their
// slices go with them.
func (p *planner) deleteUnwanted() {
	for _, k := range sortedKeys(p.have.Services) {
		svc := p.have.Services[k]
		if _, wanted := p.wanted[k]; !wanted && p.owned(svc) && svc.DeletionTimestamp.IsZero() {
			p.changes = append(p.changes, Change{Op: Delete, Service: svc})
		}
	}
}

func sortedKeys[T any](m map[catalog.Key]T) []catalog.Key {
	keys := make([]catalog.Key, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, catalog.Key.Compare)
	return keys
}
