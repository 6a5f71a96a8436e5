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
	"github.com/causeway-mesh/causeway/internal/crds"
	"github.com/causeway-mesh/causeway/internal/kube"
)

// Gather reads from the API server into f. f.Namespace must be Causeway's own, and
// f.Rights the rights to ask about. Errors are recorded in f.Unread. It blocks until
// every answer arrived or ctx is done.
func Gather(ctx context.Context, c client.Client, f *Facts) {
	g := gatherer{ctx: ctx, c: c, f: f, slots: make(chan struct{}, 8)}
	g.kinds()
	g.rights()
	g.identity()
	g.components()
	g.do("CustomResourceDefinitions", g.outdatedCRDs)
	g.do("nodes", g.nodes)
	g.do("pods", g.pods)
	g.do("Services", g.services)
	g.do("EndpointSlices", g.slices)
	g.running.Wait()
	slices.SortFunc(f.Unread, func(a, b Unread) int {
		return cmp.Or(strings.Compare(a.What, b.What), strings.Compare(a.Why, b.Why))
	})
	f.Unread = slices.CompactFunc(f.Unread, func(a, b Unread) bool { return a.What == b.What })
	slices.SortFunc(f.Components, func(a, b Component) int { return strings.Compare(a.Name, b.Name) })
}

// gatherer runs at most cap(slots) reads at a time.
type gatherer struct {
	ctx     context.Context
	c       client.Client
	f       *Facts
	slots   chan struct{}
	running sync.WaitGroup

	mu sync.Mutex // guards f
}

// do calls read in a goroutine and, with the lock held, the function that read returns.
// Gather waits for it.
func (g *gatherer) do(what string, read func() (store func(), err error)) {
	g.running.Go(func() {
		g.slots <- struct{}{}
		defer func() { <-g.slots }()
		store, err := read()
		g.mu.Lock()
		defer g.mu.Unlock()
		switch {
		case err != nil:
			g.f.Unread = append(g.f.Unread, Unread{what, err.Error()})
		case store != nil:
			store()
		}
	})
}

// kinds lists Causeway's own objects and records the kinds that the API server does not
// serve.
func (g *gatherer) kinds() {
	g.f.Kinds = map[string]bool{}
	own := client.InNamespace(g.f.Namespace)
	g.list("ExportPolicy", new(v1alpha1.ExportPolicyList), func() {})
	links, ledgers := new(v1alpha1.LinkList), new(v1alpha1.LedgerList)
	g.list("Link", links, func() { g.f.Links = links.Items })
	g.list("Ledger", ledgers, func() { g.f.Ledgers = ledgers.Items }, own)
	invites, joins := new(v1alpha1.InviteList), new(v1alpha1.JoinList)
	g.list("Invite", invites, func() { g.f.Invites = invites.Items }, own)
	g.list("Join", joins, func() { g.f.Joins = joins.Items }, own)
	trusts := new(v1alpha1.PeerTrustList)
	g.list("PeerTrust", trusts, func() { g.f.Trusts = trusts.Items }, own)
	g.list("Tap", new(v1alpha1.TapList), func() {}, own)
}

func (g *gatherer) outdatedCRDs() (func(), error) {
	outdated, err := crds.Outdated(g.ctx, g.c)
	return func() { g.f.OutdatedCRDs = outdated }, err
}

// list lists objects of one kind and then calls store.
func (g *gatherer) list(kind string, into client.ObjectList, store func(), options ...client.ListOption) {
	g.do(kind+"s", func() (func(), error) {
		err := g.c.List(g.ctx, into, options...)
		if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
			return func() { g.f.Kinds[kind] = false }, nil
		}
		return func() { g.f.Kinds[kind] = true; store() }, err
	})
}

// rights asks the API server about each right.
func (g *gatherer) rights() {
	for i := range g.f.Rights {
		r := g.f.Rights[i]
		resource, sub, _ := strings.Cut(r.Resource, "/")
		const account, accounts = "system:serviceaccount:", "system:serviceaccounts"
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   account + g.f.Namespace + ":" + r.Account,
			Groups: []string{accounts, accounts + ":" + g.f.Namespace, "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace:   r.Namespace,
				Verb:        r.Verb,
				Group:       r.Group,
				Resource:    resource,
				Subresource: sub,
				Name:        r.Name,
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
		err := g.c.Get(g.ctx, client.ObjectKey{Namespace: g.f.Namespace,
			Name: clusterinfo.IdentityConfigMap}, &m)
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

// find gets an object of Causeway's namespace and reports whether it exists.
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
	ours := client.MatchingLabels{clusterinfo.NameLabel: clusterinfo.Causeway}
	if err := g.c.List(g.ctx, &list, client.InNamespace(g.f.Namespace), ours); err != nil {
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
			Failure:   podFailure(p),
			PathFails: pathFails(p),
		})
	}
	slices.SortFunc(out, func(a, b Pod) int { return strings.Compare(a.Name, b.Name) })
	return func() { g.f.Pods = out }, nil
}

// PathProved is a condition of an agent's pod. It is False if the node's path failed when
// a canary tested it last, and absent otherwise. The command that sends the canaries
// writes it.
const PathProved corev1.PodConditionType = "causeway.dev/PathProved"

func pathFails(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == PathProved && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("%s (since %s)", c.Message,
				c.LastTransitionTime.UTC().Format("2006-01-02 15:04 MST"))
		}
	}
	return ""
}

// podFailure returns why p does not run, if Kubernetes says so.
func podFailure(p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" &&
			w.Reason != "PodInitializing" {
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

// pageSize is the number of objects that one request lists at most.
const pageSize = 500

func (g *gatherer) services() (func(), error) {
	var all []corev1.Service
	for next := ""; ; {
		var list corev1.ServiceList
		if err := g.c.List(g.ctx, &list, client.Limit(pageSize), client.Continue(next)); err != nil {
			return nil, err
		}
		all = append(all, list.Items...)
		if next = list.Continue; next == "" {
			return func() { g.f.Services = all }, nil
		}
	}
}

// slices leaves out the EndpointSlices that Kubernetes makes for Services with a
// selector, because most are of that kind and none is a mirror's.
func (g *gatherer) slices() (func(), error) {
	builtIn := []string{"endpointslice-controller.k8s.io"}
	others, err := labels.NewRequirement(discoveryv1.LabelManagedBy, selection.NotIn, builtIn)
	if err != nil {
		return nil, err
	}
	which := client.MatchingLabelsSelector{Selector: labels.NewSelector().Add(*others)}
	var all []discoveryv1.EndpointSlice
	for next := ""; ; {
		var list discoveryv1.EndpointSliceList
		if err := g.c.List(g.ctx, &list, which, client.Limit(pageSize), client.Continue(next)); err != nil {
			return nil, err
		}
		all = append(all, list.Items...)
		if next = list.Continue; next == "" {
			return func() { g.f.Slices = all }, nil
		}
	}
}
