package serviceexport

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// plan compares the wanted with the stored conditions. It returns the conditions to
// apply, and whether an apply is needed.
//
// The API server removes our conditions that an apply leaves out. Therefore an apply
// contains every condition that we own, even if it has not changed. It leaves out a
// condition that another manager owns, too. This gives up our ownership, because the
// other manager could not change the condition otherwise.
func plan(want [2]condition, have stored, generation int64, now time.Time) (apply []metav1.Condition,
	needed bool) {
	for i, c := range want {
		if have[i].foreign {
			needed = needed || have[i].ours
			continue
		}
		since := now
		if have[i].status == c.status {
			since = time.Unix(have[i].since, 0)
		}
		needed = needed || have[i].digest != digest(c.status, c.reason, c.message, generation)
		apply = append(apply, metav1.Condition{
			Type:               c.kind,
			Status:             c.status,
			Reason:             c.reason,
			Message:            c.message,
			ObservedGeneration: generation,
			LastTransitionTime: metav1.NewTime(since),
		})
	}
	return apply, needed
}
