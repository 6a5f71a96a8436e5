package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
)

// A fanout records what the simulated peers of one cluster receive of its catalog. Make it
// with newFanout. All methods may be called from several goroutines.
type fanout struct {
	mu      sync.Mutex
	changed chan struct{}       // closed at the next change
	numbers map[catalog.Key]int // of each Service that a peer has received
	held    [][]bool            // by peer and number
	count   []int               // Services that each peer holds

	probe   catalog.Key
	matches func(s *catalog.Service) bool // nil for a Service that is gone
	arrived []bool                        // peers that have received the probe as it must be
	missing int
	first   time.Time
	last    time.Time
}

func newFanout(peers int) *fanout {
	return &fanout{
		changed: make(chan struct{}),
		numbers: make(map[catalog.Key]int),
		held:    make([][]bool, peers),
		count:   make([]int, peers),
		arrived: make([]bool, peers),
	}
}

// sink returns what peer i receives catalogs with.
func (f *fanout) sink(i int) wire.CatalogSink { return fanoutSink{f, i} }

type fanoutSink struct {
	f *fanout
	i int
}

// Catalog implements wire.CatalogSink.
func (s fanoutSink) Catalog(_ string, d wire.Delta) { s.f.receive(s.i, d, time.Now()) }

func (f *fanout) receive(peer int, d wire.Delta, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range d.Upserts {
		key := d.Upserts[i].Key()
		f.hold(peer, key, true)
		f.compare(peer, key, &d.Upserts[i], now)
	}
	for _, key := range d.Removed {
		f.hold(peer, key, false)
		f.compare(peer, key, nil, now)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// hold records whether a peer has a Service. The caller holds mu.
func (f *fanout) hold(peer int, key catalog.Key, present bool) {
	n, ok := f.numbers[key]
	if !ok {
		n = len(f.numbers)
		f.numbers[key] = n
	}
	for len(f.held[peer]) <= n {
		f.held[peer] = append(f.held[peer], false)
	}
	switch {
	case present && !f.held[peer][n]:
		f.count[peer]++
	case !present && f.held[peer][n]:
		f.count[peer]--
	}
	f.held[peer][n] = present
}

// compare records the arrival of the probe. The caller holds mu.
func (f *fanout) compare(peer int, key catalog.Key, s *catalog.Service, now time.Time) {
	if key != f.probe || f.matches == nil || f.arrived[peer] || !f.matches(s) {
		return
	}
	f.arrived[peer] = true
	f.missing--
	if f.last = now; f.first.IsZero() {
		f.first = now
	}
}

// expect begins to wait until every peer has received a Service in a state that matches.
func (f *fanout) expect(key catalog.Key, matches func(*catalog.Service) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probe, f.matches = key, matches
	clear(f.arrived)
	f.missing, f.first, f.last = len(f.arrived), time.Time{}, time.Time{}
}

// awaitProbe returns when the first and the last peer received what expect named.
func (f *fanout) awaitProbe(ctx context.Context) (first, last time.Time, err error) {
	err = f.await(ctx, func() error {
		if f.missing > 0 {
			return fmt.Errorf("%d of %d peers have not received %s", f.missing, len(f.arrived), f.probe)
		}
		return nil
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first, f.last, err
}

// awaitAll waits until every peer holds at least n Services.
func (f *fanout) awaitAll(ctx context.Context, n int) error {
	return f.await(ctx, func() error {
		late, least := 0, n
		for _, c := range f.count {
			if c < n {
				late, least = late+1, min(least, c)
			}
		}
		if late > 0 {
			return fmt.Errorf("%d of %d peers have fewer than %d Services, one of them %d", late, len(f.count), n, least)
		}
		return nil
	})
}

// await waits until done, which is called with mu held, returns nil. Its error wraps the
// context's and names what was missing.
func (f *fanout) await(ctx context.Context, done func() error) error {
	for {
		f.mu.Lock()
		err, changed := done(), f.changed
		f.mu.Unlock()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-changed:
		}
	}
}
