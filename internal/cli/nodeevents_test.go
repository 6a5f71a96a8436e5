package cli

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/internal/check"
)

func TestSetPath(t *testing.T) {
	then, now := metav1.NewTime(time.Unix(1000, 0)), metav1.NewTime(time.Unix(2000, 0))
	ready := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue}
	bad := func(message string, since metav1.Time) corev1.PodCondition {
		return corev1.PodCondition{Type: check.PathProved, Status: corev1.ConditionFalse, Reason: pathFails, Message: message, LastTransitionTime: since}
	}
	cases := map[string]struct {
		why    string
		have   []corev1.PodCondition
		seen   string
		want   []corev1.PodCondition
		writes bool
	}{
		"good":       {"who was never ill needs no record of it", []corev1.PodCondition{ready}, "", []corev1.PodCondition{ready}, false},
		"fails":      {"it lasts longer than an Event", []corev1.PodCondition{ready}, "refused", []corev1.PodCondition{ready, bad("refused", now)}, true},
		"still":      {"nothing is written when nothing changed", []corev1.PodCondition{ready, bad("refused", then)}, "refused", []corev1.PodCondition{ready, bad("refused", then)}, false},
		"otherwise":  {"it has failed since then", []corev1.PodCondition{bad("refused", then)}, "no answer", []corev1.PodCondition{bad("no answer", then)}, true},
		"good again": {"a condition that nobody takes away is not believed for long", []corev1.PodCondition{bad("refused", then), ready}, "", []corev1.PodCondition{ready}, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := &corev1.Pod{Status: corev1.PodStatus{Conditions: tc.have}}
			if got := setPath(p, tc.seen, now); got != tc.writes {
				t.Errorf("%s: writes %v, want %v", tc.why, got, tc.writes)
			}
			if diff := cmp.Diff(tc.want, p.Status.Conditions); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}
