package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// probeInterval is the interval in which the controller checks which versions of
// ServiceExport the API server serves.
const probeInterval = 10 * time.Second

// errVersionGone reports a cluster that serves the kind ServiceExport, but in no version
// that this controller reads. That is not the same as a cluster without the kind: its
// exports stay.
var errVersionGone = errors.New("the cluster serves ServiceExport in no version that this controller reads")

// servedVersion is a version of ServiceExport that the API server serves. The zero value
// means that the API server does not serve the kind.
type servedVersion struct {
	kind schema.GroupVersionKind
	// status means that the version has the status subresource.
	status bool
}

// conditionsKind returns the version in which conditions can be written, or the zero
// value if there is none.
func (v servedVersion) conditionsKind() schema.GroupVersionKind {
	if !v.status {
		return schema.GroupVersionKind{}
	}
	return v.kind
}

// serviceExports watches the kind ServiceExport while the cluster serves it, in the
// newest version that both know. Users install and remove the kind at any time.
type serviceExports struct {
	// served returns the version to read from the API server.
	served func() (servedVersion, error)
	// watch starts a cache of a version, and returns when it is complete. After an error
	// the cache may still be starting. leave stops it. forget drops all objects.
	watch  func(context.Context, schema.GroupVersionKind) error
	leave  func(context.Context, schema.GroupVersionKind) error
	forget func()
	// conditions sets the version in which conditions are written.
	conditions func(schema.GroupVersionKind)
	log        *slog.Logger

	current servedVersion           // the version that is watched now
	failed  schema.GroupVersionKind // the version of which the last call of watch failed
}

func (p *process) serviceExports() (*serviceExports, error) {
	api, err := discovery.NewDiscoveryClientForConfig(p.mgr.GetConfig())
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	in := p.reconciler.inbox
	return &serviceExports{
		served: func() (servedVersion, error) { return servedServiceExport(api) },
		watch:  p.watchServiceExports,
		leave: func(ctx context.Context, kind schema.GroupVersionKind) error {
			return p.unwatch(ctx, serviceExportOf(kind))
		},
		forget: func() { in.add(func(b *batch) { b.serviceExportKeys = map[catalog.Key]bool{} }) },
		conditions: func(kind schema.GroupVersionKind) {
			in.add(func(b *batch) { b.conditionsKind = &kind })
		},
		log: p.log,
	}, nil
}

// probe watches the version that the cluster serves now.
func (s *serviceExports) probe(ctx context.Context) error {
	served, err := s.served()
	if err != nil {
		return err
	}
	if !s.failed.Empty() && s.failed != served.kind {
		if err := s.leave(ctx, s.failed); err != nil {
			return err
		}
		s.failed = schema.GroupVersionKind{}
	}
	if served == s.current {
		return nil
	}
	before := s.current
	if !served.kind.Empty() && served.kind != before.kind {
		if err := s.watch(ctx, served.kind); err != nil {
			s.failed = served.kind
			return err
		}
		s.failed = schema.GroupVersionKind{}
	}
	s.current = served
	s.conditions(served.conditionsKind())
	if !served.kind.Empty() && !served.status {
		s.log.Info("not writing conditions of ServiceExports: the kind has no status subresource",
			"version", served.kind.Version)
	}
	if served.kind.Empty() {
		s.forget()
	}
	if before.kind.Empty() || before.kind == served.kind {
		return nil
	}
	return s.leave(ctx, before.kind)
}

// syncTimeout bounds the wait for the first list of a version.
const syncTimeout = 10 * time.Second

// watchServiceExports watches a version until it is left, and returns when the inbox has
// all objects. After an error the watch goes on, and another call takes it up.
func (p *process) watchServiceExports(ctx context.Context, kind schema.GroupVersionKind) error {
	h := handler(p.reconciler.inbox, func(b *batch) *changed[metav1.PartialObjectMetadata] {
		return &b.serviceExports
	})
	if err := p.watchListed(ctx, serviceExportOf(kind), h); err != nil {
		return err
	}
	// Objects may have been deleted while the controller watched no version.
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	return p.reconciler.inbox.list(
		func() (map[catalog.Key]bool, error) { return listedKeys(ctx, p.mgr.GetClient(), &list) },
		func(b *batch, keys map[catalog.Key]bool) { b.serviceExportKeys = keys })
}

// run probes until ctx ends.
func (s *serviceExports) run(ctx context.Context) {
	for logged := false; backoff.Sleep(ctx, probeInterval); {
		before := s.current
		err := s.probe(ctx)
		if err != nil && ctx.Err() == nil && !logged {
			s.log.Warn("cannot read ServiceExports, keeping those known", "error", err)
		}
		logged = err != nil
		if s.current.kind != before.kind {
			s.log.Info("the served version of ServiceExport changed", "version", s.current.kind.Version)
		}
	}
}

// servedServiceExport queries the API server itself, because a RESTMapper never removes a
// kind.
func servedServiceExport(api discovery.DiscoveryInterface) (servedVersion, error) {
	for _, kind := range catalog.ServiceExportKinds() {
		list, err := api.ServerResourcesForGroupVersion(kind.GroupVersion().String())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return servedVersion{}, fmt.Errorf("discover ServiceExport: %w", err)
		}
		version := servedVersion{}
		for _, r := range list.APIResources {
			if r.Kind != kind.Kind {
				continue
			}
			version.kind = kind
			version.status = version.status || strings.HasSuffix(r.Name, "/status")
		}
		if !version.kind.Empty() {
			return version, nil
		}
	}
	groups, err := api.ServerGroups()
	if err != nil {
		return servedVersion{}, fmt.Errorf("discover ServiceExport: %w", err)
	}
	for _, g := range groups.Groups {
		if g.Name != catalog.ServiceExportV1Beta1.Group {
			continue
		}
		for _, v := range g.Versions {
			list, err := api.ServerResourcesForGroupVersion(v.GroupVersion)
			if err != nil {
				return servedVersion{}, fmt.Errorf("discover ServiceExport: %w", err)
			}
			for _, r := range list.APIResources {
				if r.Kind == catalog.ServiceExportV1Beta1.Kind {
					return servedVersion{}, fmt.Errorf("%w: it serves %s", errVersionGone,
						v.Version)
				}
			}
		}
	}
	return servedVersion{}, nil
}

func serviceExportOf(kind schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	export := &metav1.PartialObjectMetadata{}
	export.SetGroupVersionKind(kind)
	return export
}
