package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/charts"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// installer puts a rendered chart into one cluster. Every step of it may be repeated.
type installer struct {
	client    client.Client
	namespace string
	progress  *progress
}

// fieldOwner is whose fields the chart's are in every object's managed fields.
const fieldOwner = client.FieldOwner("causeway-install")

// phases are all objects that an installation makes, in the order in which they are made: the kinds; what comes before
// the cluster has an identity; and what mounts it. A pod that mounted it too early would back off before it starts.
type phases struct{ kinds, early, late []*unstructured.Unstructured }

// With made the namespace is marked as Causeway's own, for uninstall to remove.
func installPhases(namespace string, made bool, r charts.Rendered) phases {
	// The agent runs on the host's network and vip-guard has NET_ADMIN.
	labels := map[string]any{"pod-security.kubernetes.io/enforce": "privileged"}
	if made {
		labels[v1alpha1.ManagedByLabel] = v1alpha1.ManagedBy
	}
	ns := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{
			"name": namespace, "labels": labels,
		},
	}}
	p := phases{kinds: r.CRDs, early: []*unstructured.Unstructured{ns}}
	for _, o := range r.Objects {
		if mountsIdentity(o) {
			p.late = append(p.late, o)
		} else {
			p.early = append(p.early, o)
		}
	}
	return p
}

func (p phases) all() []*unstructured.Unstructured { return slices.Concat(p.kinds, p.early, p.late) }

func mountsIdentity(o *unstructured.Unstructured) bool {
	volumes, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "volumes")
	return slices.ContainsFunc(volumes, func(v any) bool {
		volume, _ := v.(map[string]any)
		name, _, _ := unstructured.NestedString(volume, "configMap", "name")
		return name == clusterinfo.IdentityConfigMap
	})
}

// apply makes or updates every object, waiting where one needs another.
func (i installer) apply(ctx context.Context, r charts.Rendered) error {
	made, err := i.makesNamespace(ctx)
	if err != nil {
		return err
	}
	p := installPhases(i.namespace, made, r)
	if err := i.applyAll(ctx, "kinds", p.kinds); err != nil {
		return err
	}
	if err := i.waitEstablished(ctx, p.kinds); err != nil {
		return err
	}
	if err := i.applyAll(ctx, "accounts, rights, Services, controller", p.early); err != nil {
		return err
	}
	if err := i.waitIdentity(ctx); err != nil {
		return err
	}
	if err := i.applyAll(ctx, "gateway, agents", p.late); err != nil {
		return err
	}
	return i.removeTurnedOff(ctx, r.Objects)
}

// optional are the kinds of objects that the chart creates only with certain values.
var optional = []ours{
	{kind: kind("monitoring.coreos.com", "v1", "PodMonitor"), labels: charted},
	{kind: kind("monitoring.coreos.com", "v1", "PrometheusRule"), labels: charted},
	{kind: kind("", "v1", "ConfigMap"), labels: charted},
}

// removeTurnedOff deletes the objects of optional kinds that an earlier install created
// and that the chart does not contain with the current values.
func (i installer) removeTurnedOff(ctx context.Context, wanted []*unstructured.Unstructured) error {
	u := uninstaller{client: i.client, namespace: i.namespace}
	found, err := u.find(ctx, optional...)
	if err != nil {
		return err
	}
	for _, o := range found {
		wants := slices.ContainsFunc(wanted, func(w *unstructured.Unstructured) bool {
			return w.GroupVersionKind() == o.kind && w.GetName() == o.Name
		})
		made := slices.ContainsFunc(o.ManagedFields, func(f metav1.ManagedFieldsEntry) bool {
			return f.Manager == string(fieldOwner)
		})
		if wants || !made {
			continue
		}
		if err := u.delete(ctx, o); err != nil {
			return err
		}
		i.progress.say(o.String(), "removed, because the current values disable it")
	}
	return nil
}

// makesNamespace reports whether the namespace is install's own: missing, or made by an earlier one.
func (i installer) makesNamespace(ctx context.Context) (bool, error) {
	var ns corev1.Namespace
	err := i.client.Get(ctx, client.ObjectKey{Name: i.namespace}, &ns)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("look at namespace %s: %w", i.namespace, err)
	}
	return err != nil || ns.Labels[v1alpha1.ManagedByLabel] == v1alpha1.ManagedBy, nil
}

// applyAll applies objects by server-side apply. They are ours by name: another's edit of a field that the chart sets
// is taken back, and fields that it does not set are left alone.
func (i installer) applyAll(ctx context.Context, what string, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		err := i.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(o.DeepCopy()), fieldOwner, client.ForceOwnership)
		if err != nil {
			return applyError(o, err)
		}
	}
	i.progress.say(what, "applied")
	return nil
}

func applyError(o *unstructured.Unstructured, err error) error {
	err = fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
	if apierrors.IsForbidden(err) {
		return withHint(err, "installing needs the rights of cluster-admin")
	}
	return err
}

func (i installer) waitEstablished(ctx context.Context, crds []*unstructured.Unstructured) error {
	return i.until(ctx, "kinds", func() (string, error) {
		for _, crd := range crds {
			got := &unstructured.Unstructured{}
			got.SetGroupVersionKind(crd.GroupVersionKind())
			if err := i.client.Get(ctx, client.ObjectKeyFromObject(crd), got); err != nil {
				return "", err
			}
			if !established(got) {
				return crd.GetName() + " is not established yet", nil
			}
		}
		return "", nil
	})
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		m, _ := c.(map[string]any)
		return m["type"] == "Established" && m["status"] == "True"
	})
}

// waitIdentity waits for the controller's first words.
func (i installer) waitIdentity(ctx context.Context) error {
	return i.until(ctx, "identity", func() (string, error) {
		err := i.client.Get(ctx, client.ObjectKey{Namespace: i.namespace, Name: clusterinfo.IdentityConfigMap}, &corev1.ConfigMap{})
		if !apierrors.IsNotFound(err) {
			return "", err
		}
		why, err := i.podTrouble(ctx, "controller")
		return joinNonEmpty("waiting for the controller to make it", why), err
	})
}

// waitReady waits until every workload among objects runs as the chart says, all of its pods ready.
func (i installer) waitReady(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		if o.GetKind() != "Deployment" && o.GetKind() != "DaemonSet" {
			continue
		}
		component := o.GetLabels()[clusterinfo.ComponentLabel]
		err := i.until(ctx, component, func() (string, error) {
			got := &unstructured.Unstructured{}
			got.SetGroupVersionKind(o.GroupVersionKind())
			if err := i.client.Get(ctx, client.ObjectKeyFromObject(o), got); err != nil {
				return "", err
			}
			state, err := rollout(got)
			if state == "" || err != nil {
				return "", err
			}
			why, err := i.podTrouble(ctx, component)
			return joinNonEmpty(state, why), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// until waits until state says nothing more, which makes what ready.
func (i installer) until(ctx context.Context, what string, state func() (string, error)) error {
	return i.progress.until(ctx, wait{
		what: what, done: "ready", undone: "is not ready", state: state,
		hint: fmt.Sprintf("`kubectl -n %s get pods` and `kubectl -n %s logs` may tell more; running this command again goes on where it stopped", i.namespace, i.namespace),
	})
}

// rollout says how far a Deployment or DaemonSet is: "" when every pod is of the newest template and ready.
func rollout(u *unstructured.Unstructured) (string, error) {
	var seen int64
	var want, updated, ready, all int32
	switch u.GetKind() {
	case "Deployment":
		var d appsv1.Deployment
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &d); err != nil {
			return "", fmt.Errorf("read Deployment %s: %w", u.GetName(), err)
		}
		want = 1
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		s := d.Status
		seen, updated, ready, all = s.ObservedGeneration, s.UpdatedReplicas, min(s.AvailableReplicas, s.ReadyReplicas), s.Replicas
	case "DaemonSet":
		var d appsv1.DaemonSet
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &d); err != nil {
			return "", fmt.Errorf("read DaemonSet %s: %w", u.GetName(), err)
		}
		s := d.Status
		want = s.DesiredNumberScheduled
		seen, updated, ready, all = s.ObservedGeneration, s.UpdatedNumberScheduled, s.NumberAvailable, want
	}
	switch {
	case seen < u.GetGeneration():
		return "waiting to be noticed", nil
	case updated < want || ready < want:
		return fmt.Sprintf("%d of %d ready", min(updated, ready), want), nil
	case all > want:
		return fmt.Sprintf("%d old to end", all-want), nil
	}
	return "", nil
}

// podTrouble says what keeps pods of a component from running, sorted, each reason once; "" if nothing is known.
func (i installer) podTrouble(ctx context.Context, component string) (string, error) {
	var pods corev1.PodList
	err := i.client.List(ctx, &pods, client.InNamespace(i.namespace), client.MatchingLabels(clusterinfo.Selector(component)))
	if err != nil {
		return "", err
	}
	var reasons []string
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
				reasons = append(reasons, s.Name+": "+w.Reason)
			}
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				reasons = append(reasons, c.Reason+": "+c.Message)
			}
		}
	}
	slices.Sort(reasons)
	return strings.Join(slices.Compact(reasons), "; "), nil
}

func joinNonEmpty(state, why string) string {
	if why == "" {
		return state
	}
	return state + " (" + why + ")"
}
