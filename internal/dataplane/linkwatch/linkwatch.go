// Package linkwatch watches the cluster's Link objects to learn which are deleted.
//
//	API server ──list, watch──▶ Watcher ──▶ Revoked(UID)
//
// With it, agents and gateways can revoke a peer while their controller is unavailable.
// Beside tapaccess it is the only package of the data plane that uses the Kubernetes
// API. It reads metadata only.
//
// What always holds:
//   - A Link is revoked only on proof of its deletion: a delete event, a deletion
//     timestamp, or a complete list without its UID that the API server read from etcd
//     after the Link was known. Errors revoke nothing.
//   - What is revoked stays revoked, because a UID never comes back.
//   - A watch that breaks is resumed where it ended, after a random wait. A list is made
//     only if it cannot be resumed, and the API server answers it from its cache.
package linkwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/causeway-mesh/causeway/internal/backoff"
)

const (
	// watchMin and watchMax bound how long a watch lasts. The time is random so that the
	// watches of all nodes do not end together.
	watchMin = 5 * time.Minute
	watchMax = 10 * time.Minute
	// retryMin and retryMax bound the first and the longest random wait after an error.
	// The first is long because all nodes lose their watches when an API server restarts.
	retryMin = 10 * time.Second
	retryMax = 60 * time.Second
	// requestTimeout bounds a list.
	requestTimeout = 30 * time.Second
)

// resource is the only kind that agents and gateways may list and watch.
var resource = schema.GroupVersionResource{Group: "causeway.dev", Version: "v1alpha1", Resource: "links"}

// Lister is the part of the API that a Watcher uses. metadata.ResourceInterface
// implements it.
type Lister interface {
	List(ctx context.Context, opts metav1.ListOptions) (*metav1.PartialObjectMetadataList, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Watcher records which Links were deleted. Make it with New.
type Watcher struct {
	api     Lister
	known   func() []string
	changed func()
	log     *slog.Logger
	tried   chan struct{} // closed after the first list, whether or not it succeeded

	mu      sync.Mutex // guards what follows
	present map[string]bool
	revoked map[string]bool
}

// New returns a Watcher on api. known returns the UIDs of the Links that the process has
// from elsewhere (the node stream). changed is called after a Link was revoked. Both are
// called on Run's goroutine.
func New(api Lister, known func() []string, changed func(), log *slog.Logger) *Watcher {
	return &Watcher{
		api:     api,
		known:   known,
		changed: changed,
		log:     log,
		present: map[string]bool{},
		revoked: map[string]bool{},
		tried:   make(chan struct{}),
	}
}

// Tried is closed once the Watcher has made its first list, whether or not it succeeded.
// Waiting longer need not bring more.
func (w *Watcher) Tried() <-chan struct{} { return w.tried }

// InCluster returns the API of the cluster that the process runs in.
func InCluster() (Lister, error) {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster's API server: %w", err)
	}
	client, err := metadata.NewForConfig(metadata.ConfigFor(cfg))
	if err != nil {
		return nil, fmt.Errorf("make a client for Links: %w", err)
	}
	return client.Resource(resource), nil
}

// Revoked reports whether the Link with this UID was deleted.
func (w *Watcher) Revoked(uid string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.revoked[uid]
}

// Run lists and watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	waits := backoff.Backoff{Min: retryMin, Max: retryMax}
	version := "" // resource version to watch from; empty: list first
	first := true
	for ctx.Err() == nil {
		var err error
		if version == "" {
			version, err = w.list(ctx)
		}
		if first {
			close(w.tried)
			first = false
		}
		if err == nil {
			start := time.Now()
			version, err = w.watch(ctx, version)
			if time.Since(start) > retryMax {
				waits.Reset()
			}
		}
		if err == nil {
			continue
		}
		if ctx.Err() == nil {
			w.log.Debug("cannot watch Links, will retry", "error", err)
		}
		waits.Wait(ctx)
	}
}

// list makes a complete list and returns its resource version. The list comes from the
// API server's cache, which may be old. If a Link is missing from it, a second list is
// made, which the API server reads from etcd.
func (w *Watcher) list(ctx context.Context) (version string, err error) {
	known := w.expected()
	list, err := w.request(ctx, "0")
	if err != nil {
		return "", err
	}
	if len(missing(known, list)) > 0 {
		if list, err = w.request(ctx, ""); err != nil {
			return "", err
		}
	}
	present := make(map[string]bool, len(list.Items))
	for i := range list.Items {
		if l := &list.Items[i]; l.DeletionTimestamp == nil {
			present[string(l.UID)] = true
		} else {
			w.revoke(l.Name, string(l.UID))
		}
	}
	w.mu.Lock()
	w.present = present
	w.mu.Unlock()
	for _, uid := range missing(known, list) {
		w.revoke("", uid)
	}
	return list.ResourceVersion, nil
}

// request makes one list. A version of "0" lets the API server use its cache; an empty
// one makes it read etcd.
func (w *Watcher) request(ctx context.Context, version string) (*metav1.PartialObjectMetadataList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list, err := w.api.List(ctx, metav1.ListOptions{ResourceVersion: version})
	if err != nil {
		return nil, fmt.Errorf("list Links: %w", err)
	}
	return list, nil
}

// expected returns the UIDs of the Links that should exist.
func (w *Watcher) expected() []string {
	known := w.known()
	w.mu.Lock()
	defer w.mu.Unlock()
	var uids []string
	for _, uid := range known {
		if !w.revoked[uid] && !w.present[uid] {
			uids = append(uids, uid)
		}
	}
	for uid := range w.present {
		uids = append(uids, uid)
	}
	return uids
}

// missing returns those of uids that list does not have.
func missing(uids []string, list *metav1.PartialObjectMetadataList) (out []string) {
	listed := make(map[string]bool, len(list.Items))
	for i := range list.Items {
		listed[string(list.Items[i].UID)] = true
	}
	for _, uid := range uids {
		if !listed[uid] {
			out = append(out, uid)
		}
	}
	return out
}

var (
	errEndedEarly = errors.New("the watch of Links ended early")
	errUnseen     = errors.New("the node stream has a Link that the watch does not have")
)

// watch watches from a resource version. It returns the version to resume from, empty if
// the watch cannot be resumed, and nil if the watch lasted as long as it should.
func (w *Watcher) watch(ctx context.Context, version string) (string, error) {
	timeout := (watchMin + rand.N(watchMax-watchMin)).Truncate(time.Second)
	seconds := int64(timeout / time.Second)
	ended := time.Now().Add(timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout+time.Minute)
	defer cancel()
	stream, err := w.api.Watch(ctx, metav1.ListOptions{
		ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &seconds,
	})
	if err != nil {
		return resumable(version, err), fmt.Errorf("watch Links: %w", err)
	}
	defer stream.Stop()
	for {
		select {
		case <-ctx.Done():
			return version, context.Cause(ctx)
		case event, ok := <-stream.ResultChan():
			switch {
			case !ok && time.Now().Before(ended):
				return version, errEndedEarly
			case !ok:
				return version, nil
			}
			next, err := w.handle(event)
			if err != nil {
				return resumable(version, err), fmt.Errorf("watch Links: %w", err)
			}
			version = next
			if event.Type == watch.Bookmark && w.hasUnseen() {
				return "", errUnseen
			}
		}
	}
}

// resumable returns version, or an empty one if err says that it is too old.
func resumable(version string, err error) string {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return ""
	}
	return version
}

// handle applies an event and returns its resource version.
func (w *Watcher) handle(e watch.Event) (version string, err error) {
	if e.Type == watch.Error {
		return "", apierrors.FromObject(e.Object)
	}
	link, err := meta.Accessor(e.Object)
	if err != nil {
		return "", err
	}
	uid := string(link.GetUID())
	switch {
	case e.Type == watch.Bookmark:
	case e.Type == watch.Deleted, link.GetDeletionTimestamp() != nil:
		w.revoke(link.GetName(), uid)
	case e.Type == watch.Added, e.Type == watch.Modified:
		w.mu.Lock()
		w.present[uid] = true
		w.mu.Unlock()
	}
	return link.GetResourceVersion(), nil
}

// hasUnseen reports whether the process has a Link from elsewhere that was neither seen
// here nor revoked. It may have been deleted before the watch began.
func (w *Watcher) hasUnseen() bool {
	known := w.known()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, uid := range known {
		if !w.present[uid] && !w.revoked[uid] {
			return true
		}
	}
	return false
}

func (w *Watcher) revoke(name, uid string) {
	w.mu.Lock()
	already := w.revoked[uid]
	w.revoked[uid] = true
	delete(w.present, uid)
	w.mu.Unlock()
	if !already {
		w.log.Info("Link deleted, refusing its peer from now on", "link", name, "uid", uid)
		w.changed()
	}
}
