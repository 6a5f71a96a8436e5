//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/causeway-mesh/causeway/lab"
)

// extra raises a lab of a test's own beside the shared one, for stories that need other clusters or other networks, and takes it
// down when the test ends. Its name is the shared lab's with suffix; each of shapes adds the clusters that it names. In every
// cluster Causeway is installed, and the whole shop is open: callers, and what is called. Nothing is linked, and of the shop baz and
// redis are exported.
func extra(t *testing.T, suffix string, shapes ...lab.Options) map[string]*cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	name := setting("CAUSEWAY_E2E_LAB", "e2e") + suffix
	t.Cleanup(func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
		defer cancel()
		if err := lab.Down(down, lab.Options{Name: name}); err != nil {
			t.Errorf("take the lab %s down: %v", name, err)
		}
	})
	var l *lab.Lab
	var err error
	for _, o := range shapes {
		o.Name, o.Progress = name, func(s string) { say("%s: %s", suffix, s) }
		if l, err = lab.Up(ctx, o); err != nil {
			t.Fatalf("make the clusters: %v", err)
		}
	}
	return furnished(t, ctx, l, l.Clusters())
}

// beside adds clusters to the shared lab, so that they meet west and east in its WAN, and removes them when the test ends. They are furnished
// like those of extra.
func beside(t *testing.T, shapes ...lab.Options) map[string]*cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var l *lab.Lab
	var added []*lab.Cluster
	for _, o := range shapes {
		o.Name, o.Progress = west.lab.Name(), func(s string) { say("beside: %s", s) }
		t.Cleanup(func() {
			down, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
			defer cancel()
			if err := lab.Remove(down, o, o.Clusters...); err != nil {
				t.Errorf("remove %v: %v", o.Clusters, err)
			}
		})
		var err error
		if l, err = lab.Up(ctx, o); err != nil {
			t.Fatalf("make the clusters: %v", err)
		}
		for _, name := range o.Clusters {
			added = append(added, l.Cluster(name))
		}
	}
	return furnished(t, ctx, l, added)
}

// furnished installs Causeway in clusters, and opens the whole shop there.
func furnished(t *testing.T, ctx context.Context, l *lab.Lab, which []*lab.Cluster) map[string]*cluster {
	t.Helper()
	clusters := make(map[string]*cluster)
	furnishing, fctx := errgroup.WithContext(ctx)
	furnishing.SetLimit(3) // pods that start all at once take longer than in turn
	for _, at := range which {
		c, err := newCluster(l, at.Name())
		if err != nil {
			t.Fatal(err)
		}
		clusters[at.Name()] = c
		furnishing.Go(func() error { return c.furnish(fctx, callers+"---"+served) })
	}
	if err := furnishing.Wait(); err != nil {
		t.Fatal(err)
	}
	return clusters
}
