package controller

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// lookAgain is how often a cluster without the kind ServiceExport is asked for it.
const lookAgain = 10 * time.Second

// serviceExports watches the kind ServiceExport, which a cluster may lack, and may
// be given at any time. One that loses it again loses the objects first, and so
// there is nothing more to do.
type serviceExports struct {
	// find asks the cluster whether it has the kind; watch keeps a cache of it.
	find  func() (bool, error)
	watch func(context.Context) error
	log   *slog.Logger

	here atomic.Bool // the cache is whole
}

// look watches the kind if the cluster has it.
func (s *serviceExports) look(ctx context.Context) error {
	found, err := s.find()
	if err != nil || !found {
		return err
	}
	if err := s.watch(ctx); err != nil {
		return err
	}
	s.here.Store(true)
	return nil
}

// await looks until the kind is there, and then calls changed. It returns when it
// is, or ctx ends.
func (s *serviceExports) await(ctx context.Context, changed func()) {
	if s.here.Load() {
		return
	}
	for told := false; backoff.Sleep(ctx, lookAgain); {
		err := s.look(ctx)
		if err != nil && ctx.Err() == nil && !told {
			s.log.Warn("ServiceExports cannot be watched: it is tried again", "error", err)
			told = true
		}
		if s.here.Load() {
			s.log.Info("the cluster has got the kind ServiceExport: what they name is exported")
			changed()
			return
		}
	}
}

func (p *process) hasServiceExports() (bool, error) {
	_, err := p.mgr.GetRESTMapper().RESTMapping(catalog.ServiceExportKind.GroupKind(), catalog.ServiceExportKind.Version)
	if meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for the kind ServiceExport: %w", err)
	}
	return true, nil
}

func aServiceExport() client.Object {
	export := &metav1.PartialObjectMetadata{}
	export.SetGroupVersionKind(catalog.ServiceExportKind)
	return export
}
