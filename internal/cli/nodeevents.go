package cli

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/check"
)

// tellNodes leaves an Event at the agent of each node whose path failed, where whoever looks at the pod finds it. One that
// may not write Events has the answer on the screen all the same.
func (a *app) tellNodes(ctx context.Context, cl cluster, namespace string, lines []check.Line) {
	failed := check.FailedPaths(lines)
	if len(failed) == 0 {
		return
	}
	var pods corev1.PodList
	if err := cl.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{"app.kubernetes.io/component": "agent"}); err != nil {
		fmt.Fprintf(a.stderr, "warning: no Event is left at the agents of nodes that fail: list them: %v\n", err)
		return
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		l, bad := failed[p.Spec.NodeName]
		if !bad {
			continue
		}
		if err := leaveEvent(ctx, cl, p, l.Seen); err != nil {
			fmt.Fprintf(a.stderr, "warning: no Event is left at pod %s: %v\n", p.Name, err)
		}
	}
}

// leaveEvent makes an Event at an agent's pod, or counts it once more.
func leaveEvent(ctx context.Context, cl cluster, p *corev1.Pod, message string) error {
	now := metav1.NewTime(time.Now())
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name + ".path"},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		},
		Type: corev1.EventTypeWarning, Reason: "PathFails", Message: message, Source: corev1.EventSource{Component: "causeway-check"},
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
