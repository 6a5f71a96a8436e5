package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// cluster is an API server with a memory, and a Reconciler before it.
type cluster struct {
	client.WithWatch
	*Reconciler
	writes []string
	// refuse injects an error into a write; nil: none.
	refuse func(op string, o client.Object) error
	uids   int
}

func newCluster(t *testing.T, objects ...client.Object) *cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c := &cluster{}
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithIndex(&corev1.Service{}, IndexField, IndexOwner).Build()
	c.WithWatch = interceptor.NewClient(server, interceptor.Funcs{
		Create: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			c.uids++
			o.SetUID(types.UID(fmt.Sprint("uid-", c.uids)))
			if svc, is := o.(*corev1.Service); is && svc.Spec.ClusterIP == "" {
				svc.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", c.uids)
				svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
			}
			return c.note("create", o, func() error { return w.Create(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, w client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return c.note("patch", o, func() error { return w.Patch(ctx, o, p, opts...) })
		},
		Update: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			return c.note("update", o, func() error { return w.Update(ctx, o, opts...) })
		},
		Delete: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return c.note("delete", o, func() error { return w.Delete(ctx, o, opts...) })
		},
	})
	c.Reconciler = &Reconciler{Client: c.WithWatch, Live: server, Namespace: "causeway-system", Version: "v1", Log: slog.New(slog.DiscardHandler)}
	return c
}

func (c *cluster) note(op string, o client.Object, do func() error) error {
	c.writes = append(c.writes, fmt.Sprintf("%s %T %s/%s", op, o, o.GetNamespace(), o.GetName()))
	if c.refuse != nil {
		if err := c.refuse(op, o); err != nil {
			return err
		}
	}
	return do()
}

// wrote returns the writes since it was last asked.
func (c *cluster) wrote() []string {
	w := c.writes
	c.writes = nil
	return w
}

func (c *cluster) reconcile(t *testing.T, peer Peer, entries ...v1alpha1.LedgerMirror) Result {
	t.Helper()
	r, err := c.Reconcile(t.Context(), eastLink(), peer, entries)
	if err != nil {
		t.Fatalf("reconcile: %v", err)
	}
	return r
}

func (c *cluster) ready(t *testing.T) bool {
	t.Helper()
	var s discoveryv1.EndpointSlice
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "bar-east-causeway"}, &s); err != nil {
		t.Fatal(err)
	}
	return *s.Endpoints[0].Conditions.Ready
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func peerWith(ready bool, names ...string) Peer {
	p := Peer{Complete: true, Services: map[catalog.Key]catalog.Service{}}
	for _, n := range names {
		k := catalog.Key{Namespace: "shop", Name: n}
		p.Services[k] = catalog.Service{Namespace: "shop", Name: n, Ready: ready}
	}
	return p
}

func TestLifeOfAMirror(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		bar, up, down := entry("bar", "240.0.0.2"), peerWith(true, "bar"), peerWith(false, "bar")

		r := c.reconcile(t, up, bar)
		want := []string{"create *v1.Service shop/bar-east", "create *v1.EndpointSlice shop/bar-east-causeway"}
		if d := cmp.Diff(want, c.wrote()); d != "" || r.Mirrors != 1 || r.Writes != 2 || r.Pending != 0 || r.RecheckAfter != 0 {
			t.Fatalf("exported: %+v\n%s", r, d)
		}
		if r := c.reconcile(t, up, bar); len(c.wrote()) != 0 || r.Mirrors != 1 || r.Writes != 0 {
			t.Fatalf("a second look writes nothing: %+v", r)
		}

		r = c.reconcile(t, down, bar)
		if len(c.wrote()) != 0 || r.RecheckAfter != downAfter {
			t.Fatalf("not ready for an instant is not told: %+v", r)
		}
		time.Sleep(downAfter - 1)
		if r = c.reconcile(t, down, bar); len(c.wrote()) != 0 || r.RecheckAfter != 1 {
			t.Fatalf("nor a moment before its time: %+v", r)
		}
		time.Sleep(time.Nanosecond)
		if r = c.reconcile(t, down, bar); len(c.wrote()) != 1 || c.ready(t) {
			t.Fatalf("then it is: %+v", r)
		}
		if c.reconcile(t, up, bar); len(c.wrote()) != 1 || !c.ready(t) {
			t.Fatal("ready again is told at once")
		}
		for range 3 { // and again
			c.reconcile(t, down, bar)
			time.Sleep(downAfter)
			c.reconcile(t, down, bar)
			r = c.reconcile(t, up, bar)
			time.Sleep(r.RecheckAfter)
			r = c.reconcile(t, up, bar)
		}
		if d := cmp.Diff([]string{Flapping}, reasons(r.Problems)); d != "" || !c.ready(t) {
			t.Fatalf("who flaps is told (-want +got):\n%s", d)
		}
		time.Sleep(r.RecheckAfter)
		if r = c.reconcile(t, up, bar); len(r.Problems) != 0 || r.RecheckAfter != 0 {
			t.Fatalf("and forgiven: %+v", r)
		}

		c.edit(t, func(s *corev1.Service) { s.Annotations[v1alpha1.SourceAnnotation] = "x/y"; s.Labels["team"] = "a" })
		c.wrote()
		c.reconcile(t, up, bar)
		var svc corev1.Service
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "bar-east"}, &svc); err != nil {
			t.Fatal(err)
		}
		if svc.Annotations[v1alpha1.SourceAnnotation] != "shop/bar" || svc.Labels["team"] != "a" || len(c.wrote()) != 1 {
			t.Fatalf("a tenant's edit is repaired, others' fields survive: %v", svc.ObjectMeta)
		}

		if r = c.reconcile(t, Peer{}); len(c.wrote()) != 0 || r.Mirrors != 0 {
			t.Fatalf("a catalog that is not whole deletes nothing: %+v", r)
		}
		c.reconcile(t, peerWith(true))
		if d := cmp.Diff([]string{"delete *v1.Service shop/bar-east"}, c.wrote()); d != "" {
			t.Fatalf("unexported:\n%s", d)
		}
	})
}

func (c *cluster) edit(t *testing.T, change func(*corev1.Service)) {
	t.Helper()
	var svc corev1.Service
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "bar-east"}, &svc); err != nil {
		t.Fatal(err)
	}
	change(&svc)
	if err := c.Update(t.Context(), &svc); err != nil {
		t.Fatal(err)
	}
}

func TestSilentPeer(t *testing.T) {
	c := newCluster(t, namespace("shop"))
	bar := entry("bar", "240.0.0.2")
	c.reconcile(t, peerWith(false, "bar"), bar)
	c.wrote()
	c.Reconciler = &Reconciler{Client: c.WithWatch, Live: c.WithWatch, Namespace: "causeway-system", Version: "v2", Log: slog.New(slog.DiscardHandler)}
	if r := c.reconcile(t, Peer{}, bar); len(c.wrote()) != 0 || r.Mirrors != 1 || c.ready(t) {
		t.Errorf("a new controller that has not heard of the peer leaves its mirrors as they are: %+v", r)
	}
	if err := c.Delete(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east"}}); err != nil {
		t.Fatal(err)
	}
	c.wrote()
	if r := c.reconcile(t, Peer{}, bar); r.Writes != 3 || r.Mirrors != 1 {
		t.Errorf("a deletion by hand is repaired from the ledger, also while the peer is silent: %+v", r)
	}
}

func TestUsersService(t *testing.T) {
	user := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east", UID: "user"}}
	c := newCluster(t, namespace("shop"), user)
	r := c.reconcile(t, peerWith(true, "bar"), entry("bar", "240.0.0.2"))
	if len(c.wrote()) != 0 || r.Mirrors != 0 || len(r.Problems) != 1 || r.Problems[0].Reason != NameTaken || r.Problems[0].Service != "shop/bar-east" {
		t.Errorf("a user's Service is untouched, and told: %+v", r)
	}
	if r := c.reconcile(t, peerWith(true)); len(c.wrote()) != 0 || len(r.Problems) != 0 {
		t.Errorf("also when the peer withdraws: %+v", r)
	}
}

func TestNamespaceLater(t *testing.T) {
	c := newCluster(t)
	if r := c.reconcile(t, peerWith(true, "bar"), entry("bar", "240.0.0.2")); len(c.wrote()) != 0 || r.Problems[0].Reason != NamespaceMissing {
		t.Errorf("no namespace, no mirror: %+v", r)
	}
	if err := c.Create(t.Context(), namespace("shop")); err != nil {
		t.Fatal(err)
	}
	if r := c.reconcile(t, peerWith(true, "bar"), entry("bar", "240.0.0.2")); r.Mirrors != 1 || len(r.Problems) != 0 {
		t.Errorf("it appears with the namespace: %+v", r)
	}
}

func TestLinkDeleted(t *testing.T) {
	c := newCluster(t, namespace("shop"))
	c.reconcile(t, peerWith(true, "bar"), entry("bar", "240.0.0.2"))
	c.wrote()
	link := eastLink()
	link.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	if r, err := c.Reconcile(t.Context(), link, peerWith(true), nil); err != nil || len(c.wrote()) != 0 || len(c.links) != 0 || r.Mirrors != 0 {
		t.Errorf("Kubernetes collects, we do nothing and remember nothing: %+v, %v", r, err)
	}
}

func TestImportWithdrawn(t *testing.T) {
	c := newCluster(t, namespace("shop"))
	c.reconcile(t, peerWith(true, "bar"), entry("bar", "240.0.0.2"))
	c.wrote()
	link := eastLink()
	link.Spec.Import = nil
	if _, err := c.Reconcile(t.Context(), link, Peer{}, nil); err != nil || len(c.wrote()) != 1 {
		t.Errorf("what we import is for us to say, also while the peer is silent: %v", err)
	}
}

func many(n int) (Peer, []v1alpha1.LedgerMirror) {
	var names []string
	var entries []v1alpha1.LedgerMirror
	for i := range n {
		names = append(names, fmt.Sprintf("s%02d", i))
		entries = append(entries, entry(names[i], fmt.Sprintf("240.0.1.%d", i)))
	}
	return peerWith(true, names...), entries
}

func TestMassDeletionIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		peer, entries := many(50)
		c.reconcile(t, peer, entries...)
		time.Sleep(time.Minute)
		c.wrote()

		r := c.reconcile(t, peerWith(true))
		if got := len(c.wrote()); got != 20 || r.Pending != 30 || r.RecheckAfter != time.Second {
			t.Fatalf("50 of 50 mirrors do not go at once: %d went, %+v", got, r)
		}
		if r = c.reconcile(t, peer, entries...); r.Mirrors != 50 || r.Pending != 0 {
			t.Fatalf("what comes back meanwhile is back: %+v", r)
		}
		c.wrote()
		for range 3 {
			time.Sleep(time.Second)
			r = c.reconcile(t, peerWith(true))
		}
		var left corev1.ServiceList
		if err := c.List(t.Context(), &left); err != nil || len(left.Items) != 0 {
			t.Errorf("in the end all are gone: %d left, %+v, %v", len(left.Items), r, err)
		}
	})
}

func TestAFewGoAtOnce(t *testing.T) {
	c := newCluster(t, namespace("shop"))
	c.Options.DeletesPerSecond = 1
	peer, entries := many(12)
	c.reconcile(t, peer, entries...)
	c.wrote()
	if r := c.reconcile(t, peer, entries[10:]...); len(c.wrote()) != 10 || r.Pending != 0 {
		t.Errorf("ten mirrors are no mass: %+v", r)
	}
}

func TestWriteBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		c.Options.WritesPerSecond = 6
		peer, entries := many(5)
		r := c.reconcile(t, peer, entries...)
		if len(c.wrote()) != 6 || r.Pending != 4 || r.RecheckAfter != time.Second || r.Mirrors != 3 {
			t.Fatalf("a Link writes no more than its budget: %+v", r)
		}
		time.Sleep(r.RecheckAfter)
		if r = c.reconcile(t, peer, entries...); r.Pending != 0 || r.Mirrors != 5 {
			t.Errorf("the rest follows: %+v", r)
		}
	})
}

func TestApply(t *testing.T) {
	services := schema.GroupResource{Resource: "services"}
	cases := map[string]struct {
		why     string
		err     error
		reason  string
		pending int
		again   time.Duration
		fails   bool
		writes  int // attempts
	}{
		"invalid": {
			why: "one that the API server does not accept stops no other",
			err: apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, "s00-east", nil), reason: Rejected, again: retryRejected, writes: 3,
		},
		"quota": {
			why: "one that the API server does not accept stops no other",
			err: apierrors.NewForbidden(services, "s00-east", errors.New("exceeded quota")), reason: Rejected, again: retryRejected, writes: 3,
		},
		"namespace gone": {
			why: "the cache was behind",
			err: apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "shop"), reason: NamespaceMissing, writes: 3,
		},
		"namespace going": {
			why: "the cache was behind",
			err: &apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonForbidden, Code: 403, Details: &metav1.StatusDetails{
				Causes: []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}}}},
			reason: NamespaceMissing, writes: 3,
		},
		"somebody was faster": {
			why: "a lost write is weather, not trouble",
			err: apierrors.NewAlreadyExists(services, "s00-east"), pending: 1, again: retryWeather, writes: 3,
		},
		"API server down": {
			why: "there is no use in trying the others",
			err: errors.New("connection refused"), fails: true, writes: 1,
		},
		"API server overloaded": {
			why: "there is no use in trying the others",
			err: apierrors.NewTooManyRequests("later", 1), fails: true, writes: 1,
		},
		"API server slow": {
			why: "a timeout is 500, too, and says nothing of the object",
			err: apierrors.NewServerTimeout(services, "create", 1), fails: true, writes: 1,
		},
		"bad gateway": {
			why: "what stands before the API server does not know the object",
			err: apierrors.NewGenericServerResponse(502, "create", services, "s00-east", "html", 0, true), fails: true, writes: 1,
		},
		"our time is up": {
			why: "there is no use in trying the others",
			err: context.DeadlineExceeded, fails: true, writes: 1,
		},
		"range is full": {
			why: "a 500 for one object stops no other",
			err: apierrors.NewInternalError(errors.New("failed to allocate a serviceIP: range is full")), reason: Rejected, again: retryRejected, writes: 3,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			k := newCluster(t, namespace("shop"))
			k.refuse = func(op string, o client.Object) error {
				if op == "create" && o.GetName() == "s00-east" {
					return c.err
				}
				return nil
			}
			peer, entries := many(2)
			r, err := k.Reconcile(t.Context(), eastLink(), peer, entries)
			if (err != nil) != c.fails || c.fails && !errors.Is(err, c.err) {
				t.Fatalf("%s: error %v", c.why, err)
			}
			if len(k.wrote()) != c.writes || r.Pending != c.pending || r.RecheckAfter != c.again {
				t.Errorf("%s: %+v", c.why, r)
			}
			if (c.reason == "") != (len(r.Problems) == 0) || c.reason != "" && r.Problems[0].Reason != c.reason {
				t.Errorf("%s: problems %v, want %s", c.why, r.Problems, c.reason)
			}
		})
	}
}

func TestSomebodyElseWrites(t *testing.T) {
	cases := map[string]struct {
		why   string
		peer  Peer
		entry []v1alpha1.LedgerMirror
	}{
		"update": {why: "a repair must not undo what a user has just written", peer: peerWith(true, "bar"), entry: []v1alpha1.LedgerMirror{entry("bar", "240.0.0.2")}},
		"delete": {why: "what was changed since it was judged is judged again before it goes", peer: peerWith(true)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			k := newCluster(t, namespace("shop"))
			k.reconcile(t, peerWith(true, "bar"), entry("bar", "240.0.0.2"))
			k.edit(t, func(s *corev1.Service) { s.Annotations[v1alpha1.SourceAnnotation] = "x/y" })
			meddled := false
			k.refuse = func(op string, o client.Object) error {
				if _, service := o.(*corev1.Service); service && !meddled {
					meddled = true
					k.edit(t, func(s *corev1.Service) { s.Labels["team"] = "a" })
				}
				return nil
			}
			if r := k.reconcile(t, c.peer, c.entry...); r.Pending != 1 || r.RecheckAfter != retryWeather || len(r.Problems) != 0 {
				t.Errorf("%s: %+v", c.why, r)
			}
			if r := k.reconcile(t, c.peer, c.entry...); r.Pending != 0 || r.Writes == 0 {
				t.Errorf("then it is done: %+v", r)
			}
		})
	}
}

// lateCache shows what stood when it was made, and Services that appeared since not at all.
type lateCache struct {
	client.Client
	services map[types.NamespacedName]bool
}

func (l lateCache) Get(ctx context.Context, k client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	if _, is := o.(*corev1.Service); is && !l.services[k] {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, k.Name)
	}
	return l.Client.Get(ctx, k, o, opts...)
}

func (l lateCache) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if _, is := list.(*corev1.ServiceList); is {
		return nil
	}
	return l.Client.List(ctx, list, opts...)
}

func TestLateCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		c.Client = lateCache{Client: c.WithWatch}
		bar, peer := entry("bar", "240.0.0.2"), peerWith(true, "bar")
		c.reconcile(t, peer, bar)
		c.wrote()
		if r := c.reconcile(t, peer, bar); len(c.wrote()) != 0 || r.Mirrors != 1 || r.RecheckAfter != aheadFor {
			t.Errorf("what we just made is not made again because the cache is behind: %+v", r)
		}
		c.Reconciler.links = nil // another replica, with the same late cache
		r := c.reconcile(t, peer, bar)
		for _, w := range c.wrote() {
			if strings.HasPrefix(w, "delete") {
				t.Errorf("a slice seen before its Service is not loose: %s", w)
			}
		}
		if r.Pending == 0 {
			t.Errorf("it is looked at again: %+v", r)
		}
	})
}

func TestOwnWriteUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, namespace("shop"))
		bar, peer := entry("bar", "240.0.0.2"), peerWith(true, "bar")
		c.reconcile(t, peer, bar)
		var svc corev1.Service
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "bar-east"}, &svc); err != nil {
			t.Fatal(err)
		}
		if err := c.Delete(t.Context(), &svc); err != nil { // before the cache has seen it at all
			t.Fatal(err)
		}
		r := c.reconcile(t, peer, bar)
		time.Sleep(r.RecheckAfter)
		c.wrote()
		if r = c.reconcile(t, peer, bar); r.Writes == 0 {
			t.Errorf("our own memory is believed for %v and no longer: %+v", aheadFor, r)
		}
	})
}

// A Link may go while its mirrors are being written: what that came to must not be shown for ever.
func TestForgottenWhileItWorks(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	c := newCluster(t, namespace("shop"))
	c.Metrics = NewMetrics(reg)
	c.refuse = func(string, client.Object) error {
		c.Forget("east")
		return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, "bar-east", nil)
	}
	c.reconcile(t, Peer{}, entry("bar", "240.0.0.2"))
	if n, err := testutil.GatherAndCount(reg, "causeway_mirror_problems"); err != nil || n > 0 {
		t.Errorf("%d series of a Link that is gone, %v", n, err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newCluster(t, namespace("shop"), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s00-east", UID: "user"}})
	c.Metrics = NewMetrics(reg)
	if n, err := testutil.GatherAndCount(reg, "causeway_mirror_writes_total"); n != 3 || err != nil {
		t.Errorf("every kind of write is counted from zero: %d, %v", n, err)
	}
	peer, entries := many(2)
	c.reconcile(t, peer, entries...)
	want := `# HELP causeway_mirror_problems Mirrors that do not stand as the peer's catalog says, by Link and reason.
# TYPE causeway_mirror_problems gauge
`
	for _, reason := range Reasons {
		n := 0
		if reason == NameTaken {
			n = 1
		}
		want += fmt.Sprintf("causeway_mirror_problems{link=%q,reason=%q} %d\n", "east", reason, n)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "causeway_mirror_problems"); err != nil {
		t.Error(err)
	}
	c.Forget("east")
	if n, _ := testutil.GatherAndCount(reg, "causeway_mirror_problems"); n != 0 {
		t.Errorf("a Link that is gone is not counted: %d", n)
	}
}
