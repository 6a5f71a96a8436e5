//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/lab"
)

// stale wants a Link's condition Synced to have a reason, whatever its status.
func (c *cluster) stale(ctx context.Context, name string, reason link.Staleness) error {
	l, err := c.link(ctx, name)
	if err != nil {
		return err
	}
	got := meta.FindStatusCondition(l.Status.Conditions, v1alpha1.LinkSynced)
	if got == nil || got.Reason != string(reason) {
		return fmt.Errorf("%s: Link %s: Synced is %+v, want the reason %s", c.Name(), name, got, reason)
	}
	return nil
}

// etcdFolder is where a cluster's etcd keeps its data.
func (c *cluster) etcdFolder() string { return filepath.Join(filepath.Dir(c.AuditLog()), "etcd") }

// TestRestoredFromBackup restores the exporter's etcd from a backup that is older than an
// export which the importer has mirrored. The importer reports it and deletes nothing,
// until the exporter has changed an export.
func TestRestoredFromBackup(t *testing.T) {
	long(t)
	ctx := t.Context()
	backup := filepath.Join(t.TempDir(), "etcd")
	offer(t, service("early", exported, httpPort), "early-east")
	within(t, soon, "an export of before the backup is mirrored", func() error {
		return answers(ctx, "early-east")
	})
	t.Cleanup(func() {
		err := errors.Join(east.StartControlPlane(background()), east.StartNode(background(), ""))
		if err != nil {
			t.Error(err)
		}
		_ = east.kubectl(background(), "", "-n", "shop", "delete", "service", "late", "newer",
			"--ignore-not-found")
		if err := errors.Join(gone(t, "late-east"), gone(t, "newer-east")); err != nil {
			t.Error(err)
		}
		serves(t)
	})
	sleep(ctx, 3*time.Second) // what follows the export is written, too
	must(t, east.KillControlPlane(ctx))
	_, err := output(exec.CommandContext(ctx, "cp", "-a", east.etcdFolder(), backup))
	must(t, err)
	must(t, east.StartControlPlane(ctx))
	serves(t)
	must(t, east.kubectl(ctx, service("late", exported, httpPort), "apply", "-f", "-"))
	within(t, 30*time.Second, "an export of after the backup is mirrored", func() error {
		return answers(ctx, "late-east")
	})
	sleep(ctx, 3*time.Second)

	// Every process that watches the API server is started again, as Kubernetes asks for.
	mark := have(west.auditEnd())(t)
	must(t, east.KillNode(ctx, ""))
	must(t, east.KillControlPlane(ctx))
	replace := fmt.Sprintf("rm -r %[1]s && cp -a %[2]s %[1]s", east.etcdFolder(), backup)
	_, err = output(exec.CommandContext(ctx, "sh", "-c", replace))
	must(t, err)
	must(t, east.StartControlPlane(ctx))
	must(t, east.StartNode(ctx, ""))
	within(t, 2*time.Minute, "the importer reports that the catalog is older", func() error {
		return west.stale(ctx, "east", link.PeerCatalogOlder)
	})
	sleep(ctx, 10*time.Second)
	for _, w := range have(west.deletedMirrors(mark))(t) {
		t.Errorf("a mirror was deleted: %s", w)
	}
	must(t, west.stale(ctx, "east", link.PeerCatalogOlder))
	within(t, time.Minute, "what the backup holds answers", func() error {
		return answers(ctx, "early-east")
	})

	must(t, east.kubectl(ctx, service("newer", exported, httpPort), "apply", "-f", "-"))
	within(t, 30*time.Second, "a new export is mirrored", func() error { return answers(ctx, "newer-east") })
	within(t, 30*time.Second, "what the restored cluster does not export is gone", func() error {
		return left(t, "late-east")
	})
	within(t, 30*time.Second, "the Link has nothing to say", func() error {
		return west.contented(t, "east")
	})
	for _, w := range have(west.deletedMirrors(mark, "late-east"))(t) {
		t.Errorf("a mirror was deleted: %s", w)
	}
}

// TestRebuiltUnderItsOldName builds a peer again under its old name, with its old
// identity and nothing else. The importer reports it, deletes no mirror, and follows what
// the peer exports again.
func TestRebuiltUnderItsOldName(t *testing.T) {
	long(t)
	ctx := t.Context()
	shape := lab.Options{Clusters: []string{"a"}}
	a := beside(t, shape)["a"]
	t.Cleanup(func() { _ = west.dyn.Resource(links).Delete(background(), "a", deleteOptions) })
	must(t, introduce(ctx, a, west))
	must(t, introduce(ctx, west, a))
	calls := func() error { return answersIn(ctx, west, "http://"+clusterIPOf(ctx, west, "baz-a")+"/", a) }
	within(t, time.Minute, "baz-a answers", calls)
	within(t, soon, "redis-a is mirrored", func() error {
		_, err := clusterIP(ctx, west, "redis-a")
		return err
	})
	secrets := have(a.api.CoreV1().Secrets(system).List(ctx, listOptions))(t).Items
	uid := have(west.api.CoreV1().Services("shop").Get(ctx, "baz-a", getOptions))(t).UID

	mark := have(west.auditEnd())(t)
	o := shape
	o.Name, o.Progress = west.lab.Name(), func(s string) { say("rebuilt: %s", s) }
	must(t, lab.Remove(ctx, o, "a"))
	l := have(lab.Up(ctx, o))(t)
	a = have(newCluster(l, "a"))(t)
	must(t, a.kubectl(ctx, "", "create", "namespace", system))
	for _, s := range secrets {
		restored := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: s.Name, Labels: s.Labels, Annotations: s.Annotations},
			Type:       s.Type,
			Data:       s.Data,
		}
		have(a.api.CoreV1().Secrets(system).Create(ctx, restored, metav1.CreateOptions{}))(t)
	}
	must(t, a.furnish(ctx, callers)) // its Services are not deployed yet
	must(t, introduce(ctx, west, a))
	within(t, time.Minute, "the importer reports that the peer counts from the start", func() error {
		return west.stale(ctx, "a", link.PeerEpochChanged)
	})
	sleep(ctx, 20*time.Second)
	must(t, west.stale(ctx, "a", link.PeerEpochChanged))

	must(t, a.kubectl(ctx, served, "apply", "-f", "-"))
	must(t, a.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod", "--all",
		"--timeout=60s"))
	within(t, 30*time.Second, "baz-a answers from the new cluster", calls)
	for _, w := range have(west.deletedMirrors(mark))(t) {
		t.Errorf("a mirror was deleted: %s", w)
	}
	if now := have(west.api.CoreV1().Services("shop").Get(ctx, "baz-a", getOptions))(t).UID; now != uid {
		t.Errorf("the mirror is a new object: UID %s, then %s", uid, now)
	}
}

// TestAPIServerAway stops the exporter's whole control plane for a minute. No call fails,
// and all is followed again when it is back.
func TestAPIServerAway(t *testing.T) {
	long(t)
	ctx := t.Context()
	t.Cleanup(func() {
		if err := east.StartControlPlane(background()); err != nil {
			t.Error(err)
		}
		serves(t)
	})
	mark := have(west.auditEnd())(t)
	calls := startLoop(t, netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)+"/")
	start := time.Now()
	echo := startEcho(t, netOf(t, west, "client"), mirrorOf(t, "bar-east", 7001))
	must(t, east.KillControlPlane(ctx))
	sleep(ctx, time.Minute)
	must(t, east.StartControlPlane(ctx))
	offer(t, service("after", exported, httpPort), "after-east")
	// The leader has ended, and the other replica waits until its lease of 15 s has expired.
	within(t, 30*time.Second, "a new export is mirrored", func() error { return answers(ctx, "after-east") })
	within(t, time.Minute, "two controllers are ready", func() error { return east.controllers(ctx, 2) })
	within(t, time.Minute, "agents and gateways have a current state", func() error {
		for _, component := range []string{"agent", "gateway"} {
			pods, err := east.pods(ctx, component)
			if err != nil {
				return err
			}
			for i := range pods {
				m, err := east.podMetrics(ctx, &pods[i])
				if err != nil {
					return err
				}
				if age := m["causeway_state_age_seconds"]; age > 10 {
					return fmt.Errorf("the state of %s is %.0f s old", pods[i].Name, age)
				}
			}
		}
		return nil
	})
	if n, failed := calls.end(); len(failed) > 0 || n < 500 {
		t.Errorf("%d of %d calls failed:\n%s", len(failed), n, describe(failed, start))
	}
	must(t, echo.lives())
	for _, w := range have(west.deletedMirrors(mark))(t) {
		t.Errorf("a mirror was deleted: %s", w)
	}
}
