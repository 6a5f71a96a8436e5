package links

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// api is a small API server: a set of Links, one watch at a time, and errors on cue.
type api struct {
	links   []string
	going   string // of them, the one that is being deleted
	failing bool
	stream  *watch.FakeWatcher
}

func link(uid string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetUID(types.UID(uid))
	return u
}

func (a *api) List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	if a.failing {
		return nil, errors.New("away")
	}
	list := &unstructured.UnstructuredList{Object: map[string]any{}}
	for _, uid := range a.links {
		l := link(uid)
		if uid == a.going {
			now := metav1.Now()
			l.SetDeletionTimestamp(&now)
		}
		list.Items = append(list.Items, *l)
	}
	return list, nil
}

func (a *api) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	a.stream = watch.NewFake()
	return a.stream, nil
}

func TestRevoked(t *testing.T) {
	going := link("a")
	now := metav1.Now()
	going.SetDeletionTimestamp(&now)
	cases := map[string]struct {
		why   string
		known []string
		going string
		do    func(*api)
		want  []string
	}{
		"delete event": {
			why: "the ordinary way that a Link goes",
			do:  func(a *api) { a.stream.Delete(link("a")) }, want: []string{"a"},
		},
		"being deleted": {
			why: "a finalizer must not keep a peer's access alive",
			do:  func(a *api) { a.stream.Modify(going) }, want: []string{"a"},
		},
		"missing from a list": {
			why:  "a Link deleted while nobody watched is gone all the same",
			do:   func(a *api) { a.links = []string{"b"}; a.stream.Stop() },
			want: []string{"a"},
		},
		"missing from the first list": {
			why:   "what the node stream or a cache holds is checked too",
			known: []string{"old"}, do: func(*api) {}, want: []string{"old"},
		},
		"being deleted in a list": {
			why: "likewise, when it began while nobody watched",
			do:  func(a *api) { a.going = "a"; a.stream.Stop() }, want: []string{"a"},
		},
		"being deleted in the first list": {
			why:   "the node stream may bring it later, from a controller that has not seen it yet",
			going: "b", do: func(*api) {}, want: []string{"b"},
		},
		"errors": {
			why:  "an API server in trouble revokes nothing",
			do:   func(a *api) { a.failing = true; a.stream.Error(&metav1.Status{}) },
			want: nil,
		},
		"a new Link": {
			why: "a Link added later is no reason to revoke any",
			do:  func(a *api) { a.stream.Add(link("c")) }, want: nil,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &api{links: []string{"a", "b"}, going: c.going}
				changes := 0
				w := New(a, func() []string { return slices.Clone(c.known) }, func() { changes++ }, slog.New(slog.DiscardHandler))
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); w.Run(ctx) }()
				synctest.Wait()
				c.do(a)
				time.Sleep(5 * time.Second) // fake: past the first waits before listing again
				synctest.Wait()
				var got []string
				for _, uid := range []string{"a", "b", "c", "old"} {
					if w.Revoked(uid) {
						got = append(got, uid)
					}
				}
				if !slices.Equal(got, c.want) || changes != len(c.want) {
					t.Errorf("revoked %v with %d changes told, want %v: %s", got, changes, c.want, c.why)
				}
				cancel()
				<-done
			})
		})
	}
}
