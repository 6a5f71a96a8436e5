package controller

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func TestTask(t *testing.T) {
	for name, c := range map[string]struct {
		why         string
		work        work
		lasts       time.Duration
		least, most int // runs
		logged      int
	}{
		"done": {
			"what is done is not done again",
			func(context.Context, int) (time.Duration, error) { return 0, nil },
			time.Hour,
			1,
			1,
			0,
		},
		"again": {
			"the work says when to run again",
			func(context.Context, int) (time.Duration, error) { return time.Minute, nil },
			10 * time.Minute,
			10,
			11,
			0,
		},
		"fails": {
			"an outage is retried ever slower, and logged once",
			func(context.Context, int) (time.Duration, error) { return 0, errors.New("down") },
			time.Hour,
			120,
			2000,
			1,
		},
		"conflicts": {"a conflict is routine", func(context.Context, int) (time.Duration, error) {
			return 0, apierrors.NewConflict(corev1.Resource("x"), "x", nil)
		}, time.Minute, 3, 200, 0},
		"two outages": {"an outage that comes again is logged again", twoOutages(), time.Minute, 20, 70, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				var log logLines
				all := tasks{}
				w := all.start(ctx, log.logger())
				runs := 0
				w.set(func(ctx context.Context, failures int) (time.Duration, error) {
					runs++
					return c.work(ctx, failures)
				})
				bubble.Pass(c.lasts)
				cancel()
				all.running.Wait()
				if runs < c.least || runs > c.most {
					t.Errorf("%s: %d runs, want %d to %d", c.why, runs, c.least, c.most)
				}
				if n := log.count("write failed"); n != c.logged {
					t.Errorf("%s: logged %d times, want %d", c.why, n, c.logged)
				}
			})
		})
	}
}

// twoOutages fails three times, then works, twice.
func twoOutages() work {
	n := 0
	return func(context.Context, int) (time.Duration, error) {
		n++
		if n <= 8 && n%4 != 0 {
			return 0, errors.New("down")
		}
		return time.Second, nil
	}
}

func TestTaskRunsTheNewestWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		all := tasks{}
		w := all.start(ctx, discardLog)
		release := make(chan struct{})
		w.set(func(context.Context, int) (time.Duration, error) { <-release; return 0, nil })
		synctest.Wait()
		did := 0
		for i := range 10 {
			w.set(func(context.Context, int) (time.Duration, error) { did = 100*did + i; return 0, nil })
		}
		close(release)
		bubble.Pass(time.Second)
		cancel()
		all.running.Wait()
		if did != 9 {
			t.Errorf("of ten that came meanwhile only the last runs: %d", did)
		}
	})
}
