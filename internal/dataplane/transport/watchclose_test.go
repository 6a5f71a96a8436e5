package transport

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestWatchClose(t *testing.T) {
	t.Run("reset", func(t *testing.T) {
		dialed, accepted := pair(t)
		looks := 0
		open, stop := WatchClose(t.Context(), accepted, func() { looks++ })
		defer stop()
		Reset(dialed)
		select {
		case <-open.Done():
		case <-time.After(testTimeout):
		}
		if err := context.Cause(open); !errors.Is(err, ErrGone) || looks == 0 {
			t.Errorf("%v after %d looks, want %v", err, looks, ErrGone)
		}
	})
	t.Run("half-closed", func(t *testing.T) {
		dialed, accepted := pair(t)
		open, stop := WatchClose(t.Context(), accepted, nil)
		dialed.CloseWrite() // it still waits for an answer
		select {
		case <-open.Done():
			t.Errorf("%v: a caller that has said all still waits", context.Cause(open))
		case <-time.After(2 * closeCheckInterval):
		}
		stop()
		if open.Err() == nil {
			t.Error("it outlives stop")
		}
	})
}
