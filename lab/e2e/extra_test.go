//go:build e2e

package e2e

import (
	"context"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/lab"
)

// extra raises a lab of a test's own beside the shared one, for stories that need other clusters or other networks, and takes it
// down when the test ends. Its name is the shared lab's with suffix. In every cluster Causeway is installed, and the whole shop is
// open: callers, and what is called. Nothing is linked, and of the shop baz and redis are exported.
func extra(t *testing.T, suffix string, o lab.Options) map[string]*cluster {
	t.Helper()
	o.Name = setting("CAUSEWAY_E2E_LAB", "e2e") + suffix
	o.Progress = func(s string) { say("%s: %s", suffix, s) }
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	t.Cleanup(func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
		defer cancel()
		if err := lab.Down(down, o); err != nil {
			t.Errorf("take the lab %s down: %v", o.Name, err)
		}
	})
	l, err := lab.Up(ctx, o)
	if err != nil {
		t.Fatalf("make the clusters: %v", err)
	}
	clusters := make(map[string]*cluster, len(o.Clusters))
	furnishing, fctx := errgroup.WithContext(ctx)
	furnishing.SetLimit(3) // pods that start all at once take longer than in turn
	for _, name := range slices.Sorted(slices.Values(o.Clusters)) {
		c, err := newCluster(l, name)
		if err != nil {
			t.Fatal(err)
		}
		clusters[name] = c
		furnishing.Go(func() error { return c.furnish(fctx, callers+"---"+served) })
	}
	if err := furnishing.Wait(); err != nil {
		t.Fatal(err)
	}
	return clusters
}
