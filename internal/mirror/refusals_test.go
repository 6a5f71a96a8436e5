package mirror

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// refusing answers err to every op on the object of that name.
func refusing(op, name string, err error) func(string, client.Object) error {
	return func(o string, object client.Object) error {
		if o == op && object.GetName() == name {
			return err
		}
		return nil
	}
}

func invalid(name string) error {
	return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, name, nil)
}

func TestRefusedWaitsItsTime(t *testing.T) {
	cases := map[string]struct {
		op    string
		err   error
		spoil bool // the mirror stands, and needs a repair
	}{
		"create, invalid":  {op: "create", err: invalid("bar-east")},
		"create, internal": {op: "create", err: apierrors.NewInternalError(errors.New("range is full"))},
		"repair, invalid":  {op: "patch", err: invalid("bar-east"), spoil: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, namespace("shop"))
				bar, peer := entry("bar", "240.0.0.2"), peerWith(true, "bar")
				if tc.spoil {
					c.reconcile(t, peer, bar)
					c.edit(t, func(s *corev1.Service) { s.Annotations[v1alpha1.SourceAnnotation] = "x/y" })
				}
				c.refuse = refusing(tc.op, "bar-east", tc.err)
				c.wrote()
				first := c.reconcile(t, peer, bar)
				if len(c.wrote()) != 1 || first.RecheckAfter != retryRejected || len(first.Problems) != 1 {
					t.Fatalf("it is tried once: %+v", first)
				}
				time.Sleep(retryRejected - 1)
				again := c.reconcile(t, peer, bar)
				if d := cmp.Diff(first.Problems, again.Problems); d != "" || len(c.wrote()) != 0 || again.Pending != 0 || again.RecheckAfter != 1 {
					t.Fatalf("until its time it is told and not tried: %+v\n%s", again, d)
				}
				time.Sleep(time.Nanosecond)
				if c.reconcile(t, peer, bar); len(c.wrote()) != 1 {
					t.Fatal("then it is tried")
				}
				time.Sleep(retryRejected)
				c.refuse = nil
				if r := c.reconcile(t, peer, bar); len(r.Problems) != 0 || r.Mirrors != 1 || r.RecheckAfter != 0 || len(c.remembered()) != 0 {
					t.Errorf("and when it is accepted all is well: %+v", r)
				}
			})
		})
	}
}

func (c *cluster) remembered() refusals { return c.links[eastLink().UID].refused }

func TestChangedDesireIsTriedAtOnce(t *testing.T) {
	c := newCluster(t, namespace("shop"))
	c.refuse = refusing("create", "bar-east", invalid("bar-east"))
	bar, peer := entry("bar", "240.0.0.2"), peerWith(true, "bar")
	c.reconcile(t, peer, bar)
	c.wrote()
	c.refuse = nil
	bar.Ports[0].Port++
	if r := c.reconcile(t, peer, bar); len(r.Problems) != 0 || r.Mirrors != 1 || len(c.wrote()) != 2 || len(c.remembered()) != 0 {
		t.Errorf("what was refused was another Service: %+v", r)
	}
}

func TestRefusedCostsNoBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		c.Options.WritesPerSecond = 2
		peer, entries := many(3)
		c.refuse = func(op string, o client.Object) error {
			if n := o.GetName(); n == "s00-east" || n == "s02-east" {
				return invalid(n)
			}
			return nil
		}
		for range 3 {
			c.reconcile(t, peer, entries...)
			time.Sleep(time.Second)
		}
		c.wrote()
		if r := c.reconcile(t, peer, entries...); len(c.wrote()) != 0 || r.Pending != 0 || len(r.Problems) != 2 || r.Mirrors != 1 {
			t.Errorf("refused writes are told, and are not pending: %+v", r)
		}
		if n := c.links[eastLink().UID].writes.Tokens(); n != 2 {
			t.Errorf("the budget is whole: %v", n)
		}
	})
}

func TestRefusalsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		c.refuse = refusing("create", "bar-east", invalid("bar-east"))
		c.reconcile(t, peerWith(true, "bar"), entry("bar", "240.0.0.2"))
		time.Sleep(retryRejected)
		if r := c.reconcile(t, peerWith(true)); len(c.remembered()) != 0 || r.RecheckAfter != 0 || len(r.Problems) != 0 {
			t.Errorf("nothing is remembered of what nobody wants: %+v", r)
		}
	})
}

func TestInternalErrorStopsNoOther(t *testing.T) {
	c := newCluster(t, namespace("shop"))
	peer, entries := many(3)
	c.reconcile(t, peer, entries[1:]...)
	c.wrote()
	c.refuse = refusing("create", "s00-east", apierrors.NewInternalError(errors.New("failed to allocate a serviceIP: range is full")))
	r := c.reconcile(t, peer, entries[:2]...)
	if d := cmp.Diff([]string{"create *v1.Service shop/s00-east", "delete *v1.Service shop/s02-east"}, c.wrote()); d != "" {
		t.Errorf("deletions come, too (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{Rejected}, reasons(r.Problems)); d != "" || !strings.Contains(r.Problems[0].Message, "range is full") {
		t.Errorf("what the API server said is told: %v", r.Problems)
	}
}

func TestRefusedNamespace(t *testing.T) {
	c := newCluster(t)
	c.refuse = refusing("create", "shop", apierrors.NewForbidden(schema.GroupResource{Resource: "namespaces"}, "shop", nil))
	link := eastLink()
	link.Spec.Import.CreateNamespaces = true
	for i, want := range []int{1, 0} {
		r, err := c.Reconcile(t.Context(), link, peerWith(true, "bar"), []v1alpha1.LedgerMirror{entry("bar", "240.0.0.2")})
		if err != nil || len(c.wrote()) != want || r.Pending != 0 {
			t.Errorf("look %d: nothing is written into a namespace that was refused: %+v, %v", i, r, err)
		}
		if d := cmp.Diff([]string{Rejected, NamespaceMissing}, reasons(r.Problems)); d != "" {
			t.Errorf("look %d (-want +got):\n%s", i, d)
		}
	}
}

func TestSaid(t *testing.T) {
	webhook := func(port int) string {
		return said(fmt.Errorf("failed calling webhook:\n read tcp 10.0.0.1:%d->10.0.0.2:443: reset", port))
	}
	if a, b := webhook(40001), webhook(40002); a != b || !strings.Contains(a, "webhook: read tcp 10.0.0.2:443: reset") {
		t.Errorf("the same answer reads the same: %q, %q", a, b)
	}
	if s := said(errors.New(strings.Repeat("ä", 1000))); len(s) > saidAtMost+len("…") || strings.ContainsRune(s, '\uFFFD') {
		t.Errorf("bounded: %q", s)
	}
}
