//go:build e2e

package e2e

import (
	"context"
	"sync"
	"testing"
	"time"
)

// A flowOfCalls opens new connections to bar all the time.
type flowOfCalls struct {
	stop   func()
	wg     sync.WaitGroup
	mu     sync.Mutex // guards what follows
	calls  int
	failed []error
}

// callAlways calls 50 times a second until the flow is ended.
func callAlways(t *testing.T) *flowOfCalls {
	t.Helper()
	ns, url := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	ctx, stop := context.WithCancel(t.Context())
	f := &flowOfCalls{stop: stop}
	t.Cleanup(func() { stop(); f.wg.Wait() })
	f.wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			f.wg.Go(func() {
				_, err := fetch(t.Context(), ns, url)
				f.mu.Lock()
				defer f.mu.Unlock()
				if f.calls++; err != nil {
					f.failed = append(f.failed, err)
				}
			})
		}
	})
	return f
}

// end fails the test if a call failed, or if there were few.
func (f *flowOfCalls) end(t *testing.T, least int) {
	t.Helper()
	f.stop()
	f.wg.Wait()
	if len(f.failed) > 0 {
		t.Errorf("%d of %d calls failed, the first with: %v", len(f.failed), f.calls, f.failed[0])
	}
	if f.calls < least {
		t.Errorf("%d calls were made, want at least %d: they show nothing", f.calls, least)
	}
	t.Logf("%d calls", f.calls)
}

// TestRotateLosesNoCall: the issuer is rotated on one side, then on the other, under new connections and an open one: none is lost.
func TestRotateLosesNoCall(t *testing.T) {
	ctx := t.Context()
	open := calling(t)
	for _, side := range []*cluster{west, east} {
		f := callAlways(t)
		start := time.Now()
		have(side.causeway(ctx, "rotate", "--announce", "1m", "--wait"))(t)
		took := time.Since(start)
		sleep(ctx, time.Second)
		f.end(t, 50)
		t.Logf("%s rotated in %.1f s", side.Name(), took.Seconds())
	}
	for _, c := range open {
		c.lives(t)
	}
}

// TestRevokeEndsWhatTheIssuerSigned: open tunnels end, new calls work again; the Link that was applied long ago is still good.
func TestRevokeEndsWhatTheIssuerSigned(t *testing.T) {
	ctx := t.Context()
	half := have(west.causeway(ctx, "identity"))(t)
	for _, side := range []*cluster{west, east} {
		t.Run("in "+side.Name(), func(t *testing.T) {
			t.Cleanup(func() { serves(t) })
			open := calling(t)
			start := time.Now()
			have(side.causeway(ctx, "rotate", "--revoke", "--wait"))(t)
			for _, c := range open {
				c.isReset(t, start, 30*time.Second)
			}
			client, url := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
			took := within(t, time.Until(start.Add(30*time.Second)), "calls work again", func() error { _, err := fetch(ctx, client, url); return err })
			t.Logf("calls work %.1f s after the command, %.1f s after the last reset", time.Since(start).Seconds(), took.Seconds())
		})
	}
	t.Run("the old Link", func(t *testing.T) {
		must(t, east.kubectl(ctx, half, "apply", "-f", "-"))
		f := callAlways(t)
		sleep(ctx, 3*time.Second)
		f.end(t, 50)
	})
	if _, err := west.causeway(ctx, "rotate", "--revoke", "--announce", "3s"); err == nil {
		t.Error("--revoke announces nothing, and should say so")
	}
}
