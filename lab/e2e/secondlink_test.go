//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/link"
)

// TestSecondLink renames a Link as GitOps does: the new Link is applied first, and the
// old one is deleted later. While both exist the older one stays in force and no call
// fails. After that the newer one takes over within 10 s, and with the same template
// mirrors keep their names and virtual IPs.
func TestSecondLink(t *testing.T) {
	t.Run("of the importer", func(t *testing.T) { renameLink(t, west, east) })
	t.Run("of the exporter", func(t *testing.T) { renameLink(t, east, west) })
}

// renameLink renames the Link to peer in a cluster while west calls east.
func renameLink(t *testing.T, in, peer *cluster) {
	ctx := t.Context()
	old, renamed := peer.Name(), peer.Name()+"-prod"
	if in == west {
		t.Cleanup(func() {
			if err := west.relink(background(), old, `{"import":{"template":null}}`); err != nil {
				t.Error(err)
			}
			serves(t)
		})
		must(t, in.relink(ctx, old, `{"import":{"template":"{service}-east"}}`))
	}
	client, bar := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
	address := vip(t, "bar-east")

	calls, start := startLoop(t, client, bar), time.Now()
	echo := startEcho(t, client, mirrorOf(t, "bar-east", 7001))
	t.Cleanup(func() { restoreLink(t, in, peer, renamed) })
	must(t, in.copyLink(ctx, old, renamed))
	within(t, soon, "the newer Link is refused with a condition", func() error {
		return in.condition(ctx, renamed, v1alpha1.LinkReady, "False "+string(link.DuplicatePeer), old)
	})
	sleep(ctx, 5*time.Second) // both exist, as until the next GitOps sync
	n, failed := calls.end()
	if len(failed) > 0 || n < 30 {
		t.Errorf("%d of %d calls failed while both Links exist:\n%s", len(failed), n, describe(failed, start))
	}
	must(t, echo.lives())
	must(t, in.condition(ctx, old, v1alpha1.LinkReady, "True Ready"))

	must(t, in.dyn.Resource(links).Delete(ctx, old, deleteOptions))
	within(t, 10*time.Second, "the newer Link takes over", func() error {
		if ip := clusterIPOf(ctx, west, "bar-east"); ip != "" {
			_, err := fetch(ctx, client, "http://"+ip)
			return err
		}
		return fmt.Errorf("bar-east does not exist")
	})
	if now := vip(t, "bar-east"); now != address {
		t.Errorf("bar-east had the virtual IP %s and has %s, want it to stay", address, now)
	}
	within(t, soon, "the newer Link is ready", func() error {
		return in.condition(ctx, renamed, v1alpha1.LinkReady, "True Ready")
	})
	if in == west {
		within(t, soon, "the mirror belongs to the newer Link", func() error {
			s, err := west.api.CoreV1().Services("shop").Get(ctx, "bar-east", getOptions)
			if err == nil && s.Labels[v1alpha1.LinkLabel] != renamed {
				err = fmt.Errorf("it has the labels %v", s.Labels)
			}
			return err
		})
	}
	// Kubernetes collects what the older Link owned, which must not be what now serves.
	calls, start = startLoop(t, client, "http://"+mirrorOf(t, "bar-east", 80)), time.Now()
	sleep(ctx, 3*time.Second)
	if n, failed := calls.end(); len(failed) > 0 || n < 15 {
		t.Errorf("%d of %d calls failed after the newer Link took over:\n%s",
			len(failed), n, describe(failed, start))
	}
}

// clusterIPOf is the address of a Service in namespace shop; empty: it does not exist.
func clusterIPOf(ctx context.Context, c *cluster, name string) string {
	ip, err := clusterIP(ctx, c, name)
	if err != nil {
		return ""
	}
	return ip
}

// copyLink applies a copy of a Link's spec under another name.
func (c *cluster) copyLink(ctx context.Context, name, copied string) error {
	l, err := c.dyn.Resource(links).Get(ctx, name, getOptions)
	if err != nil {
		return err
	}
	second := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": l.GetAPIVersion(),
		"kind":       l.GetKind(),
		"metadata":   map[string]any{"name": copied},
		"spec":       l.Object["spec"],
	}}
	_, err = c.dyn.Resource(links).Create(ctx, second, metav1.CreateOptions{})
	return err
}

// restoreLink gives the Link its name back, and waits until calls are served.
func restoreLink(t *testing.T, in, peer *cluster, renamed string) {
	ctx := background()
	if err := in.kubectl(ctx, "", "delete", "link", renamed, "--ignore-not-found"); err != nil {
		t.Error(err)
	}
	if err := introduce(ctx, peer, in); err != nil {
		t.Error(err)
	}
	serves(t)
}
