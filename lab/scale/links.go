package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// linkSteps are the numbers of Links at which memory is read.
func linkSteps(links int) []int {
	var out []int
	for _, n := range []int{1, 50} {
		if n < links {
			out = append(out, n)
		}
	}
	return append(out, links)
}

// linksPart links simulated peers to the importer, in steps. It measures how long the
// mirrors of each step take, and what the controllers then use. At the end it measures
// single exports of one peer.
func (b *bench) linksPart(ctx, life context.Context) error {
	ps, err := b.newPeers(ctx, life, b.importer, b.links, importerPeerPort)
	if err != nil {
		return err
	}
	if err := ps.export(b.linkServices); err != nil {
		return err
	}
	if err := b.settle(ctx, "before simulated peers were linked"); err != nil {
		return err
	}
	before, err := b.importer.usage(ctx)
	if err != nil {
		return err
	}
	linked := 0
	for _, n := range linkSteps(b.links) {
		if before, err = b.linkStep(ctx, ps, linked, n, before); err != nil {
			return err
		}
		linked = n
	}
	return b.linkLatency(ctx, ps)
}

// linkStep links the simulated peers from number `from` to before number `to`.
func (b *bench) linkStep(ctx context.Context, ps *peers, from, to int, before usage) (usage, error) {
	at := fmt.Sprintf("%s Links of %s Services", thousands(to), thousands(b.linkServices))
	want := ps.mirrors(to, b.linkServices)[from*b.linkServices:]
	b.progress("linking simulated peers: %s", at)
	start := time.Now()
	if err := ps.link(ctx, to, b.linkServices, false); err != nil {
		return before, err
	}
	limited, cancel := context.WithTimeout(ctx, b.bulkLimit)
	defer cancel()
	have, last, err := b.observer.awaitSlices(limited, want)
	took := last.Sub(start)
	if err != nil && !b.late(ctx, limited) {
		return before, err
	}
	late := err != nil
	if late {
		took = b.bulkLimit
	} else if err := b.settle(ctx, "with "+at); err != nil {
		return before, err
	}
	now, err := b.importer.usage(ctx)
	if err != nil {
		return before, err
	}
	cpu, err := now.since(before)
	if err != nil {
		return before, err
	}
	if late {
		b.add(row{What: at, Causeway: fmt.Sprintf("%v: %s of %s mirrors after %v", errNotReached,
			thousands(have), thousands(len(want)), b.bulkLimit)})
	}
	wantedCPU := "" // Links with few Services cost more than their Services
	if b.linkServices >= 300 {
		wantedCPU = "≤ 4 s"
	}
	growth := float64(now.now[0]-before.now[0]) / float64(to-from)
	b.add(
		row{
			What: "until all mirrors exist, " + at,
			Causeway: fmt.Sprintf("%.1f s for %s mirrors (%.1f per second)", took.Seconds(), thousands(have),
				float64(have)/took.Seconds()),
		},
		row{
			What:     "CPU of the importer's leader for each 1,500 mirrors, " + at,
			Causeway: fmt.Sprintf("%.1f s", cpu[0]*1500/float64(max(have, 1))),
			Wanted:   wantedCPU,
		},
		row{
			What:     "RSS of the importer's controllers, leader first, " + at,
			Causeway: fmt.Sprintf("%s; leader %.1f MB for each further Link", now.memory(), growth/1e6),
			Wanted:   "≤ 5 MB for each further Link of 300 Services",
		},
	)
	if late {
		return now, errNotReached
	}
	return now, nil
}

// linkLatency measures how long one more Service of one simulated peer takes until its
// mirror has an EndpointSlice. The bare relay beside it has no API server to watch either:
// it creates the pair at once.
func (b *bench) linkLatency(ctx context.Context, ps *peers) error {
	b.progress("measuring single exports of simulated peers")
	var own, relay []float64
	late := 0
	for begun := time.Now(); len(own) < b.samples && time.Since(begun) < b.limit; {
		n := len(own)
		p, probe := ps.all[n*7919%len(ps.all)], probeNumber(n)
		probe.number = b.linkServices
		d, err := b.peerSample(ctx, p, probe)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			late++
		} else if err != nil {
			return err
		}
		own = append(own, d.Seconds()*1000)
		if d, err = b.pairSample(ctx, fmt.Sprintf("pair-%05d", n)); err != nil {
			return err
		}
		relay = append(relay, d.Seconds()*1000)
	}
	at := fmt.Sprintf("one more export of one of %s Links, %s mirrors, %d samples", thousands(len(ps.all)),
		thousands(b.present+len(ps.all)*b.linkServices), len(own))
	if late > 0 {
		at += fmt.Sprintf(" (%d not mirrored within %v)", late, sampleLimit)
	}
	b.add(
		ratioRow(at+", p50", "%.0f ms", percentile(own, 50), percentile(relay, 50), "≤ 3"),
		ratioRow(at+", p99", "%.0f ms", percentile(own, 99), percentile(relay, 99), "≤ 5"),
	)
	return nil
}

// peerSample lets a simulated peer export one Service and returns the time until its mirror
// has an EndpointSlice. It then withdraws the Service and waits until the mirror is gone.
func (b *bench) peerSample(ctx context.Context, p *peer, probe export) (time.Duration, error) {
	mirror := []string{probe.mirror(p.name)}
	return b.await(ctx, mirror,
		func(context.Context) error { return p.publish(p.listing(probe)) },
		func(context.Context) error { return p.publish(p.withdrawal(probe)) })
}

// pairSample creates a Service and an EndpointSlice in the importer and returns the time
// until the EndpointSlice is seen. It then removes both.
func (b *bench) pairSample(ctx context.Context, name string) (time.Duration, error) {
	return b.await(ctx, []string{plainNamespace + "/" + name},
		func(ctx context.Context) error { return b.importer.createPair(ctx, plainNamespace, name) },
		b.importer.emptyPlainNamespace)
}

// await returns the time from the start of create until each of the importer's Services,
// given as namespace/name, has an EndpointSlice. It then calls remove and waits until they
// have none. If one of both takes longer than sampleLimit, it returns sampleLimit and the
// context's error.
func (b *bench) await(ctx context.Context, services []string, create, remove func(context.Context) error) (time.Duration, error) {
	if err := sleep(ctx, samplePause); err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, sampleLimit)
	defer cancel()
	start := time.Now()
	if err := create(limited); err != nil {
		return 0, err
	}
	_, at, late := b.observer.awaitSlices(limited, services)
	d := at.Sub(start)
	if late != nil {
		d = sampleLimit
	}
	if err := remove(ctx); err != nil {
		return 0, err
	}
	gone, cancel := context.WithTimeout(ctx, sampleLimit)
	defer cancel()
	return d, errors.Join(late, b.observer.awaitGone(gone, services))
}
