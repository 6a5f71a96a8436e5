package check

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/kube"
)

// Gather reads what the API server knows into f, whose Namespace says where Causeway is and whose Rights say which to ask
// about. What cannot be read is in f.Unread.
func Gather(ctx context.Context, c client.Client, f *Facts) {
	g := gatherer{ctx: ctx, c: c, f: f, slots: make(chan struct{}, 8)}
	g.kinds()
	g.rights()
	g.identity()
	g.components()
	g.do("nodes", g.nodes)
	g.do("pods", g.pods)
	g.do("Services", g.services)
	g.do("EndpointSlices", g.slices)
	g.running.Wait()
	slices.SortFunc(f.Unread, func(a, b Unread) int { return cmp.Or(strings.Compare(a.What, b.What), strings.Compare(a.Why, b.Why)) })
	f.Unread = slices.CompactFunc(f.Unread, func(a, b Unread) bool { return a.What == b.What })
	slices.SortFunc(f.Components, func(a, b Component) int { return strings.Compare(a.Name, b.Name) })
}

// gatherer reads several things at a time.
type gatherer struct {
	ctx     context.Context
	c       client.Client
	f       *Facts
	slots   chan struct{}
	running sync.WaitGroup

	mu sync.Mutex // guards f
}

// do reads something in a goroutine, which Gather waits for. read returns what to keep.
func (g *gatherer) do(what string, read func() (keep func(), err error)) {
	g.running.Go(func() {
		g.slots <- struct{}{}
		defer func() { <-g.slots }()
		keep, err := read()
		g.mu.Lock()
		defer g.mu.Unlock()
		switch {
		case err != nil:
			g.f.Unread = append(g.f.Unread, Unread{what, err.Error()})
		case keep != nil:
			keep()
		}
	})
}

// kinds lists Causeway's own objects; a kind that is not known is missing.
func (g *gatherer) kinds() {
	g.f.Kinds = map[string]bool{}
	own := client.InNamespace(g.f.Namespace)
	g.kind("Link", new(v1alpha1.LinkList), func(l client.ObjectList) { g.f.Links = l.(*v1alpha1.LinkList).Items })
	g.kind("ExportPolicy", new(v1alpha1.ExportPolicyList), func(client.ObjectList) {})
	g.kind("Ledger", new(v1alpha1.LedgerList), func(l client.ObjectList) { g.f.Ledgers = l.(*v1alpha1.LedgerList).Items }, own)
	g.kind("Invite", new(v1alpha1.InviteList), func(l client.ObjectList) { g.f.Invites = l.(*v1alpha1.InviteList).Items }, own)
	g.kind("Join", new(v1alpha1.JoinList), func(l client.ObjectList) { g.f.Joins = l.(*v1alpha1.JoinList).Items }, own)
	g.kind("PeerTrust", new(v1alpha1.PeerTrustList), func(l client.ObjectList) { g.f.Trusts = l.(*v1alpha1.PeerTrustList).Items }, own)
}

func (g *gatherer) kind(name string, list client.ObjectList, keep func(client.ObjectList), options ...client.ListOption) {
	g.do(name+"s", func() (func(), error) {
		err := g.c.List(g.ctx, list, options...)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return func() { g.f.Kinds[name] = false }, nil
		}
		return func() { g.f.Kinds[name] = true; keep(list) }, err
	})
}

// rights asks the API server about each right.
func (g *gatherer) rights() {
	for i := range g.f.Rights {
		r := g.f.Rights[i]
		resource, sub, _ := strings.Cut(r.Resource, "/")
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   "system:serviceaccount:" + g.f.Namespace + ":" + r.Account,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + g.f.Namespace, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: r.Namespace, Verb: r.Verb, Group: r.Group, Resource: resource, Subresource: sub, Name: r.Name,
			},
		}}
		g.do("the rights of "+r.Account, func() (func(), error) {
			err := g.c.Create(g.ctx, review)
			g.mu.Lock()
			defer g.mu.Unlock()
			g.f.Rights[i].Allowed, g.f.Rights[i].Unknown = review.Status.Allowed, err != nil
			return nil, err
		})
	}
}

func (g *gatherer) identity() {
	g.do("ConfigMap "+clusterinfo.IdentityConfigMap, func() (func(), error) {
		var m corev1.ConfigMap
		err := g.c.Get(g.ctx, client.ObjectKey{Namespace: g.f.Namespace, Name: clusterinfo.IdentityConfigMap}, &m)
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return func() { g.f.Identity = m.Data }, err
	})
}

func (g *gatherer) components() {
	for _, name := range []string{"controller", "gateway"} {
		g.do("Deployment causeway-"+name, func() (func(), error) {
			var d appsv1.Deployment
			found, err := g.find("causeway-"+name, &d)
			c := Component{Name: name, Found: found, Want: 1, Ready: int(d.Status.ReadyReplicas)}
			if d.Spec.Replicas != nil {
				c.Want = int(*d.Spec.Replicas)
			}
			return func() { g.f.Components = append(g.f.Components, c) }, err
		})
	}
}

// find gets an object of Causeway's namespace, if it is there.
func (g *gatherer) find(name string, o client.Object) (bool, error) {
	err := g.c.Get(g.ctx, client.ObjectKey{Namespace: g.f.Namespace, Name: name}, o)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (g *gatherer) nodes() (func(), error) {
	var list corev1.NodeList
	if err := g.c.List(g.ctx, &list); err != nil {
		return nil, err
	}
	var out []Node
	for _, n := range list.Items {
		out = append(out, Node{
			Name: n.Name, Linux: cmp.Or(n.Labels[corev1.LabelOSStable], "linux") == "linux",
			Ready: kube.NodeReady(&n),
		})
	}
	slices.SortFunc(out, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return func() { g.f.Nodes = out }, nil
}

func (g *gatherer) pods() (func(), error) {
	var list corev1.PodList
	if err := g.c.List(g.ctx, &list, client.InNamespace(g.f.Namespace), client.MatchingLabels{clusterinfo.NameLabel: clusterinfo.Causeway}); err != nil {
		return nil, err
	}
	var out []Pod
	for i := range list.Items {
		p := &list.Items[i]
		if p.DeletionTimestamp != nil || kube.PodFinished(p) {
			continue
		}
		ready, _ := kube.PodReady(p)
		out = append(out, Pod{
			Name:      p.Name,
			Component: p.Labels[clusterinfo.ComponentLabel],
			Node:      p.Spec.NodeName,
			Ready:     ready,
			Trouble:   trouble(p),
			PathFails: pathFails(p),
		})
	}
	slices.SortFunc(out, func(a, b Pod) int { return strings.Compare(a.Name, b.Name) })
	return func() { g.f.Pods = out }, nil
}

// PathProved is the condition by which an agent's pod bears in mind that its node's path failed when it was last proved, as
// long as the pod lives; it is not there if the path did not fail. Whoever sends canaries writes it.
const PathProved corev1.PodConditionType = "causeway.dev/PathProved"

func pathFails(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == PathProved && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("%s (since %s)", c.Message, c.LastTransitionTime.UTC().Format("2006-01-02 15:04 MST"))
		}
	}
	return ""
}

// trouble is what Kubernetes says keeps p from running; "": nothing.
func trouble(p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			return s.Name + ": " + w.Reason
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("%s: %s", c.Reason, c.Message)
		}
	}
	return ""
}

// page is how many objects are read at a time.
const page = 500

func (g *gatherer) services() (func(), error) {
	var all []corev1.Service
	for next := ""; ; {
		var list corev1.ServiceList
		if err := g.c.List(g.ctx, &list, client.Limit(page), client.Continue(next)); err != nil {
			return nil, err
		}
		all = append(all, list.Items...)
		if next = list.Continue; next == "" {
			return func() { g.f.Services = all }, nil
		}
	}
}

// slices leaves out those that Kubernetes makes for Services with a selector: the most by far.
func (g *gatherer) slices() (func(), error) {
	others, err := labels.NewRequirement(discoveryv1.LabelManagedBy, selection.NotIn, []string{"endpointslice-controller.k8s.io"})
	if err != nil {
		return nil, err
	}
	which := client.MatchingLabelsSelector{Selector: labels.NewSelector().Add(*others)}
	var all []discoveryv1.EndpointSlice
	for next := ""; ; {
		var list discoveryv1.EndpointSliceList
		if err := g.c.List(g.ctx, &list, which, client.Limit(page), client.Continue(next)); err != nil {
			return nil, err
		}
		all = append(all, list.Items...)
		if next = list.Continue; next == "" {
			return func() { g.f.Slices = all }, nil
		}
	}
}
