package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// changeAnnotation is what a sample changes of an export.
const changeAnnotation = "scale.example.com/change"

// linkedToExporter links the simulated peers to the exporter, once. Their Links admit all
// exports. Their catalogs are empty.
func (b *bench) linkedToExporter(ctx, life context.Context) (*peers, error) {
	if b.exporterPeers != nil {
		return b.exporterPeers, nil
	}
	ps, err := b.newPeers(ctx, life, b.exporter, b.links, exporterPeerPort)
	if err != nil {
		return nil, err
	}
	b.progress("linking %d simulated peers to the exporter", b.links)
	if err := ps.link(ctx, b.links, b.linkServices, true); err != nil {
		return nil, err
	}
	b.exporterPeers = ps
	return ps, nil
}

// exportsPart lets simulated peers subscribe to the exporter's catalog. It measures what
// the first copies cost, and then how long one changed export takes to reach all peers.
func (b *bench) exportsPart(ctx, life context.Context) error {
	if err := b.exportOnly(ctx, min(b.mirrors, maxServices-headroom)); err != nil {
		return err
	}
	at := fmt.Sprintf("%s exports to %s Links", thousands(b.present), thousands(b.links))
	if err := b.settle(ctx, "before "+at); err != nil {
		return err
	}
	before, err := b.exporter.usage(ctx)
	if err != nil {
		return err
	}
	ps, err := b.linkedToExporter(ctx, life)
	if err != nil {
		return err
	}
	f := newFanout(len(ps.all))
	b.progress("sending %s", at)
	start := time.Now()
	ps.subscribe(life, f)
	limited, cancel := context.WithTimeout(ctx, b.bulkLimit)
	defer cancel()
	if err := f.awaitAll(limited, b.present); err != nil {
		if b.late(ctx, limited) {
			return fmt.Errorf("%w within %v: %w", errNotReached, b.bulkLimit, err)
		}
		return err
	}
	took := time.Since(start)
	if err := b.settle(ctx, "after "+at); err != nil {
		return err
	}
	after, err := b.exporter.usage(ctx)
	if err != nil {
		return err
	}
	cpu, err := after.since(before)
	if err != nil {
		return err
	}
	b.add(
		row{What: "until all peers have all, " + at, Causeway: fmt.Sprintf("%.1f s", took.Seconds())},
		row{What: "CPU of the exporter's controllers for it, leader first", Causeway: seconds(cpu)},
		row{What: "RSS of the exporter's controllers, leader first, " + at, Causeway: after.memory()},
	)
	return b.fanoutLatency(ctx, f, at)
}

// exportOnly exports Services until there are `to` of them. It does not wait for the
// importer, which mirrors them meanwhile.
func (b *bench) exportOnly(ctx context.Context, to int) error {
	if to <= b.present {
		return nil
	}
	b.progress("exporting up to %d Services", to)
	limited, cancel := context.WithTimeout(ctx, b.bulkLimit)
	defer cancel()
	err := inParallel(limited, writers, to-b.present, func(ctx context.Context, i int) error {
		return b.exporter.create(ctx, b.service(exportNumber(b.present+i), true))
	})
	if err != nil && b.late(ctx, limited) {
		return fmt.Errorf("%w: %s exports within %v", errNotReached, thousands(to), b.bulkLimit)
	}
	if err == nil {
		b.present = to
	}
	return err
}

// fanoutLatency measures how long a new export and a changed export take to reach all
// peers. A plain watch in the exporter stands beside them.
func (b *bench) fanoutLatency(ctx context.Context, f *fanout, at string) error {
	services := b.exporter.api.CoreV1().Services("")
	list, err := services.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := services.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	defer w.Stop()
	seen := newSightings()
	go func() {
		for e := range w.ResultChan() {
			if s, ok := e.Object.(*corev1.Service); ok {
				seen.add(s.Namespace+"/"+s.Name+"@"+s.Annotations[changeAnnotation], time.Now())
			}
		}
	}()
	idle, err := b.exporter.idleCPU(ctx)
	if err != nil {
		return err
	}
	b.add(row{
		What:     fmt.Sprintf("CPU of the exporter's idle controllers in %v, leader first, %s", idleWindow, at),
		Causeway: seconds(idle),
	})
	before, err := b.exporter.usage(ctx)
	if err != nil {
		return err
	}
	b.progress("measuring single changes of exports")
	var created, changed, watched []float64
	for begun := time.Now(); len(created) < b.samples && time.Since(begun) < b.limit; {
		probe := probeNumber(b.probes)
		b.probes++
		s, err := b.fanoutSample(ctx, f, seen, probe)
		if err != nil {
			return err
		}
		created, changed, watched = append(created, s.created), append(changed, s.changed), append(watched, s.watched)
	}
	after, err := b.exporter.usage(ctx)
	if err != nil {
		return err
	}
	cpu, err := after.since(before)
	if err != nil {
		return err
	}
	for i := range cpu {
		cpu[i] /= float64(3 * max(len(created), 1))
	}
	at = fmt.Sprintf("%s, %d samples", at, len(created))
	b.add(
		ratioRow("a new export until the last peer has it, "+at+", p50", "%.0f ms", percentile(created, 50), percentile(watched, 50), ""),
		ratioRow("a new export until the last peer has it, "+at+", p99", "%.0f ms", percentile(created, 99), percentile(watched, 99), ""),
		ratioRow("a changed export until the last peer has it, "+at+", p50", "%.0f ms", percentile(changed, 50), percentile(watched, 50), ""),
		ratioRow("a changed export until the last peer has it, "+at+", p99", "%.0f ms", percentile(changed, 99), percentile(watched, 99), ""),
		row{
			What:     "CPU of the exporter's controllers for each change of an export, waiting included, leader first",
			Causeway: milliseconds(cpu),
		},
	)
	return nil
}

// A fanoutTimes is one sample, in milliseconds.
type fanoutTimes struct{ created, changed, watched float64 }

// fanoutSample exports a Service, changes it and removes it. After each step it waits until
// every peer knows.
func (b *bench) fanoutSample(ctx context.Context, f *fanout, seen *sightings, probe export) (t fanoutTimes, err error) {
	if err := sleep(ctx, samplePause); err != nil {
		return t, err
	}
	limited, cancel := context.WithTimeout(ctx, sampleLimit)
	defer cancel()
	key := catalog.Key{Namespace: probe.namespace, Name: probe.name}
	step := func(matches func(*catalog.Service) bool, write func() error) (time.Time, time.Duration, error) {
		f.expect(key, matches)
		start := time.Now()
		if err := write(); err != nil {
			return start, 0, err
		}
		_, last, err := f.awaitProbe(limited)
		return start, last.Sub(start), err
	}
	_, d, err := step(func(s *catalog.Service) bool { return s != nil },
		func() error { return b.exporter.create(limited, b.service(probe, true)) })
	t.created = inMilliseconds(d)
	if err != nil {
		return t, fmt.Errorf("new export %s: %w", key, err)
	}
	if err := sleep(ctx, samplePause); err != nil {
		return t, err
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"1"}}}`, changeAnnotation)
	start, d, err := step(func(s *catalog.Service) bool { return s != nil && s.Annotations[changeAnnotation] == "1" },
		func() error {
			_, err := b.exporter.api.CoreV1().Services(probe.namespace).
				Patch(limited, probe.name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	t.changed = inMilliseconds(d)
	if err != nil {
		return t, fmt.Errorf("changed export %s: %w", key, err)
	}
	at, err := seen.await(limited, key.String()+"@1")
	t.watched = inMilliseconds(at.Sub(start))
	_, _, removed := step(func(s *catalog.Service) bool { return s == nil },
		func() error { return b.exporter.remove(limited, probe) })
	return t, errors.Join(err, removed)
}

func inMilliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }
