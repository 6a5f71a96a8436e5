package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

func rawSerializer() runtime.NegotiatedSerializer {
	return serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
}

// Paths of the collections that the benchmarks watch.
const (
	servicesPath = "/api/v1/services"
	slicesPath   = "/apis/discovery.k8s.io/v1/endpointslices"
	ledgersPath  = "/apis/causeway.dev/v1alpha1/ledgers"
)

// A change is one event of a watch.
type change struct {
	Type      string // ADDED, MODIFIED or DELETED
	Namespace string
	Name      string
	Labels    map[string]string
	Bytes     int // of the object as JSON
}

// watchEvent is the wire form of an event. Only the metadata is decoded.
type watchEvent struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

type objectMeta struct {
	Code     int    `json:"code"` // of a Status, which an ERROR event holds
	Message  string `json:"message"`
	Metadata struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels"`
	} `json:"metadata"`
}

// watch passes each change of a collection from now on to handle, until the context ends.
// It returns only when the collection can no longer be watched without a gap, because a
// figure with a gap would be wrong. It calls started once, before the first change.
func (c *cluster) watch(ctx context.Context, path string, started func(), handle func(change)) error {
	raw, err := c.raw.Get().AbsPath(path).Param("limit", "1").DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("list %s in %s: %w", path, c.Name(), err)
	}
	var list objectMeta
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("decode the list of %s: %w", path, err)
	}
	version := list.Metadata.ResourceVersion
	started()
	for ctx.Err() == nil {
		if version, err = c.watchFrom(ctx, path, version, handle); err != nil {
			return fmt.Errorf("watch %s in %s: %w", path, c.Name(), err)
		}
	}
	return nil
}

// watchFrom follows one response. It returns the resource version to go on from. A
// response that merely ends is no error.
func (c *cluster) watchFrom(ctx context.Context, path, version string, handle func(change)) (string, error) {
	stream, err := c.raw.Get().AbsPath(path).Param("watch", "true").Param("allowWatchBookmarks", "true").
		Param("resourceVersion", version).Stream(ctx)
	if err != nil {
		var status apierrors.APIStatus
		if errors.As(err, &status) && status.Status().Code == http.StatusGone {
			return version, err
		}
		return version, sleepQuietly(ctx)
	}
	defer stream.Close()
	for d := json.NewDecoder(stream); ; {
		var e watchEvent
		if err := d.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return version, nil
			}
			return version, sleepQuietly(ctx)
		}
		var o objectMeta
		if err := json.Unmarshal(e.Object, &o); err != nil {
			return version, fmt.Errorf("decode an object: %w", err)
		}
		if e.Type == "ERROR" {
			return version, fmt.Errorf("%d %s", o.Code, o.Message)
		}
		version = o.Metadata.ResourceVersion
		if e.Type != "BOOKMARK" {
			handle(change{
				Type:      e.Type,
				Namespace: o.Metadata.Namespace,
				Name:      o.Metadata.Name,
				Labels:    o.Metadata.Labels,
				Bytes:     len(e.Object),
			})
		}
	}
}

// sleepQuietly waits before another attempt. The end of the context is no error here: the
// caller checks it.
func sleepQuietly(ctx context.Context) error {
	_ = sleep(ctx, 100*time.Millisecond)
	return nil
}

// A tally counts changes and the bytes of their objects.
type tally struct {
	Count int
	Bytes int
}

func (t tally) minus(u tally) tally { return tally{t.Count - u.Count, t.Bytes - u.Bytes} }
func (t tally) plus(u tally) tally  { return tally{t.Count + u.Count, t.Bytes + u.Bytes} }

// An observer watches the importer. It knows which Services have an EndpointSlice, since
// when, and how much was written. All methods may be called from several goroutines.
type observer struct {
	mirrorNamespaces map[string]bool // whose writes count as the mirrors' own

	mu      sync.Mutex
	slices  map[string]time.Time // namespace/service of each present slice: when it was first seen
	changed chan struct{}        // closed at the next change of slices
	mirrors tally                // creations and updates of Services and slices in mirrorNamespaces
	ledgers tally                // creations and updates of Ledgers
	err     error                // why a watch ended
}

// observe starts the watches and returns once each has begun. They end with the context.
func observe(ctx context.Context, c *cluster, mirrorNamespaces []string) (*observer, error) {
	o := &observer{
		mirrorNamespaces: make(map[string]bool),
		slices:           make(map[string]time.Time),
		changed:          make(chan struct{}),
	}
	for _, ns := range mirrorNamespaces {
		o.mirrorNamespaces[ns] = true
	}
	var started sync.WaitGroup
	for path, handle := range map[string]func(change){
		servicesPath: o.service,
		slicesPath:   o.slice,
		ledgersPath:  o.ledger,
	} {
		started.Add(1)
		begin := sync.OnceFunc(started.Done)
		go func() {
			err := c.watch(ctx, path, begin, handle)
			begin() // also when the watch never began
			if err != nil && ctx.Err() == nil {
				o.fail(err)
			}
		}()
	}
	started.Wait()
	return o, o.Err()
}

func (o *observer) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = errors.Join(o.err, err)
	o.wake()
}

// Err returns why a watch ended early, or nil.
func (o *observer) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// wake tells waiters that something changed. The caller holds mu.
func (o *observer) wake() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *observer) service(c change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.countMirror(c)
}

func (o *observer) slice(c change) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.countMirror(c)
	key := c.Namespace + "/" + c.Labels[discoveryv1.LabelServiceName]
	_, present := o.slices[key]
	switch {
	case c.Type == "DELETED" && present:
		delete(o.slices, key)
	case c.Type == "ADDED" && !present:
		o.slices[key] = now
	default:
		return
	}
	o.wake()
}

func (o *observer) countMirror(c change) {
	if c.Type != "DELETED" && o.mirrorNamespaces[c.Namespace] {
		o.mirrors = o.mirrors.plus(tally{1, c.Bytes})
	}
}

func (o *observer) ledger(c change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.Type != "DELETED" {
		o.ledgers = o.ledgers.plus(tally{1, c.Bytes})
	}
}

// writes returns what was written since the observer began.
func (o *observer) writes() (mirrors, ledgers tally) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mirrors, o.ledgers
}

// awaitSlices waits until each of the Services, given as namespace/name, has an
// EndpointSlice. It returns how many have one and when the last of them was first seen.
// The error is the context's, or that of a watch that ended.
func (o *observer) awaitSlices(ctx context.Context, services []string) (have int, last time.Time, err error) {
	left := services
	for {
		o.mu.Lock()
		changed := o.changed
		err := o.err
		var missing []string
		for _, s := range left {
			at, ok := o.slices[s]
			switch {
			case !ok:
				missing = append(missing, s)
			case at.After(last):
				last = at
			}
		}
		o.mu.Unlock()
		left = missing
		if have = len(services) - len(left); have == len(services) || err != nil {
			return have, last, err
		}
		select {
		case <-ctx.Done():
			return have, last, ctx.Err()
		case <-changed:
		}
		// In bulk, all that is missing is looked up ten times a second and not at every
		// event. The times of the sightings do not depend on it.
		if len(left) > 16 {
			if err := sleep(ctx, 100*time.Millisecond); err != nil {
				return have, last, err
			}
		}
	}
}

// awaitGone waits until none of the Services, given as namespace/name, has an
// EndpointSlice.
func (o *observer) awaitGone(ctx context.Context, services []string) error {
	for {
		o.mu.Lock()
		changed, err, left := o.changed, o.err, 0
		for _, s := range services {
			if _, ok := o.slices[s]; ok {
				left++
			}
		}
		o.mu.Unlock()
		if left == 0 || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d EndpointSlices of %d are still there: %w", left, len(services), ctx.Err())
		case <-changed:
		}
	}
}
