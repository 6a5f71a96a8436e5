package linkwatch

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// api is a small API server with a watch cache, which serves one watch at a time.
type api struct {
	mu       sync.Mutex // guards what follows
	links    []string   // in etcd
	cached   []string   // in the cache; nil: the same
	deleting string     // the one that has a deletion timestamp
	failing  bool

	stream  *watch.FakeWatcher
	lists   []time.Time
	quorum  int // lists that were read from etcd
	watches []metav1.ListOptions
}

func link(uid string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		UID:             types.UID(uid),
		ResourceVersion: "8",
	}}
}

func (a *api) List(_ context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lists = append(a.lists, time.Now())
	if a.failing {
		return nil, errors.New("unavailable")
	}
	uids := a.links
	if o.ResourceVersion == "0" && a.cached != nil {
		uids = a.cached
	}
	if o.ResourceVersion == "" {
		a.quorum++
	}
	list := &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
	for _, uid := range uids {
		l := link(uid)
		if uid == a.deleting {
			now := metav1.Now()
			l.DeletionTimestamp = &now
		}
		list.Items = append(list.Items, *l)
	}
	return list, nil
}

func (a *api) Watch(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watches = append(a.watches, o)
	a.stream = watch.NewFake()
	return a.stream, nil
}

// expire ends the watch so that it cannot be resumed.
func (a *api) expire() {
	err := apierrors.NewResourceExpired("too old")
	a.stream.Error(&err.ErrStatus)
}

// start runs a Watcher, and returns it and a function that ends it.
func start(a *api, known []string, changed func()) (*Watcher, func()) {
	w := New(a, func() []string { return slices.Clone(known) }, changed, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	synctest.Wait()
	return w, func() { cancel(); running.Wait() }
}

func TestRevoked(t *testing.T) {
	deleting := link("a")
	now := metav1.Now()
	deleting.DeletionTimestamp = &now
	cases := map[string]struct {
		why    string
		known  []string
		api    *api // with links a and b; nil: nothing else is special
		do     func(*api)
		want   []string
		quorum int
	}{
		"delete event": {
			why: "this is how a Link is usually deleted",
			do:  func(a *api) { a.stream.Delete(link("a")) }, want: []string{"a"},
		},
		"deletion timestamp": {
			why: "a finalizer must not keep a peer's access alive",
			do:  func(a *api) { a.stream.Modify(deleting) }, want: []string{"a"},
		},
		"missing from a list": {
			why:  "a Link that was deleted while the watch was broken is deleted too",
			do:   func(a *api) { a.links = []string{"b"}; a.expire() },
			want: []string{"a"}, quorum: 1,
		},
		"missing from the cache": {
			why:    "the API server's cache may be old, and a deletion is final",
			do:     func(a *api) { a.cached = []string{"b"}; a.expire() },
			quorum: 1,
		},
		"missing from the first list": {
			why:   "the node stream and the agent's cache may have Links that are deleted",
			known: []string{"old"}, want: []string{"old"}, quorum: 1,
		},
		"unseen Link": {
			why:   "a controller that is behind may bring a Link that was deleted before the watch began",
			known: []string{"old"}, api: &api{failing: true},
			do:   func(a *api) { a.failing = false },
			want: []string{"old"}, quorum: 1,
		},
		"deletion timestamp in a list": {
			why:  "the deletion may begin while the watch is broken",
			do:   func(a *api) { a.deleting = "a"; a.expire() },
			want: []string{"a"},
		},
		"deletion timestamp in the first list": {
			why: "the node stream may bring it later, from a controller that is behind",
			api: &api{deleting: "b"}, want: []string{"b"},
		},
		"errors": {
			why: "an API server with errors revokes nothing",
			do:  func(a *api) { a.failing = true; a.stream.Error(&metav1.Status{}) },
		},
		"a new Link": {
			why: "a new Link revokes no other",
			do:  func(a *api) { a.stream.Add(link("c")) },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := tc.api
				if a == nil {
					a = &api{}
				}
				a.links = []string{"a", "b"}
				changes := 0
				w, stop := start(a, tc.known, func() { changes++ })
				defer stop()
				if tc.do != nil {
					a.mu.Lock()
					tc.do(a)
					a.mu.Unlock()
				}
				bubble.Pass(2 * retryMax) // past the waits before the next list
				var got []string
				for _, uid := range []string{"a", "b", "c", "old"} {
					if w.Revoked(uid) {
						got = append(got, uid)
					}
				}
				if !slices.Equal(got, tc.want) || changes != len(tc.want) {
					t.Errorf("%s: revoked %v with %d calls of changed, want %v", tc.why, got, changes,
						tc.want)
				}
				if a.quorum != tc.quorum {
					t.Errorf("%s: %d lists were read from etcd, want %d", tc.why, a.quorum, tc.quorum)
				}
			})
		})
	}
}

// TestLinkFromABehindController brings a Link by the node stream that was deleted before
// the watch began. The next bookmark finds it.
func TestLinkFromABehindController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{links: []string{"a"}}
		var known []string
		w := New(a, func() []string { return slices.Clone(known) }, func() {}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { w.Run(ctx) })
		defer func() { cancel(); running.Wait() }()
		synctest.Wait()
		known = []string{"a", "old"}
		a.stream.Action(watch.Bookmark, link(""))
		bubble.Pass(retryMax)
		if !w.Revoked("old") || w.Revoked("a") {
			t.Errorf("revoked: old %v, a %v; want old only", w.Revoked("old"), w.Revoked("a"))
		}
	})
}

func TestWatchIsResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{links: []string{"a"}}
		_, stop := start(a, nil, func() {})
		defer stop()
		bookmark := link("")
		bookmark.ResourceVersion = "42"
		a.stream.Action(watch.Bookmark, bookmark)
		synctest.Wait()
		a.stream.Stop() // the connection breaks
		bubble.Pass(retryMin)
		if n := len(a.lists); n != 1 {
			t.Errorf("a watch that can be resumed needs no list, there were %d", n)
		}
		if n := len(a.watches); n != 2 || a.watches[n-1].ResourceVersion != "42" {
			t.Fatalf("the second watch must begin at the bookmark: %+v", a.watches)
		}
		for _, o := range a.watches {
			d := time.Duration(*o.TimeoutSeconds) * time.Second
			if !o.AllowWatchBookmarks || d < watchMin || d > watchMax {
				t.Errorf("a watch has bookmarks %v and lasts %v", o.AllowWatchBookmarks, d)
			}
		}
	})
}

// TestHerd breaks the watches of 100 nodes at once, as the restart of an API server does,
// so that none can be resumed.
func TestHerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 100
		var all []*api
		for range nodes {
			a := &api{links: []string{"a"}}
			_, stop := start(a, nil, func() {})
			defer stop()
			all = append(all, a)
		}
		broken := time.Now()
		for _, a := range all {
			a.expire()
		}
		bubble.Pass(retryMin)
		perSecond := map[int]int{}
		total := 0
		for _, a := range all {
			for _, at := range a.lists[1:] {
				perSecond[int(at.Sub(broken)/time.Second)]++
				total++
			}
			if a.quorum != 0 {
				t.Error("no Link is missing, but a list was read from etcd")
			}
		}
		if total != nodes {
			t.Errorf("%d lists for %d nodes", total, nodes)
		}
		for second, n := range perSecond {
			if n > nodes/4 {
				t.Errorf("%d of %d nodes listed in second %d", n, nodes, second)
			}
		}
	})
}
