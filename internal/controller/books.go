package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// books is the leader's own copy of the ledger. The leader alone writes Ledgers, so
// it plans from what it knows to be stored and never from a cache, which may lag
// behind its own writes and would give one VIP twice.
type books struct {
	client    client.Client // reads live
	namespace string
	ranges    []netip.Prefix

	stored []v1alpha1.Ledger // as the API server last answered; nil: not read yet
	past   map[string]bool   // UID and resourceVersion of what was read or written here
	book   ledger.Book
}

// assign gives VIPs, indexes and route ids to what is wanted, stores the shards
// that change, and returns the book as stored. cached is what the cache holds:
// a shard in it that the leader has never seen was changed by somebody else, and
// all are read again.
func (b *books) assign(ctx context.Context, cached []v1alpha1.Ledger, exports []catalog.Export, peers []ledger.Peer, now time.Time) (ledger.Book, []ledger.Problem, error) {
	if b.stored == nil || b.foreign(cached) {
		if err := b.read(ctx); err != nil {
			return ledger.Book{}, nil, err
		}
	}
	next, problems := b.book.AssignExports(exportWants(exports), now)
	next, more := next.AssignMirrors(peers, b.ranges, now)
	for _, shard := range ledger.Changed(b.stored, next.Shards(b.namespace)) {
		if err := b.write(ctx, shard); err != nil {
			b.stored = nil // read again before the next plan
			return ledger.Book{}, nil, err
		}
	}
	b.book = next
	return next, append(problems, more...), nil
}

func exportWants(exports []catalog.Export) []ledger.ExportWant {
	wants := make([]ledger.ExportWant, 0, len(exports))
	for _, e := range exports {
		w := ledger.ExportWant{Namespace: e.Namespace, Service: e.Name}
		for _, p := range e.Ports {
			w.Ports = append(w.Ports, ledger.ExportPort{Name: p.Name, Protocol: p.Protocol})
		}
		wants = append(wants, w)
	}
	return wants
}

func version(l *v1alpha1.Ledger) string { return string(l.UID) + "/" + l.ResourceVersion }

func (b *books) foreign(cached []v1alpha1.Ledger) bool {
	for i := range cached {
		if !b.past[version(&cached[i])] {
			return true
		}
	}
	return false
}

func (b *books) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var list v1alpha1.LedgerList
	if err := b.client.List(ctx, &list, client.InNamespace(b.namespace)); err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	b.stored = append([]v1alpha1.Ledger{}, list.Items...)
	b.past = make(map[string]bool)
	for i := range b.stored {
		b.past[version(&b.stored[i])] = true
	}
	b.book, _ = ledger.Load(b.stored)
	return nil
}

// write stores one shard, and keeps the answer.
func (b *books) write(ctx context.Context, shard v1alpha1.Ledger) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var err error
	if shard.ResourceVersion == "" {
		err = b.client.Create(ctx, &shard)
	} else {
		err = b.client.Update(ctx, &shard)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write Ledger %s", shard.Name), err)
	}
	b.past[version(&shard)] = true
	for i := range b.stored {
		if b.stored[i].Name == shard.Name {
			b.stored[i] = shard
			return nil
		}
	}
	b.stored = append(b.stored, shard)
	return nil
}
