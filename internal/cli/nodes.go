package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/kube"
)

// agentSet is the DaemonSet of agents, and guardContainer the one of its containers that writes to the node.
const (
	agentSet       = clusterinfo.AgentName
	guardContainer = "vip-guard"
)

// stopLabel in the DaemonSet's node selector keeps agents from every node. The DaemonSet itself stays until the nodes
// are clean: it knows the image and the rights to clean them with, also for a second try.
const stopLabel = "causeway.dev/uninstall"

// cleaners are the labels of the pods that clean a node.
var cleaners = client.MatchingLabels(clusterinfo.Labels(clusterinfo.ComponentCleanup))

// removeAgents ends all agents, and cleans every node that they were on and that is up.
func (u *uninstaller) removeAgents(ctx context.Context) error {
	var set appsv1.DaemonSet
	err := u.client.Get(ctx, client.ObjectKey{Namespace: u.namespace, Name: agentSet}, &set)
	if apierrors.IsNotFound(err) {
		return nil // deleted only after the nodes were cleaned
	}
	if err != nil {
		return fmt.Errorf("look at the agents: %w", err)
	}
	if err := u.stopAgents(ctx, &set); err != nil {
		return err
	}
	if err := u.progress.until(ctx, u.podsGone(ctx)); err != nil {
		return err
	}
	if err := u.progress.until(ctx, u.nodesClean(ctx, &set)); err != nil {
		return err
	}
	_, down, err := u.nodes(ctx, &set)
	if err != nil {
		return err
	}
	if len(down) > 0 {
		u.notes = append(u.notes, fmt.Sprintf("not cleaned, as they are not ready: %s; a reboot cleans them, as does `causeway vip-guard clean` on the node itself", strings.Join(down, ", ")))
	}
	return nil
}

func (u *uninstaller) stopAgents(ctx context.Context, set *appsv1.DaemonSet) error {
	if _, stopped := set.Spec.Template.Spec.NodeSelector[stopLabel]; stopped {
		return nil
	}
	before := set.DeepCopy()
	selector := maps.Clone(set.Spec.Template.Spec.NodeSelector)
	if selector == nil {
		selector = map[string]string{}
	}
	selector[stopLabel] = "true"
	set.Spec.Template.Spec.NodeSelector = selector
	if err := u.client.Patch(ctx, set, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("stop the agents: %w", err)
	}
	return nil
}

func (u *uninstaller) podsGone(ctx context.Context) wait {
	return wait{
		what: "agents", done: "stopped", undone: "have not stopped",
		hint: fmt.Sprintf("`kubectl -n %s get pods -o wide` tells where; running this command again goes on where it stopped", u.namespace),
		state: func() (string, error) {
			return u.livePods(ctx, clusterinfo.Selector(clusterinfo.ComponentAgent))
		},
	}
}

// noPods says which pods of Causeway still run.
func (u *uninstaller) noPods(ctx context.Context) (string, error) {
	return u.livePods(ctx, client.MatchingLabels{clusterinfo.NameLabel: clusterinfo.Causeway})
}

// livePods counts the pods with these labels that may still run, "" for none: not those that have ended, nor those on
// nodes that cannot say whether they have.
func (u *uninstaller) livePods(ctx context.Context, which client.MatchingLabels) (string, error) {
	var pods corev1.PodList
	if err := u.client.List(ctx, &pods, client.InNamespace(u.namespace), which); err != nil {
		return "", err
	}
	_, down, err := u.nodes(ctx, nil)
	if err != nil {
		return "", err
	}
	n := 0
	for _, p := range pods.Items {
		if !kube.PodFinished(&p) && !slices.Contains(down, p.Spec.NodeName) {
			n++
		}
	}
	if n == 0 {
		return "", nil
	}
	return count(n, "pod") + " left", nil
}

// nodes returns the nodes that set's agents may have been on, nil: all; sorted, those that are ready and those that are not.
func (u *uninstaller) nodes(ctx context.Context, set *appsv1.DaemonSet) (up, down []string, err error) {
	selector := labels.Everything()
	if set != nil {
		where := maps.Clone(set.Spec.Template.Spec.NodeSelector)
		delete(where, stopLabel)
		selector = labels.SelectorFromSet(where)
	}
	var nodes corev1.NodeList
	if err := u.client.List(ctx, &nodes, client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items {
		if kube.NodeReady(&n) {
			up = append(up, n.Name)
		} else {
			down = append(down, n.Name)
		}
	}
	slices.Sort(up)
	slices.Sort(down)
	return up, down, nil
}

// nodesClean keeps a pod on each ready node that cleans it, until all have succeeded.
func (u *uninstaller) nodesClean(ctx context.Context, set *appsv1.DaemonSet) wait {
	return wait{
		what: "nodes", done: "clean", undone: "are not clean",
		hint: fmt.Sprintf("`kubectl -n %s get pods -l app.kubernetes.io/component=cleanup -o wide` shows the pods that clean; running this command again goes on where it stopped", u.namespace),
		state: func() (string, error) {
			up, _, err := u.nodes(ctx, set)
			if err != nil {
				return "", err
			}
			var pods corev1.PodList
			if err := u.client.List(ctx, &pods, client.InNamespace(u.namespace), cleaners); err != nil {
				return "", err
			}
			on := map[string]*corev1.Pod{}
			for i := range pods.Items {
				on[pods.Items[i].Spec.NodeName] = &pods.Items[i]
			}
			return u.clean(ctx, set, up, on)
		},
	}
}

// clean makes what is missing of the pods that clean the nodes up, and says which nodes are not clean yet.
func (u *uninstaller) clean(ctx context.Context, set *appsv1.DaemonSet, up []string, on map[string]*corev1.Pod) (string, error) {
	cleaned, why := 0, ""
	for _, node := range up {
		p := on[node]
		switch {
		case p == nil:
			pod, err := cleaner(set, node)
			if err != nil {
				return "", err
			}
			if err := u.client.Create(ctx, pod); err != nil && !apierrors.IsAlreadyExists(err) {
				return "", fmt.Errorf("make a pod that cleans node %s: %w", node, err)
			}
		case p.Status.Phase == corev1.PodSucceeded:
			cleaned++
		case p.Status.Phase == corev1.PodFailed: // refused by its kubelet: another is made at the next look
			why = fmt.Sprintf("%s: %s", node, strings.TrimSpace(p.Status.Reason+" "+p.Status.Message))
			if err := u.client.Delete(ctx, p); client.IgnoreNotFound(err) != nil {
				return "", fmt.Errorf("delete a pod that failed to clean node %s: %w", node, err)
			}
		case why == "":
			why = cleanTrouble(node, p)
		}
	}
	if cleaned == len(up) {
		return "", nil
	}
	return joinNonEmpty(fmt.Sprintf("%d of %d clean", cleaned, len(up)), why), nil
}

// cleanTrouble says what keeps p from cleaning its node; "" if nothing is known.
func cleanTrouble(node string, p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if t := s.LastTerminationState.Terminated; t != nil && t.Message != "" {
			return node + ": " + strings.TrimSpace(t.Message)
		}
		if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			return node + ": " + w.Reason
		}
	}
	return ""
}

// cleaner is a pod that undoes what vip-guard did to a node, with vip-guard's image and rights and no others.
func cleaner(set *appsv1.DaemonSet, node string) (*corev1.Pod, error) {
	t := set.Spec.Template.Spec
	i := slices.IndexFunc(t.Containers, func(c corev1.Container) bool { return c.Name == guardContainer })
	if i < 0 {
		return nil, fmt.Errorf("DaemonSet %s has no container %s to clean nodes with", set.Name, guardContainer)
	}
	guard := t.Containers[i]
	mounts := slices.DeleteFunc(slices.Clone(guard.VolumeMounts), func(m corev1.VolumeMount) bool { return m.MountPath != nodeDir })
	volumes := slices.DeleteFunc(slices.Clone(t.Volumes), func(v corev1.Volume) bool {
		return !slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
	})
	no := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: set.Namespace, Name: "causeway-cleanup-" + node, Labels: cleaners},
		Spec: corev1.PodSpec{
			NodeName:                     node,
			HostNetwork:                  true,
			RestartPolicy:                corev1.RestartPolicyOnFailure,
			ServiceAccountName:           t.ServiceAccountName,
			AutomountServiceAccountToken: &no,
			PriorityClassName:            t.PriorityClassName,
			Tolerations:                  t.Tolerations,
			ImagePullSecrets:             t.ImagePullSecrets,
			SecurityContext:              t.SecurityContext,
			Volumes:                      volumes,
			Containers: []corev1.Container{{
				Name: "clean", Image: guard.Image, ImagePullPolicy: guard.ImagePullPolicy,
				Args:            []string{"vip-guard", "clean"},
				SecurityContext: guard.SecurityContext, VolumeMounts: mounts,
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			}},
		},
	}, nil
}
