//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// The two clusters that all tests share. TestMain makes them.
var west, east *cluster

var began = time.Now()

func TestMain(m *testing.M) {
	if address := os.Getenv(loadAddress); address != "" {
		if err := runLoad(address, os.Stdin, os.Stdout); err != nil {
			say("load: %v", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	o := lab.Options{Name: setting("CAUSEWAY_E2E_LAB", "e2e"), Clusters: []string{"west", "east"}, Progress: func(s string) { say("%s", s) }}
	if os.Getenv("KEEP") == "" {
		defer func() {
			if err := lab.Down(context.WithoutCancel(ctx), o); err != nil {
				say("take the lab down: %v", err)
			}
		}()
	}
	// A signal ends the run, but not before the lab is down.
	result := make(chan int, 1)
	go func() {
		if err := raise(ctx, o); err != nil {
			say("FAIL: %v", err)
			result <- 1
			return
		}
		say("the clusters are linked; now the tests")
		result <- m.Run()
	}()
	select {
	case code := <-result:
		return code
	case <-ctx.Done():
		say("told to stop")
		return 1
	}
}

// setting is an environment variable or what it is by default. hack/e2e sets them.
func setting(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// say prints a line of progress.
func say(format string, args ...any) {
	fmt.Printf("[%5.1f s] %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}
