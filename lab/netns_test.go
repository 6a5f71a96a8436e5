package lab

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwnThreadIsNotTheMainThread fails if f may run on the main thread: the runtime
// keeps that thread, and everything that reads /proc/self would see the namespaces that f
// entered.
func TestOwnThreadIsNotTheMainThread(t *testing.T) {
	for range 1000 {
		err := onOwnThread(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("f runs on the main thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
}
