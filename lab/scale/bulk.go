package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// errNotReached reports that a stage ran out of time. Later stages build on it and are
// left out.
var errNotReached = errors.New("not reached")

// fill exports Services until `to` of them are mirrored.
func (b *bench) fill(ctx context.Context, to int) error {
	if to <= b.present {
		return nil
	}
	b.progress("exporting up to %d Services", to)
	_, err := b.export(ctx, b.present, to)
	return err
}

// export makes the exports from number `from` to before number `to` with a plain client,
// and waits until each mirror has an EndpointSlice. It returns how long that took, counted
// from the first export.
func (b *bench) export(run context.Context, from, to int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(run, b.limit)
	defer cancel()
	var mirrors []string
	for i := from; i < to; i++ {
		mirrors = append(mirrors, exportNumber(i).mirror(b.exporter.Name()))
	}
	start := time.Now()
	err := inParallel(ctx, writers, to-from, func(ctx context.Context, i int) error {
		return b.exporter.create(ctx, b.service(exportNumber(from+i), true))
	})
	if err != nil && !b.late(run, ctx) {
		return 0, fmt.Errorf("export Services: %w", err)
	}
	have, last, err := b.observer.awaitSlices(ctx, mirrors)
	b.present = from + have
	if err != nil && b.late(run, ctx) {
		return 0, fmt.Errorf("%w: %s of %s mirrors after %v (%.1f per second in this step)", errNotReached,
			thousands(b.present), thousands(to), b.limit, float64(have)/b.limit.Seconds())
	}
	return last.Sub(start), err
}

// late reports that a step has used up its own limit, and not the run's.
func (b *bench) late(run, step context.Context) bool {
	return run.Err() == nil && errors.Is(step.Err(), context.DeadlineExceeded)
}

// writePlain does beside Causeway what Causeway does: it creates n pairs of Service and
// EndpointSlice in the importer with a plain client. At the same time it creates n Services
// in the exporter that are not exported, because Causeway's rounds carry that load, too. It
// returns how long it took until the last EndpointSlice was seen.
func (b *bench) writePlain(ctx context.Context, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, b.limit)
	defer cancel()
	name := func(i int) string { return fmt.Sprintf("p-%05d", i) }
	var pairs []string
	for i := range n {
		pairs = append(pairs, plainNamespace+"/"+name(i))
	}
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return inParallel(gctx, writers, n, func(ctx context.Context, i int) error {
			return b.importer.createPair(ctx, plainNamespace, name(i))
		})
	})
	g.Go(func() error {
		return inParallel(gctx, writers, n, func(ctx context.Context, i int) error {
			return b.exporter.create(ctx, b.service(export{plainNamespace, name(i), i}, false))
		})
	})
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("write with a plain client: %w", err)
	}
	_, last, err := b.observer.awaitSlices(ctx, pairs)
	if err != nil {
		return 0, fmt.Errorf("wait for the pairs of a plain client: %w", err)
	}
	for _, c := range b.pair() {
		if err := c.emptyPlainNamespace(ctx); err != nil {
			return 0, err
		}
	}
	return last.Sub(start), b.observer.awaitGone(ctx, pairs)
}

// A bulkCost is what the mirrors of one or more rounds cost.
type bulkCost struct {
	importerCPU, exporterCPU float64 // seconds of the leaders
	mirrors, ledgers         tally
	mirrorTime, ledgerTime   requestTime
}

func (c bulkCost) plus(d bulkCost) bulkCost {
	return bulkCost{
		importerCPU: c.importerCPU + d.importerCPU,
		exporterCPU: c.exporterCPU + d.exporterCPU,
		mirrors:     c.mirrors.plus(d.mirrors),
		ledgers:     c.ledgers.plus(d.ledgers),
		mirrorTime:  c.mirrorTime.plus(d.mirrorTime),
		ledgerTime:  c.ledgerTime.plus(d.ledgerTime),
	}
}

// A meter remembers the counters at the start of a round.
type meter struct {
	importer, exporter       replica
	importerCPU, exporterCPU float64
	mirrors, ledgers         tally
	times                    map[string]requestTime
}

func (b *bench) startMeter(ctx context.Context) (m meter, err error) {
	if m.importer, err = b.importer.leader(ctx); err != nil {
		return m, err
	}
	if m.exporter, err = b.exporter.leader(ctx); err != nil {
		return m, err
	}
	if m.times, err = b.importer.writeTimes(ctx); err != nil {
		return m, err
	}
	if m.importerCPU, err = cpuSeconds(m.importer.pid); err != nil {
		return m, err
	}
	if m.exporterCPU, err = cpuSeconds(m.exporter.pid); err != nil {
		return m, err
	}
	m.mirrors, m.ledgers = b.observer.writes()
	return m, nil
}

func (b *bench) stopMeter(ctx context.Context, m meter) (cost bulkCost, err error) {
	mirrors, ledgers := b.observer.writes()
	cost.mirrors, cost.ledgers = mirrors.minus(m.mirrors), ledgers.minus(m.ledgers)
	if cost.importerCPU, err = cpuSeconds(m.importer.pid); err != nil {
		return cost, fmt.Errorf("the importer's leader ended during the round: %w", err)
	}
	if cost.exporterCPU, err = cpuSeconds(m.exporter.pid); err != nil {
		return cost, fmt.Errorf("the exporter's leader ended during the round: %w", err)
	}
	cost.importerCPU -= m.importerCPU
	cost.exporterCPU -= m.exporterCPU
	times, err := b.importer.writeTimes(ctx)
	if err != nil {
		return cost, err
	}
	spent := func(resource string) requestTime { return times[resource].minus(m.times[resource]) }
	cost.ledgerTime = spent("ledgers")
	cost.mirrorTime = spent("services").plus(spent("endpointslices"))
	return cost, nil
}

// bulk measures rounds of mirrors from `from` to `to` present, each beside a round of a
// plain client that writes as much.
func (b *bench) bulk(ctx context.Context, from, to int) error {
	if err := b.fill(ctx, from); err != nil {
		return err
	}
	var own, plain []float64
	var total bulkCost
	start := b.present
	for r := range b.rounds {
		first, end := start+(to-start)*r/b.rounds, start+(to-start)*(r+1)/b.rounds
		if first == end {
			continue
		}
		rate, cost, err := b.bulkRound(ctx, first, end)
		if err != nil {
			return err
		}
		own, total = append(own, rate), total.plus(cost)
		took, err := b.writePlain(ctx, end-first)
		if err != nil {
			return err
		}
		plain = append(plain, float64(end-first)/took.Seconds())
		b.progress("%d → %d mirrors: %.1f per second, plain client %.1f", first, end, rate, plain[len(plain)-1])
		if err := b.settle(ctx, fmt.Sprintf("after a round that ended at %s mirrors", thousands(end))); err != nil {
			return err
		}
	}
	span := fmt.Sprintf("%s → %s present", thousands(start), thousands(to))
	b.add(ratioRow("mirrors per second, "+span, "%.1f", median(own), median(plain), "≥ 0.8"))
	b.add(costRows(span, to-start, total)...)
	return nil
}

// bulkRound exports a number of Services and returns how many a second were mirrored, and
// at which cost. The cost includes what the controllers do until they are quiet.
func (b *bench) bulkRound(ctx context.Context, from, to int) (rate float64, cost bulkCost, err error) {
	m, err := b.startMeter(ctx)
	if err != nil {
		return 0, cost, err
	}
	took, err := b.export(ctx, from, to)
	if err != nil {
		return 0, cost, err
	}
	if err := b.settle(ctx, fmt.Sprintf("after the bulk up to %s mirrors", thousands(to))); err != nil {
		return 0, cost, err
	}
	cost, err = b.stopMeter(ctx, m)
	return float64(to-from) / took.Seconds(), cost, err
}

// costRows turns the cost of n new mirrors into rows.
func costRows(span string, n int, c bulkCost) []row {
	wantedCPU := "" // the bound is for 1,500 mirrors
	if n == 1500 {
		wantedCPU = "≤ 4 s"
	}
	kib := func(bytes int) string { return thousands(bytes>>10) + " KiB" }
	return []row{
		{
			What:     fmt.Sprintf("bytes written to Ledgers / to mirrors, %s", span),
			Causeway: fmt.Sprintf("%s in %s writes", kib(c.ledgers.Bytes), thousands(c.ledgers.Count)),
			Beside:   fmt.Sprintf("%s in %s writes", kib(c.mirrors.Bytes), thousands(c.mirrors.Count)),
			Ratio:    ratio(float64(c.ledgers.Bytes), float64(c.mirrors.Bytes)),
			Wanted:   "< 0.1",
		},
		{
			What:     fmt.Sprintf("API server time for Ledgers / for mirrors, %s", span),
			Causeway: fmt.Sprintf("%.2f s in %.0f requests", c.ledgerTime.Seconds, c.ledgerTime.Count),
			Beside:   fmt.Sprintf("%.2f s in %.0f requests", c.mirrorTime.Seconds, c.mirrorTime.Count),
			Ratio:    ratio(c.ledgerTime.Seconds, c.mirrorTime.Seconds),
			Wanted:   "< 0.1",
		},
		{
			What:     fmt.Sprintf("CPU of the importer's leader for %s mirrors, %s", thousands(n), span),
			Causeway: fmt.Sprintf("%.1f s", c.importerCPU),
			Wanted:   wantedCPU,
		},
		{
			What:     fmt.Sprintf("CPU of the exporter's leader for %s exports, %s", thousands(n), span),
			Causeway: fmt.Sprintf("%.1f s", c.exporterCPU),
		},
	}
}
