package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
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
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// cluster is an API server with a memory, and a Writer in front of it. It lives in a
// synctest bubble.
type cluster struct {
	api client.WithWatch
	*Writer
	t  *testing.T
	mu sync.Mutex // guards what follows
	// refuse injects an error into a write; nil: none.
	refuse func(op string, o client.Object) error
	// stale: no event shows what is written.
	stale  bool
	writes []string
	uids   int
}

// inCluster runs a test against a cluster with the Link east and a running Writer.
func inCluster(t *testing.T, objects []client.Object, test func(c *cluster), options ...func(*WriterConfig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, objects...)
		c.restart(options...)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		c.SetLink(eastLink(), nil)
		c.SetComplete("east", true)
		synctest.Wait() // what stands is known
		test(c)
		cancel()
		running.Wait()
	})
}

func newCluster(t *testing.T, objects ...client.Object) *cluster {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t}
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithIndex(&corev1.Service{}, OwnerIndex, IndexOwner).
		WithIndex(&discoveryv1.EndpointSlice{}, ServiceIndex, IndexService).
		WithIndex(&discoveryv1.EndpointSlice{}, LinkIndex, IndexLink).
		WithIndex(&corev1.Namespace{}, LinkIndex, IndexLink).Build()
	c.api = interceptor.NewClient(server, interceptor.Funcs{
		Create: func(ctx context.Context, w client.WithWatch, o client.Object,
			opts ...client.CreateOption) error {
			return c.note("create", o, func() error {
				c.initialize(o)
				return w.Create(ctx, o, opts...)
			})
		},
		Patch: func(ctx context.Context, w client.WithWatch, o client.Object, p client.Patch,
			opts ...client.PatchOption) error {
			return c.note("patch", o, func() error { return w.Patch(ctx, o, p, opts...) })
		},
		Update: func(ctx context.Context, w client.WithWatch, o client.Object,
			opts ...client.UpdateOption) error {
			return c.note("update", o, func() error { return w.Update(ctx, o, opts...) })
		},
		Delete: func(ctx context.Context, w client.WithWatch, o client.Object,
			opts ...client.DeleteOption) error {
			return c.note("delete", o, func() error { return w.Delete(ctx, o, opts...) })
		},
	})
	return c
}

// initialize does what the API server does to a new object.
func (c *cluster) initialize(o client.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uids++
	o.SetUID(types.UID(fmt.Sprint("uid-", c.uids)))
	if svc, is := o.(*corev1.Service); is && svc.Spec.ClusterIP == "" {
		svc.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", c.uids)
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
}

func (c *cluster) note(op string, o client.Object, do func() error) error {
	c.mu.Lock()
	c.writes = append(c.writes, fmt.Sprintf("%s %T %s/%s", op, o, o.GetNamespace(), o.GetName()))
	refuse, stale := c.refuse, c.stale
	c.mu.Unlock()
	if refuse != nil {
		if err := refuse(op, o); err != nil {
			return err
		}
	}
	err := do()
	if err == nil && !stale {
		for _, k := range KeysOf(o) {
			c.Touch(k.Link, k.Key)
		}
	}
	return err
}

// inject makes writes fail as refuse says; nil: none.
func (c *cluster) inject(refuse func(op string, o client.Object) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = refuse
}

// setStale makes the cache tell no more of what is written.
func (c *cluster) setStale() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = true
}

// restart replaces the Writer by a new one, as another replica would have it.
func (c *cluster) restart(options ...func(*WriterConfig)) {
	config := WriterConfig{
		Reader:    c.api,
		Client:    c.api,
		Live:      c.api,
		Namespace: "causeway-system",
		Version:   "v1",
	}
	for _, o := range options {
		o(&config)
	}
	c.Writer = NewWriter(config)
}

// wrote returns the writes since it was last called, once there is nothing left to do
// now.
func (c *cluster) wrote() []string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.writes
	c.writes = nil
	return w
}

// expect fails unless these are the writes since it was last called.
func (c *cluster) expect(why string, writes ...string) {
	c.t.Helper()
	if d := cmp.Diff(writes, c.wrote()); d != "" {
		c.t.Fatalf("%s (-want +got):\n%s", why, d)
	}
}

// status fails unless the Link's status has these numbers and reasons of problems.
func (c *cluster) status(why string, mirrors, pending int, problems ...string) {
	c.t.Helper()
	synctest.Wait()
	s := c.Status("east")
	if d := cmp.Diff(problems, reasons(s.Problems)); d != "" || s.Mirrors != mirrors || s.Pending != pending {
		c.t.Fatalf("%s: %+v, problems (-want +got):\n%s", why, s, d)
	}
}

func (c *cluster) set(wants ...*Want) {
	all := make(map[catalog.Key]*Want, len(wants))
	for _, w := range wants {
		all[w.key()] = w
	}
	c.SetAll("east", all)
}

func (c *cluster) ready() bool {
	c.t.Helper()
	synctest.Wait()
	var s discoveryv1.EndpointSlice
	if err := c.api.Get(c.t.Context(), client.ObjectKey{
		Namespace: "shop",
		Name:      "bar-east-causeway",
	}, &s); err != nil {
		c.t.Fatal(err)
	}
	return *s.Endpoints[0].Conditions.Ready
}

func (c *cluster) bar() *corev1.Service {
	c.t.Helper()
	synctest.Wait()
	var svc corev1.Service
	if err := c.api.Get(c.t.Context(), client.ObjectKey{
		Namespace: "shop",
		Name:      "bar-east",
	}, &svc); err != nil {
		c.t.Fatal(err)
	}
	return &svc
}

// collect does what Kubernetes' garbage collector does to slices without a Service.
func (c *cluster) collect() {
	c.t.Helper()
	var list discoveryv1.EndpointSliceList
	if err := c.api.List(c.t.Context(), &list); err != nil {
		c.t.Fatal(err)
	}
	for i := range list.Items {
		if err := c.api.Delete(c.t.Context(), &list.Items[i]); err != nil {
			c.t.Fatal(err)
		}
	}
	c.wrote()
}

func (c *cluster) edit(change func(*corev1.Service)) {
	c.t.Helper()
	svc := c.bar()
	change(svc)
	if err := c.api.Update(c.t.Context(), svc); err != nil {
		c.t.Fatal(err)
	}
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

var shop = []client.Object{namespace("shop")}

func down(w *Want) *Want {
	d := *w
	d.Ready = false
	return &d
}

func TestLifeOfAMirror(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		bar := wanted("bar", "240.0.0.2")
		c.set(bar)
		c.expect("exported", "create *v1.Service shop/bar-east",
			"create *v1.EndpointSlice shop/bar-east-causeway")
		c.status("it stands", 1, 0)
		c.Touch("east", barKey)
		c.set(wanted("bar", "240.0.0.2"))
		c.expect("a second look writes nothing")

		c.set(down(bar))
		c.expect("not ready for an instant is not shown")
		bubble.Pass(downAfter - 1)
		c.expect("nor a moment before its time")
		bubble.Pass(time.Nanosecond)
		if c.expect("then it is", "patch *v1.EndpointSlice shop/bar-east-causeway"); c.ready() {
			t.Fatal("it is shown ready")
		}
		c.set(bar)
		if c.expect("ready again is shown at once",
			"patch *v1.EndpointSlice shop/bar-east-causeway"); !c.ready() {
			t.Fatal("it is shown not ready")
		}

		c.edit(func(s *corev1.Service) {
			s.Annotations[v1alpha1.SourceAnnotation] = "x/y"
			s.Labels["team"] = "a"
		})
		c.expect("a tenant's edit is repaired", "update *v1.Service shop/bar-east",
			"patch *v1.Service shop/bar-east")
		if svc := c.bar(); svc.Annotations[v1alpha1.SourceAnnotation] != "shop/bar" ||
			svc.Labels["team"] != "a" {
			t.Fatalf("and others' fields survive: %v", svc.ObjectMeta)
		}

		c.SetComplete("east", false)
		c.Set("east", barKey, nil)
		c.expect("an incomplete catalog deletes nothing")
		c.status("not wanted", 0, 0)
		c.SetComplete("east", true)
		c.expect("unexported", "delete *v1.Service shop/bar-east")
		c.status("nothing is left", 0, 0)
		c.collect()
		bubble.Pass(expectFor)
		c.expect("Kubernetes collects the slices")
		if len(c.links["east"].mirrors) > 0 || len(c.byName) > 0 {
			t.Error("nothing is remembered of what is gone")
		}
	})
}

func TestSilentPeer(t *testing.T) {
	unknown := wanted("bar", "240.0.0.2")
	unknown.Known = false
	inCluster(t, shop, func(c *cluster) {
		c.set(down(wanted("bar", "240.0.0.2")))
		c.wrote()
		c.set(unknown)
		if c.expect("a source that the peer has not described keeps what it has"); c.ready() {
			t.Error("it is shown ready")
		}
		if err := c.api.Delete(t.Context(), c.bar()); err != nil {
			t.Fatal(err)
		}
		c.expect("a deletion by hand is repaired from the ledger, also while the peer is silent",
			"delete *v1.Service shop/bar-east", "delete *v1.EndpointSlice shop/bar-east-causeway",
			"create *v1.Service shop/bar-east", "create *v1.EndpointSlice shop/bar-east-causeway")
	})
}

func TestUsersService(t *testing.T) {
	user := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east", UID: "user"}}
	inCluster(t, append(shop, user), func(c *cluster) {
		c.set(wanted("bar", "240.0.0.2"))
		c.expect("a user's Service is untouched")
		c.status("and it is reported", 0, 0, NameTaken)
		if s := c.Status("east"); s.Blocked != 1 || s.Problems[0].Service != "shop/bar-east" {
			t.Errorf("the status names it: %+v", s)
		}
		c.Set("east", barKey, nil)
		c.expect("also when the peer withdraws")
		c.status("then there is no problem", 0, 0)
		c.set(wanted("bar", "240.0.0.2"))
		if err := c.api.Delete(t.Context(), user); err != nil {
			t.Fatal(err)
		}
		c.status("once it is gone the mirror is made", 1, 0)
	})
}

func TestNamespaceLater(t *testing.T) {
	inCluster(t, nil, func(c *cluster) {
		c.set(wanted("bar", "240.0.0.2"))
		c.expect("no namespace, no mirror")
		c.status("and it is reported", 0, 0, NamespaceMissing)
		if err := c.api.Create(t.Context(), namespace("shop")); err != nil {
			t.Fatal(err)
		}
		c.status("it appears with the namespace", 1, 0)
	})
}

func TestLinkDeleted(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.set(wanted("bar", "240.0.0.2"))
		c.wrote()
		link := eastLink()
		link.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		c.SetLink(link, nil)
		c.Set("east", barKey, nil)
		c.Touch("east", barKey)
		c.expect("Kubernetes collects, we do nothing")
		if len(c.links)+len(c.byName) > 0 {
			t.Error("and remember nothing")
		}
	})
}

func TestImportWithdrawn(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.set(wanted("bar", "240.0.0.2"))
		c.wrote()
		c.SetComplete("east", false)
		link := eastLink()
		link.Spec.Import = nil
		c.SetLink(link, nil)
		c.Set("east", barKey, nil)
		c.expect("what we import is ours to decide, also while the peer is silent",
			"delete *v1.Service shop/bar-east")
	})
}

func TestRename(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		bar := wanted("bar", "240.0.0.2")
		c.set(bar)
		c.wrote()
		other := *bar
		other.Entry.MirrorName = "b-east"
		c.SetAll("east", map[catalog.Key]*Want{barKey: nil, other.key(): &other})
		c.expect("the new name is made before the old one goes",
			"create *v1.Service shop/b-east", "create *v1.EndpointSlice shop/b-east-causeway",
			"delete *v1.Service shop/bar-east")
	})
}

// many returns n mirrors.
func many(n int) []*Want {
	var out []*Want
	for i := range n {
		out = append(out, wanted(fmt.Sprintf("s%05d", i), fmt.Sprintf("240.0.%d.%d", 1+i/256, i%256)))
	}
	return out
}

func (c *cluster) unset(wants ...*Want) {
	all := make(map[catalog.Key]*Want, len(wants))
	for _, w := range wants {
		all[w.key()] = nil
	}
	c.SetAll("east", all)
}

func TestMassDeletionIsPaced(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		wants := many(50)
		c.set(wants...)
		bubble.Pass(time.Minute)
		c.wrote()
		c.unset(wants...)
		if n := len(c.wrote()); n != 20 {
			t.Fatalf("50 of 50 mirrors are not deleted at once: %d were", n)
		}
		c.status("the others are pending", 0, 30)
		c.set(wants...)
		c.status("what comes back meanwhile is back", 50, 0)
		c.wrote()
		c.unset(wants...)
		bubble.Pass(3 * time.Second)
		var left corev1.ServiceList
		if err := c.api.List(t.Context(), &left); err != nil || len(left.Items) != 0 {
			t.Errorf("in the end all are gone: %d left, %v", len(left.Items), err)
		}
	})
}

func TestAFewAreDeletedAtOnce(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		wants := many(12)
		c.set(wants...)
		c.wrote()
		c.unset(wants[:10]...)
		if n := len(c.wrote()); n != 10 {
			t.Errorf("ten mirrors are no mass: %d", n)
		}
	}, func(w *WriterConfig) { w.Options.DeletesPerSecond = 1 })
}

func TestDeletionDoesNotStarve(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		old := wanted("old", "240.0.0.2")
		c.set(old)
		c.wrote()
		c.set(many(200)...) // at 10 writes per second these take 40 s
		synctest.Wait()
		c.unset(old)
		const debt = 3 * time.Second // of workers that have begun a mirror each
		bubble.Pass(deleteWithin + debt)
		var svc corev1.Service
		err := c.api.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "old-east"}, &svc)
		if !apierrors.IsNotFound(err) {
			t.Errorf("a deletion waits for other work, but not for ever: %v", err)
		}
	}, func(w *WriterConfig) { w.Options.WritesPerSecond = 10 })
}

func TestWriteBudgets(t *testing.T) {
	cases := map[string]struct {
		why     string
		options Options
	}{
		"per Link": {why: "a Link writes no more than its budget", options: Options{WritesPerSecond: 10}},
		"in all": {
			why:     "all Links together write no more than the global budget",
			options: Options{TotalWritesPerSecond: 10},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			inCluster(t, shop, func(c *cluster) {
				c.set(many(45)...)
				const debt = 16 // a worker that has begun a mirror finishes it
				if n := len(c.wrote()); n < 10 || n > 10+debt {
					t.Fatalf("%s: %d writes at once", tc.why, n)
				}
				bubble.Pass(5 * time.Second)
				if n := len(c.wrote()); n < 50-debt || n > 50+debt {
					t.Fatalf("%s: %d writes in 5 s", tc.why, n)
				}
				bubble.Pass(time.Minute)
				c.status("the rest follows", 45, 0)
			}, func(w *WriterConfig) { w.Options = tc.options })
		})
	}
}

func TestRefusedWriteStopsNoOther(t *testing.T) {
	services := schema.GroupResource{Resource: "services"}
	cases := map[string]struct {
		why     string
		err     error
		reason  string
		pending int
		again   time.Duration // when it is tried again
	}{
		"invalid": {
			why:    "it will not be accepted sooner",
			err:    invalid("s00000-east"),
			reason: Rejected,
			again:  retryRefused,
		},
		"quota": {
			why:    "it will not be accepted sooner",
			err:    apierrors.NewForbidden(services, "x", errors.New("exceeded quota")),
			reason: Rejected,
			again:  retryRefused,
		},
		"range is full": {
			why:    "a 500 for one object is about that object",
			err:    apierrors.NewInternalError(errors.New("failed to allocate a serviceIP: range is full")),
			reason: Rejected,
			again:  retryRefused,
		},
		"namespace gone": {
			why:    "the cache was behind",
			err:    apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "shop"),
			reason: NamespaceMissing,
			again:  retryRefused,
		},
		"namespace going": {
			why:    "the cache was behind",
			err:    terminating(),
			reason: NamespaceMissing,
			again:  retryRefused,
		},
		"lost to another": {
			why:     "a lost write is no problem",
			err:     apierrors.NewAlreadyExists(services, "x"),
			pending: 1,
			again:   retryConflict,
		},
		"API server down": {
			why:     "it is tried again soon",
			err:     errors.New("connection refused"),
			pending: 1,
			again:   minRetry,
		},
		"overloaded": {
			why:     "it is tried again soon",
			err:     apierrors.NewTooManyRequests("later", 1),
			pending: 1,
			again:   minRetry,
		},
		"API server slow": {
			why:     "a timeout says nothing of the object",
			err:     apierrors.NewServerTimeout(services, "create", 1),
			pending: 1,
			again:   minRetry,
		},
		"bad gateway": {
			why:     "what stands before the API server does not know the object",
			err:     apierrors.NewGenericServerResponse(502, "create", services, "x", "html", 0, true),
			pending: 1,
			again:   minRetry,
		},
		"deadline of a call": {
			why:     "it is tried again soon",
			err:     context.DeadlineExceeded,
			pending: 1,
			again:   minRetry,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			inCluster(t, shop, func(c *cluster) {
				c.inject(func(op string, o client.Object) error {
					if op == "create" && o.GetName() == "s00000-east" {
						return tc.err
					}
					return nil
				})
				c.set(many(3)...)
				var problems []string
				if tc.reason != "" {
					problems = []string{tc.reason}
				}
				c.status(tc.why, 2, tc.pending, problems...)
				if n := len(c.wrote()); n != 5 {
					t.Fatalf("the others are made, and it is tried once: %d", n)
				}
				bubble.Pass(tc.again - 1)
				c.expect("it is not tried before its time")
				bubble.Pass(time.Nanosecond)
				c.expect("then it is", "create *v1.Service shop/s00000-east")
				c.inject(nil)
				bubble.Pass(2 * time.Minute)
				c.status("and when it is accepted all is well", 3, 0)
				if m := c.links["east"].mirrors[catalog.Key{
					Namespace: "shop",
					Name:      "s00000-east",
				}]; len(m.refusals) > 0 {
					t.Error("the refusal is forgotten")
				}
			})
		})
	}
}

func terminating() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Reason: metav1.StatusReasonForbidden,
		Code:   403,
		Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}},
	}}
}

func TestOutagePausesTheLink(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.inject(func(string, client.Object) error { return errors.New("connection refused") })
		c.set(many(60)...)
		bubble.Pass(time.Minute)
		if n := len(c.wrote()); n > 60 {
			t.Errorf("an API server that is away is not asked again and again: %d", n)
		}
		c.status("nothing stands", 0, 60)
		c.inject(nil)
		bubble.Pass(2 * maxRetry)
		c.status("and all is made soon after it is back", 60, 0)
	})
}

func TestOutageOfOneLinkIsItsOwn(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.inject(func(_ string, o client.Object) error {
			if o.GetLabels()[v1alpha1.LinkLabel] == "east" {
				return context.DeadlineExceeded
			}
			return nil
		})
		c.set(many(100)...)
		north := eastLink()
		north.Name, north.UID = "north", "link-2"
		c.SetLink(north, nil)
		w := wanted("bar", "240.1.0.2")
		w.Entry.MirrorName = "bar-north"
		c.Set("north", w.key(), w)
		synctest.Wait()
		if s := c.Status("north"); s.Mirrors != 1 {
			t.Errorf("another Link is served all the same: %+v", s)
		}
	})
}

func TestTooManyRequestsSlowsDown(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.inject(refusing("create", "s00000-east", apierrors.NewTooManyRequests("later", 1)))
		c.set(many(1)...)
		synctest.Wait()
		if got := c.Throttle.Rate(time.Now()); got != 400 {
			t.Errorf("429 halves the global rate: %v", got)
		}
	})
}

func TestLinksTakeTurns(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.set(many(300)...)
		synctest.Wait() // the global budget is used up
		c.wrote()
		north := eastLink()
		north.Name, north.UID = "north", "link-2"
		c.SetLink(north, nil)
		w := wanted("bar", "240.1.0.2")
		w.Entry.MirrorName = "bar-north"
		c.Set("north", w.key(), w)
		bubble.Pass(500 * time.Millisecond) // the workers' debt, and its turn; the others take 6 s
		if s := c.Status("north"); s.Mirrors != 1 {
			t.Errorf("one mirror of another Link does not wait for 300: %+v", s)
		}
	}, func(w *WriterConfig) { w.Options.WritesPerSecond, w.Options.TotalWritesPerSecond = 100, 100 })
}

func TestAnotherWriterWins(t *testing.T) {
	for name, why := range map[string]string{
		"update": "a repair must not undo what a user has just written",
		"delete": "what has changed since it was judged is judged again before it goes",
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, shop, func(c *cluster) {
				c.set(wanted("bar", "240.0.0.2"))
				c.wrote()
				var meddled atomic.Bool
				c.inject(func(op string, o client.Object) error {
					if _, is := o.(*corev1.Service); !is || meddled.Load() || op == "update" {
						return nil
					}
					meddled.Store(true)
					var svc corev1.Service
					if err := c.api.Get(t.Context(), client.ObjectKeyFromObject(o), &svc); err != nil {
						return err
					}
					svc.Labels["team"] = "a"
					return c.api.Update(t.Context(), &svc)
				})
				if name == "update" {
					c.edit(func(s *corev1.Service) { s.Annotations[v1alpha1.SourceAnnotation] = "x/y" })
				} else {
					c.Set("east", barKey, nil)
				}
				bubble.Pass(retryConflict)
				if !meddled.Load() {
					t.Fatal("the concurrent writer did not run")
				}
				if name == "delete" {
					c.status("then it goes", 0, 0)
				} else if svc := c.bar(); svc.Labels["team"] != "a" ||
					svc.Annotations[v1alpha1.SourceAnnotation] != "shop/bar" {
					t.Errorf("%s: %v", why, svc.ObjectMeta)
				}
			})
		})
	}
}

// lateCache shows no Services at all.
type lateCache struct{ client.Reader }

func (l lateCache) Get(ctx context.Context, k client.ObjectKey, o client.Object,
	opts ...client.GetOption) error {
	if _, is := o.(*corev1.Service); is {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "services"}, k.Name)
	}
	return l.Reader.Get(ctx, k, o, opts...)
}

func (l lateCache) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if _, is := list.(*corev1.ServiceList); is {
		return nil
	}
	return l.Reader.List(ctx, list, opts...)
}

func TestLateCache(t *testing.T) {
	late := func(w *WriterConfig) { w.Reader = lateCache{w.Reader} }
	inCluster(t, shop, func(c *cluster) {
		c.set(wanted("bar", "240.0.0.2"))
		c.wrote()
		c.Touch("east", barKey)
		c.expect("what we have just made is not made again because the cache is behind")
		c.status("it stands", 1, 0)

		bubble.Pass(expectFor)
		for _, w := range c.wrote() {
			if w != "create *v1.Service shop/bar-east" {
				t.Errorf("a slice seen before its Service is not orphaned: %s", w)
			}
		}
		c.status("it is looked at again", 0, 1)
	}, late)
}

func TestOwnWriteUndone(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.setStale() // no event tells
		c.set(wanted("bar", "240.0.0.2"))
		if err := c.api.Delete(t.Context(), c.bar()); err != nil { // before the cache has seen it at all
			t.Fatal(err)
		}
		c.wrote()
		bubble.Pass(expectFor)
		c.expect("our own write overrides the cache only for a while",
			"delete *v1.EndpointSlice shop/bar-east-causeway", "create *v1.Service shop/bar-east",
			"create *v1.EndpointSlice shop/bar-east-causeway")
	})
}

func TestResyncRepairs(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	metrics := NewMetrics(reg)
	inCluster(t, shop, func(c *cluster) {
		c.set(many(30)...)
		bubble.Pass(resyncPeriod + resyncInterval)
		if n := len(c.wrote()); n != 60 || counter(t, reg, "causeway_mirror_resync_repairs_total") != 0 {
			t.Errorf("the resync finds nothing to do: %d writes", n)
		}
		c.setStale()
		var svc corev1.Service
		if err := c.api.Get(t.Context(), client.ObjectKey{
			Namespace: "shop",
			Name:      "s00012-east",
		}, &svc); err != nil {
			t.Fatal(err)
		}
		svc.Labels = nil
		if err := c.api.Update(t.Context(), &svc); err != nil {
			t.Fatal(err)
		}
		c.wrote()
		bubble.Pass(resyncPeriod + resyncInterval)
		c.expect("a change that no event has announced is repaired", "patch *v1.Service shop/s00012-east")
		if n := counter(t, reg, "causeway_mirror_resync_repairs_total"); n != 1 {
			t.Errorf("and counted: %v", n)
		}
	}, func(w *WriterConfig) { w.Metrics = metrics })
}

func counter(t *testing.T, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	metrics := NewMetrics(reg)
	user := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop",
		Name:      "s00000-east",
		UID:       "user",
	}}
	series := func() map[string]int {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := make(map[string]int)
		for _, f := range families {
			out[f.GetName()] = len(f.GetMetric())
		}
		return out
	}
	if n := series()["causeway_mirror_writes_total"]; n != 3 {
		t.Errorf("every kind of write is counted from zero: %d", n)
	}
	inCluster(t, append(shop, user), func(c *cluster) {
		c.set(many(2)...)
		bubble.Pass(time.Second)
		if s := series(); s["causeway_mirror_problems"] != len(Reasons) ||
			s["causeway_mirror_queue_length"] != 1 {
			t.Errorf("problems are counted by Link and reason: %v", s)
		}
		c.RemoveLink("east")
		bubble.Pass(time.Second)
		if s := series(); s["causeway_mirror_problems"]+s["causeway_mirror_queue_length"] != 0 {
			t.Errorf("a Link that is gone is not counted: %v", s)
		}
	}, func(w *WriterConfig) { w.Metrics = metrics })
}

func TestStatusIsBoundedAndCoalesced(t *testing.T) {
	var calls atomic.Int32
	inCluster(t, nil, func(c *cluster) {
		c.set(many(100)...)
		bubble.Pass(time.Second)
		s := c.Status("east")
		if len(s.Problems) != maxProblems || s.LeftOut != 36 || s.Blocked != 100 {
			t.Errorf("%d problems, %d left out, want 64 and 36", len(s.Problems), s.LeftOut)
		}
		if n := calls.Load(); n == 0 || n > 5 {
			t.Errorf("a hundred changes are a few calls: %d", n)
		}
		before := calls.Load()
		c.Touch("east", many(1)[0].key())
		bubble.Pass(time.Second)
		if calls.Load() != before {
			t.Error("nothing has changed")
		}
	}, func(w *WriterConfig) { w.OnStatus = func(string) { calls.Add(1) } })
}
