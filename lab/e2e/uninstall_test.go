//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/lab"
)

// TestUninstallLeavesNothing: what is listed of two clusters and their nodes before Causeway came is listed after it has gone. The one goes with an
// invite open and its peer alive, the other when that peer is no more.
func TestUninstallLeavesNothing(t *testing.T) {
	ctx := t.Context()
	const suffix = "bare"
	names := []string{"left", "right"}
	before := bare(t, suffix, names...)
	both := extra(t, suffix, lab.Options{Clusters: names})
	left, right := both["left"], both["right"]
	must(t, introduce(ctx, left, right))
	must(t, introduce(ctx, right, left))
	for _, c := range both {
		must(t, c.kubectl(ctx, openToAll, "apply", "-f", "-"))
		have(c.causeway(ctx, "invite", "third"))(t)
	}
	for caller, peer := range map[*cluster]*cluster{left: right, right: left} {
		within(t, 30*time.Second, caller.Name()+" calls "+peer.Name(), func() error {
			return answersIn(ctx, caller, "http://baz-"+peer.Name()+".shop/", peer)
		})
	}
	export := serviceExportKind("v1beta1")
	must(t, left.kubectl(ctx, export, "apply", "-f", "-"))
	within(t, soon, "the kind is served", func() error {
		return left.kubectl(ctx, "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n"+
			"metadata: {name: baz, namespace: shop}\n", "apply", "-f", "-")
	})
	within(t, 30*time.Second, "it has conditions", func() error {
		return exportReasons(ctx, left, "v1beta1", "baz", "Valid=True Valid", "Ready=True Exported")
	})
	for _, c := range []*cluster{right, left} {
		name := c.Name()
		if with := have(c.everything(ctx))(t); len(with) < len(before[name])+60 {
			t.Fatalf("with Causeway %d lines are listed, without it %d: the list shows nothing", len(with), len(before[name]))
		}
		start := time.Now()
		said := have(c.causeway(ctx, "uninstall", "--yes"))(t)
		t.Logf("%s, after %.1f s: %s", name, time.Since(start).Seconds(), said)
		if c == left {
			must(t, exportReasons(ctx, left, "v1beta1", "baz"))
			must(t, left.kubectl(ctx, export, "delete", "-f", "-"))
		}
		must(t, c.kubectl(ctx, "", "delete", "namespace", "shop", "--timeout=60s"))
		// A kubelet clears away what it kept of pods that have gone once a minute.
		within(t, 2*time.Minute, name+" is as it was", func() error {
			after, err := c.everything(ctx)
			if err == nil && !slices.Equal(before[name], after) {
				err = fmt.Errorf("(-before +after):\n%s", cmp.Diff(before[name], after))
			}
			return err
		})
	}
}

// openToAll is a policy as its namespace's people write it.
const openToAll = `
apiVersion: causeway.dev/v1alpha1
kind: ExportPolicy
metadata: {name: baz, namespace: shop}
spec: {services: [baz], callers: [{link: left}, {link: right}]}
`

// bare makes clusters without Causeway in a lab of the test's own and lists what is in each, once that has come to rest.
func bare(t *testing.T, suffix string, names ...string) map[string][]string {
	t.Helper()
	o := lab.Options{Name: setting("CAUSEWAY_E2E_LAB", "e2e") + suffix, Clusters: names, Progress: func(s string) { say("%s: %s", suffix, s) }}
	t.Cleanup(func() {
		if err := lab.Down(background(), lab.Options{Name: o.Name}); err != nil {
			t.Errorf("take the lab %s down: %v", o.Name, err)
		}
	})
	l := have(lab.Up(t.Context(), o))(t)
	all := make(map[string][]string)
	for _, name := range names {
		c := have(newCluster(l, name))(t)
		var last []string
		since := time.Now()
		within(t, time.Minute, name+" is at rest", func() error {
			now, err := c.everything(t.Context())
			if err != nil {
				return err
			}
			if !slices.Equal(last, now) {
				last, since = now, time.Now()
			}
			if time.Since(since) < 3*time.Second {
				return errNotYet
			}
			return nil
		})
		all[name] = last
	}
	return all
}
