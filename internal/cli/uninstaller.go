package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/serviceexport"
)

// uninstaller takes Causeway out of one cluster. Every step of it may be repeated.
type uninstaller struct {
	client    client.Client
	namespace string
	progress  *progress
	// removed is what was, a line each, and notes what is left to be done elsewhere.
	removed, notes []string
	// peers are those whose Links went.
	peers []string
}

// runNodes removes what Helm cannot: Links and mirrors, agents, what vip-guards keep on nodes.
func (u *uninstaller) runNodes(ctx context.Context, s survey) error {
	// They first: each could make another Link.
	if err := u.remove(ctx, "invites and joins", invitations, nil); err != nil {
		return err
	}
	if err := u.removeLinks(ctx, s); err != nil {
		return err
	}
	if err := u.removeAgents(ctx); err != nil {
		return err
	}
	if len(u.peers) > 0 {
		slices.Sort(u.peers)
		u.notes = append(u.notes, "peers keep their own Links for this cluster until `causeway unlink` is run there: "+strings.Join(u.peers, ", "))
	}
	return u.remove(ctx, "pods that cleaned", []ours{{kind: kind("", "v1", "Pod"), labels: cleaners}}, nil)
}

// run removes what s found, in an order in which no caller's bytes leave a node: mirrors, agents, the nodes' routes, and
// only then those who would be needed to do it again.
func (u *uninstaller) run(ctx context.Context, s survey) error {
	if err := u.runNodes(ctx, s); err != nil {
		return err
	}
	if err := u.remove(ctx, "agents, gateways, controllers", workloads, u.noPods); err != nil {
		return err
	}
	exports, err := serviceexport.RemoveConditions(ctx, u.client)
	if err != nil {
		u.notes = append(u.notes, fmt.Sprintf("ServiceExports still have conditions of Causeway: %v", err))
	}
	if exports > 0 {
		u.progress.say("ServiceExports",
			"removed Causeway's conditions from "+count(exports, "ServiceExport"))
	}
	routes, err := removeRouteParents(ctx, u.client)
	if err != nil {
		u.notes = append(u.notes, fmt.Sprintf("routes still have status of Causeway: %v", err))
	}
	if routes > 0 {
		u.progress.say("routes", "removed Causeway's status from "+count(routes, "route"))
	}
	if err := u.remove(ctx, "rights, Services, keys", belongings, nil); err != nil {
		return err
	}
	if err := u.remove(ctx, "kinds", crds, nil); err != nil {
		return err
	}
	if err := u.removeNamespace(ctx, s); err != nil {
		return err
	}
	if s.helm && !s.made {
		u.notes = append(u.notes, fmt.Sprintf("Helm still has its record: `helm -n %s uninstall causeway` removes that", s.namespace))
	}
	return nil
}

// removeLinks deletes the Links that s found, and those that came after it: somebody may have joined while a person was asked.
func (u *uninstaller) removeLinks(ctx context.Context, s survey) error {
	for i := range s.links {
		if err := u.removeLink(ctx, &s.links[i]); err != nil {
			return err
		}
	}
	err := u.progress.until(ctx, wait{
		what: "Links", done: "gone, and their mirrors with them", undone: "are not wholly gone",
		hint: "Kubernetes' garbage collector removes the mirrors: does kube-controller-manager run? Running this command again goes on where it stopped",
		state: func() (string, error) {
			var links v1alpha1.LinkList
			if err := u.client.List(ctx, &links); err != nil && !noKinds(err) {
				return "", err
			}
			for i := range links.Items {
				if l := &links.Items[i]; !slices.Contains(u.peers, l.Name) {
					if err := u.removeLink(ctx, l); err != nil {
						return "", err
					}
				}
			}
			if len(links.Items) > 0 {
				return count(len(links.Items), "Link") + " left", nil
			}
			return allMirrors(u.client).left(ctx)
		},
	})
	if err != nil {
		return err
	}
	for _, m := range s.mirrors {
		u.removed = append(u.removed, "Service "+m)
	}
	return nil
}

func (u *uninstaller) removeLink(ctx context.Context, l *v1alpha1.Link) error {
	if err := deleteLink(ctx, u.client, l); err != nil {
		return fmt.Errorf("Link %s: %w", l.Name, err)
	}
	u.removed = append(u.removed, "Link "+l.Name)
	u.peers = append(u.peers, l.Name)
	return nil
}

// object is one that is to go.
type object struct {
	kind schema.GroupVersionKind
	metav1.ObjectMeta
}

func (o object) String() string {
	return strings.Join(strings.Fields(o.kind.Kind+" "+strings.TrimPrefix(o.Namespace+"/"+o.Name, "/")), " ")
}

// ours tells which objects of a kind are Causeway's.
type ours struct {
	kind schema.GroupVersionKind
	// cluster: they have no namespace; the others are looked for in Causeway's own.
	cluster bool
	// labels are those that ours have, nil: any. named picks by name, nil: all.
	labels client.MatchingLabels
	named  func(string) bool
}

func kind(group, version, kind string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: group, Version: version, Kind: kind}
}

// charts' objects have these labels, those that the controller makes the other ones.
var (
	charted    = client.MatchingLabels{clusterinfo.NameLabel: clusterinfo.Causeway, clusterinfo.PartOfLabel: clusterinfo.Causeway}
	controlled = client.MatchingLabels{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}
)

// What an installation consists of, beside Links, mirrors and its namespace, in the order in which it goes.
var (
	invitations = []ours{
		{kind: v1alpha1.GroupVersion.WithKind("Invite")},
		{kind: v1alpha1.GroupVersion.WithKind("Join")},
	}
	workloads = []ours{
		{kind: kind("apps", "v1", "DaemonSet"), labels: charted},
		{kind: kind("apps", "v1", "Deployment"), labels: charted},
	}
	belongings = []ours{
		{kind: kind("", "v1", "Service"), labels: charted},
		{kind: kind("policy", "v1", "PodDisruptionBudget"), labels: charted},
		{kind: kind("monitoring.coreos.com", "v1", "PodMonitor"), labels: charted},
		{kind: kind("monitoring.coreos.com", "v1", "PrometheusRule"), labels: charted},
		{kind: kind("", "v1", "ConfigMap"), labels: charted},
		{kind: kind("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"), cluster: true, labels: charted},
		{kind: kind("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"), cluster: true, labels: charted},
		{kind: kind("rbac.authorization.k8s.io", "v1", "ClusterRole"), cluster: true, labels: charted},
		{kind: kind("rbac.authorization.k8s.io", "v1", "RoleBinding"), labels: charted},
		{kind: kind("rbac.authorization.k8s.io", "v1", "Role"), labels: charted},
		{kind: kind("", "v1", "ServiceAccount"), labels: charted},
		{kind: kind("", "v1", "Secret"), labels: controlled},
		{kind: kind("", "v1", "ConfigMap"), labels: controlled},
		{kind: kind("coordination.k8s.io", "v1", "Lease"), named: func(name string) bool { return name == clusterinfo.ControllerName }},
	}
	crds = []ours{{
		kind: kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition"), cluster: true,
		named: func(name string) bool { return strings.HasSuffix(name, "."+v1alpha1.GroupVersion.Group) },
	}}
)

// find returns the objects that stand, in the order of which.
func (u *uninstaller) find(ctx context.Context, which ...ours) ([]object, error) {
	var found []object
	for _, w := range which {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(w.kind.GroupVersion().WithKind(w.kind.Kind + "List"))
		var options []client.ListOption
		if !w.cluster {
			options = append(options, client.InNamespace(u.namespace))
		}
		if w.labels != nil {
			options = append(options, w.labels)
		}
		if err := u.client.List(ctx, &list, options...); err != nil && !noKinds(err) {
			return nil, fmt.Errorf("list %ss: %w", w.kind.Kind, err)
		}
		for _, o := range list.Items {
			if w.named == nil || w.named(o.Name) {
				found = append(found, object{w.kind, o.ObjectMeta})
			}
		}
	}
	return found, nil
}

// remove deletes objects and waits until they are gone and after, if given, misses nothing.
func (u *uninstaller) remove(ctx context.Context, what string, which []ours, after func(context.Context) (string, error)) error {
	objects, err := u.find(ctx, which...)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if err := u.delete(ctx, o); err != nil {
			return err
		}
	}
	return u.progress.until(ctx, wait{
		what: what, done: "gone", undone: "are not gone",
		hint: fmt.Sprintf("`kubectl -n %s get all` may tell what keeps them; running this command again goes on where it stopped", u.namespace),
		state: func() (string, error) {
			left, err := u.find(ctx, which...)
			switch {
			case err != nil:
				return "", err
			case len(left) > 0:
				return fmt.Sprintf("%d left, such as %v", len(left), left[0]), nil
			case after != nil:
				return after(ctx)
			}
			return "", nil
		},
	})
}

// delete deletes this very object, and not another that has its name by now. Kubernetes collects what it owns.
func (u *uninstaller) delete(ctx context.Context, o object) error {
	it := &unstructured.Unstructured{} // of metadata alone the client would want to know the kind
	it.SetGroupVersionKind(o.kind)
	it.SetNamespace(o.Namespace)
	it.SetName(o.Name)
	err := u.client.Delete(ctx, it, client.Preconditions{UID: &o.UID}, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %v: %w", o, err)
	}
	if err == nil {
		u.removed = append(u.removed, o.String())
	}
	return nil
}

// madeNamespace reports whether install made Causeway's namespace.
func (u *uninstaller) madeNamespace(ctx context.Context) (bool, error) {
	var ns corev1.Namespace
	err := u.client.Get(ctx, client.ObjectKey{Name: u.namespace}, &ns)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("look at namespace %s: %w", u.namespace, err)
	}
	return err == nil && ns.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy, nil
}

// removeNamespace deletes the namespace if install made it, and else takes back what install wrote on it.
func (u *uninstaller) removeNamespace(ctx context.Context, s survey) error {
	if s.made {
		named := func(name string) bool { return name == u.namespace }
		return u.remove(ctx, "namespace", []ours{{kind: kind("", "v1", "Namespace"), cluster: true, labels: controlled, named: named}}, nil)
	}
	var ns corev1.Namespace
	err := u.client.Get(ctx, client.ObjectKey{Name: u.namespace}, &ns)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at namespace %s: %w", u.namespace, err)
	}
	wrote := slices.ContainsFunc(ns.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == string(fieldOwner) })
	if !wrote {
		return nil
	}
	none := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": u.namespace},
	}}
	if err := u.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(none), fieldOwner, client.ForceOwnership); err != nil {
		return applyError(none, err)
	}
	u.progress.say("namespace", "stays, as it was there before Causeway")
	return nil
}
