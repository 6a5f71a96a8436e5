//go:build e2e

package selftest

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"
)

var errNotYet = errors.New("not yet")

// eventually asks for at most half a minute until f returns no error.
func eventually[T any](ctx context.Context, t *testing.T, f func() (T, error)) T {
	t.Helper()
	end := time.Now().Add(30 * time.Second)
	for {
		v, err := f()
		if err == nil {
			return v
		}
		if time.Now().After(end) || ctx.Err() != nil {
			t.Fatalf("gave up waiting: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func asExit(err error, exit **exec.ExitError) bool { return errors.As(err, exit) }
