package kube

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestPodFinished(t *testing.T) {
	now := metav1.Now()
	cases := map[string]struct {
		why  string
		pod  corev1.Pod
		want bool
	}{
		"pending":   {why: "it has yet to run", pod: podIn(corev1.PodPending)},
		"running":   {why: "it runs", pod: podIn(corev1.PodRunning)},
		"unknown":   {why: "its node is silent, but its containers may run", pod: podIn(corev1.PodUnknown)},
		"succeeded": {why: "a Job's pod is done", pod: podIn(corev1.PodSucceeded), want: true},
		"failed":    {why: "an evicted pod has lost its address", pod: podIn(corev1.PodFailed), want: true},
		"terminating": {
			why: "its containers run until their grace period ends",
			pod: corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning},
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := PodFinished(&c.pod); got != c.want {
				t.Errorf("got %v, want %v: %s", got, c.want, c.why)
			}
		})
	}
}

func podIn(phase corev1.PodPhase) corev1.Pod {
	return corev1.Pod{Status: corev1.PodStatus{Phase: phase}}
}

func TestPodReady(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	condition := func(typ corev1.PodConditionType, s corev1.ConditionStatus) corev1.PodCondition {
		return corev1.PodCondition{Type: typ, Status: s, LastTransitionTime: metav1.NewTime(at)}
	}
	cases := map[string]struct {
		why        string
		conditions []corev1.PodCondition
		ready      bool
		since      time.Time
	}{
		"no condition": {why: "the kubelet has not reported yet"},
		"another": {
			why:        "ContainersReady is not Ready",
			conditions: []corev1.PodCondition{condition(corev1.ContainersReady, corev1.ConditionTrue)},
		},
		"ready": {
			why:        "the usual case",
			conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionTrue)},
			ready:      true,
			since:      at,
		},
		"not ready": {
			why:        "the caller wants to know for how long",
			conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionFalse)},
			since:      at,
		},
		"unknown": {
			why:        "the node is silent",
			conditions: []corev1.PodCondition{condition(corev1.PodReady, corev1.ConditionUnknown)},
			since:      at,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ready, since := PodReady(&corev1.Pod{Status: corev1.PodStatus{Conditions: c.conditions}})
			if ready != c.ready || !since.Equal(c.since) {
				t.Errorf("got %v since %v, want %v since %v: %s", ready, since, c.ready, c.since, c.why)
			}
		})
	}
}

func TestNodeReady(t *testing.T) {
	cases := map[string]struct {
		why        string
		conditions []corev1.NodeCondition
		want       bool
	}{
		"no condition": {why: "the node has just registered"},
		"pressure": {
			why:        "another condition is true",
			conditions: []corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue}},
		},
		"ready": {
			why:        "the usual case",
			conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			want:       true,
		},
		"silent": {
			why:        "the node controller sets Unknown",
			conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n := &corev1.Node{Status: corev1.NodeStatus{Conditions: c.conditions}}
			if got := NodeReady(n); got != c.want {
				t.Errorf("got %v, want %v: %s", got, c.want, c.why)
			}
		})
	}
}

func TestOwnedBy(t *testing.T) {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		OwnerReferences: []metav1.OwnerReference{{Name: "a", UID: "1"}, {Name: "b", UID: "2"}},
	}}
	for uid, want := range map[types.UID]bool{"1": true, "2": true, "3": false, "": false} {
		if got := OwnedBy(s, uid); got != want {
			t.Errorf("owned by %q: got %v, want %v", uid, got, want)
		}
	}
}
