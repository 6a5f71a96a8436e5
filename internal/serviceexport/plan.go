package serviceexport

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// plan returns the conditions to apply, and whether there is anything to write. All
// conditions that we keep are in it, because the API server removes what an apply leaves
// out. That is also how we give up what another manager owns, too: it could not change
// its condition otherwise.
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
