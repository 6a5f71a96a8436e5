package mirror

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	goruntime "runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// memory is an API server and an informer cache with indexes, as cheap as they can be:
// what a benchmark measures with it is the Writer's own.
type memory struct {
	client.Client // methods that the test does not call
	latency       time.Duration
	stores        map[reflect.Type]cache.Indexer
	changed       func(client.Object)
	version       atomic.Int64
	reads, writes atomic.Int64
}

func newMemory() *memory {
	index := func(f client.IndexerFunc) cache.IndexFunc {
		return func(o any) ([]string, error) { return f(o.(client.Object)), nil }
	}
	store := func(i cache.Indexers) cache.Indexer { return cache.NewIndexer(cache.MetaNamespaceKeyFunc, i) }
	m := &memory{changed: func(client.Object) {}, stores: map[reflect.Type]cache.Indexer{
		reflect.TypeFor[*corev1.Service](): store(cache.Indexers{OwnerIndex: index(IndexOwner)}),
		reflect.TypeFor[*discoveryv1.EndpointSlice](): store(cache.Indexers{
			ServiceIndex: index(IndexService),
			LinkIndex:    index(IndexLink),
		}),
		reflect.TypeFor[*corev1.Namespace](): store(cache.Indexers{LinkIndex: index(IndexLink)}),
	}}
	if err := m.stores[reflect.TypeFor[*corev1.Namespace]()].Add(namespace("shop")); err != nil {
		panic(err)
	}
	return m
}

func (m *memory) store(o any) cache.Indexer { return m.stores[reflect.TypeOf(o)] }

func (m *memory) Get(_ context.Context, k client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	m.reads.Add(1)
	key := k.Namespace + "/" + k.Name
	if k.Namespace == "" {
		key = k.Name
	}
	o, ok, err := m.store(into).GetByKey(key)
	if err != nil || !ok {
		return errors.Join(err, apierrors.NewNotFound(schema.GroupResource{}, k.Name))
	}
	reflect.ValueOf(into).Elem().Set(reflect.ValueOf(o).Elem())
	return nil
}

func (m *memory) List(_ context.Context, into client.ObjectList, opts ...client.ListOption) error {
	m.reads.Add(1)
	var o client.ListOptions
	o.ApplyOptions(opts)
	var of client.Object = &corev1.Service{}
	if _, is := into.(*discoveryv1.EndpointSliceList); is {
		of = &discoveryv1.EndpointSlice{}
	}
	by := o.FieldSelector.Requirements()[0]
	found, err := m.store(of).ByIndex(by.Field, by.Value)
	if err != nil {
		return err
	}
	items := make([]runtime.Object, len(found))
	for i := range found {
		items[i] = found[i].(runtime.Object)
	}
	return meta.SetList(into, items)
}

func (m *memory) Create(_ context.Context, o client.Object, _ ...client.CreateOption) error {
	n := m.version.Load()
	o.SetUID(types.UID(strconv.FormatInt(n, 10)))
	if svc, is := o.(*corev1.Service); is && svc.Spec.ClusterIP == "" {
		svc.Spec.ClusterIP = fmt.Sprintf("10.96.%d.%d", n/250%250, n%250)
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	return m.write(o, m.store(o).Add)
}

func (m *memory) Patch(_ context.Context, o client.Object, p client.Patch, _ ...client.PatchOption) error {
	if _, err := p.Data(o); err != nil {
		return err
	}
	return m.write(o, m.store(o).Update)
}

func (m *memory) Delete(_ context.Context, o client.Object, _ ...client.DeleteOption) error {
	return m.write(o, m.store(o).Delete)
}

func (m *memory) write(o client.Object, apply func(any) error) error {
	if m.latency > 0 {
		<-time.After(m.latency)
	}
	m.writes.Add(1)
	stored := o.DeepCopyObject().(client.Object)
	o.SetResourceVersion(strconv.FormatInt(m.version.Add(1), 10))
	stored.SetResourceVersion(o.GetResourceVersion())
	if err := apply(stored); err != nil {
		return err
	}
	m.changed(stored)
	return nil
}

// writer returns a Writer before m that has the Link east and no budgets to speak of.
func (m *memory) writer() *Writer {
	const plenty = 1_000_000
	w := NewWriter(WriterConfig{
		Reader: m, Client: m, Live: m, Namespace: "causeway-system", Version: "v1",
		Options: Options{WritesPerSecond: plenty, TotalWritesPerSecond: plenty},
	})
	m.changed = func(o client.Object) {
		for _, k := range KeysOf(o) {
			w.Touch(k.Link, k.Key)
		}
	}
	w.SetLink(eastLink(), nil)
	return w
}

func byKey(wants []*Want) map[catalog.Key]*Want {
	out := make(map[catalog.Key]*Want, len(wants))
	for _, w := range wants {
		out[w.key()] = w
	}
	return out
}

// running runs w while f does.
func running(ctx context.Context, w *Writer, f func()) {
	ctx, cancel := context.WithCancel(ctx)
	var run sync.WaitGroup
	run.Go(func() { _ = w.Run(ctx) })
	f()
	cancel()
	run.Wait()
}

// settle waits until nothing is pending or queued.
func settle(w *Writer) {
	for {
		s := w.Status("east")
		w.mu.Lock()
		idle := w.queue.running == 0 && w.links["east"].queued == 0
		w.mu.Unlock()
		if idle && s.Pending == 0 {
			return
		}
		<-time.After(100 * time.Microsecond)
	}
}

func TestRestartWritesNothing(t *testing.T) {
	reads := make(map[int]int64)
	for _, n := range []int{1000, 10_000} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			wants := many(n)
			first := m.writer()
			running(t.Context(), first, func() {
				first.SetAll("east", byKey(wants))
				settle(first)
			})
			if got := m.writes.Load(); got != int64(2*n) {
				t.Fatalf("%d mirrors are %d writes", n, got)
			}
			m.reads.Store(0)
			second := m.writer()
			running(t.Context(), second, func() {
				for _, w := range wants { // the peer has not answered yet
					w.Known = false
				}
				second.SetAll("east", byKey(wants))
				settle(second)
				second.SetComplete("east", true)
				settle(second)
				if s := second.Status("east"); s.Mirrors != n || s.Wanted != n || len(s.Problems) != 0 {
					t.Errorf("all stand: %+v", s)
				}
			})
			if got := m.writes.Load(); got != int64(2*n) {
				t.Errorf("a restart with %d mirrors makes %d writes", n, got-int64(2*n))
			}
			reads[n] = m.reads.Load()
		})
	}
	// Four reads when the want comes, and four more if what stands was not known before.
	for n, got := range reads {
		if got > int64(8*n)+100 {
			t.Errorf("a restart with %d mirrors makes %d reads of the cache", n, got)
		}
	}
}

// In fake time a writer that costs nothing itself takes exactly as long as its writes.
func TestWorkersAreNeverIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mirrors = 1500
		m := newMemory()
		m.latency = time.Millisecond
		w := m.writer()
		running(t.Context(), w, func() {
			start := time.Now()
			w.SetAll("east", byKey(many(mirrors)))
			settle(w)
			const least = 2 * ((mirrors + 7) / 8) * time.Millisecond // 2 writes each, 8 workers
			if took := time.Since(start); took > least+5*time.Millisecond {
				t.Errorf("%d mirrors took %v, and their writes %v", mirrors, took, least)
			}
		})
	})
}

func TestManyLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const links, each = 50, 100
		m := newMemory()
		w := m.writer()
		running(t.Context(), w, func() {
			for i := range links {
				link := eastLink()
				link.Name, link.UID = fmt.Sprint("link-", i), types.UID(fmt.Sprint("uid-", i))
				w.SetLink(link, nil)
				wants := many(each)
				for _, x := range wants {
					x.Entry.MirrorName = fmt.Sprint(x.Entry.Service, "-", i)
				}
				w.SetAll(link.Name, byKey(wants))
				w.SetComplete(link.Name, true)
			}
			synctest.Wait()
			for i := range links {
				if s := w.Status(fmt.Sprint("link-", i)); s.Mirrors != each || s.Pending != 0 {
					t.Errorf("link %d: %+v", i, s)
				}
			}
			writes := m.writes.Load()
			for i := range links {
				w.RemoveLink(fmt.Sprint("link-", i))
			}
			w.RemoveLink("east")
			bubble.Pass(time.Minute)
			w.mu.Lock()
			defer w.mu.Unlock()
			if m.writes.Load() != writes || len(w.byName) > 0 || len(w.links) > 0 ||
				len(w.queue.delayed) > 0 || len(w.unreported) > 0 {
				t.Errorf("a removed Link leaves nothing behind: %d names, %d delayed", len(w.byName),
					len(w.queue.delayed))
			}
		})
	})
}

// BenchmarkWriter writes mirrors to an API server that takes 1 ms per write, and compares
// that with as many plain clients as the Writer has workers. ratio is 1 if the Writer
// costs nothing.
func BenchmarkWriter(b *testing.B) {
	const mirrors, workers = 1500, 8
	plain, ours := time.Duration(0), time.Duration(0)
	for b.Loop() {
		m := newMemory()
		m.latency = time.Millisecond
		wants := many(mirrors)
		start := time.Now()
		var clients sync.WaitGroup
		for i := range workers {
			clients.Go(func() {
				for j := i; j < len(wants); j += workers {
					changes, _ := PlanMirror(eastScope(true), wants[j].key(), wants[j], true,
						Have{NamespaceExists: true})
					for _, c := range changes {
						if err := m.Create(b.Context(), c.Object()); err != nil {
							b.Error(err)
						}
					}
				}
			})
		}
		clients.Wait()
		plain += time.Since(start)

		m = newMemory()
		m.latency = time.Millisecond
		w := m.writer()
		running(b.Context(), w, func() {
			start = time.Now()
			w.SetAll("east", byKey(wants))
			settle(w)
			ours += time.Since(start)
		})
		if m.writes.Load() != 2*mirrors {
			b.Fatalf("%d writes", m.writes.Load())
		}
	}
	b.ReportMetric(float64(plain)/float64(ours), "ratio")
	b.ReportMetric(float64(2*mirrors*b.N)/ours.Seconds(), "writes/s")
}

// BenchmarkTouch looks at one mirror of 10,000 of which nothing has changed.
func BenchmarkTouch(b *testing.B) {
	m := newMemory()
	w := m.writer()
	wants := many(10_000)
	running(b.Context(), w, func() {
		w.SetAll("east", byKey(wants))
		settle(w)
		k := wants[5000].key()
		b.ReportAllocs()
		for b.Loop() {
			reads := m.reads.Load()
			w.Touch("east", k)
			for m.reads.Load() == reads || w.busy() {
				goruntime.Gosched()
			}
		}
	})
}

// busy reports whether a mirror is being handled.
func (w *Writer) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queue.running > 0
}
