package controller

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

// books is the leader's own copy of the ledger. The leader alone writes Ledgers, so
// it plans from what it knows to be stored and never from a cache, which may lag
// behind its own writes and would give one VIP twice.
//
// What it has once known to be given it does not forget: a shard or an entry that
// somebody takes away is written again.
type books struct {
	client    client.Client // reads live
	namespace string
	ranges    []netip.Prefix
	log       *slog.Logger

	stored []v1alpha1.Ledger   // as the API server last answered; nil: to be read
	known  map[string][]string // by shard: UIDs and resourceVersions read or written here, from the one that the cache shows on
	shown  map[string]bool     // shards that the cache has shown
	book   ledger.Book         // as last stored as a whole
	read   bool                // book has been read once
}

// assign gives VIPs, indexes and route ids to what is wanted, stores the shards
// that change, and returns the book as stored. cached is what the cache holds:
// a shard in it that the leader has never seen was changed by somebody else, and
// all are read again; one that it lacks, though it had it, was deleted. After an
// error the book is the last one that was stored as a whole.
func (b *books) assign(ctx context.Context, cached []v1alpha1.Ledger, exports []catalog.Export, peers []ledger.Peer, now time.Time) (ledger.Book, []ledger.Problem, error) {
	if b.compare(cached); b.stored == nil {
		if err := b.load(ctx, cached); err != nil {
			return b.last(cached), nil, err
		}
	}
	next, problems := b.book.AssignExports(exportWants(exports), now)
	next, more := next.AssignMirrors(peers, b.ranges, now)
	for _, shard := range ledger.Changed(b.stored, next.Shards(b.namespace)) {
		if err := b.write(ctx, shard); err != nil {
			b.stored = nil // read again before the next plan
			return b.last(cached), nil, err
		}
	}
	b.book = next
	return next, append(problems, more...), nil
}

// last is the book to go on with for now.
func (b *books) last(cached []v1alpha1.Ledger) ledger.Book {
	if b.read {
		return b.book
	}
	book, _ := ledger.Load(cached)
	return book
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

// compare holds what the cache shows against what is known, and forgets what is
// stored if somebody else has changed that.
func (b *books) compare(cached []v1alpha1.Ledger) {
	shown := make(map[string]bool, len(cached))
	for i := range cached {
		name := cached[i].Name
		shown[name] = true
		at := slices.Index(b.known[name], version(&cached[i]))
		if at < 0 {
			b.stored = nil
			continue
		}
		b.known[name] = b.known[name][at:]
	}
	for name := range b.shown {
		if !shown[name] {
			b.stored = nil // deleted
		}
	}
	b.shown = shown
}

// load reads what is stored. Entries that were known and are not there any more
// come back: if they are not wanted they rest, as all must.
func (b *books) load(ctx context.Context, cached []v1alpha1.Ledger) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var list v1alpha1.LedgerList
	if err := b.client.List(ctx, &list, client.InNamespace(b.namespace)); err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	b.stored = append([]v1alpha1.Ledger{}, list.Items...)
	// What the cache has shown before is no newer than what was read after it.
	b.known = make(map[string][]string, len(b.stored))
	for _, l := range append(slices.Clone(cached), b.stored...) {
		b.known[l.Name] = append(b.known[l.Name], version(&l))
	}
	book, problems := ledger.Load(b.stored)
	for _, p := range problems {
		b.log.Warn("the ledger was damaged and is mended", "link", p.Link, "service", p.Service, "reason", p.Reason)
	}
	if b.read {
		book, _ = ledger.Load(append(book.Shards(b.namespace), b.book.Shards(b.namespace)...))
	}
	b.book, b.read = book, true
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
		return fmt.Errorf("write Ledger %s: %w", shard.Name, err)
	}
	b.known[shard.Name] = append(b.known[shard.Name], version(&shard))
	for i := range b.stored {
		if b.stored[i].Name == shard.Name {
			b.stored[i] = shard
			return nil
		}
	}
	b.stored = append(b.stored, shard)
	return nil
}
