// Package links watches the cluster's Link objects for one thing: that a Link is gone.
//
//	API server ──list, watch──▶ Watcher ──▶ Revoked(UID)
//
// It lets agents and gateways revoke a peer while their controller is away. It
// is the only package of the data plane that talks to the Kubernetes API.
//
// What always holds:
//   - A Link is revoked only when it was seen deleted: by a delete event, by a
//     deletion timestamp, or by a successful complete list without its UID,
//     begun after the Link was known. Errors revoke nothing.
//   - What is revoked stays revoked: a UID never comes back.
package links

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// resource is the only kind that agents and gateways may list and watch.
var resource = schema.GroupVersionResource{Group: "causeway.dev", Version: "v1alpha1", Resource: "links"}

// Lister is what a Watcher asks of the API: a part of dynamic.ResourceInterface.
type Lister interface {
	List(ctx context.Context, opts metav1.ListOptions) (*unstructured.UnstructuredList, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Watcher remembers which Links were seen deleted.
type Watcher struct {
	api     Lister
	known   func() []string
	changed func()
	log     *slog.Logger
	tried   chan struct{} // closed after the first list, be it there or not

	mu      sync.Mutex // guards what follows
	seen    map[string]bool
	revoked map[string]bool
}

// New returns a Watcher on api. known lists the UIDs of the Links that the
// process holds from elsewhere (the node stream), and changed is called after
// something was revoked; both are called from Run's goroutine.
func New(api Lister, known func() []string, changed func(), log *slog.Logger) *Watcher {
	return &Watcher{
		api: api, known: known, changed: changed, log: log,
		seen: map[string]bool{}, revoked: map[string]bool{}, tried: make(chan struct{}),
	}
}

// Tried is closed once the API was asked for a complete list, whether it gave one or
// not: from then on waiting longer need not tell more.
func (w *Watcher) Tried() <-chan struct{} { return w.tried }

// InCluster returns the API of the cluster that the process runs in.
func InCluster() (Lister, error) {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster's API server: %w", err)
	}
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client for Links: %w", err)
	}
	return client.Resource(resource), nil
}

// Revoked reports whether the Link with this UID was seen deleted.
func (w *Watcher) Revoked(uid string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked[uid]
}

// Run lists and watches until ctx ends, and again after every error, after 1 to
// 30 seconds.
func (w *Watcher) Run(ctx context.Context) {
	const least, most = time.Second, 30 * time.Second
	wait := least
	var once sync.Once
	tried := func() { once.Do(func() { close(w.tried) }) }
	for ctx.Err() == nil {
		began := time.Now()
		if err := w.once(ctx, tried); err != nil && ctx.Err() == nil {
			w.log.Debug("watching Links failed", "error", err)
		}
		if time.Since(began) > most {
			wait = least
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, most)
	}
}

// once makes one complete list, calls listed, and watches from there until the watch ends.
func (w *Watcher) once(ctx context.Context, listed func()) error {
	known := w.known()
	list, err := w.list(ctx)
	if err != nil {
		listed()
		return err
	}
	w.replace(known, list.Items)
	listed()
	timeout := int64(300)
	stream, err := w.api.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion(), TimeoutSeconds: &timeout})
	if err != nil {
		return fmt.Errorf("watch Links: %w", err)
	}
	defer stream.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-stream.ResultChan():
			if !ok {
				return nil
			}
			if err := w.event(event); err != nil {
				return err
			}
		}
	}
}

func (w *Watcher) list(ctx context.Context) (*unstructured.UnstructuredList, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	list, err := w.api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Links: %w", err)
	}
	return list, nil
}

func (w *Watcher) event(e watch.Event) error {
	link, ok := e.Object.(*unstructured.Unstructured)
	if !ok || e.Type == watch.Error {
		return fmt.Errorf("watch Links: the API server ended the watch: %v", e.Object)
	}
	switch {
	case e.Type == watch.Deleted, link.GetDeletionTimestamp() != nil:
		w.revoke(link.GetName(), string(link.GetUID()))
	case e.Type == watch.Added, e.Type == watch.Modified:
		w.mu.Lock()
		w.seen[string(link.GetUID())] = true
		w.mu.Unlock()
	}
	return nil
}

// replace takes in a complete list; known are UIDs held before it was asked for.
func (w *Watcher) replace(known []string, items []unstructured.Unstructured) {
	there := make(map[string]bool, len(items))
	for i := range items {
		if uid := string(items[i].GetUID()); items[i].GetDeletionTimestamp() == nil {
			there[uid] = true
		} else {
			known = append(known, uid)
		}
	}
	w.mu.Lock()
	for uid := range w.seen {
		known = append(known, uid)
	}
	w.seen = there
	w.mu.Unlock()
	for _, uid := range known {
		if !there[uid] {
			w.revoke("", uid)
		}
	}
}

func (w *Watcher) revoke(name, uid string) {
	w.mu.Lock()
	was := w.revoked[uid]
	w.revoked[uid] = true
	delete(w.seen, uid)
	w.mu.Unlock()
	if !was {
		w.log.Info("a Link is gone: its peer is refused from now on", "link", name, "uid", uid)
		w.changed()
	}
}
