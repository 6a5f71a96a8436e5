//go:build e2e

package selftest

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"
)

// serveEnv makes this test binary a small HTTP server, so that it can be run inside pods without an image of its own.
const serveEnv = "LAB_SELFTEST_SERVE"

func TestMain(m *testing.M) {
	addr := os.Getenv(serveEnv)
	if addr == "" {
		os.Exit(m.Run())
	}
	server := http.Server{Addr: addr, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "caller", r.RemoteAddr)
	})}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}

// deadline ends a test's context a little before the test binary itself would be ended.
func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
