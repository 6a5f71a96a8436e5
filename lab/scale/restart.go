package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	restartLimit = 3 * time.Minute
	// Writes are counted for this long after a new leader was elected.
	restartWindow = 30 * time.Second
)

// restart replaces all of the importer's controllers twice. The first time nothing else
// happens, and what they write is counted. The second time a Service is exported once the
// old replicas are gone, and the time until it is mirrored shows that the new ones have
// read everything and are in step with the peer.
func (b *bench) restart(ctx context.Context) error {
	if err := b.settle(ctx, "before a restart"); err != nil {
		return err
	}
	b.progress("restarting the importer's controllers with %d mirrors present", b.present)
	mark, err := b.importer.auditEnd()
	if err != nil {
		return err
	}
	old, err := b.importer.deleteControllers(ctx)
	if err != nil {
		return err
	}
	if err := b.importer.awaitControllers(ctx, old); err != nil {
		return err
	}
	if err := sleep(ctx, restartWindow); err != nil {
		return err
	}
	written, err := b.importer.auditedSince(mark, causewayAccounts)
	if err != nil {
		return err
	}
	mirrors, others := 0, make(map[string]int)
	for _, w := range written {
		if w.ofMirrors() {
			mirrors++
		} else {
			others[w.ObjectRef.Resource]++
		}
	}
	at := fmt.Sprintf("restart of the importer's controllers, %s mirrors", thousands(b.present))
	b.add(
		row{What: at + ": writes to Services, EndpointSlices, Ledgers", Causeway: thousands(mirrors), Wanted: "0"},
		row{What: at + ": other writes, Leases apart", Causeway: countsByName(others)},
	)
	if err := b.settle(ctx, "before a restart"); err != nil {
		return err
	}
	return b.restartTime(ctx, at)
}

func (b *bench) restartTime(ctx context.Context, at string) error {
	start := time.Now()
	old, err := b.importer.deleteControllers(ctx)
	if err != nil {
		return err
	}
	var gone time.Time
	err = poll(ctx, restartLimit, 50*time.Millisecond, func() error {
		left, err := b.importer.controllersLeft(ctx, old)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d old controllers still run", left)
		}
		gone = time.Now()
		return err
	})
	if err != nil {
		return err
	}
	probe := probeNumber(b.probes)
	b.probes++
	limited, cancel := context.WithTimeout(ctx, restartLimit)
	defer cancel()
	if err := b.exporter.create(limited, b.service(probe, true)); err != nil {
		return err
	}
	what := at + ": until a newly exported Service is mirrored"
	_, seen, err := b.observer.awaitSlices(limited, []string{probe.mirror(b.exporter.Name())})
	switch {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		b.add(row{What: what, Causeway: fmt.Sprintf("not within %v", restartLimit), Wanted: "≤ 10 s"})
	case err != nil:
		return err
	default:
		b.add(row{
			What: what,
			Causeway: fmt.Sprintf("%.1f s (%.1f s after the old replicas were gone)",
				seen.Sub(start).Seconds(), seen.Sub(gone).Seconds()),
			Wanted: "≤ 10 s",
		})
	}
	return b.exporter.remove(ctx, probe)
}

// deleteControllers deletes every controller pod at once, with the usual grace, and returns
// their UIDs.
func (c *cluster) deleteControllers(ctx context.Context) ([]types.UID, error) {
	pods, err := c.controllerPods(ctx)
	if err != nil {
		return nil, err
	}
	var old []types.UID
	for _, p := range pods {
		old = append(old, p.UID)
		if err := c.api.CoreV1().Pods(system).Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			return nil, fmt.Errorf("delete controller %s: %w", p.Name, err)
		}
	}
	return old, nil
}

// controllersLeft returns how many of the old pods still exist.
func (c *cluster) controllersLeft(ctx context.Context, old []types.UID) (int, error) {
	pods, err := c.componentPods(ctx, "controller")
	if err != nil {
		return 0, err
	}
	left := 0
	for _, p := range pods {
		if slices.Contains(old, p.UID) {
			left++
		}
	}
	return left, nil
}

// awaitControllers waits until as many new controllers are ready as there were old ones,
// and one of them leads.
func (c *cluster) awaitControllers(ctx context.Context, old []types.UID) error {
	return poll(ctx, restartLimit, 200*time.Millisecond, func() error {
		pods, err := c.controllerPods(ctx)
		if err != nil {
			return err
		}
		holders, err := c.leaseHolders(ctx)
		if err != nil {
			return err
		}
		ready, leading := 0, false
		for _, p := range pods {
			if slices.Contains(old, p.UID) || !podReady(p) {
				continue
			}
			ready++
			leading = leading || holds(holders, p.Name)
		}
		if ready < len(old) || !leading {
			return fmt.Errorf("%d of %d new controllers are ready; one leads: %t", ready, len(old), leading)
		}
		return nil
	})
}

func podReady(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
