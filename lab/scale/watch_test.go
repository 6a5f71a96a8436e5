package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
)

func newTestObserver() *observer {
	return &observer{
		mirrorNamespaces: map[string]bool{"scale-00": true},
		slices:           make(map[string]time.Time),
		changed:          make(chan struct{}),
	}
}

func sliceOf(kind, namespace, service string) change {
	return change{
		Type:      kind,
		Namespace: namespace,
		Labels:    map[string]string{discoveryv1.LabelServiceName: service},
		Bytes:     700,
	}
}

// A Service counts as mirrored from its first EndpointSlice on, whatever happens to the
// slice later.
func TestAwaitSlicesTakesFirstSighting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestObserver()
		start := time.Now()
		go func() {
			for _, c := range []change{
				sliceOf("ADDED", "scale-00", "a-east"),
				sliceOf("MODIFIED", "scale-00", "a-east"),
				sliceOf("ADDED", "elsewhere", "b-east"),
				sliceOf("ADDED", "scale-00", "b-east"),
				sliceOf("MODIFIED", "scale-00", "b-east"),
			} {
				time.Sleep(time.Second)
				o.slice(c)
			}
		}()
		have, last, err := o.awaitSlices(t.Context(), []string{"scale-00/a-east", "scale-00/b-east"})
		if err != nil || have != 2 || last.Sub(start) != 4*time.Second {
			t.Errorf("awaitSlices = %d, %v, %v; want 2, 4s, nil", have, last.Sub(start), err)
		}
		time.Sleep(2 * time.Second)
		if mirrors, _ := o.writes(); mirrors != (tally{4, 2800}) {
			t.Errorf("writes of mirrors = %+v, want 4 of 2800 bytes: the slice elsewhere is not a mirror", mirrors)
		}
	})
}

// A stage that the controllers cannot reach ends with how far they came.
func TestAwaitSlicesTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestObserver()
		o.slice(sliceOf("ADDED", "scale-00", "a-east"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		have, _, err := o.awaitSlices(ctx, []string{"scale-00/a-east", "scale-00/b-east"})
		if have != 1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("awaitSlices = %d, %v; want 1 and DeadlineExceeded", have, err)
		}
	})
}

func TestAwaitGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestObserver()
		o.slice(sliceOf("ADDED", "scale-00", "a-east"))
		go func() {
			time.Sleep(time.Second)
			o.slice(sliceOf("DELETED", "scale-00", "a-east"))
		}()
		start := time.Now()
		if err := o.awaitGone(t.Context(), []string{"scale-00/a-east"}); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("awaitGone returned after %v, want 1s", d)
		}
	})
}

// A watch with a gap would yield wrong figures, so waiters learn of it.
func TestAwaitSlicesReportsFailedWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestObserver()
		gap := errors.New("410 too old resource version")
		go func() {
			time.Sleep(time.Second)
			o.fail(gap)
		}()
		if _, _, err := o.awaitSlices(t.Context(), []string{"scale-00/a-east"}); !errors.Is(err, gap) {
			t.Errorf("awaitSlices = %v, want %v", err, gap)
		}
	})
}
