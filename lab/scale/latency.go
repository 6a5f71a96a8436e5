package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// fewestSamples is what a row needs at least, however slow the controllers are.
	fewestSamples = 30
	// sampleLimit is for how long one mirror is waited for.
	sampleLimit = 30 * time.Second
	// samplePause lies between two samples, so that each finds the controllers idle.
	samplePause = 200 * time.Millisecond
)

// latency measures how long one more export takes until its mirror has an EndpointSlice,
// while nothing else happens. Each sample is followed by one of a bare relay between the
// same API servers, and is removed before the next.
func (b *bench) latency(ctx context.Context) error {
	if err := b.settle(ctx, fmt.Sprintf("before single exports, %s present", thousands(b.present))); err != nil {
		return err
	}
	b.progress("measuring single exports with %d mirrors present", b.present)
	relayCtx, stop := context.WithCancel(ctx)
	defer stop()
	if err := b.startRelay(relayCtx); err != nil {
		return err
	}
	var own, relay []float64
	begun, late := time.Now(), 0
	for len(own) < b.samples {
		enough := len(own) >= min(fewestSamples, b.samples)
		if spent := time.Since(begun); spent > b.limit && enough || spent > 2*b.limit {
			break
		}
		probe := probeNumber(b.probes)
		b.probes++
		d, err := b.sample(ctx, probe, probe.mirror(b.exporter.Name()), true)
		if errors.Is(err, context.DeadlineExceeded) {
			late++
		} else if err != nil {
			return err
		}
		own = append(own, d.Seconds()*1000)
		probe.namespace = plainNamespace
		if d, err = b.sample(ctx, probe, plainNamespace+"/"+probe.name, false); err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		relay = append(relay, d.Seconds()*1000)
	}
	at := fmt.Sprintf("one more export, %s present, %d samples", thousands(b.present), len(own))
	if late > 0 {
		at += fmt.Sprintf(" (%d not mirrored within %v)", late, sampleLimit)
	}
	b.add(
		ratioRow(at+", p50", "%.0f ms", percentile(own, 50), percentile(relay, 50), "≤ 3"),
		ratioRow(at+", p99", "%.0f ms", percentile(own, 99), percentile(relay, 99), "≤ 5"),
	)
	return nil
}

// sample creates one Service in the exporter and returns the time until a Service of the
// importer, given as namespace/name, has an EndpointSlice. It then removes the Service and
// waits until the importer's copy is gone. If that takes longer than sampleLimit, it
// returns sampleLimit and the context's error.
func (b *bench) sample(ctx context.Context, e export, want string, exported bool) (time.Duration, error) {
	if err := sleep(ctx, samplePause); err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, sampleLimit)
	defer cancel()
	start := time.Now()
	if err := b.exporter.create(limited, b.service(e, exported)); err != nil {
		return 0, fmt.Errorf("create Service %s: %w", e.name, err)
	}
	_, at, late := b.observer.awaitSlices(limited, []string{want})
	d := at.Sub(start)
	if late != nil {
		d = sampleLimit
	}
	if err := b.exporter.remove(ctx, e); err != nil {
		return 0, fmt.Errorf("delete Service %s: %w", e.name, err)
	}
	if !exported {
		if err := b.importer.emptyPlainNamespace(ctx); err != nil {
			return 0, err
		}
	}
	gone, cancel := context.WithTimeout(ctx, sampleLimit)
	defer cancel()
	if err := b.observer.awaitGone(gone, []string{want}); err != nil && late == nil {
		return 0, err
	}
	return d, late
}

// startRelay begins to copy the exporter's Services of plainNamespace to the importer: it
// watches all Services, as a controller does, and creates a Service and an EndpointSlice
// for each new one. It does nothing else, so it is the least that mirroring can cost. It
// ends with the context.
func (b *bench) startRelay(ctx context.Context) error {
	services := b.exporter.api.CoreV1().Services("")
	list, err := services.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return fmt.Errorf("start the relay: %w", err)
	}
	version := list.ResourceVersion
	w, err := services.Watch(ctx, metav1.ListOptions{ResourceVersion: version})
	if err != nil {
		return fmt.Errorf("start the relay: %w", err)
	}
	go func() {
		for {
			version = b.relay(ctx, w, version)
			w.Stop()
			for w = nil; w == nil; {
				if sleep(ctx, 100*time.Millisecond) != nil {
					return
				}
				w, _ = services.Watch(ctx, metav1.ListOptions{ResourceVersion: version})
			}
		}
	}()
	return nil
}

// relay follows one watch until it ends and returns the last resource version.
func (b *bench) relay(ctx context.Context, w watch.Interface, version string) string {
	for e := range w.ResultChan() {
		s, ok := e.Object.(*corev1.Service)
		if !ok {
			continue
		}
		version = s.ResourceVersion
		if e.Type != watch.Added || s.Namespace != plainNamespace {
			continue
		}
		if err := b.importer.createPair(ctx, plainNamespace, s.Name); err != nil && ctx.Err() == nil {
			b.progress("relay: %v", err) // the sample that waits for it fails
		}
	}
	return version
}
