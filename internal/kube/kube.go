// Package kube answers questions about Kubernetes objects that several packages ask.
//
// What always holds:
//   - Its functions are pure: they look at the object that they are given and nothing
//     else.
package kube

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// PodFinished reports whether all containers of p have ended and will not be restarted.
// The pod's address may belong to another pod by now. A pod that is being deleted is not
// finished while its containers run.
func PodFinished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// PodReady reports whether p is ready, and since when it has been ready or not ready. The
// time is zero if p has no condition Ready yet.
func PodReady(p *corev1.Pod) (ready bool, since time.Time) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	return false, time.Time{}
}

// NodeReady reports whether the kubelet of n reports that n is ready.
func NodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// OwnedBy reports whether o has an owner reference to the object with this UID.
func OwnedBy(o metav1.Object, uid types.UID) bool {
	return slices.ContainsFunc(o.GetOwnerReferences(),
		func(r metav1.OwnerReference) bool { return r.UID == uid })
}
