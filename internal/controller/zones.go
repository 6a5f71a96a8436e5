package controller

import (
	"context"
	"errors"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// zoneWatch waits for the zones of nodes. A controller that has no permission to list
// nodes works without zones, because they only decide which endpoints requests prefer.
type zoneWatch struct {
	synced toolscache.InformerSynced
	// list returns why nodes cannot be listed, or nil.
	list   func(context.Context) error
	log    *slog.Logger
	logged bool // that the zones are missing
}

// watchZones starts to read the zones of nodes. It does not wait for them.
func (p *process) watchZones(ctx context.Context) (*zoneWatch, error) {
	synced, err := p.watch(ctx, nodeKind(), zoneHandler(p.reconciler.inbox))
	if err != nil {
		return nil, err
	}
	list := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, syncTimeout)
		defer cancel()
		var nodes metav1.PartialObjectMetadataList
		nodes.SetGroupVersionKind(nodeKind().GroupVersionKind())
		return p.live.List(ctx, &nodes, client.Limit(1))
	}
	return &zoneWatch{synced: synced, list: list, log: p.log}, nil
}

// await waits up to syncTimeout for the zones, so that agents and gateways keep the zones
// that they know when the controller restarts. If the zones do not come, await logs why.
func (z *zoneWatch) await(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if toolscache.WaitForCacheSync(waiting.Done(), z.synced) || ctx.Err() != nil {
		return
	}
	z.logged = true
	err := z.list(ctx)
	if err == nil {
		err = errors.New("the list takes long")
	}
	z.log.Error("cannot list nodes, going on without zones until it can", "error", err)
}

// zoneInterval is how often run checks whether the zones have come.
const zoneInterval = time.Second

// run returns when the zones have come, or when ctx ends. The informer retries to list
// nodes, and its handler passes the zones on. If await has logged that the zones are
// missing, run logs that they have come.
func (z *zoneWatch) run(ctx context.Context) {
	if !z.logged {
		return
	}
	ticker := time.NewTicker(zoneInterval)
	defer ticker.Stop()
	for !z.synced() {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
	z.log.Info("the zones of nodes are known now")
}
