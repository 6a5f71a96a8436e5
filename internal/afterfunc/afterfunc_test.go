package afterfunc

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func TestStopWaitsForAFunctionThatHasStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		returned := false
		stop := Start(ctx, func() {
			bubble.Pass(time.Minute)
			returned = true
		})
		cancel()
		synctest.Wait()
		for range 2 {
			if stop() {
				t.Error("stop says that f did not run")
			}
			if !returned {
				t.Error("stop returned while f was running")
			}
		}
	})
}

func TestStopPreventsTheFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stop := Start(ctx, func() { t.Error("f ran after stop") })
		if !stop() {
			t.Error("stop says that f ran")
		}
		stop() // must not block
		cancel()
		synctest.Wait()
	})
}
