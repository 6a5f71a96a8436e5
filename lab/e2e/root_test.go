//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// trusts says how a Link of c trusts its peer: the condition's reason.
func (c *cluster) trusts(ctx context.Context, name, reason string) error {
	var l v1alpha1.Link
	if err := c.read(ctx, links, "", name, &l); err != nil {
		return err
	}
	got := meta.FindStatusCondition(l.Status.Conditions, v1alpha1.LinkTrusted)
	if got == nil || got.Reason != reason || got.ObservedGeneration != l.Generation {
		return fmt.Errorf("%s's Link %s: %+v, want reason %s", c.Name(), name, got, reason)
	}
	return nil
}

// restarted gives c new controllers, that know what is stored and nothing else.
func restarted(ctx context.Context, c *cluster) error {
	if err := c.kubectl(ctx, "", "-n", system, "rollout", "restart", "deployment/causeway-controller"); err != nil {
		return err
	}
	return c.kubectl(ctx, "", "-n", system, "rollout", "status", "deployment/causeway-controller", "--timeout=90s")
}

// TestRootRotation: the root is rotated on one side, then on the other, under new connections and an open one: none is lost, and
// Links of before stay good, also for controllers and agents that start afterwards. In the end the root is revoked on one side:
// nobody believes that one until it is linked anew. (A root is rotated again a day later at the earliest: on a lab that is
// kept, the revocations at the end make room.)
func TestRootRotation(t *testing.T) {
	ctx := t.Context()
	old := map[*cluster]string{west: have(west.causeway(ctx, "identity"))(t), east: have(east.causeway(ctx, "identity"))(t)}
	peer := map[*cluster]*cluster{west: east, east: west}
	open := calling(t)
	for _, side := range []*cluster{west, east} {
		f := callAlways(t)
		start := time.Now()
		have(side.causeway(ctx, "rotate", "--root", "--announce", "1m", "--wait"))(t)
		took := time.Since(start)
		sleep(ctx, time.Second)
		f.end(t, 50)
		t.Logf("%s rotated root and issuer in %.1f s", side.Name(), took.Seconds())
		within(t, 10*time.Second, "the peer says that a root has followed", func() error { return peer[side].trusts(ctx, side.Name(), "RootFollowed") })
	}
	f := callAlways(t)
	t.Run("the Link of today, and the old one", func(t *testing.T) {
		var today string
		within(t, 10*time.Second, "the new root is printed", func() (err error) {
			if today, err = west.causeway(ctx, "identity"); err == nil && today == old[west] {
				err = errNotYet
			}
			return err
		})
		must(t, east.kubectl(ctx, today, "apply", "-f", "-"))
		within(t, 20*time.Second, "trusted by the root itself", func() error { return east.trusts(ctx, "west", "Trusted") })
		must(t, east.kubectl(ctx, old[west], "apply", "-f", "-"))
		within(t, 20*time.Second, "trusted by the root of before", func() error { return east.trusts(ctx, "west", "RootFollowed") })
	})
	t.Run("who starts now", func(t *testing.T) {
		must(t, restarted(ctx, east))
		must(t, restarted(ctx, west))
		for _, side := range []*cluster{west, east} {
			within(t, 30*time.Second, side.Name()+" trusts by the root of before", func() error { return side.trusts(ctx, peer[side].Name(), "RootFollowed") })
		}
	})
	f.end(t, 200)
	for _, c := range open {
		c.lives(t)
	}
	t.Run("revoked", func(t *testing.T) { revokedRoot(t, open) })
}

// revokedRoot revokes west's root and links both anew.
func revokedRoot(t *testing.T, open []*caller) {
	ctx := t.Context()
	if _, err := west.causeway(ctx, "rotate", "--root", "--revoke"); err == nil || !strings.Contains(err.Error(), "east") {
		t.Errorf("it must ask first, and name the peers that are lost: %v", err)
	}
	t.Cleanup(func() { serves(t) })
	start := time.Now()
	have(west.causeway(ctx, "rotate", "--root", "--revoke", "--yes", "--wait"))(t)
	within(t, 20*time.Second, "the peer says that it does not believe", func() error {
		err := east.trusts(ctx, "west", "IssuersRefused")
		if err != nil { // its stream may have ended, too
			var l v1alpha1.Link
			if e := east.read(ctx, links, "", "west", &l); e == nil && !meta.IsStatusConditionTrue(l.Status.Conditions, v1alpha1.LinkConnected) {
				return nil
			}
		}
		return err
	})
	must(t, introduce(ctx, west, east))
	must(t, introduce(ctx, east, west))
	relinked := time.Now()
	within(t, 30*time.Second, "linked anew", func() error { return east.trusts(ctx, "west", "Trusted") })
	for _, c := range open { // what the peer believed until now
		c.isReset(t, relinked, 30*time.Second)
	}
	have(east.causeway(ctx, "rotate", "--revoke", "--wait"))(t) // east's former root leaves with its issuers
	serves(t)
	t.Logf("calls work %.1f s after the command", time.Since(start).Seconds())
}
