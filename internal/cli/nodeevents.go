package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/check"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// pathFails is the reason of the Event and of the condition at the agent of a node whose path failed.
const pathFails = "PathFails"

// rememberPaths leaves what canaries have proved where it lasts and where whoever looks at the node's agent finds it: a condition
// of its pod, which is taken away when the path is good again, and an Event. Where nothing failed and nothing had, nothing is
// written. One that may not write has the answer on the screen all the same.
func (a *app) rememberPaths(ctx context.Context, cl cluster, namespace string, proofs map[string]string) {
	if len(proofs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	var pods corev1.PodList
	agents := client.MatchingLabels(clusterinfo.Selector(clusterinfo.ComponentAgent))
	if err := cl.List(ctx, &pods, client.InNamespace(namespace), agents); err != nil {
		fmt.Fprintf(a.stderr, "warning: what canaries found is not kept at the agents: list them: %v\n", err)
		return
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		seen, proved := proofs[p.Spec.NodeName]
		if !proved || p.DeletionTimestamp != nil {
			continue
		}
		if err := rememberPath(ctx, cl, p, seen); err != nil {
			fmt.Fprintf(a.stderr, "warning: what a canary found is not kept at pod %s: %v\n", p.Name, err)
		}
	}
}

// rememberPath makes p's condition say what was seen; "": the path is good.
func rememberPath(ctx context.Context, cl cluster, p *corev1.Pod, seen string) error {
	before := p.DeepCopy()
	if !setPath(p, seen, metav1.Now()) {
		return nil
	}
	if err := cl.Status().Patch(ctx, p, client.StrategicMergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return err
	}
	if seen == "" {
		return nil
	}
	return leaveEvent(ctx, cl, p, seen)
}

// setPath is rememberPath without a cluster. It reports whether something is to be written.
func setPath(p *corev1.Pod, seen string, now metav1.Time) bool {
	i := slices.IndexFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == check.PathProved })
	switch {
	case seen == "" && i < 0:
		return false
	case seen == "":
		p.Status.Conditions = slices.Delete(p.Status.Conditions, i, i+1)
		return true
	case i < 0:
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: check.PathProved, LastTransitionTime: now})
		i = len(p.Status.Conditions) - 1
	}
	c := &p.Status.Conditions[i]
	if c.Status == corev1.ConditionFalse && c.Message == seen {
		return false
	}
	c.Status, c.Reason, c.Message, c.LastProbeTime = corev1.ConditionFalse, pathFails, seen, metav1.Time{}
	return true
}

// leaveEvent makes an Event at an agent's pod, or counts it once more.
func leaveEvent(ctx context.Context, cl cluster, p *corev1.Pod, message string) error {
	now := metav1.NewTime(time.Now())
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name + ".path"},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		},
		Type: corev1.EventTypeWarning, Reason: pathFails, Message: message, Source: corev1.EventSource{Component: "causeway-check"},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
	err := cl.Create(ctx, e)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	var have corev1.Event
	if err := cl.Get(ctx, client.ObjectKeyFromObject(e), &have); err != nil {
		return err
	}
	have.Message, have.LastTimestamp, have.Count = message, now, have.Count+1
	return cl.Update(ctx, &have)
}
