package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// lookAgain is how often a cluster is asked whether it has the kind ServiceExport.
const lookAgain = 10 * time.Second

// serviceExports watches the kind ServiceExport while the cluster has it: it may
// be given and taken away at any time.
type serviceExports struct {
	// find asks the cluster whether it has the kind; watch begins to keep a cache of
	// it, and returns when that is whole; leave stops.
	find    func() (bool, error)
	watch   func(context.Context) error
	leave   func(context.Context) error
	changed func()
	log     *slog.Logger

	here atomic.Bool // the cache is kept and whole
}

func (p *process) serviceExports() (*serviceExports, error) {
	api, err := discovery.NewDiscoveryClientForConfig(p.mgr.GetConfig())
	if err != nil {
		return nil, fmt.Errorf("connect to the API server: %w", err)
	}
	return &serviceExports{
		find:    func() (bool, error) { return hasServiceExports(api) },
		watch:   func(ctx context.Context) error { return p.watch(ctx, aServiceExport()) },
		leave:   func(ctx context.Context) error { return p.mgr.GetCache().RemoveInformer(ctx, aServiceExport()) },
		changed: p.brain.changed, log: p.log,
	}, nil
}

// look watches the kind if the cluster has it, and no longer if it has not.
func (s *serviceExports) look(ctx context.Context) error {
	found, err := s.find()
	if err != nil || found == s.here.Load() {
		return err
	}
	if !found {
		s.here.Store(false)
		return s.leave(ctx)
	}
	if err := s.watch(ctx); err != nil {
		return err
	}
	s.here.Store(true)
	return nil
}

// run looks until ctx ends, and tells of what has changed.
func (s *serviceExports) run(ctx context.Context) {
	for told := false; backoff.Sleep(ctx, lookAgain); {
		before := s.here.Load()
		err := s.look(ctx)
		if err != nil && ctx.Err() == nil && !told {
			s.log.Warn("the kind ServiceExport cannot be looked for: it is tried again", "error", err)
		}
		told = err != nil
		if now := s.here.Load(); now != before {
			s.log.Info("the kind ServiceExport was installed or removed", "here", now)
			s.changed()
		}
	}
}

// hasServiceExports asks the API server itself: what maps kinds to resources
// forgets none.
func hasServiceExports(api discovery.ServerResourcesInterface) (bool, error) {
	group := catalog.ServiceExportKind.GroupVersion().String()
	list, err := api.ServerResourcesForGroupVersion(group)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for the kind ServiceExport: %w", err)
	}
	for _, r := range list.APIResources {
		if r.Kind == catalog.ServiceExportKind.Kind {
			return true, nil
		}
	}
	return false, nil
}

func aServiceExport() *metav1.PartialObjectMetadata {
	export := &metav1.PartialObjectMetadata{}
	export.SetGroupVersionKind(catalog.ServiceExportKind)
	return export
}
