package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/cacheapi"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// forbiddenCache is a cache that lists all kinds at once, except one that the API server
// forbids it to list.
type forbiddenCache struct {
	cache.Cache
	forbids func(client.Object) bool
	// forbidden is the informer of the forbidden kind. removed counts its removals.
	forbidden *controllertest.FakeInformer
	removed   int
}

// GetInformer waits for the first list unless an option says otherwise, as that of
// controller-runtime does.
func (f *forbiddenCache) GetInformer(ctx context.Context, o client.Object,
	opts ...cache.InformerGetOption) (cache.Informer, error) {
	if !f.forbids(o) {
		return controllertest.NewFakeInformer(controllertest.Synced), nil
	}
	var get cacheapi.InformerGetOptions
	for _, opt := range opts {
		opt(&get)
	}
	if get.BlockUntilSynced == nil || *get.BlockUntilSynced {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.forbidden = controllertest.NewFakeInformer()
	return f.forbidden, nil
}

func (f *forbiddenCache) RemoveInformer(context.Context, client.Object) error {
	f.removed++
	return nil
}

// forbidding calls do in a bubble with a process that may list all kinds but one.
func forbidding(t *testing.T, kind client.Object, log *slog.Logger,
	do func(t *testing.T, r *replica, c *forbiddenCache)) {
	t.Helper()
	west()
	want := fmt.Sprintf("%T", kind)
	synctest.Test(t, func(t *testing.T) {
		r := newReplicaWith(t, west(), newAPI(), func(o *Options) { o.Log = log })
		c := &forbiddenCache{forbids: func(o client.Object) bool { return fmt.Sprintf("%T", o) == want }}
		r.process.mgr = fakeManager{client: r.API, recorder: r.recorder, cache: c}
		do(t, r, c)
	})
}

// TestForbiddenGatewayKind: a controller that has no permission to list a kind of the
// Gateway API must not wait for it forever.
func TestForbiddenGatewayKind(t *testing.T) {
	kind := gatewayV1.WithKind("HTTPRoute")
	forbidding(t, gatewayObject(kind), discardLog, func(t *testing.T, r *replica, c *forbiddenCache) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		begin := time.Now()
		err := r.process.watchGatewayKind(ctx, kind)
		if took := time.Since(begin); err == nil || took != syncTimeout {
			t.Errorf("got %v after %v, want an error after %v", err, took, syncTimeout)
		}
		first := c.forbidden
		time.AfterFunc(syncTimeout/2, first.Synced)
		if err := r.process.watchGatewayKind(ctx, kind); err != nil {
			t.Errorf("the list came late: %v", err)
		}
		if c.forbidden != first || c.removed != 0 {
			t.Errorf("there were two lists, or the list was ended %d times", c.removed)
		}
	})
}

// countedInformer counts the handlers that were added.
type countedInformer struct {
	*controllertest.FakeInformer
	handlers int
}

func (i *countedInformer) AddEventHandler(h toolscache.ResourceEventHandler) (
	toolscache.ResourceEventHandlerRegistration, error) {
	i.handlers++
	return i.FakeInformer.AddEventHandler(h)
}

// countedCache has one informer for all kinds.
type countedCache struct {
	cache.Cache
	informer *countedInformer
}

func (c *countedCache) GetInformer(context.Context, client.Object, ...cache.InformerGetOption) (
	cache.Informer, error) {
	return c.informer, nil
}

func (c *countedCache) RemoveInformer(context.Context, client.Object) error { return nil }

// unreadable answers each list with an error while failing is true.
type unreadable struct {
	client.Client
	failing bool
}

func (u *unreadable) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if u.failing {
		return errors.New("not now")
	}
	return u.Client.List(ctx, list, opts...)
}

// TestWatchAgain: a watch whose objects could not be read is taken up by the next call. A
// second handler would pass each change on twice.
func TestWatchAgain(t *testing.T) {
	route, export := gatewayV1.WithKind("HTTPRoute"), catalog.ServiceExportKinds()[0]
	for name, tc := range map[string]struct {
		kind   client.Object
		method func(*process) func(context.Context, schema.GroupVersionKind) error
		gvk    schema.GroupVersionKind
	}{
		"ServiceExport": {
			serviceExportOf(export),
			func(p *process) func(context.Context, schema.GroupVersionKind) error { return p.watchServiceExports },
			export,
		},
		"HTTPRoute": {
			gatewayObject(route),
			func(p *process) func(context.Context, schema.GroupVersionKind) error { return p.watchGatewayKind },
			route,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplicaWith(t, west(), newAPI(), func(*Options) {})
			informer := &countedInformer{FakeInformer: controllertest.NewFakeInformer(controllertest.Synced)}
			reader := &unreadable{Client: r.API, failing: true}
			r.process.mgr = fakeManager{client: reader, recorder: r.recorder, cache: &countedCache{informer: informer}}
			watch := tc.method(r.process)
			for range 3 {
				if err := watch(t.Context(), tc.gvk); err == nil {
					t.Fatal("objects that cannot be read count as read")
				}
			}
			reader.failing = false
			if err := watch(t.Context(), tc.gvk); err != nil {
				t.Fatal(err)
			}
			if informer.handlers != 1 {
				t.Errorf("the informer has %d handlers, want 1", informer.handlers)
			}
			if err := r.process.unwatch(t.Context(), tc.kind); err != nil {
				t.Fatal(err)
			}
			if err := watch(t.Context(), tc.gvk); err != nil {
				t.Fatal(err)
			}
			if informer.handlers != 2 {
				t.Errorf("there are %d handlers after the kind was left and watched again, want 2", informer.handlers)
			}
		})
	}
}

// TestForbiddenNodes: a controller that has no permission to list nodes starts without
// zones. It learns them when it gets the permission.
func TestForbiddenNodes(t *testing.T) {
	var log logLines
	forbidding(t, nodeKind(), log.logger(), func(t *testing.T, r *replica, c *forbiddenCache) {
		ctx, cancel := context.WithCancel(t.Context())
		limited, stop := context.WithTimeout(ctx, time.Hour)
		defer stop()
		begin := time.Now()
		zones, err := r.process.watchAll(limited, r.reconciler)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != syncTimeout {
			t.Errorf("the controller waited %v for nodes, want %v", took, syncTimeout)
		}
		done := make(chan struct{})
		go func() { zones.run(ctx); close(done) }()
		bubble.Pass(time.Hour)
		if n := log.count("cannot list nodes"); n != 1 {
			t.Errorf("%d lines say that there are no zones, want 1:\n%s", n, log.text.String())
		}
		c.forbidden.Add(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "z1"},
		}})
		c.forbidden.Synced()
		bubble.Pass(zoneInterval)
		<-done
		if n := log.count("zones of nodes are known"); n != 1 {
			t.Errorf("%d lines say that there are zones, want 1", n)
		}
		if got := r.inbox.take().zones["n1"]; got != "z1" {
			t.Errorf("the zone of n1 is %q, want z1", got)
		}
		cancel()
	})
}

// TestNothingForbidden: a controller that may list all kinds does not wait.
func TestNothingForbidden(t *testing.T) {
	forbidding(t, nodeKind(), discardLog, func(t *testing.T, r *replica, c *forbiddenCache) {
		c.forbids = func(client.Object) bool { return false }
		begin := time.Now()
		if _, err := r.process.watchAll(t.Context(), r.reconciler); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("took %v", took)
		}
	})
}
