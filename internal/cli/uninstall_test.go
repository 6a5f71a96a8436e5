package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/charts"
)

// livingClusters are those that stories install Causeway into and take it out of.
var livingClusters = map[string]func() cluster{
	"living":      func() cluster { return living(readyNode("node-1", true), readyNode("node-2", true)) },
	"one-is-down": func() cluster { return living(readyNode("node-1", true), readyNode("node-2", false)) },
	"shared": func() cluster {
		return living(readyNode("node-1", true), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "causeway-system", Labels: map[string]string{"team": "net"}}})
	},
	"never-clean": func() cluster { return living(readyNode("node-1", true), readyNode("stubborn", true)) },
}

func readyNode(name string, ready bool) *corev1.Node {
	status := map[bool]corev1.ConditionStatus{true: corev1.ConditionTrue, false: corev1.ConditionUnknown}[ready]
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux"}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}},
	}
}

// belongs are what a cluster has after a while beside the chart's objects: what the controller makes, a Link and its mirrors.
func belongs() []client.Object {
	in := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "causeway-system", Name: name, Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}}
	}
	l := linkTo("east", "east-4d5e6f70")
	m := mirrorOf(l, "shop", "bar-east", true)
	return []client.Object{
		&corev1.Secret{ObjectMeta: in("causeway-root")}, &corev1.Secret{ObjectMeta: in("causeway-keys")},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Name: "causeway-controller"}},
		&v1alpha1.ExportPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar"}},
		l, m.service, m.slice, agentPod("node-1"), agentPod("node-2"),
	}
}

func agentPod(node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "causeway-system", Name: "causeway-agent-" + node,
			Labels: map[string]string{"app.kubernetes.io/name": "causeway", "app.kubernetes.io/component": "agent"},
		},
		Spec: corev1.PodSpec{NodeName: node},
	}
}

// living is a cluster with controllers of its own: an install becomes ready, owners' objects are collected, agents stop
// when nothing selects their node, and cleanup pods run, each a look later; the one on a node called stubborn fails. The kinds'
// objects go with them.
func living(objects ...client.Object) cluster {
	f := collecting(2, dropKinds)
	grown := growing(1)
	f.Get, f.Create = grown.Get, grown.Create
	list := f.List
	f.List = func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
		if m, ok := l.(*metav1.PartialObjectMetadataList); ok && (strings.HasPrefix(m.Kind, "CustomResourceDefinition") || strings.HasPrefix(m.APIVersion, "monitoring.")) {
			return listUntyped(ctx, c, m, opts...)
		}
		if _, ok := l.(*discoveryv1.EndpointSliceList); ok {
			return grown.List(ctx, c, l, opts...)
		}
		if err := list(ctx, c, l, opts...); err != nil {
			return err
		}
		if _, ok := l.(*corev1.PodList); ok {
			return stepPods(ctx, c)
		}
		return nil
	}
	return made("v1.36.3", f, objects...)
}

// listUntyped lists the metadata of objects. The fake client cannot do so for a kind
// without a Go type.
func listUntyped(ctx context.Context, c client.WithWatch, l *metav1.PartialObjectMetadataList, opts ...client.ListOption) error {
	var all unstructured.UnstructuredList
	all.SetGroupVersionKind(l.GroupVersionKind())
	if err := c.List(ctx, &all, opts...); err != nil {
		return err
	}
	l.Items = nil
	for _, u := range all.Items {
		l.Items = append(l.Items, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Namespace: u.GetNamespace(), Name: u.GetName(), Labels: u.GetLabels(), UID: u.GetUID(), ManagedFields: u.GetManagedFields(),
		}})
	}
	return nil
}

func stepPods(ctx context.Context, c client.WithWatch) error {
	var set appsv1.DaemonSet
	err := c.Get(ctx, client.ObjectKey{Namespace: "causeway-system", Name: agentSet}, &set)
	stopped := err != nil || set.Spec.Template.Spec.NodeSelector[stopLabel] != ""
	var pods corev1.PodList
	if err := c.List(ctx, &pods); err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		switch part := p.Labels["app.kubernetes.io/component"]; {
		case part == "agent" && stopped:
			var n corev1.Node
			if err := c.Get(ctx, client.ObjectKey{Name: p.Spec.NodeName}, &n); err != nil || n.Status.Conditions[0].Status == corev1.ConditionTrue {
				return c.Delete(ctx, p) // else nobody is there to end it
			}
		case part == "cleanup" && p.Spec.NodeName == "stubborn":
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{LastTerminationState: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: "causeway: clean the node: read routes: operation not permitted\n"},
			}}}
			if err := c.Status().Update(ctx, p); err != nil {
				return err
			}
		case part == "cleanup" && p.Status.Phase != corev1.PodSucceeded:
			p.Status.Phase = corev1.PodSucceeded
			return c.Status().Update(ctx, p)
		}
	}
	return nil
}

// dropKinds makes the API server drop a kind's objects with the kind, and a namespace's with the namespace.
func dropKinds(ctx context.Context, c client.WithWatch, o client.Object) error {
	switch {
	case o.GetName() == "exportpolicies.causeway.dev":
		return c.DeleteAllOf(ctx, &v1alpha1.ExportPolicy{}, client.InNamespace("shop"))
	case o.GetObjectKind().GroupVersionKind().Kind == "Namespace":
		return c.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(o.GetName()))
	}
	return nil
}

// What stands in a cluster after an uninstall is what stood there before the install.
func TestUninstallLeavesNothing(t *testing.T) {
	for _, name := range []string{"living", "shared"} {
		t.Run(name, func(t *testing.T) {
			cl := prepared(t, name)
			create(t, cl, service("shop", "web", map[string]string{v1alpha1.ExportLabel: "true"}),
				&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Name: "a-neighbours"}})
			before := listing(t, cl)
			a := &app{stdout: io.Discard, stderr: io.Discard, connect: func(clusterFlags, io.Writer) (cluster, error) { return cl, nil }}
			synctest.Test(t, func(t *testing.T) {
				if code := run(t.Context(), []string{"install", "--cluster-name", "west"}, a); code != 0 {
					t.Fatalf("install: exit code %d", code)
				}
				create(t, cl, belongs()...)
				if during := listing(t, cl); len(during) < len(before)+20 {
					t.Fatalf("an installation is only %v", during)
				}
				if code := run(t.Context(), []string{"uninstall", "--yes"}, a); code != 0 {
					t.Fatalf("uninstall: exit code %d", code)
				}
			})
			if diff := cmp.Diff(before, listing(t, cl)); diff != "" {
				t.Errorf("left by uninstall (-before +after):\n%s", diff)
			}
		})
	}
}

// An install with values that disable a feature removes the objects that an earlier
// install created for it, and no objects of others.
func TestInstallRemovesWhatIsTurnedOff(t *testing.T) {
	cl := prepared(t, "living")
	install := func(more ...string) {
		t.Helper()
		var stderr bytes.Buffer
		a := &app{stdout: io.Discard, stderr: &stderr, connect: func(clusterFlags, io.Writer) (cluster, error) { return cl, nil }}
		synctest.Test(t, func(t *testing.T) {
			if code := run(t.Context(), append([]string{"install", "--cluster-name", "west"}, more...), a); code != 0 {
				t.Fatalf("exit code %d\n%s", code, &stderr)
			}
		})
	}
	install()
	create(t, cl, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Namespace: "causeway-system", Name: "by-another", Labels: charted,
	}})
	before := listing(t, cl)
	install("--set", "monitoring.podMonitor.enabled=true,monitoring.rules.enabled=true,monitoring.dashboards.enabled=true")
	if n := len(listing(t, cl)) - len(before); n != 3+1+4 {
		t.Errorf("monitoring adds %d objects", n)
	}
	install()
	if diff := cmp.Diff(before, listing(t, cl)); diff != "" {
		t.Errorf("left when monitoring is off again (-before +after):\n%s", diff)
	}
}

func create(t *testing.T, cl cluster, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := cl.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

// listing is every object of the kinds that Causeway makes, or makes others make, with its labels.
func listing(t *testing.T, cl cluster) []string {
	t.Helper()
	kinds := []schema.GroupVersionKind{
		kind("", "v1", "Namespace"), kind("", "v1", "Pod"), kind("discovery.k8s.io", "v1", "EndpointSlice"),
		kind("causeway.dev", "v1alpha1", "Link"), kind("causeway.dev", "v1alpha1", "ExportPolicy"),
	}
	for _, o := range slices.Concat(workloads, belongings, crds) {
		kinds = append(kinds, o.kind)
	}
	var out []string
	for _, k := range kinds {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(k.GroupVersion().WithKind(k.Kind + "List"))
		if err := cl.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			out = append(out, fmt.Sprintf("%s %s/%s %v", k.Kind, o.Namespace, o.Name, o.Labels))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Every kind of the chart must be one that uninstall looks for, and every object bear the labels that it looks for.
func TestUninstallKnowsTheChart(t *testing.T) {
	r, err := charts.Render("causeway-system", map[string]any{"clusterName": "west"})
	if err != nil {
		t.Fatal(err)
	}
	known := slices.Concat(workloads, belongings, crds)
	for _, o := range slices.Concat(r.CRDs, r.Objects) {
		i := slices.IndexFunc(known, func(w ours) bool { return w.kind == o.GroupVersionKind() })
		if i < 0 {
			t.Errorf("uninstall does not look for a %s", o.GetKind())
			continue
		}
		if named := known[i].named; named != nil && !named(o.GetName()) {
			t.Errorf("uninstall does not take %s %s for Causeway's", o.GetKind(), o.GetName())
		}
		for k, v := range known[i].labels {
			if o.GetLabels()[k] != v {
				t.Errorf("%s %s lacks the label %s=%s, by which uninstall finds it", o.GetKind(), o.GetName(), k, v)
			}
		}
	}
}

// The chart's hook must get by with the rights that the chart gives it.
func TestHookRights(t *testing.T) {
	cl := prepared(t, "living")
	tell := func(c client.Client, args ...string) {
		t.Helper()
		var stderr bytes.Buffer
		a := &app{stdout: io.Discard, stderr: &stderr, connect: func(clusterFlags, io.Writer) (cluster, error) {
			return cluster{Client: c, version: cl.version}, nil
		}}
		synctest.Test(t, func(t *testing.T) {
			if code := run(t.Context(), args, a); code != 0 {
				t.Fatalf("%v: exit code %d\n%s", args, code, &stderr)
			}
		})
	}
	tell(cl.Client, "install", "--cluster-name", "west")
	create(t, cl, belongs()...)
	tell(&guard{Client: cl.Client, rights: hookRights(t)}, "uninstall", "--nodes-only", "--yes")
	if left, err := allMirrors(cl).services(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left by the hook: %v, %v", left, err)
	}
}

// hookRights are "verb resource" of what the hook's account may do.
func hookRights(t *testing.T) map[string]bool {
	t.Helper()
	r, err := charts.Render("causeway-system", map[string]any{"clusterName": "west"})
	if err != nil {
		t.Fatal(err)
	}
	rights := map[string]bool{}
	for _, o := range r.Hooks {
		var role rbacv1.ClusterRole
		if !strings.HasSuffix(o.GetKind(), "Role") {
			continue
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					rights[verb+" "+resource] = true
				}
			}
		}
	}
	return rights
}

// guard is an API server that knows no more than one account's rights.
type guard struct {
	client.Client
	rights map[string]bool
}

func (g *guard) may(verb string, o runtime.Object) error {
	gvk, err := apiutil.GVKForObject(o, g.Scheme())
	if err != nil {
		return err
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	if !g.rights[verb+" "+resource.Resource] {
		return apierrors.NewForbidden(resource.GroupResource(), "", fmt.Errorf("no right to %s", verb))
	}
	return nil
}

func (g *guard) Get(ctx context.Context, k client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if err := g.may("get", o); err != nil {
		return err
	}
	return g.Client.Get(ctx, k, o, opts...)
}

func (g *guard) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	if err := g.may("list", l); err != nil {
		return err
	}
	return g.Client.List(ctx, l, opts...)
}

func (g *guard) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	if err := g.may("create", o); err != nil {
		return err
	}
	return g.Client.Create(ctx, o, opts...)
}

func (g *guard) Delete(ctx context.Context, o client.Object, opts ...client.DeleteOption) error {
	if err := g.may("delete", o); err != nil {
		return err
	}
	return g.Client.Delete(ctx, o, opts...)
}

func (g *guard) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.PatchOption) error {
	if err := g.may("patch", o); err != nil {
		return err
	}
	return g.Client.Patch(ctx, o, p, opts...)
}

// A pod that cleans a node runs as vip-guard and not as more: without a token, with the node's folder and nothing else.
func TestCleaner(t *testing.T) {
	r, err := charts.Render("causeway-system", map[string]any{"clusterName": "west", "image": map[string]any{"name": "example.com/cw", "tag": "v9"}})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Objects, func(o *unstructured.Unstructured) bool { return o.GetName() == agentSet && o.GetKind() == "DaemonSet" })
	var set appsv1.DaemonSet
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(r.Objects[i].Object, &set); err != nil {
		t.Fatal(err)
	}
	p, err := cleaner(&set, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	understood(t, p.Spec.Containers[0].Args, nil)
	c, sc := p.Spec.Containers[0], p.Spec.Containers[0].SecurityContext
	got := fmt.Sprintf("%s on %s, uid %d, escalates %v, drops %v adds %v, read-only %v, token %v, host network %v, mounts %v of %v", c.Image, p.Spec.NodeName,
		*sc.RunAsUser, *sc.AllowPrivilegeEscalation, sc.Capabilities.Drop, sc.Capabilities.Add, *sc.ReadOnlyRootFilesystem,
		*p.Spec.AutomountServiceAccountToken, p.Spec.HostNetwork, c.VolumeMounts[0].MountPath, p.Spec.Volumes[0].HostPath.Path)
	want := "example.com/cw:v9 on node-1, uid 0, escalates false, drops [ALL] adds [NET_ADMIN], read-only true, token false, host network true, mounts /run/causeway of /run/causeway"
	if got != want || len(c.VolumeMounts) != 1 || len(p.Spec.Volumes) != 1 {
		t.Errorf("the pod is %s with %d mounts, want %s", got, len(c.VolumeMounts), want)
	}
}

func TestEmptyFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "guards", "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, dir, filepath.Join(dir, "missing")} {
		if err := emptyFolder(d); err != nil {
			t.Error(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
	if err := emptyFolder(strings.Repeat("x", 300)); err == nil {
		t.Error("a folder that cannot be read is reported as empty")
	}
}
